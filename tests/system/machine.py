"""A whole Debian with a real systemd as PID 1, booted in a second or two and thrown away: no image, no hypervisor.

`make_root` makes a root directory from this machine's own package sources. A `Machine` is a tmpfs overlay on it, with
its own process, mount, network, host name, IPC and cgroup namespaces, and systemd as their first process. All mounts
are made inside, so nothing is left of it when that process ends; and it ends with this program, however that ends.

Inside, loopback is up and reaches nobody; pairs of veth interfaces can be made, dummy ones can't. Needs root.
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
"""What the root has besides the smallest Debian there is."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final = ("PATH=" + PATH, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "SYSTEMD_PAGER=cat")

BOOT: Final = 60.0
"""How long a machine may take until all of its services are up (seconds); it takes one or two."""

_TOOLS: Final = ("mmdebstrap", "unshare", "nsenter", "setpriv", "pivot_root", "mount", "ip")

# What takes time at the boot, or wants hardware, and what nobody here asks for.
_MASKED: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "dpkg-db-backup.timer",
    "dundee.service", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty.target", "ofono.service",
    "systemd-logind.service",
    "systemd-modules-load.service", "systemd-sysctl.service", "systemd-timesyncd.service",
    "systemd-udev-trigger.service", "systemd-udevd.service",
)  # fmt: skip

# $1 is the cgroup's name, $2 an empty directory. A cgroup namespace begins at the cgroup that a process is in when it
# makes one: so first into one of its own. What is mounted here is seen by nobody else.
_ENTER_CGROUP: Final = """
mount -t cgroup2 cgroup2 "$2"
mkdir -p "$2/$1"
echo $$ >"$2/$1/cgroup.procs"
umount "$2"
shift 2
exec unshare --fork --kill-child --pid --net --uts --ipc --cgroup --mount --propagation private "$@"
"""

# $1 is the root below, $2 an empty directory. The first line out is this process's number as the parent sees it, for
# /proc is still the parent's: systemd keeps it.
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
# As systemd makes them where it is on its own: what it mounts for a service (credentials) is seen by that service.
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
    """Say why no machine can be booted here; nothing where one can."""
    if os.geteuid() != 0:
        return "needs root, to boot a systemd of its own"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (mmdebstrap, util-linux, mount, iproute2)"
    probe = ["unshare", "--fork", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--mount", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "namespaces can't be made here"
    return ""


def make_root(root: Path, release: str = "") -> None:
    """Make a small Debian in an empty directory, from the sources, keys and proxies of this machine's own apt.

    It is of this machine's release, as its sources are, or of another one. Raises OSError with mmdebstrap's error.
    """
    try:
        _bootstrap(root, release)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)  # half of one must not pass for one
        raise
    # Empty: a first boot would ask questions and enable every unit, this one makes a number of its own.
    Path(root, "etc/machine-id").write_text("")
    for unit in _MASKED:
        Path(root, "etc/systemd/system", unit).symlink_to("/dev/null")
    journald = Path(root, "etc/systemd/journald.conf.d/test.conf")
    journald.parent.mkdir()
    journald.write_text("[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n")


def _bootstrap(root: Path, release: str) -> None:
    apt = Path("/etc/apt")
    own = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list")), *apt.glob("sources.list.d/*.sources")]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as options:
        # Proxies, time-outs and the like. Directories aren't in it: those are to be the new root's.
        options.write(subprocess.run(["apt-config", "dump", "Acquire"], **_CAPTURED, check=True).stdout)
        options.flush()
        done = subprocess.run(
            ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}",
             f"--aptopt={options.name}", "--dpkgopt=force-unsafe-io", release, root,
             # mmdebstrap knows the sources of a release.
             *(file for file in own if not release and file.is_file() and file.stat().st_size)],
            **_CAPTURED, check=False,
        )  # fmt: skip
    if done.returncode:
        raise OSError(done.stderr)


def clear_away(name: str) -> None:
    """Remove what can be left of a machine that has ended: a directory, and cgroups that are empty in a moment."""
    with tempfile.TemporaryDirectory() as empty:
        wait_until(lambda: _run_private(_REMOVE_CGROUP, name, empty))
    shutil.rmtree(_directory(name), ignore_errors=True)


def _directory(name: str) -> Path:
    return Path(tempfile.gettempdir(), name)


_CAPTURED: Final[dict[str, Any]] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}


class Machine:
    """A booted machine, from `with` until its end."""

    def __init__(self, root: Path) -> None:
        """`root` is what `make_root` made; it stays as it is. Nothing runs before `with`."""
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
        """End it as a cut of the power does; no harm when it's done twice."""
        if self._process is None:
            return
        # With the first process of a namespace every other one in it is killed, and its mounts are gone.
        with suppress(ProcessLookupError):
            os.kill(self._pid or self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        clear_away(self._name)

    def path(self, inside: str | Path) -> Path:
        """Return a path by which this process reaches a file inside; no link on it may be an absolute one."""
        return Path(f"/proc/{self._pid}/root", str(inside).lstrip("/"))

    def write(self, inside: str | Path, content: str | bytes, *, mode: int = 0o644, owner: str = "") -> None:
        """Write a file inside, and the directories above it where there are none."""
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
        """Run a command inside, as root, that may fail."""
        return subprocess.run(self._inside(argv), capture_output=True, text=True, input=given or "", check=False)

    def run(self, *argv: str, given: str | None = None) -> str:
        """Run a command inside, as root; its output. AssertionError, with what it said, where it fails."""
        done = self.attempt(*argv, given=given)
        assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """What systemd tells of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in properties)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def socket(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """Make a datagram socket in the machine's network; it may be used in any thread of this process."""
        return self.call(socket.socket, family, socket.SOCK_DGRAM)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread that is in the machine's network; the sockets that it makes stay there."""
        return call_inside(Path(f"/proc/{self._pid}/ns/net"), function, *args, **kwargs)

    def pids(self) -> list[int]:
        """The numbers that the processes inside have for this one."""
        own = Path(f"/proc/{self._pid}/ns/pid").readlink()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone since
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
            # Gone with its parent, and out of the terminal's reach: an interrupt is for the tests, which then close it.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", *enter, *boot],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True, start_new_session=True,
            )  # fmt: skip
            self._pid = _read_number(self._process.stdout)
        assert self._pid, f"the machine didn't come up: {console.read_text()}"
        self._wait(lambda: self.path("/run/systemd/private").is_socket(), console)
        done = self.attempt("timeout", str(BOOT), "systemctl", "is-system-running", "--wait")
        failed = "" if done.stdout == "running\n" else self.attempt("systemctl", "--failed", "--plain").stdout
        assert done.stdout == "running\n", f"{done.stdout}{done.stderr}{failed}{console.read_text()}"

    def _wait(self, condition: Callable[[], bool], console: Path) -> None:
        deadline = time.monotonic() + BOOT
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, f"systemd ended: {console.read_text()}"
            assert time.monotonic() < deadline, f"systemd doesn't come up: {console.read_text()}"
            time.sleep(0.01)


def _read_number(stream: IO[str] | None) -> int:
    """Read a line with a number; 0 where the other side ended without."""
    assert stream is not None
    return int(stream.readline() or 0)


def _run_private(script: str, *arguments: str | Path) -> bool:
    """Run a shell script whose mounts nobody else sees; whether it went well."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *arguments]
    return subprocess.run(command, **_CAPTURED, check=False).returncode == 0
