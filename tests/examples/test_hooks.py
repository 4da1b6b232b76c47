"""The hooks of examples/, each run by `dmnotid test-hook --run`: the environment and input are those of the daemon."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.cli.program import PROGRAM
from tests.examples.support import EXAMPLES, PATIENCE, ROOT, SERVER_ID, DmServer, installed, serving, try_hook
from tests.netns import Namespace, in_namespace
from tests.support import further

pytestmark = pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")

END = (200, {"CMD": [["END"]]})
NOT_DONE = [
    *((404, "refused"), (503, "failed")),
    *further((302, "failed"), (400, "refused"), (408, "failed"), (429, "failed")),
]
OPTIONS = ("--req-mo", "1,9", "--req-mo-cv", "3:deadbeef,1:00000000")


def run(words: list[str]) -> str:
    """Return all output of `test-hook --run`."""
    done = forked.run(words, os.environ)
    return (done.stdout + done.stderr).decode()


def outcome(output: str) -> str:
    """Return the outcome that `test-hook --run` shows: done, refused or failed."""
    (line,) = (line for line in output.splitlines() if line.startswith("outcome "))
    return line.split()[1].rstrip(":")


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A stand-in for a DM client, which prints its arguments."""
    program = tmp_path / "dm-client"
    program.write_text('#!/bin/sh\necho "client:" "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def device_file(tmp_path: Path) -> Path:
    return tmp_path / "dm2.json"


def describe_device(file: Path, url: str) -> Any:  # noqa: ANN401 - JSON
    """Write the example's dm2.json with another URL, and return its content."""
    device = json.loads((EXAMPLES / "dm2.json").read_text())
    device["servers"][SERVER_ID] = url
    file.write_text(json.dumps(device))
    return device


# --- hook-curl


@needs_curl
@pytest.mark.parametrize(("status", "wanted"), [(204, "done"), *NOT_DONE])
def test_curl_posts_the_session_and_its_status_is_the_outcome(status: int, wanted: str, tmp_path: Path) -> None:
    with serving(DmServer(("127.0.0.1", 0), (status, {}))) as server:
        url = server.url + "/wake/{server_id}"
        output = run(try_hook([installed("hook-curl", tmp_path), url], tmp_path, *OPTIONS))
    assert outcome(output) == wanted
    [request] = server.requests
    assert request.path == f"/wake/{SERVER_ID}"
    assert request.headers["Content-Type"] == "application/json"
    assert (request.body["server_id"], request.body["requested_mos"]) == (SERVER_ID, [1, 9])


@needs_curl
def test_curl_without_an_answer_is_tried_again(tmp_path: Path) -> None:
    with DmServer(("127.0.0.1", 0)) as server:
        url = server.url
    output = run(try_hook([installed("hook-curl", tmp_path), url], tmp_path))
    assert outcome(output) == "failed"
    assert f"no answer from {url} over lo" in output


# --- hook-json


def test_json_becomes_arguments_of_the_client(client: Path, tmp_path: Path) -> None:
    output = run(try_hook([installed("hook-json", tmp_path), client], tmp_path, *OPTIONS))
    arguments = f"--server {SERVER_ID} --interface lo --mo 1 --mo 9 --cached-mo 3:deadbeef --cached-mo 1:00000000"
    assert f"client: {arguments}" in output
    assert outcome(output) == "done"


def test_json_of_an_unsigned_notification_is_refused(client: Path, tmp_path: Path) -> None:
    output = run(try_hook([installed("hook-json", tmp_path), client], tmp_path, "--unsigned"))
    assert "client:" not in output
    assert outcome(output) == "refused"


def test_json_without_a_client_is_tried_again(tmp_path: Path) -> None:
    output = run(try_hook([installed("hook-json", tmp_path), tmp_path / "missing"], tmp_path))
    assert "missing: No such file or directory" in output
    assert outcome(output) == "failed"


# --- within-hours


@pytest.mark.parametrize(
    ("first", "last", "runs"), [(-1, 2, True), (2, 23, False), *further((0, 2, True), (-20, 2, True))]
)
def test_session_is_refused_out_of_hours(first: int, last: int, runs: bool, client: Path, tmp_path: Path) -> None:  # noqa: FBT001
    """Hours from now; the current hour may end during the test, so each span holds two of them or none."""
    hour = int(subprocess.run(["date", "+%H"], capture_output=True, check=True).stdout)
    hours = [str((hour + offset) % 24) for offset in (first, last)]
    output = run(try_hook([installed("within-hours", tmp_path), *hours, client, "{server_id}"], tmp_path))
    assert (f"client: {SERVER_ID}" in output) == runs
    assert (f"sessions start from {hours[0]} to {hours[1]} o'clock" in output) != runs
    assert outcome(output) == ("done" if runs else "failed")


@pytest.mark.parametrize("hour", range(24))
def test_every_hour_has_a_span_around_midnight(hour: int) -> None:
    """A fixed offset from UTC makes it any hour, in particular 08 and 09, which are not octal numbers."""
    now = int(subprocess.run(["date", "-u", "+%H"], capture_output=True, check=True).stdout)
    span = [str((hour - 1) % 24), str((hour + 2) % 24)]
    zone = {"TZ": f"XXX{(now - hour + 11) % 24 - 11}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([EXAMPLES / "within-hours", *span, "true"], env=zone, check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


# --- dm2-initiate


def test_package_1_has_every_mo_and_the_session_ends_with_end(device_file: Path, tmp_path: Path) -> None:
    """5.3.2, 5.3.3: each index once; all cache validators are stale; an unknown index is reported in the session."""
    with serving(DmServer(("127.0.0.1", 0), END)) as server:
        device = describe_device(device_file, f"{server.url}/dmclient/dm20?v=2")
        output = run(try_hook([installed("dm2-initiate", tmp_path), device_file], tmp_path, *OPTIONS))
    assert outcome(output) == "done", output
    [request] = server.requests
    assert request.path == "/dmclient/dm20?v=2"
    assert request.headers["OMADM-DevID"] == "IMEI:493005100592800"
    assert request.headers["Content-Type"] == "application/vnd.oma.dm.initiation+json"
    assert request.headers["Accept"] == "application/vnd.oma.dm.request+json"
    assert request.body == {
        "MOS": [device["MOS"]["1"], device["MOS"]["3"]],
        "Alert": [
            {"AlertType": "urn:oma:at:dm:2.0:ServerInitiatedMgmt", "Data": {"NotificationID": 1}},
            {"AlertType": "urn:x-dmnotid:at:UnknownMO", "Data": {"Index": 9}},
        ],
    }


def test_commands_before_end_are_answered_in_package_3(device_file: Path, tmp_path: Path) -> None:
    commands = {"CMD": [["GET", "urn:oma:mo:oma-dm-devinfo:1.0//"], ["HGET", "https://dm.example.com/mo"]]}
    with serving(DmServer(("127.0.0.1", 0), (200, commands), END)) as server:
        describe_device(device_file, server.url)
        output = run(try_hook([installed("dm2-initiate", tmp_path), device_file], tmp_path))
    assert outcome(output) == "done", output
    assert server.requests[1].headers["Content-Type"] == "application/vnd.oma.dm.response+json"
    assert server.requests[1].headers["OMADM-DevID"] == "IMEI:493005100592800"
    assert server.requests[1].body == {"Status": [{"sc": 501}, {"sc": 501}]}


@pytest.mark.parametrize(("status", "wanted"), NOT_DONE)
def test_status_of_the_server_is_the_outcome(status: int, wanted: str, device_file: Path, tmp_path: Path) -> None:
    with serving(DmServer(("127.0.0.1", 0), (status, {}))) as server:
        describe_device(device_file, server.url)
        output = run(try_hook([installed("dm2-initiate", tmp_path), device_file], tmp_path))
    assert outcome(output) == wanted, output
    assert str(status) in output


@pytest.mark.parametrize("answer", [[], *further({}, {"CMD": [[]]})], ids=json.dumps)
def test_answer_that_is_not_package_2_is_tried_again(answer: object, device_file: Path, tmp_path: Path) -> None:
    with serving(DmServer(("127.0.0.1", 0), (200, answer))) as server:
        describe_device(device_file, server.url)
        output = run(try_hook([installed("dm2-initiate", tmp_path), device_file], tmp_path))
    assert outcome(output) == "failed", output
    assert "Traceback" not in output


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
@pytest.mark.parametrize(("trusted", "wanted"), [(True, "done"), (False, "failed")])
def test_server_with_tls_needs_a_trusted_certificate(
    trusted: bool,  # noqa: FBT001 - a parameter of the test's
    wanted: str,
    device_file: Path,
    tmp_path: Path,
) -> None:
    pem = tmp_path / "server.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test -addext"
    subprocess.run(
        [*make.split(), "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", tmp_path / "certificate.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate.pem", pem)
    environment = {"SSL_CERT_FILE": str(tmp_path / "certificate.pem")} if trusted else {}
    with serving(DmServer(("127.0.0.1", 0), END)) as server:
        # The handshake is made in the thread of the connection, and its failure is part of the test.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        describe_device(device_file, server.url.replace("http:", "https:"))
        hook = [installed("dm2-initiate", tmp_path), device_file]
        output = run(try_hook(hook, tmp_path, environment=environment))
    assert outcome(output) == wanted, output
    assert ("CERTIFICATE_VERIFY_FAILED" in output) != trusted
    assert len(server.requests) == trusted


def test_server_without_a_url_is_tried_again(device_file: Path, tmp_path: Path) -> None:
    device_file.write_text('{"DevID": "x", "servers": {}, "MOS": {}}')
    output = run(try_hook([installed("dm2-initiate", tmp_path), device_file], tmp_path))
    assert outcome(output) == "failed"
    assert "no session: KeyError('dm.example.com')" in output


# --- Over the interface of the session


@pytest.fixture
def uplinks() -> Iterator[Namespace]:
    """A namespace with two ways to 203.0.113.1 at the far end; the default route prefers wwan0."""
    with Namespace(ipv6=False) as namespace:
        for number, name in enumerate(("wwan0", "wlan0"), 1):
            namespace.add_uplink(name, number, metric=100 * number)
            namespace.far_ip("addr", "add", f"198.51.{number}.254/24", "dev", name)
        namespace.far_ip("addr", "add", "203.0.113.1/32", "dev", "lo")
        yield namespace


@in_namespace
@needs_curl
@pytest.mark.parametrize(("kind", "client"), [("mobile", "198.51.1.1"), ("wireless", "198.51.2.1")])
@pytest.mark.parametrize("hook", ["hook-curl", "dm2-initiate"])
def test_connection_goes_over_the_interface_of_the_session(
    hook: str, kind: str, client: str, uplinks: Namespace, device_file: Path, tmp_path: Path
) -> None:
    with serving(uplinks.far_call(DmServer, ("203.0.113.1", 0), END)) as server:
        describe_device(device_file, server.url)
        argument = server.url if hook == "hook-curl" else str(device_file)
        interfaces = {"mobile": {"interfaces": ["wwan0"]}, "wireless": {"interfaces": ["wlan0"]}}
        command = try_hook([installed(hook, tmp_path), argument], tmp_path, "--prefer", kind, connections=interfaces)
        done = uplinks.run(*PROGRAM, *command, cwd=ROOT, timeout=PATIENCE)
    assert outcome(done.stdout) == "done", done.stdout + done.stderr
    assert [request.client for request in server.requests] == [client]
