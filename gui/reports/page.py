"""One HTML page that needs nothing else: no other file, no network, no script; and the plots that stand in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gui.picture import INK, SMALL_PT, SOFT_INK, robust_levels

STYLE = """
:root { color-scheme: light }
body { margin: 0; background: #f4f4f2; color: #1a1a1a; font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 24px }
header, section { background: #fff; border: 1px solid #e3e3e0; border-radius: 8px;
  padding: 20px 24px; margin: 0 0 18px }
h1 { margin: 0; font-size: 28px } h2 { margin: 0 0 12px; font-size: 20px } h3 { margin: 18px 0 6px; font-size: 16px }
.soft { color: #5a5a5a } .none { color: #5a5a5a; font-style: italic } .bad { color: #b03a00; font-weight: 600 }
figure { margin: 12px 0 } img { max-width: 100%; height: auto; display: block }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0 }
.card { background: #f4f4f2; border-radius: 6px; padding: 8px 16px }
.card b { display: block; font-size: 22px; font-weight: 600 } .card span { font-size: 13px; color: #5a5a5a }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0 }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid #e8e8e5; vertical-align: top }
td.n, th.n { text-align: right } td.n { white-space: nowrap } th { font-weight: 600; color: #5a5a5a; font-size: 14px }
td.own { background: #fff3d6 }
pre { background: #f4f4f2; border-radius: 6px; padding: 12px; overflow-x: auto; font-size: 13px; line-height: 1.4 }
h2, h3, .soft { break-after: avoid } figure, tr { break-inside: avoid }
@media print { body { background: #fff } header, section { border: none; break-inside: avoid; padding: 0 }
  table, th { font-size: 11px } th, td { padding-right: 8px } pre { white-space: pre-wrap; font-size: 10px } }
"""

SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f", "#1a1a1a")
"""Colours of curves, told apart by colour-blind eyes."""


def page(title: str, head: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole page: what stands on top, and sections of a heading and HTML each."""
    body = "\n".join(f"<section><h2>{escape(name)}</h2>\n{text}\n</section>" for name, text in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{head}\n{body}\n</main>\n</body>\n</html>\n"
    )


def cards(figures: Mapping[str, str]) -> str:
    """Show a few results large, each with its name."""
    each = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in figures.items()
    )
    return f'<div class="cards">{each}</div>'


def note(text: str) -> str:
    """Say in a line that there is nothing to show."""
    return f'<p class="none">{escape(text)}</p>'


def moment(created: str) -> str:
    """Return the date and time of a file as people write it: 2026-05-01 09:30:00 UTC."""
    return created.replace("T", " ").replace("+00:00", " UTC")


def soft(text: str) -> str:
    """Say in a line what a plot or a table shows."""
    return f'<p class="soft">{escape(text)}</p>'


def figure_of(value: float, form: str) -> str:
    """Write a figure, or a dash for one that is not known."""
    return f"{value:{form}}" if np.isfinite(value) else "-"


def table(head: Sequence[str], rows: Iterable[Iterable[str]], *, n_text: int = 1) -> str:
    """Make a table whose first `n_text` columns are text, the others numbers."""

    def row(tag: str, cells: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{'' if n < n_text else ' class=n'}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table><tr>{row("th", head)}</tr>{body}</table></div>'


def picture(content: bytes, alt: str, kind: str = "image/png") -> str:
    """Put an image into the page itself."""
    data = base64.b64encode(content).decode()
    return f'<figure><img alt="{escape(alt)}" src="data:{kind};base64,{data}"></figure>'


def svg(figure: Figure, alt: str) -> str:
    """Put a plot into the page, sharp at any size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return picture(buffer.getvalue(), alt, "image/svg+xml")


def plots(n: int, *, n_cols: int = 4, height_in: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Make n plots in rows as wide as the page, or smaller ones where they are few."""
    n_cols = min(n, n_cols)
    n_rows = -(-n // n_cols)
    width_in = min(max(2.9, 1.5 * height_in) * n_cols, 11.6)
    figure = Figure(figsize=(max(width_in, 4.2), height_in * n_rows), facecolor="white", layout="constrained")
    return figure, [figure.add_subplot(n_rows, n_cols, i + 1) for i in range(n)]


def histogram(axes: Axes, values: ArrayLike, *, colour: str = SERIES[0], name: str = "") -> None:
    """Draw how often each value is, from the 0.1st to the 99.9th percentile; what is not finite is left out."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    counts, ends = np.histogram(numbers[np.isfinite(numbers)], np.linspace(*robust_levels(numbers, 0.1, 99.9), 61))
    axes.stairs(counts, ends, color=colour, linewidth=1.2, label=name)


def legend(axes: Axes, place: Literal["best", "upper left", "beside"] = "best") -> None:
    """Tell what the curves of a plot are, in it or beside it."""
    if not axes.get_legend_handles_labels()[0]:
        return
    if place == "beside":
        axes.legend(fontsize=SMALL_PT, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    else:
        axes.legend(fontsize=SMALL_PT, frameon=False, loc=place)


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Name a plot and its axes, and take away what is not data."""
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=SMALL_PT + 1, color=SOFT_INK)
    axes.set_ylabel(y, fontsize=SMALL_PT + 1, color=SOFT_INK)
    axes.tick_params(labelsize=SMALL_PT, colors=SOFT_INK, width=0.6, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
