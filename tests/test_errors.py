"""The tree of exceptions, their reason words and their sentences."""

import inspect

import pytest

from dmnotid import errors
from dmnotid.errors import (
    ApplicationIdConflict,
    ApplicationIdMismatch,
    ApplicationIdMissing,
    ConfigError,
    ConfigProblem,
    ContentTypeMismatch,
    DecodeError,
    DigestMismatch,
    DigestMissing,
    Discard,
    DmnotidError,
    Duplicate,
    FromTheFuture,
    HookError,
    MalformedField,
    NoSuchSession,
    NotAPush,
    NotPending,
    PushHeaderTooLong,
    PushTooLong,
    QueueFull,
    Refusal,
    SecretNotProvisioned,
    ServerUndiscovered,
    SourceNotAllowed,
    Stale,
    TrailingOctets,
    Truncated,
    UnknownServer,
    UnsupportedVersion,
    UntrustedPath,
    discard_reasons,
)

DECODE_REASONS = {
    "truncated": Truncated,
    "trailing-octets": TrailingOctets,
    "malformed-field": MalformedField,
    "unsupported-version": UnsupportedVersion,
}

REFUSAL_REASONS = {
    "not-a-push": "NotAPush",
    "push-too-long": "PushTooLong",
    "push-header-too-long": "PushHeaderTooLong",
    "content-type-mismatch": "ContentTypeMismatch",
    "application-id-missing": "ApplicationIdMissing",
    "application-id-mismatch": "ApplicationIdMismatch",
    "application-id-conflict": "ApplicationIdConflict",
    "unknown-server": "UnknownServer",
    "server-undiscovered": "ServerUndiscovered",
    "source-not-allowed": "SourceNotAllowed",
    "secret-not-provisioned": "SecretNotProvisioned",
    "digest-mismatch": "DigestMismatch",
    "digest-missing": "DigestMissing",
    "stale": "Stale",
    "from-the-future": "FromTheFuture",
    "duplicate": "Duplicate",
    "queue-full": "QueueFull",
}
"""Reason words are an interface: logs, counters and operators' alarms use them."""


def exceptions() -> list[type[DmnotidError]]:
    return [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, DmnotidError)]


def test_every_decode_error_has_its_reason() -> None:
    assert {kind.reason: kind for kind in DecodeError.__subclasses__()} == DECODE_REASONS


def test_every_reason_has_one_refusal() -> None:
    assert {kind.reason: kind.__name__ for kind in Refusal.__subclasses__()} == REFUSAL_REASONS


def test_list_of_reasons_has_each_of_them_once() -> None:
    assert discard_reasons() == sorted([*DECODE_REASONS, *REFUSAL_REASONS])


def test_every_exception_is_in_one_tree() -> None:
    """Every exception of the module is in the tree, and a Discard is a DecodeError or a Refusal."""
    assert {DecodeError, Refusal} == set(Discard.__subclasses__())
    raised = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, BaseException)]
    assert raised == exceptions()


def test_docstring_names_every_exception() -> None:
    tree = inspect.getdoc(errors) or ""
    assert [kind.__name__ for kind in exceptions() if kind.__name__ not in tree] == []


def test_discard_has_no_ids_before_a_package_is_decoded() -> None:
    discard = ApplicationIdMissing()
    assert (discard.server_id, discard.notification_id) == (None, None)


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (NotAPush(7), "the PDU type is 0x07, Push is expected"),
        (
            NotAPush(5, 7),
            (
                "the PDU type is 0x05, Push is expected;"
                " the octets before octet 7 look like an SMS user data header, leave them out"
            ),
        ),
        (PushTooLong(4_096), "the datagram has more than 4096 octets, the limit of push.max_octets"),
        (PushHeaderTooLong(49, 48), "the push headers have 49 octets, at most 48 are expected"),
        (ContentTypeMismatch(0x44), "Content-Type is 0x44, a DM Notification is expected"),
        (ContentTypeMismatch("a/b\n"), r"Content-Type is 'a/b\n', a DM Notification is expected"),
        (ApplicationIdMissing(), "X-Wap-Application-Id is missing, which means the browser (wml.ua)"),
        (ApplicationIdMismatch(4), "X-Wap-Application-Id is 4, the integer 7 or its URI is expected"),
        (ApplicationIdMismatch("7"), "X-Wap-Application-Id is the text '7', the integer 7 or its URI is expected"),
        (ApplicationIdMismatch(""), "X-Wap-Application-Id is the text '', the integer 7 or its URI is expected"),
        (
            ApplicationIdMismatch(1 << 99),
            "X-Wap-Application-Id is an integer of 100 bits, the integer 7 or its URI is expected",
        ),
        (
            ApplicationIdMismatch("a" * 99),
            f"X-Wap-Application-Id is the text '{'a' * 63}…, the integer 7 or its URI is expected",
        ),
        (ApplicationIdConflict({7, "7"}), "X-Wap-Application-Id is given as 7 and the text '7'"),
        (UnknownServer("a"), "no server 'a' is configured"),
        (
            ServerUndiscovered(65, signed=True, untried_octets=42, limits=(64, 1_024)),
            (
                "SERVER-ID is absent, and no secret is tried: 65 servers have a secret and the package has 42 octets, "
                "at most 64 servers and 1024 octets are accepted"
            ),
        ),
        (
            ServerUndiscovered(2, signed=True),
            "SERVER-ID is absent, and the digest fits the secrets of 2 servers",
        ),
        (
            ServerUndiscovered(0, signed=False),
            "SERVER-ID and SHA256-DIGEST are absent, and 0 servers accept that from this sender",
        ),
        (SourceNotAllowed("192.0.2.1", "a"), "192.0.2.1 is not among the sources of 'a'"),
        (
            SourceNotAllowed("192.0.2.1"),
            "SERVER-ID is absent, and 192.0.2.1 is not among the sources of any server with a secret",
        ),
        (SecretNotProvisioned("a"), "the notification is signed, and no secret is provisioned for 'a'"),
        (SecretNotProvisioned(), "the notification is signed, and no secret is provisioned for any server"),
        # Braces in a value are text.
        (UnknownServer("{0}{server}"), "no server '{0}{server}' is configured"),
        (DigestMismatch("a"), "the digest was not made with the secret of 'a' over these octets"),
        (
            DigestMismatch("a", former_until=1_767_225_600),
            "the digest was made with the former secret of 'a', which has not been accepted since 2026-01-01T00:00:00Z",
        ),
        (DigestMismatch(tried=3), "SERVER-ID is absent, and the digest fits none of 3 secrets"),
        (DigestMissing("a"), "SHA256-DIGEST is absent, and 'a' must sign"),
        (
            Stale(1_799_900_000, 1_800_000_000.4, 86_400),
            (
                "signed at 2027-01-14T04:13:20Z, 100000 s before the device's clock (2027-01-15T08:00:00Z), which"
                " may be wrong; at most 86400 s are accepted"
            ),
        ),
        (
            Stale(1_799_900_000, 60, 86_400, reference=1_800_000_000),
            (
                "signed at 2027-01-14T04:13:20Z, 100000 s before the latest time known of this server"
                " (2027-01-15T08:00:00Z); at most 86400 s are accepted; the device's clock (1970-01-01T00:01:00Z) is"
                " not believed"
            ),
        ),
        (
            Stale(1_799_900_000, 60, forgotten=1_800_000_000),
            (
                "signed at 2027-01-14T04:13:20Z; what this server signed up to 2027-01-15T08:00:00Z is forgotten and"
                " never accepted again, whatever the device's clock (1970-01-01T00:01:00Z) shows"
            ),
        ),
        (
            FromTheFuture(1_800_000_601, 1_800_000_000, 600),
            (
                "signed at 2027-01-15T08:10:01Z, 601 s ahead of the device's clock (2027-01-15T08:00:00Z), which may be"
                " wrong; freshness.max_skew accepts at most 600 s"
            ),
        ),
        (Duplicate(12, same_content=True), "accepted before as session 12"),
        (Duplicate(12, same_content=False), "accepted before as session 12, with other content"),
        (
            QueueFull("a", 1, 1, blocked_by=5),
            "session 5, of an unsigned notification with the same id, is pending; send it later",
        ),
        (QueueFull("a", 16, 16), "16 sessions of 'a' wait, sessions.max_pending is 16"),
    ],
)
def test_refusal_builds_its_sentence_from_its_facts(refusal: Refusal, sentence: str) -> None:
    assert str(refusal) == sentence


def test_refusal_can_be_a_key() -> None:
    """The standard library keeps raised exceptions in sets, to find cycles."""
    first, second = QueueFull("a", 1, 1), QueueFull("a", 1, 1)
    assert len({first, second}) == 2


@pytest.mark.parametrize(
    ("octets", "offset", "shown"),
    [
        (b"", 0, ""),
        (b"ab", 2, ""),
        (b"ab", 9, ""),
        (b"ab", 1, " [62]"),
        (bytes(16), 0, " [" + "00 " * 15 + "00]"),
        (bytes(17), 0, " [" + "00 " * 15 + "00 …]"),
        (bytes(17), 1, " [" + "00 " * 15 + "00]"),
        (bytes(60), 2, " [" + "00 " * 15 + "00 …]"),
    ],
)
def test_decode_error_shows_16_octets_at_most(octets: bytes, offset: int, shown: str) -> None:
    error = Truncated("DM Notification", "Option Value", offset, "needs 36 octets, 35 are left", octets)
    assert str(error) == f"DM Notification: Option Value at octet {offset}: needs 36 octets, 35 are left{shown}"
    assert error.excerpt == octets[offset : offset + 16]


def test_decode_error_without_octets_has_no_excerpt() -> None:
    error = MalformedField("Push PDU", "Date", 4, "is odd")
    assert (error.pdu, error.field, error.offset, error.problem, error.excerpt) == (
        "Push PDU",
        "Date",
        4,
        "is odd",
        b"",
    )
    assert str(error) == "Push PDU: Date at octet 4: is odd"


def test_moved_decode_error_counts_from_the_pdu() -> None:
    """The excerpt stays the same."""
    error = Truncated("Push PDU", "Date", 1, "is odd", b"\x01\x02\x03")
    assert error.moved(3) is error
    assert str(error) == "Push PDU: Date at octet 4: is odd [02 03]"


def test_untrusted_path_names_the_component_first() -> None:
    error = UntrustedPath("/srv/hook", "writable by others: chmod go-w /srv/hook")
    assert (error.component, error.problem) == ("/srv/hook", "writable by others: chmod go-w /srv/hook")
    assert str(error) == "/srv/hook: writable by others: chmod go-w /srv/hook"


def test_config_problem_begins_with_its_place() -> None:
    assert str(ConfigProblem("a.yaml", 3, 5, "servers[1].id", "is empty")) == "a.yaml:3:5: servers[1].id: is empty"
    assert str(ConfigProblem("a.yaml", 3, 5, "", "is empty")) == "a.yaml:3:5: is empty"
    assert str(ConfigProblem("a.yaml", 0, 0, "hook", "is missing")) == "a.yaml: hook: is missing"
    assert str(ConfigProblem("a.yaml", 0, 0, "", "can't be read")) == "a.yaml: can't be read"


def test_config_error_has_a_line_for_each_problem() -> None:
    problems = (ConfigProblem("a.yaml", 1, 1, "a", "b"), ConfigProblem("a.yaml", 2, 1, "c", "d"))
    error = ConfigError(problems)
    assert error.problems == problems
    assert str(error) == "a.yaml:1:1: a: b\na.yaml:2:1: c: d"


def test_hook_error_names_the_component() -> None:
    assert HookError("no", component="/etc").component == "/etc"
    assert HookError("no").component is None
    assert HookError("no").trusted


def test_session_that_cannot_be_cancelled_is_named_with_its_state() -> None:
    missing, closed = NoSuchSession(611), NotPending(611, "done")
    assert (missing.session, str(missing)) == (611, "the journal has no session 611")
    assert (closed.session, closed.state) == (611, "done")
    assert str(closed) == "session 611 is done, a pending session is expected"
