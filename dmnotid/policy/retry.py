"""Whether a DM session is tried again, and when (5.3.4)."""

from typing import NamedTuple

from dmnotid.policy.sessions import Closed, Outcome, Result


class Retry(NamedTuple):
    """Pauses between tries in seconds: `first`, doubled up to `longest`. `attempts` is the number of tries in all."""

    first: float = 30
    longest: float = 3_600
    attempts: int = 10


def after_try(outcome: Outcome, attempt: int, retry: Retry, jitter: float) -> Closed | float:
    """Return why a session needs no further try after this one, or the pause before the next try in seconds.

    `attempt` is the number of the try, or for NOT_STARTED, which is not a try, the number of those in a row. `jitter`,
    0 to 1, shortens the pause by up to a quarter: the devices of a fleet must not call their server in step.
    """
    if outcome.result is Result.DONE:
        return Closed.DONE
    if outcome.result is Result.REFUSED:
        return Closed.REFUSED
    # A hook that could not be started uses up no try: such a session ends when it expires.
    if outcome.result is Result.FAILED and attempt >= retry.attempts:
        return Closed.FAILED
    # The exponent is bounded because a float overflows long before `attempts` is used up.
    doublings = min(attempt - 1, 63)
    return min(retry.first * 2.0**doublings, retry.longest) * (1 - jitter / 4)
