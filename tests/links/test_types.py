"""The type of each sort of link, from a tree of sysfs and from the facts of rtnetlink.

The trees are in `sysfs/`, described by its README. No such hardware was available: `source` names the document or
source file of the kernel that a tree is modelled on; "seen" means that it was read from a running kernel.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from dmnotid.config.values import ConnectionsConfig
from dmnotid.links.availability import Link, describe
from dmnotid.links.kernel import State
from dmnotid.links.rtnetlink import ARPHRD_ETHER, IF_OPER_UP, IFF_LOOPBACK, IFF_LOWER_UP, IFF_UP, Interface
from dmnotid.wire.notification import ConnectionType
from tests.support import IS_ROOT, without_privileges

TREES = Path(__file__).parent / "sysfs"

ANY, MOBILE, WIRELESS, WIRELINE = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)
ETHERNET = "Ethernet with a device"
BY_USBNET = "drivers/net/usb/usbnet.c: DEVTYPE=wwan and wwan%d by FLAG_WWAN"


class Row(NamedTuple):
    """A link: EXAMPLE/INTERFACE, its kind (IFLA_INFO_KIND), the type to detect and why, and where this comes from."""

    path: str
    kind: str
    type: ConnectionType
    why: str
    source: str

    @property
    def example(self) -> str:
        return self.path.split("/")[0]

    @property
    def interface(self) -> str:
        return self.path.split("/")[1]


# fmt: off
ROWS = [
    Row("loopback/lo", "", ANY, "loopback",
        "seen; drivers/net/loopback.c: IFF_LOOPBACK, ARPHRD_LOOPBACK"),

    # Wi-Fi
    Row("wifi-pci/wlp3s0", "", WIRELESS, "sysfs phy80211",
        "net/wireless/core.c: DEVTYPE=wlan, symlink phy80211; net/core/net-sysfs.c: wireless by ieee80211_ptr"),
    Row("wifi-sdio/wlan0", "", WIRELESS, "sysfs phy80211",
        "as wifi-pci: by cfg80211, whatever the bus"),
    Row("wifi-phy80211-only/wlan0", "", WIRELESS, "sysfs phy80211",
        "net/core/net-sysfs.c: wireless was there with CONFIG_WIRELESS_EXT_SYSFS only"),
    Row("wifi-wext-only/wlan0", "", WIRELESS, "sysfs wireless",
        "drivers/net/wireless/zydas/zd1201.c: wireless_handlers, no wiphy; net/core/net-sysfs.c: wireless by those"),
    Row("wifi-simulated/wlan0", "", WIRELESS, "sysfs phy80211",
        "drivers/net/wireless/virtual/mac80211_hwsim.c: a radio of mac80211, on a device of its own class"),
    Row("wifi-simulated/hwsim0", "", ANY, "hardware type 803",
        "drivers/net/wireless/virtual/mac80211_hwsim.c: the monitor hwsim%d, ARPHRD_IEEE80211_RADIOTAP"),
    Row("wifi-named-wwan/wwan0", "", WIRELESS, "sysfs phy80211",
        "as wifi-pci: an interface can be renamed to anything"),

    # Modems
    Row("lte-qmi-802.3/wwp0s20f0u4i8", "", MOBILE, "DEVTYPE=wwan",
        f"drivers/net/usb/qmi_wwan.c: FLAG_WWAN, Ethernet by default, qmi/raw_ip; {BY_USBNET}; renamed by udev"),
    Row("lte-qmi-raw-ip/wwan0", "", MOBILE, "DEVTYPE=wwan",
        f"drivers/net/usb/qmi_wwan.c: raw IP is ARPHRD_NONE, IFF_POINTOPOINT | IFF_NOARP; {BY_USBNET}"),
    Row("lte-qmi-renamed/lte", "", MOBILE, "DEVTYPE=wwan",
        "as lte-qmi-raw-ip: an interface can be renamed to anything"),
    Row("lte-qmimux/wwan0", "", MOBILE, "DEVTYPE=wwan",
        "as lte-qmi-raw-ip"),
    Row("lte-qmimux/qmimux0", "", MOBILE, "named qmimux*",
        "drivers/net/usb/qmi_wwan.c: qmimux%d, ARPHRD_NONE, upper device of the modem's, no parent"),
    Row("lte-mbim/wwan0", "", MOBILE, "DEVTYPE=wwan",
        f"drivers/net/usb/cdc_mbim.c: FLAG_WWAN, Ethernet with IFF_NOARP; {BY_USBNET}"),
    Row("lte-mbim/wwan0.3", "vlan", ANY, "kind vlan",
        "Documentation/networking/cdc_mbim.rst: a further session is a VLAN on the modem's interface"),
    Row("lte-huawei-ncm/wwan0", "", MOBILE, "DEVTYPE=wwan",
        f"drivers/net/usb/huawei_cdc_ncm.c: FLAG_WWAN; {BY_USBNET}"),
    Row("lte-cdc-ether/wwan0", "", MOBILE, "DEVTYPE=wwan",
        f"drivers/net/usb/cdc_ether.c: wwan_info with FLAG_WWAN for modems it knows; {BY_USBNET}"),
    Row("umts-hso/hso0", "", MOBILE, "DEVTYPE=wwan",
        "drivers/net/usb/hso.c: hso_type is wwan, hso%d, raw IP"),
    Row("lte-bam-dmux/wwan0", "", MOBILE, "raw IP link",
        "drivers/net/wwan/qcom_bam_dmux.c: ARPHRD_RAWIP, DEVTYPE=wwan, wwan%d"),
    Row("lte-mhi-mbim/wwan0", "wwan", MOBILE, "kind wwan",
        "drivers/net/wwan/wwan_core.c: kind wwan, DEVTYPE=wwan, parent wwan_dev; mhi_wwan_mbim.c: ARPHRD_RAWIP"),
    Row("lte-iosm/wwan0", "wwan", MOBILE, "kind wwan",
        "drivers/net/wwan/iosm/iosm_ipc_wwan.c: ARPHRD_NONE; wwan_core.c as lte-mhi-mbim"),
    Row("lte-mhi-qmap/mhi_hwip0", "", MOBILE, "raw IP link",
        "drivers/net/mhi_net.c: mhi_hwip%d, ARPHRD_RAWIP, no DEVTYPE in newer kernels"),
    Row("lte-mhi-qmap/qmapmux0.0", "rmnet", MOBILE, "kind rmnet",
        "drivers/net/ethernet/qualcomm/rmnet: kind rmnet, ARPHRD_RAWIP, no parent; so named by ModemManager"),
    Row("lte-ipa/rmnet_ipa0", "", MOBILE, "raw IP link",
        "drivers/net/ipa/ipa_modem.c: rmnet_ipa%d, ARPHRD_RAWIP, no DEVTYPE"),
    Row("lte-ipa/rmnet_data0", "rmnet", MOBILE, "kind rmnet",
        "drivers/net/ethernet/qualcomm/rmnet: upper device of the one that carries it, not its member"),
    Row("lte-vendor-kernel/rmnet0", "", MOBILE, "named rmnet*",
        "kernels of Android devices, whose ARPHRD_RAWIP was 530"),
    Row("lte-serial-ppp/ppp0", "ppp", MOBILE, "kind ppp",
        "drivers/net/ppp/ppp_generic.c: kind ppp (also without netlink), DEVTYPE=ppp, ARPHRD_PPP, no parent"),
    Row("lte-old-ppp/lte", "", MOBILE, "point-to-point link",
        "drivers/net/ppp/ppp_generic.c: no kind before it had rtnl_link_ops"),

    # What looks like a modem, or hides that it is one: to be configured
    Row("dsl-pppoe/enp1s0", "", WIRELINE, ETHERNET,
        "as ethernet-pci: the card knows nothing of PPPoE"),
    Row("dsl-pppoe/ppp0", "ppp", MOBILE, "kind ppp",
        "drivers/net/ppp/pppoe.c: a channel of the same ppp%d as over a modem"),
    Row("dsl-bridged/nas0", "", ANY, "Ethernet without a device",
        "net/atm/br2684.c: nas%d, Ethernet without parent"),
    Row("modems-as-ethernet/usb0", "", WIRELINE, ETHERNET,
        "drivers/net/usb/rndis_host.c: FLAG_ETHER without FLAG_WWAN (some kernels of 2025 had it)"),
    Row("modems-as-ethernet/eth1", "", WIRELINE, ETHERNET,
        "drivers/net/usb/cdc_ether.c: cdc_info, FLAG_ETHER, for what it does not know as a modem"),
    Row("modems-as-ethernet/eth2", "", WIRELINE, ETHERNET,
        "drivers/net/usb/ipheth.c: a telephone that shares its connection; Ethernet without DEVTYPE"),
    Row("modem-named-wwan/wwan0", "", MOBILE, "named wwan*",
        "as modems-as-ethernet/usb0, renamed by the administrator"),

    # Ethernet
    Row("ethernet-pci/enp1s0", "", WIRELINE, ETHERNET,
        "drivers/net/ethernet/intel/e1000e/netdev.c: alloc_etherdev, SET_NETDEV_DEV, neither kind nor DEVTYPE"),
    Row("ethernet-soc/eth0", "", WIRELINE, ETHERNET,
        "drivers/net/ethernet/freescale/fec_main.c: the same on a platform device"),
    Row("ethernet-virtio/eth0", "", WIRELINE, ETHERNET,
        "seen; drivers/net/virtio_net.c"),
    Row("ethernet-hyper-v/eth0", "", WIRELINE, ETHERNET,
        "drivers/net/hyperv/netvsc_drv.c: a device on vmbus, no kind"),
    Row("ethernet-hyper-v/enP1p0s2", "", ANY, "member of a master",
        "drivers/net/hyperv/netvsc_drv.c: netvsc is master of the VF, and has no kind to tell"),
    Row("ethernet-dsa/eth0", "", WIRELINE, ETHERNET,
        "Documentation/networking/dsa/dsa.rst: the conduit, an Ethernet device like any other"),
    Row("ethernet-dsa/wan", "dsa", WIRELINE, ETHERNET,
        "net/dsa/user.c: DEVTYPE=dsa, parent is the switch; net/dsa/netlink.c: kind dsa"),
    Row("ethernet-dsa/lan1", "dsa", ANY, "member of a bridge",
        "the same, with br-lan as its master"),
    Row("ethernet-dsa/br-lan", "bridge", ANY, "kind bridge",
        "as bridge/br0"),
    Row("usb-ethernet/enx00e04c680001", "", WIRELINE, ETHERNET,
        "drivers/net/usb/r8152.c: alloc_etherdev, parent is the USB interface; renamed by udev"),
    Row("usb-ethernet/eth1", "", WIRELINE, ETHERNET,
        "drivers/net/usb/asix_devices.c: FLAG_ETHER; usbnet.c: eth%d, no DEVTYPE"),
    Row("usb-ethernet/eth2", "", WIRELINE, ETHERNET,
        "drivers/net/usb/cdc_ether.c: cdc_info, FLAG_ETHER; usbnet.c: eth%d, no DEVTYPE"),

    # Other hardware
    Row("usb-gadget/usb0", "", ANY, "DEVTYPE=gadget",
        "drivers/usb/gadget/function/u_ether.c: DEVTYPE=gadget"),
    Row("bluetooth-pan/bnep0", "", ANY, "DEVTYPE=bluetooth",
        "net/bluetooth/bnep/core.c: Ethernet, DEVTYPE=bluetooth, parent is the connection"),
    Row("bluetooth-6lowpan/bt0", "", ANY, "hardware type 825",
        "net/bluetooth/6lowpan.c: DEVTYPE=bluetooth; net/6lowpan/core.c: ARPHRD_6LOWPAN"),
    Row("802.15.4/wpan0", "", ANY, "hardware type 804",
        "net/mac802154/iface.c: ARPHRD_IEEE802154, parent is the phy"),
    Row("802.15.4/lowpan0", "lowpan", ANY, "hardware type 825",
        "net/ieee802154/6lowpan/core.c: kind lowpan; net/6lowpan/core.c: ARPHRD_6LOWPAN"),
    Row("can/can0", "can", ANY, "hardware type 280",
        "drivers/net/can/dev: kind can, ARPHRD_CAN"),
    Row("infiniband/ib0", "ipoib", ANY, "hardware type 32",
        "drivers/infiniband/ulp/ipoib: kind ipoib, ARPHRD_INFINIBAND"),

    # Members and what they are members of
    Row("bridge/br0", "bridge", ANY, "kind bridge",
        "seen: DEVTYPE=bridge, bridge, no device"),
    Row("bridge/enp1s0", "", ANY, "member of a bridge",
        "seen: master, upper_*, brport, promiscuous; the card as ethernet-pci"),
    Row("bridge/wlan0", "", ANY, "member of a bridge",
        "the same; an access point as wifi-pci"),
    Row("bond/bond0", "bond", ANY, "kind bond",
        "Documentation/networking/bonding.rst: bonding/mode, bonding/slaves; bond_main.c: DEVTYPE=bond, IFF_MASTER"),
    Row("bond/enp1s0", "", ANY, "member of a bond",
        "drivers/net/bonding/bond_main.c: master, IFF_SLAVE; bond_sysfs_slave.c: bonding_slave"),
    Row("bond/enp2s0", "", ANY, "member of a bond",
        "the same"),
    Row("team/team0", "team", ANY, "kind team",
        "drivers/net/team: kind team, no parent"),
    Row("team/enp1s0", "", ANY, "member of a team",
        "drivers/net/team: master"),
    Row("vlan/enp1s0", "", WIRELINE, ETHERNET,
        "net/8021q/vlan.c: what a VLAN is on has it as upper device, not as master"),
    Row("vlan/enp1s0.10", "vlan", ANY, "kind vlan",
        "net/8021q/vlan_dev.c: DEVTYPE=vlan, no parent"),
    Row("vrf/blue", "vrf", ANY, "kind vrf",
        "Documentation/networking/vrf.rst"),
    Row("vrf/enp1s0", "", WIRELINE, ETHERNET,
        "Documentation/networking/vrf.rst: enslaved for its routes alone, it keeps its addresses"),

    # Tunnels
    Row("tunnels/tun0", "tun", ANY, "kind tun", "seen: ARPHRD_NONE, tun_flags, no device"),
    Row("tunnels/tap0", "tun", ANY, "kind tun", "seen: Ethernet, tun_flags, no device"),
    Row("tunnels/ipip1", "ipip", ANY, "kind ipip", "net/ipv4/ipip.c: ARPHRD_TUNNEL"),
    Row("tunnels/gre1", "gre", ANY, "kind gre", "net/ipv4/ip_gre.c: ARPHRD_IPGRE"),
    Row("tunnels/gretap1", "gretap", ANY, "kind gretap", "net/ipv4/ip_gre.c: ether_setup"),
    Row("tunnels/sit1", "sit", ANY, "kind sit", "net/ipv6/sit.c: ARPHRD_SIT"),
    Row("tunnels/ip6tnl1", "ip6tnl", ANY, "kind ip6tnl", "net/ipv6/ip6_tunnel.c: ARPHRD_TUNNEL6"),
    Row("tunnels/vti1", "vti", ANY, "kind vti", "net/ipv4/ip_vti.c: ARPHRD_TUNNEL"),
    Row("tunnels/xfrm1", "xfrm", ANY, "kind xfrm", "net/xfrm/xfrm_interface_core.c: ARPHRD_NONE, IFF_NOARP"),
    Row("tunnels/wg0", "wireguard", ANY, "kind wireguard",
        "drivers/net/wireguard/device.c: DEVTYPE=wireguard, ARPHRD_NONE"),
    Row("tunnels/ovpn0", "ovpn", ANY, "hardware type 65534",
        "drivers/net/ovpn/main.c: kind and DEVTYPE ovpn, ARPHRD_NONE"),

    # Containers
    Row("containers/docker0", "bridge", ANY, "kind bridge", "as bridge/br0"),
    Row("containers/veth1a2b3c4", "veth", ANY, "kind veth", "seen: no device, with and without a bridge as master"),
    Row("containers/eth0", "", WIRELINE, ETHERNET, "as ethernet-pci; seen: upper_* for macvlan, no master"),
    Row("containers/macvlan0", "macvlan", ANY, "kind macvlan", "seen: no device"),
    Row("containers/ipvlan0", "ipvlan", ANY, "kind ipvlan", "Documentation/networking/ipvlan.rst"),
    Row("containers/flannel.1", "vxlan", ANY, "kind vxlan", "seen: DEVTYPE=vxlan, no device"),
    Row("inside-a-container/eth0", "veth", ANY, "kind veth", "seen: the other end, under the name that it has there"),

    # Software
    Row("software/dummy0", "dummy", ANY, "kind dummy", "drivers/net/dummy.c: Ethernet with IFF_NOARP, no parent"),
    Row("software/ifb0", "ifb", ANY, "kind ifb", "seen: Ethernet with IFF_NOARP, no device"),
    Row("software/eni1np1", "netdevsim", ANY, "kind netdevsim",
        "drivers/net/netdevsim/netdev.c: kind netdevsim, Ethernet, with a device on a bus of its own"),
    Row("software/hsr0", "hsr", ANY, "DEVTYPE=hsr", "net/hsr/hsr_device.c: DEVTYPE=hsr; hsr_netlink.c: kind hsr"),
    Row("software/bat0", "batadv", ANY, "Ethernet without a device, kind batadv",
        "net/batman-adv: kind batadv, Ethernet, no parent"),
]
# fmt: on

KINDS = {row.path: row.kind for row in ROWS}


def entries(example: str) -> list[Path]:
    return sorted(path for path in (TREES / example).iterdir())


def uevent(entry: Path) -> dict[str, str]:
    lines = (entry / "uevent").read_text(encoding="ascii").splitlines()
    return dict(line.split("=", 1) for line in lines)


def interface_of(entry: Path) -> Interface:
    """The facts of rtnetlink about this interface, from its tree and from the kinds in the table."""
    flags = int((entry / "flags").read_text(encoding="ascii"), 16)
    hardware = int((entry / "type").read_text(encoding="ascii"))
    made = Interface(int(uevent(entry)["IFINDEX"]), entry.name, hardware, flags, IF_OPER_UP, "", 0, "")
    made = made._replace(kind=KINDS[f"{entry.parent.name}/{entry.name}"])
    if (entry / "master").exists():
        master = entry.parent / (entry / "master").readlink().name
        kind = KINDS[f"{master.parent.name}/{master.name}"]
        made = made._replace(master=int(uevent(master)["IFINDEX"]), member_of=kind)
    return made


def described(example: str, **interfaces: str) -> dict[str, Link]:
    """The links of a machine; patterns as `mobile="usb0 wwan*"`."""
    config = ConnectionsConfig(
        interfaces={ConnectionType(name): tuple(text.split()) for name, text in interfaces.items()}
    )
    state = State([interface_of(entry) for entry in entries(example)], [], [])
    return {link.name: link for link in describe(state, config, sysfs=TREES / example)}


def test_type_is_detected() -> None:
    links = {row.path: described(row.example)[row.interface] for row in ROWS}
    assert {path: (link.type, link.why) for path, link in links.items()} == {
        row.path: (row.type, row.why) for row in ROWS
    }


# What has to be configured


@pytest.mark.parametrize(
    ("interface", "detected", "patterns", "configured"),
    [
        ("modems-as-ethernet/usb0", WIRELINE, {"mobile": "usb* eth[12]"}, (MOBILE, "configured: usb*")),
        ("modems-as-ethernet/eth2", WIRELINE, {"mobile": "usb* eth[12]"}, (MOBILE, "configured: eth[12]")),
        ("dsl-pppoe/ppp0", MOBILE, {"wireline": "ppp0"}, (WIRELINE, "configured: ppp0")),
        ("dsl-bridged/nas0", ANY, {"wireline": "nas0"}, (WIRELINE, "configured: nas0")),
        ("lte-mbim/wwan0.3", ANY, {"mobile": "wwan*"}, (MOBILE, "configured: wwan*")),
        ("bridge/br0", ANY, {"wireline": "br0"}, (WIRELINE, "configured: br0")),
        ("bridge/wlan0", ANY, {"wireless": "wl*"}, (WIRELESS, "configured: wl*")),
        ("bond/bond0", ANY, {"wireline": "bond0"}, (WIRELINE, "configured: bond0")),
        ("vlan/enp1s0.10", ANY, {"wireline": "enp1s0.*"}, (WIRELINE, "configured: enp1s0.*")),
        ("inside-a-container/eth0", ANY, {"wireline": "eth0"}, (WIRELINE, "configured: eth0")),
        ("loopback/lo", ANY, {"wireline": "l[o]"}, (WIRELINE, "configured: l[o]")),
        ("ethernet-pci/enp1s0", WIRELINE, {"mobile": "ENP1S0"}, (WIRELINE, ETHERNET)),
        ("ethernet-pci/enp1s0", WIRELINE, {"wireline": "eth*"}, (WIRELINE, ETHERNET)),
    ],
)
def test_pattern_decides_before_detection(
    interface: str, detected: ConnectionType, patterns: dict[str, str], configured: tuple[ConnectionType, str]
) -> None:
    example, name = interface.split("/")
    link = described(example, **patterns)[name]
    assert described(example)[name].type is detected
    assert (link.type, link.why) == configured


# Which fact decides first


def detected(tmp_path: Path, *, device_type: str = "", holds: str = "", **fields: object) -> tuple[ConnectionType, str]:
    """The type of an interface in whose entry of sysfs these directories are."""
    made = Interface(5, "eth0", ARPHRD_ETHER, IFF_UP | IFF_LOWER_UP, IF_OPER_UP, "", 0, "")
    made = made._replace(**fields)  # type: ignore[arg-type]
    entry = tmp_path / made.name
    entry.mkdir()
    (entry / "uevent").write_text(f"DEVTYPE={device_type}\n" if device_type else "")
    for directory in holds.split():
        (entry / directory).mkdir()
    (link,) = describe(State([made], [], []), ConnectionsConfig(), sysfs=tmp_path)
    return link.type, link.why


EVERYTHING = "device phy80211 wireless"


def test_loopback_decides_first(tmp_path: Path) -> None:
    assert detected(tmp_path, flags=IFF_LOOPBACK, kind="wwan", holds=EVERYTHING) == (ANY, "loopback")


# fmt: off
KINDS_WITHOUT_TREE = [
    "bareudp", "erspan", "geneve", "ip6gre", "ip6gretap", "ipvtap", "macsec", "macvtap", "netkit", "nlmon",
    "openvswitch", "vti6",
]
# fmt: on


@pytest.mark.parametrize("kind", ["bridge", "tun", *KINDS_WITHOUT_TREE])
def test_kind_decides_before_name_hardware_and_sysfs(tmp_path: Path, kind: str) -> None:
    found = detected(tmp_path, kind=kind, name="wwan0", hardware=512, device_type="wwan", holds=EVERYTHING)
    assert found == (ANY, f"kind {kind}")


def test_kind_of_a_modem_decides_before_membership(tmp_path: Path) -> None:
    assert detected(tmp_path, kind="rmnet", master=9, member_of="bridge") == (MOBILE, "kind rmnet")


def test_membership_decides_before_hardware_and_sysfs(tmp_path: Path) -> None:
    found = detected(tmp_path, master=9, member_of="bridge", hardware=512, device_type="wwan", holds=EVERYTHING)
    assert found == (ANY, "member of a bridge")


def test_wifi_decides_before_device_type_and_name(tmp_path: Path) -> None:
    found = detected(tmp_path, name="wwan0", device_type="wwan", holds=EVERYTHING)
    assert found == (WIRELESS, "sysfs phy80211")


@pytest.mark.parametrize(("name", "pattern"), [("ppp7", "ppp*"), ("wwan7", "wwan*"), ("rmnet_data7", "rmnet*")])
def test_name_decides_before_ethernet(tmp_path: Path, name: str, pattern: str) -> None:
    assert detected(tmp_path, name=name, device_type="gadget", holds="device") == (MOBILE, f"named {pattern}")


def test_interface_without_sysfs_entry_has_no_type(tmp_path: Path) -> None:
    made = Interface(5, "eth0", ARPHRD_ETHER, IFF_UP | IFF_LOWER_UP, IF_OPER_UP, "", 0, "")
    (link,) = describe(State([made], [], []), ConnectionsConfig(), sysfs=tmp_path)
    assert (link.type, link.why) == (ANY, "not in sysfs")


@pytest.mark.parametrize("closed", ["", "eth0", "eth0/uevent"])
def test_unreadable_sysfs_is_reported(tmp_path: Path, closed: str) -> None:
    """A sandbox may hide sysfs: the type is then unknown, and the conditions are still checked."""
    made = Interface(5, "eth0", ARPHRD_ETHER, IFF_UP | IFF_LOWER_UP, IF_OPER_UP, "", 0, "")
    (tmp_path / "eth0/device").mkdir(parents=True)
    (tmp_path / "eth0/uevent").touch()
    (tmp_path / closed).chmod(0)
    with without_privileges(tmp_path) if IS_ROOT else nullcontext():
        (link,) = describe(State([made], [], []), ConnectionsConfig(), sysfs=tmp_path)
    (tmp_path / closed).chmod(0o700)
    assert (link.type, link.why, link.missing) == (ANY, "sysfs unreadable", "no address")


# The table and the trees


def test_table_and_trees_are_complete() -> None:
    found = [f"{entry.parent.name}/{entry.name}" for entry in sorted(TREES.glob("*/*"))]
    assert found == sorted(row.path for row in ROWS)


@pytest.mark.parametrize("example", sorted({row.example for row in ROWS}))
def test_tree_is_consistent(example: str) -> None:
    """Each interface has its own index, and links lead up to others of the same machine."""
    found = entries(example)
    assert [uevent(entry)["INTERFACE"] for entry in found] == [entry.name for entry in found]
    assert len({uevent(entry)["IFINDEX"] for entry in found}) == len(found)
    for link in filter(Path.is_symlink, (TREES / example).rglob("*")):
        above = link.readlink().name
        assert link.readlink() == Path("..", above)
        assert link.name in ("master", f"upper_{above}")
        assert (link.parent / f"upper_{above}").is_symlink()
        assert (TREES / example / above / "uevent").exists()
