"""Mouse and keys that move the camera of a view of a volume, whatever draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pyqtgraph.Qt import QtCore, QtGui, QtWidgets

from gui.volume.camera import STANDARD_VIEWS, Camera
from gui.volume.overlay import face_at

REST_MS = 180
"""A movement is over so long after its last step."""
TURN_RAD_PER_PIXEL = 0.0087
ZOOM_PER_STEP = 1.2
STEP_UNITS = 120
"""What Qt calls one step of a wheel."""
HELP = (
    "Drag: turn. Drag with the middle or right button, or with Shift: move. Wheel: zoom. Double click: show all.\n"
    "Click at the cube: look at that side. Keys: arrows turn, + and - zoom, 1 to 6 show the six sides, 0 the corner."
)
_Key = QtCore.Qt.Key
_TURNS = {
    _Key.Key_Left: (-0.1, 0.0), _Key.Key_Right: (0.1, 0.0), _Key.Key_Up: (0.0, 0.1), _Key.Key_Down: (0.0, -0.1),
}  # fmt: skip
_SIDES = dict(zip("1234560", STANDARD_VIEWS.values(), strict=True))


_FACES = {"−y": "Front", "+y": "Back", "+x": "Right", "−x": "Left", "+z": "Top", "−z": "Bottom"}


class Hand(QtCore.QObject):
    """Turns what the mouse does on a widget into another camera.

    Attributes
    ----------
    camera : Camera
    home : Camera
        What a double click goes back to.
    is_moving : bool
        Whether the picture shall be quick rather than fine.
    """

    def __init__(self, widget: QtWidgets.QWidget, camera: Camera, changed: Callable[[], object]) -> None:
        super().__init__(widget)
        self.camera = self.home = camera
        self.is_moving = False
        self._widget, self._changed = widget, changed
        self._last: QtCore.QPointF | None = None
        self._rest = QtCore.QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._stop)
        widget.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)
        widget.setToolTip(HELP)
        widget.installEventFilter(self)

    def move(self, camera: Camera) -> None:
        """Look from somewhere else, and say that something moves."""
        self.camera = camera
        self.stir()

    def stir(self) -> None:
        """Draw quickly for a moment: something is changing, and will change again."""
        self.is_moving = True
        self._rest.start()
        self._changed()

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:  # noqa: ARG002
        """Take the events that move the camera; leave all others to the widget."""
        kind = event.type()
        if isinstance(event, QtGui.QMouseEvent):
            if kind == QtCore.QEvent.Type.MouseButtonPress:
                self._widget.setFocus()
                place, size = event.position(), self._widget.size()
                if face := face_at(place.x(), place.y(), size.width(), size.height(), self.camera):
                    self.look_along(face)
                    return True
                self._last = place
            elif kind == QtCore.QEvent.Type.MouseMove and self._last is not None:
                self._drag(event)
            elif kind == QtCore.QEvent.Type.MouseButtonRelease:
                self._last = None
            elif kind == QtCore.QEvent.Type.MouseButtonDblClick:
                self.move(self.home)
            return kind != QtCore.QEvent.Type.MouseMove or self._last is not None
        if isinstance(event, QtGui.QWheelEvent):
            self._zoom(ZOOM_PER_STEP ** (event.angleDelta().y() / STEP_UNITS))
            return True
        if kind == QtCore.QEvent.Type.KeyPress and isinstance(event, QtGui.QKeyEvent):
            return self._press(event)
        return False

    def _drag(self, event: QtGui.QMouseEvent) -> None:
        assert self._last is not None
        step = event.position() - self._last
        self._last = event.position()
        is_plain = event.buttons() == QtCore.Qt.MouseButton.LeftButton
        if is_plain and not event.modifiers() & QtCore.Qt.KeyboardModifier.ShiftModifier:
            self.move(self.camera.turned(-TURN_RAD_PER_PIXEL * step.x(), TURN_RAD_PER_PIXEL * step.y()))
        else:
            mm = self.camera.mm_per_pixel(self._widget.width(), self._widget.height())
            self.move(self.camera.panned(-mm * step.x(), mm * step.y()))

    def _press(self, event: QtGui.QKeyEvent) -> bool:
        key, text = event.key(), event.text()
        if key in _TURNS:
            self.move(self.camera.turned(*_TURNS[_Key(key)]))
        elif text in _SIDES:
            azimuth_rad, elevation_rad = _SIDES[text]
            self.move(replace(self.camera, azimuth_rad=azimuth_rad, elevation_rad=elevation_rad))
        elif text in "+-" and text:
            self._zoom(ZOOM_PER_STEP if text == "+" else 1 / ZOOM_PER_STEP)
        else:
            return False
        return True

    def _zoom(self, factor: float) -> None:
        self.move(self.camera.zoomed(factor, self.home.distance_mm))

    def look_along(self, direction: str) -> None:
        """Look at the side that points along "+x", "−z" and so on."""
        azimuth_rad, elevation_rad = STANDARD_VIEWS[_FACES[direction]]
        self.move(replace(self.camera, azimuth_rad=azimuth_rad, elevation_rad=elevation_rad))

    def _stop(self) -> None:
        self.is_moving = False
        self._changed()
