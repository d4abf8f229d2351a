"""What the parts of the widget share: the viewer, the panel, and the image that is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import napari.layers
import napari.viewer
import numpy as np
from napari.utils.notifications import show_warning
from qtpy.QtCore import QObject, QTimer, Signal

from napari_sam2.counted import listed
from napari_sam2.sequence_view import is_oblique
from napari_sam2.session import Session
from napari_sam2.widgets.model_choice import ModelChoice
from napari_sam2.widgets.panel import Panel
from napari_sam2.widgets.runner import Runner
from napari_sam2.widgets.workspace import Workspace

_LOADING = "Loading the model"
_NAMED = 3  # objects in a message
_PORTION = 0.02  # seconds of writing at a time
_PAUSE_MS = 10


class Context(QObject):
    """Where everything is, and the questions that all parts ask."""

    changed = Signal()
    """Objects, masks or what can be done are others than before."""

    def __init__(
        self, viewer: napari.viewer.Viewer, panel: Panel, models: ModelChoice, runner: Runner
    ) -> None:
        super().__init__(panel)
        self.viewer = viewer
        self.panel = panel
        self.models = models
        self.runner = runner
        self.work: Workspace | None = None
        """The image that is chosen; None without one."""
        self._unwritten: Session | None = None
        self._rest = QTimer(self)
        self._rest.setInterval(_PAUSE_MS)
        self._rest.timeout.connect(self._write_rest)

    def choose(self, image: napari.layers.Image) -> None:
        """Work on an image layer of the viewer. Raises ValueError for any other."""
        index = self.panel.images.findData(image)
        if index < 0:
            raise ValueError(f"{image.name} is no image layer of this viewer.")
        self.panel.images.setCurrentIndex(index)

    @property
    def session(self) -> Session | None:
        return self.work.session if self.work else None

    @property
    def points(self) -> napari.layers.Points | None:
        return self.work.prompts.points if self.work and self.work.prompts else None

    @property
    def shapes(self) -> napari.layers.Shapes | None:
        return self.work.prompts.boxes if self.work and self.work.prompts else None

    @property
    def labels(self) -> napari.layers.Labels | None:
        return self.work.labels if self.work else None

    @property
    def is_running(self) -> bool:
        """Whether objects are being followed."""
        return self.runner.running is not None

    @property
    def is_held(self) -> bool:
        """Whether results must wait, because the person is in the middle of a stroke."""
        return self.work is not None and self.work.is_held

    @property
    def is_oblique(self) -> bool:
        """Whether napari shows slices of the image elsewhere than where clicks on them lie."""
        work, dims = self.work, self.viewer.dims
        return (
            work is not None and dims.ndim >= work.image.ndim and is_oblique(work.image, dims.order)
        )

    @property
    def frame(self) -> int:
        """The slice of the session's sequence that the viewer shows."""
        assert self.work is not None
        view = self.work.session.view
        if view.key.axis is None:
            return 0
        here = self.work.image.world_to_data(self.viewer.dims.point)[view.key.axis]
        return int(np.clip(np.rint(here), 0, len(view) - 1))

    def go_to(self, frame: int) -> None:
        """Show a slice of the sequence."""
        if self.work is None or self.work.session.view.key.axis is None:
            return
        image, dims = self.work.image, self.viewer.dims
        axis = self.work.session.view.key.axis
        at = np.array(image.world_to_data(dims.point))
        at[axis] = frame
        dims.set_point(axis + dims.ndim - image.ndim, image.data_to_world(at)[axis])

    def name(self, object_id: int | None = None) -> str:
        """Of an object; by default of the selected one."""
        info = self.session.objects.get(object_id or self.panel.object_id) if self.session else None
        return info.name if info else "the object"

    def names(self, object_ids: Iterable[int]) -> str:
        """Of objects: all of a few, the first ones and the number of many."""
        return listed([self.name(object_id) for object_id in object_ids], _NAMED)

    @contextmanager
    def in_portions(self) -> Iterator[None]:
        """What the session changes inside is shown at the end, and written where the viewer is.

        The other slices follow in small portions, so that the window does not stand still.
        """
        session = self.session
        assert session is not None
        if self._unwritten is not None and self._unwritten is not session:
            self._unwritten.write_rest()
        self._unwritten = session
        self._rest.start()
        with session.writing_first(self.frame):
            yield
        if self.work is not None:
            self.work.bring_up_to_date()

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Do what may be refused, and say so if it is. Returns whether it was done."""
        try:
            action()
        except ValueError as error:
            self.panel.fail(str(error))
            return False
        return True

    def tell(self, error: Exception) -> str:
        """Say what went wrong, here and in napari's own notification. Returns the text."""
        from sam2_engine.full_memory import card_is_full, machine_is_full
        from sam2_engine.weights import WeightsError

        text = str(error).strip()
        if machine_is_full(error):
            text = "The memory is full. Close what you do not need, or choose a smaller model."
        elif card_is_full(error):
            text = (
                "The graphics card's memory is full. What was found is kept. Choose a smaller "
                "model, or run on the processor, and go on."
            )
        elif not isinstance(error, ValueError | OSError | WeightsError) or not text:
            text = f"Something went wrong ({type(error).__name__}): {text or 'no details'}"
        self.panel.fail(text)
        show_warning(f"SAM 2: {text}")
        return text

    def loading(self) -> str:
        return f"{_LOADING}: {self.models.title} …"

    @property
    def says_loading(self) -> bool:
        """Whether the person is told that the model is being loaded."""
        return self.panel.status.text().startswith(_LOADING)

    def refuse_oblique(self) -> None:
        """Say why nothing can be marked on the slices as they are shown."""
        assert self.work is not None
        self.panel.fail(
            f"{self.work.image.name} is turned or sheared out of its slices. napari shows them "
            "straight, so that marks would lie elsewhere than where you see them. Open its file "
            'with the reader "SAM 2", or set the layer\'s rotation, shear and affine back.'
        )

    def say_what_next(self) -> None:
        """Tell the person what to do in the state that everything is in."""
        session, say = self.session, self.panel.say
        if session is None:
            say("Open an image (File > Open, or Open Sample); it then appears above.")
        elif not session.model.is_loaded and self.models.is_loading:
            say(self.loading())
        elif self.is_oblique:
            self.refuse_oblique()
        elif session.prompts:
            say("Correct any slice with clicks or a box, or go on with Propagate.")
        elif session.prompted_objects:
            say(
                "The objects are marked elsewhere (another axis or position). To follow them "
                "through these slices too, mark them here."
            )
        else:
            say(
                f"Press Include and click on {self.name()}, or press Box and drag a box around "
                "it, on any slice."
            )

    def _write_rest(self) -> None:
        session = self._unwritten
        at = self.frame if session is self.session else None
        if session is None or session.write_rest(_PORTION, at):
            self._unwritten = None
            self._rest.stop()
