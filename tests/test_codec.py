"""Bytes to frames and losses: whatever happens on the way, a frame is right, or told as lost, or of no concern."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_iface import codec
from firmware_iface.bitplanes import decode_matrix
from firmware_iface.codec import (
    FrameDecoder,
    Readout,
    Reply,
    ReplyDecoder,
    chip_name,
    decode_dacs,
    efuse_word,
    encode_command,
    encode_dacs,
    encode_pixels,
)
from firmware_iface.frame import Lost
from firmware_iface.wire import FrameFlag, Opcode

RUN_ID = 7
OMR_1_BIT = 0x000800300064  # read counter 1: 8 lines, 1 bit, colour, CSM, HGM, no info header


def packet(
    sequence: int, counter: int = 1, *, run_id: int = RUN_ID, flags: int = 4, depth_bits: int = 1, chip: int = 0
) -> bytes:
    payload = random.Random(1000 * sequence + counter).randbytes(8192 * depth_bits)
    before_crc = struct.pack(
        "<4sHHIIQQQQBBBBII",
        b"MPXF", 2, 64, run_id, flags, sequence, 1000 * sequence, 500, OMR_1_BIT, chip, counter, depth_bits, 8,
        len(payload), zlib.crc32(payload),
    )  # fmt: skip
    return before_crc + struct.pack("<I", zlib.crc32(before_crc)) + payload


def frame(sequence: int, n_readouts: int) -> bytes:
    return b"".join(packet(sequence, counter) for counter in ((1, 0) if n_readouts == 2 else (1,)))


def in_chunks(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    chunks, start = [], 0
    for size in sizes:
        chunks.append(data[start : start + size])
        start += size
    return [*chunks, data[start:]]


def decode(chunks: Iterable[bytes], n_frames: int, n_readouts: int = 1) -> list[tuple[Readout, ...] | Lost]:
    decoder = FrameDecoder(RUN_ID, n_frames, n_readouts)
    items = [item for chunk in chunks for item in decoder.receive(chunk)]
    return items + list(decoder.finish())


def told(items: Iterable[tuple[Readout, ...] | Lost]) -> list[tuple[str, int]]:
    """Return what is told of each frame, in order; each frame that is whole is checked against what was sent."""
    outcome = []
    for item in items:
        if isinstance(item, Lost):
            assert item.run_id == RUN_ID
            assert item.reason
            outcome += [("lost", item.first_sequence + n) for n in range(item.n_frames)]
        else:
            for readout in item:
                assert readout.matrix_bits == packet(readout.sequence, readout.counter)[64:]
            assert len({readout.sequence for readout in item}) == 1
            outcome.append(("whole", item[0].sequence))
    return outcome


# Frames


def test_a_readout_says_what_its_header_says() -> None:
    (item,) = FrameDecoder(RUN_ID, 4).receive(packet(0, flags=5))
    assert isinstance(item, tuple)
    (readout,) = item
    assert (readout.run_id, readout.sequence, readout.counter) == (7, 0, 1)
    assert (readout.depth_bits, readout.n_lines, readout.omr) == (1, 8, OMR_1_BIT)
    assert (readout.timestamp_ns, readout.exposure_ns) == (0, 500)
    assert readout.flags == FrameFlag.PAUSED | FrameFlag.LAST_READOUT
    assert (len(readout.info_header), len(readout.matrix_bits)) == (0, 8192)


@pytest.mark.parametrize("n_readouts", [1, 2])
@given(sizes=st.lists(st.integers(0, 20000)))
@settings(deadline=None, max_examples=40)
def test_chunks_do_not_matter(n_readouts: int, sizes: list[int]) -> None:
    stream = b"".join(frame(sequence, n_readouts) for sequence in range(4))
    items = decode(in_chunks(stream, sizes), 4, n_readouts)
    assert told(items) == [("whole", n) for n in range(4)]


def test_single_bytes_will_do() -> None:
    stream = packet(0) + packet(1)
    assert told(decode((bytes([byte]) for byte in stream), 2)) == [("whole", 0), ("whole", 1)]


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_no_damage_makes_a_wrong_frame_or_hides_a_loss(data: st.DataObject) -> None:
    n_readouts = data.draw(st.sampled_from([1, 2]))
    packets = [packet(n, counter) for n in range(5) for counter in ((1, 0) if n_readouts == 2 else (1,))]
    harmed = data.draw(st.sets(st.integers(0, len(packets) - 1), max_size=3))
    harmless = {n // n_readouts for n in range(len(packets)) if n not in harmed} - {n // n_readouts for n in harmed}
    for n in harmed:
        how = data.draw(st.sampled_from(["drop", "flip", "cut", "insert"]))
        where = data.draw(st.integers(0, len(packets[n]) - 1) | st.integers(0, 63))
        if how == "drop":
            packets[n] = b""
        elif how == "flip":
            packets[n] = packets[n][:where] + bytes([packets[n][where] ^ 0x40]) + packets[n][where + 1 :]
        elif how == "cut":
            packets[n] = packets[n][:where]
        else:
            packets[n] = packets[n][:where] + b"MPXFMPX" + packets[n][where:]
    if harmed and data.draw(st.booleans()):
        packets.insert(0, packet(0, run_id=RUN_ID - 1)[:5000])
    outcome = told(decode(in_chunks(b"".join(packets), data.draw(st.lists(st.integers(0, 30000)))), 5, n_readouts))
    assert [sequence for _, sequence in outcome] == list(range(5)), "every frame once, in order"
    assert {sequence for what, sequence in outcome if what == "whole"} >= harmless


def test_a_gap_is_told_before_the_frame_that_follows() -> None:
    items = decode([packet(0) + packet(3)], 4)
    assert told(items) == [("whole", 0), ("lost", 1), ("lost", 2), ("whole", 3)]
    assert isinstance(items[1], Lost)
    assert (items[1].first_sequence, items[1].n_frames) == (1, 2)


def test_an_overflow_of_the_board_is_given_as_the_reason() -> None:
    items = decode([packet(2, flags=FrameFlag.OVERFLOW | FrameFlag.LAST_READOUT)], 3)
    assert isinstance(items[0], Lost)
    assert "memory" in items[0].reason


def test_a_damaged_payload_is_told_in_its_place_at_once() -> None:
    damaged = bytearray(packet(1))
    damaged[4000] ^= 1
    decoder = FrameDecoder(RUN_ID, 3)
    assert told(decoder.receive(packet(0) + damaged)) == [("whole", 0), ("lost", 1)]
    assert decoder.n_accounted == 2
    assert told(decoder.receive(packet(2))) == [("whole", 2)]
    assert decoder.is_complete


def test_a_missing_half_loses_the_frame() -> None:
    stream = packet(0, 1) + packet(0, 0) + packet(1, 0) + packet(2, 1) + packet(3, 1) + packet(3, 0)
    items = decode([stream], 4, 2)
    assert told(items) == [("whole", 0), ("lost", 1), ("lost", 2), ("whole", 3)]
    assert isinstance(items[1], Lost)
    assert "1 of its 2 readouts" in items[1].reason


def test_a_repeated_packet_is_no_second_frame_and_no_other_half() -> None:
    stream = packet(0, 1) + packet(0, 1) + packet(0, 0) + packet(0, 1) + packet(0, 0) + packet(1, 1) + packet(1, 1)
    assert told(decode([stream], 2, 2)) == [("whole", 0), ("lost", 1)]


def test_leftovers_of_another_run_are_skipped_even_when_cut_short() -> None:
    leftovers = packet(5, run_id=RUN_ID - 1) + packet(6, run_id=RUN_ID - 1)[:3000]
    assert told(decode([leftovers + packet(0)], 1)) == [("whole", 0)]


def test_a_frame_behind_the_end_of_the_run_is_skipped() -> None:
    assert told(decode([packet(0) + packet(1)], 1)) == [("whole", 0)]


def test_what_waits_behind_a_truncated_packet_comes_at_the_end() -> None:
    decoder = FrameDecoder(RUN_ID, 3)
    assert told(decoder.receive(packet(0)[:3000] + packet(1)[:4000])) == []
    assert told(decoder.finish()) == [("lost", 0), ("lost", 1), ("lost", 2)]
    decoder = FrameDecoder(RUN_ID, 2)
    assert told(decoder.receive(packet(0, depth_bits=1)[:100])) == []
    assert told(decoder.receive(packet(1)[:8000])) == []
    assert told(decoder.receive(packet(1)[8000:])) == [("lost", 0), ("whole", 1)]


def test_a_stopped_run_ends_where_the_board_says() -> None:
    decoder = FrameDecoder(RUN_ID, 0)
    assert told(decoder.receive(packet(0))) == [("whole", 0)]
    assert not decoder.is_complete
    assert told(decoder.finish(3)) == [("lost", 1), ("lost", 2)]
    assert decoder.is_complete


def test_a_payload_that_does_not_fit_its_depth_is_lost() -> None:
    items = decode([packet(0)[:46] + b"\x06" + packet(0)[47:]], 1)
    assert told(items) == [("lost", 0)]  # the header's checksum finds it
    payload = bytes(100)
    head = packet(0)[:52] + struct.pack("<II", 100, zlib.crc32(payload))
    items = decode([head + struct.pack("<I", zlib.crc32(head)) + payload], 1)
    assert isinstance(items[0], Lost)
    assert "8192" in items[0].reason


# The specification's golden bytes


def golden_bytes() -> bytes:
    """Return the hex bytes of the last section of the specification, one after the other."""
    text = (Path(codec.__file__).parent / "PROTOCOL.md").read_text().split("## 12. Golden bytes")[1]
    lines = [line for block in re.findall(r"```\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    found = [re.match(r"(?:[0-9a-f]{2}(?: |$))+", line) for line in lines]
    return b"".join(bytes.fromhex(each[0]) for each in found if each)


def test_the_worked_commands_are_those_that_are_sent() -> None:
    start = struct.pack("<IIQQB7xQ", 7, 100, 2_000_000, 0, 1, 0x000800700464)
    dacs = bytes.fromhex("FA7D2D2F 200CBFC1 200C9699 1119191F 5F429919 0C864321 90C8281E 40000000")
    sent = {
        (0x01, 1): b"", (0x40, 2): b"ROT?", (0x20, 3): start, (0x05, 4): struct.pack("<Hi", 0x30, -450_000),
        (0x04, 5): struct.pack("<H", 0x34), (0x02, 7): b"", (0x10, 8): struct.pack("<QB7x", 0x000800300061, 2) + dacs,
        (0x12, 9): struct.pack("<QB7x", 0x028800300063, 1), (0x11, 10): b"", (0x23, 11): b"", (0x03, 12): b"",
        (0x21, 13): b"", (0x22, 14): b"",
    }  # fmt: skip
    assert {opcode for opcode, _ in sent} == set(Opcode), "every command has its golden bytes"
    stream = golden_bytes()
    for (opcode, tag), payload in sent.items():
        assert encode_command(opcode, tag, payload) in stream, opcode


def test_the_worked_replies_are_read() -> None:
    info = struct.pack("<HHBBBBI16s", 2, 2, 4, 8, 2, 2, 63, b"QUAD-7")
    status = struct.pack("<BBHIQii", 3, 0, 1, 7, 2, 308_150, -450_000)
    assert list(ReplyDecoder().receive(golden_bytes())) == [
        Reply(0x01, 1, 0, info), Reply(0x40, 2, 0, b"12.5"), Reply(0x05, 4, 0, b""),
        Reply(0x04, 5, 0, struct.pack("<i", -440_312)), Reply(0x21, 6, 5, b""), Reply(0x02, 7, 0, status),
        Reply(0x12, 9, 0, struct.pack("<i", 650_000)),
    ]  # fmt: skip


def test_the_worked_packet_of_a_quad_is_one_part_of_its_frame() -> None:
    stream = golden_bytes()
    last = stream[stream.rindex(b"MPXF") :][:64] + bytes(8192)
    others = [
        packet(5, 0, chip=chip, flags=FrameFlag.PAUSED | FrameFlag.OVERFLOW | FrameFlag.TRIGGERED) for chip in range(3)
    ]
    loss, frame_ = FrameDecoder(RUN_ID, 6, 1, 4).receive(b"".join(others) + last)
    assert isinstance(loss, Lost)
    assert (loss.first_sequence, loss.n_frames) == (0, 5)
    assert isinstance(frame_, tuple)
    assert [each.chip for each in frame_] == [0, 1, 2, 3]
    assert (frame_[3].timestamp_ns, frame_[3].omr, frame_[3].counter) == (50_000_000, 0x000800100060, 0)
    flags = FrameFlag.PAUSED | FrameFlag.OVERFLOW | FrameFlag.LAST_READOUT | FrameFlag.TRIGGERED
    assert frame_[3].flags == flags


def test_a_missing_chip_loses_the_frame_and_a_chip_too_many_is_damage() -> None:
    stream = b"".join(packet(sequence, 1, chip=chip) for sequence in range(2) for chip in range(2 - sequence))
    items = list(FrameDecoder(RUN_ID, 2, 1, 2).receive(stream))
    assert [type(item) for item in items] == [tuple]
    (loss,) = FrameDecoder(RUN_ID, 1, 1, 2).receive(packet(0, 1, chip=2))
    assert isinstance(loss, Lost)
    assert "chip 2" in loss.reason


def test_the_worked_frame_is_decoded() -> None:
    stream = golden_bytes()
    head = stream[stream.index(b"MPXF") :][: 64 + 32]
    matrix = bytearray(98304)
    matrix[351], matrix[352], matrix[383] = 0x80, 0x01, 0x80
    ((readout,),) = FrameDecoder(7, 1).receive(head + matrix)
    assert (readout.timestamp_ns, readout.exposure_ns, readout.omr) == (1_000_000, 2_000_000, 0x000800700464)
    assert chip_name(efuse_word(readout.info_header)) == "W529_F5"
    counts = decode_matrix(readout.matrix_bits, readout.depth_bits, readout.n_lines)
    assert {(row, col): counts[row, col] for row, col in np.argwhere(counts)} == {(0, 255): 1, (0, 0): 2}


# Commands and replies


def test_commands_are_the_bytes_of_the_specification() -> None:
    assert encode_command(0x01, 1).hex(" ") == "6d 43 02 01 01 00 00 00 00 00 00 00 87 10 a6 5d"
    assert encode_command(0x40, 0x1234, b"ROT?")[:16].hex() == "6d43024034120000" + "04000000" + b"ROT?".hex()
    with pytest.raises(ValueError, match="131072"):
        encode_command(0x10, 0, bytes((1 << 17) + 1))
    with pytest.raises(ValueError, match="65535"):
        encode_command(0x10, 1 << 16)


def reply(opcode: int, tag: int, status: int, payload: bytes) -> bytes:
    packet = struct.pack("<2sBBHHI", b"mR", 2, opcode, tag, status, len(payload)) + payload
    return packet + struct.pack("<I", zlib.crc32(packet))


@given(sizes=st.lists(st.integers(0, 50)))
def test_replies_come_out_of_any_chunks(sizes: list[int]) -> None:
    stream = b"mR garbage m" + reply(1, 2, 0, b"abc") + reply(64, 3, 1, b"")
    decoder = ReplyDecoder()
    replies = [each for chunk in in_chunks(stream, sizes) for each in decoder.receive(chunk)]
    assert replies == [Reply(1, 2, 0, b"abc"), Reply(64, 3, 1, b"")]


@pytest.mark.parametrize("n", range(len(reply(1, 2, 0, b"abc"))))
def test_a_damaged_reply_is_no_reply(n: int) -> None:
    damaged = bytearray(reply(1, 2, 0, b"abc"))
    damaged[n] ^= 0x10
    decoder = ReplyDecoder()
    assert list(decoder.receive(damaged)) == []
    if n not in range(8, 12):  # a wrong length makes it wait for more
        assert list(decoder.receive(reply(9, 9, 0, b""))) == [Reply(9, 9, 0, b"")]


# Registers and pixels


def test_dacs_are_those_of_a_real_system() -> None:
    # Ref: medipix3rx reference section 11: EXCALIBUR's Default_SPM values.
    words = "FA7D2D2F 200CBFC1 200C9699 1119191F 5F429919 0C864321 90C8281E 40000000"
    dacs = {
        **{f"Threshold{n}": 200 for n in range(2, 8)}, "Threshold0": 121, "Threshold1": 80,
        "Preamp": 100, "Ikrum": 10, "Shaper": 125, "Disc": 125, "Disc_LS": 100, "Shaper_test": 100, "DAC_DiscL": 68,
        "DAC_test": 100, "DAC_DiscH": 90, "Delay": 50, "TP_BufferIn": 128, "TP_BufferOut": 4, "RPZ": 255, "GND": 50,
        "TP_REF": 128, "FBK": 188, "Cas": 180, "TP_REFA": 500, "TP_REFB": 500,
    }  # fmt: skip
    assert encode_dacs(dacs) == bytes.fromhex(words)
    assert decode_dacs(bytes.fromhex(words)) == dacs
    with pytest.raises(ValueError, match="Threshold0 is 512; allowed: 0 to 511"):
        encode_dacs({"Threshold0": 512})


def test_pixels_are_shifted_in_from_the_bottom_right_highest_bit_first() -> None:
    words = np.zeros((256, 256), dtype=np.uint16)
    words[0, 255] = 0x800
    words[0, 0] = 0x001
    words[128, 254] = 0x8EA
    lower, upper = encode_pixels(words)
    assert len(lower) == len(upper) == 49152
    assert {n: byte for n, byte in enumerate(lower) if byte} == {0: 0x80, 11 * 32 + 31: 0x01}
    planes_of_8ea = [plane for plane in range(12) if upper[32 * plane] == 0x40]
    assert [11 - plane for plane in planes_of_8ea] == [11, 7, 6, 5, 3, 1]
    assert sum(byte != 0 for byte in upper) == 6


def test_chip_names() -> None:
    header = bytes(20) + bytes.fromhex("00021165") + bytes(8)
    assert efuse_word(header) == 0x00021165
    assert chip_name(0x00021165) == "W529_F5"
    assert efuse_word(bytes(32)) == 0
