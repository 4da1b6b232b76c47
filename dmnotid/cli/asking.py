"""How commands ask the running daemon: the path of its socket, and their exit status if it does not answer.

It imports little, for `dmnotid status`.
"""

import os
from collections.abc import Callable, Iterable, Mapping

from dmnotid.control.client import MISSHAPEN, Failed, Unreachable
from dmnotid.host.text import printable

EXIT_DOWN = 3
"""No daemon answers: the number of LSB and of `systemctl status` for a program that does not run."""
EXIT_FORBIDDEN = 4
"""This user may not ask."""

# The names are for programs; these sentences also say what to do.
_REFUSALS = {
    "NoSuchSession": "session {session} does not exist, or is forgotten; dmnotid sessions --all lists the others",
    "NotPending": "session {session} is not pending ({state}), so nothing has changed",
    "NotKept": "session {session} ({state}) cannot be opened again: an older dmnotid has not kept its notification;"
    " its server has to send a new one",
    "NotPermitted": "only root and the daemon's own user may do this",
    "TooManyClients": "the daemon has {most} clients, the maximum; try again once one of them has ended",
}
"""The sentences about errors of the interface, by the name of the error."""


def default_socket() -> str:
    """Return the path of the socket in the daemon's runtime directory; `systemctl reload` sets the variable too."""
    # systemd separates several directories with colons.
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return f"{directory or '/run/dmnotid'}/control"


def explain(problem: Unreachable) -> str:
    """Return the sentence about a daemon that does not answer."""
    # If the daemon does not answer, it may run all the same.
    verb = "run" if problem.why == "absent" else "answer"
    return f"dmnotid does not {verb} ({problem})"


def exit_status(problem: Unreachable) -> int:
    """Return the exit status for a daemon that does not answer."""
    return EXIT_FORBIDDEN if problem.why == "forbidden" else EXIT_DOWN


def asks_daemon(command: Callable[..., int]) -> Callable[..., int]:
    """Decorate a command: if the daemon does not answer, or refuses, it prints a message and returns that status."""

    def main(arguments: object) -> int:
        try:
            return command(arguments)
        except Unreachable as problem:
            lines, status = [printable(explain(problem))], exit_status(problem)
        except Failed as problem:
            lines, status = refusal(problem), EXIT_FORBIDDEN if problem.error == "NotPermitted" else 1
        except MISSHAPEN as error:
            # After an upgrade, the daemon of the former version runs until it is restarted.
            lines, status = [printable(misfit(error))], EXIT_DOWN
        from dmnotid.cli.process import print_error  # noqa: PLC0415 - an answer needs none of its imports

        print_error("\n".join(lines))
        return status

    return main


def misfit(error: Exception) -> str:
    """Return the sentence about an answer that lacks what a command reads in it."""
    return f"the daemon's answer is not as this dmnotid expects it ({error!r}); if it is of another version, restart it"


def refusal(problem: Failed) -> list[str]:
    """Return the lines about a call that the daemon refused."""
    if problem.error == "Refused":
        # A reload reports every problem, and each is a line as those of `check`.
        return problem_lines(problem.parameters["problems"])
    sentence = _REFUSALS.get(problem.error)
    return [printable(str(problem) if sentence is None else sentence.format_map(problem.parameters))]


def problem_lines(problems: Iterable[Mapping[str, str]]) -> list[str]:
    """Return problems as lines, each with its place."""
    # The message about a socket that a reload could not open has its place in it.
    return [printable(": ".join(filter(None, (problem["place"], problem["message"])))) for problem in problems]
