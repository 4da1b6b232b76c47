"""Network namespaces for tests, with real links of the kernel; their traffic stays inside.

Each Namespace has a second one for the far ends of its veth pairs, which keeps its own list of interfaces short.
Needs root and iproute2; `why_not()` returns what is missing.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast

import pytest

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000  # linux/sched.h

_numbers = itertools.count()


def why_not() -> str:
    """Return why no network namespace can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (iproute2)"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        return "unshare of a network namespace is not permitted here"
    return ""


_WHY_NOT = why_not()

needs_namespace = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)
"""Skips if `why_not` returns a reason; mark such tests as `root` too."""


def in_namespace(test: T) -> T:
    """Mark a test that makes network namespaces, which needs root."""
    return cast("T", pytest.mark.root(needs_namespace(cast("Any", test))))


class Namespace:
    """A network namespace of a unique name, with loopback up and nothing else; removed by `close`.

    Duplicate address detection is off (IPv6 addresses are usable at once) unless `dad`, IPv6 itself is unless `ipv6`.
    """

    def __init__(self, *, ipv6: bool = True, dad: bool = False) -> None:
        self.name = f"dmnotid-{os.getpid()}-{next(_numbers)}"
        self.far_name = f"{self.name}-far"
        try:
            for name in (self.name, self.far_name):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
                self._set_up(name, ipv6=ipv6, dad=dad)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove both namespaces with everything in them. Closing twice is harmless."""
        for name in (self.name, self.far_name):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def add_veth(self, name: str, *, up: bool = True) -> None:
        """Add an interface whose far end, of the same name, is in the second namespace. The far end is up."""
        _ip("-n", self.name, "link", "add", name, "type", "veth", "peer", "name", name, "netns", self.far_name)
        self.far_ip("link", "set", name, "up")
        if up:
            self.ip("link", "set", name, "up")
            self.wait_up(name)

    def add_uplink(self, name: str, number: int = 1, metric: int = 100) -> None:
        """Add an interface with the address 198.51.NUMBER.1/24 and a default route."""
        self.add_veth(name)
        gateway = f"default via 198.51.{number}.254 dev {name} metric {metric}"
        self.ip_batch([f"addr add 198.51.{number}.1/24 dev {name}", f"route append {gateway}"])

    def wait_up(self, name: str) -> None:
        """Wait until the kernel reports an interface as up, a moment after both ends are. Raises TimeoutError."""
        pause = threading.Event()
        for _ in range(2000):
            if "state UP" in self.ip("-o", "link", "show", "dev", name):
                return
            pause.wait(0.01)
        raise TimeoutError(name)

    def ip(self, *arguments: str) -> str:
        """Run `ip` inside and return its output. Raises OSError if it fails."""
        return _ip("-n", self.name, *arguments)

    def ip_batch(self, lines: list[str]) -> None:
        """Run many `ip` commands inside, in one process."""
        _ip("-n", self.name, "-batch", "-", given="\n".join(lines))

    def far_ip(self, *arguments: str) -> str:
        """Run `ip` at the far end of the veth pairs."""
        return _ip("-n", self.far_name, *arguments)

    def sysctl(self, path: str, value: str) -> None:
        """Set `/proc/sys/net/PATH` inside."""
        self.call(Path("/proc/sys/net", path).write_text, value)

    def run(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - subprocess.run's own
        """Run a command inside, with a sysfs that shows this namespace; text in and out, output captured."""
        return subprocess.run(self._inside(argv), capture_output=True, text=True, check=False, **options)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - subprocess.Popen's own
        """Start a command inside, with a sysfs that shows this namespace; `ip` becomes that command (same pid)."""
        return subprocess.Popen(self._inside(argv), text=True, **options)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread that has entered the namespace (/sys stays that of the caller)."""
        return call_inside(Path("/run/netns", self.name), function, *args, **kwargs)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into the namespace (/sys stays that of the caller)."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(Path("/run/netns", self.name))
            yield
        finally:
            _set_namespace(own)
            os.close(own)

    def far_call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread that has entered the namespace at the far end."""
        return call_inside(Path("/run/netns", self.far_name), function, *args, **kwargs)

    def _inside(self, argv: tuple[str, ...]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    @staticmethod
    def _set_up(name: str, *, ipv6: bool, dad: bool) -> None:
        settings = {"all/disable_ipv6": str(int(not ipv6)), "default/accept_dad": str(int(dad))}
        with ThreadPoolExecutor(1, initializer=_enter, initargs=(Path("/run/netns", name),)) as thread:
            for setting, value in settings.items():
                path = Path("/proc/sys/net/ipv6/conf", setting)
                # A kernel without IPv6 has no such file.
                if path.exists():
                    thread.submit(path.write_text, value).result()


def call_inside(namespace: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread that has entered a network namespace, given by its file; sockets stay in there."""
    with ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace,)) as thread:
        return thread.submit(function, *args, **kwargs).result()


def _ip(*arguments: str, given: str | None = None) -> str:
    # The name of an interface is any octets.
    done = subprocess.run(
        ["ip", *arguments], input=given, capture_output=True, text=True, errors="surrogateescape", check=False
    )
    if done.returncode:
        message = f"ip {' '.join(arguments)}: {done.stderr.strip()}"
        raise OSError(message)
    return done.stdout


def _enter(namespace: Path) -> None:
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(descriptor)
    finally:
        os.close(descriptor)


def _set_namespace(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns of a network namespace")
