"""`dmnotid demo`: the real daemon on a loopback port, shown a notification and what else may knock."""

import argparse
import asyncio
import os
import secrets
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.cli.anatomy import palette_for
from dmnotid.cli.decode import Judge, decide, describe
from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.send import Order
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.errors import DmnotidError
from dmnotid.host import log
from dmnotid.host.loop import run_to_completion
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram
from dmnotid.wire.notification import ConnectionType

SERVER_ID: Final = "dm.example.com"
FIRST_ID: Final = 50_001
PATIENCE: Final = 20
"""How long (seconds) the demo waits for what each datagram must bring about."""

# The hook says what it was told; a real one starts a DM client here.
_HOOK: Final = 'echo "DM session with $DMNOTID_SERVER_ID over $DMNOTID_INTERFACE ($DMNOTID_CONNECTION), told:"; cat'

# Loopback stands in for a mobile connection: it is there on every machine, and hardly any other one of that type is.
_CONFIG: Final = """\
servers:
  - id: {server_id}
    secret: {{file: secret}}
hook:
  command: [/bin/sh, -c, {hook}]
listen: "127.0.0.1:0"
state: {state}
connections:
  reach: any
  settle: 0
  mobile: {{interfaces: [lo]}}
log: {{format: text, junk: true}}
"""


class Step(NamedTuple):
    """One datagram of the demo: what it is, and the count of the daemon's that it must raise."""

    title: str
    datagram: bytes
    counter: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid demo`."""
    parser.add_argument("--once", action="store_true", help="end after the last datagram instead of staying up")


def main(arguments: argparse.Namespace) -> int:
    """Show it all; 0 when the daemon did with every datagram what it should."""
    with tempfile.TemporaryDirectory(prefix="dmnotid-demo-") as directory:
        config = _prepare(Path(directory))
        log.configure(config.log.level, config.log.format)
        demo = _Demo(config, Path(directory) / "secret", once=arguments.once)
        run_to_completion(demo.daemon.run())
        if demo.reader_left:
            raise BrokenPipeError
        return EXIT_OK if demo.as_it_should_be else EXIT_PROBLEM


def _prepare(directory: Path) -> Config:
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16) + "\n")
    file = directory / "dmnotid.yaml"
    # A reload refuses a file that its group can write, as the umask may allow.
    file.touch(mode=0o600)
    state = directory / "state"
    file.write_text(_CONFIG.format(server_id=SERVER_ID, hook=_quoted(_HOOK), state=_quoted(str(state))))
    return load_config(file, os.environ)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


class _Daemon(Daemon):
    """The daemon as `dmnotid run` runs it, with the demo going on beside it."""

    def __init__(self, demo: "_Demo", config: Config) -> None:
        super().__init__(config, observe=demo.show)
        self._demo = demo

    async def run(self) -> None:
        telling = asyncio.ensure_future(self._demo.tell())
        telling.add_done_callback(lambda _: self.stop() if self._demo.failed(telling) else None)
        await super().run()
        if self._demo.failed(telling):
            await telling
        telling.cancel()


class _Demo:
    def __init__(self, config: Config, secret_file: Path, *, once: bool) -> None:
        self.as_it_should_be = False
        self.reader_left = False
        self.daemon = _Daemon(self, config)
        self._config = config
        self._secret_file = secret_file
        self._once = once
        self._palette = palette_for(sys.stdout)

    def show(self, datagram: Datagram) -> None:
        """Print what arrived; what became of it follows in the daemon's own log."""
        with self._reader():
            self._print(datagram)

    @contextmanager
    def _reader(self) -> Iterator[None]:
        """Stop when whoever reads along goes away."""
        try:
            yield
        except BrokenPipeError:
            self.reader_left = True
            self.daemon.stop()

    def _print(self, datagram: Datagram) -> None:
        judge = Judge(bare=False, rules=self._config.rules, source=datagram.source, clock=Clock(datagram.received_at))
        print(f"    {len(datagram.payload)} octets from {datagram.source}:")
        verdict = decide(datagram.payload, judge)
        *anatomy, said = describe(datagram.payload, verdict, judge, self._palette)
        # Whether a good one is new, only the daemon knows: its log says so next.
        for line in anatomy if verdict.discard is None else [*anatomy, said]:
            print("   ", line)
        sys.stdout.flush()

    async def tell(self) -> None:
        """Send every datagram of the story, and see that each has the end it must have."""
        await self.daemon.ready.wait()
        with self._reader():
            await self._tell()

    @staticmethod
    def failed(telling: asyncio.Future[None]) -> bool:
        """Tell whether the story broke off by an error."""
        return telling.done() and not telling.cancelled() and telling.exception() is not None

    async def _tell(self) -> None:
        address = next(iter(self.daemon.endpoints)).socket.getsockname()
        right = True
        for number, step in enumerate(_story(self._config), 1):
            print(f"\n--- {number}. {step.title}")
            right &= await self._play(step, address)
        self.as_it_should_be = right
        print("\n--- " + ("All as it should be." if right else "Not as it should be: see above."))
        self._invite(address)

    async def _play(self, step: Step, address: tuple[str, int]) -> bool:
        before = self.daemon.counters[step.counter]
        _send(step.datagram, address)
        came = await self._until(lambda: self.daemon.counters[step.counter] > before)
        return came and await self._until(lambda: not self.daemon.pending)

    def _invite(self, address: tuple[str, int]) -> None:
        if self._once:
            self.daemon.stop()
            return
        called = Path(sys.argv[0]).absolute()
        program = f"{shlex.quote(sys.executable)} -m dmnotid" if called.suffix == ".py" else shlex.quote(str(called))
        where = (
            f"--to {address[0]}:{address[1]} --server {SERVER_ID} --secret-file {shlex.quote(str(self._secret_file))}"
        )
        print("The daemon stays up until Ctrl-C. Send it more from another terminal:\n")
        print(f"    {program} send {where}\n", flush=True)

    async def _until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True


def _send(datagram: bytes, address: tuple[str, int]) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(datagram, address)
    except OSError as error:
        message = f"dmnotid demo: nothing can be sent over loopback: {error.strerror}"
        raise DmnotidError(message) from error


def _story(config: Config) -> Iterator[Step]:
    secret = config.servers[0].secret or b""
    signed = _order(secret).build(FIRST_ID)
    two_days_ago = time.time() - 2 * 86_400
    yield Step("a signed notification: the hook runs", signed, "accepted")
    yield Step("the same once more: a duplicate", signed, "duplicate")
    yield Step("a forged one, signed with another secret", _order(secret[::-1]).build(FIRST_ID + 1), "digest-mismatch")
    yield Step("a stale one, two days old", _order(secret, sent_at=two_days_ago).build(FIRST_ID + 2), "stale")
    yield Step(
        "one of a server that this device doesn't know", _order(secret, "other.example").build(1), "unknown-server"
    )
    yield Step("junk", b"\x00\x06\x7f" + secrets.token_bytes(5), "truncated")


def _order(secret: bytes, server_id: str = SERVER_ID, sent_at: float | None = None) -> Order:
    return Order(
        server_id=server_id,
        secret=secret,
        preferred=(ConnectionType.MOBILE, ConnectionType.WIRELESS),
        requested_mos=(1, 2),
        cached_mos=((3, bytes.fromhex("deadbeef")),),
        headers=(),
        tid=None,
        sent_at=sent_at,
    )
