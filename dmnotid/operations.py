"""What the control socket answers: the state of the receiver, the dispatcher and the journal, as an operator reads it.

Nothing here has a secret in it. Long lists are made one entry at a time, so that the loop has its turns between them.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from heapq import merge
from operator import itemgetter
from typing import Any, Final

from dmnotid import __version__
from dmnotid.config.values import Config
from dmnotid.control.interface import problems_of, session_facts
from dmnotid.control.varlink import SLICE, sliced
from dmnotid.discards import Discarded, ServerCounts
from dmnotid.errors import ConfigProblem, JournalError, NoSuchSession, NotPending, discard_reasons
from dmnotid.host import log
from dmnotid.host.loop import loop_name
from dmnotid.journal.listing import view_of
from dmnotid.journal.queue import Journal
from dmnotid.journal.rows import PENDING, Row, is_whole, shown_time
from dmnotid.links.availability import UNCONFIGURED
from dmnotid.links.monitor import Links
from dmnotid.policy.freshness import judge_clock
from dmnotid.policy.sessions import Closed, PendingState, SessionView
from dmnotid.reload import Parts, Reloader

VERSION: Final = 1
"""Version of the reply of Status: keys may be added under the same number, not changed."""

_RETRIED: Final = frozenset({PendingState.RESTING, PendingState.PAUSED, PendingState.HOOK})
"""The states of open sessions that `Retry` ends."""

_CLOSED: Final = frozenset(Closed)

# As plain strings, which are quicker than members of an enumeration.
_REASONS: Final = tuple(discard_reasons())
_STATES: Final = tuple(str(state) for state in PendingState)
_OUTCOMES: Final = tuple(str(closed) for closed in Closed)

Facts = dict[str, object]


class Operations:
    """The operations of the control socket on a running daemon."""

    def __init__(self, parts: Parts, reloader: Reloader, units: Mapping[int, str]) -> None:
        # The parts that have the answers.
        self._parts = parts
        # The configuration in force, and the one way to change it.
        self._reloader = reloader
        # Names of the units that passed sockets, by descriptor.
        self._units = units
        # When the daemon started (POSIX seconds), and its process.
        self._started, self._pid = reloader.loaded_at, os.getpid()
        # The first call reads the whole table, which would hold up reception later.
        parts.journal.last_sessions()

    @property
    def _config(self) -> Config:
        return self._reloader.config

    # Status

    async def status(self) -> tuple[Facts, tuple[str, Iterator[Facts]]]:
        """Return the reply of Status, and its list of servers, of which each takes its time."""
        parts, now = self._parts, time.time()
        journal, problem = _describe_journal(parts.journal)
        # Counting the rows takes a millisecond for each 40,000 of them.
        await asyncio.sleep(0)
        last = {} if problem else parts.journal.last_sessions()
        tried = {row.session for row in last.values()}
        # The states of those of them that are open, and the numbers of pending ones.
        tried_states: dict[int, str] = {}
        pending: Counter[str] = Counter()
        states: Counter[str] = Counter()
        oldest = None
        async for view in sliced(parts.dispatcher.views()):
            pending[view.server_id] += 1
            states[view.state] += 1
            oldest = view.accepted_at if oldest is None else min(oldest, view.accepted_at)
            if view.session in tried:
                tried_states[view.session] = view.state
        config, hook_problem = self._config.hook, parts.dispatcher.hook_problem
        hook = config.command[0] if config.socket is None else str(config.socket)
        clock = judge_clock(now, parts.journal.times.floor, parts.journal.times.servers)
        status = {
            "version": VERSION,
            "now": now,
            "started": self._started,
            "pid": self._pid,
            "program": __version__,
            "loop": loop_name(),
            "stopping": self._reloader.stopping,
            "config": _describe_config(self._reloader),
            "problems": [*self._find_problems(), *([{"place": "journal", "message": problem}] if problem else ())],
            "sockets": _describe_sockets(parts, self._units),
            "hook": {"what": hook, "startable": not hook_problem, "problem": hook_problem or None},
            "journal": journal,
            "clock": {"believed": clock.believed, "floor": parts.journal.times.floor},
            "counts": {**_count(parts), "states": {it: states.get(it, 0) for it in _STATES}, "oldest_pending": oldest},
            "links": list(_describe_links(parts.links, now)),
        }
        return status, ("servers", self._servers(pending, last, tried_states))

    def _find_problems(self) -> Iterator[Facts]:
        if self._reloader.refusal is not None:
            # The others are counted, and `dmnotid check` shows them.
            yield problems_of(self._reloader.refusal.error)[0]
        if self._parts.dispatcher.hook_problem:
            key = "hook.command" if self._config.hook.socket is None else "hook.socket"
            yield {"place": key, "message": self._parts.dispatcher.hook_problem}
        for reader in self._parts.endpoints:
            if reader.lost:
                message = f"{reader}: its file was removed, so no sender reaches it; expected a reload"
                yield {"place": "doors", "message": message}

    def _servers(
        self, pending: Mapping[str, int], last: Mapping[str, Row], states: Mapping[int, str]
    ) -> Iterator[Facts]:
        """Yield the configured servers, and then those that are not and have pending sessions."""
        receiver, never_heard = self._parts.receiver, ServerCounts()
        last_accepted = self._parts.journal.times.last_accepted
        configured = {server.id: server for server in self._config.servers}
        for server_id in dict.fromkeys([*configured, *pending]):
            server, row = configured.get(server_id), last.get(server_id)
            counts = receiver.servers.get(server_id) or never_heard
            discard = counts.last_discard
            yield {
                "id": server_id,
                "must_sign": server is not None and server.require_digest,
                "secrets": 0 if server is None else len(server.secrets),
                "last_secret": counts.last_secret,
                "last_accepted": last_accepted.get(server_id),
                "accepted": counts.accepted,
                # Its octets are in the reply of Discards.
                "last_discard": None if discard is None else {**self._describe_discard(discard), "octets": None},
                "discarded": counts.discarded,
                "pending": pending.get(server_id, 0),
                "last_session": None if row is None else _describe_last(row, states.get(row.session, row.state)),
                # Sessions of a server that is not configured do not start.
                "held_back": server is None,
            }

    def _describe_discard(self, discard: Discarded) -> Facts:
        return {
            "reason": discard.reason,
            "count": self._parts.receiver.counters[discard.reason],
            "at": discard.at,
            "source": str(discard.source),
            "server": discard.server_id,
            "problem": discard.problem,
            "octets": discard.octets.hex(),
            "package": discard.bare,
        }

    # Lists

    def sessions(
        self, session: int | None, server: str | None, states: frozenset[str] | None, since: float | None
    ) -> Iterator[Facts | None]:
        """Yield the sessions that match by number, and None for each that does not.

        Closed ones are among them if `session` or `since` is given, or one of their states. Raises NoSuchSession if
        there is none of the number `session`, and JournalError.
        """
        closed: Iterator[tuple[int, SessionView | None]] = iter(())
        if session is not None:
            row = self._parts.journal.find(session)
            if row is None or not is_whole(row):
                raise NoSuchSession(session)
            # The dispatcher has the open ones.
            closed = iter([(session, view_of(row))] if row.state != PENDING else ())
        elif since is not None or not _CLOSED.isdisjoint(states or ()):
            closed = self._closed(since)
        # Both have the sessions in the order of their numbers, and so has the list.
        for number, view in merge(closed, self._open(), key=itemgetter(0)):
            matches = (
                view is not None
                and session in {None, number}
                and server in {None, view.server_id}
                and (states is None or view.state in states)
                and (since is None or max(view.accepted_at, view.closed_at or 0) >= since)
            )
            yield session_facts(view, self._config.retry.attempts) if view is not None and matches else None

    def _open(self) -> Iterator[tuple[int, SessionView | None]]:
        for view in self._parts.dispatcher.views():
            yield view.session, view

    def _closed(self, since: float | None) -> Iterator[tuple[int, SessionView | None]]:
        last = 0
        for page in self._parts.journal.pages(since):
            # Reading a page takes as long as making many entries of it, so the loop has its turn before that.
            yield from [(last, None)] * SLICE
            for row in page:
                last = row.session
                yield last, None if row.state == PENDING else view_of(row)

    def discards(self, reason: str | None) -> Iterator[Facts]:
        """Yield the last discarded datagrams in the order of arrival."""
        for discard in self._parts.receiver.discards:
            if reason in {None, discard.reason}:
                yield self._describe_discard(discard)

    def subscribe(self, callback: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """Call `callback` with each log record from now on, until the function that is returned is called."""
        return log.subscribe(callback)

    # Changes

    async def retry(self, session: int | None, server: str | None, by: str) -> list[int]:
        """Let one session, or else the open ones of a server or of all, start as soon as they can.

        Return those that were paused or resting, or are open again. Raises NoSuchSession, NotPending and JournalError.
        """
        if session is not None:
            return [session] if self._parts.dispatcher.retry(session, by) else []
        chosen = [
            view.session
            async for view in sliced(self._parts.dispatcher.views())
            if view.state in _RETRIED and server in {None, view.server_id}
        ]
        retried: list[int] = []
        for one in chosen:
            # Meanwhile it may have been cancelled, or run to its end.
            with suppress(NoSuchSession, NotPending):
                if self._parts.dispatcher.retry(one, by):
                    retried.append(one)
            # Each is a transaction of its own.
            await asyncio.sleep(0)
        return retried

    def cancel(self, session: int, by: str) -> str:
        """Close a session, and return the state it had. Raises NoSuchSession, NotPending and JournalError."""
        return self._parts.dispatcher.cancel(session, by)

    async def reload(self, by: str) -> tuple[ConfigProblem, ...]:
        """Read the configuration again, and return its warnings once it is in force. Raises DmnotidError."""
        return await self._reloader.reload(by)


def _describe_config(reloader: Reloader) -> Facts:
    refusal = reloader.refusal
    refused = None if refusal is None else {"at": refusal.at, "problems": len(problems_of(refusal.error))}
    return {"file": str(reloader.config.file), "loaded": reloader.loaded_at, "reload_refused": refused}


def _describe_sockets(parts: Parts, units: Mapping[int, str]) -> list[Facts]:
    # Junk alone wakes no endpoint, so these counters may be old.
    parts.endpoints.report_drops()
    return [
        {
            "listen": str(it),
            "unit": units.get(it.socket.fileno()),
            "door": it.door,
            "received": it.received,
            "lost": it.dropped.lost,
            "junk": it.dropped.junk,
        }
        for it in parts.endpoints
    ]


def _describe_journal(journal: Journal) -> tuple[Facts, str]:
    """Describe the journal, and return the reason if it can't be read."""
    found: Facts = {"file": str(journal.file), "octets": None, "remembered": None, "oldest": None}
    problem = ""
    try:
        count, oldest = journal.extent()
        found |= {"octets": journal.octets, "remembered": count, "oldest": oldest}
    except JournalError as error:
        problem = str(error)
    return {**found, "errors": journal.errors}, problem


def _count(parts: Parts) -> Facts:
    received, tried = parts.receiver.counters, parts.dispatcher.counters
    duration_sum, duration_count = parts.dispatcher.durations
    # Most of the reasons have never been counted, and looking up one of those in a Counter is slow.
    return {
        "received": received["received"],
        "accepted": received["accepted"],
        "not_accepted": received["not accepted"],
        "bugs": received["bugs"],
        "junk": received["junk"],
        "lost": received["lost"],
        "discarded": {reason: received.get(reason, 0) for reason in _REASONS},
        "tries": tried["tries"],
        "interrupted": tried["interrupted"],
        "closed": {outcome: tried.get(outcome, 0) for outcome in _OUTCOMES},
        "duration_sum": duration_sum,
        "duration_count": duration_count,
    }


def _describe_last(row: Row, state: str) -> Facts:
    return {
        "session": row.session,
        "state": state,
        "attempts": row.attempts,
        "connection": row.connection,
        "interface": row.interface,
        "started": row.started_at,
        "outcome": row.outcome,
        "closed": None if row.closed_at is None else shown_time(row.closed_at),
    }


def _describe_links(links: Links, now: float) -> Iterator[Facts]:
    connections, monotonic = links.available(), time.monotonic()
    for link in links.links:
        # Loopback is a link to no other host, unless the configuration names it.
        if link.missing == UNCONFIGURED:
            continue
        available = link.connection in connections
        missing = "settling" if link.available else f"up, {link.missing}" if link.up else link.missing
        since = links.since(link.connection)
        yield {
            "interface": link.name,
            "type": str(link.type),
            "available": available,
            "why": None if available else missing,
            # The monitor counts on the monotonic clock, the reply in POSIX seconds.
            "since": None if since is None else now - (monotonic - since),
        }
