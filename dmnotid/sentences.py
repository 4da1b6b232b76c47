"""The parts of the sentences of errors, log lines and commands: facts, times, shortened texts, suggestions."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final, dataclass_transform

MAX_SHOWN: Final = 64
"""Maximum length, in characters, of a text from the network, a file or a hook in a sentence."""

MAX_SHOWN_BITS: Final = 64
"""Maximum length of an integer from the network that is written out: a long-integer may have 240 bits."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def shortened(text: str, most: int) -> str:
    """Return text for display, cut after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def suggest(name: str, known: Collection[str]) -> str:
    """Return `did you mean NAME?` with the known name that a mistyped one resembles most; empty if none does."""
    import difflib  # noqa: PLC0415 - needed only for a mistyped name

    # The name is cut, because the time of this search grows with the square of its length.
    near = difflib.get_close_matches(name[:40].lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def show_time(seconds: float) -> str:
    """Write POSIX seconds as `2025-01-01T00:00:00Z`."""
    # fromtimestamp() fails after 2038 if time_t has 32 bits, and a notification may be signed at any time up to 2106.
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_value(value: int | str, form: str = "d") -> str:
    """Write a value from a push header."""
    if isinstance(value, int):
        bits = value.bit_length()
        return format(value, form) if bits <= MAX_SHOWN_BITS else f"an integer of {bits} bits"
    return shortened(repr(value), MAX_SHOWN)


def show_id(value: int | str) -> str:
    """Write an X-Wap-Application-Id; the text '7' must not be mistaken for the integer."""
    return f"the text {show_value(value)}" if isinstance(value, str) else show_value(value)


@dataclass_transform(eq_default=False)
class Facts:
    """A base of exceptions: the annotations of each class are its facts, the arguments that it is made with.

    `sentence` is a format string over the facts, and `nameless` the one for a `server` of None: SERVER-ID is absent.
    """

    sentence: ClassVar[str]
    nameless: ClassVar[str]

    # The decorator of dataclasses would generate and compile a method for each class, which is a twentieth of the
    # daemon's start. The annotations of a class are its facts all the same, and type checkers see to the arguments.
    def __init__(self, *args: object, **facts: object) -> None:
        # An exception has its `args` from `__new__`.
        self.__dict__.update(zip(type(self).__annotations__, args, strict=False), **facts)

    def __str__(self) -> str:
        # A fact that was not given has its default in the class. A class without the fact `server` has no `nameless`
        # either: only None means that SERVER-ID is absent.
        facts = {name: getattr(self, name) for name in type(self).__annotations__}
        return (self.nameless if facts.get("server", "") is None else self.sentence).format_map(facts)
