"""A configuration read in a process of its own: the same outcome as in this one, and nothing of either in the other."""

import errno
import gc
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config import loading as configfile
from dmnotid.config.loading import load_config
from dmnotid.config.reading import Reading
from dmnotid.errors import ConfigError
from tests.support import DEADLINE, SERVER_ID, descriptors, wait_until, write_config


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reading]:
    """A reading that would take long; it has begun."""
    told = tmp_path / "told"

    def hang(*_: object) -> None:
        told.touch()
        time.sleep(10 * DEADLINE)

    monkeypatch.setattr(configfile, "load_config", hang)
    reading = Reading(write_config(tmp_path))
    wait_until(told.exists)
    yield reading
    if reading._pipe in {int(found.split()[0]) for found in descriptors()}:
        reading.give_up()


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """Let no more than so many be opened."""
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    taken: list[int] = []
    while not taken or taken[-1] < highest:
        taken.append(os.dup(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


def assert_reaped(reading: Reading) -> None:
    with pytest.raises(ChildProcessError):
        os.waitpid(reading._process, os.WNOHANG)


def replaced(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    monkeypatch.setattr(configfile, "load_config", load)


def test_a_configuration(tmp_path: Path) -> None:
    everything: dict[str, Any] = {
        "environment": {"LANG": "C"},
        "connections": {"mobile": {"interfaces": ["wwan*"]}, "reach": ["192.0.2.0/24"]},
        "listen": ["127.0.0.1:2948", "[::1]:2948"],
    }
    command = everything.pop("environment")
    file = write_config(tmp_path, hook={"command": ["/bin/true", "{server_id}"], "environment": command}, **everything)
    before = descriptors()
    read = Reading(file).wait()
    assert read == load_config(file, os.environ)
    assert read.hook.environment == {"LANG": "C"}
    assert next(iter(read.rules.servers)).id == SERVER_ID
    assert descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_long_one(tmp_path: Path) -> None:
    """Far longer than what a pipe holds."""
    servers = [{"id": f"server-{number}", "secret": {"text": f"{number:04}" * 500}} for number in range(200)]
    file = write_config(tmp_path, servers=servers)
    assert Reading(file).wait() == load_config(file, os.environ)


def test_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a secret of systemd's")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    file = write_config(tmp_path, servers=[{"id": SERVER_ID, "secret": {"credential": "token"}}])
    assert Reading(file).wait().servers[0].secret == b"a secret of systemd's"


@pytest.mark.parametrize("text", ["", "servers: 1\nhook: {}\nbogus: 2\n", "a: [", "\xff"])
def test_problems(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dmnotid.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as wanted:
        load_config(file, os.environ)
    with pytest.raises(ConfigError) as found:
        Reading(file).wait()
    assert found.value.problems == wanted.value.problems


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        Reading(tmp_path / "none").wait()


def test_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lambda *_: dict[str, str]()["a bug"])
    with pytest.raises(RuntimeError, match=r"(?s)^Traceback .*\nKeyError: 'a bug'$"):
        Reading(write_config(tmp_path)).wait()


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by signal 9"),
        (lambda: os._exit(3), "ended with status 3"),
        (lambda: (_ for _ in ()).throw(SystemExit), "ended with status 1"),
    ],
)
def test_a_reader_that_does_not_come_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[], object], said: str
) -> None:
    replaced(monkeypatch, lambda *_: end())
    file = write_config(tmp_path)
    with pytest.raises(ConfigError) as raised:
        Reading(file).wait()
    assert str(raised.value) == f"{file}: the process that read it {said}"


@pytest.mark.parametrize("call", ["pipe", "fork"])
def test_no_process_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail() -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    file, before = write_config(tmp_path), descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(ConfigError) as raised:
            Reading(file)
    said = "no process can be had to read it: Resource temporarily unavailable"
    assert str(raised.value) == f"{file}: {said}"
    assert descriptors() == before


def test_a_process_that_reads_holds_nothing_of_its_parent(hanging: Reading) -> None:
    """Its sockets above all: a daemon that begins after this one must get them."""
    assert len(descriptors()) > 4
    held = sorted(int(entry.name) for entry in Path(f"/proc/{hanging._process}/fd").iterdir())
    assert held[:3] == [0, 1, 2]
    assert len(held) == 4
    assert Path(f"/proc/{hanging._process}/fd/{held[3]}").readlink().name.startswith("pipe:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGPIPE])
def test_a_signal_ends_the_process_that_reads(hanging: Reading, number: signal.Signals) -> None:
    os.kill(hanging._process, number)
    with pytest.raises(ConfigError, match=f"ended by signal {number.value}$"):
        hanging.wait()


def test_asked_to_reload_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by who asks all processes of that name, or all of a control group."""

    def load(*arguments: Any) -> Any:  # noqa: ANN401
        os.kill(os.getpid(), signal.SIGHUP)
        return load_config(*arguments)

    replaced(monkeypatch, load)
    assert Reading(write_config(tmp_path)).wait().servers


def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmnotid.config.reading.PATIENCE", 1)
    replaced(monkeypatch, lambda *_: time.sleep(10 * DEADLINE))
    file = write_config(tmp_path)
    with pytest.raises(ConfigError) as raised:
        Reading(file).wait()
    assert str(raised.value) == f"{file}: not read within 1 s"


def test_the_end_of_the_pipe_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody waits for it who may not wait."""
    monkeypatch.setattr(os, "_exit", lambda _: time.sleep(10 * DEADLINE))
    reading = Reading(write_config(tmp_path))
    assert not reading.receive()
    assert select.select([reading], [], [], 0.3) == ([], [], [])
    os.kill(reading._process, signal.SIGKILL)
    with pytest.raises(ConfigError, match=r"ended by signal 9$"):
        reading.wait()


def test_an_interrupt_while_it_is_waited_for(hanging: Reading) -> None:
    """Ctrl-C at the start."""
    before = descriptors()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            hanging.wait()
    finally:
        signal.signal(signal.SIGALRM, former)
    assert len(descriptors()) == len(before) - 1
    assert_reaped(hanging)


def test_what_goes_wrong_behind_the_reading_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    replaced(monkeypatch, lambda *_: lambda: None)
    with pytest.raises(ConfigError, match=r"ended with status 1$"):
        Reading(write_config(tmp_path)).wait()
    assert "Can't pickle" in capfd.readouterr().err


@pytest.mark.parametrize("left", range(6))
def test_hardly_a_descriptor_is_left(tmp_path: Path, left: int) -> None:
    file = write_config(tmp_path)
    load_config(file, os.environ)  # what is imported there must be there
    pytest.importorskip("uvloop").new_event_loop().close()  # and libuv, which has a pipe of its own
    before = descriptors()
    with few_descriptors(left):
        if left < 4:
            with pytest.raises(ConfigError, match=r": no process can be had to read it: Too many open files$"):
                Reading(file)
        else:
            assert Reading(file).wait().servers
    assert descriptors() == before


def test_given_up(hanging: Reading) -> None:
    before = descriptors()
    hanging.give_up()
    assert len(descriptors()) == len(before) - 1
    assert_reaped(hanging)


def test_what_is_rubbish_here_is_left_alone_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptors may have other files' numbers by then."""

    class Closing:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            (tmp_path / f"collected by {os.getpid() == parent}").touch()

    parent = os.getpid()
    gc.collect()
    Closing()

    def collect(*_: object) -> Any:  # noqa: ANN401
        gc.collect()
        return load_config(*_)  # type: ignore[arg-type]

    replaced(monkeypatch, collect)
    Reading(write_config(tmp_path)).wait()
    assert not (tmp_path / "collected by False").exists()
