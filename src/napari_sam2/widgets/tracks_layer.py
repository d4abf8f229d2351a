"""A Tracks layer of napari that is kept in step with the masks of a session."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.components import LayerList
from napari.layers import Tracks
from napari.utils import Colormap

from napari_sam2.prompt_layers import Follower, image_transform
from napari_sam2.tracks import tracks_layer
from napari_sam2.widgets.workspace import Workspace

_COLOUR = "colour"
"""The feature by which tracks have the colours of their objects."""


class TracksLayer:
    """The layer of one image; it is there as long as it is wanted and there are tracks."""

    def __init__(self, layers: LayerList) -> None:
        self._layers = layers
        self.layer: Tracks | None = None
        self._work: Workspace | None = None
        self._follower: Follower | None = None

    def show(self, work: Workspace) -> None:
        """Show the tracks as they are now. Raises ValueError as `tracks_layer`."""
        if work is not self._work:
            self.remove()
        self._work = work
        made = tracks_layer(work.session)
        rows = made["data"]
        if not len(rows):
            self.remove()
            return
        ids = np.unique(rows[:, 0])
        places = np.searchsorted(ids, rows[:, 0]) / len(ids)
        features = made["features"] | {_COLOUR: places}
        colours = [work.masks.colour_of(int(i)) for i in ids]
        colormap = Colormap(
            np.array(colours), controls=[*np.arange(len(ids)) / len(ids), 1], interpolation="zero"
        )
        if self.layer is None or self.layer not in self._layers:
            self._add(work, made | {"features": features}, colormap)
            return
        self.layer.color_by = "track_id"  # the one that is left while others are replaced
        self.layer.data = rows
        self.layer.features = features
        self.layer.graph = made["graph"]
        self.layer.colormaps_dict = {_COLOUR: colormap}
        self.layer.color_by = _COLOUR

    def remove(self) -> None:
        """Take the layer away."""
        layer, self.layer, self._follower, self._work = self.layer, None, None, None
        if layer is not None and layer in self._layers:
            self._layers.remove(layer)

    def _add(self, work: Workspace, made: dict[str, Any], colormap: Colormap) -> None:
        view, image = work.session.view, work.image
        channel_axis = None if view.channels is None else view.channels.axis
        axis = view.key.axis or 0
        place = image_transform(image, channel_axis)
        if axis:  # axes before the time are left out
            place = {
                name: place[name][axis:] for name in ("scale", "translate", "units", "axis_labels")
            }
        active = self._layers.selection.active
        self.layer = Tracks(
            **made,
            name=f"{image.name} tracks",
            colormaps_dict={_COLOUR: colormap},
            color_by=_COLOUR,
            tail_width=3,
            blending="translucent",  # else the colours are others than those of the masks
            **place,
        )
        labels = work.labels
        above = labels if labels is not None and labels in self._layers else image
        self._layers.insert(self._layers.index(above) + 1, self.layer)
        if active in self._layers:
            self._layers.selection.active = active
        if not axis:
            self._follower = Follower(image, [self.layer], channel_axis)
