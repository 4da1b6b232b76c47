"""Dumps by a kernel that answers as no kernel would, and by the real one; notices of changes."""

import socket
import subprocess
import sys
from contextlib import closing
from typing import cast

import pytest

from dmnotid.links.kernel import MAX_DUMPS, dump, read_state, subscribe
from dmnotid.links.rtnetlink import IFF_UP, INTERFACES, Interface
from tests.links.octets import attribute, done, link, message
from tests.netns import Namespace, in_namespace
from tests.support import descriptors


class Kernel:
    """Answers each request with the next of the given answers: a list of octets and sender."""

    def __init__(self, *answers: list[tuple[bytes, int]]) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self._waiting: list[tuple[bytes, int]] = []

    def send(self, octets: bytes) -> None:
        assert not self._waiting, "a new request before the answer was read to its end"
        self.requests.append(octets)
        self._waiting = self.answers.pop(0)

    def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
        octets, sender = self._waiting.pop(0)
        return octets, (sender, 0)

    def dump(self) -> list[Interface]:
        return dump(cast("socket.socket", self), INTERFACES)


def named(name: bytes, sequence: int, *, flags: int = 0) -> bytes:
    return message(16, link(attribute(3, name)), sequence=sequence, flags=flags)


def test_dump_is_read_again_if_the_state_changed_during_it() -> None:
    kernel = Kernel(
        [(named(b"old", 1), 0), (named(b"half", 1, flags=0x10), 0), (done(sequence=1), 0)],
        [(named(b"new", 2) + done(sequence=2), 0)],
    )
    assert [interface.name for interface in kernel.dump()] == ["new"]


def test_dump_is_refused_if_the_state_keeps_changing() -> None:
    kernel = Kernel(*([(done(flags=0x10, sequence=n), 0)] for n in range(1, 100)))
    with pytest.raises(InterruptedError, match="changed during"):
        kernel.dump()
    assert len(kernel.requests) == MAX_DUMPS


def test_answer_of_another_process_is_skipped() -> None:
    kernel = Kernel([(named(b"lie", 1) + done(), 4711), (named(b"truth", 1) + done(), 0)])
    assert [interface.name for interface in kernel.dump()] == ["truth"]


def test_loopback_is_read_without_privilege() -> None:
    """Every machine and every container has it."""
    program = (
        # Imported before the user changes: other users may have no access to the checkout.
        "import os; from dmnotid.links.kernel import read_state\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setuid(65534)\n"
        "print([link.name for link in read_state().interfaces])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "'lo'" in done.stdout


def test_sockets_are_closed_and_not_inherited() -> None:
    before = descriptors()
    read_state()
    with closing(subscribe()) as subscription:
        assert not subscription.get_inheritable()
        assert subscription.gettimeout() == 0
    assert descriptors() == before


@in_namespace
def test_state_of_a_namespace_is_read(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    namespace.ip_batch(
        [
            "addr add 192.0.2.1/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0",
            "route add default via 192.0.2.2 metric 70",
            "route add blackhole 10.0.0.0/8",
            "link add br0 type bridge",
            "link set eth0 master br0",
        ]
    )
    state, default_only = read_state(), read_state(0)
    by_name = {interface.name: interface for interface in state.interfaces}
    eth0, br0 = by_name["eth0"], by_name["br0"]
    assert (eth0.kind, eth0.master, eth0.member_of) == ("veth", br0.ifindex, "bridge")
    assert (br0.kind, br0.master, br0.flags & IFF_UP) == ("bridge", 0, 0)
    own = {own.octets for own in state.addresses if own.ifindex == eth0.ifindex}
    assert {bytes([192, 0, 2, 1]), socket.inet_pton(socket.AF_INET6, "2001:db8::1")} < own
    assert {str(path) for path in state.routes if path.bits == 32} == {"default metric 70", "192.0.2.0/24 metric 0"}
    assert "2001:db8::/64 metric 256" in map(str, state.routes)
    assert [(path.ifindex, str(path)) for path in default_only.routes] == [(eth0.ifindex, "default metric 70")]


@in_namespace
def test_state_without_ipv6_is_read() -> None:
    with Namespace(ipv6=False) as namespace, namespace.entered():
        namespace.add_veth("eth0")
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        assert {len(own.octets) for own in read_state().addresses} == {4}


@in_namespace
@pytest.mark.parametrize(
    ("before", "change"),
    [
        ([], "addr add 192.0.2.1/24 dev eth0"),
        # No route changes with the lifetime of an address.
        (["addr add 192.0.2.1/24 dev eth0"], "addr change 192.0.2.1/24 dev eth0 valid_lft 600 preferred_lft 600"),
        (["addr add 192.0.2.1/24 dev eth0"], "route add default via 192.0.2.2"),
        (["addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.2"], "route del default"),
        ([], "addr add 2001:db8::1/64 dev eth0"),
        (["addr add 2001:db8::1/64 dev eth0"], "addr change 2001:db8::1/64 dev eth0 valid_lft 600 preferred_lft 600"),
        ([], "-6 route add default via fe80::1 dev eth0"),
        ([], "link set eth0 down"),
        (["link set eth0 down"], "link set eth0 name wlan0"),
        ([], "link del eth0"),
    ],
)
def test_each_kind_of_change_makes_the_subscription_readable(
    namespace: Namespace, before: list[str], change: str
) -> None:
    namespace.add_veth("eth0")
    namespace.ip_batch(before)
    with closing(subscribe()) as subscription:
        namespace.ip(*change.split())
        assert subscription.recv(1)
