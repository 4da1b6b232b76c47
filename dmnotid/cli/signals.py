"""How a process takes signals that will start others."""

import signal
from typing import Final

_PYTHONS_OWN: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""What the interpreter ignores for itself, and subprocess gives back to a child."""


def reset_signals() -> None:
    """Take signals as on a fresh machine: what the parent ignores or blocks (nohup) would be handed on to hooks."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
