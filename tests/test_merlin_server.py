"""The simulated Merlin: commands answered as specified, headers as printed, and the chip's own counts in the images."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from firmware_iface.chip import N_THRESHOLDS, Gain
from firmware_iface.errors import OurMistake, WrongUsage
from firmware_iface.merlin import decode_pixels, parse_acquisition_header, parse_frame_header
from sim.chip import SimulatedChip
from sim.merlin import SETTINGS, Merlin, Status
from sim.merlin_chip import EnergyScale, MerlinChip
from sim.merlin_server import MerlinServer, serve, simulated_merlin
from sim.sensor import Settings
from sim.triggers import Pulser

NOW_NS = 1_589_813_509_971_626_178


def marked(duration_s: float, settings: Settings) -> NDArray[np.uint32]:
    """Events that tell their threshold, pixel and exposure: (8, 128, 128) in colour, (2, 256, 256) else."""
    n = len(settings.threshold_dac)
    side = 128 if n == N_THRESHOLDS else 256
    rows, cols = np.indices((side, side))
    planes = np.arange(n)[:, None, None]
    return (1000 * planes + rows + 3 * cols + round(duration_s * 1000)).astype(np.uint32)


def merlin_of(
    front_end=marked, *, numbers_exposures: bool = False, inputs: dict[str, Pulser] | None = None, **settings: object
) -> Merlin:
    chip_ = MerlinChip(SimulatedChip(front_end), EnergyScale())
    merlin = Merlin(chip_, now_ns=NOW_NS, numbers_exposures=numbers_exposures, inputs=inputs)
    for name, value in settings.items():
        assert merlin.answer(f"SET,{name},{value}") == f"SET,{name},0"
    return merlin


def messages(merlin: Merlin) -> list[bytes]:
    """Take everything the data channel has to say, without the prefixes, which are checked."""
    bodies = []
    while (message := merlin.next_message()) is not None:
        assert message[:4] == b"MPX,"
        assert message[14:15] == b","
        assert int(message[4:14]) == len(message) - 14
        bodies.append(message[15:])
    return bodies


def images(bodies: list[bytes]) -> list[tuple[int, np.ndarray]]:
    """Read images by the reader of .mib files: layer and counts of each."""
    headers = [parse_frame_header(body) for body in bodies]
    return [
        (header.counter, decode_pixels(header, body[header.header_bytes :]))
        for header, body in zip(headers, bodies, strict=True)
    ]


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("SET,NUMFRAMESTOACQUIRE,1", "SET,NUMFRAMESTOACQUIRE,0"),
        ("GET,NUMFRAMESTOACQUIRE", "GET,NUMFRAMESTOACQUIRE,1,0"),
        ("GET,NUMFRAMESTOACQUIRE,0", "GET,NUMFRAMESTOACQUIRE,1,0"),  # a dummy value, as LiberTEM sends
        ("CMD,SOFTTRIGGER,0", "CMD,SOFTTRIGGER,0"),
        ("CMD,STARTACQUISITION", "CMD,STARTACQUISITION,0"),
        ("GET,DETECTORSTATUS", "GET,DETECTORSTATUS,0,0"),
        ("GET,TEMPERATURE", "GET,TEMPERATURE,24.700000,0"),
        ("SET,TriggerOutTTL,7", "SET,TriggerOutTTL,0"),
        ("SET,COUNTERDEPTH,8", "SET,COUNTERDEPTH,3"),
        ("SET,COUNTERDEPTH,", "SET,COUNTERDEPTH,3"),
        ("SET,THRESHOLD0,1000", "SET,THRESHOLD0,3"),
        ("SET,THRESHOLD0,nan", "SET,THRESHOLD0,3"),
        ("SET,NUMFRAMESPERTRIGGER,0", "SET,NUMFRAMESPERTRIGGER,3"),
        ("SET,TRIGGERSTOP,5", "SET,TRIGGERSTOP,3"),
        ("SET,FILENAME,a,b", "SET,FILENAME,0"),
        ("SET,NOSUCH,1", "SET,NOSUCH,2"),
        ("GET,NOSUCH", "GET,NOSUCH,,2"),
        ("CMD,NOSUCH", "CMD,NOSUCH,2"),
        ("PUT,GAIN,1", "PUT,GAIN,2"),
        ("NONSENSE", "NONSENSE,,2"),
    ],
)
def test_answers(command: str, answer: str) -> None:
    assert merlin_of().answer(command) == answer


def test_every_setting_can_be_read_and_takes_its_own_value_back() -> None:
    merlin = merlin_of()
    for name in SETTINGS:
        value = merlin.answer(f"GET,{name}").split(",")[2]
        assert merlin.answer(f"GET,{name}").endswith(",0")
        assert merlin.answer(f"SET,{name},{value}") == f"SET,{name},0"


@pytest.mark.parametrize(
    ("before", "request_", "after"),
    [
        ({"ENABLECOUNTER1": 2}, "COUNTERDEPTH,24", {"ENABLECOUNTER1": "0"}),
        ({"CONTINUOUSRW": 1}, "COUNTERDEPTH,24", {"CONTINUOUSRW": "0"}),
        ({"COUNTERDEPTH": 24}, "CONTINUOUSRW,1", {"COUNTERDEPTH": "12"}),
        ({"COUNTERDEPTH": 6}, "CONTINUOUSRW,1", {"COUNTERDEPTH": "6"}),
        ({"ENABLECOUNTER1": 2}, "CHARGESUMMING,1", {"ENABLECOUNTER1": "1"}),
        ({"CHARGESUMMING": 1}, "ENABLECOUNTER1,2", {"CHARGESUMMING": "0"}),
    ],
)
def test_the_latest_request_wins(before: dict, request_: str, after: dict) -> None:
    merlin = merlin_of(**before)
    assert merlin.answer(f"SET,{request_}").endswith(",0")
    assert {name: merlin.answer(f"GET,{name}").split(",")[2] for name in after} == after


def test_self_test_reads_back_what_it_writes_and_leaves_the_pixels_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chip_ = SimulatedChip(marked)
    merlin = Merlin(MerlinChip(chip_, EnergyScale()))
    before = chip_._pixels.copy()
    assert merlin.answer("CMD,SELFTEST") == "CMD,SELFTEST,0"
    assert np.array_equal(chip_._pixels, before)
    transact = chip_.transact
    monkeypatch.setattr(chip_, "transact", lambda omr, bits: bytes([1]) + (transact(omr, bits) or b"\0")[1:])
    assert merlin.answer("CMD,SELFTEST") == "CMD,SELFTEST,1"


def test_operating_energy_puts_all_thresholds_to_its_half_and_reset_takes_them_back() -> None:
    merlin = merlin_of(OPERATINGENERGY=20)
    assert [merlin.answer(f"GET,THRESHOLD{n}") for n in range(8)] == [f"GET,THRESHOLD{n},10,0" for n in range(8)]
    merlin.answer("CMD,RESET")
    assert merlin.answer("GET,THRESHOLD7") == "GET,THRESHOLD7,0,0"


def test_busy_refuses_settings_and_answers_questions() -> None:
    merlin = merlin_of(NUMFRAMESTOACQUIRE=0)
    assert merlin.answer("CMD,STARTACQUISITION") == "CMD,STARTACQUISITION,0"
    assert merlin.status is Status.BUSY
    assert merlin.answer("GET,DETECTORSTATUS") == "GET,DETECTORSTATUS,1,0"
    assert merlin.answer("SET,GAIN,1") == "SET,GAIN,1"
    assert merlin.answer("CMD,STARTACQUISITION") == "CMD,STARTACQUISITION,1"
    assert merlin.answer("CMD,ABORT") == "CMD,ABORT,0"
    assert merlin.next_message() is None
    assert merlin.status is Status.IDLE


def test_stop_finishes_the_exposure_that_was_begun() -> None:
    merlin = merlin_of(NUMFRAMESTOACQUIRE=0, COLOURMODE=1)
    merlin.answer("CMD,STARTACQUISITION")
    assert merlin.next_message() is not None  # the acquisition's header
    assert merlin.next_message() is not None  # the first of four layers
    merlin.answer("CMD,STOPACQUISITION")
    assert len(messages(merlin)) == 3
    assert merlin.status is Status.IDLE


def test_an_exposure_under_way_when_the_run_is_aborted_is_thrown_away() -> None:
    merlin = merlin_of(NUMFRAMESTOACQUIRE=0)
    merlin.answer("CMD,STARTACQUISITION")
    merlin.pop_message()
    exposure = merlin.next_exposure()
    assert exposure is not None
    taken = merlin.expose(exposure)
    merlin.answer("CMD,ABORT")
    assert merlin.status is Status.BUSY  # the shutter is still open
    assert merlin.answer("CMD,STARTACQUISITION").endswith(",1")
    merlin.deliver(exposure, taken)
    assert (merlin.status, merlin.next_message()) == (Status.IDLE, None)


def test_soft_triggers_release_their_frames() -> None:
    merlin = merlin_of(NUMFRAMESTOACQUIRE=5, NUMFRAMESPERTRIGGER=2, TRIGGERSTART=5)
    merlin.answer("CMD,STARTACQUISITION")
    assert [len(messages(merlin)) for _ in range(2)] == [1, 0]  # the header only
    counts = []
    for _ in range(4):
        assert merlin.answer("CMD,SOFTTRIGGER") == "CMD,SOFTTRIGGER,0"
        counts.append(len(messages(merlin)))
    assert counts == [2, 2, 1, 0]  # the run ends in the middle of a burst
    assert merlin.status is Status.IDLE


PULSES = Pulser(period_ns=10_000_000, high_ns=3_000_000)


def opening_and_exposure_ns(bodies: list[bytes]) -> list[tuple[int, int]]:
    """Return when in its second each exposure began, and how long it was."""
    found = []
    for body in bodies:
        _, _, tail = body[:384].decode().partition("MQ1A,")
        moment, exposure, *_ = tail.split(",")
        found.append((int(moment[-10:-1]), int(exposure.removesuffix("ns"))))
    return found


@pytest.mark.parametrize(
    ("code", "line", "after_rise_ns"), [(1, "TTL", 0), (2, "TTL", 3), (3, "LVDS", 0), (4, "LVDS", 3)]
)
def test_edges_start_bursts(code: int, line: str, after_rise_ns: int) -> None:
    merlin = merlin_of(inputs={line: PULSES}, NUMFRAMESTOACQUIRE=5, NUMFRAMESPERTRIGGER=2, TRIGGERSTART=code)
    merlin.answer("CMD,STARTACQUISITION")
    hdr, *frames = messages(merlin)
    times = opening_and_exposure_ns(frames)
    assert [exposure_ns for _, exposure_ns in times] == [1_000_000] * 5
    openings = [opened_ns for opened_ns, _ in times]
    assert [openings[n] % 10_000_000 for n in (0, 2, 4)] == [after_rise_ns * 1_000_000] * 3
    assert [openings[n + 1] - openings[n] for n in (0, 2)] == [1_000_000 + 821_733] * 2
    assert [(openings[n + 2] - openings[n]) % 1_000_000_000 for n in (0, 2)] == [10_000_000] * 2
    word = {0: "Positive", 3: "Negative"}[after_rise_ns]
    assert parse_acquisition_header(hdr)["Trigger Start (Positive, Negative, Internal)"] == word
    assert merlin.status is Status.IDLE


def test_a_gate_is_open_from_rise_to_fall_and_a_stop_comes_no_earlier_than_the_exposure() -> None:
    merlin = merlin_of(inputs={"TTL": PULSES}, NUMFRAMESTOACQUIRE=3, TRIGGERSTART=1, TRIGGERSTOP=2)
    merlin.answer("CMD,STARTACQUISITION")
    hdr, *frames = messages(merlin)
    assert parse_acquisition_header(hdr)["Trigger Stop (Positive, Negative, Internal)"] == "Negative"
    assert [exposure_ns for _, exposure_ns in opening_and_exposure_ns(frames)] == [3_000_000] * 3
    assert merlin.answer("SET,ACQUISITIONTIME,4") == "SET,ACQUISITIONTIME,0"
    merlin.answer("CMD,STARTACQUISITION")
    assert {exposure_ns for _, exposure_ns in opening_and_exposure_ns(messages(merlin)[1:])} == {13_000_000}
    merlin.answer("SET,NUMFRAMESPERTRIGGER,2")
    assert merlin.answer("CMD,STARTACQUISITION") == "CMD,STARTACQUISITION,3"


def test_a_shutter_that_no_edge_closes_stays_open() -> None:
    merlin = merlin_of(inputs={"TTL": PULSES}, TRIGGERSTART=1, TRIGGERSTOP=4)
    merlin.answer("CMD,STARTACQUISITION")
    assert len(messages(merlin)) == 1
    assert merlin.status is Status.BUSY
    merlin.answer("CMD,STOPACQUISITION")
    assert merlin.status is Status.IDLE


def test_edges_never_come_where_nothing_is_connected() -> None:
    merlin = merlin_of(TRIGGERSTART=1, inputs={"LVDS": PULSES})
    merlin.answer("CMD,STARTACQUISITION")
    merlin.answer("CMD,SOFTTRIGGER")
    assert len(messages(merlin)) == 1
    assert merlin.status is Status.BUSY


def test_threshold_scan_moves_one_threshold() -> None:
    merlin = merlin_of(THSCAN=3, THSTART=10, THSTOP=12, THSTEP=0.5)
    assert merlin.answer("CMD,THSCAN") == "CMD,THSCAN,0"
    header, *scans = messages(merlin)
    assert parse_acquisition_header(header)["Acquisition Type (Normal, Th_scan, Config)"] == "Th_scan"
    assert [parse_frame_header(body).thresholds_kev[3] for body in scans] == [10, 10.5, 11, 11.5, 12]


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 6, 12, 24])
@pytest.mark.parametrize("is_colour", [False, True])
def test_images_hold_what_the_pixels_counted(depth: int, is_colour: bool) -> None:
    merlin = merlin_of(COLOURMODE=int(is_colour), COUNTERDEPTH=depth, ACQUISITIONTIME=2)
    merlin.answer("CMD,STARTACQUISITION")
    _, *bodies = messages(merlin)
    came = images(bodies)
    assert [layer for layer, _ in came] == ([0, 2, 4, 6] if is_colour else [0])
    rows, cols = np.indices((128, 128) if is_colour else (256, 256))
    for layer, counts in came:
        expected = 1000 * layer + rows + 3 * cols + 2
        assert np.array_equal(counts, np.minimum(expected, (1 << depth) - 1))


def test_both_counters_come_as_two_images_counter_1_first() -> None:
    merlin = merlin_of(ENABLECOUNTER1=2, NUMFRAMESTOACQUIRE=2)
    merlin.answer("CMD,STARTACQUISITION")
    header, *bodies = messages(merlin)
    assert parse_acquisition_header(header)["Active Counters"] == "Counter 1 and Counter 0"
    assert [layer for layer, _ in images(bodies)] == [1, 0, 1, 0]
    assert [parse_frame_header(body).sequence for body in bodies] == [1, 2, 3, 4]
    assert images(bodies)[0][1].max() == images(bodies)[1][1].max() + 1000


def test_exposures_are_numbered_on_request() -> None:
    merlin = merlin_of(numbers_exposures=True, COLOURMODE=1, ENABLECOUNTER1=2, NUMFRAMESTOACQUIRE=2)
    merlin.answer("CMD,STARTACQUISITION")
    _, *bodies = messages(merlin)
    assert [parse_frame_header(body).sequence for body in bodies] == [1] * 8 + [2] * 8
    assert [layer for layer, _ in images(bodies)] == [1, 3, 5, 7, 0, 2, 4, 6] * 2


def test_counters_take_turns_in_continuous_read_write() -> None:
    merlin = merlin_of(CONTINUOUSRW=1, NUMFRAMESTOACQUIRE=4)
    merlin.answer("CMD,STARTACQUISITION")
    header, *bodies = messages(merlin)
    assert parse_acquisition_header(header)["Active Counters"] == "Alternating"
    came = images(bodies)
    assert [layer for layer, _ in came] == [1, 0, 1, 0]
    assert all(np.array_equal(counts, came[0][1]) for _, counts in came)
    assert came[0][1].max() < 1100  # all of them count above the lower threshold


def test_headers_are_as_printed() -> None:
    merlin = merlin_of(GAIN=2, THRESHOLD0=10, THRESHOLD1=27, ACQUISITIONTIME=0.555)
    merlin.answer("CMD,STARTACQUISITION")
    hdr, frame = messages(merlin)
    assert len(hdr) == 2048
    assert hdr.startswith(b"HDR,\nTime and Date Stamp")
    text = parse_acquisition_header(hdr)
    assert (text["Chip ID"], text["Gain"], text["Counter Depth (number)"]) == ("W529_F5", "HGM", "12")
    assert text["Frames in Acquisition (Number)"] == "1"
    expected = (
        b"MQ1,000001,00384,01,0256,0256,U16,   1x1,01,2020-05-18 14:51:49.971626,0.000555,0,0,2,"
        b"1.000000E+1,2.700000E+1," + b"0.000000E+0," * 6 + b"3RX,056,150," + b"000," * 6
    )
    assert frame[: len(expected)] == expected
    tail = b"MQ1A,2020-05-18T14:51:49.971626178Z,555000ns,12,"
    assert frame[:384].rstrip(b"\0").endswith(tail)
    header = parse_frame_header(frame)
    assert header.gain is Gain.HGM
    assert header.chips[0].dacs["Threshold1"] == 150  # 27 keV on the factory map of 0.18 keV per code


def test_time_goes_by_exposure_and_readout() -> None:
    def opened(**settings: object) -> list[int]:
        merlin = merlin_of(NUMFRAMESTOACQUIRE=2, ACQUISITIONTIME=1, **settings)
        merlin.answer("CMD,STARTACQUISITION")
        _, *bodies = messages(merlin)
        times = [parse_frame_header(body).timestamp_utc for body in bodies]
        return [int(time[20:29]) for time in times]

    first, second = opened(ACQUISITIONPERIOD=1)
    assert second - first == 1_000_000 + 821_733  # 12 bits of 65536 pixels on 8 lines at 120 MHz
    first, second = opened(ACQUISITIONPERIOD=10)
    assert second - first == 10_000_000


def test_each_colour_layer_holds_the_counts_of_its_threshold() -> None:
    def numbered(_: float, settings: Settings) -> NDArray[np.uint32]:
        planes = np.arange(len(settings.threshold_dac), dtype=np.uint32)[:, None, None]
        return np.broadcast_to(planes, (len(planes), 128, 128)).copy()

    merlin = merlin_of(numbered, COLOURMODE=1, ENABLECOUNTER1=2)
    merlin.answer("CMD,STARTACQUISITION")
    _, *bodies = messages(merlin)
    came = [(layer, int(counts.min()), int(counts.max())) for layer, counts in images(bodies)]
    assert came == [(n, n, n) for n in (1, 3, 5, 7, 0, 2, 4, 6)]


# ---- over TCP --------------------------------------------------------------------------------------------------------


def receive(connection: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        part = connection.recv(n_bytes - len(data))
        assert part, f"hung up after {data!r}"
        data += part
    return data


def test_commands_in_pieces_and_two_at_once() -> None:
    with (
        MerlinServer(merlin_of(), command_port=0, data_port=0) as server,
        socket.create_connection(("127.0.0.1", server.command_port), timeout=5) as client,
    ):
        client.sendall(b"MPX,00000000")
        client.sendall(b"23,GET,NUMFRAMESTOACQUIREMPX,0000000017,GET,COLOURMODE,")
        assert receive(client, 41) == b"MPX,0000000027,GET,NUMFRAMESTOACQUIRE,1,0"
        client.sendall(b"0")
        assert receive(client, 33) == b"MPX,0000000019,GET,COLOURMODE,0,0"


def test_two_command_clients_and_no_more() -> None:
    with MerlinServer(merlin_of(), command_port=0, data_port=0) as server:
        address = ("127.0.0.1", server.command_port)
        with socket.create_connection(address, timeout=5) as one, socket.create_connection(address, timeout=5) as two:
            for client in (one, two):
                client.sendall(b"MPX,0000000019,GET,DETECTORSTATUS")
                assert receive(client, 37) == b"MPX,0000000023,GET,DETECTORSTATUS,0,0"
            with socket.create_connection(address, timeout=5) as third:
                assert third.recv(1) == b""


def test_a_data_client_that_goes_is_followed_by_the_next() -> None:
    with (
        MerlinServer(merlin_of(NUMFRAMESTOACQUIRE=1), command_port=0, data_port=0) as server,
        socket.create_connection(("127.0.0.1", server.command_port), timeout=5) as commands,
    ):
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", server.data_port), timeout=5) as data:
                answer = b",1"
                while answer.endswith(b",1"):  # busy with what the last client did not take
                    commands.sendall(b"MPX,0000000021,CMD,STARTACQUISITION")
                    answer = receive(commands, 37)
                assert receive(data, 15) == b"MPX,0000002049,"
                receive(data, 2048)
                assert receive(data, 15) == f"MPX,{384 + 131072 + 1:010d},".encode()
                receive(data, 384 + 131072)


def test_serve_until_told_and_a_taken_port() -> None:
    stop, ports = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OurMistake, match="cannot listen"):
        serve("demo", command_port=taken.getsockname()[1], data_port=0, stop=stop)
    thread = threading.Thread(
        target=serve,
        args=("demo",),
        kwargs={"command_port": 0, "data_port": 0, "stop": stop, "on_ready": lambda *both: ports.extend(both)},
    )
    thread.start()
    deadline_s = time.monotonic() + 60
    while not ports and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=5) as client:
        client.sendall(b"MPX,0000000019,GET,DETECTORSTATUS")
        assert receive(client, 37) == b"MPX,0000000023,GET,DETECTORSTATUS,0,0"
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("address", ["nosuch", "demo?seed=x", "demo?drop=3", "demo?chips=2x2", "demo?pulser_us=5", ""])
def test_addresses_that_name_nothing(address: str) -> None:
    with pytest.raises(WrongUsage, match=r"known|allowed"):
        simulated_merlin(address)


def test_a_merlin_has_the_options_of_the_instrument() -> None:
    merlin = simulated_merlin("demo?seed=4&pulser_us=10000:3000&saturates=0&numbers_exposures=1")
    merlin.answer("SET,TRIGGERSTART,2")
    merlin.answer("CMD,STARTACQUISITION")
    (_, frame) = messages(merlin)
    assert opening_and_exposure_ns([frame])[0][0] % 10_000_000 == 3_000_000


def test_a_scene_that_the_gantry_refuses() -> None:
    with pytest.raises(WrongUsage, match="SAMP nosuch"):
        simulated_merlin("demo", scene=("SAMP nosuch",))
