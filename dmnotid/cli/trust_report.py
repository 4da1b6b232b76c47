"""What `check` and `test-hook` both report: whether the path of the hook is trusted, in lines with a title."""

import sys
from collections.abc import Iterable, Iterator

from dmnotid.config.values import HookConfig
from dmnotid.errors import HookError
from dmnotid.hook.runner import check_hook


def find_distrust(hook: HookConfig) -> HookError | None:
    """Return why the daemon would not start this hook now; None if it would."""
    try:
        check_hook(hook)
    except HookError as error:
        return error
    return None


def describe_trust(distrust: HookError | None) -> str:
    """Return whether the path is trusted, as part of a line."""
    return "its path is trusted" if distrust is None else f"not trusted ({distrust})"


def print_distrust(hook: HookConfig, distrust: HookError) -> None:
    """Print the consequence on standard error."""
    key = "hook.command" if hook.socket is None else "hook.socket"
    print(f"{key}: not trusted, so no session would start: {distrust}", file=sys.stderr)


def section(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Put a title before the first of some lines, and spaces before the others."""
    title = name
    for line in lines:
        yield f"{title:<12} {line}"
        title = ""
