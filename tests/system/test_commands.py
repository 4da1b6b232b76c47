"""The commands of the documents that need a machine with systemd and the Debian package."""

import pytest

from tests.project.commands import MACHINE
from tests.system.device import Device

pytestmark = [pytest.mark.root, pytest.mark.system]


def test_commands_of_the_documents_work(device: Device) -> None:
    """In the order of the list; an operator would type the secret, here it comes from another command."""
    failed = []
    for printed in MACHINE:
        command = printed.replace("systemd-ask-password 'Secret of dm.example.com:'", "echo a secret of some length")
        done = device.machine.attempt("sh", "-c", command)
        if done.returncode:
            failed.append((command, done.returncode, done.stdout + done.stderr))
    assert failed == []
