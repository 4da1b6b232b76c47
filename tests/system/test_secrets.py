"""Secrets that systemd hands to the service: no file of them is readable to the daemon's user."""

import pytest

from tests.support import SECRET, SERVER_ID, push
from tests.system.device import CONFIG, Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

SERVERS = [{"id": SERVER_ID, "secret": {"credential": "dm"}}]


def test_secret_by_load_credential(device: Device) -> None:
    device.machine.write("/etc/secrets/dm", SECRET, mode=0o600)
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredential=dm:/etc/secrets/dm\n")
    device.start()
    device.send(notification(1))
    device.wait_run(1)


def test_secret_by_load_credential_encrypted(device: Device) -> None:
    device.run(
        "systemd-creds", "encrypt", "--with-key=host", "--name=dm", "-", "/etc/secret.cred", given=SECRET.decode()
    )
    assert SECRET not in device.machine.path("/etc/secret.cred").read_bytes()
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredentialEncrypted=dm:/etc/secret.cred\n")
    device.start()
    device.send(notification(1))
    device.wait_run(1)


def test_another_secret_is_taken_up_by_a_restart(device: Device) -> None:
    device.machine.write("/etc/secrets/dm", "a former one", mode=0o600)
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredential=dm:/etc/secrets/dm\n")
    device.start()
    device.send(notification(1))
    assert device.wait_record("datagram discarded")["reason"] == "digest-mismatch"
    device.machine.write("/etc/secrets/dm", SECRET, mode=0o600)
    device.run("systemctl", "restart", "dmnotid.service")
    device.send(notification(1))
    device.wait_run(1)


def reload_with_another_credential(device: Device) -> None:
    """Change the file of LoadCredential= under a running daemon, and reload it."""
    device.machine.write("/etc/secrets/dm", "a former one, 16 octets", mode=0o600)
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredential=dm:/etc/secrets/dm\n")
    device.start()
    device.machine.write("/etc/secrets/dm", SECRET, mode=0o600)
    device.run("systemctl", "reload", "dmnotid.service")
    device.wait_record("configuration reloaded")
    device.send(notification(1))


@pytest.mark.parametrize("debian", ["device", "later_device"])
def test_credential_that_changed_is_read_at_a_reload_with_systemd_252_alone(
    request: pytest.FixtureRequest, debian: str
) -> None:
    """docs/install.md: systemd passes credentials to the command of ExecReload=, and by that to the daemon."""
    device: Device = request.getfixturevalue(debian)
    reload_with_another_credential(device)
    if device.machine.systemd > 252:
        assert device.wait_record("datagram discarded")["reason"] == "digest-mismatch"
        device.run("systemctl", "restart", "dmnotid.service")
        device.send(notification(1))
    device.wait_run(1)


def test_no_start_without_the_credential(device: Device) -> None:
    device.configure(servers=SERVERS)
    assert device.machine.attempt("systemctl", "start", "dmnotid.service").returncode != 0
    said = "\n".join(str(entry.fields["MESSAGE"]) for entry in device.log())
    assert "$CREDENTIALS_DIRECTORY is not set" in said


def test_root_has_the_credentials_of_the_running_service(device: Device) -> None:
    """For `check`, `decode` and `send` by hand."""
    device.machine.write("/etc/secrets/dm", SECRET, mode=0o600)
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredential=dm:/etc/secrets/dm\n")
    assert "$CREDENTIALS_DIRECTORY is not set" in device.machine.attempt("dmnotid", "check").stderr
    device.start()
    checked = device.run("dmnotid", "check")
    assert f"a secret of {len(SECRET)} octets" in checked
    assert "(checked for the user dmnotid)" in checked
    # The addresses of the unit, not the default of `listen`.
    assert "[::]:2948 (UDP, passed by dmnotid.socket)" in checked
    device.run("dmnotid", "send", "--config", CONFIG)
    assert device.wait_record("notification accepted")["signed"]
    decoded = device.machine.attempt("dmnotid", "decode", "--config", CONFIG, push(9).hex())
    assert "accepted: signed by" in decoded.stdout


def test_secret_that_the_group_of_the_daemon_can_read_is_accepted(device: Device) -> None:
    """As packages install it: root:dmnotid 0640."""
    device.machine.write("/etc/dmnotid/key", SECRET, mode=0o640, owner="root:dmnotid")
    device.configure(servers=[{"id": SERVER_ID, "secret": {"file": "key"}}])
    device.start()
    device.send(notification(1))
    device.wait_run(1)
    device.run("dmnotid", "check")


def test_reload_checks_a_configuration_with_credentials(device: Device) -> None:
    """Before systemd 253 a command of ExecReload= is not shown the service's credentials."""
    device.machine.write("/etc/secrets/dm", SECRET, mode=0o600)
    device.configure(servers=SERVERS)
    device.drop_in("[Service]\nLoadCredential=dm:/etc/secrets/dm\n")
    device.start()
    device.configure(servers=[*SERVERS, {"id": "open.example", "require_digest": False}])
    done = device.machine.attempt("systemctl", "reload", "dmnotid.service")
    assert done.returncode == 0, [str(entry.fields["MESSAGE"]) for entry in device.log()]
    assert device.wait_record("configuration reloaded")["servers"] == len(SERVERS) + 1
