"""What each bin counts behind materials: a sum over energies, for whichever detector, tube and materials.

    counts[bin] = open[bin] * sum over e of weights[bin, e] * exp(-sum over k of attenuation[e, k] * path[k])

The nodes `e` are energies in keV where the spectrum and the response are known, fewer of them where they were
compressed, and mere exponentials where only a calibration is known; the form is the same, and so are all methods.
Paths are lengths times concentrations: 1 mm of 1 g/cm3 is one unit, `mm g/cm3`.

# Ref: polychromatic forward model: Alvarez and Macovski 1976, Phys. Med. Biol. 21, 733; Fisher information of Poisson
#      counts: Roessl and Herrmann 2009, Phys. Med. Biol. 54, 1307.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.attenuation import Material, mass_attenuation_cm2_g
from calibration.charge_sharing import counts_together
from calibration.response import Response
from firmware_iface.errors import CalibrationMissing, WrongUsage
from reconstruction.spectral.exponentials import fit_exponentials

PER_MM_OF_CM2_G = 0.1
LOWEST_KEV = 4.0
"""Softer photons pass no tube's window and count nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpectralModel:
    """The expected counts of every bin behind any path through the materials.

    Attributes
    ----------
    materials : tuple of str
    bins : tuple of str
    weights : (n_bins, n_nodes) float64
        Share of the open beam's counts in a bin that each node stands for; a row's sum is 1.
    attenuation_per_mm_per_g_cm3 : (n_nodes, n_materials) float64
    energies_kev : (n_nodes,) float64
        Mean energy of each node; NaN where it stands for none.
    co_weights : (n_bins, n_bins, n_nodes) float64, optional
        Where a photon can count more than once, in several pixels that are summed: how the counts vary together,

            covariance[a, b] = sqrt(open[a] open[b]) * sum over e of co_weights[a, b, e] * exp(- ...)

        that is photons of the open beam at a node times the mean of the product of what one photon counts in bins
        ``a`` and ``b``, over the root of both bins' counts. None: a photon counts once at most; bins are independent.
        `of_summed_pixels` makes them of `neighbour_weights`.
    neighbour_weights : (2, n_bins, n_bins, n_nodes) float64, optional
        The same of bin ``a`` of a pixel and bin ``b`` of one neighbour, across an edge and across a corner. None: no
        photon counts in two pixels, or it is not known.
    """

    materials: tuple[str, ...]
    bins: tuple[str, ...]
    weights: NDArray[np.float64]
    attenuation_per_mm_per_g_cm3: NDArray[np.float64]
    energies_kev: NDArray[np.float64]
    co_weights: NDArray[np.float64] | None = None
    neighbour_weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        n_nodes = self.weights.shape[-1]
        if self.weights.shape != (len(self.bins), n_nodes) or self.energies_kev.shape != (n_nodes,):
            raise ValueError(
                f"weights {self.weights.shape} and energies {self.energies_kev.shape} of {len(self.bins)} bins; "
                "allowed: (n_bins, n_nodes) and (n_nodes,)"
            )
        if self.attenuation_per_mm_per_g_cm3.shape != (n_nodes, len(self.materials)):
            raise ValueError(
                f"attenuation {self.attenuation_per_mm_per_g_cm3.shape} of {len(self.materials)} materials; "
                f"allowed: ({n_nodes}, {len(self.materials)})"
            )
        if (self.weights < 0).any() or not np.allclose(self.weights.sum(axis=1), 1):
            raise ValueError(f"the weights sum to {self.weights.sum(axis=1)}; allowed: none below 0, 1 in every bin")

        if self.co_weights is not None and self.co_weights.shape != (len(self.bins), len(self.bins), n_nodes):
            raise ValueError(
                f"co_weights {self.co_weights.shape} of {len(self.bins)} bins and {n_nodes} nodes; "
                "allowed: (n_bins, n_bins, n_nodes)"
            )
        shape = (2, len(self.bins), len(self.bins), n_nodes)
        if self.neighbour_weights is not None and self.neighbour_weights.shape != shape:
            raise ValueError(f"neighbour_weights {self.neighbour_weights.shape}; allowed: {shape}")

    @classmethod
    def of_response(
        cls,
        response: Response,
        materials: Sequence[Material | str],
        *,
        thresholds_kev: ArrayLike | None = None,
        step_kev: float = 0.5,
        knows_sharing: bool = False,
    ) -> SpectralModel:
        """Take spectrum and response from what was fitted to this detector.

        Parameters
        ----------
        materials : sequence of Material or name
            A name is one that `calibration.attenuation.material` knows.
        thresholds_kev : (n_bins,) float, optional
            As set, rising. None: those that the response was fitted at.
        knows_sharing : bool
            Tell which counts of neighbouring pixels are of one photon, too.
        """
        thresholds = np.asarray(response.thresholds_kev if thresholds_kev is None else thresholds_kev, float)
        energies_kev = np.arange(LOWEST_KEV, response.tube_kvp * 1.1, step_kev)
        photons = response.spectrum(energies_kev)
        seen = response.matrix(thresholds, energies_kev) * photons
        model = cls.of_spectrum(seen, energies_kev, materials, bins=tuple(f"{low:g} keV" for low in thresholds))
        if not knows_sharing:
            return model
        root = np.sqrt(seen.sum(axis=1))
        together = counts_together(response, thresholds, energies_kev) * photons / (root[:, None] * root)[..., None]
        return replace(model, neighbour_weights=together[..., seen.any(axis=0)])

    @classmethod
    def of_spectrum(
        cls,
        seen: NDArray[np.floating],
        energies_kev: NDArray[np.floating],
        materials: Sequence[Material | str],
        *,
        bins: Sequence[str] = (),
    ) -> SpectralModel:
        """Take what each bin counts of the open beam by photons of each energy: (n_bins, n_energies), in any unit."""
        total = seen.sum(axis=1)
        if not (total > 0).all():
            raise WrongUsage(f"bin {1 + int(np.argmin(total))} counts nothing of the open beam; allowed: all count")
        energies_kev = np.asarray(energies_kev, dtype=np.float64)
        is_seen = seen.any(axis=0)
        attenuation = [PER_MM_OF_CM2_G * mass_attenuation_cm2_g(m, energies_kev[is_seen]) for m in materials]
        return cls(
            materials=tuple(m if isinstance(m, str) else m.name for m in materials),
            bins=tuple(bins) or tuple(f"bin {k + 1}" for k in range(len(seen))),
            weights=seen[:, is_seen] / total[:, None],
            attenuation_per_mm_per_g_cm3=np.stack(attenuation, axis=1),
            energies_kev=energies_kev[is_seen],
        )

    @classmethod
    def joined(cls, models: Sequence[SpectralModel]) -> SpectralModel:
        """Return one model of the bins of several passes over the same materials."""
        if any(model.materials != models[0].materials for model in models):
            raise WrongUsage("the passes tell of different materials; allowed: the same in all")
        nodes = [
            np.concatenate([model.energies_kev[:, None], model.attenuation_per_mm_per_g_cm3], axis=1)
            for model in models
        ]
        # Nodes of the same energy and attenuation stand for the same photons, in whichever pass.
        all_nodes, places = np.unique(np.concatenate(nodes), axis=0, return_inverse=True)
        n_bins = [len(model.bins) for model in models]
        weights = np.zeros((sum(n_bins), len(all_nodes)))
        together: dict[str, NDArray[np.float64]] = {}
        ends, stops = np.cumsum([len(of_pass) for of_pass in nodes]), np.cumsum(n_bins)
        for model, of_pass, end, stop in zip(models, nodes, ends, stops, strict=True):
            here = places.ravel()[end - len(of_pass) : end]
            bins = slice(stop - len(model.bins), stop)
            weights[bins, here] = model.weights
            own = {name: getattr(model, name) for name in ("co_weights", "neighbour_weights")}
            if any(other.co_weights is not None for other in models) and model.co_weights is None:
                own["co_weights"] = np.eye(len(model.bins))[..., None] * model.weights
            for name, values in own.items():
                if values is not None:
                    shape = (*values.shape[:-3], sum(n_bins), sum(n_bins), len(all_nodes))
                    together.setdefault(name, np.zeros(shape))[..., bins, bins, here] = values
        return cls(
            materials=models[0].materials,
            bins=tuple(name for model in models for name in model.bins),
            weights=weights,
            attenuation_per_mm_per_g_cm3=all_nodes[:, 1:],
            energies_kev=all_nodes[:, 0],
            **together,
        )

    def of_summed_pixels(self, n: int) -> SpectralModel:
        """Return the model of sums of n x n pixels: their bins vary together, and neighbours less than before."""
        if self.neighbour_weights is None or n == 1:
            return self
        inside = 1 - 1 / n  # the share of pixels that have the next one along an axis in the same sum
        edges, corners = self.neighbour_weights
        return replace(
            self,
            co_weights=np.eye(len(self.bins))[..., None] * self.weights + 4 * inside * edges + 4 * inside**2 * corners,
            neighbour_weights=np.stack([edges / n + 2 * inside / n * corners, corners / n**2]),
        )

    @classmethod
    def fitted_to_wedge(
        cls,
        paths: ArrayLike,
        transmissions: ArrayLike,
        sigma_relative: ArrayLike,
        *,
        materials: Sequence[str],
        bins: Sequence[str] = (),
        n_exponentials: int = 2,
    ) -> SpectralModel:
        """Take a few exponentials per bin from what it keeps behind known plates: no spectrum, no response is needed.

        Parameters
        ----------
        paths : (n_materials, n_plates) float, mm g/cm3
        transmissions : (n_bins, n_plates) float
        sigma_relative : (n_bins, n_plates) float
            Their relative standard errors, those of the plates' thickness among them.
        n_exponentials : int
            Per bin; each has ``n_materials`` attenuations and a weight to be told by the plates.

        Raises
        ------
        CalibrationMissing
            There are fewer plates than unknowns of a bin, or nothing came through one.
        """
        layers, shares = np.asarray(paths, dtype=np.float64), np.asarray(transmissions, dtype=np.float64)
        sigma = np.broadcast_to(np.asarray(sigma_relative, dtype=np.float64), shares.shape)
        n_unknown = n_exponentials * (len(materials) + 1) - 1
        if shares.shape[1] < n_unknown:
            raise CalibrationMissing(
                f"{n_exponentials} exponentials per bin have {n_unknown} unknowns; there are {shares.shape[1]} plates",
                hint="measure more plates, or take fewer exponentials",
            )
        if not ((shares > 0).all() and (sigma > 0).all()):
            raise CalibrationMissing("nothing came through a plate", hint="use thinner plates or more frames")
        weights, attenuation = fit_exponentials(layers, shares, sigma, n_exponentials)
        n_bins = len(shares)
        blocks = np.zeros((n_bins, n_bins, n_exponentials))
        blocks[np.arange(n_bins), np.arange(n_bins)] = weights
        return cls(
            materials=tuple(materials),
            bins=tuple(bins) or tuple(f"bin {k + 1}" for k in range(n_bins)),
            weights=blocks.reshape(n_bins, -1),
            attenuation_per_mm_per_g_cm3=attenuation.reshape(-1, len(materials)),
            energies_kev=np.full(n_bins * n_exponentials, np.nan),
        )

    def of_bins(self, places: Sequence[int]) -> SpectralModel:
        """Return the model of some bins, in this order."""
        co_weights = None if self.co_weights is None else self.co_weights[np.ix_(places, places)]
        neighbours = self.neighbour_weights
        return replace(
            self,
            bins=tuple(self.bins[place] for place in places),
            weights=self.weights[list(places)],
            co_weights=co_weights,
            neighbour_weights=None if neighbours is None else neighbours[:, places][:, :, places],
        )

    def transmission(self, paths: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the share of the open beam's counts that each bin keeps.

        Parameters
        ----------
        paths : (n_materials, ...) float, mm g/cm3

        Returns
        -------
        share : (n_bins, ...) float64
        """
        return np.tensordot(self.weights, self._kept(paths), axes=1)

    def slopes(self, paths: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how the transmission changes with each path: (n_bins, n_materials, ...) float64, per mm g/cm3."""
        by_node = self.weights[:, None, :] * self.attenuation_per_mm_per_g_cm3.T
        return -np.tensordot(by_node, self._kept(paths), axes=1)

    def fisher(self, paths: NDArray[np.floating], open_counts: ArrayLike) -> NDArray[np.float64]:
        """Return what the counts tell of the paths: (n_materials, n_materials, ...) float64.

        That of Poisson counts; with `co_weights` that of counts of the same mean and covariance, whatever their law.

        Parameters
        ----------
        open_counts : (n_bins, ...) or (n_bins,) float
        """
        paths = np.asarray(paths, dtype=np.float64)
        counts = np.asarray(open_counts, dtype=np.float64)
        counts = counts.reshape(counts.shape + (1,) * (paths.ndim - counts.ndim))
        share, slopes = self.transmission(paths), self.slopes(paths)
        if self.co_weights is None:
            return np.einsum("bk...,bl...,b...->kl...", slopes, slopes, counts / share)
        slopes = np.moveaxis(counts[:, None] * slopes, (0, 1), (-2, -1))
        weighted = np.linalg.solve(np.moveaxis(self.covariance(paths, counts), (0, 1), (-2, -1)), slopes)
        return np.moveaxis(np.swapaxes(slopes, -1, -2) @ weighted, (-2, -1), (0, 1))

    def covariance(self, paths: NDArray[np.floating], open_counts: ArrayLike) -> NDArray[np.float64]:
        """Return how the bins' counts vary together: (n_bins, n_bins, ...) float64.

        Parameters
        ----------
        open_counts : (n_bins, ...) or (n_bins,) float
        """
        counts = np.asarray(open_counts, dtype=np.float64)
        root = np.sqrt(counts.reshape(counts.shape + (1,) * (np.ndim(paths) - counts.ndim)))
        if self.co_weights is not None:
            return root[:, None] * root * np.tensordot(self.co_weights, self._kept(paths), axes=1)
        return np.eye(len(self.bins)).reshape(len(self.bins), -1, *[1] * (np.ndim(paths) - 1)) * (
            root**2 * self.transmission(paths)
        )

    def together(self, paths: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how neighbours vary together, over the root of both open counts: (2, n_bins, n_bins, ...) float64."""
        if self.neighbour_weights is None:
            raise WrongUsage("the model does not know what pixels share", hint="of_response(..., knows_sharing=True)")
        return np.tensordot(self.neighbour_weights, self._kept(paths), axes=1)

    def _kept(self, paths: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.exp(-np.tensordot(self.attenuation_per_mm_per_g_cm3, np.asarray(paths, dtype=np.float64), axes=1))
