"""Simulated controllers at the other end of a pseudo-terminal, Grbl, Marlin and a tube, and what can go wrong there."""

from __future__ import annotations

import os
import re
import select
import threading
import time
import tty
from collections.abc import Iterator


class Peer:
    """Something at the other end of a serial port; `path` is the port.

    `mangle` may change, cut or withhold whatever it says, given the number of the line and the line.
    """

    instant = b""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self.heard: list[str] = []
        self.said = 0
        self.mangle = lambda number, line: line
        self.delay_s = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_closed = True
        self._thread.join()
        for end in (self._master, self._slave):
            os.close(end)

    def say(self, line: str) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        text = self.mangle(self.said, line)
        self.said += 1
        if text is not None:
            os.write(self._master, (text + "\r\n").encode("latin-1"))

    def obey(self, line: str) -> None:
        raise NotImplementedError

    def at_once(self, byte: bytes) -> None:
        raise NotImplementedError

    def tick(self) -> None: ...

    def _serve(self) -> None:
        line = b""
        while not self._is_closed:
            self.tick()
            if not select.select([self._master], [], [], 0.005)[0]:
                continue
            for byte in (bytes([value]) for value in os.read(self._master, 4096)):
                if byte in self.instant_bytes():
                    self.at_once(byte)
                elif byte == b"\n":
                    self.heard.append(line.decode())
                    self.obey(line.decode())
                    line = b""
                else:
                    line += byte

    def instant_bytes(self) -> Iterator[bytes]:
        return (bytes([value]) for value in self.instant)


class Mover(Peer):
    """Axes that go from where they are to where they are sent, in real time."""

    units_per_s = 2000.0

    def __init__(self) -> None:
        self.place = dict.fromkeys("XYZ", 0.0)
        self.target = dict(self.place)
        self.sticks_at: float | None = None
        self._last_s = time.monotonic()
        super().__init__()

    @property
    def is_moving(self) -> bool:
        return self.place != self.target

    def tick(self) -> None:
        now_s = time.monotonic()
        step, self._last_s = self.units_per_s * (now_s - self._last_s), now_s
        for axis, there in self.target.items():
            left = there - self.place[axis]
            self.place[axis] = there if abs(left) <= step else self.place[axis] + step * (1 if left > 0 else -1)

    def go(self, line: str) -> None:
        for axis, number in re.findall(r"([XYZ])(-?[0-9.]+)", line):
            there = float(number)
            self.target[axis] = there if self.sticks_at is None else min(there, self.sticks_at)


class GrblPeer(Mover):
    """As Grbl 1.1: a report for each "?", "ok" when a move is planned."""

    instant = b"?!~\x18"

    def __init__(self) -> None:
        self.alarm = ""
        self.is_held = False
        super().__init__()

    def at_once(self, byte: bytes) -> None:
        if byte == b"?":
            state = "Alarm" if self.alarm else "Hold:0" if self.is_held else "Run" if self.is_moving else "Idle"
            where = ",".join(f"{self.place[axis] - 5:.3f}" for axis in "XYZ")
            self.say(f"<{state}|MPos:{where}|FS:0,0|WCO:-5.000,-5.000,-5.000>")
        elif byte == b"!":
            self.is_held, self.target = self.is_moving, dict(self.place)
        elif byte == b"\x18":
            self.reset()

    def reset(self) -> None:
        self.target, self.is_held = dict(self.place), False
        self.say("Grbl 1.1h ['$' for help]")

    def trip(self, code: str) -> None:
        self.target, self.alarm = dict(self.place), code
        self.say(f"ALARM:{code}")

    def obey(self, line: str) -> None:
        if line == "$H":
            self.alarm, self.place = "", dict.fromkeys("XYZ", 0.0)
            self.target = dict(self.place)
        elif self.alarm and not line.startswith("$"):
            self.say("error:9")
            return
        elif line == "$$":
            self.say("$110=120000.000")
            self.say("$112=60000.000")
        elif line.startswith(("G0", "G1")):
            self.go(line)
        self.say("ok")


class MarlinPeer(Mover):
    """As Marlin 2: M400 is answered when it stands, with "busy" lines until then; M410 is heard at once."""

    def __init__(self) -> None:
        self._is_awaited = False
        super().__init__()

    def tick(self) -> None:
        super().tick()
        if self._is_awaited and not self.is_moving:
            self._is_awaited = False
            self.say("ok")

    def obey(self, line: str) -> None:
        if line == "M410":
            self.target = dict(self.place)
        elif line == "M400":
            self._is_awaited = True
            self.say("echo:busy: processing")
            return
        elif line == "M114":
            self.say(" ".join(f"{axis}:{self.place[axis]:.2f}" for axis in "XYZ") + " E:0.00 Count X:0 Y:0 Z:0")
        elif line == "M503":
            self.say("echo:  M203 X2000.00 Y2000.00 Z1000.00 E25.00")
        elif line.startswith(("G0", "G1")):
            self.go(line)
        self.say("ok")


class TubePeer(Peer):
    """A tube that speaks the generic dialect."""

    def __init__(self) -> None:
        self.values = {"VOLT": 0.0, "CURR": 0.0}
        self.is_on, self.interlock, self.warm, self.fault = False, "CLOSED", "READY", "NONE"
        self.error = '0,"No error"'
        self.lamp: str | None = None
        super().__init__()

    def obey(self, line: str) -> None:
        word, _, value = line.partition(" ")
        if word in self.values:
            if float(value) > 120_000:
                self.error = '-222,"Data out of range"'
            else:
                self.values[word] = float(value)
        elif line == "OUTP ON":
            self.is_on = True
        elif line == "OUTP OFF":
            self.is_on = False
        elif line == "OUTP:WARM ON":
            self.warm = "0.5"
        elif line == "OUTP:FAULT:CLEAR":
            self.fault = "NONE"
        elif line == "OUTP:WARM?":
            self.say(self.warm)
            self.warm = "READY" if self.warm == "0.5" else self.warm
        elif line == "SYST:ERR?":
            self.say(self.error)
            self.error = '0,"No error"'
        else:
            answers = {
                "*IDN?": "tubes,t1,0,1", "VOLT?": f"{self.values['VOLT']}", "CURR?": f"{self.values['CURR']}",
                "OUTP:LAMP?": self.lamp or str(int(self.is_on)), "OUTP:INT?": self.interlock, "OUTP:FAULT?": self.fault,
            }  # fmt: skip
            self.say(answers[line])
