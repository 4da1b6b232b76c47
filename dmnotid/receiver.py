"""The datagram's way: from an endpoint through every check to a durable row in the journal.

A batch of datagrams shares one transaction:

    datagram --refused--> counted under its reason
             --admitted--> in the transaction --commit--> accepted
                                              --JournalError: rollback--> not accepted; a repeat may be accepted
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dmnotid.discards import FIRST_DISCARDS, FLOOD, DiscardLog, RecentDiscards, ServerCounts
from dmnotid.errors import EXCERPT_OCTETS, Discard, JournalError
from dmnotid.host.log import logger
from dmnotid.intake.drops import Dropped
from dmnotid.journal.queue import Journal
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import MARGIN, Clock, judge_clock
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.sessions import SessionRequest
from dmnotid.sentences import show_time

Observe = Callable[[Datagram], None]


class Admitted(NamedTuple):
    """A datagram in the open transaction, and the results of its last two stages."""

    datagram: Datagram
    verified: VerifiedNotification
    request: SessionRequest


class Receiver:
    """Judges datagrams by the rules of the configuration in force.

    `counters` has `received`, `accepted`, `not accepted`, `bugs`, and one count for each reason of a discard. `junk`
    and `lost`, which the kernel dropped, are not among `received`.
    """

    def __init__(
        self,
        rules: Rules,
        journal: Journal,
        *,
        interval: float,
        on_accepted: Callable[[Sequence[SessionRequest]], None],
        on_change: Callable[[], None],
        observe: Observe | None = None,
    ) -> None:
        """`interval` is that of the summaries of discards, in seconds."""
        # Read by the status line, and logged at the stop.
        self.counters: Counter[str] = Counter()
        # The last discarded datagrams, for the operator who asks why.
        self.discards = RecentDiscards()
        # The notifications of each configured server: no stranger can add to these.
        self.servers = {server.id: ServerCounts() for server in rules.servers}
        # The rules by which datagrams are judged; a reload replaces them.
        self._rules = rules
        # Admits the notifications of a batch in one transaction.
        self._journal = journal
        # Called with the requests of each commit.
        self._on_accepted = on_accepted
        # Called if counters may have changed.
        self._on_change = on_change
        # Called with each datagram before it is judged.
        self._observe = observe
        # Keeps a flood of discards from flooding the log.
        self._discard_log = DiscardLog(interval)
        # Whether the clock was believed at the last datagram.
        self._clock_believed = True

    def configure(self, rules: Rules, interval: float) -> None:
        """Judge later datagrams by other rules."""
        self._rules = rules
        self._discard_log.interval = interval
        self.servers = {server.id: self.servers.get(server.id) or ServerCounts() for server in rules.servers}

    def close(self) -> None:
        """Log the last summary of discards."""
        self._discard_log.flush()

    def deliver(self, datagrams: Sequence[Datagram]) -> None:
        """Take a batch, which has one time of arrival, through every check.

        On return the accepted ones are durable, all in one commit.

        No content of a datagram makes it raise: each ends in a log line and a counter.
        """
        admitted: list[Admitted] = []
        # Those whose senders get an answer after the commit: another commit may fail, and what is a duplicate of a
        # notification in it is not.
        discarded: list[tuple[Datagram, str]] = []
        self.counters["received"] += len(datagrams)
        # Admitting datagrams moves the floor up to their arrival at most, so the clock stays believed.
        clock = self._judge_clock(datagrams[0].received_at)
        for datagram in datagrams:
            try:
                if self._observe is not None:
                    self._observe(datagram)
                verified = receive(datagram, self._rules, clock)
                admitted.append(Admitted(datagram, verified, self._journal.admit(verified)))
            except Discard as discard:
                self._discard(discard, datagram)
                if datagram.handover is not None:
                    discarded.append((datagram, discard.reason))
            except JournalError as error:
                # Those admitted before share the transaction that failed.
                self._roll_back([*(earlier.datagram for earlier in admitted), datagram], error)
                admitted.clear()
                discarded.clear()
                # Their signed times are not known either, and may have replaced a clock that is not believed.
                clock = self._judge_clock(datagram.received_at)
            except Exception:  # noqa: BLE001 - a bug in handling one datagram must not stop the service of the next one
                self.counters["bugs"] += 1
                # In hex and cut, because a stranger may have chosen these octets.
                excerpt = datagram.payload[:EXCERPT_OCTETS].hex(" ")
                facts = {**datagram.log_facts(), "octets": len(datagram.payload), "excerpt": excerpt}
                logger.exception("internal error", **facts)
        # Also without an admitted one: a duplicate may have corrected arrivals in this transaction.
        if self._commit(admitted):
            for it in admitted:
                _answer(it.datagram, {"verdict": "accepted", "session": it.request.session})
            for datagram, reason in discarded:
                _answer(datagram, {"verdict": "discarded", "reason": reason})
        self._on_change()

    def count_dropped(self, listen: str, dropped: Dropped) -> None:
        """Count and log datagrams that the kernel dropped from the socket at an address."""
        if dropped.junk:
            self.counters["junk"] += dropped.junk
            logger.info("junk refused", listen=listen, count=dropped.junk)
        if dropped.lost:
            self.counters["lost"] += dropped.lost
            logger.warning("datagrams lost", listen=listen, count=dropped.lost, problem="the receive buffer was full")
        self._on_change()

    def _discard(self, discard: Discard, datagram: Datagram) -> None:
        self.counters[discard.reason] += 1
        number = self._discard_log.note(discard, datagram)
        # No server has an empty id.
        counts = self.servers.get(discard.server_id or "")
        if counts is not None:
            counts.discarded += 1
        if number <= FLOOD or not number % FLOOD:
            kept = self.discards.add(discard, datagram)
            if counts is not None:
                counts.kept = kept

    def _judge_clock(self, now: float) -> Clock:
        """Decide whether the clock is believed, and log each change of that."""
        clock = judge_clock(now, self._journal.times.floor, self._journal.times.servers)
        # Once for each change: a wrong clock concerns every datagram.
        if clock.believed != self._clock_believed:
            self._clock_believed = clock.believed
            _log_clock(clock, self._journal.times.floor)
        return clock

    def _commit(self, admitted: Sequence[Admitted]) -> bool:
        """Commit the transaction, and return whether it is durable."""
        try:
            self._journal.commit()
        except JournalError as error:
            self._roll_back([it.datagram for it in admitted], error)
            return False
        # Logged before the dispatcher may log the start of the session.
        for it in admitted:
            self.counters["accepted"] += 1
            counts = self.servers[it.request.server_id]
            counts.accepted += 1
            counts.last_secret = it.verified.secret
            _log_accepted(it)
        if admitted:
            self._on_accepted([it.request for it in admitted])
        return True

    def _roll_back(self, datagrams: Sequence[Datagram], error: JournalError) -> None:
        """Roll back a transaction that failed: its notifications are not remembered, so repeats are accepted later."""
        for datagram in datagrams:
            self.counters["not accepted"] += 1
            # A full disk fails each notification, so these lines are bounded like those of discards.
            if self._discard_log.count("not accepted", datagram.source) <= FIRST_DISCARDS:
                logger.error("notification not accepted", **datagram.log_facts(), problem=str(error))
        self._journal.rollback()


def _answer(datagram: Datagram, verdict: dict[str, object]) -> None:
    if datagram.handover is not None and datagram.handover.answer is not None:
        datagram.handover.answer(verdict)


def _log_clock(clock: Clock, floor: int | None) -> None:
    if clock.believed:
        logger.info("clock believed")
        return
    reason = f"before the program's release ({show_time(clock.released_at)})"
    if clock.now >= clock.released_at:
        reason = f"more than {MARGIN} s before a time that it has shown already ({show_time(floor or 0)})"
    instead = "ages are measured from the release, or from the newest signed time of each server if that is later"
    logger.warning("clock not believed", problem=f"the clock shows {show_time(clock.now)}, {reason}; {instead}")


def _log_accepted(admitted: Admitted) -> None:
    datagram, verified, request = admitted
    notification = request.notification
    skipped = notification.skipped_connections
    facts: dict[str, object] = {"skipped_connection_types": list(skipped)} if skipped else {}
    # The operator learns from this line whether the server still uses the former secret.
    if verified.secret == "former":  # noqa: S105 - its name
        facts["secret"] = verified.secret
    logger.info(
        "notification accepted",
        **request.log_facts(),
        server_id_from=request.server_id_from,
        **datagram.log_facts(),
        signed=notification.signed,
        preferred=" ".join(notification.preferred_connections),
        **facts,
    )
    now = datagram.received_at
    if notification.sent_at is not None and notification.sent_at - now > MARGIN:
        times = f"signed at {show_time(notification.sent_at)}, and the device's clock shows {show_time(now)}"
        logger.warning(
            "notification ahead",
            session=request.session,
            server_id=request.server_id,
            notification_id=notification.notification_id,
            problem=f"{times}; one of the two is wrong",
        )
