"""The ramp: views weighted by the cosines of their rays and filtered along the detector's rows.

Rows that the object leaves at a value other than zero are continued beyond the detector by what their last columns
hold, falling off smoothly: a step there would ring into the volume. Where the object ends inside, the last columns
hold nothing, and nothing is continued.

# Ref: the ramp sampled in space (sampling it in frequency instead lowers every value): Kak and Slaney 1988, Principles
#      of Computerized Tomographic Imaging, chapter 3, equation 61, as scikit-image's `iradon` has it.
# Ref: windows: Shepp and Logan 1974, IEEE Trans. Nucl. Sci. 21 (3), 21 (sinc); Harris 1978, Proc. IEEE 66, 51 (Hann,
#      Hamming); cosine as in scikit-image's `iradon`. A test compares all with it.
# Ref: cut rows continued smoothly: Ohnesorge, Flohr, Schwarz, Heiken and Bae 2000, Med. Phys. 27, 39. That paper
#      mirrors the row; here it stays as it is at its edge, under a squared cosine.
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

CONTINUED_SHARE = 0.25
"""How far a row is continued on either side, as a share of its length. A choice: longer costs time."""
EDGE_COLS = 4
"""Last columns whose mean is continued, so that one column's noise is not."""


def ramp_filter(n_cols: int, pitch_mm: float, window: str = "ram-lak", *, n_continued: int = 0) -> NDArray[np.float32]:
    """Return the filter's gain at each frequency of a padded row.

    Parameters
    ----------
    n_cols : int
        Length of a row before padding.
    pitch_mm : float
        Sampling distance, on the axis of rotation.
    n_continued : int
        Columns by which rows are continued on either side.

    Returns
    -------
    gain : (n_padded // 2 + 1,) float32
        In 1/mm; n_padded is the next length that is fast to transform and at least twice n_cols + n_continued, so that
        no column takes from the other end of the row.
    """
    if window not in WINDOWS:
        raise WrongUsage(f"the window is {window!r}; allowed: {', '.join(WINDOWS)}")
    n_padded = _fft.next_fast_len(2 * (n_cols + n_continued), real=True)
    n_padded += n_padded % 2
    distance = np.minimum(np.arange(n_padded), n_padded - np.arange(n_padded))
    kernel = np.zeros(n_padded)
    is_odd = distance % 2 == 1
    kernel[is_odd] = -1 / (np.pi * distance[is_odd] * pitch_mm) ** 2
    kernel[0] = 1 / (2 * pitch_mm) ** 2
    gain = _fft.rfft(kernel).real * pitch_mm
    return (gain * WINDOWS[window](np.linspace(0, 1, len(gain)))).astype(np.float32)


class RowFilter:
    """Filters images along their rows, on the host or on the device, wherever they are."""

    def __init__(self, n_cols: int, pitch_mm: float, window: str, *, is_continued: bool, use_gpu: bool) -> None:
        self._n_cols = n_cols
        self._n_continued = round(CONTINUED_SHARE * n_cols) if is_continued else 0
        gain = ramp_filter(n_cols, pitch_mm, window, n_continued=self._n_continued)
        falling = np.cos(np.pi / 2 * (np.arange(self._n_continued) + 1) / (self._n_continued + 1)) ** 2
        send = backend.to_device if use_gpu else np.asarray
        self._gain, self._falling = send(gain), send(falling.astype(np.float32))
        self._n_padded = 2 * (len(gain) - 1)

    def __call__(self, images: backend.Array) -> backend.Array:
        """Return filtered images, (..., rows, cols) float32, in 1/mm times their unit."""
        xp = backend.namespace(images)
        n, n_continued = self._n_cols, self._n_continued
        if n_continued:
            padded = xp.zeros((*images.shape[:-1], self._n_padded), np.float32)
            padded[..., :n] = images
            padded[..., n : n + n_continued] = images[..., -EDGE_COLS:].mean(-1, keepdims=True) * self._falling
            padded[..., -n_continued:] = images[..., :EDGE_COLS].mean(-1, keepdims=True) * self._falling[::-1]
            images = padded
        spectrum = backend.rfft(images, self._n_padded)
        spectrum *= self._gain
        return backend.irfft(spectrum, self._n_padded)[..., :n]
