"""The methods of io.dmnotid, and those that every Varlink service has.

The IDL is in the files beside this one, which the service returns as they are.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from dmnotid import __version__
from dmnotid.control.client import INTERFACE
from dmnotid.control.varlink import Client, Request, VarlinkError, sliced
from dmnotid.errors import ConfigError, ConfigProblem, DmnotidError, NoSuchSession, NotPending
from dmnotid.host.log import logger
from dmnotid.policy.sessions import SessionView

SERVICE: Final = "org.varlink.service"

MAX_UNREAD_RECORDS: Final = 1_000
"""Maximum number of log records that are kept for a follower that does not read; later ones are counted."""

_MAX_INTEGER: Final = 2**63 - 1

PARAMETERS: Final[Mapping[str, Mapping[str, type]]] = {
    f"{INTERFACE}.Status": {},
    f"{INTERFACE}.Sessions": {"session": int, "server": str, "states": list, "since": float},
    f"{INTERFACE}.Discards": {"reason": str},
    f"{INTERFACE}.Follow": {"levels": list, "server": str, "session": int},
    f"{INTERFACE}.Retry": {"session": int, "server": str, "all": bool},
    f"{INTERFACE}.Cancel": {"session": int},
    f"{INTERFACE}.Reload": {},
    f"{SERVICE}.GetInfo": {},
    f"{SERVICE}.GetInterfaceDescription": {"interface": str},
}
"""The parameters of each method, as the IDL has them; a list is one of strings."""

# The IDL marks all other parameters with a question mark.
_REQUIRED: Final = {f"{INTERFACE}.Cancel": "session", f"{SERVICE}.GetInterfaceDescription": "interface"}
_STREAMS: Final = frozenset(f"{INTERFACE}.{name}" for name in ("Sessions", "Discards", "Follow"))
# These change something; the group of the socket may only read.
_PRIVILEGED: Final = frozenset(f"{INTERFACE}.{name}" for name in ("Retry", "Cancel", "Reload"))


class Operations(Protocol):
    """The operations of the daemon that clients can call. Every method may raise DmnotidError."""

    async def status(self) -> tuple[Mapping[str, object], tuple[str, Iterator[object]]]:
        """Return the reply of Status, and the name and the items of its long list."""

    def sessions(
        self, session: int | None, server: str | None, states: frozenset[str] | None, since: float | None
    ) -> Iterator[Mapping[str, object] | None]:
        """Yield the sessions that match, or None for one that does not. Raises NoSuchSession for one `session`."""

    def discards(self, reason: str | None) -> Iterator[Mapping[str, object]]:
        """Yield the last discards, of one reason or of all."""

    def subscribe(self, callback: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Call `callback` with each log record from now on, until the function that is returned is called."""

    async def retry(self, session: int | None, server: str | None, by: str) -> list[int]:
        """Let one session, those of a server, or all start now, and return their numbers. `by` names the process."""

    def cancel(self, session: int, by: str) -> str:
        """Close a session, and return the state it had. Raises NoSuchSession and NotPending."""

    async def reload(self, by: str) -> Iterable[ConfigProblem]:
        """Read the configuration again, and return the warnings once it is in force. Raises ConfigError."""


async def answer(operations: Operations, request: Request, client: Client) -> None:
    """Make the replies to a request from the operations of the daemon. Raises VarlinkError."""
    given = _check(request)
    if request.method in _PRIVILEGED and not client.peer.is_own:
        # In the unit's user namespace, every other user is 65534, so only the process can be named.
        problem = "the process is neither root's nor the daemon's own"
        name = request.method.rpartition(".")[2]
        logger.warning("control request refused", method=name, pid=client.peer.pid, problem=problem)
        raise VarlinkError(f"{INTERFACE}.NotPermitted")
    try:
        await _answer(operations, request.method, given, client)
    except (NoSuchSession, NotPending) as error:
        # The IDL has them with the same facts, so that a program can act on one without reading a sentence.
        raise VarlinkError(f"{INTERFACE}.{type(error).__name__}", **vars(error)) from error
    except DmnotidError as error:
        raise VarlinkError(f"{INTERFACE}.Refused", problems=problems_of(error)) from error


async def _answer(operations: Operations, method: str, given: Mapping[str, Any], client: Client) -> None:
    by = f"pid {client.peer.pid}, uid {client.peer.uid}"
    session, server, states = given.get("session"), given.get("server"), given.get("states")
    match method.rpartition(".")[2]:
        case "Status":
            await client.reply(*await operations.status())
        case "Sessions":
            found = operations.sessions(session, server, states and frozenset(states), given.get("since"))
            await _reply_each(client, "session", found)
        case "Discards":
            await _reply_each(client, "discard", operations.discards(given.get("reason")))
        case "Follow":
            await _follow(operations, client, given)
        case "Retry":
            await client.reply({"sessions": await operations.retry(session, server, by)})
        case "Cancel":
            await client.reply({"was": operations.cancel(given["session"], by)})
        case "Reload":
            await client.reply({"warnings": list(map(problem_facts, await operations.reload(by)))})
        case "GetInfo":
            await client.reply(_INFO)
        case "GetInterfaceDescription":
            # The IDL is public: it is installed beside this file.
            description = Path(__file__).with_name(f"{given['interface']}.varlink").read_text(encoding="utf-8")
            await client.reply({"description": description})


async def _follow(operations: Operations, client: Client, given: Mapping[str, Any]) -> None:
    """Reply with each log record that matches, until the client is gone; one that reads slowly misses some."""
    levels, records, woken = given.get("levels"), deque[Mapping[str, Any]](), asyncio.Event()
    missed = 0

    def take(record: Mapping[str, Any]) -> None:
        nonlocal missed
        if levels is not None and record["level"] not in levels:
            return
        # A record about no server or session does not match one.
        if any(given.get(name, record.get(key)) != record.get(key) for name, key in _FILTERS):
            return
        # The log never waits for a follower.
        if len(records) < MAX_UNREAD_RECORDS:
            records.append(record)
        else:
            missed += 1
        woken.set()

    # Replies alone would detect a client that has left with the next record only.
    ended = asyncio.ensure_future(client.leave())
    ended.add_done_callback(lambda _: woken.set())
    unsubscribe = operations.subscribe(take)
    try:
        while not ended.done():
            await woken.wait()
            woken.clear()
            # Only those of now: the loop must come back to the check above.
            async for record in sliced([records.popleft() for _ in range(len(records))]):
                await client.reply({"event": record}, continues=True, waits=True)
            if missed:
                facts = {"sentence": f"Records were left out because they were not read: {missed}", "count": missed}
                event = {"at": time.time(), "level": "warning", "event": "records missed", **facts}
                missed = 0
                await client.reply({"event": event}, continues=True, waits=True)
    finally:
        unsubscribe()
        ended.cancel()


_FILTERS: Final = (("server", "server_id"), ("session", "session"))

_INFO: Final = {
    "vendor": "dmnotid",
    "product": "dmnotid",
    "version": __version__,
    "url": "",
    "interfaces": [SERVICE, INTERFACE],
}


def _check(request: Request) -> dict[str, Any]:
    """Return the parameters that are given. Raises VarlinkError if the request does not fit the IDL."""
    interface = request.method.rpartition(".")[0]
    if interface not in _INFO["interfaces"]:
        raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=interface)
    kinds = PARAMETERS.get(request.method)
    if kinds is None:
        raise VarlinkError(f"{SERVICE}.MethodNotFound", method=request.method)
    # null means absent.
    given = {name: value for name, value in request.parameters.items() if value is not None}
    for name, value in given.items():
        if not _fits(value, kinds.get(name)):
            raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=name)
    required = _REQUIRED.get(request.method)
    if required is not None and required not in given:
        raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter=required)
    # The name becomes a part of a path, so only the two known ones are allowed.
    if given.get("interface", SERVICE) not in _INFO["interfaces"]:
        raise VarlinkError(f"{SERVICE}.InterfaceNotFound", interface=given["interface"])
    # Without any of its parameters, a request for all sessions could be a mistake.
    if request.method == f"{INTERFACE}.Retry" and sum(value is not False for value in given.values()) != 1:
        raise VarlinkError(f"{SERVICE}.InvalidParameter", parameter="session")
    if request.method in _STREAMS and not request.more:
        raise VarlinkError(f"{SERVICE}.ExpectedMore")
    return given


def _fits(value: object, kind: type | None) -> bool:
    if isinstance(value, list):
        return kind is list and all(isinstance(item, str) for item in value)
    # JSON's true is an int for isinstance(), and SQLite's integers have 64 bits.
    fits = type(value) is kind or (kind is float and type(value) is int)
    return fits and (not isinstance(value, int) or abs(value) <= _MAX_INTEGER)


async def _reply_each(client: Client, name: str, values: Iterable[Mapping[str, object] | None]) -> None:
    """Reply with each value but None; if there is none, with an empty reply."""
    last: Mapping[str, object] = {}
    async for value in sliced(values):
        if value is not None:
            # Held back until the next one: only the last reply does not continue.
            if last:
                await client.reply(last, continues=True)
            last = {name: value}
    await client.reply(last)


def problem_facts(problem: ConfigProblem) -> dict[str, object]:
    """Return a problem as the IDL has it."""
    # A file that cannot be read or trusted is in its message too.
    return {"place": problem.place, "message": problem.message.removeprefix(f"{problem.file}: ")}


def problems_of(error: DmnotidError) -> list[dict[str, object]]:
    """Return every problem of an error as the IDL has it."""
    if isinstance(error, ConfigError):
        return list(map(problem_facts, error.problems))
    return [{"place": "", "message": str(error)}]


def session_facts(view: SessionView, attempts_most: int | None) -> dict[str, object]:
    """Return a session as the IDL has it; `attempts_most` is `retry.attempts`, or None without a running daemon."""
    return {
        "session": view.session,
        "server": view.server_id,
        "notification_id": view.notification_id,
        "state": view.state,
        "accepted_at": view.accepted_at,
        "source": view.source,
        "signed": view.signed,
        "preferred": view.preferred,
        "attempts": view.attempts,
        "attempts_most": attempts_most,
        "next": view.next_at,
        "expires": view.expires_at,
        "why": view.why,
        "connection": view.connection,
        "interface": view.interface,
        "started": view.started_at,
        "pid": view.pid,
        "outcome": view.outcome,
        "closed": view.closed_at,
    }
