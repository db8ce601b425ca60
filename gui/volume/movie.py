"""Frames to a movie: MP4, an animated PNG or GIF, or a folder of numbered pictures; and the paths of camera and cut.

Frames come one at a time through a queue, are kept on disk at once, and become one file at the end. MP4 is H.264 with a
colour for every four pixels, which every player shows; it needs the library av (PyAV), which brings FFmpeg's own.

# Ref: ITU-R BT.709 is the matrix from sRGB to luma and chroma that players expect of H.264 in high definition.
"""

from __future__ import annotations

import math
import queue
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.progress import Progress
from calibration.whole_file import whole_file
from firmware_iface.errors import WrongUsage
from gui.volume.camera import Camera
from gui.volume.optics import Cut

Frames = queue.Queue[NDArray[np.uint8] | None]
"""Pictures (h, w, 3) uint8, and None where nobody wants the rest any more."""
ANIMATED = {".mp4": "MP4, H.264", ".png": "animated PNG", ".gif": "GIF, 256 colours"}
QUALITY = "18"
"""Of H.264 (its CRF): no loss that an eye sees."""
BT709, STUDIO_RANGE = 1, 1
"""FFmpeg's numbers of the matrix, and of luma from 16 to 235."""
DRAWING, WRITING = "drawing frames", "writing the movie"
WAIT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What a frame shows."""

    camera: Camera
    cut: Cut


def why_no_mp4() -> str:
    """Return why MP4 cannot be written here; empty where it can."""
    return "" if find_spec("av") is not None else "the library av is not installed: pip install 'mpxct[movie]'"


def turntable(camera: Camera, cut: Cut, count: int) -> tuple[Shot, ...]:
    """Go once round the vertical axis; the last frame is followed by the first."""
    step_rad = 2 * math.pi / count
    return tuple(Shot(camera=camera.turned(n * step_rad, 0.0), cut=cut) for n in range(count))


def sweep(camera: Camera, cut: Cut, count: int, *, half_mm: float) -> tuple[Shot, ...]:
    """Move a plane through the volume and back, from one side of its middle to the other.

    Parameters
    ----------
    cut : Cut
        Its plane's direction; one without a plane is cut across z.
    half_mm : float
        How far from the middle the plane begins and turns.
    """
    normal = cut.normal or (0.0, 0.0, 1.0)
    places_mm = [half_mm * math.cos(2 * math.pi * n / count) for n in range(count)]
    return tuple(Shot(camera=camera, cut=replace(cut, normal=normal, plane_mm=place)) for place in places_mm)


def check(path: Path) -> None:
    """Refuse what cannot be written as a movie.

    Raises
    ------
    WrongUsage
        The name ends like no animation, or the folder holds something already.
    """
    if path.suffix.lower() == ".mp4" and (why := why_no_mp4()):
        raise WrongUsage(f"a movie cannot be written as MP4, for {why}", hint="or save it as animated PNG or GIF")
    if path.suffix.lower() in ANIMATED:
        return
    if path.suffix:
        raise WrongUsage(
            f"a movie cannot be written as {path.suffix}",
            hint=f"allowed: {', '.join(ANIMATED)}, or a name without an ending for a folder of pictures",
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise WrongUsage(f"{path} is there already and is not an empty folder", hint="choose another name")


def written(path: Path, frames: Frames, count: int, *, frames_per_s: float = 25.0) -> Generator[Progress, None, Path]:
    """Write frames as they come.

    Parameters
    ----------
    path : Path
        Ends in one of `ANIMATED`; without an ending it is a folder of pictures `0001.png` and so on.
    count : int
        How many will come; fewer come where somebody put None, and they are kept.

    Raises
    ------
    WrongUsage
        See `check`, or no frame came.
    """
    check(path)
    if path.suffix.lower() in ANIMATED:
        with tempfile.TemporaryDirectory(prefix=".movie-", dir=path.parent) as folder:
            yield from _keep(Path(folder), frames, count)
            yield Progress(WRITING, 0, 1)
            _animate(path, sorted(Path(folder).iterdir()), frames_per_s)
        return path
    path.mkdir(parents=True, exist_ok=True)
    yield from _keep(path, frames, count)
    return path


def _keep(folder: Path, frames: Frames, count: int) -> Generator[Progress, None, None]:
    from PIL import Image

    n = 0
    while n < count:
        yield Progress(DRAWING, n, count)
        try:
            frame = frames.get(timeout=WAIT_S)
        except queue.Empty:
            continue
        if frame is None:
            break
        n += 1
        Image.fromarray(frame).save(folder / f"{n:04d}.png", compress_level=4)
    if n == 0:
        raise WrongUsage("no frame of the movie was drawn", hint="let at least one be drawn before it is stopped")


class _Pictures:
    """Pictures that are opened one at a time, as often as they are asked for: Pillow walks through them twice."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __iter__(self) -> Iterator[Any]:
        from PIL import Image

        for path in self._paths:
            with Image.open(path) as image:
                yield image.convert("RGB")


def _animate(path: Path, pictures: list[Path], frames_per_s: float) -> None:
    if path.suffix.lower() == ".mp4":
        with whole_file(path) as unfinished:
            _encode(unfinished, pictures, frames_per_s)
        return
    rest = _Pictures(pictures[1:])
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": 1000 / frames_per_s, "loop": 0}
    kind = "GIF" if path.suffix.lower() == ".gif" else "PNG"
    with whole_file(path) as unfinished:
        next(iter(_Pictures(pictures))).save(unfinished, format=kind, **options)


def _encode(path: Path, pictures: list[Path], frames_per_s: float) -> None:
    """Write H.264 in MP4; a last column or row that makes the size odd is left out, for colours come in twos."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as movie:
        stream = movie.add_stream("libx264", rate=Fraction(frames_per_s), options={"crf": QUALITY})
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = STUDIO_RANGE
        first = next(iter(_Pictures(pictures)))
        stream.height, stream.width = height, width = first.height // 2 * 2, first.width // 2 * 2
        for image in _Pictures(pictures):
            rows = np.ascontiguousarray(np.asarray(image)[:height, :width])
            frame = av.VideoFrame.from_ndarray(rows, "rgb24")
            options: Any = {"dst_colorspace": "ITU709", "dst_color_range": STUDIO_RANGE}
            movie.mux(stream.encode(frame.reformat(format="yuv420p", **options)))
        movie.mux(stream.encode(None))
