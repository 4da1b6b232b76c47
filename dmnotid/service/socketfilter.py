"""What can be no push is refused in the kernel, before it wakes the daemon: a classic BPF program on the socket.

    octets of the UDP datagram, as the program sees them       refused where
    0-7     UDP header
    8       TID
    9       Type                                               not 0x06
    10      HeadersLen, where it has one octet                 0, or more than what follows
            (its first octet 0x80-0xff: of several octets)     left to the decoder
    11-     Content-Type, …                                    the datagram ends before octet 11

`decode_push` refuses all of that whatever the configuration (as `truncated` or `not-a-push`), and the program nothing
that `decode_push` takes.
"""

import socket
from array import array
from struct import Struct
from typing import Final, NamedTuple

from dmnotid.wire.octets import SHORT_INTEGER
from dmnotid.wire.wsp import TYPE_PUSH

UDP_HEADER_OCTETS: Final = 8
"""At the time of the filter they still stand in front (net/ipv4/udp.c, net/ipv6/udp.c)."""

_TYPE: Final = UDP_HEADER_OCTETS + 1
_HEADERS_LEN: Final = UDP_HEADER_OCTETS + 2
_BODY: Final = UDP_HEADER_OCTETS + 3

# asm-generic/socket.h
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27

# linux/bpf_common.h
LOAD_OCTET: Final = 0x30
"""A = the octet at k."""
LOAD_LENGTH: Final = 0x80
"""A = the number of octets."""
COPY: Final = 0x07
"""X = A."""
ADD: Final = 0x04
"""A += k."""
IF_EQUAL: Final = 0x15
"""If A = k go on after `yes` instructions, else after `no`."""
IF_AT_LEAST: Final = 0x35
IF_AT_LEAST_X: Final = 0x3D
"""The same with X in the place of k."""
RETURN: Final = 0x06
"""Keep k octets; 0 refuses."""

WHOLE: Final = 0xFFFF_FFFF


class Instruction(NamedTuple):
    """One instruction: jumps count from the next one."""

    code: int
    yes: int
    no: int
    k: int


PROGRAM: Final = (
    Instruction(LOAD_LENGTH, 0, 0, 0),
    Instruction(IF_AT_LEAST, 0, 9, _BODY),  # else: refuse
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

_INSTRUCTION: Final = Struct("=HBBI")
_PROGRAM: Final = Struct("@HP")
"""struct sock_fprog: how many instructions, and where they stand."""


def attach(sock: socket.socket) -> None:
    """Let the kernel refuse what can be no push; its drop counter counts it. Raises OSError."""
    octets = array("B", b"".join(_INSTRUCTION.pack(*it) for it in PROGRAM))
    address, _ = octets.buffer_info()
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, _PROGRAM.pack(len(PROGRAM), address))


def detach(sock: socket.socket) -> None:
    """Let everything through again; no matter whether a program was there. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    except FileNotFoundError:
        return
