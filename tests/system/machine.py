"""A Debian system with systemd as PID 1, which boots in two seconds without an image or a hypervisor.

`make_root` makes a root directory from this machine's own package sources. A `Machine` is a tmpfs overlay on it, with
its own process, mount, network, host name, IPC and cgroup namespaces, and systemd as their first process. All mounts
are made inside, so they are removed when that process ends. It ends with this program in any case.

Inside, loopback is up, and there is no other link; veth interfaces can be made, dummy ones can't. Needs root.
"""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tests.netns import P, T, call_inside
from tests.support import wait_until

PACKAGES: Final = (
    "systemd",
    "dbus",
    "iproute2",
    "ofono",
    "python3-jeepney",
    "python3-structlog",
    "python3-uvloop",
    "python3-venv",
    "python3-yaml",
    "strace",
)
"""The packages of the root besides those of the smallest Debian."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final = ("PATH=" + PATH, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=cat")

BOOT: Final = 60.0
"""Maximum time until all services of a machine are up, in seconds; one or two are usual."""

_TOOLS: Final = ("mmdebstrap", "unshare", "nsenter", "setpriv", "pivot_root", "mount", "ip")

# Units that delay the boot or need hardware, and that no test needs.
_MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer",
    "dundee.service", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target", "ofono.service",
    "systemd-logind.service",
    "systemd-modules-load.service", "systemd-sysctl.service", "systemd-timesyncd.service",
    "systemd-udev-trigger.service", "systemd-udevd.service",
)  # fmt: skip

# $1 is the name of the cgroup, $2 an empty directory. The root of a new cgroup namespace is the cgroup of the process
# that makes it, so the process moves into a cgroup of its own first. No other process sees this mount.
_ENTER_CGROUP: Final = """
mount -t cgroup2 cgroup2 "$2"
mkdir -p "$2/$1"
echo $$ >"$2/$1/cgroup.procs"
umount "$2"
shift 2
exec unshare --fork --kill-child --pid --net --uts --ipc --cgroup --mount --propagation private "$@"
"""

# $1 is the lower directory of the overlay, $2 an empty directory. The first line of output is the number of this
# process outside, because /proc is still that of the parent; systemd keeps this number.
_BOOT: Final = """
read -r pid _ </proc/self/stat
echo "$pid"
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/shm dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir run/old
pivot_root . run/old
umount -l /run/old
rmdir /run/old
# As systemd makes them outside of containers: a service then sees what systemd mounts for it, such as credentials.
mount --make-rshared /
ip link set lo up
exec env -i container=test PATH="$PATH" /lib/systemd/systemd --system --unit=multi-user.target --show-status=0
"""

_REMOVE_CGROUP: Final = """
mount -t cgroup2 cgroup2 "$2"
[ ! -d "$2/$1" ] || find "$2/$1" -depth -type d -exec rmdir {} +
"""

_numbers = itertools.count()


def why_not() -> str:
    """Return why no machine can be booted here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, to boot a systemd of its own"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (mmdebstrap, util-linux, mount, iproute2)"
    probe = ["unshare", "--fork", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--mount", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "namespaces cannot be made here"
    return ""


def make_root(root: Path, release: str = "", packages: Sequence[str] = PACKAGES) -> None:
    """Make a small Debian in an empty directory, from the sources, keys and proxies of this machine's own apt.

    Its release is that of this machine, unless another one is given. Raises OSError with the error of mmdebstrap.
    """
    try:
        _bootstrap(root, release, packages)
    except BaseException:
        # An incomplete root must not be used later.
        shutil.rmtree(root, ignore_errors=True)
        raise
    # Without this file systemd would treat the boot as the first one, and enable every unit; an empty one it fills.
    Path(root, "etc/machine-id").write_text("")
    for unit in _MASKED:
        Path(root, "etc/systemd/system", unit).symlink_to("/dev/null")
    journald = Path(root, "etc/systemd/journald.conf.d/test.conf")
    journald.parent.mkdir()
    journald.write_text("[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n")


def _bootstrap(root: Path, release: str, packages: Sequence[str]) -> None:
    apt = Path("/etc/apt")
    own = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list")), *apt.glob("sources.list.d/*.sources")]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as options:
        # Proxies and time-outs, but no directories, which must be those of the new root.
        options.write(subprocess.run(["apt-config", "dump", "Acquire"], **_CAPTURED, check=True).stdout)
        options.flush()
        done = subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(packages)}",
             f"--aptopt={options.name}", "--dpkgopt=force-unsafe-io", release, root,
             # For a given release, mmdebstrap has the sources itself.
             *(file for file in own if not release and file.is_file() and file.stat().st_size)],
            **_CAPTURED, check=False,
        )  # fmt: skip
    if done.returncode:
        raise OSError(done.stderr)


def clear_away(name: str) -> None:
    """Remove the directory of a machine that has ended, and its cgroups, which become empty a moment later."""
    with tempfile.TemporaryDirectory() as empty:
        wait_until(lambda: _run_private(_REMOVE_CGROUP, name, empty))
    shutil.rmtree(_directory(name), ignore_errors=True)


def _directory(name: str) -> Path:
    return Path(tempfile.gettempdir(), name)


_CAPTURED: Final[dict[str, Any]] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}


class Machine:
    """A machine that runs during the `with` block."""

    def __init__(self, root: Path) -> None:
        """`root` is a directory of `make_root`, which is not changed."""
        self._root = root
        self._name = f"dmnotid-test-{os.getpid()}-{next(_numbers)}"
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine as a power cut does. Closing twice is harmless."""
        if self._process is None:
            return
        # When the first process of a namespace ends, the kernel kills all others and removes the mounts.
        with suppress(ProcessLookupError):
            os.kill(self._pid or self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        clear_away(self._name)

    def path(self, inside: str | Path) -> Path:
        """Return the path by which this process reaches a file inside, if no absolute symbolic link is on it."""
        return Path(f"/proc/{self._pid}/root", str(inside).lstrip("/"))

    def write(self, inside: str | Path, content: str | bytes, *, mode: int = 0o644, owner: str = "") -> None:
        """Write a file inside, and make the missing directories above it."""
        file = self.path(inside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        if owner:
            self.run("chown", owner, str(inside))

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401 - subprocess.Popen's own
        """Start a command inside, as root."""
        return subprocess.Popen(self._inside(argv), text=True, **options)

    def attempt(self, *argv: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root; it may fail."""
        return subprocess.run(self._inside(argv), capture_output=True, text=True, input=given or "", check=False)

    def run(self, *argv: str, given: str | None = None) -> str:
        """Run a command inside, as root, and return its output. Raises AssertionError, with all output, if it fails."""
        done = self.attempt(*argv, given=given)
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def systemd(self) -> int:
        """The version of systemd."""
        return int(self.run("systemctl", "--version").split()[1])

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, as systemd reports them."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def socket(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """Make a datagram socket in the network of the machine; every thread of this process can use it."""
        return self.call(socket.socket, family, socket.SOCK_DGRAM)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread inside the network of the machine; sockets that it makes remain there."""
        return call_inside(Path(f"/proc/{self._pid}/ns/net"), function, *args, **kwargs)

    def pids(self) -> list[int]:
        """Return the numbers that the processes inside have outside."""
        own = Path(f"/proc/{self._pid}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            # The process may have ended since.
            with suppress(OSError):
                if (process / "ns/pid").readlink() == own:
                    found.append(int(process.name))
        return found

    def _inside(self, argv: Sequence[str]) -> list[str]:
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        return ["nsenter", f"--target={self._pid}", *namespaces, "--", "env", "-i", *ENVIRONMENT, *argv]

    def _boot(self) -> None:
        directory = _directory(self._name)
        empty, console = directory / "empty", directory / "console"
        directory.mkdir(mode=0o700, exist_ok=True)
        empty.mkdir(exist_ok=True)
        enter = ["bash", "-ec", _ENTER_CGROUP, "enter", self._name, str(empty)]
        boot = ["bash", "-ec", _BOOT, "boot", str(self._root), str(empty)]
        with console.open("w") as output:
            # Killed with its parent. In a session of its own: an interrupt is for the tests, which close the machine.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", *enter, *boot],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True, start_new_session=True,
            )  # fmt: skip
            self._pid = _read_number(self._process.stdout)
        assert self._pid, f"the machine did not boot: {console.read_text()}"
        self._wait(lambda: self.path("/run/systemd/private").is_socket(), console)
        done = self.attempt("timeout", str(BOOT), "systemctl", "is-system-running", "--wait")
        failed = "" if done.stdout == "running\n" else self.attempt("systemctl", "--failed", "--plain").stdout
        assert done.stdout == "running\n", f"{done.stdout}{done.stderr}{failed}{console.read_text()}"

    def _wait(self, condition: Callable[[], bool], console: Path) -> None:
        deadline = time.monotonic() + BOOT
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, f"systemd ended: {console.read_text()}"
            assert time.monotonic() < deadline, f"systemd does not start: {console.read_text()}"
            time.sleep(0.01)


def _read_number(stream: IO[str] | None) -> int:
    """Read a line with a number; 0 if the other side ended without one."""
    assert stream is not None
    return int(stream.readline() or 0)


def _run_private(script: str, *arguments: str | Path) -> bool:
    """Run a shell script in a mount namespace of its own, and return whether it succeeded."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *arguments]
    return subprocess.run(command, **_CAPTURED, check=False).returncode == 0
