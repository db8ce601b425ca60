"""What is asked of a reconstruction: which method, on which bins and voxels, with which corrections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from firmware_iface.errors import WrongUsage

if TYPE_CHECKING:  # a recipe is read where nothing is reconstructed
    from reconstruction.field_of_view import Span

DEFAULT_WINDOW = "hann"
FDK = "fdk"
TRUNCATION = ("auto", "none")
WEIGHTS = ("auto", "noise", "none")
TIERS = ("image", "projection", "onestep")
"""Ways to materials: of the bins' volumes, of every ray, or of all counts at once."""
RULES = ("least-squares", "non-negative", "fractions", "exclusive", "min-residual")
"""Of the bins' volumes: by which rule a voxel's materials are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a scan becomes a volume.

    Attributes
    ----------
    method : str
        "fdk", or one of `reconstruction.iterative.METHODS`.
    window : str
        Of the filter, one of `reconstruction.ramp.WINDOWS`; for "fdk", and for the volume that iterations start from.
    options : mapping of str to number or str
        Of an iterative method, by their names in `reconstruction.iterative`.
    n_iterations : int, optional
        None: as many as the method's default.
    weights : str
        What data count for: "noise" (one over their variance), "none" (all that were measured alike), or "auto":
        by noise with a prior, with pwls and where the noise says when to stop.
    stops_at_noise : bool
        End an iterative method when the volume fits the data as well as their noise allows.
    prior : str, optional
        One of `reconstruction.iterative.PRIORS`, for methods that take one.
    start : path or "fdk", optional
        Volume file that iterations start from, on any grid; or the filtered back-projection. None: nothing.
    reference : path or "fdk", optional
        The same for what damping, or a directional prior, pulls towards.
    bins : tuple of int
        Which bins, from 1; nothing: all.
    voxel_mm : float, optional
        None: a pixel's size on the axis.
    shape : (z, y, x) int, optional
        Number of voxels; None: what all views see.
    region_mm : three of (from, to), optional
        Along x, y and z; only the voxels in there are kept.
    is_preview : bool
        Every fourth view, and pixels and voxels of four times the size.
    scatter : path, optional
        TOML file of the scatter kernels of all chosen bins: one table [[bin]] each.
    rings, metal_per_mm, truncation
        How rings are taken out (a method of `reconstruction.artefacts.rings`, "auto" or "none"), from which attenuation
        on a voxel is metal (None: nothing is), and whether views that the object overlaps are extended ("auto" or
        "none").
    linearise : bool
        Take out the hardening of the beam by the step wedge that the scan's calibration holds.
    pass_number : int, optional
        Which pass of a scan of several, from 1.
    use_gpu : bool
    """

    method: str = FDK
    window: str = DEFAULT_WINDOW
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    n_iterations: int | None = None
    weights: str = "auto"
    stops_at_noise: bool = False
    prior: str | None = None
    start: Path | str | None = None
    reference: Path | str | None = None
    bins: tuple[int, ...] = ()
    voxel_mm: float | None = None
    shape: tuple[int, int, int] | None = None
    region_mm: tuple[Span, Span, Span] | None = None
    is_preview: bool = False
    scatter: Path | None = None
    rings: str = "none"
    metal_per_mm: float | None = None
    truncation: str = "auto"
    linearise: bool = False
    pass_number: int | None = None
    use_gpu: bool = False

    def __post_init__(self) -> None:
        if self.voxel_mm is not None and not 0 < self.voxel_mm < float("inf"):
            raise WrongUsage(f"the voxel is {self.voxel_mm} mm; allowed: more than 0")
        if self.shape is not None and min(self.shape) < 1:
            raise WrongUsage(f"the shape is {' '.join(map(str, self.shape))}; allowed: three counts of at least 1")
        if self.n_iterations is not None and self.n_iterations < 1:
            raise WrongUsage(f"{self.n_iterations} iterations were asked for; allowed: at least 1")
        if self.metal_per_mm is not None and not 0 < self.metal_per_mm < float("inf"):
            raise WrongUsage(f"metal attenuates more than {self.metal_per_mm:g} per mm; allowed: a number above 0")
        if self.truncation not in TRUNCATION:
            raise WrongUsage(f"the truncation is {self.truncation!r}; allowed: {', '.join(TRUNCATION)}")
        if self.weights not in WEIGHTS:
            raise WrongUsage(f"the weights are {self.weights!r}; allowed: {', '.join(WEIGHTS)}")
        for low, high in self.region_mm or ():
            if not low < high:
                raise WrongUsage(f"the region runs from {low:g} to {high:g} mm; allowed: from the lower to the higher")
        of_iterations = (self.options, self.n_iterations, self.stops_at_noise, self.prior, self.start, self.reference)
        if self.method == FDK and any(of_iterations):
            raise WrongUsage(
                "the method fdk has no iterations, prior, start or reference, and no option beside its window",
                hint="choose an iterative method with --method",
            )

    @property
    def is_iterative(self) -> bool:
        """Whether the method iterates."""
        return self.method != FDK

    @property
    def needs_whole(self) -> tuple[str, ...]:
        """What of it looks at the whole scan at once, and so cannot be had slab by slab."""
        asked = {
            "method": self.is_iterative,
            "preview": self.is_preview,
            "rings": self.rings != "none",
            "scatter": self.scatter is not None,
            "metal-per-mm": self.metal_per_mm is not None,
        }
        return tuple(name for name, is_asked in asked.items() if is_asked)

    @property
    def of_rays(self) -> Recipe:
        """The same without the method that makes bins' volumes, for tiers that make none."""
        return replace(
            self,
            method=FDK,
            options=MappingProxyType({}),
            n_iterations=None,
            weights="auto",
            stops_at_noise=False,
            prior=None,
            start=None,
            reference=None,
        )


def bins_of(text: str) -> tuple[int, ...]:
    """Read bins like "1,3-4": from 1, in order, each once."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise WrongUsage(f"the bins are {text!r}; allowed: numbers from 1 like 1,3-4") from None
        if not 1 <= low <= high <= 1000:
            raise WrongUsage(f"the bins are {text!r}; allowed: numbers from 1 like 1,3-4")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def region_of(text: str) -> tuple[Span, Span, Span] | None:
    """Read a region like "x=-2:2,z=0:1.5", in mm; an axis that is not named is kept whole."""
    if not text.strip():
        return None
    spans: dict[str, Span] = {}
    for part in text.split(","):
        axis, _, span = part.partition("=")
        low, colon, high = span.partition(":")
        ends = (0.0, 0.0)
        try:
            ends = float(low.strip() or "-inf"), float(high.strip() or "inf")
        except ValueError:
            colon = ""
        if not colon or axis.strip().lower() not in ("x", "y", "z"):
            raise WrongUsage(f"the region is {text!r}; allowed: mm like x=-2:2,y=:1,z=0:1.5")
        spans[axis.strip().lower()] = ends
    whole = (float("-inf"), float("inf"))
    return spans.get("x", whole), spans.get("y", whole), spans.get("z", whole)
