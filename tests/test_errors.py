"""The tree of exceptions, their reason words, and how they read."""

import inspect

import pytest

from dmnotid import errors
from dmnotid.errors import (
    ConfigError,
    ConfigProblem,
    DecodeError,
    Discard,
    DmnotidError,
    Duplicate,
    HookError,
    MalformedField,
    Refusal,
    TrailingOctets,
    Truncated,
    UnsupportedVersion,
    UntrustedPath,
)

DECODE_REASONS = {
    "truncated": Truncated,
    "trailing-octets": TrailingOctets,
    "malformed-field": MalformedField,
    "unsupported-version": UnsupportedVersion,
}

REFUSAL_REASONS = {
    "not-a-push": "NotAPush",
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
"""Reason words are an interface: logs, counters and people's alarms know them."""


def exceptions() -> list[type[DmnotidError]]:
    return [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, DmnotidError)]


def test_decode_reasons() -> None:
    assert {kind.reason: kind for kind in DecodeError.__subclasses__()} == DECODE_REASONS


def test_refusal_reasons() -> None:
    assert {kind.reason: kind.__name__ for kind in Refusal.__subclasses__()} == REFUSAL_REASONS


def test_one_root() -> None:
    """Every exception of the module is in the tree, and a Discard is a DecodeError or a Refusal."""
    assert {DecodeError, Refusal} == set(Discard.__subclasses__())
    raised = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, BaseException)]
    assert raised == exceptions()


def test_docstring_names_every_exception() -> None:
    tree = inspect.getdoc(errors) or ""
    assert [kind.__name__ for kind in exceptions() if kind.__name__ not in tree] == []


def test_discard_claims_nothing_at_first() -> None:
    discard = Refusal("why")
    assert (discard.server_id, discard.notification_id, str(discard)) == (None, None, "why")


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
    error = Truncated("DM Notification", "Option Value", offset, "needs 36, 35 left", octets)
    assert str(error) == f"DM Notification: Option Value at octet {offset}: needs 36, 35 left{shown}"
    assert error.excerpt == octets[offset : offset + 16]


def test_decode_error_without_octets() -> None:
    error = MalformedField("Push PDU", "Date", 4, "is odd")
    assert (error.pdu, error.field, error.offset, error.problem, error.excerpt) == (
        "Push PDU",
        "Date",
        4,
        "is odd",
        b"",
    )
    assert str(error) == "Push PDU: Date at octet 4: is odd"


def test_decode_error_moves() -> None:
    """What was cut out of a PDU is told from the PDU's start; the octets shown stay those at the place."""
    error = Truncated("Push PDU", "Date", 1, "is odd", b"\x01\x02\x03")
    assert error.moved(3) is error
    assert str(error) == "Push PDU: Date at octet 4: is odd [02 03]"


def test_untrusted_path_names_the_component_first() -> None:
    error = UntrustedPath("/srv/hook", "writable by others: chmod go-w /srv/hook")
    assert (error.component, error.problem) == ("/srv/hook", "writable by others: chmod go-w /srv/hook")
    assert str(error) == "/srv/hook: writable by others: chmod go-w /srv/hook"


def test_config_problem_reads_as_a_place() -> None:
    assert str(ConfigProblem("a.yaml", 3, 5, "servers[1].id", "is empty")) == "a.yaml:3:5: servers[1].id: is empty"
    assert str(ConfigProblem("a.yaml", 3, 5, "", "is empty")) == "a.yaml:3:5: is empty"
    assert str(ConfigProblem("a.yaml", 0, 0, "hook", "is missing")) == "a.yaml: hook: is missing"
    assert str(ConfigProblem("a.yaml", 0, 0, "", "can't be read")) == "a.yaml: can't be read"


def test_config_error_has_a_line_for_each_problem() -> None:
    problems = (ConfigProblem("a.yaml", 1, 1, "a", "b"), ConfigProblem("a.yaml", 2, 1, "c", "d"))
    error = ConfigError(problems)
    assert error.problems == problems
    assert str(error) == "a.yaml:1:1: a: b\na.yaml:2:1: c: d"


def test_duplicate_tells_whether_the_content_was_the_same() -> None:
    """5.1.4."""
    assert [Duplicate(3, same_content=same).same_content for same in (True, False)] == [True, False]
    assert str(Duplicate(12, same_content=True)) == "accepted before as session 12"
    assert str(Duplicate(12, same_content=False)) == "accepted before as session 12, with other content"


def test_hook_error_names_the_component() -> None:
    assert HookError("no", component="/etc").component == "/etc"
    assert HookError("no").component is None
