"""How fast frames go the whole way from USB reads to counts: reader thread, checksums, sequence, decoding; no disk.

The detector is the product's own, over pyusb and a bus that costs little: it copies packets, one in each transfer, as a
bus does where a packet that is no multiple of 512 bytes ends its transfer. The peer does the same work on the same bus
without the product: reads one by one into fresh buffers, zlib's CRC32, NumPy's unpackbits. Beside both stands what one
chip can give at most: 2,034 frames/s at 200 MHz.

# Ref: 2,034 frames/s = 200e6 * 8 / (65536 * 12): medipix3rx reference 6.4, "chip maximum".
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import time
import zlib
from array import array
from pathlib import Path
from statistics import median

import numpy as np
import usb.core
from decode import numpy_decoder
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a script finds the packages of its own checkout

from firmware_iface import wire
from firmware_iface.bitplanes import decode_matrix, matrix_bytes
from firmware_iface.chip import EFUSE_HEADER_BYTES
from firmware_iface.configuration import Configuration
from firmware_iface.device import Detector
from firmware_iface.frame import Lost
from firmware_iface.usb_transport import UsbTransport
from firmware_iface.wire import BoardState, Opcode
from tests.plain_bus import PlainBus

DEPTH_BITS, N_LINES = 12, 8
N_PAYLOADS = 16
"""Frames in turn, 1.5 MB: more than a core's own cache holds."""
CHIP_FRAMES_PER_S = 8 * 200e6 / (256 * 256 * DEPTH_BITS)
BOARD_INFO = (2, wire.VERSION, 1, N_LINES, 1, 1, 0, b"FAST")


class FastBus(PlainBus):
    """A bus with one board that has every frame ready, as a pyusb backend."""

    version, speed, max_packet_bytes = 0x0300, 4, 1024

    def __init__(self) -> None:
        super().__init__(self)
        rng = np.random.default_rng(1)
        self.payloads = [rng.bytes(EFUSE_HEADER_BYTES + matrix_bytes(DEPTH_BITS)) for _ in range(N_PAYLOADS)]
        self._checksums = [zlib.crc32(payload) for payload in self.payloads]
        self._replies: list[bytes] = []
        self._run_id = self._n_frames = self._n_done = self._omr = 0

    def packet_into(self, view: memoryview) -> int:
        """Write the packet of the next frame, and return its length."""
        turn = self._n_done % N_PAYLOADS
        payload = self.payloads[turn]
        before = struct.pack(
            "<4sHHIIQQQQBBBBII", b"MPXF", wire.VERSION, 64, self._run_id, 4, self._n_done, self._n_done * 491_520,
            1000, self._omr, 0, 1, DEPTH_BITS, N_LINES, len(payload), self._checksums[turn],
        )  # fmt: skip
        view[:60] = before
        view[60:64] = struct.pack("<I", zlib.crc32(before))
        view[64 : 64 + len(payload)] = payload
        self._n_done += 1
        return 64 + len(payload)

    def bulk_read(self, dev_handle: object, ep: int, intf: int, buff: array, timeout: int) -> int:
        view = memoryview(buff)
        if ep == wire.EP_FRAMES and self._n_done < self._n_frames:
            return self.packet_into(view)
        if ep == wire.EP_REPLY and self._replies:
            reply = self._replies.pop(0)
            view[: len(reply)] = reply
            return len(reply)
        time.sleep(min(timeout, 20) / 1000)
        raise usb.core.USBTimeoutError("Operation timed out", -7, 110)

    def bulk_write(self, dev_handle: object, ep: int, intf: int, data: array, timeout: int) -> int:
        _, version, opcode, tag, _, n_payload = wire.COMMAND_HEADER.unpack_from(data)
        payload = data.tobytes()[wire.COMMAND_HEADER.size :][:n_payload]
        answer = b""
        if opcode == Opcode.GET_INFO:
            answer = wire.INFO.pack(*BOARD_INFO)
        elif opcode == Opcode.GET_STATUS:
            state = BoardState.ACQUIRING if self._n_done < self._n_frames else BoardState.IDLE
            answer = wire.STATUS.pack(state, 0, 1, self._run_id, self._n_done, 300_000, 0)
        elif opcode == Opcode.READ_REGISTER:
            answer = wire.REGISTER_VALUE.pack(0)  # as after power-up
        elif opcode == Opcode.START:
            self.start(*wire.START.unpack_from(payload)[:2], omr=wire.OMR.unpack_from(payload, wire.START.size)[0])
        reply = wire.REPLY_HEADER.pack(wire.REPLY_MAGIC, version, opcode, tag, 0, len(answer)) + answer
        self._replies.append(reply + wire.CRC.pack(zlib.crc32(reply)))
        return len(data)

    def start(self, run_id: int, n_frames: int, *, omr: int) -> None:
        self._run_id, self._n_frames, self._n_done, self._omr = run_id, n_frames, 0, omr


def ours_per_s(bus: FastBus, detector: Detector, n_frames: int) -> float:
    """Return the frames per second of the product; end the program at any loss or wrong count."""
    n_came, checked = 0, {0, n_frames // 2, n_frames - 1}
    begin_s = time.perf_counter()
    for item in detector.frames(n_frames, 1e-6):
        if isinstance(item, Lost) or item.sequence != n_came:
            sys.exit(f"frame {n_came} did not come, but {item}")
        n_came += 1
        if item.sequence in checked and not np.array_equal(item.counts[0], expected(bus, item.sequence)):
            sys.exit(f"the counts of frame {item.sequence} are wrong")
    took_s = time.perf_counter() - begin_s
    if n_came != n_frames:
        sys.exit(f"{n_came} of {n_frames} frames came")
    return n_frames / took_s


def expected(bus: FastBus, sequence: int) -> NDArray[np.uint16]:
    payload = bus.payloads[sequence % N_PAYLOADS][EFUSE_HEADER_BYTES:]
    return numpy_decoder(DEPTH_BITS, N_LINES)(payload)


def peer_per_s(bus: FastBus, n_frames: int) -> float:
    """Return the frames per second of the plain way: pyusb, zlib and NumPy, one after the other."""
    device = usb.core.find(backend=bus, idVendor=wire.VENDOR_ID)
    decode = numpy_decoder(DEPTH_BITS, N_LINES)
    bus.start(1, n_frames, omr=0)
    begin_s = time.perf_counter()
    for sequence in range(n_frames):
        packet = device.read(wire.EP_FRAMES, 1 << 20, 1000).tobytes()
        header = wire.FRAME_HEADER.unpack_from(packet)
        payload = packet[wire.FRAME_HEADER.size :]
        if header[5] != sequence or zlib.crc32(payload) != header[14] or zlib.crc32(packet[:60]) != header[15]:
            sys.exit(f"the peer's frame {sequence} is wrong")
        decode(payload[EFUSE_HEADER_BYTES:])
    return n_frames / (time.perf_counter() - begin_s)


def main() -> None:
    """Measure, and print the table or the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer frames")
    arguments = parser.parse_args()
    n_rounds, n_frames = (5, 1500) if arguments.quick else (9, 6000)
    bus, peer_bus = FastBus(), FastBus()  # the reader thread of ours takes whatever its bus has
    decode_matrix(bus.payloads[0][EFUSE_HEADER_BYTES:], DEPTH_BITS, N_LINES)  # compiled before the clock runs
    ours, peer = [], []
    with Detector(UsbTransport(bus)) as detector:
        detector.configure(Configuration(is_colour=False, depth_bits=DEPTH_BITS))
        ours_per_s(bus, detector, 50)
        for _ in range(n_rounds):  # in turns, so that a busy machine harms both alike
            ours.append(ours_per_s(bus, detector, n_frames))
            peer.append(peer_per_s(peer_bus, n_frames // 4))
    figures = {
        "frames_per_s": round(median(ours), 1),
        "best_frames_per_s": round(max(ours), 1),
        "peer_numpy_frames_per_s": round(median(peer), 1),
        "ratio": round(median(ours) / median(peer), 2),
        "chip_frames_per_s": round(CHIP_FRAMES_PER_S, 1),
        "bits": DEPTH_BITS,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    print(
        json.dumps(figures) if arguments.json else "\n".join(f"{name:<26} {value}" for name, value in figures.items())
    )


if __name__ == "__main__":
    main()
