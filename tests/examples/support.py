"""What the tests of examples/ share: examples as a device has them, `test-hook --run`, and a small HTTP server."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import yaml

from tests.support import DEADLINE

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples"
SERVER_ID: Final = "dm.example.com"
PATIENCE: Final = 2 * DEADLINE
"""Maximum time for anything, in seconds; only a program that hangs takes as long."""


def installed(name: str, directory: Path) -> Path:
    """Return a copy of an example that no other user can change, whatever the mode of the checkout is."""
    copy = directory / name
    shutil.copy(EXAMPLES / name, copy)
    copy.chmod(0o755)
    return copy


def try_hook(
    command: Sequence[str | Path],
    directory: Path,
    *options: str,
    environment: Mapping[str, str] = MappingProxyType({}),
    connections: Mapping[str, object] = MappingProxyType({}),
) -> list[str]:
    """Return the words that run a hook once for a made-up notification; over loopback without `connections`."""
    config = {
        "servers": [{"id": SERVER_ID, "secret": {"text": "lantern-and-rope-0042"}, "require_digest": False}],
        "hook": {"command": list(map(str, command)), "environment": dict(environment)},
        "connections": {"reach": "any", "settle": 0, **connections},
    }
    file = directory / "dmnotid.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(config))
    interface = [] if connections else ["--interface", "lo"]
    return ["test-hook", "--run", "--config", str(file), *interface, *options]


class Request(NamedTuple):
    """A request that the server received."""

    client: str
    path: str
    headers: dict[str, str]
    body: Any


class DmServer(ThreadingHTTPServer):
    """An HTTP server that answers each POST with the next (status, JSON value), the last one again and again."""

    def __init__(self, address: tuple[str, int], *answers: tuple[int, object]) -> None:
        super().__init__(address, _Handler)
        self.answers = list(answers)
        self.requests: list[Request] = []

    def handle_error(self, *_: object) -> None:
        """Print nothing: a client that refuses the certificate is part of a test."""

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: DmServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(Request(self.client_address[0], self.path, dict(self.headers), body))
        answers = self.server.answers
        status, value = answers.pop(0) if len(answers) > 1 else answers[0]
        octets = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(octets)))
        self.end_headers()
        self.wfile.write(octets)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in http.server
        pass


@contextmanager
def serving(server: DmServer) -> Iterator[DmServer]:
    """Run a server in a thread until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
