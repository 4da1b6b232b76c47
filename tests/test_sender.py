"""The public API: its names, what it imports, its errors, and the code of its page.

The octets are compared in tests/proofs/test_vectors.py.
"""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmnotid import sender
from dmnotid.policy.digest import is_signed_with
from dmnotid.wire.notification import CONNECTION_TYPES, decode_notification
from dmnotid.wire.wsp import decode_push
from tests.support import DEADLINE

PROJECT = Path(__file__).parents[1]


def test_names_are_the_public_ones() -> None:
    """They are promised to stay: one more is a decision, one less breaks callers."""
    assert sorted(sender.__all__) == ["CONNECTION_TYPES", "WAP_PUSH_PORT", "build", "push", "sign"]


def test_module_needs_the_standard_library_alone() -> None:
    """-S leaves out site-packages, so any other import fails."""
    code = "import dmnotid.sender, json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True, timeout=DEADLINE)
    modules = set(json.loads(done.stdout))
    assert "dmnotid.sender" in modules
    assert {name.partition(".")[0] for name in modules} <= {"dmnotid", "__main__", *sys.stdlib_module_names}
    assert modules.isdisjoint({"asyncio", "logging", "socket", "sqlite3", "structlog", "uvloop", "yaml"})


def test_connection_types_are_named_by_their_octet() -> None:
    assert sender.CONNECTION_TYPES == ("any", "mobile", "wireless", "wireline")
    package = sender.build(1, preferred_connections=reversed(sender.CONNECTION_TYPES))
    assert package == bytes.fromhex("20800001 2004 03020100")
    assert decode_notification(package).preferred_connections == CONNECTION_TYPES[::-1]


def test_signed_time_has_no_fraction() -> None:
    assert sender.build(1, sent_at=1735689600.9) == sender.build(1, sent_at=1735689600)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sender.build(65_536), "NOTIFICATION-ID is 0 to 65535, not 65536"),
        (lambda: sender.build(1, server_id=""), "SERVER-ID is empty"),
        (lambda: sender.build(1, preferred_connections=["wifi"]), "'wifi' is not a connection type: expected one of"),
        (lambda: sender.build(1, requested_mos=[-1]), "MO index is 0 to 65535, not -1"),
        (lambda: sender.build(1, cached_mos=[(1, b"abc")]), "a cache validator has 4 octets, not 3"),
        (lambda: sender.build(1, sent_at=-1), "time is 0 to 4294967295, not -1"),
        (lambda: sender.build(1, unknown_options=[(5, b"")]), "has the Option Number of a standard one"),
        (lambda: sender.build(1, reserved=128), "RESERVED is 0 to 127, not 128"),
        (lambda: sender.sign(sender.build(1), b"s"), "the package has no SHA256-DIGEST Option"),
        (lambda: sender.sign(b"", b"s"), "the octets are not a package: DM Notification: header at octet 0"),
        (lambda: sender.push(b"", tid=256), "TID is 0 to 255, not 256"),
        (lambda: sender.push(b"", headers=[(128, 1)]), "a well-known field has 7 bits, not 128"),
    ],
)
def test_value_that_does_not_fit_is_a_value_error(call: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_code_of_the_page_sends_a_signed_notification() -> None:
    """docs/sender.md, with the port of a socket of this test in place of 2948."""
    page = (PROJECT / "docs/sender.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(import socket\n.*?)```", page, re.DOTALL)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        device.bind(("127.0.0.1", 0))
        device.settimeout(DEADLINE)
        code, changed = re.subn("^device = .*", f"device = {device.getsockname()}", block, flags=re.MULTILINE)
        assert changed == 1
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=DEADLINE)
        notification = decode_notification(decode_push(device.recv(4096)).body)
    (secret,) = re.findall(r'secret = b"(.*)"', block)
    assert is_signed_with(notification, secret.encode())
    assert notification.server_id == "dm.example.com"
    assert notification.sent_at is not None
    assert notification.sent_at <= time.time()
    assert notification.cached_mos == ((3, bytes.fromhex("deadbeef")),)
