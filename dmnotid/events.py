"""The events of the log: the sentences of their records, and their fixed ids in the systemd journal.

docs/events.md describes each event with its level and its keys. An id never changes, because catalogs and searches
(`journalctl MESSAGE_ID=…`) name it.
"""

from collections.abc import Mapping
from typing import Final

from dmnotid.host.log import Event

EVENTS: Final[Mapping[str, Event]] = {
    # The daemon
    "daemon ready": Event(
        "dmnotid {version} is ready; configured servers: {servers}, pending sessions: {pending}",
        "df87a91d5b77474ca9cde48291366923",
    ),
    "daemon stopping": Event("The daemon stops; pending sessions: {pending}", "3f023fdc138147a291d39f484b66d778"),
    "daemon stopped": Event("The daemon has stopped", "d8582aadda574876b88363ae190fb168"),
    "daemon not started": Event("The daemon cannot start: {problem}", "7eb6e83afc9a433699ef443b2d95e85d"),
    "configuration reloaded": Event(
        "The configuration was reloaded; configured servers: {servers}", "4ea31e6a73e346ac9383071b76be225d"
    ),
    "configuration warning": Event("Configuration: {problem}", "7ebf5155d836481f8b0e435d1caf1e20"),
    "configuration problem": Event("Configuration: {problem}", "573e2ebe7f1844f999544bba72b557ac"),
    "reload refused": Event(
        "The reload was refused: {problem}; {instead}",
        "9a3cb9f3e03b424fbd4d2f507c784325",
        others=("The reload was refused, problems of the configuration: {problems}; {instead}",),
    ),
    "signal ignored": Event("The signal {signal} was ignored"),
    "internal error": Event("An internal error was logged with its traceback", "e6376f92e1084f1da610c88857242a0c"),
    "uvloop missing": Event("uvloop cannot be used: {problem}; instead: {instead}"),
    "service manager not notified": Event("The service manager could not be notified: {problem}"),
    "passed sockets ignored": Event("The sockets passed by the service manager are ignored: {problem}"),
    "control client refused": Event(
        "A client of the control socket, pid {pid}, was refused: {problem}",
        others=("A client of the control socket was refused: {problem}",),
    ),
    "control request refused": Event("The request for {method} by process {pid} was refused: {problem}"),
    # Reception
    "socket listening": Event(
        "Datagrams are received on {listen}, bound to {device}",
        others=("Datagrams are received on {listen} as {source}", "Datagrams are received on {listen}"),
    ),
    "listen ignored": Event("`listen` is ignored: {problem}"),
    "door ignored": Event("The door {door} is ignored: {problem}"),
    "IPv6 missing": Event("The kernel has no IPv6: {instead} replaces {listen}"),
    "socket filter missing": Event("No socket filter could be attached to {listen}: {problem}"),
    "receive buffer reduced": Event(
        "The receive buffer of {listen} has {octets} octets instead of {configured}: {problem}"
    ),
    "receive failed": Event("Receiving on {listen} failed: {problem}", "68d48cdd3ef24e798262de02e998d021"),
    "junk refused": Event("Datagrams to {listen} that cannot be pushes were refused in the kernel: {count}"),
    "datagrams lost": Event(
        "Datagrams to {listen} were lost: {count}, because {problem}", "80830b78302945e8b7d6c585c310d05c"
    ),
    "datagram discarded": Event(
        "A datagram from {source} was discarded ({reason}): {problem}", "d423b84505e54fd5bd621f3e458b8da6"
    ),
    "datagrams discarded": Event(
        "Further datagrams were discarded ({reason}): {count} within {interval:g} s,"
        " {source_count} of them from {source}; different addresses: {sources}",
        "8379dc3a2fec4e2b82a699f02cd93c25",
    ),
    "notification accepted": Event(
        "Notification {notification_id} of {server_id} was accepted as session {session}",
        "12cd5fee9e914360a96f3df6f477fa71",
    ),
    "notification ahead": Event(
        "Notification {notification_id} of {server_id} is ahead of the clock: {problem}",
        "3737be3346db4480b68f894a779512b0",
    ),
    "notification not accepted": Event(
        "A notification from {source} could not be accepted: {problem}", "385650bd542549d592c0526380331a79"
    ),
    "clock believed": Event("The clock is believed again", "07f84e4dc50b48cab503280aa0eb2b42"),
    "clock not believed": Event("The clock is not believed: {problem}", "884327d3eb0749ef9f53bda084c7a104"),
    # Journal
    "journal unreadable": Event("The journal cannot be read: {problem}", "77ded14ce80b49cd9cd727b617c64753"),
    "journal recreated": Event("The journal {file} was created again: {problem}", "a2f3824a4ad94917852ab92905d92bbc"),
    "journal set aside": Event(
        "The damaged journal was set aside as {kept_as}: {problem}", "eec14ed9595445bab3046397d401c141"
    ),
    "row set aside": Event(
        "The row of session {session} in {file} cannot be used: {problem}", "a192610874244c979f878fd5e1a2b070"
    ),
    "notifications forgotten": Event(
        "Notifications of {servers} servers were forgotten: {problem}", "5736fcfd64b94b0ea15e282214bcdaf3"
    ),
    # Connections
    "connection available": Event(
        "A connection is available: {interface} ({connection})", "6bf828d4a51741c5b656b9ac33b4e5ba"
    ),
    "connection lost": Event(
        "A connection was lost: {interface} ({connection}), {missing}", "e62a7cf80e554f13a4bf132822c89ed4"
    ),
    "links unreadable": Event("The network interfaces cannot be read: {problem}", "56bd96bb81014a76a19cd461c5321327"),
    "links readable": Event("The network interfaces can be read again", "5dbd824ac8bb4d2895a4992997f3f661"),
    # Sessions
    "session waiting": Event(
        "Session {session} of {server_id} waits for a connection ({wanted}): {missing}",
        "6121d542e1a04a9d9eaed11db6131a79",
    ),
    "session started": Event(
        "Session {session} of {server_id} starts try {attempt} over {interface} ({connection})",
        "2671a4493f144841b5f3a357ddf66380",
    ),
    "session try failed": Event(
        "Try {attempt} of session {session} of {server_id} failed: {outcome}", "eaf26bb1303b40ff849ac63c7efb3f34"
    ),
    "session done": Event("Session {session} of {server_id} is done: {outcome}", "35b9c59a12a242da8b5d50a8556d70ec"),
    "session refused": Event(
        "Session {session} of {server_id} was refused by its hook: {outcome}", "86bfc5b672cf4b34866a1104b0f185e7"
    ),
    "session failed": Event(
        "Session {session} of {server_id} failed, tries: {attempts}, the last one: {outcome}",
        "14acc5bc914a427b8c8b92a332433f53",
    ),
    "session expired": Event(
        "Session {session} of {server_id} expired, tries: {attempts}", "c51f7424f837412698a50ba4b4af0cf1"
    ),
    "session cancelled": Event(
        "Session {session} of {server_id} was cancelled by {by}", "5b863836fdc145b1a8d2ee9cc8bab940"
    ),
    "session retried": Event(
        "Session {session} of {server_id} may start again now, as {by} has asked", "a23b9184b8bd414483aec54bcd66366c"
    ),
    "session interrupted": Event(
        "Session {session} of {server_id} was interrupted by the stop of the daemon; it starts again {next}",
        "355c795d34cb4809986df20b16b4052e",
    ),
    "session not started": Event(
        "Session {session} of {server_id} could not be started: {problem}",
        others=("Session {session} of {server_id} could not be started",),
    ),
    "session end not written": Event("The end of session {session} of {server_id} could not be written: {problem}"),
    "pause not written": Event("The pause of session {session} of {server_id} could not be written: {problem}"),
    "sessions held": Event(
        "Sessions of {server_id} are held: {sessions}; {problem}", "a71682120f3043df9599de89954dc989"
    ),
    # Hook
    "hook output": Event(
        "The hook of session {session} of {server_id} printed: {line}", others=("The hook printed: {line}",)
    ),
    "hook not startable": Event("The hook cannot be started: {problem}", "3f2cd1b0bf6e4c2291a229bb10903fca"),
    "hook not started": Event("The hook of session {session} of {server_id} could not be started: {problem}"),
    "hook not ended": Event(
        "The hook of session {session} of {server_id} could not be ended: {problem}",
        others=("The hook could not be ended: {problem}",),
    ),
    "hook not signalled": Event(
        "{signal} could not be sent to the hook of session {session} of {server_id}: {problem}",
        others=("{signal} could not be sent to the hook: {problem}",),
    ),
    "hook polled": Event(
        "The end of the hook of session {session} of {server_id} is polled: {problem}",
        others=("The end of the hook is polled: {problem}",),
    ),
    "lock held": Event("The lock of {server_id} is held: {problem}"),
    "lock ignored": Event("The lock of {server_id} was ignored after {waited} s"),
    "lock missing": Event("Sessions of {server_id} run without a lock, {file}: {problem}"),
    "session locked": Event("Session {session} of {server_id} was not run: {problem}"),
    "session ended": Event("Session {session} of {server_id} ended: {outcome}"),
    # Bearers
    "bearer started": Event("The bearer for {telephony} hands pushes to {door}"),
    "bearer stopped": Event("The bearer for {telephony} has stopped"),
    "bus connected": Event("The system bus is connected"),
    "bus lost": Event("The system bus cannot be used: {problem}", "b864bbf02e26b3059aa6e4499f14dc4c"),
    "telephony missing": Event(
        "{name} does not answer on the system bus: {problem}", "5f6998467c21633bfb2b2de6f6f9a0f8"
    ),
    "agent registered": Event("Pushes of the modem {modem} are received", "b840f40aeb0bdd25f1c680ca74428927"),
    "agent refused": Event(
        "Pushes of the modem {modem} are not received: {problem}", "d65c92fc141cf67b352eaae35adbf1a0"
    ),
    "agent withdrawn": Event("Pushes of the modem {modem} are received no longer", "9a58259d0fe39a8e159eb6fb719652d6"),
    "push received": Event("A push of {octets} octets came by SMS from {sender}"),
    "push handed in": Event("A push of {octets} octets was handed in, verdict: {verdict}"),
    "message left": Event("The SMS {message} of {octets} octets is left in ModemManager: {problem}"),
    "message not deleted": Event(
        "The SMS {message} was not deleted in ModemManager: {problem}", "450d7945e1b0447ba66edbd0a7b796c5"
    ),
    "door shut": Event("The door {door} cannot be used: {problem}", "28dbeddd13ea7e5038f3e56c258780f5"),
    "door open": Event("The door {door} can be used again"),
    "push dropped": Event("A push of {octets} octets was dropped: {problem}", "40d86d750d0ae986df93adb6476fcb85"),
    "pushes lost": Event("Pushes were lost: {count}, {problem}", "76d8cdb0590bf7e576f2b8c125b45ce9"),
}
