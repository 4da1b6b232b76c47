"""How much a stream may give at its turn, so that all streams together don't hold up the loop."""

from typing import Final


class Turn:
    """A bound on what all open streams give at one turn of the loop, in even shares; a share is never nothing."""

    def __init__(self, octets: int, least: int) -> None:
        """No stream is open yet; `least` is given to each even where there are too many for the bound."""
        self._octets = octets
        self._least = least
        self._open = 0

    def open(self) -> None:
        """Count one stream more."""
        self._open += 1

    def close(self) -> None:
        """Count one less."""
        self._open -= 1

    @property
    def share(self) -> int:
        """How many octets each stream may give."""
        return max(self._least, self._octets // max(self._open, 1))


LOGGED: Final = Turn(512, least=4)
"""What hooks say in the whole process: each octet may be a line, and a line in the log takes its time."""
