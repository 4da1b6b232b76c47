"""The event loop of a daemon, and the signal dispositions that its child processes inherit."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

from dmnotid.host.log import logger

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that a daemon has handlers for."""

# CPython ignores these for itself, and subprocess restores them in a child.
_IGNORED_BY_PYTHON: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


def reset_signals() -> None:
    """Unblock all signals and restore the default action of those that the parent process ignored.

    A parent such as nohup ignores SIGHUP, and a hook would inherit that.
    """
    # A blocked signal remains blocked across execve(2), in a hook too.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        # If SIGCHLD were ignored, hooks would be reaped automatically and their exit status lost.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def run_to_completion(
    main: Coroutine[Any, Any, None], make_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> None:
    """Run a coroutine on a new event loop, that of `loop_factory` by default. Raises what `main` raises."""

    async def run() -> None:
        await main
        # The loop removes its signal handlers when it closes: a signal after that would kill the process by its default
        # action, and an orderly stop would end with the wrong exit status.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)

    with asyncio.Runner(loop_factory=make_loop or loop_factory()) as runner:
        runner.run(run())


def loop_name() -> str:
    """Return which implementation of the event loop runs: `uvloop` or `asyncio`."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory of event loops; if uvloop can't be imported, log that and return asyncio's."""
    try:
        # There is no wheel for every platform (armv7, musl).
        import uvloop  # noqa: PLC0415
    except ImportError as error:
        logger.warning("uvloop missing", problem=str(error), instead="asyncio, which takes fewer datagrams a second")
        return asyncio.new_event_loop
    return uvloop.new_event_loop
