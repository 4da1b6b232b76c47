"""A classic BPF program on the socket refuses datagrams in the kernel, before they wake the daemon.

Its first part refuses forged IPv4 senders. A socket shows an IPv4 sender as ::ffff:a.b.c.d, and Linux (5.12 and later)
also delivers IPv6 packets that carry such an address as their source, past its checks of martian addresses and of the
reverse path. This part is on every IPv6 socket:

    octets of the IPv6 header                                  refused if
    8-23    source address                                     in ::ffff:0:0/96

Its second part refuses datagrams that can't be a push:

    octets of the UDP datagram, as the program sees them       refused if
    all     UDP header and payload                             the payload has more than `push.max_octets`
    0-7     UDP header
    8       TID
    9       Type                                               not 0x06
    10      HeadersLen, if it has one octet                    0, or more octets than follow
            (its first octet 0x80-0xff: of several octets)     left to the decoder
    11-     Content-Type, …                                    the datagram ends before octet 11

`decode_push` refuses all of these datagrams, as `push-too-long`, `truncated` or `not-a-push`; the program refuses none
that `decode_push` accepts.
"""

import socket
from array import array
from struct import Struct
from typing import Final, NamedTuple

from dmnotid.wire.octets import SHORT_INTEGER
from dmnotid.wire.wsp import DEFAULT_MAX_OCTETS, TYPE_PUSH

UDP_HEADER_OCTETS: Final = 8
"""Octets of the UDP header, which the kernel removes after the filter has run (net/ipv4/udp.c, net/ipv6/udp.c)."""

_TYPE: Final = UDP_HEADER_OCTETS + 1
_HEADERS_LEN: Final = UDP_HEADER_OCTETS + 2
_BODY: Final = UDP_HEADER_OCTETS + 3

# asm-generic/socket.h
SO_ATTACH_FILTER: Final = 26

# linux/if_ether.h
ETH_P_IPV6: Final = 0x86DD

# linux/filter.h: places outside the datagram, which begin at negative offsets.
AD_PROTOCOL: Final = -0x1000 & 0xFFFF_FFFF
"""SKF_AD_OFF + SKF_AD_PROTOCOL: the EtherType of the packet."""
NETWORK_HEADER: Final = -0x10_0000 & 0xFFFF_FFFF
"""SKF_NET_OFF: the first octet of the IP header."""

# The source address in an IPv6 header.
_SOURCE: Final = NETWORK_HEADER + 8

# linux/bpf_common.h
LOAD_WORD: Final = 0x20
"""A = the four octets at k, in network order."""
LOAD_OCTET: Final = 0x30
"""A = the octet at k."""
LOAD_LENGTH: Final = 0x80
"""A = the number of octets."""
COPY: Final = 0x07
"""X = A."""
ADD: Final = 0x04
"""A += k."""
IF_EQUAL: Final = 0x15
"""If A = k skip `yes` instructions, else `no`."""
IF_AT_LEAST: Final = 0x35
IF_AT_LEAST_X: Final = 0x3D
"""The same with X in place of k."""
RETURN: Final = 0x06
"""Accept k octets; 0 refuses the datagram."""

WHOLE: Final = 0xFFFF_FFFF


class Instruction(NamedTuple):
    """One instruction. Jumps are relative to the next one."""

    code: int
    yes: int
    no: int
    k: int


NO_FORGED_IPV4: Final = (
    Instruction(LOAD_WORD, 0, 0, AD_PROTOCOL),
    # A true IPv4 packet, which a dual-stack socket receives too, has no IPv6 header to look at.
    Instruction(IF_EQUAL, 0, 7, ETH_P_IPV6),  # else: go on after this part
    Instruction(LOAD_WORD, 0, 0, _SOURCE),
    Instruction(IF_EQUAL, 0, 5, 0),
    Instruction(LOAD_WORD, 0, 0, _SOURCE + 4),
    Instruction(IF_EQUAL, 0, 3, 0),
    Instruction(LOAD_WORD, 0, 0, _SOURCE + 8),
    Instruction(IF_EQUAL, 0, 1, 0xFFFF),
    Instruction(RETURN, 0, 0, 0),
)
"""The first part; the instructions of another part follow it."""

ALL_ELSE: Final = (Instruction(RETURN, 0, 0, WHOLE),)
"""The second part if junk is wanted."""

_INSTRUCTION: Final = Struct("=HBBI")
# struct sock_fprog: the number of instructions, and their address. Sizes and alignment are native, because the kernel
# reads a C structure with a pointer.
_PROGRAM: Final = Struct("@HP")


def no_junk(max_octets: int = DEFAULT_MAX_OCTETS) -> tuple[Instruction, ...]:
    """Return the second part for a longest payload."""
    # The jumps lead to the last two instructions: the first of them refuses, the second takes.
    return (
        Instruction(LOAD_LENGTH, 0, 0, 0),
        Instruction(IF_AT_LEAST, 0, 10, _BODY),  # else: refuse
        Instruction(IF_AT_LEAST, 9, 0, UDP_HEADER_OCTETS + max_octets + 1),  # refuse
        Instruction(LOAD_OCTET, 0, 0, _TYPE),
        Instruction(IF_EQUAL, 0, 7, TYPE_PUSH),  # else: refuse
        Instruction(LOAD_OCTET, 0, 0, _HEADERS_LEN),
        Instruction(IF_EQUAL, 5, 0, 0),  # refuse
        Instruction(IF_AT_LEAST, 5, 0, SHORT_INTEGER),  # take
        Instruction(ADD, 0, 0, _BODY),
        Instruction(COPY, 0, 0, 0),
        Instruction(LOAD_LENGTH, 0, 0, 0),
        Instruction(IF_AT_LEAST_X, 1, 0, 0),  # take
        Instruction(RETURN, 0, 0, 0),
        Instruction(RETURN, 0, 0, WHOLE),
    )


def attach(sock: socket.socket, *, junk: bool = False, max_octets: int = DEFAULT_MAX_OCTETS) -> None:
    """Let the kernel refuse forged IPv4 senders and, without `junk`, what can't be a push or is longer than that.

    The drop counter of the socket has all of them. The program replaces an earlier one in one step. Raises OSError; an
    earlier program then stays.
    """
    program = NO_FORGED_IPV4 + (ALL_ELSE if junk else no_junk(max_octets))
    octets = array("B", b"".join(_INSTRUCTION.pack(*it) for it in program))
    # The array has to live until the call returns: the kernel copies the instructions from its address.
    address, _ = octets.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(program), address))
