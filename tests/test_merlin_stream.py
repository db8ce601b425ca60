"""Merlin's TCP grammar: examples of the specification, any chunking, and losses in their places."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_iface.chip import Gain
from firmware_iface.frame import Frame, Lost
from firmware_iface.merlin import FrameHeader, MerlinFrame
from firmware_iface.merlin_stream import (
    UNKNOWN_TIME_NS,
    Answer,
    Expectation,
    FrameCollector,
    MessageDecoder,
    decode_image,
    encode_command,
    parse_answer,
    time_ns,
)


def test_commands_of_the_specification() -> None:
    assert encode_command("SET", "NUMFRAMESTOACQUIRE", "1") == b"MPX,0000000025,SET,NUMFRAMESTOACQUIRE,1"
    assert encode_command("GET", "NUMFRAMESTOACQUIRE") == b"MPX,0000000023,GET,NUMFRAMESTOACQUIRE"
    assert encode_command("CMD", "STARTACQUISITION") == b"MPX,0000000021,CMD,STARTACQUISITION"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"MPX,0000000025,SET,NUMFRAMESTOACQUIRE,0", Answer("SET", "NUMFRAMESTOACQUIRE", "", 0)),
        (b"MPX,0000000027,GET,NUMFRAMESTOACQUIRE,1,0", Answer("GET", "NUMFRAMESTOACQUIRE", "1", 0)),
        (b"MPX,0000000034,GET,SOFTWAREVERSION,Development,0", Answer("GET", "SOFTWAREVERSION", "Development", 0)),
        (b"MPX,0000000023,CMD,STARTACQUISITION,1", Answer("CMD", "STARTACQUISITION", "", 1)),
        (b"MPX,0000000022,CMD,STARTACQUISITION,1", Answer("CMD", "STARTACQUISITION", "", 1)),  # one too few
        (b"MPX,0000000026,GET,NUMFRAMESTOACQUIRE,1,0", Answer("GET", "NUMFRAMESTOACQUIRE", "1", 0)),
        (b"MPX,0000000023,GET,FILENAME,a,b.mib,0", Answer("GET", "FILENAME", "a,b.mib", 0)),
    ],
)
def test_answers_even_with_a_length_that_leaves_the_error_out(sent: bytes, answer: Answer) -> None:
    for step in (1, 7, len(sent)):
        decoder = MessageDecoder(completes_answers=True)
        bodies = [m.body for k in range(0, len(sent), step) for m in decoder.receive(sent[k : k + step])]
        assert [parse_answer(body) for body in bodies] == [answer]


@pytest.mark.parametrize("body", [b"", b"SET", b"SET,X", b"SET,X,", b"GET,X,1,ok", b"\xff\x00"])
def test_answers_that_are_none_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="allowed"):
        parse_answer(body)


def packed(body: bytes) -> bytes:
    return f"MPX,{len(body) + 1:010d},".encode() + body


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=60), max_size=6),
    garbage=st.lists(st.binary(max_size=30).filter(lambda b: b"M" not in b), min_size=7, max_size=7),
    cuts=st.lists(st.integers(1, 25), min_size=1, max_size=40),
)
def test_any_chunks_and_any_garbage_between(bodies: list[bytes], garbage: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(noise + packed(body) for noise, body in zip(garbage, bodies, strict=False))
    decoder, place, came = MessageDecoder(), 0, []
    for n in range(len(stream) + 1):
        if place >= len(stream):
            break
        cut = cuts[n % len(cuts)]
        came += decoder.receive(stream[place : place + cut])
        place += cut
    came += decoder.flush()
    assert [message.body for message in came] == bodies
    assert sum(message.n_skipped for message in came) == sum(len(noise) for noise in garbage[: len(bodies)])


@pytest.mark.parametrize(
    "noise", [b"MPX,000000000x,", b"MPX,9999999999,", b"MPX,0000000000,", b"MPX,0000000001,", b"MMPMPX", b"MPX,12"]
)
def test_what_only_looks_like_a_message_is_skipped(noise: bytes) -> None:
    (message,) = MessageDecoder().receive(noise + packed(b"HDR,x"))
    assert message == (b"HDR,x", len(noise))


@pytest.mark.parametrize("n_missing", [1, 2, 3, 4, 10, 15, 19, 40, 99])
@pytest.mark.parametrize("step", [1, 13, 1000])
def test_a_message_that_was_cut_never_takes_from_the_next(n_missing: int, step: int) -> None:
    first, second = packed(b"MQ1," + bytes(100)), packed(b"MQ1," + bytes(range(60)))
    stream = first[:-n_missing] + second + first
    decoder = MessageDecoder()
    came = [m for k in range(0, len(stream), step) for m in decoder.receive(stream[k : k + step])]
    assert [m.body for m in came] == [second[15:], first[15:]]
    assert came[0].n_skipped == len(first) - n_missing


def test_a_body_that_may_go_on_waits_for_what_follows() -> None:
    decoder = MessageDecoder()
    body = b"MQ1,00MPX,0000"
    assert list(decoder.receive(packed(body))) == []
    assert list(decoder.flush()) == [(body, 0)]
    assert [m.body for m in decoder.receive(packed(body) + packed(b"HDR,"))] == [body, b"HDR,"]


# ---- images to frames ------------------------------------------------------------------------------------------------


def image(sequence: int, layer: int = 0, value: int = 0, **changes: object) -> MerlinFrame:
    fields: dict[str, object] = {
        "sequence": sequence, "header_bytes": 384, "n_chips": 1, "file_cols": 4, "file_rows": 2, "pixel_type": "U16",
        "layout": "1x1", "chip_select": 1, "timestamp": "2020-05-18 16:51:49.971626", "exposure_s": 0.000555,
        "counter": layer, "colour_mode": 0, "gain": Gain.HGM,
    }  # fmt: skip
    header = FrameHeader(**(fields | changes))  # type: ignore[arg-type]
    return MerlinFrame(header=header, counts=np.full((2, 4), value, dtype=np.uint16))


def collect(collector: FrameCollector, images: list[MerlinFrame], n_frames: int) -> list[Frame | Lost]:
    items = [item for each in images for item in collector.receive(each)]
    return items + list(collector.finish(n_frames))


@given(
    thresholds=st.sampled_from([(0,), (1,), (0, 1), (1, 3, 5, 7), tuple(range(8))]),
    n_frames=st.integers(1, 12),
    shares_numbers=st.booleans(),
    data=st.data(),
)
def test_every_exposure_comes_once_whole_or_lost(
    thresholds: tuple[int, ...], n_frames: int, shares_numbers: bool, data: st.DataObject
) -> None:
    wire = sorted(thresholds, key=lambda n: (-(n % 2), n))
    sent = [(place, layer) for place in range(n_frames) for layer in wire]
    dropped = data.draw(st.sets(st.sampled_from(sent), max_size=len(sent) - 1))
    if shares_numbers:  # how numbers count shows in two images of one exposure
        dropped -= {(0, wire[0]), (0, wire[1 % len(wire)])}
    images = [
        image(place + 1 if shares_numbers else number + 1, layer, 10 * place + layer)
        for number, (place, layer) in enumerate(sent)
        if (place, layer) not in dropped
    ]
    collector = FrameCollector(Expectation(run_id=5, n_frames=n_frames, thresholds=thresholds))
    items = collect(collector, images, n_frames)
    places = []
    for item in items:
        if isinstance(item, Lost):
            places += range(item.first_sequence, item.first_sequence + item.n_frames)
            assert item.reason
        else:
            places.append(item.sequence)
            assert item.thresholds == thresholds
            assert item.counts[:, 0, 0].tolist() == [10 * item.sequence + layer for layer in thresholds]
    assert places == list(range(n_frames))
    lost = {place for place, _ in dropped}
    assert {item.sequence for item in items if isinstance(item, Frame)} == set(range(n_frames)) - lost
    assert collector.is_complete


def test_a_damaged_image_gives_its_reason_to_the_loss() -> None:
    collector = FrameCollector(Expectation(run_id=1, n_frames=3, thresholds=(0,)))
    first = list(collector.receive(image(1)))
    collector.damaged("the pixels take 10 bytes, but there are 9")
    rest = list(collector.receive(image(3)))
    assert [type(item) for item in (*first, *rest)] == [Frame, Lost, Frame]
    assert "10 bytes" in rest[0].reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([image(1), image(1)], "came after"),
        ([image(2), image(1)], "came after"),
        ([image(4)], "in a run of 3"),
        ([image(1, layer=1)], "allowed in this mode: 0"),
    ],
)
def test_images_that_cannot_be_are_refused(images: list[MerlinFrame], message: str) -> None:
    collector = FrameCollector(Expectation(run_id=1, n_frames=3, thresholds=(0,)))
    with pytest.raises(ValueError, match=message):
        collect(collector, images, 3)


def test_counters_that_take_turns_are_one_threshold() -> None:
    collector = FrameCollector(Expectation(run_id=1, n_frames=4, thresholds=(0,), has_one_threshold=True))
    frames = collect(collector, [image(n + 1, layer=(n + 1) % 2, value=n) for n in range(4)], 4)
    assert [frame.counts[0, 0, 0] for frame in frames if isinstance(frame, Frame)] == [0, 1, 2, 3]
    summed = FrameCollector(Expectation(run_id=1, n_frames=1, thresholds=(1, 3, 5, 7), has_one_threshold=True))
    (frame,) = collect(summed, [image(n + 1, layer=2 * n, value=n) for n in range(4)], 1)
    assert isinstance(frame, Frame)
    assert (frame.thresholds, frame.counts[:, 0, 0].tolist()) == ((1, 3, 5, 7), [0, 1, 2, 3])


def test_times() -> None:
    assert time_ns(image(1, timestamp_utc="1970-01-01T00:00:02.000000003Z").header) == 2_000_000_003
    assert time_ns(image(1, timestamp="1970-01-01 00:01:00.5").header) == 60_500_000_000
    assert time_ns(image(1, timestamp="yesterday").header) == UNKNOWN_TIME_NS


def test_an_image_by_hand() -> None:
    text = (
        "MQ1,000007,00384,01,0002,0002,U16,   1x1,01,2020-05-18 16:51:49.971626,0.000555,1,0,2,"
        + "1.200000E+2," * 8
        + "3RX,"
        + "175," * 27
        + "MQ1A,2020-05-18T14:51:49.971626178Z,555000ns,12,"
    )
    body = text.encode().ljust(384, b"\0") + bytes.fromhex("0001 0002 0fff 0100")
    came = decode_image(body)
    assert came.counts.tolist() == [[1, 2], [4095, 256]]
    assert (came.header.sequence, came.header.counter, came.header.gain) == (7, 1, Gain.HGM)
    assert time_ns(came.header) % 10**9 == 971_626_178
    with pytest.raises(ValueError, match="8 bytes, but there are 7"):
        decode_image(body[:-1])
