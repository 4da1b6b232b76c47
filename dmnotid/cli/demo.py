"""`dmnotid demo`: the real daemon on a loopback port, with one datagram of every kind."""

import argparse
import asyncio
import os
import secrets
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.cli.anatomy import palette_for
from dmnotid.cli.decode import Judge, decide, describe
from dmnotid.cli.order import Order
from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.table import columns
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.host import log
from dmnotid.host.loop import run_to_completion
from dmnotid.policy.addresses import show_address
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram
from dmnotid.wire.notification import ConnectionType

SERVER_ID: Final = "dm.example.com"
FIRST_ID: Final = 50_001
PATIENCE: Final = 20
"""Maximum time for the effect of one datagram, in seconds."""

# The hook prints its facts; a real one starts a DM client here. Loopback stands in for a mobile connection, as every
# machine has it.
_CONFIG: Final = f"""\
servers:
  - id: {SERVER_ID}
    secret: {{file: secret}}
hook:
  command:
    - /bin/sh
    - -c
    - 'echo "DM session with $DMNOTID_SERVER_ID over $DMNOTID_INTERFACE ($DMNOTID_CONNECTION), facts:"; cat'
listen: "127.0.0.1:0"
state: state
connections:
  reach: any
  settle: 0
  mobile: {{interfaces: [lo]}}
log: {{format: text, junk: true}}
"""


class Step(NamedTuple):
    """One datagram of the demo: what it is, its octets, and the counter of the daemon that it must raise."""

    title: str
    datagram: bytes
    counter: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid demo`."""
    parser.add_argument("--once", action="store_true", help="end after the last datagram instead of staying up")
    parser.add_argument("--full", action="store_true", help="show the octets of all datagrams, not of the first alone")


def main(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if the daemon did the expected with every datagram."""
    # The journal and the secret are gone after the demo, so it can be repeated.
    with tempfile.TemporaryDirectory(prefix="dmnotid-demo-") as directory:
        config = _prepare(Path(directory))
        log.configure(config.log.level, config.log.format)
        demo = _Demo(config, once=arguments.once, full=arguments.full)
        run_to_completion(demo.run())
        return EXIT_OK if demo.succeeded else EXIT_PROBLEM


def _prepare(directory: Path) -> Config:
    secret = directory / "secret"
    # The daemon refuses a secret that other users can read, so the mode is set before the content.
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16) + "\n")
    file = directory / "dmnotid.yaml"
    # The umask may let the group write new files, and the daemon refuses such a configuration.
    file.touch(mode=0o600)
    file.write_text(_CONFIG)
    return load_config(file, os.environ)


class _Demo:
    """The daemon, and the story that is played to it."""

    def __init__(self, config: Config, *, once: bool, full: bool) -> None:
        # Whether every datagram of the story had the expected effect.
        self.succeeded = False
        # Whether standard output was closed by its reader while the daemon printed a datagram.
        self._reader_left = False
        # The configuration of the daemon: its rules also give the verdicts that are printed.
        self._config = config
        # Whether the daemon stops after the last datagram.
        self._once = once
        # Whether the octets of every datagram are shown; otherwise only those of the first.
        self._full = full
        # Whether the octets of a datagram have been shown.
        self._shown = False
        # The colours of standard output.
        self._palette = palette_for(sys.stdout)
        # The real daemon, which calls _show with every datagram that it receives.
        self._daemon = Daemon(config, observe=self._show)

    async def run(self) -> None:
        """Run daemon and story until both are over. Raises BrokenPipeError if the reader of standard output left."""
        # The daemon runs in this task, because its end is that of the demo.
        story = asyncio.create_task(self._tell_story())
        try:
            await self._daemon.run()
        finally:
            # Ctrl-C or an error can end the daemon before the story.
            story.cancel()
        # An exception of a task is lost unless the task is awaited.
        with suppress(asyncio.CancelledError):
            await story
        if self._reader_left:
            raise BrokenPipeError

    def _show(self, datagram: Datagram) -> None:
        lines = [f"{len(datagram.payload)} octets from {datagram.source}"]
        # One datagram is enough to explain the format, and the log has the verdict of each.
        if self._full or not self._shown:
            self._shown = True
            clock = Clock(datagram.received_at)
            judge = Judge(bare=False, rules=self._config.rules, source=datagram.source, clock=clock)
            verdict = decide(datagram.payload, judge)
            *anatomy, conclusion = describe(datagram.payload, verdict, judge, self._palette)
            # Only the daemon can detect a duplicate, so the conclusion about a good datagram is left to its log.
            lines = [f"{lines[0]}:", *anatomy, *([conclusion] if verdict.discard else [])]
        try:
            # The log is written past this buffer, and the order of the lines must be that of the events.
            print(*(f"    {line}" for line in lines), sep="\n", flush=True)
        except BrokenPipeError:
            # The daemon calls this function, and would take an exception for an internal error of its own.
            self._reader_left = True
            self._daemon.stop()

    async def _tell_story(self) -> None:
        """Send every datagram and check its effect; stops the daemon with `--once`, and on an error."""
        stays = False
        try:
            await self._daemon.ready.wait()
            # The configuration asks for port 0, and the kernel has chosen one.
            host, port = next(iter(self._daemon.endpoints)).socket.getsockname()
            rows = []
            for number, step in enumerate(_story(self._config), 1):
                title = f"{number}. {step.title}"
                print(f"\n--- {title}")
                rows.append((title, await self._play(step, host, port), step.counter))
            self.succeeded = all(counted == expected for _, counted, expected in rows)
            print(f"\n--- {'Everything' if self.succeeded else 'Not everything'} as expected:\n")
            _print_table(rows)
            if not self._once:
                self._invite(show_address(host, port))
                stays = True
        finally:
            # Without this, the daemon would also run on after a story that failed.
            if not stays:
                self._daemon.stop()

    async def _play(self, step: Step, host: str, port: int) -> str:
        """Send one datagram; return what it was counted as, `not counted` or `not done` after PATIENCE seconds."""
        before = self._daemon.counters.copy()

        def counted() -> str:
            return " ".join((self._daemon.counters - before).keys() - {"received"})

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(step.datagram, (host, port))
        deadline = time.monotonic() + PATIENCE
        # The session ends before the next step, so that the output of the hook is below its own title.
        while not counted() or self._daemon.pending:
            if time.monotonic() > deadline:
                return "not done" if counted() else "not counted"
            # Counters have no event to wait for.
            await asyncio.sleep(0.01)
        return counted()

    def _invite(self, address: str) -> None:
        script = Path(sys.argv[0]).absolute()
        # Under `python -m dmnotid`, argv[0] is the path of __main__.py, which is not executable.
        program = f"{shlex.quote(sys.executable)} -m dmnotid" if script.suffix == ".py" else shlex.quote(str(script))
        print("The daemon stays up until Ctrl-C. Send it more from another terminal:\n")
        secret_file = shlex.quote(str(self._config.file.with_name("secret")))
        print(f"    {program} send --to {address} --server {SERVER_ID} --secret-file {secret_file}\n", flush=True)


def _print_table(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print what each datagram was and what the daemon counted it as; also the expected count if that differs."""
    cells: list[tuple[str, str, str]] = [("SENT", "VERDICT", "REASON")]
    for title, counted, expected in rows:
        # A counter is `accepted`, or the reason of a discard.
        ends = ("accepted", "the hook ran") if counted == "accepted" else ("discarded", counted)
        cells.append((title, *ends) if counted == expected else (title, counted, f"expected: {expected}"))
    for line in columns(cells):
        print("   ", line)
    print(flush=True)


def _story(config: Config) -> Iterator[Step]:
    secret = config.servers[0].secret or b""
    order = Order(
        server_id=SERVER_ID,
        secret=secret,
        preferred=(ConnectionType.MOBILE, ConnectionType.WIRELESS),
        requested_mos=(1, 2),
        cached_mos=((3, bytes.fromhex("deadbeef")),),
    )
    # Built once: a second one could be signed with another time, and would not be the same octets.
    signed = order.build(FIRST_ID)
    yield Step("a signed notification", signed, "accepted")
    yield Step("the same notification again", signed, "duplicate")
    # Ids of their own: otherwise they would be duplicates as well.
    forged = replace(order, secret=secret[::-1]).build(FIRST_ID + 1)
    yield Step("a forged one: signed with another secret", forged, "digest-mismatch")
    old = replace(order, sent_at=time.time() - 2 * 86_400).build(FIRST_ID + 2)
    yield Step("an old one: signed two days ago", old, "stale")
    strange = replace(order, server_id="other.example").build(1)
    yield Step("one of a server that is not configured", strange, "unknown-server")
    # A HeadersLen of 127 octets, of which five are there.
    yield Step("junk: eight octets", b"\x00\x06\x7f" + secrets.token_bytes(5), "truncated")
