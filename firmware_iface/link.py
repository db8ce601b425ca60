"""Commands and their replies over a transport: one at a time, whoever asks; refusals are errors that say whose.

Aborting goes beside the commands: it waits neither for another thread's reply nor for the board's.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from firmware_iface.codec import Reply, ReplyDecoder, encode_command
from firmware_iface.errors import (
    Disconnected,
    OurMistake,
    Stalled,
    TheirMistake,
    TransportError,
    TransportTimeout,
)
from firmware_iface.transport import Transport
from firmware_iface.wire import Opcode, Status

READ_BYTES = 1 << 20
REPLY_TIMEOUT_S = 5.0
LINE_TIMEOUT_S = 12.0
"""The board gives up a line to the gantry after 10 s; none waits for a stage to arrive."""
MAX_HICCUPS = 16
"""How many times running an endpoint may stall, or give nothing, before it counts as broken, or as silent."""
MAX_COMMAND_TRIES = 3
"""How often a command is sent of which the board did not take all."""
_POLL_S = 0.25  # a blocked read hears no Ctrl-C and no closing, so it must be short
_DRAIN_S = 0.05
_MAX_DRAIN_READS = 64
_STATUS_NAMES: Mapping[int, str] = {status.value: status.name for status in Status}
_OUR_MISTAKES = {Status.NOT_ALLOWED, Status.BUSY, Status.OUT_OF_RANGE}


class Link:
    """What a `Detector` says and hears.

    Parameters
    ----------
    transport : Transport
    lose : callable
        Called when the device has left.
    """

    def __init__(self, transport: Transport, lose: Callable[[], object]) -> None:
        self.lock = threading.RLock()
        """Held while one command waits for its reply."""
        self.aborting = threading.RLock()
        """Held while an abort is under way, beside the commands: a late one must not hit the next run."""
        self._transport = transport
        self._lose = lose
        self._replies = ReplyDecoder()
        # Replies that another program left must not have the tag of one of ours.
        self._tag = time.monotonic_ns() // 1000 % (1 << 16)
        self._is_closing = False

    def exchange(self, opcode: Opcode, payload: bytes = b"") -> bytes:
        """Send a command and return the payload of its reply.

        Raises
        ------
        OurMistake, TheirMistake, TransportError
            By the status of the reply, or because none came.
        """
        with self.lock:
            self._tag = (self._tag + 1) % (1 << 16)
            try:
                self._send(encode_command(opcode, self._tag, payload))
                reply = self._await_reply(opcode)
            except Disconnected:
                self._lose()
                raise
        text = reply.payload.decode(errors="replace")
        if reply.status == Status.OK:
            return reply.payload
        name = _STATUS_NAMES.get(reply.status, f"status {reply.status}")
        message = f"the board answered {opcode.name} by {name}{': ' if text else ''}{text}"
        if reply.status == Status.BAD_CRC:
            raise TransportError(message, hint="check the cable")
        raise (OurMistake if reply.status in _OUR_MISTAKES else TheirMistake)(message)

    def abort(self) -> None:
        """End the board's run at once, whatever commands wait; it has ended when this returns.

        Raises
        ------
        TransportError
            The board could not be reached.
        """
        with self.aborting:
            try:
                self._transport.abort()
            except Stalled:  # it does not know the request
                self.exchange(Opcode.ABORT)
            except Disconnected:
                self._lose()
                raise

    def make_safe(self) -> bool:
        """Switch the beam off and stop the stage, whatever commands wait; return whether the board knows how.

        Raises
        ------
        TransportError
            The board could not be reached.
        """
        try:
            self._transport.make_safe()
        except Stalled:
            return False
        except Disconnected:
            self._lose()
            raise
        return True

    def ask(self, opcode: Opcode, layout: struct.Struct, payload: bytes = b"") -> tuple[Any, ...]:
        """Send a command whose reply has a layout, and return its fields."""
        answer = self.exchange(opcode, payload)
        if len(answer) != layout.size:
            raise TheirMistake(f"{opcode.name} was answered by {len(answer)} bytes; allowed: {layout.size}")
        return layout.unpack(answer)

    def read_frames(self, timeout_s: float) -> memoryview:
        """Return what has come of the stream of frames, empty if nothing did in time; overwritten by the next call."""
        deadline_s = time.monotonic() + timeout_s
        for n in range(MAX_HICCUPS):
            try:
                data = self._transport.read_frames(READ_BYTES, max(deadline_s - time.monotonic(), 0.001))
            except Disconnected:
                self._lose()
                raise
            except Stalled:  # nothing is lost by that: the endpoint was cleared, and its bytes still wait
                if n == MAX_HICCUPS - 1:
                    raise
                continue
            # An empty transfer is not the end of the stream, only silence is.
            if data or time.monotonic() >= deadline_s:
                return data
        return memoryview(b"")

    def drain(self) -> None:
        """Read away what is still on its way; what stays is known by its run id."""
        for _ in range(_MAX_DRAIN_READS):
            if not self.read_frames(_DRAIN_S):
                return

    def close(self) -> None:
        """Give the transport back, also from under a command that waits; a second call does nothing."""
        self._is_closing = True
        with self.lock:
            self._transport.close()

    def _send(self, packet: bytes) -> None:
        """Send a command, again where the board did not take all of it: it has forgotten what it took."""
        for n in range(MAX_COMMAND_TRIES):
            try:
                self._transport.write(packet)
                return
            except (Stalled, TransportTimeout) as error:
                if n == MAX_COMMAND_TRIES - 1:
                    raise TransportError(
                        f"a command of {len(packet)} bytes broke off {MAX_COMMAND_TRIES} times: {error}",
                        hint="check the cable and the board's power; what was taken of it is forgotten",
                    ) from error

    def _await_reply(self, opcode: Opcode) -> Reply:
        timeout_s = LINE_TIMEOUT_S if opcode is Opcode.AUXILIARY else REPLY_TIMEOUT_S
        deadline_s = time.monotonic() + timeout_s
        n_stalls = 0
        while (left_s := deadline_s - time.monotonic()) > 0:
            if self._is_closing:
                raise Disconnected("the detector is being closed", hint="open it again")
            with suppress(TransportTimeout):
                try:
                    data = self._transport.read_reply(min(left_s, _POLL_S))
                except Stalled:
                    n_stalls += 1
                    if n_stalls >= MAX_HICCUPS:
                        raise
                    continue
                for reply in self._replies.receive(data):
                    if (reply.opcode, reply.tag) == (opcode, self._tag):  # others answer commands given up before
                        return reply
        self._replies = ReplyDecoder()  # half a reply must not stand before the next one
        with suppress(TransportError):  # nor half a command, should the board wait for its rest
            self._transport.forget_command()
        raise TransportTimeout(
            f"the board did not answer {opcode.name} in {timeout_s:g} s", hint="check the cable and the board's power"
        )
