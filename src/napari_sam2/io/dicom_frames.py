"""From headers to frames: each picture of a series, with its place and what its values mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pydicom

from napari_sam2.io import dicom_header as read
from napari_sam2.io.dicom_files import Source
from napari_sam2.io.volume import ReadError

Mark = float | str


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture: a file, or a frame of a multi-frame file. Lengths in mm, directions in LPS.

    is_rescaled: whether the file says how stored values become those of the modality.
    is_inverted: whether small values are bright (MONOCHROME1).
    values: smallest and largest value that can be stored; None for floating point.
    marks: what can tell frames at the same position apart, such as their time in seconds.
    problem: why its pixels cannot be there, if the header already tells.
    """

    source: Source
    index: int | None  # in a multi-frame file
    uid: str
    syntax: pydicom.uid.UID
    size: tuple[int, int]  # rows, columns
    is_colour: bool
    has_lookup: bool
    position: np.ndarray | None
    orientation: (
        np.ndarray | None
    )  # (2, 3): direction of a row (growing x), of a column (growing y)
    pixel_spacing: tuple[float, float] | None  # between rows (y), between columns (x)
    thickness: float | None
    slope: float
    intercept: float
    is_rescaled: bool
    is_inverted: bool
    values: tuple[int, int] | None
    windows: dict[str, tuple[float, float]]
    marks: dict[str, Mark] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_placed(self) -> bool:
        """Whether it says where it lies."""
        return self.position is not None and self.orientation is not None

    @property
    def depth(self) -> float:
        """How far along the normal it lies, in mm."""
        assert self.position is not None and self.orientation is not None
        return float(np.cross(*self.orientation) @ self.position)

    @property
    def order(self) -> tuple[float, float, int]:
        """Where nothing better is known: the number that the scanner gave it."""
        group = self.marks.get("acquisition number", 0.0)
        number = self.marks.get("instance number", 0.0)
        assert not isinstance(group, str) and not isinstance(number, str)
        return group, number, self.index or 0


def frames_of(source: Source, header: pydicom.Dataset, file_size: int) -> Iterator[Frame]:
    """The file's one picture, with its problem if the file is too small for it, or all frames.

    Raises: DamagedFile if its pictures have no size; ReadError if the header claims more frames
    than the file can hold, or tiles of a slide.
    """
    count = max(1, int(read.number(header, "NumberOfFrames") or 1))
    rows, columns = (int(read.number(header, k) or 0) for k in ("Rows", "Columns"))
    samples = int(read.number(header, "SamplesPerPixel") or 1)
    syntax = header.file_meta.TransferSyntaxUID
    bits = int(read.number(header, "BitsAllocated") or 16)
    problem = _problem(source, (count, rows, columns, samples), bits, syntax, file_size)
    if min(rows, columns) < 1:
        raise read.DamagedFile(problem)
    if problem and count > 1:
        raise ReadError(problem)
    if (read.number(header, "TotalPixelMatrixColumns") or 0) > columns:
        raise ReadError(f"{source} is a whole-slide image in tiles, which cannot be read here.")

    shared = read.items(header, "SharedFunctionalGroupsSequence")[:1]
    per_frame = read.items(header, "PerFrameFunctionalGroupsSequence")
    shown_as = read.text(header, "PhotometricInterpretation")
    is_colour = samples > 1 or shown_as == "PALETTE COLOR"
    has_lookup = bool(read.items(header, "ModalityLUTSequence"))
    for index in range(count):
        groups = [*per_frame[index : index + 1], *shared]
        measures = _macro(groups, "PixelMeasuresSequence", header)
        scaling = _macro(groups, "PixelValueTransformationSequence", header)
        may_be_placed = bool(groups) or count == 1
        position = _macro(groups, "PlanePositionSequence", header)
        directions = _macro(groups, "PlaneOrientationSequence", header)
        slope, intercept = (read.number(scaling, f"Rescale{k}") for k in ("Slope", "Intercept"))
        yield Frame(
            source=source,
            index=index if count > 1 else None,
            uid=read.text(header, "SOPInstanceUID"),
            syntax=syntax,
            size=(rows, columns),
            is_colour=is_colour,
            has_lookup=has_lookup,
            position=read.numbers(position, "ImagePositionPatient", 3) if may_be_placed else None,
            orientation=_orientation(directions) if may_be_placed else None,
            pixel_spacing=_pixel_spacing(measures, header),
            thickness=_thickness(measures),
            slope=slope or 1.0,
            intercept=intercept or 0.0,
            is_rescaled=has_lookup or intercept is not None,
            is_inverted=shown_as == "MONOCHROME1",
            values=_stored_values(header, bits),
            windows=_windows(_macro(groups, "FrameVOILUTSequence", header), header),
            marks=_marks(groups, header, index),
            problem=problem,
        )


def _problem(
    source: Source,
    shape: tuple[int, int, int, int],
    bits: int,
    syntax: pydicom.uid.UID,
    file_size: int,
) -> str:
    """Compare what the header claims with the file's size before anything is allocated; empty if
    that is possible."""
    frames, rows, columns, samples = shape
    if rows < 1 or columns < 1:
        return f"{source} is damaged: its picture has {rows} x {columns} pixels."
    if bits > 64:
        return f"{source} is damaged: its values have {bits} bits."
    pixels = frames * rows * columns * samples
    if not syntax.is_encapsulated and not syntax.is_deflated:
        least = pixels * bits // (8 if samples == 1 else 16)  # half, for subsampled colours
        is_possible = least <= file_size
    else:  # each frame has an item of 8 bytes, and empty pictures shrink a thousandfold
        is_possible = frames * 8 <= file_size and pixels * bits // 8 <= 4000 * file_size
    if is_possible:
        return ""
    count = f"{frames} frames" if frames > 1 else "a picture"
    return (
        f"{source} is truncated or damaged: its header gives {count} of {rows} x {columns} pixels, "
        "but the file is too small for that; copy or export it again."
    )


def _macro(groups: list[pydicom.Dataset], keyword: str, header: pydicom.Dataset) -> pydicom.Dataset:
    """A functional group of an enhanced file, of the frame or shared; else the plain header."""
    for group in groups:
        if found := read.items(group, keyword):
            return found[0]
    return header


def _orientation(dataset: pydicom.Dataset) -> np.ndarray | None:
    values = read.numbers(dataset, "ImageOrientationPatient", 6)
    if values is None:
        return None
    directions = values.reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.05 or abs(directions[0] @ directions[1]) > 0.05:
        return None
    return directions / lengths[:, np.newaxis]


def _pixel_spacing(
    measures: pydicom.Dataset, header: pydicom.Dataset
) -> tuple[float, float] | None:
    for dataset, keyword in ((measures, "PixelSpacing"), (header, "ImagerPixelSpacing")):
        values = read.numbers(dataset, keyword, 2)
        if values is not None and values.min() > 0:
            return float(values[0]), float(values[1])
    return None


def _thickness(measures: pydicom.Dataset) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = abs(read.number(measures, keyword) or 0)
        if value > 0:
            return value
    return None


def _stored_values(header: pydicom.Dataset, bits_allocated: int) -> tuple[int, int] | None:
    is_signed = read.number(header, "PixelRepresentation")
    if is_signed is None and bits_allocated >= 32:
        return None  # FloatPixelData and DoubleFloatPixelData
    if read.items(header, "ModalityLUTSequence"):
        return 0, 65535
    bits = min(int(read.number(header, "BitsStored") or bits_allocated), bits_allocated)
    if is_signed:
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1


def _windows(dataset: pydicom.Dataset, header: pydicom.Dataset) -> dict[str, tuple[float, float]]:
    """The windows that the file proposes, (low, high) in the units after rescaling, by name."""
    centers, widths = (read.numbers(dataset, k) for k in ("WindowCenter", "WindowWidth"))
    if centers is None or widths is None:
        return {}
    names = read.strings(dataset, "WindowCenterWidthExplanation")
    windows = {}
    for n, (center, width) in enumerate(zip(centers, widths, strict=False)):
        name = read.without_patient(names[n], header) if n < len(names) else ""
        if width > 0 and np.isfinite([center, width]).all():
            plain = f"window {n + 1} of the file" if len(centers) > 1 else "window of the file"
            name = name if name and name not in windows else plain
            windows[name] = (float(center - width / 2), float(center + width / 2))
    return windows


def _marks(groups: list[pydicom.Dataset], header: pydicom.Dataset, index: int) -> dict[str, Mark]:
    """What can tell frames at the same position apart; only what the file gives."""
    content = _macro(groups, "FrameContentSequence", header)
    cardiac = _macro(groups, "CardiacSynchronizationSequence", header)
    temporal = _macro(groups, "TemporalPositionSequence", header)
    echo, diffusion = (_macro(groups, k, header) for k in ("MREchoSequence", "MRDiffusionSequence"))
    kind = next(
        (m for k in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
         if (m := _macro(groups, k, header)) is not header),
        header,
    )  # fmt: skip
    type_name = "\\".join(read.strings(kind, "FrameType") or read.strings(kind, "ImageType"))
    moment = (
        read.date_seconds(content, "FrameAcquisitionDateTime")
        or read.date_seconds(header, "AcquisitionDateTime")
        or read.seconds(header, "AcquisitionDate", "AcquisitionTime")
    )
    trigger = _first(
        read.number(cardiac, "NominalCardiacTriggerDelayTime"), read.number(header, "TriggerTime")
    )
    reference = read.number(header, "FrameReferenceTime")
    rate = read.number(header, "CineRate") or 0
    frame_time = (read.number(header, "FrameTime") or 0) / 1000 or (1 / rate if rate > 0 else 0)
    found: dict[str, Mark | None] = {
        "temporal position": _first(
            read.number(content, "TemporalPositionIndex"),
            read.number(header, "TemporalPositionIdentifier"),
        ),
        "time offset": read.number(temporal, "TemporalPositionTimeOffset"),
        "echo time": _first(
            read.number(echo, "EffectiveEchoTime"), read.number(header, "EchoTime")
        ),
        "b-value": read.number(diffusion, "DiffusionBValue"),
        "image type": type_name or None,
        "trigger time": trigger / 1000 if trigger is not None else None,
        "frame reference time": reference / 1000 if reference is not None else None,
        "acquisition number": read.number(header, "AcquisitionNumber"),
        "acquisition time": moment,
        "content time": read.seconds(header, "ContentDate", "ContentTime"),
        "instance number": read.number(header, "InstanceNumber"),
        "frame": float(index),
        "cine time": index * frame_time if frame_time > 0 else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
