"""The ramp: views weighted by the cosines of their rays and filtered along the detector's rows.

Rows that the object leaves at a value other than zero are continued beyond the detector, falling off smoothly: a step
there would ring into the volume. Where the object ends inside, the last columns hold nothing, and nothing is continued.

# Ref: the ramp sampled in space (sampling it in frequency instead lowers every value): Kak and Slaney 1988, Principles
#      of Computerized Tomographic Imaging, chapter 3, equation 61, as scikit-image's `iradon` has it.
# Ref: windows: Shepp and Logan 1974, IEEE Trans. Nucl. Sci. 21 (3), 21 (sinc); Harris 1978, Proc. IEEE 66, 51 (Hann,
#      Hamming); cosine as in scikit-image's `iradon`. A test compares all with it.
# Ref: cut rows continued as their own mirror images through the edge, under a squared cosine: Ohnesorge, Flohr,
#      Schwarz, Heiken and Bae 2000, Med. Phys. 27, 39.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from firmware_iface.errors import WrongUsage
from reconstruction import backend
from reconstruction.scan_geometry import ScanGeometry

_fft: Any = scipy.fft  # its declared types are those of SciPy's dispatcher, not of its results

WINDOWS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = MappingProxyType(
    {
        "ram-lak": np.ones_like,
        "shepp-logan": lambda f: np.sinc(f / 2),
        "cosine": lambda f: np.cos(np.pi / 2 * f),
        "hamming": lambda f: 0.54 + 0.46 * np.cos(np.pi * f),
        "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
    }
)
"""Gain at each frequency, in units of the highest that the detector can hold."""

CONTINUED_SHARE = 0.5
"""How far a row is continued on either side, as a share of its length. A choice: longer costs time."""
EDGE_COLS = 2
"""Last columns whose mean is the edge's value, so that one column's noise is not."""
CUT_SHARE = 0.05
"""Of a row's highest value: an edge below is not continued, one of twice as much is; between, by degrees."""
NOISE_COLS, NOISE_SIGMAS = 16, 3.0
"""Nor is an edge continued that is below so many standard errors, as the row's last columns show them."""

_ERRORS_PER_SCATTER = np.float32(NOISE_SIGMAS * np.sqrt(np.pi) / 2 / (NOISE_COLS - 1) / np.sqrt(EDGE_COLS))
"""Normal numbers differ by 2 / sqrt(pi) standard deviations on average."""


def ramp_filter(n_cols: int, pitch_mm: float, window: str = "ram-lak") -> NDArray[np.float32]:
    """Return the filter's gain at each frequency of a padded row.

    Parameters
    ----------
    n_cols : int
        From the first to the last that is given or wanted.
    pitch_mm : float
        Sampling distance, on the axis of rotation.

    Returns
    -------
    gain : (n_padded // 2 + 1,) float32
        In 1/mm; n_padded is the next length that is fast to transform and at least 2 n_cols, so that no column takes
        from the other end of the row.
    """
    if window not in WINDOWS:
        raise WrongUsage(f"the window is {window!r}; allowed: {', '.join(WINDOWS)}")
    n_padded = _fft.next_fast_len(2 * n_cols, real=True)
    n_padded += n_padded % 2
    distance = np.minimum(np.arange(n_padded), n_padded - np.arange(n_padded))
    kernel = np.zeros(n_padded)
    is_odd = distance % 2 == 1
    kernel[is_odd] = -1 / (np.pi * distance[is_odd] * pitch_mm) ** 2
    kernel[0] = 1 / (2 * pitch_mm) ** 2
    gain = _fft.rfft(kernel).real * pitch_mm
    return (gain * WINDOWS[window](np.linspace(0, 1, len(gain)))).astype(np.float32)


def ray_cosines(scan: ScanGeometry) -> NDArray[np.float32]:
    """Return the cosine of each ray against the one that meets its upright detector at a right angle.

    Returns
    -------
    (n_views, rows, cols) float32
        Or (1, rows, cols), where the detector stands before the source in the same way in all views.
    """
    if scan.is_parallel:
        return np.ones((1, scan.rows, scan.cols), np.float32)
    from_source = scan.detector_mm - scan.source_mm
    pitch_u, pitch_v = np.linalg.norm(scan.u_mm, axis=1), np.linalg.norm(scan.v_mm, axis=1)
    normal = np.cross(scan.u_mm, scan.v_mm)
    along_u, along_v, away = (
        (from_source * axis).sum(-1) / length
        for axis, length in ((scan.u_mm, pitch_u), (scan.v_mm, pitch_v), (normal, pitch_u * pitch_v))
    )
    if max(np.ptp(along_u), np.ptp(along_v), np.ptp(away)) < 1e-6 * pitch_u.min():
        along_u, along_v, away = along_u[:1], along_v[:1], away[:1]
    u_mm = along_u[:, None] + (np.arange(scan.cols) - (scan.cols - 1) / 2) * pitch_u[0]
    v_mm = along_v[:, None] + (np.arange(scan.rows) - (scan.rows - 1) / 2) * pitch_v[0]
    across = (u_mm / away[:, None]).astype(np.float32)[:, None], (v_mm / away[:, None]).astype(np.float32)[..., None]
    return 1 / np.sqrt(1 + across[0] ** 2 + across[1] ** 2)


class RowFilter:
    """Filters images along their rows, on the host or on the device, wherever they are.

    Parameters
    ----------
    n_cols : int
    pitch_mm, window
        As of `ramp_filter`.
    beyond : int, int
        Columns that are wanted before the first and after the last, where the rows hold zero.
    is_continued : bool
        Continue rows beyond the detector.
    """

    def __init__(
        self,
        n_cols: int,
        pitch_mm: float,
        window: str,
        *,
        beyond: tuple[int, int] = (0, 0),
        is_continued: bool = True,
        use_gpu: bool = False,
    ) -> None:
        self._n_cols, self._beyond = n_cols, beyond
        n_continued = min(round(CONTINUED_SHARE * n_cols), n_cols - 1) if is_continued else 0
        falling = np.cos(np.pi / 2 * (np.arange(n_continued) + 1) / (n_continued + 1)) ** 2
        spans = n_cols + sum(beyond), n_cols + max(n_continued, *beyond) + min(n_continued, sum(beyond))
        gains = [ramp_filter(n_span, pitch_mm, window) for n_span in spans]
        send = backend.to_device if use_gpu else np.asarray
        self._falling = send(falling.astype(np.float32))
        self._gain, self._gain_continued = map(send, gains)

    @property
    def n_padded(self) -> int:
        """Length to which rows are padded at most."""
        return 2 * (len(self._gain_continued) - 1)

    def __call__(self, images: backend.Array, shares: backend.Array) -> backend.Array:
        """Return filtered images, (..., rows, before + cols + after) float32, in 1/mm times their unit.

        Parameters
        ----------
        images : (..., rows, cols) float32
        shares : (..., 1, cols) float32
            What they are multiplied by first. Beyond the detector this goes on as it is at the edge; so where it has
            fallen to zero nothing is continued.
        """
        xp = backend.namespace(images)
        n, n_continued = self._n_cols, len(self._falling)
        edges = self._edges(images, shares) if n_continued else []
        is_cut = any(bool(share.any()) for _, share in edges)
        gain = self._gain_continued if is_cut else self._gain
        padded = xp.zeros((*images.shape[:-1], 2 * (len(gain) - 1)), np.float32)
        xp.multiply(images, shares, out=padded[..., :n])
        if is_cut:
            self._continue(images, *edges[0], out=padded[..., : -n_continued - 1 : -1])
            self._continue(images[..., ::-1], *edges[1], out=padded[..., n : n + n_continued])
        spectrum = backend.rfft(padded, padded.shape[-1])
        spectrum *= gain
        filtered = backend.irfft(spectrum, padded.shape[-1])
        n_before, n_after = self._beyond
        if n_before:
            return xp.concatenate([filtered[..., -n_before:], filtered[..., : n + n_after]], axis=-1)
        return filtered[..., : n + n_after]

    def _edges(self, images: backend.Array, shares: backend.Array) -> list[tuple[backend.Array, backend.Array]]:
        """Return the first and the last columns' value, and how much of what lies beyond them counts."""
        xp = backend.namespace(images)
        peak = CUT_SHARE * images.max(-1, keepdims=True)
        edges = []
        outer = images[..., :NOISE_COLS], images[..., : -NOISE_COLS - 1 : -1]
        for cols, share in zip(outer, (shares[..., :1], shares[..., -1:]), strict=True):
            edge = cols[..., :EDGE_COLS].sum(-1, keepdims=True) / EDGE_COLS
            scatter = xp.abs(cols[..., 1:] - cols[..., :-1]).sum(-1, keepdims=True)
            least = xp.maximum(peak, scatter * _ERRORS_PER_SCATTER) + np.float32(1e-30)
            edges.append((edge, xp.minimum(xp.maximum(edge / least - 1, 0), 1) * share))
        return edges

    def _continue(self, images: backend.Array, edge: backend.Array, share: backend.Array, out: backend.Array) -> None:
        """Fill what comes before the first column, outwards: the mirror image through the edge, where it is above 0."""
        xp = backend.namespace(images)
        xp.subtract(2 * edge, images[..., 1 : len(self._falling) + 1], out=out)
        xp.maximum(out, 0, out=out)
        out *= self._falling
        out *= share
