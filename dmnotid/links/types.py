"""The type of a network interface: configured by name, or detected from rtnetlink and sysfs.

The first fact that matches decides. The name comes late, because an interface can be renamed to anything. The table in
docs/connections.md shows the same order with examples.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from dmnotid.config.values import ConnectionsConfig
from dmnotid.links.rtnetlink import ARPHRD_ETHER, ARPHRD_PPP, ARPHRD_RAWIP, IFF_LOOPBACK, Interface
from dmnotid.wire.notification import ConnectionType

SYSFS: Final = Path("/sys/class/net")

_MOBILE_KINDS: Final = frozenset({"ppp", "rmnet", "wwan"})
_MOBILE_HARDWARE: Final = {ARPHRD_PPP: "point-to-point link", ARPHRD_RAWIP: "raw IP link"}
_MOBILE_NAMES: Final = ("ppp*", "wwan*", "rmnet*", "qmimux*")

# Kinds of links that exist in software alone. A software kind that is missing here is recognised because sysfs has no
# `device` for it; netdevsim does have one. dsa is not listed: a port of a switch is hardware despite its kind.
# fmt: off
_SOFTWARE_KINDS: Final = frozenset({
    "bareudp", "bond", "bridge", "dummy", "erspan", "geneve", "gre", "gretap", "ifb", "ip6gre", "ip6gretap",
    "ip6tnl", "ipip", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "netdevsim", "netkit", "nlmon", "openvswitch",
    "sit", "team", "tun", "veth", "vlan", "vrf", "vti", "vti6", "vxlan", "wireguard", "xfrm",
})
# fmt: on

# The DEVTYPEs of wired Ethernet: none, and the port of a switch.
_ETHERNET_DEVICE_TYPES: Final = frozenset({"", "dsa"})


def find_type(interface: Interface, config: ConnectionsConfig, sysfs: Path = SYSFS) -> tuple[ConnectionType, str]:
    """Return the type of an interface, ANY if it is none of the three, and the fact that decided."""
    return configured_type(interface.name, config) or _kernel_type(interface) or _sysfs_type(interface, sysfs)


def configured_type(name: str, config: ConnectionsConfig) -> tuple[ConnectionType, str] | None:
    """Return the type whose patterns match this interface name, and the pattern; None if no pattern matches."""
    for kind, patterns in config.interfaces.items():
        for pattern in patterns:
            # Names of interfaces differ by case.
            if fnmatchcase(name, pattern):
                return kind, f"configured: {pattern}"
    return None


def _kernel_type(interface: Interface) -> tuple[ConnectionType, str] | None:
    """Return what rtnetlink alone decides, so that sysfs is read for hardware only."""
    if interface.flags & IFF_LOOPBACK:
        return ConnectionType.ANY, "loopback"
    if interface.kind in _MOBILE_KINDS:
        return ConnectionType.MOBILE, f"kind {interface.kind}"
    if interface.kind in _SOFTWARE_KINDS:
        return ConnectionType.ANY, f"kind {interface.kind}"
    # A member of a VRF keeps its own addresses; any other member carries the traffic of its master.
    if interface.master and interface.member_of != "vrf":
        return ConnectionType.ANY, f"member of a {interface.member_of or 'master'}"
    if interface.hardware in _MOBILE_HARDWARE:
        return ConnectionType.MOBILE, _MOBILE_HARDWARE[interface.hardware]
    return None


def _sysfs_type(interface: Interface, sysfs: Path) -> tuple[ConnectionType, str]:
    entry = sysfs / interface.name
    try:
        # A driver without cfg80211 (wireless extensions only) has no `phy80211`.
        for wireless in ("phy80211", "wireless"):
            if (entry / wireless).exists():
                return ConnectionType.WIRELESS, f"sysfs {wireless}"
        # Before the name, which an administrator may have changed.
        device_type = _device_type(entry)
        if device_type == "wwan":
            return ConnectionType.MOBILE, "DEVTYPE=wwan"
        for pattern in _MOBILE_NAMES:
            if fnmatchcase(interface.name, pattern):
                return ConnectionType.MOBILE, f"named {pattern}"
        return _ethernet_type(interface, device_type, entry)
    except PermissionError:
        # A sandbox may hide sysfs; the connection then serves sessions that accept any type.
        return ConnectionType.ANY, "sysfs unreadable"


def _ethernet_type(interface: Interface, device_type: str, entry: Path) -> tuple[ConnectionType, str]:
    if interface.hardware != ARPHRD_ETHER:
        return ConnectionType.ANY, f"hardware type {interface.hardware}"
    if device_type not in _ETHERNET_DEVICE_TYPES:
        return ConnectionType.ANY, f"DEVTYPE={device_type}"
    if not entry.exists():
        return ConnectionType.ANY, "not in sysfs"
    if not (entry / "device").exists():
        return ConnectionType.ANY, f"Ethernet without a device{interface.kind and f', kind {interface.kind}'}"
    return ConnectionType.WIRELINE, "Ethernet with a device"


def _device_type(entry: Path) -> str:
    """Return DEVTYPE; empty if there is none, or if the interface was removed after rtnetlink listed it."""
    try:
        lines = (entry / "uevent").read_bytes().splitlines()
    except PermissionError:
        # `_sysfs_type` reports that sysfs can't be read.
        raise
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(b"=")
        if name == b"DEVTYPE":
            return value.decode("ascii", "replace")
    return ""
