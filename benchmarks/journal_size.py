"""How large the journal's file gets: `.venv/bin/python -m benchmarks.journal_size`.

Ids are 16 bits, so a server has at most 65,536 of them; the last file holds that many.
"""

import tempfile
import time
from pathlib import Path
from typing import Final

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


def verified(
    notification_id: int, server_id: str, secret: bytes, source: Source, unknown_octets: int
) -> VerifiedNotification:
    """Make a notification; `unknown_octets` in unknown Options make it longer."""
    now, server = time.time(), Server(server_id, secret)
    unknown = [(9 + at // 4_095, bytes(min(unknown_octets - at, 4_095))) for at in range(0, unknown_octets, 4_095)]
    package = encode_notification(
        notification_id,
        server_id=server_id,
        preferred_connections=[ConnectionType.MOBILE, ConnectionType.WIRELESS],
        requested_mos=[1, 2, 3],
        unknown_options=unknown,
        sent_at=int(now),
    )
    return verify(decode_notification(sign(package, secret)), server, source, Clock(now), Freshness())


def fill(
    directory: Path,
    rows: int,
    *,
    close: bool,
    unknown_octets: int = 0,
    server_id: str = SERVER_ID,
    secret: bytes = SECRET,
    source: Source = SOURCE,
) -> tuple[int, int]:
    """Write so many rows; return the octets of the closed file, and those of all files while it was open."""
    with Journal(directory, limits=Limits(max_pending=70_000), remember=3 * 86_400) as journal:
        for start in range(0, rows, BATCH):
            numbers = range(start, min(start + BATCH, rows))
            made = [journal.admit(verified(number, server_id, secret, source, unknown_octets)) for number in numbers]
            journal.commit()
            if close:
                journal.close([(request, Closed.DONE, "exit 0") for request in made])
        open_size = sum(file.stat().st_size for file in directory.iterdir())
    return (directory / FILE_NAME).stat().st_size, open_size


def main() -> None:
    """Print the sizes of files, and of the row of a closed session."""
    print(f"{'the journal holds':<56}{'octets closed':>14}{'open, with log':>16}{'a row':>8}")
    for title, rows, close, unknown_octets in [
        ("no row", 0, False, 0),
        (f"{PENDING} sessions wait, 100 octets each", PENDING, False, 0),
        (f"{PENDING} sessions wait, 60,000 octets each", PENDING, False, 60_000),
        ("1,000 notifications remembered", 1_000, True, 0),
        ("65,536 notifications remembered (all ids of a server)", MAX_NOTIFICATION_ID + 1, True, 0),
    ]:
        with tempfile.TemporaryDirectory() as directory:
            size, open_size = fill(Path(directory), rows, close=close, unknown_octets=unknown_octets)
        print(f"{title:<56}{size:>14,}{open_size:>16,}{size // rows if rows else 0:>8,}")
    # A SERVER-ID is stored twice: in the table and in its index.
    print(f"\n{'SERVER-ID, source (octets)':<56}{'a row':>8}")
    for length in (14, 64, 255, 1_000):
        for source in (SOURCE, LONG_SOURCE):
            with tempfile.TemporaryDirectory() as directory:
                server_id = f"{SERVER_ID:x<{length}}"
                size, _ = fill(Path(directory), ROWS, close=True, server_id=server_id, source=source)
            print(f"{f'{length}, {len(str(source))}':<56}{size // ROWS:>8,}")


if __name__ == "__main__":
    main()
