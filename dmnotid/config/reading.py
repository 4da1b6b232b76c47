"""A configuration read in a process of its own, which ends with it.

What reading takes, the YAML library above all, is memory that the daemon would never need again; in another process it
never has it. Nor does a long file or a slow disk hold up a datagram, and what a file might do to its reader ends there.
"""

import contextlib
import gc
import os
import pickle
import select
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

from dmnotid.config.values import Config
from dmnotid.errors import ConfigError, ConfigProblem
from dmnotid.host.trust import check_trusted_path

PATIENCE: Final = 600
"""How long (seconds) reading may take: a disk that hangs must not keep a reload from ever being tried again.

Tens of thousands of servers take a slow device minutes, above all without libyaml.
"""

_CHUNK: Final = 65_536
"""Octets that are taken at once: as many as the pipe holds."""

_MOMENT: Final = 100
"""How long (milliseconds) the end of a process is waited for after SIGKILL."""

_STREAMS: Final = 3
"""Descriptors below are the standard streams'."""


class Reading:
    """A configuration on its way: a process reads the file, and what it found comes through a pipe.

    `wait` gets the outcome; where nothing may wait, `receive` does until that was all, and then `outcome`.
    """

    def __init__(self, file: Path) -> None:
        """Begin. Raises ConfigError where there can be no process."""
        self._file = file
        self._octets = bytearray()
        try:
            self._pipe, there = os.pipe()
            try:
                # libuv opens two in the new process before anything else, and aborts it where it can't.
                for spare in os.pipe():
                    os.close(spare)
                self._process = os.fork()
            except BaseException:
                os.close(self._pipe)
                os.close(there)
                raise
        except OSError as error:
            message = f"no process can be had to read it: {error.strerror}"
            raise self._problem(message) from error
        if self._process == 0:
            os.close(self._pipe)
            _read_and_exit(file, there)
        os.close(there)

    def fileno(self) -> int:
        """Return what becomes readable when there is something to `receive`."""
        return self._pipe

    def receive(self) -> bool:
        """Take what has come, or wait for it; whether that was the end."""
        octets = os.read(self._pipe, _CHUNK)
        self._octets += octets
        return not octets

    def outcome(self) -> Config:
        """Return what was read, once the end was received. Raises ConfigError with all that is wrong."""
        os.close(self._pipe)
        _, status = os.waitpid(self._process, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            if code == -signal.SIGALRM:
                message = f"not read within {PATIENCE} s"
            else:
                end = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
                message = f"the process that read it {end}"
            raise self._problem(message)
        found = pickle.loads(self._octets)  # noqa: S301 - by this program, of which the other process was a copy
        if isinstance(found, Config):
            return found
        if isinstance(found, ConfigError):
            raise found
        raise RuntimeError(found)

    def wait(self) -> Config:
        """Wait for the end, and return the outcome. Raises ConfigError with all that is wrong."""
        try:
            while not self.receive():
                pass
        except BaseException:
            self.give_up()
            raise
        return self.outcome()

    def give_up(self) -> None:
        """End it without an outcome. It is waited for a moment only: it may hang on a disk that never answers."""
        os.kill(self._process, signal.SIGKILL)
        poll, ended = select.poll(), False
        poll.register(self._pipe, select.POLLIN)
        while poll.poll(_MOMENT) and not (ended := self.receive()):
            pass
        os.close(self._pipe)
        if ended:
            os.waitpid(self._process, 0)

    def _problem(self, message: str) -> ConfigError:
        return ConfigError((ConfigProblem(str(self._file), 0, 0, "", message),))


def _read_and_exit(file: Path, pipe: int) -> NoReturn:
    """Be the process that reads. What it has of its parent is not its own: none of it is used or ended in order.

    The pipe's end is for the kernel to close, behind all else of the process: who sees it needn't wait any more.
    """
    status = 1
    try:
        signal.alarm(PATIENCE)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what asks for a reload may ask all that look like the daemon
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        gc.freeze()
        _close_all_but(pipe)
        octets = pickle.dumps(_find(file), pickle.HIGHEST_PROTOCOL)
        with open(pipe, "wb", closefd=False) as stream:
            stream.write(octets)
        status = 0
    except Exception:  # noqa: BLE001 - nobody is there to take it
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _find(file: Path) -> Config | ConfigError | str:
    """Return the configuration, or what is wrong with it, or the traceback of a bug."""
    from dmnotid.config.loading import load_config  # noqa: PLC0415 - in this process alone

    try:
        return load_config(file, os.environ, check_trusted_path)
    except ConfigError as error:
        return error
    except Exception:  # noqa: BLE001 - goes to who waits
        import traceback  # noqa: PLC0415

        return traceback.format_exc().rstrip()


def _close_all_but(pipe: int) -> None:
    """Let go of the parent's sockets and files: a process that hangs must not keep them from the next daemon."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib is slower by what the start is measured in
            if (number := int(name)) >= _STREAMS and number != pipe:
                with contextlib.suppress(OSError):
                    os.close(number)
