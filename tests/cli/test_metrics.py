"""The ways in which Prometheus gets the metrics: a file, HTTP, and the output of the command."""

import http.client
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from dmnotid.cli.metrics import MAX_REQUEST, OPENMETRICS, PLAIN, answer, read_head, replace_file
from dmnotid.control.client import Failed, Unreachable
from dmnotid.errors import DmnotidError
from tests import forked
from tests.cli.program import PATIENCE, call
from tests.cli.test_exposition import read
from tests.journal.journals import admit, open_journal, sql
from tests.processes import Run, running
from tests.support import NOWHERE, OTHER_ID, OTHER_SECRET, SERVER_ID, push, write_config

# --- A file for node_exporter ---


def test_file_is_readable_by_all_when_the_umask_is_strict(tmp_path: Path) -> None:
    file = tmp_path / "dmnotid.prom"
    former = os.umask(0o077)
    try:
        replace_file(file, "text\n")
    finally:
        os.umask(former)
    assert file.read_text() == "text\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_reader_keeps_the_former_text_when_the_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "dmnotid.prom"
    replace_file(file, "former\n")
    with file.open() as reader:
        replace_file(file, "new\n")
        assert reader.read() == "former\n"
    assert file.read_text() == "new\n"


def test_link_beside_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "dmnotid.prom.new").symlink_to(target)
    replace_file(tmp_path / "dmnotid.prom", "text\n")
    assert target.read_text() == "precious"
    assert (tmp_path / "dmnotid.prom").read_text() == "text\n"


def test_path_without_a_name_is_refused() -> None:
    with pytest.raises(DmnotidError, match=r"^\. cannot be written: "):
        replace_file(Path(), "text\n")


def test_nothing_is_left_when_the_file_cannot_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "dmnotid.prom").mkdir()
    with pytest.raises(DmnotidError, match="Is a directory"):
        replace_file(tmp_path / "dmnotid.prom", "text\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dmnotid.prom"]


# --- Over HTTP ---


def parts(response: bytes) -> tuple[str, dict[str, str], str]:
    """Return the status line, the fields and the body of a response."""
    head, _, body = response.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return line, dict(field.split(": ", 1) for field in fields), body.decode()


def scrape(content_type: str) -> str:
    return {OPENMETRICS: "openmetrics\n", PLAIN: "plain\n"}[content_type]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics?module=any HTTP/1.1\r\nAccept: text/plain\r\n\r\n",
        b"GET /metrics HTTP/1.1\n\n",
    ],
)
def test_request_for_metrics_is_answered_with_the_plain_format(head: bytes) -> None:
    line, fields, body = parts(answer(head, scrape))
    assert line == "HTTP/1.1 200 OK"
    assert fields == {"Content-Type": PLAIN, "Content-Length": "6", "Connection": "close"}
    assert body == "plain\n"


def test_request_that_names_openmetrics_is_answered_in_openmetrics() -> None:
    accept = b"Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    line, fields, body = parts(answer(b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n\r\n", scrape))
    assert line == "HTTP/1.1 200 OK"
    assert fields["Content-Type"] == OPENMETRICS
    assert body == "openmetrics\n"


@pytest.mark.parametrize("path", [b"/", b"/metrics/", b"/metric", b"/?/metrics"])
def test_request_for_another_path_is_not_found(path: bytes) -> None:
    line, _, _ = parts(answer(b"GET " + path + b" HTTP/1.1\r\n\r\n", scrape))
    assert line == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: loc",
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/2.0\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET  /metrics HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * MAX_REQUEST,
    ],
)
def test_octets_that_are_no_request_are_a_bad_request(head: bytes) -> None:
    line, _, body = parts(answer(head, scrape))
    assert line == "HTTP/1.1 400 Bad Request"
    assert body.endswith(" is expected\n")


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            Unreachable("/run/dmnotid/control", "forbidden", "only root"),
            "does not answer (/run/dmnotid/control: only root)",
        ),
        (Failed("TooManyClients", {"most": 8}), "the daemon has 8 clients, the maximum"),
    ],
)
def test_request_that_the_daemon_does_not_serve_is_unavailable(error: Exception, problem: str) -> None:
    def scrape(_: str) -> str:
        raise error

    response = answer(b"GET /metrics HTTP/1.1\r\n\r\n", scrape).decode()
    assert response.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert problem in response


@pytest.mark.parametrize(
    ("sent", "most", "is_over"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 43, False),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 2 * MAX_REQUEST, MAX_REQUEST, False),
        (b"GET /met", 8, True),
    ],
    ids=["whole head", "endless head", "end of the stream"],
)
def test_reading_ends_with_the_head_at_its_limit_or_with_the_stream(sent: bytes, most: int, *, is_over: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(sent[:30])
        ours.sendall(sent[30:])
        if is_over:
            ours.shutdown(socket.SHUT_WR)
        assert read_head(theirs.fileno()) == sent[:most]


class Endpoint:
    """A socket unit with Accept=yes: each connection becomes standard input and output of a process."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.statuses: list[int] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread out of its accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                words = ["metrics", "--http", *self._options]
                process = forked.Forked(words, os.environ, connection, connection, 2)
                self.statuses.append(process.wait(PATIENCE))

    def get(self, path: str = "/metrics", **fields: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._socket.getsockname()[1], timeout=PATIENCE)
        connection.request("GET", path, headers=fields)
        return connection.getresponse()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Run]:
    with running(tmp_path) as run:
        yield run


def configure(directory: Path) -> Path:
    """Write a configuration with a control socket, for a daemon that starts no session."""
    return write_config(directory, ["/bin/true"], control={"socket": str(directory / "control")})


def test_scrape_has_the_counts_of_the_daemon_until_it_stops(tmp_path: Path, start: Run) -> None:
    config = configure(tmp_path)
    service = start(config)
    service.send(push(1, preferred=NOWHERE), push(2, preferred=NOWHERE), push(3, secret=b"wrong"))
    service.wait("notification accepted", 2)
    service.wait("datagram discarded")
    with Endpoint(f"--socket={tmp_path}/control", f"--config={config}") as endpoint:
        response = endpoint.get()
        assert (response.status, response.headers["Content-Type"]) == (200, PLAIN)
        up = read(response.read().decode())
        assert read(endpoint.get(Accept="application/openmetrics-text").read().decode(), parse_openmetrics).keys() > (
            up.keys()
        )
        service.stop()
        stopped = read(endpoint.get().read().decode())
    assert up["dmnotid_up", ()] == 1
    assert up["dmnotid_datagrams_received_total", ()] == 3
    assert up["dmnotid_notifications_accepted_total", (("server", SERVER_ID),)] == 2
    assert up["dmnotid_notifications_discarded_total", (("reason", "digest-mismatch"),)] == 1
    assert up["dmnotid_sessions", (("state", "waiting"),)] == 2
    of_the_journal = {name for name, _ in stopped} - {"dmnotid_up"}
    assert stopped["dmnotid_up", ()] == 0
    assert of_the_journal == {
        "dmnotid_notification_last_accepted_timestamp_seconds",
        "dmnotid_session_oldest_pending_timestamp_seconds",
        "dmnotid_journal_bytes",
    }
    same = {key: value for key, value in stopped.items() if key[0].endswith("_timestamp_seconds")}
    assert {key: up[key] for key in same} == same
    assert endpoint.statuses == [0, 0, 0]


def test_scrape_of_all_servers_has_one_sample_when_the_daemon_is_down(tmp_path: Path, start: Run) -> None:
    config = configure(tmp_path)
    service = start(config)
    service.send(push(1, preferred=NOWHERE), push(2, preferred=NOWHERE, server_id=OTHER_ID, secret=OTHER_SECRET))
    service.wait("notification accepted", 2)
    service.stop()
    each = read(call("metrics", f"--config={config}").out)
    times = [at for (name, _), at in each.items() if "last_accepted" in name]
    assert len(times) == 2
    every = read(call("metrics", f"--config={config}", "--no-servers").out)
    assert every["dmnotid_notification_last_accepted_timestamp_seconds", ()] == max(times)


def test_stopped_daemon_is_described_when_an_arrival_in_its_journal_is_damaged(tmp_path: Path) -> None:
    config = f"--config={configure(tmp_path)}"
    (tmp_path / "state").mkdir()
    with open_journal(tmp_path / "state") as journal:
        admit(journal, 1)
    sql(tmp_path / "state", "UPDATE session SET received_at = 9e999")
    assert read(call("metrics", config).out)["dmnotid_session_oldest_pending_timestamp_seconds", ()] == 0
    done = call("status", config)
    assert (done.status, done.err) == (3, "")
    assert "\n1 session pending" in done.out


def test_scrape_shows_that_the_daemon_is_down_when_it_never_ran(tmp_path: Path) -> None:
    with Endpoint(f"--config={configure(tmp_path)}") as endpoint:
        response = endpoint.get()
        assert (response.status, response.headers["Content-Type"]) == (200, PLAIN)
        assert read(response.read().decode()) == {("dmnotid_up", ()): 0}
        response = endpoint.get(Accept="application/openmetrics-text; version=1.0.0")
        assert (response.status, response.headers["Content-Type"]) == (200, OPENMETRICS)
        assert read(response.read().decode(), parse_openmetrics) == {("dmnotid_up", ()): 0}
        assert endpoint.get("/").status == 404
    assert endpoint.statuses == [0, 0, 0]


# --- The command ---


def test_command_shows_that_the_daemon_is_down_when_it_never_ran(tmp_path: Path) -> None:
    done = call("metrics", f"--config={configure(tmp_path)}")
    assert (done.status, done.err) == (0, "")
    assert read(done.out) == {("dmnotid_up", ()): 0}


def test_command_writes_the_file_when_the_daemon_is_down(tmp_path: Path) -> None:
    file = tmp_path / "dmnotid.prom"
    done = call("metrics", f"--config={configure(tmp_path)}", "--write", str(file))
    assert done == (0, "", "")
    assert read(file.read_text()) == {("dmnotid_up", ()): 0}


def test_command_fails_when_the_file_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "missing/dmnotid.prom"
    done = call("metrics", f"--config={configure(tmp_path)}", "--write", str(file))
    assert done.status == 1
    assert done.err == f"{file} cannot be written: No such file or directory\n"


@pytest.mark.parametrize(
    "words", [("--http", "--write", "x"), ("--openmetrics", "--http"), ("--openmetrics", "--write", "x")]
)
def test_options_that_exclude_each_other_are_a_wrong_command_line(words: tuple[str, ...]) -> None:
    assert call("metrics", *words).status == 2
