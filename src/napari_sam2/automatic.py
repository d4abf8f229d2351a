"""All objects of a slice at once: found without prompts, looked through, and made objects.

found = find_all(session, 12, seeds="classical", diameter=18)
add_all(session, 12, [one for one in found if one.score > 0.6])
session.propagate()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.alignment import layer_on
from napari_sam2.label_masks import LabelMasks
from napari_sam2.session import Session
from napari_sam2.slice_data import ObjectMask
from napari_sam2.tasks import Task

if TYPE_CHECKING:
    from sam2_engine.automatic import Candidate, Rules, Search
    from sam2_engine.seeds import Seeds


def find_all(
    session: Session,
    frame: int,
    seeds: Any = "grid",
    *,
    diameter: float | None = None,
    rules: Rules | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Candidate]:
    """Masks that may be objects of a slice, best first; the session stays as it is.

    Args:
        frame: of the sequence that is shown.
        seeds: as for `sam2_engine.automatic.find_objects`; a napari labels layer, too, whose
            instances are asked for, or an array of labels in the shape of the image. Of a napari
            image layer, a channel of nuclei, each nucleus is: it is found by a threshold and a
            watershed, and a point in it is asked for.
        diameter, rules: as there; the diameter is that of nuclei, where they are seeds.
        progress: called with the number of seeds that are done and of all.

    Raises ValueError where there is no such slice or the seeds do not fit; what
    `sam2_engine.load_model` raises.
    """
    from sam2_engine.automatic import finished

    steps = search_all(session.task(objects=()), frame, seeds, diameter, rules)
    return finished(steps, progress)


def search_all(
    task: Task,
    frame: int,
    seeds: Any = "grid",
    diameter: float | None = None,
    rules: Rules | None = None,
    image: NDArray[Any] | None = None,
) -> Iterator[Search]:
    """As `find_all`, a batch of seeds at a time, for another thread; close it to stop.

    image: the slice, where it has been read already.

    It begins when it is asked for the first batch, and touches nothing but the task.
    """
    from sam2_engine.automatic import search
    from sam2_engine.frames import sample_window

    view, source = task.view, task.source
    view.check_frame(frame)
    if hasattr(seeds, "data_to_world"):
        on_frame = layer_on(view, seeds, frame)
        is_image = hasattr(seeds, "contrast_limits")
        seeds = _nuclei(on_frame, diameter) if is_image else on_frame
    elif hasattr(seeds, "shape") and len(view.shape) > 2 and tuple(seeds.shape) == view.shape:
        seeds = np.asarray(seeds[view.index(frame)])
    window = sample_window(view) if source.window is None else source.window
    image = view[frame] if image is None else image
    yield from search(source.model.get(), image, seeds, rules, diameter=diameter, window=window)


def _nuclei(image: NDArray[Any], diameter: float | None) -> Seeds:
    """A point in each instance of a threshold and a watershed of an image (H, W); no boxes, for
    the cell around a nucleus is larger.
    """
    from sam2_engine.seeds import Seeds, classical_seeds, typical_diameter

    return Seeds(classical_seeds(image, diameter or typical_diameter(image)).points)


def add_all(
    session: Session, frame: int, candidates: Sequence[Candidate], waiting: Iterable[int] = ()
) -> list[int]:
    """Make candidates of a slice objects, in one step of undo. Returns their ids.

    Each gets its mask as a prompt, as if painted, so that it is the same whenever the session is
    opened or replayed, and its seed as a click, which counts once the mask is taken back. Where
    several overlap, the one that comes first has the pixels.

    waiting: ids of objects without marks, which the first candidates become; others are new.
    """
    from sam2_engine.automatic import labels_image

    view = session.view
    found = ObjectMask.each_of(labels_image(candidates, view.frame_shape))
    masks: dict[tuple[int, int], ObjectMask] = {}
    free = iter(waiting)
    with (
        session.objects_changed.blocked(),
        session.prompts_changed.blocked(),
        session.history.change("Find all"),
        session.writing_together(),
    ):
        for number, candidate in enumerate(candidates, start=1):
            if number not in found:
                continue
            object_id = next(free, None) or session.add_object()
            session.add_points(object_id, view.join(frame, [candidate.point]))
            masks[object_id, frame] = found[number]
        session.take_masks(LabelMasks(masks))
    session.objects_changed.emit()
    session.prompts_changed.emit()
    return [object_id for object_id, _ in masks]
