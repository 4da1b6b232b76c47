"""What a daemon answers, as JSON: the examples that the commands show in tests."""

from typing import Any, Final

NOW: Final = 1_795_982_000.0

SESSION: Final[dict[str, Any]] = {
    "session": 607,
    "server": "acme.example",
    "notification_id": 2000,
    "state": "paused",
    "accepted_at": NOW - 200,
    "source": "192.0.2.1:40000",
    "signed": True,
    "preferred": ["mobile", "wireless"],
    "attempts": 1,
    "attempts_most": 10,
    "next": NOW + 12,
    "expires": NOW + 600_000,
    "why": "exit 7",
    "connection": "wireline",
    "interface": "eth0",
    "started": NOW - 48,
    "pid": None,
    "outcome": "exit 7",
    "closed": None,
}

RUNNING: Final = SESSION | {
    "session": 611,
    "state": "running",
    "started": NOW - 4,
    "pid": 2045,
    "next": None,
    "why": "eth0 (wireline), pid 2045, 4 s of 10 min",
}
WAITING: Final = SESSION | {
    "session": 608,
    "server": "dm.example.com",
    "state": "waiting",
    "attempts": 0,
    "next": None,
    "started": None,
    "why": "no mobile interface; expires on 2026-12-06",
    "connection": None,
    "interface": None,
    "outcome": None,
}
DONE: Final = SESSION | {
    "session": 609,
    "state": "done",
    "why": "",
    "outcome": "exit 0",
    "closed": NOW - 60,
    "next": None,
}

DISCARD: Final[dict[str, Any]] = {
    "reason": "digest-mismatch",
    "count": 60,
    "at": NOW - 300,
    "source": "127.0.0.1:5000",
    "server": "acme.example",
    "problem": "the digest was not made with the secret of 'acme.example' over these octets",
    "octets": "0106",
    "package": False,
}


def server(server_id: str, **facts: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a server that has never been heard."""
    return {
        "id": server_id,
        "must_sign": True,
        "secrets": 1,
        "last_secret": None,
        "last_accepted": None,
        "accepted": 0,
        "last_discard": None,
        "discarded": 0,
        "pending": 0,
        "last_session": None,
        "held_back": False,
        **facts,
    }


STATUS: Final[dict[str, Any]] = {
    "version": 1,
    "now": NOW,
    "started": NOW - 11_520,
    "pid": 441,
    "program": "0.1.0",
    "loop": "uvloop",
    "stopping": False,
    "config": {"file": "/etc/dmnotid/dmnotid.yaml", "loaded": NOW - 11_400, "reload_refused": None},
    "problems": [],
    "sockets": [
        {"listen": "[::]:2948", "unit": "dmnotid.socket", "door": None, "received": 1003, "lost": 0, "junk": 12_403}
    ],
    "hook": {"what": "/etc/dmnotid/start-dm-session", "startable": True, "problem": None},
    "journal": {
        "file": "/var/lib/dmnotid/journal.sqlite3",
        "octets": 217_088,
        "remembered": 909,
        "oldest": NOW - 3 * 86_400,
        "errors": 0,
    },
    "clock": {"believed": True, "floor": NOW - 60},
    "counts": {
        "received": 1003,
        "accepted": 910,
        "not_accepted": 0,
        "bugs": 0,
        "junk": 12_403,
        "lost": 0,
        "discarded": {"digest-mismatch": 60, "stale": 0, "truncated": 24, "unknown-server": 1},
        "tries": 911,
        "interrupted": 0,
        "closed": {"done": 909, "refused": 0, "failed": 1, "expired": 0, "cancelled": 0},
        "duration_sum": 41.2,
        "duration_count": 909,
        "states": {"running": 0, "queued": 0, "resting": 0, "paused": 0, "waiting": 1, "held": 0, "hook": 0},
        "oldest_pending": NOW - 7_920,
    },
    "servers": [
        server("dm.example.com", last_accepted=NOW - 7_860, accepted=5, discarded=1, pending=1, last_session=DONE),
        server(
            "acme.example",
            last_accepted=NOW - 180,
            accepted=905,
            discarded=62,
            last_discard=DISCARD,
            secrets=2,
            last_secret="former",
        ),
        server("third.example"),
    ],
    "links": [
        {"interface": "eth0", "type": "wireline", "available": True, "why": None, "since": NOW - 11_300},
        {"interface": "wwan0", "type": "mobile", "available": False, "why": "up, no address", "since": None},
    ],
}


def changed(**facts: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return STATUS with other facts; those of a section are added to it."""
    return STATUS | {
        name: STATUS[name] | value if isinstance(STATUS[name], dict) else value for name, value in facts.items()
    }
