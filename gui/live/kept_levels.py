"""Which levels belong to what: every threshold, bin and flat has its own, and those of a sum grow with its frames."""

from __future__ import annotations

from collections.abc import Sequence

from gui.image_panel import ImagePanel, LevelMode
from gui.live.frames import Picture
from gui.live.shown import Shown, View

Levels = tuple[float, float]


class KeptLevels:
    """Keeps levels for one frame, and gives them to the panel for as many as are shown."""

    def __init__(self, panel: ImagePanel) -> None:
        self._panel = panel
        self._kept: dict[object, Levels] = {}
        self._seen: tuple[object, int] | None = None
        self._colours: tuple[Levels, ...] = ()

    def follow(self, shown: Shown, view: View) -> None:
        """Set the panel's levels for what it is about to show."""
        if shown.lost is not None or shown.is_colour:
            return
        is_flat = shown.unit.startswith("share")
        key = (view.selection, "flat" if is_flat else view.source, self._panel.is_log, shown.picture.counts.shape)
        n_frames = frames_in(shown)
        before, self._seen = self._seen, (key, n_frames)
        if before is None or before == self._seen:
            return
        before_key, n_before = before
        self._kept[before_key] = scaled(self._panel.levels, 1 / n_before)
        kept = self._kept.get(key)
        if kept is None:
            self._panel.forget_levels()
        else:
            self._panel.set_levels(*scaled(kept, n_frames))

    def colours(self, picture: Picture) -> tuple[Levels, ...]:
        """Return the levels of bins in colours; empty where they are to be set."""
        if self._panel.level_mode is LevelMode.AUTO or len(self._colours) != len(picture.counts):
            return ()
        return tuple(scaled(levels, picture.n_frames) for levels in self._colours)

    def keep_colours(self, picture: Picture, levels: Sequence[Levels]) -> None:
        """Keep the levels that bins have in colours."""
        self._colours = tuple(scaled(each, 1 / picture.n_frames) for each in levels)

    def forget_colours(self) -> None:
        """Let the next bins in colours set their levels."""
        self._colours = ()


def frames_in(shown: Shown) -> int:
    """Return how many frames' counts are added up in what is shown; a share of the open beam is that of one."""
    return 1 if shown.unit.startswith("share") else max(shown.picture.n_frames, 1)


def scaled(levels: Levels, factor: float) -> Levels:
    """Return levels times a factor."""
    return levels[0] * factor, levels[1] * factor
