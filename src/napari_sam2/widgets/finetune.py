"""The dock widget "Fine-tune": train a model on corrected labels, and use it."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari.layers
import napari.viewer
import numpy as np
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QLineEdit,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_sam2.counted import counted
from napari_sam2.finetune import (
    HELD_OUT,
    MINUTES,
    Card,
    check_model_target,
    finetune,
    read_pairs,
    sources_of,
    training_folder,
)
from napari_sam2.io import ReadError, WriteError
from napari_sam2.io.writers import session_of
from napari_sam2.sequence_view import image_shape
from napari_sam2.widgets.docking import Docked
from napari_sam2.widgets.events import Connections
from napari_sam2.widgets.model_choice import use_everywhere
from napari_sam2.widgets.score_curve import ScoreCurve
from napari_sam2.widgets.worker import Worker

if TYPE_CHECKING:
    from sam2_engine.training.finetune import Status
    from sam2_engine.training.sources import Source

_LAYERS, _FILES = "open layers", "files"
_POLL_MS = 200
_STATUS_LINES = 6
_TIMES = ("t", "time", "frame")


class FineTune(Docked):
    """Train a model on an image layer and its corrected labels, or on pairs of files.

    A part is held out; the curve shows whether the model becomes better on it. The training runs in
    a thread, can be stopped, keeps the best up to then, and can be resumed.
    """

    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._status: Status | None = None
        self._shown: Status | None = None
        self._stop = threading.Event()
        self.card: Card | None = None
        """Of the last training that has ended."""
        self._images: list[str] = []
        self._labels: list[str] = []

        self.source, self.image, self.labels = QComboBox(), QComboBox(), QComboBox()
        self.source.addItems([_LAYERS, _FILES])
        self.only_approved = QCheckBox("Only approved slices")
        self.only_approved.setToolTip(
            "Learn from the masks alone that you have approved in the widget SAM 2. Otherwise "
            "from all slices with labels."
        )
        self.image_files, self.label_files = QPushButton("Images …"), QPushButton("Labels …")
        self.label_files.setToolTip("The labels of each image, in the same order of their names.")
        self.start = QComboBox()
        self.start.setToolTip("The model to go on from.")
        self.output = QLineEdit(str(_free_target(Path.home())))
        self.output.setToolTip("The model to write; its name will be in the list of models.")
        self.output_button = QPushButton("…")
        self.minutes = QDoubleSpinBox()
        self.minutes.setRange(0.1, 10_000)
        self.minutes.setValue(MINUTES)
        self.minutes.setSuffix(" min")
        self.held_out = QSpinBox()
        self.held_out.setRange(1, 90)
        self.held_out.setValue(round(100 * HELD_OUT))
        self.held_out.setSuffix(" %")
        self.held_out.setToolTip("Held out at the end, to see whether the model becomes better.")
        self.whole_model = QCheckBox("The whole model")
        self.whole_model.setToolTip(
            "Train the image encoder, too: slower, and it needs more labelled images."
        )
        self.start_button, self.stop_button = QPushButton("Start"), QPushButton("Stop")
        self.resume_button = QPushButton("Resume")
        self.use_button = QPushButton("Use it now")
        self.progress = QProgressBar()
        self.progress.setRange(0, 1000)
        self.curve = ScoreCurve()
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.status.setMinimumHeight(_STATUS_LINES * self.status.fontMetrics().lineSpacing())
        self._lay_out()

        self.worker = Worker(self)
        self._poll = QTimer(self)
        self._poll.setInterval(_POLL_MS)
        self._poll.timeout.connect(self._show_status)
        self.start_button.clicked.connect(lambda: self.train())
        self.resume_button.clicked.connect(lambda: self.train(resume=True))
        self.stop_button.clicked.connect(lambda: self.stop())
        self.use_button.clicked.connect(lambda: self.use())
        self.source.currentIndexChanged.connect(self._show_state)
        self.labels.currentIndexChanged.connect(self._show_state)
        self.image_files.clicked.connect(lambda: self._choose_files(self._images, "images"))
        self.label_files.clicked.connect(lambda: self._choose_files(self._labels, "labels"))
        self.output_button.clicked.connect(self._choose_output)
        self._events = Connections()
        self._events.connect_list(viewer.layers, self._list_layers)
        self._events.connect(viewer.layers.selection.events.active, self._show_state)
        self.destroyed.connect(partial(_end, self._stop, self.worker, self._events))
        self.worker.request(_names_of_models, self._list_models, self._fail)
        self._list_layers()

    # -- for people, scripts and tests ---------------------------------------------------------

    @property
    def is_training(self) -> bool:
        """Whether a training is under way."""
        return self._poll.isActive()

    def train(self, resume: bool = False) -> None:
        """Start a training, or go on with one that was stopped; the window goes on meanwhile."""
        if self.is_training:
            return
        output = self.output.text().strip()
        try:
            check_model_target(Path(output), overwrite=True)
            sources = self._sources()
        except (ReadError, WriteError) as error:
            self.status.setText(str(error))
            return
        if not (resume or self._may_replace(Path(output))):
            self.status.setText("Nothing was started. Choose another name to write to.")
            return
        self._stop.clear()
        self._status = self._shown = self.card = None
        options: dict[str, Any] = {
            "start": self.start.currentText() or "nano",
            "minutes": self.minutes.value(),
            "held_out": self.held_out.value() / 100,
            "whole_model": self.whole_model.isChecked(),
            "resume": resume,
            "overwrite": True,
            "on_status": self._note,
            "should_stop": self._stop.is_set,
        }
        self.status.setText("Looking at the images and scoring the model as it is …")
        self._poll.start()
        self._show_state()
        self.worker.request(lambda: finetune(sources(), output, **options), self._done, self._fail)

    def stop(self) -> None:
        """End the training after the step under way; what was best up to then is kept."""
        self._stop.set()
        self.status.setText("Stopping; the last score is taken …")

    def use(self) -> None:
        """Choose the new model in the widget SAM 2."""
        if self.card is None or not self.card.is_written:
            return
        if use_everywhere(self.card.name):
            self.status.setText(f"{self.card.name} is chosen in the widget SAM 2.")
        else:
            self.status.setText(f"{self.card.name} will be chosen when SAM 2 is opened.")

    # -- helpers -------------------------------------------------------------------------------

    def _sources(self) -> Callable[[], list[Source]]:
        """What reads the chosen images and labels, in another thread. Raises ReadError."""
        if self.source.currentText() == _FILES:
            if not self._images:
                raise ReadError("Choose images and their labels first.")
            return partial(read_pairs, list(self._images), list(self._labels))
        image, labels = self.image.currentData(), self.labels.currentData()
        if image is None or labels is None:
            raise ReadError("Open an image and its labels first, or choose files.")
        shape = image_shape(image)
        if tuple(labels.data.shape) != shape:
            raise ReadError(
                f"{labels.name} has the shape {tuple(labels.data.shape)} and {image.name} {shape}; "
                "choose labels of this image."
            )
        if len(shape) not in (2, 3):
            raise ReadError("Choose an image of two or three axes; split one of more axes first.")
        return partial(_layer_sources, image, labels, self.only_approved.isChecked())

    def _may_replace(self, output: Path) -> bool:
        """Whether nothing is lost by a new training, or the person agrees to it."""
        if output.exists():
            what = f"{output} exists. Replace it by what is trained now?"
        elif training_folder(output).is_dir():
            what = (
                f"A training of {output.name} was stopped, and Resume goes on with it. Begin anew "
                "and forget it?"
            )
        else:
            return True
        answer = QMessageBox.question(self, "Fine-tune", what)
        return bool(answer == QMessageBox.StandardButton.Yes)

    def _note(self, status: Status) -> None:
        """Called in the thread of the training."""
        self._status = status

    def _show_status(self) -> None:
        status = self._status
        if status is None or status is self._shown:
            return
        self._shown = status
        self.progress.setValue(round(1000 * status.share))
        scores = {
            kind: [
                (one.step, value)
                for one in status.moments
                if not math.isnan(value := getattr(one.score, kind))
            ]
            for kind in ("box", "click", "tracked")
        }
        self.curve.show_training(status.losses, status.step, scores)
        if not self._stop.is_set() and status.moments:
            self.status.setText(
                f"{counted(status.step, 'step')}. On what is held out: {status.moments[-1].score} "
                f"(before: {status.moments[0].score})."
            )

    def _done(self, card: Card) -> None:
        self._poll.stop()
        self._show_status()
        self.card = card
        told = f"Before: {card.before}. "
        if not card.is_written:
            told += "Nothing was better than that, so no model was written; more labelled slices "
            told += "or more minutes may help."
        else:
            told += f"Now: {card.after}, after {counted(card.steps, 'step')}. "
            told += f"Written: {card.path}, and its card beside it."
            self.worker.request(_names_of_models, self._list_models, self._fail)
        if not card.is_complete:
            told += " Stopped; Resume goes on."
        self.status.setText(told)
        self._show_state()

    def _fail(self, error: Exception) -> None:
        self._poll.stop()
        self.status.setText(str(error) or type(error).__name__)
        self._show_state()

    def _show_state(self, *_: object) -> None:
        """Enable what can be done now."""
        for source, rows in self._rows.items():
            for row in rows:
                self._form.setRowVisible(row, source == self.source.currentText())
        labels = self.labels.currentData()
        session = None if labels is None else session_of(labels.metadata)
        self.only_approved.setEnabled(session is not None)
        if session is None:
            self.only_approved.setChecked(False)
        training = self.is_training
        for button in (self.start_button, self.source, self.start, self.output, self.minutes):
            button.setEnabled(not training)
        self.stop_button.setEnabled(training)
        is_stopped = training_folder(Path(self.output.text())).is_dir()
        self.resume_button.setEnabled(not training and is_stopped)
        self.use_button.setEnabled(not training and self.card is not None and self.card.is_written)

    def _list_layers(self, *_: object) -> None:
        layers = self._viewer.layers
        for combo, kind in ((self.image, napari.layers.Image), (self.labels, napari.layers.Labels)):
            chosen = combo.currentData()
            combo.blockSignals(True)
            combo.clear()
            for layer in layers:
                if isinstance(layer, kind):
                    combo.addItem(layer.name, layer)
            combo.setCurrentIndex(max(0, combo.findData(chosen)))
            combo.blockSignals(False)
        self._show_state()

    def _list_models(self, names: list[str]) -> None:
        chosen = self.start.currentText()
        self.start.clear()
        self.start.addItems(names)
        self.start.setCurrentIndex(max(0, self.start.findText(chosen)))

    def _choose_files(self, files: list[str], what: str) -> None:
        chosen, _ = QFileDialog.getOpenFileNames(self, f"Choose {what}")
        if chosen:
            self.set_files(files, sorted(chosen))

    def set_files(self, files: list[str], chosen: list[str]) -> None:
        """Take these as the images or the labels."""
        files[:] = chosen
        self.image_files.setText(f"Images … ({len(self._images)})")
        self.label_files.setText(f"Labels … ({len(self._labels)})")

    def _choose_output(self) -> None:
        path, _ = QFileDialog.getSaveFileName(
            self,
            "Write the model to",
            self.output.text(),
            "Models (*.safetensors)",
            options=QFileDialog.Option.DontConfirmOverwrite,  # asked when it is started
        )
        if path:
            self.output.setText(str(Path(path).with_suffix(".safetensors")))
            self._show_state()

    def _lay_out(self) -> None:
        files, output = QHBoxLayout(), QHBoxLayout()
        files.addWidget(self.image_files)
        files.addWidget(self.label_files)
        output.addWidget(self.output)
        output.addWidget(self.output_button)
        self._form = form = QFormLayout()
        form.addRow("Learn from", self.source)
        form.addRow("Image", self.image)
        form.addRow("Labels", self.labels)
        form.addRow("", self.only_approved)
        form.addRow("Files", files)
        form.addRow("Start from", self.start)
        form.addRow("Write to", output)
        form.addRow("Train for", self.minutes)
        form.addRow("Hold out", self.held_out)
        form.addRow("", self.whole_model)
        self._rows: dict[str, tuple[QWidget | QLayout, ...]] = {
            _LAYERS: (self.image, self.labels, self.only_approved),
            _FILES: (files,),
        }
        layout = QVBoxLayout(self.body)
        layout.addLayout(form)
        for buttons in (
            (self.start_button, self.stop_button),
            (self.resume_button, self.use_button),
        ):
            row = QHBoxLayout()
            for button in buttons:
                row.addWidget(button)
            layout.addLayout(row)
        layout.addWidget(self.progress)
        layout.addWidget(self.curve)
        layout.addWidget(self.status)
        layout.addStretch(1)
        for widget, name in (
            (self.output, "The model to write"),
            (self.output_button, "Choose the file to write"),
            (self.progress, "Progress"),
            (self.curve, "Scores"),
        ):
            widget.setAccessibleName(name)
        for combo in (self.image, self.labels, self.start):
            combo.setSizeAdjustPolicy(
                QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
            )
            combo.setMinimumContentsLength(8)


def _free_target(folder: Path) -> Path:
    """The first "my-model" that is not there yet, or whose training was stopped."""
    names = itertools.chain(["my-model"], (f"my-model-{n}" for n in itertools.count(2)))
    paths = (folder / f"{name}.safetensors" for name in names)
    return next(path for path in paths if not path.exists() or training_folder(path).is_dir())


def _layer_sources(
    image: napari.layers.Image, labels: napari.layers.Labels, only_approved: bool
) -> list[Source]:
    """An image layer and its labels as what is learnt from. Raises ReadError."""
    session = session_of(labels.metadata)
    pixels = np.asarray(image.data[0] if image.multiscale else image.data)
    ids = np.asarray(
        session.approved_labels() if session is not None and only_approved else labels.data
    )
    if only_approved and not ids.any():
        raise ReadError(
            f"No mask in {labels.name} is approved yet. Approve slices in the widget SAM 2, or "
            "untick Only approved slices."
        )
    axis = 0
    if ids.ndim == 2:
        pixels, ids = pixels[None], ids[None]
    elif session is not None:
        axis = session.view.key.axis or 0
    pixels, ids = np.moveaxis(pixels, axis, 0), np.moveaxis(ids, axis, 0)
    if pixels.ndim == 4:
        pixels = pixels[..., :3]
    is_time = str(image.axis_labels[axis]).lower() in _TIMES
    is_volume = len(ids) > 1 and not is_time
    return sources_of(image.name, pixels, ids, is_volume, labelled_slices_only=True)


def _names_of_models() -> list[str]:
    """Of those on this computer."""
    from sam2_engine.weights import find, list_models

    return [info.name for info in list_models() if find(info) is not None]


def _end(stop: threading.Event, worker: Worker, events: Connections, *_: object) -> None:
    stop.set()
    worker.close()
    events.disconnect_all()
