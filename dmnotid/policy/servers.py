"""The DM servers this device knows, found by SERVER-ID or by what verifies. There is no default server."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Final

from dmnotid.errors import DigestMismatch, ServerUndiscovered, SourceNotAllowed, UnknownServer
from dmnotid.policy.addresses import Network, Source, parse_ip
from dmnotid.wire.notification import Notification
from dmnotid.wire.octets import normal_server_id

REMEMBERED_ADDRESSES: Final = 64
"""For how many senders it is remembered which secrets are tried; each is one of a list of all servers at most."""


@dataclass(frozen=True, slots=True)
class Server:
    """A configured DM server.

    `secret` is None where none is provisioned; `sources` are the networks it may send from, any where empty.
    """

    id: str
    secret: bytes | None = field(default=None, repr=False)
    require_digest: bool = True
    sources: tuple[Network, ...] = ()

    def allows(self, source: Source) -> bool:
        """Tell whether a datagram from there may speak for this server."""
        if not self.sources:
            return True
        address = parse_ip(source.address)
        return address is not None and any(address in network for network in self.sources)


FindSigners = Callable[[Notification, Sequence[Server]], Sequence[Server]]
"""Tells with which of these servers' secrets a notification's digest was made."""


class Servers:
    """All configured servers; SERVER-IDs are compared case-sensitively, after NFC."""

    def __init__(self, servers: Iterable[Server]) -> None:
        """ValueError for an id that can't be a SERVER-ID, or that stands twice."""
        self._by_id: dict[str, Server] = {}
        for server in servers:
            identity = normal_server_id(server.id)
            if identity in self._by_id:
                message = f"SERVER-ID {identity!r} is configured twice"
                raise ValueError(message)
            self._by_id[identity] = server
        self._secretive = [server for server in self if server.secret is not None]
        self._from_address: dict[str, Sequence[Server]] = {}

    def __iter__(self) -> Iterator[Server]:
        """In the order of the configuration."""
        return iter(self._by_id.values())

    @property
    def ipv4_sources(self) -> bool:
        """Whether any server's `sources` have an IPv4 network."""
        return any(isinstance(network, IPv4Network) for server in self for network in server.sources)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_id)

    def find(self, notification: Notification, source: Source, find_signers: FindSigners) -> Server:
        """Find the server that a notification speaks for, and see that it may send from there.

        `find_signers` is asked only where SERVER-ID is absent. Raises UnknownServer, SourceNotAllowed, DigestMismatch,
        ServerUndiscovered, and what `find_signers` does.
        """
        server_id = notification.server_id
        if server_id is None:
            return self._discover(notification, source, find_signers)
        server = self._by_id.get(server_id)
        if server is None:
            message = f"no server {server_id!r} is configured"
            raise UnknownServer(message)
        if server.sources and not server.allows(source):
            message = f"{source.address} is not among the sources of {server.id!r}"
            raise SourceNotAllowed(message)
        return server

    def _discover(self, notification: Notification, source: Source, find_signers: FindSigners) -> Server:
        if not notification.signed:
            return self._only_unsigned(source)
        allowed = self._secretive_from(source.address)
        if self._secretive and not allowed:
            message = f"no SERVER-ID, and {source.address} is not among the sources of any server with a secret"
            raise SourceNotAllowed(message)
        found = find_signers(notification, allowed)
        if not found:
            message = f"no SERVER-ID, and the digest fits none of {len(allowed)} secrets"
            raise DigestMismatch(message)
        if len(found) > 1:
            message = f"no SERVER-ID, and the digest fits the secrets of {len(found)} servers"
            raise ServerUndiscovered(message)
        return found[0]

    def _secretive_from(self, address: str) -> Sequence[Server]:
        """Return the servers with a secret that may send from there; remembered for the latest few addresses."""
        known = self._from_address.get(address)
        if known is None:
            if len(self._from_address) >= REMEMBERED_ADDRESSES:
                del self._from_address[next(iter(self._from_address))]
            known = [server for server in self._secretive if server.allows(Source(address, 0))]
            self._from_address[address] = known
        return known

    def _only_unsigned(self, source: Source) -> Server:
        found = [server for server in self if not server.require_digest and server.allows(source)]
        if len(found) != 1:
            message = f"neither SERVER-ID nor digest, and {len(found)} servers take that from {source.address}"
            raise ServerUndiscovered(message)
        return found[0]
