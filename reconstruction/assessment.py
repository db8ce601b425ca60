"""All figures of merit of a material volume, against the description of the phantom that it shows.

Twice: of the maps as they are, and of the maps brought to one sharpness, for a blurred map is quiet and a sharp one is
not, and only at the same MTF do noise, detection limits and identification compare.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.attenuation import MG_ML_PER_G_CM3
from calibration.progress import Progress
from firmware_iface.errors import WrongUsage
from reconstruction.merit.concentration import (
    Agreement,
    DetectionLimits,
    Regression,
    agreement,
    detection_limits,
    mixing,
)
from reconstruction.merit.identification import Confusion, Roc, confusion, roc, shown_material
from reconstruction.merit.noise import (
    LEAST_SIDE_VOXELS,
    Efficiency,
    NoisePower,
    efficiency,
    noise_power,
    squares_of,
)
from reconstruction.merit.registration import Pose
from reconstruction.merit.resolution import (
    Mtf,
    blurred,
    edge_of_disc,
    edge_of_line,
    gaussian_blur_mm,
    wire_mtf,
)
from reconstruction.phantom_file import Edge, Phantom, Square, Vial
from reconstruction.quality import (
    VialStatistics,
    agents_of,
    cross_talk_mg_ml,
    cylinder_mask,
    regression,
    stated_mg_ml,
    total_cross_talk_mg_ml,
    true_and_measured_mg_ml,
    vial_statistics,
)
from reconstruction.volume import MASS_CONCENTRATION, Grid, Volume

REACH_SHARE = 1.0
"""Of a vial's radius: how far from its rim the MTF looks, unless the description says otherwise."""
LEAST_CONTRAST_SIGMAS = 3.0
"""A rim lower than this many standard deviations of the slices' mean tells nothing of the sharpness."""
MOST_MTF50_ERROR = 0.1
CLEAR_BLURS = 2.5
"""Standard deviations of the blur from a vial's rim, further inside of which the rim takes less than 1 % away."""
LEAST_KEPT_SHARE = 0.3
MARGIN_VOXELS = 8
MOST_SIDE_VOXELS = 64
THRESHOLD_SHARE = 0.5
"""Of the weakest vial's concentration: from there on a voxel shows the material, unless the description says else."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sharpness:
    """The MTF of a map, where it was measured, and how well.

    `mtf50_se_per_mm` comes from even and odd slices apart; NaN of a single slice.
    """

    mtf: Mtf
    where: str
    mtf50_se_per_mm: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figures:
    """What maps of one sharpness read.

    Attributes
    ----------
    vials : tuple of VialStatistics
    identified_share : tuple of float
        Of each vial, the share of its voxels that show its material; NaN of a mixture.
    regressions, agreements : mapping of material
        Of those whose vials allow it.
    cross_talk_mg_ml : mapping of material
    total_cross_talk_mg_ml : float
    mixing : (n_agents, n_agents) float64
        mg/mL shown in each map for one mg/mL of each agent; NaN where the vials cannot tell.
    blank_mean_mg_ml, blank_sd_mg_ml : mapping of material
        Over the voxels of the blank; empty without one.
    limits : mapping of material
    thresholds_mg_ml : mapping of material
        From where on a voxel shows it.
    confusion : Confusion
        Over the agents and "none of them"; the solvent's vials hold none, mixtures are left out.
    rocs : mapping of material
    sharpness : mapping of material
        Of the maps where it could be measured.
    noise : NoisePower or None
        Over all materials of the volume, in mg/mL.
    """

    vials: tuple[VialStatistics, ...]
    identified_share: tuple[float, ...]
    regressions: Mapping[str, Regression]
    agreements: Mapping[str, Agreement]
    cross_talk_mg_ml: Mapping[str, float]
    total_cross_talk_mg_ml: float
    mixing: NDArray[np.float64]
    blank_mean_mg_ml: Mapping[str, float]
    blank_sd_mg_ml: Mapping[str, float]
    limits: Mapping[str, DetectionLimits]
    thresholds_mg_ml: Mapping[str, float]
    confusion: Confusion
    rocs: Mapping[str, Roc]
    sharpness: Mapping[str, Sharpness]
    noise: NoisePower | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assessment:
    """Figures of a volume as it is, and at one sharpness.

    Attributes
    ----------
    phantom : Phantom
        Where it lies in the volume.
    pose : Pose or None
        How it was moved to there; None: it was believed.
    materials : tuple of str
        Channels of the volume.
    agents : tuple of str
    matched : Figures or None
        None where no map's MTF could be measured.
    mtf50_per_mm : float
        What all maps were blurred to; NaN where they were not.
    remarks : tuple of str
        What could not be measured, and why; what was assumed.
    efficiencies : mapping of material
        Spread over the predicted least spread, where that was given.
    """

    phantom: Phantom
    pose: Pose | None
    materials: tuple[str, ...]
    agents: tuple[str, ...]
    voxel_mm: float
    n_slices: int
    as_it_is: Figures
    matched: Figures | None
    mtf50_per_mm: float
    remarks: tuple[str, ...]
    efficiencies: Mapping[str, Efficiency]


def assess(
    volume: Volume,
    phantom: Phantom,
    *,
    pose: Pose | None = None,
    mtf50_per_mm: float | None = None,
    predicted_sd: Volume | None = None,
) -> Generator[Progress, None, Assessment]:
    """Measure all figures of merit.

    Parameters
    ----------
    volume : Volume
        Materials in g/cm3.
    phantom : Phantom
        As described.
    pose : Pose, optional
        How it lies in the volume; None: as described.
    mtf50_per_mm : float, optional
        Which sharpness to compare at; None: that of the least sharp map.
    predicted_sd : Volume, optional
        Least standard deviation that is possible (Cramer-Rao) in every voxel, on the volume's own grid.
    """
    if volume.unit != MASS_CONCENTRATION:
        raise WrongUsage(f"the volume is in {volume.unit}; allowed: materials in {MASS_CONCENTRATION}")
    lying = pose.of(phantom) if pose is not None else phantom
    if unknown := [name for name in lying.agents if name not in volume.channels]:
        raise WrongUsage(
            f"the phantom holds {', '.join(unknown)}, of which the volume has no map; "
            f"it has: {', '.join(volume.channels)}"
        )
    yield Progress("quality", 0, 4)
    seen = cut_out(volume, lying)
    sharpness, refusals = sharpness_of(seen, lying)
    remarks = [f"the MTF of {material} was not measured: {reason}" for material, reason in refusals.items()]
    yield Progress("quality", 1, 4)
    wanted = _mtf50_wanted(sharpness, lying.solvent) if mtf50_per_mm is None else float(mtf50_per_mm)
    lying, said = _clear_of_the_rims(lying, wanted)
    as_it_is = figures_of(seen, lying, sharpness)
    yield Progress("quality", 2, 4)
    matched, remarks_matched = _matched(seen, lying, sharpness, wanted)
    yield Progress("quality", 3, 4)
    assessment = Assessment(
        phantom=lying,
        pose=pose,
        materials=volume.channels,
        agents=lying.agents,
        voxel_mm=volume.grid.voxel_mm,
        n_slices=seen.grid.shape[0],
        as_it_is=as_it_is,
        matched=matched,
        mtf50_per_mm=wanted,
        remarks=(*remarks, *said, *remarks_matched),
        efficiencies={} if predicted_sd is None else _efficiencies(seen, cut_out(predicted_sd, lying), lying),
    )
    yield Progress("quality", 4, 4)
    return assessment


def common_mtf50_per_mm(volumes: Sequence[Volume], phantom: Phantom, *, pose: Pose | None = None) -> float:
    """Return the sharpness that several volumes of one phantom can be compared at: that of the least sharp map of any.

    Raises
    ------
    WrongUsage
        A volume shows nothing sharp.
    """
    lying = pose.of(phantom) if pose is not None else phantom
    found = []
    for number, volume in enumerate(volumes, start=1):
        sharpness, refusals = sharpness_of(cut_out(volume, lying), lying)
        if not sharpness:
            raise WrongUsage(f"volume {number} shows nothing sharp: {'; '.join(refusals.values())}")
        found.append(_mtf50_wanted(sharpness, lying.solvent))
    return min(found)


def cut_out(volume: Volume, phantom: Phantom) -> Volume:
    """Return the part of a volume that the phantom's regions lie in, with a margin, in memory."""
    z, y, x = volume.grid.axes_mm()
    low_z, high_z = phantom.z_range_mm or (-np.inf, np.inf)
    margin = MARGIN_VOXELS * volume.grid.voxel_mm
    boxes = [(vial.x_mm, vial.y_mm, 2 * vial.radius_mm) for vial in phantom.vials]
    boxes += [(edge.x_mm, edge.y_mm, 2 * (edge.reach_mm or 0) + (edge.radius_mm or 0)) for edge in phantom.edges]
    if phantom.blank is not None:
        boxes.append((phantom.blank.x_mm, phantom.blank.y_mm, phantom.blank.radius_mm))
    if phantom.uniform is not None:
        boxes.append((phantom.uniform.x_mm, phantom.uniform.y_mm, phantom.uniform.side_mm))
    kept = []
    for axis, low, high, name in (
        (z, low_z, high_z, "z"),
        (y, min(b - r for _, b, r in boxes) - margin, max(b + r for _, b, r in boxes) + margin, "y"),
        (x, min(a - r for a, _, r in boxes) - margin, max(a + r for a, _, r in boxes) + margin, "x"),
    ):
        inside = np.nonzero((axis >= low) & (axis <= high))[0]
        if not inside.size:
            raise WrongUsage(
                f"the phantom lies at {name} {low:.3g} to {high:.3g} mm; "
                f"the volume reaches from {axis[0]:.3g} to {axis[-1]:.3g} mm"
            )
        kept.append(slice(int(inside[0]), int(inside[-1]) + 1))
    values = np.ascontiguousarray(volume.values[:, kept[0], kept[1], kept[2]])
    centre_mm = [float(axis[part].mean()) for axis, part in zip((x, y, z), kept[::-1], strict=True)]
    return replace(
        volume,
        values=values,
        grid=Grid(
            shape=values.shape[1:],
            voxel_mm=volume.grid.voxel_mm,
            centre_mm=(centre_mm[0], centre_mm[1], centre_mm[2]),
            is_scale_known=volume.grid.is_scale_known,
        ),
    )


# Sharpness.


def sharpness_of(volume: Volume, phantom: Phantom) -> tuple[dict[str, Sharpness], dict[str, str]]:
    """Measure the MTF of every map that something sharp is stated of, or that a vial's rim stands out in.

    Returns
    -------
    sharpness : mapping of material
    refusals : mapping of material
        Why the others have none.
    """
    found, refusals = {}, {}
    from_rims_mm = _from_rims_mm(volume.grid, phantom.vials)
    for material in volume.channels:
        try:
            edge, is_used = _edge_for(volume, phantom, material, from_rims_mm)
            found[material] = _measured(volume, material, edge, is_used)
        except WrongUsage as error:
            refusals[material] = str(error)
    return found, refusals


def _edge_for(
    volume: Volume, phantom: Phantom, material: str, from_rims_mm: NDArray[np.float64]
) -> tuple[Edge, NDArray[np.bool_] | None]:
    """Return the edge to take: one that is stated, or the rim of the vial that stands out most."""
    stated = [edge for edge in phantom.edges if edge.material == material]
    if stated:
        return stated[0], None
    best, best_sigmas, best_used = None, 0.0, None
    map_ = volume.channel(material).mean(axis=0, dtype=np.float64)
    nearest = np.argmin(from_rims_mm, axis=0)
    for k, (vial, away) in enumerate(zip(phantom.vials, from_rims_mm, strict=True)):
        used, reach = nearest == k, REACH_SHARE * vial.radius_mm
        inside = map_[used & (away <= -0.3 * vial.radius_mm)]
        outside = map_[used & (away >= 0.3 * vial.radius_mm) & (away <= reach)]
        if min(inside.size, outside.size) < 4:
            continue
        noise = max(float(inside.std()), float(outside.std()), np.finfo(float).tiny)
        sigmas = abs(float(inside.mean() - outside.mean())) / noise
        if sigmas > best_sigmas:
            edge = Edge(material=material, x_mm=vial.x_mm, y_mm=vial.y_mm, radius_mm=vial.radius_mm, reach_mm=reach)
            best, best_sigmas, best_used = edge, sigmas, used
    if best is None or best_sigmas < LEAST_CONTRAST_SIGMAS:
        raise WrongUsage(
            f"the highest rim of a vial stands out by {best_sigmas:.1f} sigma; "
            f"allowed: at least {LEAST_CONTRAST_SIGMAS:g}"
        )
    return best, best_used


def _from_rims_mm(grid: Grid, vials: Sequence[Vial]) -> NDArray[np.float64]:
    """Return how far voxels are from each vial's rim, below 0 inside: (n_vials, y, x) float64."""
    _, y, x = grid.axes_mm()
    return np.stack([np.hypot(y[:, None] - vial.y_mm, x - vial.x_mm) - vial.radius_mm for vial in vials])


def _measured(volume: Volume, material: str, edge: Edge, is_used: NDArray[np.bool_] | None) -> Sharpness:
    slices = volume.channel(material) * MG_ML_PER_G_CM3
    _, y, x = volume.grid.axes_mm()
    mtf = _mtf_at(edge, slices, y, x, is_used)
    error = float("nan")
    if len(slices) > 1:
        halves = [_mtf_at(edge, slices[part::2], y, x, is_used).mtf50_per_mm for part in (0, 1)]
        error = abs(halves[1] - halves[0]) / 2
    if not np.isfinite(mtf.mtf50_per_mm) or error > MOST_MTF50_ERROR * mtf.mtf50_per_mm:
        raise WrongUsage(
            f"MTF50 is {mtf.mtf50_per_mm:.3g} +- {error:.2g} /mm; "
            f"allowed: an error up to {100 * MOST_MTF50_ERROR:g} %, below the voxels' own limit"
        )
    where = f"{edge.kind} at x {edge.x_mm:.2f}, y {edge.y_mm:.2f} mm"
    return Sharpness(mtf=mtf, where=where, mtf50_se_per_mm=error)


def _mtf_at(
    edge: Edge,
    slices: NDArray[np.float32],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    is_used: NDArray[np.bool_] | None,
) -> Mtf:
    place = (edge.x_mm, edge.y_mm)
    if edge.kind == "wire":
        return wire_mtf(slices, y, x, centre_mm=place, reach_mm=edge.reach_mm or 0.0)
    if edge.kind == "line":
        angle_rad, reach_mm = float(np.radians(edge.angle_deg)), edge.reach_mm or 0.0
        return edge_of_line(slices, y, x, point_mm=place, angle_rad=angle_rad, reach_mm=reach_mm)
    radius_mm = edge.radius_mm or 0.0
    reach_mm = edge.reach_mm or REACH_SHARE * radius_mm
    return edge_of_disc(slices, y, x, centre_mm=place, radius_mm=radius_mm, reach_mm=reach_mm, is_used=is_used)


def _mtf50_wanted(sharpness: Mapping[str, Sharpness], solvent: str) -> float:
    """Return what all maps are brought to: the least of the agents', or of the solvent alone; NaN where none is known.

    The solvent's map hardly changes at a vial's rim, so that its MTF is the least certain.
    """
    known = {name: s.mtf.mtf50_per_mm for name, s in sharpness.items()}
    agents = [mtf50 for name, mtf50 in known.items() if name != solvent]
    return min(agents or known.values(), default=float("nan"))


def _clear_of_the_rims(phantom: Phantom, mtf50_per_mm: float) -> tuple[Phantom, list[str]]:
    """Read vials further inside where the blur of their rims reaches in: some standard deviations of it away."""
    if not np.isfinite(mtf50_per_mm):
        return phantom, []
    blur_mm = float(np.sqrt(np.log(2) / 2)) / (np.pi * mtf50_per_mm)
    share = max(1 - CLEAR_BLURS * blur_mm / min(vial.radius_mm for vial in phantom.vials), LEAST_KEPT_SHARE)
    if share >= phantom.kept_radius_share:
        return phantom, []
    reads_low = " and still too low" if share == LEAST_KEPT_SHARE else ""
    said = (
        f"vials are read within {share:.2f} of their radius{reads_low}: at this sharpness their rims reach in further"
    )
    return msgspec.structs.replace(phantom, kept_radius_share=share), [said]


def _matched(
    volume: Volume, phantom: Phantom, sharpness: Mapping[str, Sharpness], wanted: float
) -> tuple[Figures | None, list[str]]:
    """Bring all maps to one MTF50 and measure them again; a map without an MTF is taken to be as sharp as the least."""
    if not sharpness:
        return None, ["no map's MTF was measured, so that nothing could be brought to one sharpness"]
    agents = [s for name, s in sharpness.items() if name != phantom.solvent] or list(sharpness.values())
    least = min(agents, key=lambda s: s.mtf.mtf50_per_mm)
    remarks, values = [], np.empty_like(volume.values)
    for k, material in enumerate(volume.channels):
        if material not in sharpness:
            remarks.append(f"{material} was taken to be as sharp as the least sharp map")
        try:
            blur_mm = gaussian_blur_mm(sharpness.get(material, least).mtf, wanted)
        except WrongUsage:
            if material != phantom.solvent:
                raise
            blur_mm = 0.0
            remarks.append(f"{material} is less sharp than the agents, and was left as it is")
        values[k] = blurred(volume.values[k], blur_mm, volume.grid.voxel_mm)
    after = replace(volume, values=values)
    again, refusals = sharpness_of(after, phantom)
    remarks += [
        f"at one sharpness, the MTF of {material} was not measured again: {reason}"
        for material, reason in refusals.items()
        if material in sharpness
    ]
    return figures_of(after, phantom, again), remarks


# What the maps read.


def figures_of(volume: Volume, phantom: Phantom, sharpness: Mapping[str, Sharpness]) -> Figures:
    """Measure all but the sharpness."""
    vials = vial_statistics(volume, phantom.vials, kept_radius=phantom.kept_radius_share)
    agents = agents_of(vials, solvent=phantom.solvent)
    regressions, agreements = {}, {}
    for material in agents:
        true, measured = true_and_measured_mg_ml(vials, material, solvent=phantom.solvent)
        with suppress(WrongUsage):  # too few vials for a line; the table of vials still shows them
            regressions[material] = regression(vials, material, solvent=phantom.solvent)
        if true.size:
            agreements[material] = agreement(true, measured)
    blank = blank_voxels(volume, phantom)
    thresholds = thresholds_mg_ml(phantom, vials, agents)
    table, rocs, identified = _identification(volume, phantom, agents, thresholds)
    return Figures(
        vials=vials,
        identified_share=identified,
        regressions=regressions,
        agreements=agreements,
        cross_talk_mg_ml=cross_talk_mg_ml(vials, solvent=phantom.solvent),
        total_cross_talk_mg_ml=total_cross_talk_mg_ml(vials, solvent=phantom.solvent),
        mixing=_mixing(vials, agents, phantom.solvent),
        blank_mean_mg_ml={m: float(v.mean()) for m, v in blank.items()},
        blank_sd_mg_ml={m: float(v.std(ddof=1)) for m, v in blank.items()},
        limits={
            m: detection_limits(regressions[m].slope, float(blank[m].std(ddof=1))) for m in regressions if m in blank
        },
        thresholds_mg_ml=thresholds,
        confusion=table,
        rocs=rocs,
        sharpness=sharpness,
        noise=_noise(volume, phantom),
    )


def blank_voxels(volume: Volume, phantom: Phantom) -> dict[str, NDArray[np.float64]]:
    """Return what the voxels without any agent read, of each material in mg/mL; empty where nothing is blank."""
    kept = phantom.kept_radius_share
    if phantom.blank is not None:
        disc = phantom.blank
        region = Vial(material="blank", x_mm=disc.x_mm, y_mm=disc.y_mm, radius_mm=disc.radius_mm)
        masks = [cylinder_mask(volume.grid, region, kept_radius=1.0)]
    else:
        blanks = [vial for vial in phantom.vials if vial.materials == (phantom.solvent,)]
        masks = [cylinder_mask(volume.grid, vial, kept_radius=kept) for vial in blanks]
    if not masks:
        return {}
    mask = np.logical_or.reduce(masks)
    return {m: volume.channel(m)[mask].astype(np.float64) * MG_ML_PER_G_CM3 for m in volume.channels}


def thresholds_mg_ml(phantom: Phantom, vials: Sequence[VialStatistics], agents: Sequence[str]) -> dict[str, float]:
    """Return from where on a voxel shows each agent: as stated, or half of the weakest vial."""
    found = {}
    for agent in agents:
        stated = [s.vial.true_mg_ml(agent) for s in vials if agent in s.vial.materials]
        known = [c for c in stated if c]
        read = [s.mean_mg_ml(agent) for s in vials if agent in s.vial.materials]
        weakest = min(known) if known else max(min(read), np.finfo(float).tiny)
        found[agent] = phantom.threshold_mg_ml.get(agent, THRESHOLD_SHARE * weakest)
    return found


def _identification(
    volume: Volume,
    phantom: Phantom,
    agents: Sequence[str],
    thresholds: Mapping[str, float],
) -> tuple[Confusion, dict[str, Roc], tuple[float, ...]]:
    """Label the voxels of all vials by the material that they show, and sweep each agent's threshold."""
    maps = [volume.channels.index(agent) for agent in agents]
    limits = [thresholds[agent] / MG_ML_PER_G_CM3 for agent in agents]
    held, shown, reads, identified = [], [], [], []
    for vial in phantom.vials:
        inside = volume.values[:, cylinder_mask(volume.grid, vial, kept_radius=phantom.kept_radius_share)][maps]
        label = _label(vial, agents, phantom.solvent)
        labels = shown_material(inside, limits)
        held.append(np.full(inside.shape[1], label))
        shown.append(labels)
        reads.append(inside)
        identified.append(float((labels == label).mean()) if label >= 0 else float("nan"))
    rocs = {}
    for k, agent in enumerate(agents):
        has = [agent in vial.materials for vial in phantom.vials]
        if any(has) and not all(has):
            with_it = np.concatenate([r[k] for r, h in zip(reads, has, strict=True) if h])
            without = np.concatenate([r[k] for r, h in zip(reads, has, strict=True) if not h])
            rocs[agent] = roc(with_it * MG_ML_PER_G_CM3, without * MG_ML_PER_G_CM3)
    names = (*agents, "none of them")
    return confusion(np.concatenate(held), np.concatenate(shown), names), rocs, tuple(identified)


def _label(vial: Vial, agents: Sequence[str], solvent: str) -> int:
    if vial.materials == (solvent,):
        return len(agents)
    dissolved = [name for name in vial.materials if name != solvent]
    return agents.index(dissolved[0]) if len(dissolved) == 1 else -1


def _mixing(vials: Sequence[VialStatistics], agents: Sequence[str], solvent: str) -> NDArray[np.float64]:
    true, measured = [], []
    for s in vials:
        stated = [stated_mg_ml(s.vial, agent, solvent=solvent) for agent in agents]
        if None not in stated:
            true.append(stated)
            measured.append([s.mean_mg_ml(agent) for agent in agents])
    shape = (len(true), len(agents))
    return mixing(np.reshape(np.array(true, dtype=np.float64), shape), np.reshape(measured, shape))


def uniform_square(phantom: Phantom) -> Square | None:
    """Return where the noise power is measured: as stated, or the largest square inside the blank."""
    if phantom.uniform is not None:
        return phantom.uniform
    discs = [phantom.blank] if phantom.blank is not None else []
    discs = discs or [vial for vial in phantom.vials if vial.materials == (phantom.solvent,)]
    if not discs:
        return None
    widest = max(discs, key=lambda disc: disc.radius_mm)
    share = 1.0 if phantom.blank is not None else phantom.kept_radius_share
    return Square(x_mm=widest.x_mm, y_mm=widest.y_mm, side_mm=float(np.sqrt(2)) * share * widest.radius_mm)


def _noise(volume: Volume, phantom: Phantom) -> NoisePower | None:
    square = uniform_square(phantom)
    if square is None:
        return None
    _, y, x = volume.grid.axes_mm()
    rows = np.nonzero(np.abs(y - square.y_mm) <= square.side_mm / 2)[0]
    cols = np.nonzero(np.abs(x - square.x_mm) <= square.side_mm / 2)[0]
    side = min(len(rows), len(cols))
    if side < LEAST_SIDE_VOXELS:
        return None
    region = volume.values[:, :, rows[0] : rows[0] + side, cols[0] : cols[0] + side] * MG_ML_PER_G_CM3
    n_side = max(side // MOST_SIDE_VOXELS, 1)
    return noise_power(squares_of(region, side // n_side), volume.grid.voxel_mm)


def _efficiencies(volume: Volume, predicted_sd: Volume, phantom: Phantom) -> dict[str, Efficiency]:
    """Compare the spread inside each vial, about its own mean, with what was predicted there."""
    if predicted_sd.grid != volume.grid:
        raise WrongUsage("the predicted spread is on another grid than the volume; allowed: the volume's own")
    found = {}
    masks = [cylinder_mask(volume.grid, vial, kept_radius=phantom.kept_radius_share) for vial in phantom.vials]
    for material in predicted_sd.channels:
        if material in volume.channels:
            map_, bound = volume.channel(material), predicted_sd.channel(material)
            errors = np.concatenate([map_[mask] - map_[mask].mean(dtype=np.float64) for mask in masks])
            bounds = np.concatenate([bound[mask] for mask in masks])
            if not (bounds > 0).all():
                raise WrongUsage(
                    f"the predicted spread of {material} is {bounds.min():.3g} g/cm3 in some voxel of a vial; allowed: "
                    "above 0",
                    hint="give the volume of standard errors that mpxct decompose writes beside the materials",
                )
            found[material] = efficiency(errors, bounds)
    return found
