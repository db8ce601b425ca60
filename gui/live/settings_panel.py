"""How the live view counts: frames, exposure, mode, gain and thresholds; every change goes to the chip at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
from pyqtgraph.Qt import QtCore, QtWidgets

from acquisition.plan import MODES, DetectorPlan, Plan
from firmware_iface.chip import Gain
from firmware_iface.errors import WrongUsage
from gui.controls import hint, labelled
from gui.live.run import ENDLESS, live_plan, thresholds_for

CHANGE_AFTER_MS = 400
"""How long nothing may be typed before the chip is set."""
OPEN_BEAM = "nothing (open beam)"


class SettingsPanel(QtWidgets.QWidget):
    """Asks for the settings of a live view.

    Parameters
    ----------
    changed : callable
        Called a moment after a setting was changed.
    """

    def __init__(self, plan: Plan, changed: Callable[[], object]) -> None:
        super().__init__()
        self._plan, self._detector = plan, plan.detector
        self._is_reading = False
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(lambda: changed())
        self.frames = QtWidgets.QSpinBox()
        self.frames.setRange(ENDLESS, 1_000_000)
        self.frames.setSpecialValueText("until stopped")
        self.frames.setSuffix(" frames")
        self.frames.setToolTip("How many frames to take; at the lowest value it goes on until you stop it.")
        self.exposure = _number(0.001, 3_600_000, " ms", "How long the chip counts for each frame.", 3)
        self.mode = QtWidgets.QComboBox()
        self.mode.addItems(list(MODES))
        self.mode.setToolTip(
            "colour: 0.11 mm pixels with many thresholds; fine: 0.055 mm pixels with one or two.\n"
            "csm: charge that neighbours share is summed; spm: every pixel counts for itself."
        )
        self.gain = QtWidgets.QComboBox()
        self.gain.addItems([gain.name for gain in Gain])
        self.gain.setToolTip("Gain of the pixels' amplifiers: SHGM is the highest, for low energies; SLGM the lowest.")
        self.bits = QtWidgets.QComboBox()
        self.bits.addItems(["12", "6", "1"])
        self.bits.setToolTip("Bits of the counters: fewer are read out faster, and are full sooner (4095, 63, 1).")
        self.sample = QtWidgets.QComboBox()
        self.sample.setEditable(True)
        self.sample.setToolTip("What the sample changer holds into the beam. You can type another name.")
        self.thresholds = [
            _number(1, 200, " keV", f"Energy above which counter {n + 1} counts; each must be above the one before.", 1)
            for n in range(8)
        ]
        form = labelled(
            [
                ("Frames", self.frames), ("Exposure", self.exposure), ("Mode", self.mode), ("Gain", self.gain),
                ("Depth, bits", self.bits), ("In the beam", self.sample),
            ]
        )  # fmt: skip
        self._rows = [(QtWidgets.QLabel(f"Threshold {n + 1}"), box) for n, box in enumerate(self.thresholds)]
        for label, box in self._rows:
            form.addRow(label, box)
        form.setVerticalSpacing(4)
        self.problem = hint()
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        layout.addWidget(self.problem)
        self.read(plan)
        for box in (self.frames, self.exposure, *self.thresholds):
            box.valueChanged.connect(lambda _: self._touched())
        for box in (self.gain, self.bits, self.sample):
            box.currentTextChanged.connect(lambda _: self._touched())
        self.mode.currentTextChanged.connect(lambda _: self._change_mode())

    def read(self, plan: Plan) -> None:
        """Take the settings of a plan."""
        self._is_reading = True
        self._plan, self._detector = plan, plan.detector
        detector = plan.detector
        self.exposure.setValue(detector.exposure_s * 1e3)
        self.mode.setCurrentText(detector.mode)
        self.gain.setCurrentText(detector.gain)
        self.bits.setCurrentText(str(detector.depth_bits))
        in_beam = self.sample.currentText()
        self.sample.clear()
        self.sample.addItems([OPEN_BEAM, *([plan.scan.held] if plan.scan.held else [])])
        if in_beam:
            self.sample.setCurrentText(in_beam)
        self._show_thresholds(detector.thresholds_kev)
        self._is_reading = False
        self._tell()

    def plan(self) -> Plan:
        """Return a plan with these settings.

        Raises
        ------
        ValueError
            They cannot be; the message says what is allowed.
        """
        mode = self.mode.currentText()
        detector = msgspec.structs.replace(
            self._detector,
            mode=mode,
            gain=self.gain.currentText(),
            depth_bits=int(self.bits.currentText()),
            exposure_s=self.exposure.value() / 1e3,
            thresholds_kev=tuple(round(box.value(), 3) for box in self._used()),
        )
        sample = self.sample.currentText().strip()
        return live_plan(self._plan, detector, self.frames.value(), "" if sample == OPEN_BEAM else sample)

    def detector(self) -> DetectorPlan:
        """Return the settings of the detector alone; errors are those of `plan`."""
        return self.plan().detector

    def why_not(self) -> str:
        """Return what is wrong with the settings; empty where nothing is."""
        for n, (low, high) in enumerate(pairwise(box.value() for box in self._used()), 1):
            if low >= high:
                return f"threshold {n + 1} is {high:g} keV; allowed: above threshold {n}, which is {low:g} keV."
        try:
            self.plan()
        except (ValueError, WrongUsage) as error:
            return str(error)
        return ""

    def _used(self) -> list[QtWidgets.QDoubleSpinBox]:
        return self.thresholds[: len(MODES[self.mode.currentText()].thresholds)]

    def _change_mode(self) -> None:
        if self._is_reading:
            return
        self._is_reading = True
        now_kev = tuple(box.value() for box in self.thresholds if not box.isHidden())
        self._show_thresholds(thresholds_for(self.mode.currentText(), now_kev, self._plan.source.kvp))
        self._is_reading = False
        self._touched()

    def _show_thresholds(self, energies_kev: tuple[float, ...]) -> None:
        for n, (label, box) in enumerate(self._rows):
            label.setVisible(n < len(energies_kev))
            box.setVisible(n < len(energies_kev))
            if n < len(energies_kev):
                box.setValue(energies_kev[n])

    def _touched(self) -> None:
        if self._is_reading:
            return
        self._tell()
        self._timer.start(CHANGE_AFTER_MS)

    def _tell(self) -> None:
        why = self.why_not()
        self.problem.setText(f"Cannot be: {why}" if why else "")
        self.problem.setVisible(bool(why))


def _number(low: float, high: float, unit: str, tip: str, n_decimals: int) -> QtWidgets.QDoubleSpinBox:
    box = QtWidgets.QDoubleSpinBox()
    box.setRange(low, high)
    box.setDecimals(n_decimals)
    box.setStepType(QtWidgets.QAbstractSpinBox.StepType.AdaptiveDecimalStepType)
    box.setKeyboardTracking(False)
    box.setSuffix(unit)
    box.setToolTip(tip)
    return box
