"""Options of the command line that correct a scan, the same for bins and for materials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ARTEFACTS = "Corrections"

ScatterKernels = Annotated[
    Path | None,
    typer.Option(help="TOML file of scatter kernels, one table [\\[bin]] per bin.", rich_help_panel=ARTEFACTS),
]
Rings = Annotated[str, typer.Option(help="Take out rings: none, auto, or a method.", rich_help_panel=ARTEFACTS)]
MetalPerMm = Annotated[
    float | None,
    typer.Option(
        help="What attenuates more than this, per mm, is metal; rays through it are replaced.",
        rich_help_panel=ARTEFACTS,
    ),
]
Truncation = Annotated[
    str,
    typer.Option(help="Extend views that the object leaves sideways: auto or none.", rich_help_panel=ARTEFACTS),
]
