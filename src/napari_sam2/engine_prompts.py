"""What a person marked on a slice, as the engine takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_sam2.areas import Area, enlarged, moved
from napari_sam2.slice_data import CoarseLogits, SlicePrompts

if TYPE_CHECKING:
    from sam2_engine.frames import Geometry

_MOST_CLICKS = 8  # for one scribble
_CLICK_DISTANCE = 0.1  # of the frame, at least between them
_ROUGH = 16.0  # the logit in the middle of a lasso


def area_on(said: SlicePrompts, area: Area | None, shape: tuple[int, int]) -> Area | None:
    """Where to look for an object on a frame (H, W) that is marked: in its area, or where that has
    followed it to; moved to marks that show it elsewhere, enlarged for those that correct it.
    """
    if area is None:
        return None
    corrected = None if said.starts_over else said.corrects
    here = area if corrected is None else corrected.area or area
    if said.extent is None:
        return here
    return (moved if corrected is None else enlarged)(here, said.extent, shape)


def engine_prompts(said: SlicePrompts, geometry: Geometry) -> dict[str, Any]:
    """What is said of an object on a frame, as arguments of `SequencePredictor.set_prompts`.

    geometry: with the part of the frame to look at.

    A scribble becomes clicks spread along it. Lassos become the box around them and a rough mask;
    the object is kept within them, unless a click on it lies outside. Marks may reach beyond the
    frame; what counts is the part inside.
    """
    shape = geometry.frame_shape
    if said.mask is not None:
        return {"mask": said.mask.on_frame(shape), "area": geometry.area}
    first, last = np.reshape(geometry.seen, (2, 2)) - 0.5
    strokes = [(point[None], label) for point, label in zip(said.points, said.labels, strict=True)]
    strokes += [(_spread(one.path, shape), one.label) for one in said.scribbles]
    prompts: dict[str, Any] = {"area": geometry.area}
    if strokes:
        counts = [len(clicks) for clicks, _ in strokes]
        prompts["points"] = np.concatenate([clicks for clicks, _ in strokes]).clip(first, last)
        prompts["labels"] = np.repeat([label for _, label in strokes], counts)
        prompts["strokes"] = np.repeat(np.arange(len(strokes)), counts)
    if said.starts_over:
        corners = [np.reshape(said.box, (2, 2))] if said.box is not None else []
        around = np.concatenate([*corners, *said.lassos]).clip(first, last)
        prompts["box"] = (*around.min(axis=0), *around.max(axis=0))
    elif said.corrects is not None:
        prompts["mask_input"] = _as_seen(said.corrects, geometry)
    if said.lassos and said.box is None:
        prompts |= _lassoed(said.lassos, prompts, geometry)
    return prompts


def _lassoed(
    lassos: Iterable[NDArray[np.float64]], marks: Mapping[str, Any], geometry: Geometry
) -> dict[str, Any]:
    """What lassos add to their box, beside points of `marks`."""
    import torch
    from skimage.draw import polygon2mask

    shape = geometry.frame_shape
    inside = np.logical_or.reduce([polygon2mask(shape, lasso) for lasso in lassos])
    if not inside.any():
        return {}
    covered = geometry.mask_to_low_res(torch.from_numpy(inside)[None, None])[0, 0].numpy()
    added: dict[str, Any] = {"mask_input": (2 * covered - 1) * _ROUGH}
    if marks.get("points") is not None:
        on_it = np.rint(marks["points"][marks["labels"] == 1]).astype(int)
        y, x = on_it.clip(0, np.array(shape) - 1).T
        if not inside[y, x].all():
            return added
    return added | {"within": inside}


def _spread(path: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Clicks spread evenly along a line of (N, 2) corners, none of them at its ends.

    More clicks on a small object do not make its mask better, so they keep a distance.
    """
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    along = np.concatenate(([0], np.cumsum(lengths)))
    if not along[-1]:
        return path[:1]
    count = min(_MOST_CLICKS, 1 + int(along[-1] / (_CLICK_DISTANCE * max(shape))))
    at = (np.arange(count) + 0.5) / count * along[-1]
    return np.stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)], axis=1)


def _as_seen(known: CoarseLogits, geometry: Geometry) -> NDArray[np.float32]:
    """(S/4, S/4) the logits of a mask in the part of the frame that the model looks at now."""
    logits = _resized(known.logits(), geometry.image_size // 4)
    import torch

    before = geometry.looking_at(known.area)
    low_res: NDArray[np.float32] = geometry.low_res_as_seen(
        torch.from_numpy(logits)[None, None], before
    )[0, 0].numpy()
    return low_res


def _resized(logits: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Logits that another model gave, at the size that this model takes."""
    if logits.shape == (side, side):
        return logits
    from scipy.ndimage import zoom

    scale = side / np.array(logits.shape)
    resized: NDArray[np.float32] = zoom(logits, scale, order=1, grid_mode=True, mode="nearest")
    return resized
