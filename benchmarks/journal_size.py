"""How large the journal's file gets: `python benchmarks/journal_size.py`.

Ids are 16 bits, so one server has 65,536 of them at most; this remembers that many, and as many sessions as may wait.
"""

import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.queue import Journal
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Closed, Limits
from dmnotid.wire.notification import MAX_NOTIFICATION_ID, ConnectionType, decode_notification, encode_notification

SECRET: Final = b"a secret of thirty-two octets .."
SERVER_ID: Final = "dm.example.com"
SOURCE: Final = Source("192.0.2.100", 40_000)
LONG_SOURCE: Final = Source("2001:db8:1234:5678:9abc:def0:1234:5678", 40_000)
ROWS: Final = 8_000
PENDING: Final = 16
BATCH: Final = 1_000


class Kind(NamedTuple):
    """What notifications are like: `filling` octets of unknown Options make them longer."""

    filling: int = 0
    server_id: str = SERVER_ID
    source: Source = SOURCE


USUAL: Final = Kind()


def verified(notification_id: int, kind: Kind) -> VerifiedNotification:
    """Make a notification as it comes."""
    now, filling, server = time.time(), kind.filling, Server(kind.server_id, SECRET)
    unknown = [(9 + at // 4_095, bytes(min(filling - at, 4_095))) for at in range(0, filling, 4_095)]
    package = encode_notification(
        notification_id,
        server_id=server.id,
        preferred_connections=[ConnectionType.MOBILE, ConnectionType.WIRELESS],
        requested_mos=[1, 2, 3],
        unknown_options=unknown,
        sent_at=int(now),
    )
    return verify(decode_notification(sign(package, SECRET)), server, kind.source, Clock(now), Freshness())


def fill(directory: Path, rows: int, *, close: bool, kind: Kind = USUAL) -> tuple[int, int]:
    """Write so many rows; the size in octets of the file, and of the files with the log while it was open."""
    with Journal(directory, limits=Limits(max_pending=70_000), remember=3 * 86_400) as journal:
        for start in range(0, rows, BATCH):
            made = [journal.admit(verified(number, kind)) for number in range(start, min(start + BATCH, rows))]
            journal.commit()
            for request in made if close else ():
                journal.close([(request, Closed.DONE)])
        open_size = sum(file.stat().st_size for file in directory.iterdir())
    return (directory / FILE_NAME).stat().st_size, open_size


def main() -> None:
    """Print both tables."""
    show_files()
    show_rows()


def show_rows() -> None:
    """Print what a remembered notification takes: its SERVER-ID stands in the table and in its index."""
    print(f"\n{'SERVER-ID, source (octets)':<56}{'a row':>8}")
    for length in (14, 64, 255, 1_000):
        for source in (SOURCE, LONG_SOURCE):
            kind = Kind(server_id=f"{SERVER_ID:x<{length}}", source=source)
            with tempfile.TemporaryDirectory() as directory:
                size, _ = fill(Path(directory), ROWS, close=True, kind=kind)
            print(f"{f'{length}, {len(str(source))}':<56}{size // ROWS:>8,}")


def show_files() -> None:
    """Print how large files get."""
    cases = [
        ("nothing yet", 0, False, 0),
        (f"{PENDING} sessions wait, 100 octets each", PENDING, False, 0),
        (f"{PENDING} sessions wait, 60,000 octets each", PENDING, False, 60_000),
        ("1,000 notifications remembered", 1_000, True, 0),
        ("65,536 notifications remembered (all ids of a server)", MAX_NOTIFICATION_ID + 1, True, 0),
    ]
    print(f"{'the journal holds':<56}{'octets closed':>14}{'open, with log':>16}{'a row':>8}")
    for title, rows, close, filling in cases:
        with tempfile.TemporaryDirectory() as directory:
            size, open_size = fill(Path(directory), rows, close=close, kind=Kind(filling))
        print(f"{title:<56}{size:>14,}{open_size:>16,}{size // rows if rows else 0:>8,}")


if __name__ == "__main__":
    main()
