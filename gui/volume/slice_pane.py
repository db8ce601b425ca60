"""One cut on the screen: picture, crosshair, scale bar, directions, legend, and what is drawn into it.

Left: the crosshair, the tool that is chosen, or a drawing that is taken hold of at its line or its handles.
Wheel: slices. Ctrl and wheel: zoom. Middle: move. Right: zoom.
All over the picture is painted in one place, so that a screenshot shows it sharp at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pyqtgraph as pg
from numpy.typing import NDArray
from pyqtgraph.GraphicsScene.mouseEvents import MouseClickEvent, MouseDragEvent
from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui import theme
from gui.scale import bar_mm, length_text
from gui.volume.annotations import Annotation, Tool
from gui.volume.marks import Outline, Overlay
from gui.volume.painting import Painted
from gui.volume.reshaping import ALL

FAST = 10
"""Slices of a page key."""
HANDLE_SHARE = 0.38
"""How far from the middle of a pane the handles of a slanted cut stand, of its shorter side."""
HANDLE_PX = 12
MARGIN_PX = 10
SMALL, STRIP_PX = 0.85, 30.0
"""Of the legend: its letters in shares of the others, and its strips of colour."""
GRIP_PX = 8
"""Size of the handles of a drawing, and so near to them one takes hold."""


class _Box(pg.ViewBox):
    """Hands what the mouse does to its pane."""

    def __init__(self, pane: SlicePane) -> None:
        super().__init__(lockAspect=True, enableMenu=False)
        self._pane = pane

    def wheelEvent(self, ev: QtWidgets.QGraphicsSceneWheelEvent, axis: int | None = None) -> None:
        if ev.modifiers() & QtCore.Qt.KeyboardModifier.ControlModifier:
            super().wheelEvent(ev, axis)
            return
        self._pane.turn_wheel(ev.delta())
        ev.accept()

    def mouseDragEvent(self, ev: MouseDragEvent, axis: int | None = None) -> None:
        if ev.button() == QtCore.Qt.MouseButton.LeftButton:
            ev.accept()
            start, at = self.mapToView(ev.buttonDownPos()), self.mapToView(ev.pos())
            self._pane.drag((start.x(), start.y()), (at.x(), at.y()), is_start=ev.isStart(), is_finish=ev.isFinish())
            return
        super().mouseDragEvent(ev, axis)

    def mouseClickEvent(self, ev: MouseClickEvent) -> None:
        at = self.mapToView(ev.pos())
        if ev.button() == QtCore.Qt.MouseButton.LeftButton:
            ev.accept()
            if ev.double() and self._pane.tool is None:
                self._pane.enlarged.emit()
            else:
                self._pane.click((at.x(), at.y()))
        elif ev.button() == QtCore.Qt.MouseButton.RightButton:
            ev.accept()
            self._pane.drop_drawing()


@dataclass(slots=True)
class _Drawing:
    points_mm: list[tuple[float, float]] = field(default_factory=list)


class SlicePane(pg.GraphicsView):
    """Shows a cut; positions in its signals are mm in the picture, (right, up).

    Attributes
    ----------
    pointed, hovered : Signal(float, float)
    left : Signal()
        The mouse has left.
    stepped : Signal(int)
        So many slices on.
    moved : Signal()
        Somebody has moved or zoomed it.
    turned : Signal(float)
        A handle was turned by so many radians, counter-clockwise.
    drawn : Signal(list)
        Points of a finished drawing.
    reshaped : Signal(str, int, object, object, bool)
        A drawing was dragged: its name, by which handle (`reshaping.ALL`: as a whole), from where, to where, and
        whether the button was let go.
    chosen : Signal(str)
        A drawing was clicked at.
    enlarged : Signal()
        A double click: somebody wants it large, or small again.
    """

    pointed = QtCore.Signal(float, float)
    hovered = QtCore.Signal(float, float)
    left = QtCore.Signal()
    stepped = QtCore.Signal(int)
    moved = QtCore.Signal()
    turned = QtCore.Signal(float)
    drawn = QtCore.Signal(list)
    reshaped = QtCore.Signal(str, int, object, object, bool)
    chosen = QtCore.Signal(str)
    enlarged = QtCore.Signal()

    def __init__(self, name: str, tip: str) -> None:
        super().__init__(background="#000000")
        self.name = name
        self.setObjectName(f"{name} cut")
        self.setAccessibleName(f"{name} cut")
        self.setToolTip(tip)
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(120, 100)
        self.overlay = Overlay()
        self.painted: Painted | None = None
        self.tool: Tool | None = None
        self._drawing: _Drawing | None = None
        self._turning_rad: float | None = None
        self._held: tuple[str, int, tuple[float, float]] | None = None
        self._wheel = 0
        self.view = _Box(self)
        self.setCentralItem(self.view)
        self.item = pg.ImageItem(axisOrder="row-major")
        self.view.addItem(self.item)
        self.view.sigRangeChangedManually.connect(lambda *_: self.moved.emit())
        scene = self.sceneObj
        assert scene is not None
        scene.sigMouseMoved.connect(self._hover)

    def show_picture(self, painted: Painted) -> None:
        """Show what was painted."""
        self.painted = painted
        self.item.setImage(painted.picture, autoLevels=False, levels=(0, 255))
        h, w = painted.picture.shape[:2]
        self.item.setRect(QtCore.QRectF(painted.left_mm, painted.bottom_mm, w * painted.step_mm, h * painted.step_mm))

    def clear_picture(self) -> None:
        """Show nothing."""
        self.painted = None
        self.item.clear()
        self.show_overlay(Overlay())

    def show_overlay(self, overlay: Overlay) -> None:
        """Put this over the picture."""
        self.overlay = overlay
        self.viewport().update()

    def choose_tool(self, tool: Tool | None) -> None:
        """Draw with this from now on; None: move the crosshair."""
        self.tool = tool
        self.drop_drawing()
        shape = QtCore.Qt.CursorShape
        self.viewport().setCursor(shape.CrossCursor if tool is not None else shape.ArrowCursor)

    def drop_drawing(self) -> None:
        """Forget what was begun."""
        self._drawing = None
        self.viewport().update()

    def mm_per_px(self) -> float:
        """Return how large a pixel of the screen is in the picture."""
        width_mm, _ = self.view.viewPixelSize()
        return float(width_mm)

    def centre_mm(self) -> tuple[float, float]:
        """Return what stands in the middle."""
        middle = self.view.viewRect().center()
        return middle.x(), middle.y()

    def look_at(self, centre_mm: tuple[float, float], mm_per_px: float) -> None:
        """Show this point in the middle, this large."""
        width, height = max(self.view.width(), 1) * mm_per_px, max(self.view.height(), 1) * mm_per_px
        rect = QtCore.QRectF(centre_mm[0] - width / 2, centre_mm[1] - height / 2, width, height)
        self.view.setRange(rect, padding=0, disableAutoRange=True)

    # What the mouse and the keys do.

    def turn_wheel(self, delta: int) -> None:
        """Take one slice per notch of the wheel; touchpads send parts of one."""
        self._wheel += delta
        n_steps = int(self._wheel / 120)
        self._wheel -= 120 * n_steps
        if n_steps:
            self.stepped.emit(n_steps)

    def drag(self, start: tuple[float, float], at: tuple[float, float], *, is_start: bool, is_finish: bool) -> None:
        """Turn a handle, draw, or take the crosshair along."""
        if self.painted is None:
            return
        if is_start:
            grip = self._grip_at(start) if self.tool is None else None
            self._held = None if grip is None else (*grip, start)
            is_turning = self.tool is None and grip is None and self._is_handle(start)
            self._turning_rad = self._angle_of(start) if is_turning else None
            if self.tool is not None and self.tool is not Tool.ANGLE:
                self._drawing = _Drawing([start])
        if self._held is not None:
            name, handle, begun = self._held
            self.reshaped.emit(name, handle, begun, at, is_finish)
        elif self._turning_rad is not None:
            angle_rad = self._angle_of(at)
            self.turned.emit(math.remainder(angle_rad - self._turning_rad, 2 * math.pi))
            self._turning_rad = angle_rad
        elif self.tool is None:
            self.pointed.emit(*at)
        elif self._drawing is not None and self.tool is not Tool.ANGLE:
            self._draw(at)
            if is_finish:
                self._finish()
        if is_finish:
            self._turning_rad = self._held = None

    def click(self, at: tuple[float, float]) -> None:
        """Take the crosshair there, or put one more point of an angle."""
        if self.painted is None:
            return
        if self.tool is None:
            if (grip := self._grip_at(at)) is not None:
                self.chosen.emit(grip[0])
            self.pointed.emit(*at)
        elif self.tool is Tool.ANGLE:
            self._drawing = self._drawing or _Drawing()
            self._drawing.points_mm.append(at)
            if len(self._drawing.points_mm) == Tool.ANGLE.n_points:
                self._finish()
            self.viewport().update()

    def paintEvent(self, ev: QtGui.QPaintEvent) -> None:
        """Show which pane the keys go to."""
        super().paintEvent(ev)
        theme.ring(self, self.viewport())

    def focusInEvent(self, event: QtGui.QFocusEvent) -> None:
        """Show it."""
        super().focusInEvent(event)
        self.viewport().update()

    def focusOutEvent(self, event: QtGui.QFocusEvent) -> None:
        """Show that they go elsewhere."""
        super().focusOutEvent(event)
        self.viewport().update()

    def keyPressEvent(self, ev: QtGui.QKeyEvent) -> None:
        """Step through the slices; what is no key of the pane is the page's."""
        key = QtCore.Qt.Key
        steps = {
            key.Key_Up: 1, key.Key_Right: 1, key.Key_Down: -1, key.Key_Left: -1,
            key.Key_PageUp: FAST, key.Key_PageDown: -FAST,
        }  # fmt: skip
        if ev.key() in steps:
            self.stepped.emit(steps[key(ev.key())])
            ev.accept()
        elif ev.key() == key.Key_Escape and self._drawing is not None:
            self.drop_drawing()
            ev.accept()
        else:
            ev.ignore()

    def leaveEvent(self, ev: QtCore.QEvent) -> None:
        """Tell that the mouse is elsewhere."""
        super().leaveEvent(ev)
        self.left.emit()

    def _hover(self, at: QtCore.QPointF) -> None:
        if self.painted is not None and self.view.sceneBoundingRect().contains(at):
            where = self.view.mapSceneToView(at)
            self.hovered.emit(where.x(), where.y())
            if self.tool is None:
                self._show_grip((where.x(), where.y()))

    def _grip_at(self, at: tuple[float, float]) -> tuple[str, int] | None:
        """Return the drawing at a place and its handle there: of the chosen one, or any whose line is there."""
        near_mm = GRIP_PX * self.mm_per_px()
        outlines = sorted(self.overlay.outlines, key=lambda outline: not outline.is_chosen)
        for outline in outlines:
            if (handle := outline.nearest_handle(at, near_mm)) is not None:
                return outline.name, handle
        for outline in outlines:
            if outline.is_on_line(at, near_mm / 2) or (outline.is_chosen and outline.holds(at)):
                return outline.name, ALL
        return None

    def _show_grip(self, at: tuple[float, float]) -> None:
        """Tell by the mouse's shape what a press would take hold of."""
        shape, grip = QtCore.Qt.CursorShape, self._grip_at(at)
        wanted = shape.ArrowCursor if grip is None else shape.SizeAllCursor if grip[1] == ALL else shape.CrossCursor
        if self.viewport().cursor().shape() != wanted:
            self.viewport().setCursor(wanted)

    def _draw(self, at: tuple[float, float]) -> None:
        assert self._drawing is not None
        assert self.tool is not None
        if self.tool.n_points == 2:
            self._drawing.points_mm[1:] = [at]
        elif math.dist(self._drawing.points_mm[-1], at) >= 2 * self.mm_per_px():
            self._drawing.points_mm.append(at)
        self.viewport().update()

    def _finish(self) -> None:
        assert self._drawing is not None
        assert self.tool is not None
        points = self._drawing.points_mm
        self.drop_drawing()
        long_enough = max(math.dist(points[0], point) for point in points) > 2 * self.mm_per_px()
        if long_enough and len(points) >= (self.tool.n_points or 3):
            self.drawn.emit(points)

    def _handles_mm(self) -> list[tuple[float, float]]:
        if self.overlay.slant_mm is None:
            return []
        (x, y), (across, up) = self.overlay.slant_mm
        reach = HANDLE_SHARE * min(self.view.width(), self.view.height()) * self.mm_per_px()
        return [(x + side * reach * across, y + side * reach * up) for side in (-1, 1)]

    def _is_handle(self, at: tuple[float, float]) -> bool:
        return any(math.dist(at, handle) < HANDLE_PX * self.mm_per_px() for handle in self._handles_mm())

    def _angle_of(self, at: tuple[float, float]) -> float:
        assert self.overlay.slant_mm is not None or not self._handles_mm()
        x, y = self.overlay.slant_mm[0] if self.overlay.slant_mm is not None else (0.0, 0.0)
        return math.atan2(at[1] - y, at[0] - x)

    # What stands over the picture.

    def drawForeground(self, painter: QtGui.QPainter, rect: QtCore.QRectF | QtCore.QRect) -> None:
        """Paint all that stands over the picture, on the screen and in a screenshot."""
        super().drawForeground(painter, rect)
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        if self.painted is None:
            self._draw_note(painter)
            return
        painter.save()
        self._draw_cross(painter)
        self._draw_slant(painter)
        for outline in self.overlay.outlines:
            self._draw_outline(painter, outline)
        if self._drawing is not None and len(self._drawing.points_mm) > 1:
            self._draw_outline(painter, Outline(points_mm=self._pending_mm(), text="", is_chosen=True))
        self._draw_directions(painter, self._draw_legend(painter))
        self._draw_scale(painter)
        draw_text(painter, QtCore.QPointF(MARGIN_PX, MARGIN_PX), self.overlay.title, self.overlay.colour, "lt")
        painter.restore()

    def _pending_mm(self) -> NDArray[np.float64]:
        """Return the outline of what is being drawn."""
        assert self._drawing is not None
        assert self.tool is not None
        points = tuple((x, y, 0.0) for x, y in self._drawing.points_mm)
        if len(points) < (self.tool.n_points or 3):
            return np.array(self._drawing.points_mm)
        flat = Annotation(tool=self.tool, name="", points_mm=points, right=(1.0, 0.0, 0.0), up=(0.0, 1.0, 0.0))
        return flat.outline_mm()

    def _size(self) -> tuple[float, float]:
        return float(self.view.width()), float(self.view.height())

    def _px(self, at: tuple[float, float]) -> QtCore.QPointF:
        return self.view.mapViewToScene(QtCore.QPointF(*at))

    def _draw_note(self, painter: QtGui.QPainter) -> None:
        width, height = self._size()
        lines, step = self.overlay.note.splitlines(), 1.3 * painter.fontMetrics().height()
        for n, line in enumerate(lines):
            at = QtCore.QPointF(width / 2, height / 2 + (n - (len(lines) - 1) / 2) * step)
            draw_text(painter, at, line, "#c8ced4", "cm")

    def _draw_cross(self, painter: QtGui.QPainter) -> None:
        if self.overlay.cross_mm is None:
            return
        width, height = self._size()
        at, gap = self._px(self.overlay.cross_mm), 9.0
        painter.setPen(QtGui.QPen(QtGui.QColor(255, 255, 255, 150), 1.0))
        for a, b in (((0, at.y()), (at.x() - gap, at.y())), ((at.x() + gap, at.y()), (width, at.y())),
                     ((at.x(), 0), (at.x(), at.y() - gap)), ((at.x(), at.y() + gap), (at.x(), height))):  # fmt: skip
            painter.drawLine(QtCore.QPointF(*a), QtCore.QPointF(*b))

    def _draw_slant(self, painter: QtGui.QPainter) -> None:
        if self.overlay.slant_mm is None:
            return
        (x, y), (across, up) = self.overlay.slant_mm
        width, height = self._size()
        far = (width + height) * self.mm_per_px()
        pen = QtGui.QPen(QtGui.QColor("#e69f00"), 1.4, QtCore.Qt.PenStyle.DashLine)
        painter.setPen(pen)
        painter.drawLine(self._px((x - far * across, y - far * up)), self._px((x + far * across, y + far * up)))
        painter.setPen(QtGui.QPen(QtGui.QColor("#000000"), 1.0))
        painter.setBrush(QtGui.QColor("#e69f00"))
        for handle in self._handles_mm():
            painter.drawEllipse(self._px(handle), HANDLE_PX / 2, HANDLE_PX / 2)
        painter.setBrush(QtCore.Qt.BrushStyle.NoBrush)

    def _draw_outline(self, painter: QtGui.QPainter, outline: Outline) -> None:
        points = [self._px((float(x), float(y))) for x, y in outline.points_mm]
        colour = "#ffffff" if outline.is_chosen else "#56b4e9"
        for width, pen in ((3.4, "#000000"), (1.6, colour)):
            painter.setPen(QtGui.QPen(QtGui.QColor(pen), width))
            painter.drawPolyline(QtGui.QPolygonF(points))
        painter.setPen(QtGui.QPen(QtGui.QColor("#000000"), 1.0))
        painter.setBrush(QtGui.QColor("#ffffff"))
        for x, y in outline.handles_mm if outline.handles_mm is not None else ():
            at = self._px((float(x), float(y)))
            painter.drawRect(QtCore.QRectF(at.x() - GRIP_PX / 2, at.y() - GRIP_PX / 2, GRIP_PX, GRIP_PX))
        painter.setBrush(QtCore.Qt.BrushStyle.NoBrush)
        rightmost = max(points, key=lambda point: point.x())
        draw_text(painter, rightmost + QtCore.QPointF(5, 0), outline.text, colour, "lm")

    def _draw_directions(self, painter: QtGui.QPainter, legend_left: float) -> None:
        width, height = self._size()
        left, right, below, above = self.overlay.directions
        edge, below_title = MARGIN_PX, MARGIN_PX + 1.4 * painter.fontMetrics().height()
        for text, x, y, anchor in (
            (left, edge, height / 2, "lm"), (right, width - edge, height / 2, "rm"),
            (below, min(width / 2, legend_left - 2 * edge), height - edge, "cb"), (above, width / 2, below_title, "ct"),
        ):  # fmt: skip
            draw_text(painter, QtCore.QPointF(x, y), text, "#b8c0c8", anchor)

    def _draw_scale(self, painter: QtGui.QPainter) -> None:
        width, height = self._size()
        length_mm = bar_mm(self.mm_per_px(), width)
        length_px = length_mm / self.mm_per_px()
        left, bottom = float(MARGIN_PX), height - MARGIN_PX
        bar = QtCore.QRectF(left, bottom - 5, length_px, 5)
        painter.setPen(QtGui.QPen(QtGui.QColor("#000000"), 1.0))
        painter.setBrush(QtGui.QColor("#ffffff"))
        painter.drawRect(bar)
        painter.setBrush(QtCore.Qt.BrushStyle.NoBrush)
        text = length_text(length_mm) if self.overlay.is_scale_known else f"{length_mm:g} voxels"
        draw_text(painter, QtCore.QPointF(left, bottom - 8), text, "#ffffff", "lb")

    def _draw_legend(self, painter: QtGui.QPainter) -> float:
        """Write into the lower right corner what the colours mean, a line for each, and return where it begins."""
        rows = self.overlay.legend
        if not rows:
            return self._size()[0]
        painter.save()
        font = QtGui.QFont(painter.font())
        font.setPointSizeF(SMALL * font.pointSizeF())
        painter.setFont(font)
        letters, (width, height) = painter.fontMetrics(), self._size()
        names = [letters.elidedText(row.name, QtCore.Qt.TextElideMode.ElideMiddle, int(width / 4)) for row in rows]
        texts = [f"{name}  {row.low} to {row.high}" for name, row in zip(names, rows, strict=True)]
        line, gap = 1.35 * letters.height(), 6.0
        wide = STRIP_PX + gap + max(letters.horizontalAdvance(text) for text in texts)
        box = QtCore.QRectF(width - MARGIN_PX - wide, height - MARGIN_PX - len(rows) * line, wide, len(rows) * line)
        painter.fillRect(box.adjusted(-gap, -gap / 2, gap, gap / 2), QtGui.QColor(0, 0, 0, 150))
        for n, (row, text) in enumerate(zip(rows, texts, strict=True)):
            middle = box.top() + (n + 0.5) * line
            strip = QtCore.QRectF(box.left(), middle - 4, STRIP_PX, 8)
            gradient = QtGui.QLinearGradient(strip.topLeft(), strip.topRight())
            for share, colour in zip(np.linspace(0, 1, len(row.colours)), row.colours, strict=True):
                gradient.setColorAt(float(share), QtGui.QColor(*colour))
            painter.setPen(QtGui.QPen(QtGui.QColor("#707880"), 1.0))
            painter.setBrush(gradient)
            painter.drawRect(strip)
            draw_text(painter, QtCore.QPointF(strip.right() + gap, middle), text, "#ffffff", "lm")
        painter.restore()
        return box.left()


def draw_text(painter: QtGui.QPainter, at: QtCore.QPointF, text: str, colour: str, anchor: str) -> None:
    """Write with a dark edge, so that it can be read on any picture; anchor: l, c or r, then t, m or b."""
    if not text:
        return
    font = painter.font()
    metrics = QtGui.QFontMetricsF(font)
    x = at.x() - {"l": 0.0, "c": 0.5, "r": 1.0}[anchor[0]] * metrics.horizontalAdvance(text)
    y = at.y() + {"t": metrics.ascent(), "m": metrics.capHeight() / 2, "b": -metrics.descent()}[anchor[1]]
    path = QtGui.QPainterPath()
    path.addText(QtCore.QPointF(x, y), font, text)
    painter.strokePath(path, QtGui.QPen(QtGui.QColor(0, 0, 0, 200), 3.0))
    painter.fillPath(path, QtGui.QColor(colour))


def pixmap_of(widget: QtWidgets.QWidget, factor: float) -> QtGui.QImage:
    """Return a picture of a widget, so many times as large, with lines and text as sharp as that allows."""
    size = widget.size() * factor
    image = QtGui.QImage(size, QtGui.QImage.Format.Format_RGB32)
    image.fill(QtGui.QColor("#000000"))
    painter = QtGui.QPainter(image)
    painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
    painter.scale(factor, factor)
    if isinstance(widget, QtWidgets.QGraphicsView):
        widget.render(painter, QtCore.QRectF(widget.rect()), widget.rect())
    else:
        widget.render(painter, QtCore.QPoint(0, 0))
    painter.end()
    return image
