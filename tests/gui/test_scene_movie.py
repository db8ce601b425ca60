"""Movies: the path goes round once, frames come out of the file as they went in, and a scene films itself."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pytestqt.qtbot import QtBot

from firmware_iface.errors import WrongUsage
from gui.volume import movie
from gui.volume.camera import Camera
from gui.volume.movie import Frames, sweep, turntable, written
from gui.volume.optics import Cut
from gui.volume.scene import VolumeScene
from gui.workers import Job
from tests.gui.volume_phantom import LOOKS, phantom


def frames_of(count: int) -> list[NDArray[np.uint8]]:
    return [np.full((20, 30, 3), (40 * n, 250 - 40 * n, 7), dtype=np.uint8) for n in range(count)]


def write(path: Path, pictures: list[NDArray[np.uint8]], count: int) -> Path:
    frames: Frames = queue.Queue()
    for picture in pictures:
        frames.put(picture)
    frames.put(None)
    job = Job("movie", written(path, frames, count))
    job.run()
    if (error := job.snapshot().error) is not None:
        raise error
    return job.result


@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_animation_holds_the_frames_in_their_order(tmp_path: Path, ending: str) -> None:
    pictures = frames_of(5)
    path = write(tmp_path / f"turn{ending}", pictures, 5)
    assert [child.name for child in tmp_path.iterdir()] == [path.name], "nothing else is left"
    with Image.open(path) as movie:
        assert movie.n_frames == 5
        assert movie.info["duration"] == pytest.approx(40)
        for number, picture in enumerate(pictures):
            movie.seek(number)
            np.testing.assert_allclose(np.asarray(movie.convert("RGB")), picture, atol=0 if ending == ".png" else 4)


def test_mp4_plays_the_frames_in_their_order_and_colours(tmp_path: Path) -> None:
    """By the decoder; H.264 loses a little, and an odd row and column."""
    pictures = [np.kron(frame[:6, :6], np.ones((8, 8, 1), np.uint8))[:47, :45] for frame in frames_of(6)]
    path = write(tmp_path / "turn.mp4", pictures, 6)
    assert [child.name for child in tmp_path.iterdir()] == [path.name], "nothing else is left"
    with av.open(str(path)) as movie:
        stream = movie.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 25)
        frames = list(movie.decode(stream))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(6) / 25)
    for frame, picture in zip(frames, pictures, strict=True):
        seen = frame.to_ndarray(format="rgb24")
        assert seen.shape == (46, 44, 3)
        assert np.abs(seen.astype(int) - picture[:46, :44]).mean() < 4


def test_without_the_library_mp4_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movie, "find_spec", lambda _: None)
    assert "mpxct[movie]" in movie.why_no_mp4()
    with pytest.raises(WrongUsage, match="av is not installed"):
        write(tmp_path / "turn.mp4", frames_of(2), 2)
    assert not list(tmp_path.iterdir())


def test_folder_holds_numbered_pictures_and_a_stopped_movie_keeps_what_came(tmp_path: Path) -> None:
    folder = write(tmp_path / "turn", frames_of(3), 90)
    assert sorted(child.name for child in folder.iterdir()) == ["0001.png", "0002.png", "0003.png"]
    with pytest.raises(WrongUsage, match="already"):
        write(folder, frames_of(1), 1)


def test_other_endings_and_movies_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=r"\.avi"):
        write(tmp_path / "turn.avi", frames_of(1), 1)
    with pytest.raises(WrongUsage, match="no frame"):
        write(tmp_path / "turn.png", [], 3)
    assert not list(tmp_path.iterdir())


def test_turntable_goes_once_round_in_even_steps() -> None:
    shots = turntable(Camera(distance_mm=3.0), Cut(), 12)
    angles_rad = np.unwrap([shot.camera.azimuth_rad for shot in shots])
    np.testing.assert_allclose(np.diff(angles_rad), 2 * np.pi / 12)
    assert {replace(shot.camera, azimuth_rad=0.0) for shot in shots} == {Camera(distance_mm=3.0, azimuth_rad=0.0)}


def test_sweep_goes_through_and_back() -> None:
    places_mm = [shot.cut.plane_mm for shot in sweep(Camera(distance_mm=3.0), Cut(), 8, half_mm=5.0)]
    assert places_mm[0] == 5.0
    assert places_mm[4] == -5.0
    np.testing.assert_allclose(places_mm[1:4], places_mm[:4:-1], atol=1e-9)


def test_scene_films_itself_and_shows_its_own_cut_again(qtbot: QtBot, tmp_path: Path) -> None:
    told: list[str] = []
    scene = VolumeScene(lambda title, error: told.append(f"{title}: {error}"), is_gl_wanted=False)
    qtbot.addWidget(scene)
    scene.resize(420, 220)
    scene.show()
    scene.show_volume(phantom(16).values, 1.25, LOOKS)

    def beat_until(holds) -> None:
        qtbot.waitUntil(lambda: (scene.refresh(), holds())[1], timeout=60_000)

    beat_until(lambda: scene.grains is not None)
    scene.panel._scale.setCurrentText("1×")
    scene.panel._count.setValue(4)
    scene.panel._kind.setCurrentText("Sweep")
    scene.panel.save_movie(tmp_path / "sweep.png")
    beat_until(lambda: "written" in scene.panel._told.text())
    scene.refresh()
    assert told == []
    assert scene.view._cut == Cut()
    with Image.open(tmp_path / "sweep.png") as movie:
        assert movie.n_frames == 4
        assert movie.size == (scene.view.width(), scene.view.height())
        first = np.asarray(movie.convert("RGB")).astype(int)
        movie.seek(2)
        assert np.abs(np.asarray(movie.convert("RGB")).astype(int) - first).max() > 40, "the cut has moved"
