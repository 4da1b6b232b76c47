"""What `check` and `test-hook` both report: whether the hook could be started."""

from dmnotid.cli.process import print_error
from dmnotid.config.values import HookConfig
from dmnotid.errors import HookError
from dmnotid.hook.startable import check_hook


def find_problem(hook: HookConfig) -> HookError | None:
    """Return why the daemon would not start this hook now; None if it would."""
    try:
        check_hook(hook)
    except HookError as error:
        # Returned and not raised, because the commands report their other checks too.
        return error
    return None


def describe_problem(problem: HookError | None) -> str:
    """Return whether the hook would be started, as part of a line."""
    return "its path is trusted" if problem is None else f"{_state(problem)} ({problem})"


def print_problem(hook: HookConfig, problem: HookError) -> None:
    """Print the consequence on standard error."""
    # The configuration has exactly one of the two.
    key = "hook.command" if hook.socket is None else "hook.socket"
    print_error(f"{key}: {_state(problem)}, so no session would start: {problem}")


def _state(problem: HookError) -> str:
    return "not startable" if problem.trusted else "not trusted"
