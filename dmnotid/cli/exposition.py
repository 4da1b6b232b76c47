"""What `dmnotid metrics` prints: the metrics of a reply of `Status`, in the two text formats of Prometheus.

Every label has a fixed set of values, but `server` and `door` have those of the configuration: no datagram can add a
series. Counters begin at 0 with each start of the daemon.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from dmnotid.errors import discard_reasons
from dmnotid.policy.sessions import Closed, PendingState
from dmnotid.wire.notification import CONNECTION_TYPES, ConnectionType

Labels = Mapping[str, str]

# The three characters that the text formats escape in the value of a label.
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family(NamedTuple):
    """One metric with a sample for each combination of labels. The name has neither `dmnotid_` nor `_total`."""

    name: str
    kind: Literal["gauge", "counter", "summary"]
    meaning: str
    # Suffix of the name, labels and value.
    samples: Sequence[tuple[str, Labels, float]]


def gauge(name: str, meaning: str, value: float, **labels: str) -> Family:
    """Return a gauge with one sample."""
    return Family(name, "gauge", meaning, [("", labels, value)])


def counter(name: str, meaning: str, value: float | Iterable[tuple[Labels, float]]) -> Family:
    """Return a counter with one sample, or with one for each of these labels."""
    samples = [({}, value)] if isinstance(value, int | float) else value
    return Family(name, "counter", meaning, [("_total", labels, number) for labels, number in samples])


def up(value: int) -> Family:
    """Return the metric that a daemon that does not answer has too."""
    return gauge("up", "Whether the daemon answers.", value)


def families(status: Mapping[str, Any], *, servers: bool = True) -> Iterator[Family]:
    """Yield the metrics of a reply of `Status`; without `servers`, one sample for all of them, not one for each."""
    yield up(1)
    version = {"version": status["program"], "loop": status["loop"]}
    yield gauge("build_info", "Version of the daemon and its event loop.", 1, **version)
    yield gauge("start_time_seconds", "Start of the daemon, in POSIX seconds.", status["started"])
    config = status["config"]
    reloaded = config["reload_refused"] is None
    yield gauge("config_last_reload_successful", "Whether the last reload was accepted; 1 before the first.", reloaded)
    loaded = "Time at which the configuration in force was read, in POSIX seconds."
    yield gauge("config_last_reload_success_timestamp_seconds", loaded, config["loaded"])
    yield gauge("hook_startable", "Whether the hook can be started.", status["hook"]["startable"])
    yield gauge("clock_believed", "Whether the clock of the device is believed.", status["clock"]["believed"])
    yield from _datagrams(status["counts"])
    yield from _doors(status["sockets"])
    # In a fleet of a thousand servers, one series each may be too many.
    accepted_by = [({"server": server["id"]}, server["accepted"]) for server in status["servers"]]
    accepted = accepted_by if servers else status["counts"]["accepted"]
    yield counter("notifications_accepted", "Accepted notifications by server.", accepted)
    heard = {it["id"]: it["last_accepted"] for it in status["servers"] if it["last_accepted"] is not None}
    yield from last_accepted(heard, one_each=servers)
    yield from _sessions(status["counts"])
    available = {link["type"] for link in status["links"] if link["available"]}
    # A session may prefer `any`, but it is not the type of a connection.
    types = [kind for kind in CONNECTION_TYPES if kind is not ConnectionType.ANY]
    connections = [("", {"type": str(kind)}, kind in available) for kind in types]
    yield Family("connection_available", "gauge", "Whether a connection of a type is available.", connections)
    journal = status["journal"]
    # A journal that can't be read has no size.
    if journal["octets"] is not None:
        yield journal_bytes(journal["octets"])
    yield counter("journal_errors", "Failed operations of the journal.", journal["errors"])


def _datagrams(counts: Mapping[str, Any]) -> Iterator[Family]:
    yield counter("datagrams_received", "Datagrams that the daemon has read.", counts["received"])
    # The kernel refuses them, so they are not among those that were read.
    yield counter("datagrams_refused", "Datagrams that the socket filter has refused as junk.", counts["junk"])
    lost = [({"cause": "buffer"}, counts["lost"])]
    yield counter("datagrams_lost", "Datagrams that the kernel has dropped, by cause.", lost)
    found = counts["discarded"]
    # Each reason has a sample from the start: without one, the first increase would be lost to rate().
    discarded = [({"reason": reason}, found.get(reason, 0)) for reason in discard_reasons()]
    yield counter("notifications_discarded", "Discarded datagrams by reason.", discarded)
    failed = "Notifications that were not accepted because the journal could not be written."
    yield counter("notifications_not_accepted", failed, counts["not_accepted"])
    yield counter("internal_errors", "Errors of the program itself; each is in the log.", counts["bugs"])


def _doors(sockets: Sequence[Mapping[str, Any]]) -> Iterator[Family]:
    received = Counter[str]()
    for it in sockets:
        # Two doors may have the same name.
        if it["door"] is not None:
            received[it["door"]] += it["received"]
    if received:
        meaning = "Datagrams that other processes have handed in, by the name of the door; received ones include them."
        yield counter("door_datagrams_received", meaning, [({"door": door}, count) for door, count in received.items()])


def last_accepted(last: Mapping[str, float], *, one_each: bool) -> Iterator[Family]:
    """Yield the time of the last accepted notification of each server, or of any."""
    samples = [({"server": server}, at) for server, at in last.items()]
    if not one_each:
        samples = [({}, max(last.values()))] if last else []
    meaning = "Arrival of the last accepted notification, in POSIX seconds; outlives a restart."
    name = "notification_last_accepted_timestamp_seconds"
    yield Family(name, "gauge", meaning, [("", labels, at) for labels, at in samples])


def _sessions(counts: Mapping[str, Any]) -> Iterator[Family]:
    # Each state has a sample from the start, as each reason has.
    pending = [("", {"state": str(state)}, counts["states"].get(state, 0)) for state in PendingState]
    yield Family("sessions", "gauge", "Pending sessions by state.", pending)
    # A time of 0 would look like a session of 1970.
    if counts["oldest_pending"] is not None:
        yield oldest_pending(counts["oldest_pending"])
    yield counter("session_tries", "Started hooks.", counts["tries"])
    closed = [({"outcome": str(outcome)}, counts["closed"].get(outcome, 0)) for outcome in Closed]
    yield counter("sessions_closed", "Closed sessions by outcome.", closed)
    seconds, ended = counts["duration_sum"], counts["duration_count"]
    meaning = "Run time of hooks that have ended."
    yield Family("session_duration_seconds", "summary", meaning, [("_sum", {}, seconds), ("_count", {}, ended)])


def oldest_pending(at: float) -> Family:
    """Return the age of the queue."""
    meaning = "Arrival of the oldest notification whose session is pending, in POSIX seconds."
    return gauge("session_oldest_pending_timestamp_seconds", meaning, at)


def journal_bytes(octets: int) -> Family:
    """Return the size of the journal."""
    return gauge("journal_bytes", "Size of the journal, in octets.", octets)


def render(metrics: Iterable[Family], *, created: float | None = None) -> str:
    """Write metrics in the text format 0.0.4 of Prometheus.

    If `created` is given, the format is OpenMetrics 1.0, and counters have begun at that time, in POSIX seconds.
    """
    lines = []
    for family in metrics:
        name = f"dmnotid_{family.name}"
        # OpenMetrics names the family, the older format its samples.
        title = f"{name}_total" if family.kind == "counter" and created is None else name
        lines += [f"# HELP {title} {family.meaning}", f"# TYPE {title} {family.kind}"]
        for suffix, labels, value in family.samples:
            lines.append(f"{name}{suffix}{_show_labels(labels)} {_number(value)}")
            # Once for a summary, which has two samples.
            if created is not None and suffix in ("_total", "_count"):
                lines.append(f"{name}_created{_show_labels(labels)} {_number(created)}")
    return "\n".join([*lines, "" if created is None else "# EOF\n"])


def _show_labels(labels: Labels) -> str:
    # A SERVER-ID may have any character but controls.
    pairs = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _number(value: float) -> str:
    # The formats have no truth values, so these become 0 and 1.
    return repr(value) if isinstance(value, float) else str(int(value))
