"""The command ``mpxct denoise``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibration.progress import Console
from firmware_iface.errors import WrongUsage
from reconstruction.stated_options import refuse_overwriting

if TYPE_CHECKING:
    from reconstruction.spectral.denoise import Choice


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("denoise")(_denoise)


def _denoise(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="VOLUME", help="A volume file of bins or of materials.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The volume file to write.")] = Path("denoised.h5"),
    prior: Annotated[
        str,
        typer.Option(
            help="tv, huber or gibbs, channel by channel; vtv or tnv, whose channels share edges; dtv, along the edges "
            "of all channels' sum; rskr, means over voxels that look alike in all channels."
        ),
    ] = "tnv",
    strength: Annotated[
        str,
        typer.Option(
            help="In units of the noise, which is measured; auto, discrepancy (take away as much as the noise) or sure "
            "(least expected error of white noise)."
        ),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Take noise away from all channels of a volume together, so that edges of one are kept in all.

    Example: mpxct denoise volume.h5 --prior rskr -o denoised.h5
    """
    from reconstruction.decomposition import bin_covariance
    from reconstruction.spectral.denoise import PRIORS, denoise_volume
    from reconstruction.volume import load_volume, save_volume

    console: Console = ctx.obj
    if prior not in PRIORS:
        raise WrongUsage(f"--prior is {prior}; allowed: {', '.join(PRIORS)}")
    refuse_overwriting(source, output)
    began_s = time.monotonic()
    volume = load_volume(source)
    denoised = denoise_volume(volume, prior=prior, strength=_strength(strength))
    save_volume(denoised, output)
    seconds = time.monotonic() - began_s
    before, after = (bin_covariance(v.values).diagonal() ** 0.5 for v in (volume, denoised))
    rows = zip(volume.channels, before.tolist(), after.tolist(), strict=True)
    lines = [f"{name:<14} noise {old:.3g} -> {new:.3g} {volume.unit}" for name, old, new in rows]
    step = denoised.provenance.steps[-1]
    figures = {
        "file": str(output),
        "prior": prior,
        "step": step,
        "noise_before": dict(zip(volume.channels, before.tolist(), strict=True)),
        "noise_after": dict(zip(volume.channels, after.tolist(), strict=True)),
        "unit": volume.unit,
        "seconds": seconds,
    }
    console.emit(figures, "\n".join([f"{output}: {step}, {seconds:.1f} s", *lines]), as_json=as_json)


def _strength(text: str) -> float | Choice:
    """Read a number, or the name of a way to choose one."""
    from reconstruction.spectral.denoise import CHOICES

    for choice in CHOICES:
        if text == choice:
            return choice
    try:
        return float(text)
    except ValueError as error:
        raise WrongUsage(f"--strength is {text!r}; allowed: a number, {', '.join(CHOICES)}") from error
