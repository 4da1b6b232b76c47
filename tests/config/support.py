"""A directory with a configuration, and the cases of problems.txt."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.errors import ConfigError

UNPRIVILEGED = 65534

SERVERS = "servers: [{id: a, secret: {text: aaaaaaaaaaaaaaaa}}]\n"
HOOK = "hook: {command: [/bin/true]}\n"
MINIMAL = SERVERS + HOOK

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


class Place:
    """A directory with a configuration that no other user can read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "dmnotid.yaml"

    def put(self, name: str, content: str | bytes, mode: int = 0o600) -> Path:
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def load(self, text: str | bytes, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> Config:
        self.put("dmnotid.yaml", text, mode)
        return load_config(self.file, environ or {})

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        """Return the problems, each without the name of the file at its beginning."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ)
        return [self.short(str(problem)) for problem in caught.value.problems]

    def short(self, line: str) -> str:
        assert line.startswith(f"{self.file}:")
        return line.removeprefix(f"{self.file}:").lstrip().replace(str(self.directory), "DIR")


def cases(section: str) -> list[tuple[str, list[str]]]:
    """Return YAML and problems of every case in a section of problems.txt."""
    text = Path(__file__).with_name("problems.txt").read_text().partition(f"=== {section}\n")[2]
    blocks = text.partition("\n===")[0].strip("\n").split("\n\n")
    cut = [re.split(r"(?m)^-> ", block) for block in blocks]
    return [(given, [problem.rstrip("\n") for problem in problems]) for given, *problems in cut]


def server_with(secret: str) -> str:
    return f"servers:\n- id: a\n  secret: {secret}\n{HOOK}"


def outcome_of(file: Path) -> Config | ConfigError:
    try:
        return load_config(file, {})
    except ConfigError as error:
        return error


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root can read every file, so it becomes another user for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(UNPRIVILEGED)
    try:
        yield
    finally:
        os.seteuid(0)
