"""The client side of a door: one offer, and an outbox whose pushes are offered until the daemon gives a verdict.

due --taken by the door--> offered --verdict--> finished
 ^                            |
 +-- a pause after no answer, |
     or the verdict queue-full+
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.errors import DmnotidError, QueueFull
from dmnotid.host.log import logger

ANSWER_WITHIN: Final = 10.0
"""Maximum time from the offer of a push to its verdict, in seconds; the daemon answers after its commit."""

PAUSE: Final = 5.0
"""Time until a push without a verdict is offered again, in seconds: that of `RestartSec=` in dmnotid.service."""


class DoorShut(DmnotidError):
    """A door is not there, or gives no verdict; the datagram may be offered again."""


class Verdict(NamedTuple):
    """The daemon's verdict on one datagram, "accepted" or the reason of a discard; `answer` is all of its answer."""

    word: str
    answer: Mapping[str, object]


async def offer(door: Path, octets: bytes) -> Verdict:
    """Send one datagram to a door and wait for its verdict. Raises DoorShut."""
    # A socket and an address for each offer: a late answer can't be mistaken for that to another push.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            # Connected before it has an address, which others could guess: from then on the door alone can answer.
            sock.connect(str(door))
            # The empty name makes the kernel choose a free abstract one; without an address there is no answer.
            sock.bind("")
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(ANSWER_WITHIN):
                # Waits while the queue of the door is full.
                await loop.sock_sendall(sock, octets)
                answer = json.loads(await loop.sock_recv(sock, 4096))
        except TimeoutError:
            reasons = "the daemon does not read it, its journal fails, or the door is in another network namespace"
            raise DoorShut(f"no answer within {ANSWER_WITHIN:g} s: {reasons}") from None
        except OSError as error:
            raise DoorShut(error.strerror or str(error)) from error
        except (RecursionError, ValueError):
            answer = None
    match answer:
        case {"verdict": "accepted" as word, "session": _} | {"verdict": "discarded", "reason": str(word)}:
            return Verdict(word, answer)
    raise DoorShut("the answer is not a verdict of dmnotid")


class Outbox:
    """The pushes that have no verdict yet, in the order of their arrival.

    A push to a server whose queue is full never holds up those to others, because each waits for its own pause.
    """

    def __init__(
        self,
        door: Path,
        on_verdict: Callable[[str], object],
        *,
        most: int | None = None,
        pause: float = PAUSE,
    ) -> None:
        """Keep at most `most` pushes, and call `on_verdict` with the key of each that has its verdict."""
        # The path of the push door.
        self._door = door
        # Called once for each push, after the daemon's commit.
        self._on_verdict = on_verdict
        # Maximum number of pushes; None if the telephony daemon keeps them.
        self._most = most
        # Time until a push without a verdict is offered again, in seconds.
        self._pause = pause
        # The octets of each push by its key, the oldest first.
        self._pushes: dict[str, bytes] = {}
        # The keys of pushes to be offered now; some may have been dropped since.
        self._due = asyncio.Queue[str]()
        # Whether the last offer had no answer.
        self._shut = False

    def __len__(self) -> int:
        return len(self._pushes)

    def __contains__(self, key: str) -> bool:
        return key in self._pushes

    def add(self, key: str, octets: bytes) -> None:
        """Add a push; one whose key is there already is left as it is."""
        if key in self._pushes:
            return
        if len(self._pushes) == self._most:
            # The oldest one, because its server has had the most time to send it again.
            oldest = self._pushes.pop(next(iter(self._pushes)))
            problem = f"{self._most} later ones wait for the door"
            logger.warning("push dropped", octets=len(oldest), push=oldest.hex(), problem=problem)
        self._pushes[key] = octets
        self._due.put_nowait(key)

    async def run(self) -> None:
        """Offer pushes until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            key = await self._due.get()
            octets = self._pushes.get(key)
            if octets is None:
                continue
            problem = ""
            try:
                verdict: Verdict | None = await offer(self._door, octets)
            except DoorShut as error:
                verdict, problem = None, str(error)
            # Only a change is logged.
            if problem and not self._shut:
                logger.warning("door shut", door=str(self._door), problem=problem, pushes=len(self._pushes))
            elif self._shut and not problem:
                logger.info("door open", door=str(self._door), pushes=len(self._pushes))
            self._shut = bool(problem)
            # A daemon whose queue is full has not kept the push.
            if verdict is None or verdict.word == QueueFull.reason:
                # A timer for each, so that the next push is offered at once.
                loop.call_later(self._pause, self._due.put_nowait, key)
                continue
            self._pushes.pop(key, None)
            session = verdict.answer.get("session")
            logger.info("push handed in", octets=len(octets), verdict=verdict.word, session=session)
            self._on_verdict(key)
