"""The configured DM servers, found by SERVER-ID or else by the secret that fits. There is no default server."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from typing import Final, NamedTuple

from dmnotid.errors import DigestMismatch, SecretNotProvisioned, ServerUndiscovered, SourceNotAllowed, UnknownServer
from dmnotid.policy.addresses import Network, Source, parse_ip
from dmnotid.policy.digest import is_signed_with
from dmnotid.wire.notification import Notification
from dmnotid.wire.octets import normal_server_id

MAX_TRIED_SECRETS: Final = 64
"""Maximum number of servers with a secret for a notification without SERVER-ID to be tried with their secrets."""

MAX_TRIED_OCTETS: Final = 1_024
"""Maximum size of such a notification: each secret tried costs a digest over all of its octets."""


class Server(NamedTuple):
    """A configured DM server.

    `secret` is None if none is provisioned. While the server changes it, `former_secret` is accepted too: until
    `former_until` (POSIX seconds), or without an end. `sources` are the networks and doors that it may send from; empty
    for any.
    """

    id: str
    secret: bytes | None = None
    require_digest: bool = True
    sources: tuple[Network | str, ...] = ()
    former_secret: bytes | None = None
    former_until: float | None = None

    def __repr__(self) -> str:
        """Leave out the secrets: what is logged may be read by others."""
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if not name.endswith("secret"))
        return f"Server({', '.join(shown)})"

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """Every secret of the server, the current one first."""
        return tuple([secret for secret in (self.secret, self.former_secret) if secret is not None])

    def allows(self, source: Source) -> bool:
        """Return whether the server may send from that address, or through that door."""
        if not self.sources:
            return True
        address = parse_ip(source.address)
        # A door, whose name is no IP literal.
        if address is None:
            return source.address in self.sources
        return any(address in network for network in self.sources if not isinstance(network, str))


class _BySource:
    """Servers by the networks and doors that they may send from.

    Anyone can send notifications without SERVER-ID. So finding their servers takes one step for each length of prefix
    in the configuration, not one for each server.
    """

    def __init__(self, servers: Iterable[Server]) -> None:
        # Those that may send from anywhere.
        self._anywhere: list[Server] = []
        # The others, by IP version and number of host bits of a network, and by its bits before those.
        self._near: dict[tuple[int, int], dict[int, list[Server]]] = {}
        # The others, by the name of a door.
        self._by_door: dict[str, list[Server]] = {}
        for server in servers:
            if not server.sources:
                self._anywhere.append(server)
            for network in server.sources:
                if isinstance(network, str):
                    self._by_door.setdefault(network, []).append(server)
                    continue
                host_bits = network.max_prefixlen - network.prefixlen
                prefixes = self._near.setdefault((network.version, host_bits), {})
                prefixes.setdefault(int(network.network_address) >> host_bits, []).append(server)

    def find(self, source: Source) -> list[Server]:
        """Return the servers that may send from that address, or through that door."""
        found = [*self._anywhere, *self._by_door.get(source.address, ())]
        address = parse_ip(source.address)
        if address is not None:
            number = int(address)
            for (version, host_bits), prefixes in self._near.items():
                if version == address.version:
                    found += prefixes.get(number >> host_bits, ())
        # A server with overlapping networks is found in each of them.
        return list({server.id: server for server in found}.values())


class Servers:
    """All configured servers. SERVER-IDs are compared case-sensitively, after NFC."""

    def __init__(self, servers: Iterable[Server]) -> None:
        """Raise ValueError for an id that is not a valid SERVER-ID, or that is given twice."""
        # By normalised SERVER-ID, in the order of the configuration.
        self._by_id: dict[str, Server] = {}
        for server in servers:
            identity = normal_server_id(server.id)
            if identity in self._by_id:
                raise ValueError(f"SERVER-ID {identity!r} is configured twice")
            self._by_id[identity] = server
        # The number of servers with a secret, and those servers.
        self._signer_count = sum(bool(server.secrets) for server in self)
        self._signers = _BySource(server for server in self if server.secrets)
        # The servers that accept unsigned notifications.
        self._unsigned = _BySource(server for server in self if not server.require_digest)

    def __iter__(self) -> Iterator[Server]:
        """Iterate in the order of the configuration."""
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def ipv4_sources(self) -> bool:
        """Whether the `sources` of any server contain an IPv4 network."""
        return any(isinstance(network, IPv4Network) for server in self for network in server.sources)

    def find(self, notification: Notification, source: Source) -> Server:
        """Return the server of a notification, which may send from `source`.

        Raises UnknownServer, SourceNotAllowed and ServerUndiscovered, SecretNotProvisioned if no server has a secret,
        and DigestMismatch if that of none fits.
        """
        server_id = notification.server_id
        # The decoder has brought SERVER-ID into NFC.
        if server_id is None:
            if notification.signed:
                return self._find_signer(notification, source)
            # Only the source is left, and a guess among several servers would be a default server.
            found = self._unsigned.find(source)
            if len(found) != 1:
                raise ServerUndiscovered(len(found), signed=False)
            return found[0]
        # There is no default server: with one, a stranger could choose which secret is compared.
        server = self._by_id.get(server_id)
        if server is None:
            raise UnknownServer(server_id)
        # Before any digest: a sender from elsewhere costs no hashing.
        if not server.allows(source):
            raise SourceNotAllowed(source.address, server.id)
        return server

    def _find_signer(self, notification: Notification, source: Source) -> Server:
        signers, octets = self._signer_count, len(notification.octets)
        if not signers:
            raise SecretNotProvisioned
        # Anyone can send such notifications, so the work for one is bounded before any of it is done.
        if signers > MAX_TRIED_SECRETS or octets > MAX_TRIED_OCTETS:
            limits = MAX_TRIED_SECRETS, MAX_TRIED_OCTETS
            raise ServerUndiscovered(signers, signed=True, untried_octets=octets, limits=limits)
        allowed = self._signers.find(source)
        if not allowed:
            raise SourceNotAllowed(source.address)
        # Every secret is tried, so that the time taken does not reveal which one fits.
        fits = [(server, is_signed_with(notification, secret)) for server in allowed for secret in server.secrets]
        # Two secrets of one server differ, so none is found twice.
        found = [server for server, fit in fits if fit]
        if not found:
            raise DigestMismatch(tried=len(fits))
        if len(found) > 1:
            raise ServerUndiscovered(len(found), signed=True)
        return found[0]
