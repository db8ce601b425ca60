"""How arrays are laid out for the CUDA kernels: groups of channels side by side, in single or half precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from reconstruction import backend


class ChannelGroup(NamedTuple):
    """Channels that go through a kernel together.

    Attributes
    ----------
    channels : slice
    width : int
        How many channels the kernel is made for; it may be one more than there are.
    """

    channels: slice
    width: int

    @property
    def n_channels(self) -> int:
        """How many channels there are."""
        return self.channels.stop - self.channels.start

    def defines(self, *, is_half: bool) -> tuple[str, ...]:
        """Return what the CUDA sources want to be told of it."""
        return f"CHANNELS {self.width}", f"STORED {'half_bits' if is_half else 'float'}"


def channel_groups(n_channels: int) -> Iterator[ChannelGroup]:
    """Share channels out to kernels that are made for one, two or four."""
    for first in range(0, n_channels, 4):
        count = min(4, n_channels - first)
        yield ChannelGroup(slice(first, first + count), 4 if count == 3 else count)


def blocks(n: Sequence[int], per_block: Sequence[int]) -> tuple[int, ...]:
    """Return how many blocks of threads cover `n` things along each axis."""
    return tuple(-(-a // b) for a, b in zip(n, per_block, strict=True))


def scale_of(values: backend.Array, *, is_half: bool) -> Any:
    """Return what stored values are to be multiplied by, as a float32 on the device.

    Half precision reaches from 6e-8 to 65504, with all its digits from 6e-5: the largest value is stored as 1.
    """
    xp = backend.namespace(values)
    if not is_half:
        return xp.ones((), np.float32)
    largest = xp.maximum(values.max(), -values.min()).astype(np.float32)  # without a copy of all values
    return xp.where(largest > 0, largest, np.float32(1))


def interleaved(values: backend.Array, group: ChannelGroup, scale: Any, *, is_half: bool) -> Any:
    """Return (n_channels, ...) as (..., width), contiguous, in the precision it is stored with."""
    xp = backend.namespace(values)
    chosen = values[group.channels]
    if not is_half and group.width == 1:
        return xp.ascontiguousarray(chosen[0], np.float32)[..., None]
    stored = xp.zeros((*chosen.shape[1:], group.width), np.float16 if is_half else np.float32)
    for channel in range(group.n_channels):
        stored[..., channel] = chosen[channel] / scale if is_half else chosen[channel]
    return stored
