"""Facts that are read from a connection."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.errors import HookError
from dmnotid.hook.facts import build_environment, build_input, session_facts
from dmnotid.hook.request import MAX_REQUEST_OCTETS, read_request
from tests.hook.runs import LARGE, RICH, start
from tests.support import OPEN_ID

DEEP = "maximum recursion depth exceeded while decoding a JSON array from a unicode string"
FACTS = session_facts(start(**RICH))


def refusal(octets: bytes) -> str:
    with pytest.raises(HookError) as caught:
        read_request(octets)
    assert caught.value.component == "standard input"
    return str(caught.value)


@pytest.mark.parametrize("more", [{}, RICH, LARGE, {"server_id": OPEN_ID}], ids=["plain", "rich", "large", "unsigned"])
def test_facts_are_read_as_they_were_written(more: dict[str, Any]) -> None:
    facts = session_facts(start(**more))
    assert read_request(build_input(facts).encode()) == facts


def test_further_keys_are_read_too() -> None:
    assert read_request(json.dumps({**FACTS, "more": [1]}).encode())["more"] == [1]


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b"[" * 100_000, f"is not JSON: {DEEP}"),
        (b"[]", "is JSON of type list, an object is expected"),
        (b" " * (MAX_REQUEST_OCTETS + 1), "has more than 1048576 octets"),
        (b"{}", "has version None, 1 is expected"),
        (b'{"version": 2}', "has version 2, 1 is expected"),
        (b'{"version": 1}', "has no key session"),
    ],
    ids=["empty", "blank", "half", "no text", "deep", "list", "long", "no version", "version", "no session"],
)  # fmt: skip
def test_request_that_is_not_a_session_is_refused(octets: bytes, problem: str) -> None:
    assert refusal(octets) == f"the session on standard input {problem}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("session", -1, "a whole number"),
        ("attempt", True, "a whole number"),
        ("server_id", 5, "text"),
        ("server_id", "a\0b", "text"),
        ("interface", None, "text"),
        ("preferred_connections", "mobile", "a list of texts"),
        ("preferred_connections", [1], "a list of texts"),
        ("requested_mos", ["1"], "a list of whole numbers"),
        ("cached_mos", [[1]], "a list of pairs of a number and hex"),
        ("cached_mos", ["1a"], "a list of pairs of a number and hex"),
        ("unknown_options", [["6", ""]], "a list of pairs of a number and hex"),
        ("sent_at", "now", "a whole number or null"),
        ("received_at", "1", "POSIX seconds"),
        ("received_at", True, "POSIX seconds"),
        ("received_at", 10**400, "POSIX seconds"),
        ("received_at", float("nan"), "POSIX seconds"),
        ("signed", 1, "true or false"),
    ],
)
def test_fact_of_another_kind_is_refused_by_its_name(key: str, value: object, expected: str) -> None:
    octets = json.dumps({**FACTS, key: value}).encode()
    assert refusal(octets) == f"the session on standard input has {value!r} for {key}, {expected} is expected"


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.sampled_from(sorted(FACTS)), VALUES)
def test_facts_that_are_read_fit_into_an_environment(key: str, value: object) -> None:
    try:
        facts = read_request(json.dumps({**FACTS, key: value}).encode())
    except HookError:
        return
    environment = build_environment(facts, {}, "/")
    assert all("\0" not in text for text in environment.values())


@given(st.binary(max_size=200))
def test_any_octets_are_refused_or_read(octets: bytes) -> None:
    refusal(octets)
