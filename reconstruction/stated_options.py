"""What stands on the command line: options that would do nothing, and outputs that would destroy their input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import typer

from firmware_iface.errors import WrongUsage


def stated(ctx: typer.Context, names: Iterable[str]) -> list[str]:
    """Return those of a command's parameters that stand on the command line."""
    return [name for name in names if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]


def option_of(name: str) -> str:
    """Return a parameter as it is written."""
    return "--" + name.replace("_", "-")


def refuse_lonely(ctx: typer.Context, needs: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that do nothing without one of some others: by the names of parameters."""
    for name in stated(ctx, needs):
        if not any(ctx.params.get(other) for other in needs[name]):
            raise WrongUsage(
                f"{option_of(name)} does nothing by itself; allowed: with {' or '.join(map(option_of, needs[name]))}"
            )


def refuse_overwriting(source: Path, output: Path) -> None:
    """Refuse to write over what is read."""
    if output.exists() and source.exists() and output.samefile(source):
        raise WrongUsage(f"{output} is what is read, and would be lost; allowed: another file with -o")
