"""A modem that speaks AT commands (3GPP TS 27.005, 27.007), as far as telephony daemons ask before they take an SMS."""

import re
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self
from uuid import uuid4

IMSI: Final = "001010123456789"

ANSWERS: Final[dict[str, str]] = {
    # The modem, its SIM, and the network
    r"AT\+CGMI": "Simulated",
    r"AT\+CGMM": "Modem",
    r"AT\+CGMR": "1",
    r"AT\+CGSN": "490154203237518",
    r"AT\+GCAP": "+GCAP: +CGSM",
    r"AT\+CIMI": IMSI,
    r"AT\+CPIN\?": "+CPIN: READY",
    r"AT\+CFUN\?": "+CFUN: 1",
    r"AT\+CSCS=\?": '+CSCS: ("IRA","GSM","UCS2")',
    r"AT\+CSQ": "+CSQ: 20,99",
    # Without the number of the SIM, ModemManager asks again for three seconds.
    r"AT\+CRSM=176,12258,.*": '+CRSM: 144,0,"98100100000000000010"',
    r"AT\+CREG\?": "+CREG: 2,1",
    r"AT\+COPS\?": '+COPS: 0,0,"Test"',
    # Messages: acknowledged, in a memory of the modem or of the SIM, as PDUs
    r"AT\+CSMS=\?": "+CSMS: (0,1)",
    r"AT\+CSMS=.": "+CSMS: 1,1,1",
    r"AT\+CSMS\?": "+CSMS: 1,1,1,1",
    r"AT\+CMGF=\?": "+CMGF: (0,1)",
    r"AT\+CMGF\?": "+CMGF: 0",
    r"AT\+CPMS=\?": '+CPMS: ("ME","SM"),("ME","SM"),("ME","SM")',
    r"AT\+CPMS\?": '+CPMS: "ME",0,50,"ME",0,50,"ME",0,50',
    r"AT\+CNMI=\?": "+CNMI: (0-2),(0-3),(0-3),(0-2),(0-1)",
}
"""Answers before OK, by the regular expression of a command. Other commands are answered with OK or ERROR alone."""

ERRORS: Final = r"AT\+(CRSM|CPINR|CIND|CMER|CLCC|SIMSTATE|CUAD|CSIM).*|AT\+[A-Z]*=\?|AT[\^%$*#].*"
"""Commands of functions that this modem does not have."""


class Modem:
    """A modem for one daemon at a time; ended with the block."""

    def __init__(self) -> None:
        # A port of loopback, for oFono's phonesim plugin; an abstract socket, for ModemManager's test profiles.
        port, abstract = self._listeners = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.port: int = port.getsockname()[1]
        # The first word is a part of the name.
        self.name = f"abstract:{uuid4()}"
        abstract.bind(f"\0{self.name}")
        abstract.listen()
        # The connection of the daemon.
        self._peer: socket.socket | None = None
        # Announcements come from other threads than answers.
        self._sending = threading.Lock()
        # The TPDUs in its memory by index, and all commands that it has received.
        self.stored: dict[int, bytes] = {}
        self.commands: list[str] = []
        # The memory that is read, and whether "SM" is another name for "ME": some modems have one memory for both.
        self._memory = "ME"
        self.one_memory = False
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread from select(), or from recv().
        for sock in (*self._listeners, *([] if self._peer is None else [self._peer])):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for listener in self._listeners:
            listener.close()

    def send(self, *tpdus: bytes) -> None:
        """Hand TPDUs over without storing them (+CMT)."""
        for tpdu in tpdus:
            self._write(f"+CMT: ,{len(tpdu)}\r\n00{tpdu.hex()}")

    def store(self, *tpdus: bytes, announce: bool = True) -> None:
        """Store TPDUs and announce each (+CMTI)."""
        for tpdu in tpdus:
            index = max(self.stored, default=0) + 1
            self.stored[index] = tpdu
            if announce:
                self._write(f'+CMTI: "ME",{index}')

    def _serve(self) -> None:
        while True:
            listener, *_ = select.select(self._listeners, [], [])[0]
            try:
                self._peer, _ = listener.accept()
            except OSError:
                return
            with self._peer, suppress(OSError):
                self._talk(self._peer.recv)

    def _talk(self, receive: Callable[[int], bytes]) -> None:
        text = ""
        while octets := receive(4096):
            text += octets.decode("ascii", "replace")
            # A command ends with CR, a PDU after a prompt with Ctrl-Z.
            *lines, text = re.split("[\r\x1a]", text)
            for line in lines:
                if command := line.strip().removeprefix("\x1b"):
                    self.commands.append(command)
                    # A PDU follows the prompt, and is answered then.
                    prompts = command.startswith("AT+CNMA=1,")
                    self._octets(b"\r\n> ") if prompts else self._write(*self._answer(command))

    def _answer(self, command: str) -> list[str]:  # noqa: PLR0911 - one for each kind of command
        for pattern, answer in ANSWERS.items():
            if re.fullmatch(pattern, command):
                return [answer, "OK"]
        here = self.stored if self.one_memory or self._memory == "ME" else {}
        match re.split("[=?,]", command):
            case ["AT+CPMS", memory, *_]:
                self._memory = memory.strip('"')
                return ["+CPMS: 0,50,0,50,0,50", "OK"]
            case ["AT+CMGL", *_]:
                listed = (f"+CMGL: {index},0,,{len(tpdu)}\r\n00{tpdu.hex()}" for index, tpdu in here.items())
                return [*listed, "OK"]
            case ["AT+CMGR", index] if int(index) in here:
                tpdu = self.stored[int(index)]
                return [f"+CMGR: 0,,{len(tpdu)}\r\n00{tpdu.hex()}", "OK"]
            case ["AT+CMGD", index, *_] if here.pop(int(index), None) is not None:
                return ["OK"]
            case ["AT+CMGR" | "AT+CMGD", *_]:
                return ["+CMS ERROR: 321"]
        return ["ERROR" if re.fullmatch(ERRORS, command) else "OK"]

    def _write(self, *lines: str) -> None:
        self._octets("".join(f"\r\n{line}\r\n" for line in lines).encode())

    def _octets(self, octets: bytes) -> None:
        assert self._peer is not None, "no daemon is connected"
        with self._sending:
            self._peer.sendall(octets)
