"""What a soak sends: datagrams of every kind, each with what must become of it."""

import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from dmnotid.errors import Discard
from dmnotid.policy.freshness import Freshness, judge_clock
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.wsp import encode_push
from tests.proofs.vectors.make import extended, option, signed
from tests.support import NOWHERE, OPEN_ID, OTHER_ID, SECRETS, SERVER_ID, SERVERS, SOURCE, WIRELINE, package, push

WAITS_ID: Final = "waits.example"
"""The server whose sessions wait for a connection that never comes, and expire."""

COMING_ID: Final = "coming.example"
"""The server that only every other configuration has."""

MORE_SECRETS: Final = {WAITS_ID: b"eleven ropes in the boathouse", COMING_ID: b"the ferry leaves at twenty to"}
ORDINARY: Final = (SERVER_ID, OTHER_ID, OPEN_ID)

HOOK: Final = r"""
case $((DMNOTID_NOTIFICATION_ID % 128)) in
1 | 65) exit 1 ;;
2 | 66) exit 78 ;;
3 | 67) kill -KILL $$ ;;
4 | 68) kill -USR1 $$ ;;
5 | 69) yes "$(printf %0900d 0)" | head -c 300000 ;;
6 | 70) head -c 300000 /dev/zero >&2 ;;
7 | 71) sleep 0.5 & exit 0 ;;
8 | 72) [ "$DMNOTID_ATTEMPT" -gt 1 ] ;;
9 | 73) exec >&- 2>&-; exit 3 ;;
20) sleep 60 ;;
84) trap "" TERM; sleep 60 ;;
esac
"""
"""A hook that ends in every way there is, as the NOTIFICATION-ID says."""

SLOW: Final = frozenset({20, 84})
"""What NOTIFICATION-IDs are modulo 128 whose hooks run until they are ended."""

HOOK_ENDS: Final = {**dict.fromkeys((1, 3, 4, 9, 65, 67, 68, 73, *SLOW), "failed"), **dict.fromkeys((2, 66), "refused")}
"""How a session is closed whose NOTIFICATION-ID modulo 128 is this; all others are "done"."""

FLEXIBLE: Final = ("accepted", "queue-full", "unknown-server")
"""Fates that hang on when a datagram comes: how full the queue is, which configuration is in force."""

_KEPT: Final = 2_000
_VARIANTS: Final = 512


class Sent(NamedTuple):
    """A datagram, and the count that it must end in; None for one of FLEXIBLE."""

    octets: bytes
    fate: str | None


def session_end(server_id: str, notification_id: int) -> set[str]:
    """Say how the session of an accepted notification may be closed."""
    if server_id == WAITS_ID:
        return {"expired"}
    if server_id == COMING_ID:
        return {"done", "expired"}  # held back for as long as its server isn't configured
    return {HOOK_ENDS.get(notification_id % 128, "done")}


def all_servers() -> list[Any]:
    """Every server there may be, as a configuration has them."""
    return [*SERVERS, *({"id": name, "secret": {"text": secret.decode()}} for name, secret in MORE_SECRETS.items())]


class Traffic:
    """Makes datagrams in a mix; most come out of stores that are filled once, for the sender has to be quick."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - repeatable, guards nothing
        self._numbers: Counter[str] = Counter()
        self._accepted: deque[tuple[str, int, bytes]] = deque(maxlen=_KEPT)
        self._under_way: dict[tuple[str, int], bytes] = {}
        stores: Mapping[str, Callable[[], Iterator[bytes]]] = {
            "forged": self._forged,
            "length-extended": self._extended,
            "stale": self._stale,
            "junk": self._junk,
        }
        self._stores = {kind: [Sent(octets, fate_of(octets)) for octets in make()] for kind, make in stores.items()}
        self.kinds: Counter[str] = Counter()
        self.fates: Counter[str | None] = Counter()

    def new(self, server_id: str) -> Sent:
        """Make a notification that nobody has seen."""
        self._numbers[server_id] += 1
        number = self._numbers[server_id] % 65_536
        # Their sessions are about the server, not about the hook: 0 and 64 end well at once.
        notification_id = number * 64 % 65_536 if server_id == COMING_ID else number
        preferred = NOWHERE if server_id == WAITS_ID else WIRELINE
        octets = push(notification_id, server_id=server_id, secret=MORE_SECRETS.get(server_id), preferred=preferred)
        self._under_way[server_id, notification_id] = octets
        return self._count("coming and going" if server_id == COMING_ID else "new", Sent(octets, None))

    def was_accepted(self, server_id: str, notification_id: int) -> None:
        """Take it that this one is remembered from now on: its repeats are duplicates."""
        octets = self._under_way.pop((server_id, notification_id))
        if server_id != COMING_ID:  # whose repeats may come while it is unknown
            self._accepted.append((server_id, notification_id, octets))

    def any(self) -> Sent:
        """Make one that starts nothing."""
        kind = self._random.choices(("duplicate", *self._stores), (30, 15, 10, 10, 35))[0]
        if kind != "duplicate":
            return self._count(kind, self._random.choice(self._stores[kind]))
        if not self._accepted:
            return self._count("junk", self._random.choice(self._stores["junk"]))
        return self._count(kind, Sent(self._repeat(), "duplicate"))

    def _count(self, kind: str, sent: Sent) -> Sent:
        self.kinds[kind] += 1
        self.fates[sent.fate] += 1
        return sent

    def _repeat(self) -> bytes:
        server_id, notification_id, octets = self._random.choice(self._accepted)
        if self._random.random() < 0.9:
            return octets
        return push(notification_id, server_id=server_id, secret=MORE_SECRETS.get(server_id))  # with other content

    def _forged(self) -> Iterator[bytes]:
        for number in range(_VARIANTS):
            server_id = self._random.choice((SERVER_ID, OTHER_ID, WAITS_ID, "nobody.example", None))
            yield push(number, server_id=server_id, secret=os.urandom(20))
            good = push(number)
            yield good[:-1] + bytes([good[-1] ^ 1 << self._random.randrange(8)])
            yield push(number, server_id=SERVER_ID, secret=SECRETS[OTHER_ID])

    def _extended(self) -> Iterator[bytes]:
        """Length extension: the digest fits, the octets behind it are the forger's."""
        secret, now = SECRETS[SERVER_ID].decode(), int(time.time())
        for number in range(_VARIANTS):
            server_id = option(1, SERVER_ID.encode())
            suffix = option(self._random.randrange(1, 9), os.urandom(self._random.randrange(40)))
            yield encode_push(extended(signed(number, server_id, delta=5, sent_at=now, secret=secret), suffix, secret))

    def _stale(self) -> Iterator[bytes]:
        for number in range(_VARIANTS):
            away = 86_400 * self._random.uniform(3, 3_000)
            yield push(number, sent_at=time.time() - away)
            yield push(number, sent_at=time.time() + away)

    def _junk(self) -> Iterator[bytes]:
        chance = self._random
        for number in range(_VARIANTS):
            good = push(number, server_id=chance.choice(ORDINARY))
            yield os.urandom(chance.randrange(200))
            yield b"\x01\x06" + os.urandom(chance.randrange(100))
            yield good[: chance.randrange(len(good))]
            yield good + os.urandom(chance.randrange(1, 9))
            length = chance.randrange(49, 127)
            yield bytes([number & 0xFF, 6, length]) + os.urandom(length) + package(number)
            yield encode_push(package(number), content_type=chance.choice((0x03, 0x36, "text/plain")))
            yield encode_push(package(number), application=chance.choice((2, 8, "x-wap-application:wml.ua")))
            yield b"GET / HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n"
        yield from (os.urandom(8_000), bytes(8_000), b"\xff" * 8_000, b"")


def fate_of(octets: bytes) -> str:
    """Say in which count a datagram ends that is no good, whatever the configuration."""
    secrets = {**SECRETS, **MORE_SECRETS}
    servers = [Server(name, secrets.get(name), require_digest=name in secrets) for name in (*ORDINARY, *MORE_SECRETS)]
    rules, now = Rules(Servers(servers), Freshness(max_skew=600)), time.time()
    try:
        receive(Datagram(octets, SOURCE, now), rules, judge_clock(now, None))
    except Discard as discard:
        return discard.reason
    message = f"meant to be discarded, and is not: {octets.hex(' ')}"
    raise AssertionError(message)
