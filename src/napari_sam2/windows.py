"""Intensity windows: what the model is shown as black and as white, for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from napari_sam2.sequence_view import SequenceView, Window, Windows, window_of

CONTRAST_LIMITS, PERCENTILES = "contrast limits", "percentiles"

_FROM_FILE = "file: "

CT_WINDOWS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "soft tissue": (50, 400),
        "lung": (-600, 1500),
        "bone": (400, 1800),
        "brain": (40, 80),
        "liver": (30, 150),
    }
)
"""Level and width in Hounsfield units, as radiologists view these organs.

From "Windowing (CT)", Radiopaedia.org, https://radiopaedia.org/articles/windowing-ct
"""


def window_choices(image: Any) -> dict[str, str]:
    """What `window_for` can be asked for an image -> how a list of choices names it.

    image: as for `window_for`. CT windows are left out where the data cannot be Hounsfield units:
    colours, and types without negative numbers.
    """
    view = _view_of(image)
    choices = {CONTRAST_LIMITS: "Contrast limits"} if view.layers else {}
    choices[PERCENTILES] = "Percentiles of the image"
    for choice in _file_windows(view):
        choices[choice] = f"From the file: {choice.removeprefix(_FROM_FILE)}"
    if not view.rgb and view.dtype.kind in "if":
        for name, (level, width) in CT_WINDOWS.items():
            choices[name] = f"CT {name} (level {level:g}, width {width:g})"
    return choices


def window_for(
    image: Any,
    choice: str = CONTRAST_LIMITS,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> Windows:
    """The intensities shown as black and as white.

    Args:
        image: a `SequenceView`, or what makes one: a layer, an array, or a list of either.
        choice: "contrast limits", which are percentiles where there are none; "percentiles"; a name
            in `CT_WINDOWS`; or "file: " and the name of a window that the image's file proposes.
        percentiles: which, of up to 16 slices spread over the sequence. They are read now.

    Returns (low, high), or a tuple of these where channels have windows of their own.
    Raises ValueError for another choice.
    """
    view = _view_of(image)
    proposed = _file_windows(view)
    if choice in proposed:
        return proposed[choice]
    if choice in CT_WINDOWS:
        level, width = CT_WINDOWS[choice]
        return level - width / 2, level + width / 2
    if choice not in (CONTRAST_LIMITS, PERCENTILES):
        known = ", ".join((CONTRAST_LIMITS, PERCENTILES, *CT_WINDOWS, *proposed))
        raise ValueError(f"There is no intensity window {choice!r}; choose one of: {known}.")
    shown: list[Window | None] = [None] * view.num_channels
    if choice == CONTRAST_LIMITS and view.layers:
        # Channels of one layer have its contrast limits together.
        shown = [window_of(layer) for layer in view.layers]
    windows = tuple(
        _sampled(view, n, percentiles) if window is None else window
        for n, window in enumerate(shown)
    )
    return windows if len(windows) > 1 else windows[0]


def _file_windows(view: SequenceView) -> dict[str, Window]:
    """Windows that the file of the (first) layer proposes, by choice: "file: " and their names."""
    from napari_sam2.io.readers import source_of

    if not view.layers or view.rgb:
        return {}
    source = source_of(view.layers[0].metadata)
    windows = {} if source is None else source.windows
    return {_FROM_FILE + name: window for name, window in windows.items()}


@dataclass(frozen=True)
class _Channel:
    """The frames of one channel."""

    view: SequenceView
    number: int

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, frame: int) -> NDArray[Any]:
        return self.view.channel(self.number, frame)


def _sampled(view: SequenceView, channel: int, percentiles: tuple[float, float]) -> Window:
    from sam2_engine.frames import sample_window

    return sample_window(_Channel(view, channel), percentiles)


def _view_of(image: Any) -> SequenceView:
    return image if isinstance(image, SequenceView) else SequenceView(image)
