"""Tries of sessions and runs of hooks that the tests of this room and of `dmnotid session` share."""

from pathlib import Path
from typing import Any, Final

from dmnotid.config.values import HookConfig
from dmnotid.hook.runner import Hook
from dmnotid.policy.sessions import Connection, Outcome, SessionRequest, SessionStart
from dmnotid.wire.notification import MAX_OPTION_LENGTH, ConnectionType, decode_notification
from tests.support import SERVER_ID, LogLines, package

SENT_AT: Final = 1_800_000_000
RECEIVED_AT: Final = 1_800_000_001.23449

RICH: Final[dict[str, Any]] = {
    "preferred": [ConnectionType.WIRELESS, ConnectionType.MOBILE, ConnectionType.ANY],
    "requested_mos": [1, 2, 65_535],
    "cached_mos": [(3, bytes.fromhex("deadbeef")), (0, bytes(4))],
    "unknown": [(6, b""), (9, b"\0\xff")],
}
"""A notification with every Option."""

LARGE: Final[dict[str, Any]] = {"unknown": [(number, bytes(MAX_OPTION_LENGTH)) for number in range(6, 35)]}
"""A notification whose facts are larger than the buffer of a pipe or a socket."""

WRITE_PIDS: Final = "echo $$ $! > {pids}.new; mv {pids}.new {pids}"
"""Shell commands that write the process ids of the hook and of its last child to a file at once."""


def start(*, attempt: int = 2, connection: Connection | None = None, **more: Any) -> SessionStart:  # noqa: ANN401
    """Make a try as the dispatcher does."""
    octets = package(more.pop("notification_id", 4_661), **{"sent_at": SENT_AT, **more})
    notification = decode_notification(octets)
    server_id = notification.server_id or SERVER_ID
    request = SessionRequest(12, server_id, notification, "192.0.2.1:40000", RECEIVED_AT, 1, 0.0, 1e9)
    return SessionStart(request, connection or Connection(ConnectionType.WIRELESS, "wlan0"), attempt)


async def run(file: Path | list[str], try_: SessionStart | None = None, **more: Any) -> Outcome:  # noqa: ANN401
    """Run a command as a hook to its end."""
    command = file if isinstance(file, list) else [str(file)]
    config = HookConfig(tuple(command), **{"timeout": 60.0, "kill_after": 60.0, **more})
    return await Hook(config).run(try_ or start())


def output(logged: LogLines, stream: str = "stdout") -> list[str]:
    return [line["line"] for line in logged.of("hook output") if line["stream"] == stream]


def children() -> list[int]:
    """Return the processes that this one has started and not reaped."""
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def is_reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def pids_of(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()]
