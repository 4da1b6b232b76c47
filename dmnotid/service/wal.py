"""The log that SQLite keeps beside a database (write-ahead log), as far as a damaged one takes it.

    header, 32 octets               frame, 24 octets and a page
    ┌──────────┬─────────┬──────────┬──────────────┬───────┬──────────┐   ┌──────┬───────────┬───────┬──────────┬──────┐
    │ magic, 4 │ form, 4 │ page     │ count of     │ salt, │ checksum │   │ page │ pages at  │ salt, │ checksum │ page │
    │          │         │ size, 4  │ checkpoints, 4 │ 8   │ 8        │   │ no, 4│ commit, 4 │ 8     │ 8        │      │
    └──────────┴─────────┴──────────┴──────────────┴───────┴──────────┘   └──────┴───────────┴───────┴──────────┴──────┘

SQLite reads it up to the first checksum that doesn't fit and takes that for its end. Frames behind it that have the
header's salt were written all the same. (https://www.sqlite.org/fileformat2.html#walformat)
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

PAGE: Final = 4_096
"""The size of a page, the first of which has header and schema: the same in every journal (SQLite's default)."""

MAX_REPAIRED: Final = 64 * 1024 * 1024
"""How large a file (octets) may be that is read as a whole, to be repaired in memory."""

_HEADER: Final = struct.Struct(">III4x8s8x")
_FRAME: Final = struct.Struct(">II8s8x")
_MAGIC: Final = (0x377F0682, 0x377F0683)


class Frame(NamedTuple):
    """One page in a log: which frame it is (from 1), its number, and at a commit how many pages there are, else 0."""

    number: int
    page: int
    pages: int


def log_beside(file: Path) -> Path:
    """Return where SQLite keeps the log of a database: beside the file that a symbolic link leads to."""
    return Path(f"{os.path.realpath(file)}-wal")


def read_frames(log: Path) -> list[Frame]:
    """Return the frames that were written since the log was last begun anew, up to the last commit; none without a log.

    Raises OSError.
    """
    if not log.is_file():
        return []
    with log.open("rb") as octets:
        frames = list(_frames(octets))
    while frames and not frames[-1].pages:
        frames.pop()
    return frames


def apply_frames(database: bytes, log: Path, frames: list[Frame]) -> bytes:
    """Return what a database becomes by all frames of its log, ready to be read without one. Raises OSError."""
    image, logged = bytearray(database), log.read_bytes()
    for frame in frames:
        end = frame.number * (_FRAME.size + PAGE) + _HEADER.size
        image.extend(bytes(max(frame.page * PAGE - len(image), 0)))
        image[(frame.page - 1) * PAGE : frame.page * PAGE] = logged[end - PAGE : end]
    del image[frames[-1].pages * PAGE :]
    image[18:20] = b"\1\1"  # it has no log
    return bytes(image)


def _frames(log: BinaryIO) -> Iterator[Frame]:
    header = log.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return
    magic, _, size, salt = _HEADER.unpack(header)
    if magic not in _MAGIC or size != PAGE:
        return
    number = 0
    while len(head := log.read(_FRAME.size)) == _FRAME.size:
        number += 1
        page, pages, its_salt = _FRAME.unpack(head)
        if its_salt == salt and 0 < page <= MAX_REPAIRED // PAGE:
            yield Frame(number, page, pages)
        log.seek(PAGE, 1)
