"""The place of a DecodeError, which the tests of the codecs compare."""

from collections.abc import Callable

import pytest

from dmnotid.errors import DecodeError

Place = tuple[type[DecodeError], str, int]
"""Class, field, offset."""


def place_of(decode: Callable[[], object], pdu: str) -> Place:
    """Return the place at which decoding fails, and check that it fails in this PDU."""
    with pytest.raises(DecodeError) as caught:
        decode()
    assert caught.value.pdu == pdu
    return type(caught.value), caught.value.field, caught.value.offset
