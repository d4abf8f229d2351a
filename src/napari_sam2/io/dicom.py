"""DICOM in: a folder, or the series that one file belongs to; slices in order of position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, pixel_array

from napari_sam2.io.volume import ReadError, Volume, spacing_of

_NOT_IMAGES = {
    "SEG",
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "RTRECORD",
    "PR",
    "SR",
    "KO",
    "REG",
    "FID",
    "RWV",
    "DOC",
}
_PLUGINS = {
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
    "RLE": "pylibjpeg pylibjpeg-rle",
}


@dataclass(frozen=True, eq=False)
class _Slice:
    """One picture: a file, or a frame of a multi-frame file. Lengths in mm, directions in LPS."""

    path: Path
    frame: int | None
    size: tuple[int, int]
    order: tuple[float, ...]  # its place in time, where several share a position
    position: np.ndarray | None
    orientation: (
        np.ndarray | None
    )  # (2, 3): direction of a row (growing x) and of a column (growing y)
    pixel_spacing: tuple[float, float] | None  # between rows (y), between columns (x)
    thickness: float | None
    slope: float
    intercept: float
    values: tuple[int, int] | None  # smallest and largest value that can be stored; None for floats
    is_colour: bool


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark after its 128-byte preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, volume: int | None = None, series: str | None = None) -> Volume:
    """Read one series as a volume, in modality units (HU for CT), with its place in the patient.

    path: a folder, searched with its subfolders, or any file of the series. series: its number in
    the list that the error shows, or its SeriesInstanceUID. volume: which, where a series holds
    several at the same positions (time points).

    The array's z grows along the normal of the slices. Missing, doubled and unequally spaced slices
    and a tilted gantry are told in `Volume.notes`.

    Raises: ReadError when there is no image, a choice is needed, slices do not fit together or
    cannot be decompressed.
    """
    name, headers = _choose_series(path, series)
    slices = [s for file, header in headers for s in _slices(file, header)]
    _check_alike(name, slices)
    notes: list[str] = []
    if all(s.position is not None and s.orientation is not None for s in slices):
        slices = _choose_volume(name, slices, volume, notes)
        affine = _affine(slices, notes)
        spacing, unit = spacing_of(affine), "mm"
    else:
        slices = sorted(slices, key=lambda s: s.order)
        affine = None
        in_plane = slices[0].pixel_spacing
        spacing, unit = (1.0, *(in_plane or (1.0, 1.0))), "mm" if in_plane else "pixel"
        if len(slices) > 1:
            notes.append("The files give no positions; slices are in the order of their numbers.")
    return Volume(
        array=_pixels(slices),
        spacing=spacing,
        unit=unit,
        affine=affine,
        source=name,
        axes="zyx" if affine is not None or len(slices) > 1 else "yx",
        notes=tuple(notes),
    )


# ---- which files


def _choose_series(
    path: Path, wanted: str | None
) -> tuple[str, list[tuple[Path, pydicom.Dataset]]]:
    """The name and the files of the one series that is meant."""
    is_folder = path.is_dir()
    own = None
    if not is_folder:
        own = _header(path)
        if own is None:
            raise ReadError(f"{path} is not a DICOM image.")
        if _kind(own) in _NOT_IMAGES or "Rows" not in own:
            raise ReadError(
                f"{path} is a DICOM {_kind(own) or 'object'}, not an image; give the image's "
                "folder."
            )
    found: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    for file in sorted(path.rglob("*") if is_folder else path.parent.iterdir()):
        header = own if file == path else _header(file, damaged_is_error=is_folder)
        if header is not None and _kind(header) not in _NOT_IMAGES and "Rows" in header:
            found[str(header.get("SeriesInstanceUID", ""))].append((file, header))
    if own is not None:
        return path.name, found[str(own.get("SeriesInstanceUID", ""))]
    if not found:
        raise ReadError(f"The folder {path} holds no DICOM images.")
    ordered = sorted(
        found.items(), key=lambda item: (_number(item[1][0][1], "SeriesNumber"), item[1][0][0])
    )
    if wanted is None and len(ordered) == 1:
        return path.name, ordered[0][1]
    for number, (uid, headers) in enumerate(ordered, start=1):
        if wanted in (str(number), uid):
            return f"{path.name}, series {number} of {len(ordered)}", headers
    listed = ", ".join(
        _describe(n, headers, path) for n, (_, headers) in enumerate(ordered[:12], start=1)
    )
    more = f" and {len(ordered) - 12} more" if len(ordered) > 12 else ""
    asked = f"there is no series {wanted}; " if wanted is not None else ""
    raise ReadError(
        f"{path} holds {len(ordered)} series: {asked}choose one with --series: {listed}{more}."
    )


def _header(path: Path, damaged_is_error: bool = True) -> pydicom.Dataset | None:
    """A DICOM file's header, or None for any other file."""
    if not path.is_file():
        return None
    marked = is_dicom(path)
    if not marked and path.suffix.lower() not in (".dcm", ".ima"):
        return None
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=not marked)
        if "SOPClassUID" in header or "Rows" in header:
            return header
        problem = "it holds no DICOM object"
    except Exception as error:  # pydicom raises many kinds on damaged files
        problem = " ".join(str(error).split())[:120]
    if damaged_is_error:
        raise ReadError(
            f"{path} is damaged ({problem}); copy it again, or move it out of the folder."
        )
    return None


def _describe(number: int, headers: list[tuple[Path, pydicom.Dataset]], root: Path) -> str:
    file, header = headers[0]
    description = " ".join(str(header.get("SeriesDescription", "")).split())
    count = len(headers)
    where = f" in {file.parent.relative_to(root)}" if file.parent != root else ""
    return f"{number} ({_kind(header)} {description!r}, {count} file{'s' * (count > 1)}{where})"


def _kind(header: pydicom.Dataset) -> str:
    return str(header.get("Modality", "") or "")


# ---- from headers to slices


def _slices(path: Path, header: pydicom.Dataset) -> Iterable[_Slice]:
    """The file's one picture, or all of its frames."""
    frames = int(_number(header, "NumberOfFrames") or 1)
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    for frame in range(frames):
        groups = [
            g
            for g in (per_frame[frame] if frame < len(per_frame) else None, shared)
            if g is not None
        ]
        measures = _macro(groups, "PixelMeasuresSequence", header)
        values = _macro(groups, "PixelValueTransformationSequence", header)
        is_enhanced = bool(groups)
        position_source = _macro(groups, "PlanePositionSequence", header)
        position = (
            position_source.get("ImagePositionPatient") if is_enhanced or frames == 1 else None
        )
        orientation = _macro(groups, "PlaneOrientationSequence", header).get(
            "ImageOrientationPatient"
        )
        in_plane = measures.get("PixelSpacing") or header.get("ImagerPixelSpacing")
        time = _macro(groups, "FrameContentSequence", header)
        bits, signed = (
            int(_number(header, "BitsStored") or 16),
            bool(header.get("PixelRepresentation", 0)),
        )
        is_float = "FloatPixelData" in header or "DoubleFloatPixelData" in header
        slope = _number(values, "RescaleSlope", 1.0)
        yield _Slice(
            path=path,
            frame=frame if frames > 1 else None,
            size=(int(header.Rows), int(header.Columns)),
            order=(
                _number(time, "TemporalPositionIndex")
                or _number(header, "TemporalPositionIdentifier"),
                _number(header, "AcquisitionNumber"),
                _number(header, "InstanceNumber"),
                frame,
            ),
            position=_numbers(position, 3),
            orientation=_directions(path, orientation),
            pixel_spacing=_pair(in_plane),
            thickness=_number(measures, "SpacingBetweenSlices")
            or _number(measures, "SliceThickness")
            or None,
            slope=slope or 1.0,
            intercept=_number(values, "RescaleIntercept"),
            values=None
            if is_float
            else (-(1 << bits - 1), (1 << bits - 1) - 1)
            if signed
            else (0, (1 << bits) - 1),
            is_colour=int(_number(header, "SamplesPerPixel") or 1) > 1
            or header.get("PhotometricInterpretation") == "PALETTE COLOR",
        )


def _macro(groups: list[Any], keyword: str, header: pydicom.Dataset) -> pydicom.Dataset:
    """A functional group of an enhanced file, of the frame or shared; else the plain header."""
    for group in groups:
        if group.get(keyword):
            return group[keyword][0]
    return header


def _number(dataset: pydicom.Dataset, keyword: str, default: float = 0.0) -> float:
    try:
        number = float(dataset.get(keyword))
    except (TypeError, ValueError):
        return default
    return number if np.isfinite(number) else default


def _numbers(values: Any, count: int) -> np.ndarray | None:
    try:
        array = np.array([float(v) for v in values], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def _pair(values: Any) -> tuple[float, float] | None:
    array = _numbers(values, 2)
    return (float(array[0]), float(array[1])) if array is not None and (array > 0).all() else None


def _directions(path: Path, values: Any) -> np.ndarray | None:
    numbers = _numbers(values, 6)
    if numbers is None:
        return None
    directions = numbers.reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    if np.abs(lengths - 1).max() > 0.05 or abs(directions[0] @ directions[1]) > 0.05:
        raise ReadError(
            f"{path} gives an orientation that is none (ImageOrientationPatient "
            f"{numbers.tolist()})."
        )
    return directions / lengths[:, np.newaxis]


# ---- from slices to a volume


def _check_alike(name: str, slices: list[_Slice]) -> None:
    sizes = sorted({s.size for s in slices})
    if len(sizes) > 1 or len({s.is_colour for s in slices}) > 1:
        found = ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:5])
        raise ReadError(
            f"The series {name} mixes pictures of different sizes or colours ({found}); move the "
            "ones you want to a folder."
        )
    directions = [s.orientation for s in slices if s.orientation is not None]
    if any(np.abs(d - directions[0]).max() > 0.01 for d in directions):
        raise ReadError(
            f"The series {name} mixes slices of different orientations (a localizer?); "
            "move the ones you want to a folder."
        )
    if len({s.pixel_spacing for s in slices}) > 1:
        raise ReadError(
            f"The series {name} mixes different pixel spacings; move the slices you want to a "
            "folder."
        )


def _depth(one: _Slice) -> float:
    """How far along the normal a slice lies, in mm."""
    assert one.position is not None and one.orientation is not None
    return float(np.cross(*one.orientation) @ one.position)


def _choose_volume(
    name: str, slices: list[_Slice], volume: int | None, notes: list[str]
) -> list[_Slice]:
    """Slices of one volume, by position; doubled ones are left out."""
    slices = sorted(slices, key=lambda s: (_depth(s), s.order))
    tolerance = 1e-2 * min(slices[0].pixel_spacing or (1.0, 1.0))
    stacks = [[slices[0]]]
    for one in slices[1:]:
        if _depth(one) - _depth(stacks[-1][0]) <= tolerance:
            stacks[-1].append(one)
        else:
            stacks.append([one])
    counts = {len(stack) for stack in stacks}
    repeats = counts.pop() if len(counts) == 1 else 1
    stacks = [sorted(stack, key=lambda s: s.order) for stack in stacks]
    if repeats > 1:
        if volume is None:
            raise ReadError(
                f"The series {name} holds {repeats} volumes at the same place (time points, say); "
                f"choose one with --volume 0 to --volume {repeats - 1}."
            )
        if not 0 <= volume < repeats:
            raise ReadError(
                f"The series {name} holds {repeats} volumes; there is no --volume {volume}, use 0 "
                f"to {repeats - 1}."
            )
        return [stack[volume] for stack in stacks]
    if volume not in (None, 0):
        raise ReadError(f"The series {name} holds a single volume; leave out --volume {volume}.")
    doubled = sum(len(stack) - 1 for stack in stacks)
    if doubled:
        notes.append(
            f"{doubled} doubled slice{'s' * (doubled > 1)} left out: their positions occur twice."
        )
    return [stack[0] for stack in stacks]


def _affine(slices: list[_Slice], notes: list[str]) -> np.ndarray:
    """(4, 4), voxel (x, y, z) -> RAS mm, with a note on positions that do not fit it."""
    first = slices[0]
    assert first.position is not None and first.orientation is not None
    along_row, along_column = first.orientation
    normal = np.cross(along_row, along_column)
    between_rows, between_columns = first.pixel_spacing or (1.0, 1.0)
    if first.pixel_spacing is None:
        notes.append("The files give no pixel spacing; it is taken as 1 mm.")
    if len(slices) == 1:
        step = normal * (first.thickness or 1.0)
    else:
        positions = np.array([s.position for s in slices])
        gaps = np.diff(positions @ normal)
        usual = float(np.median(gaps))
        if gaps.max() - gaps.min() > 0.05 * usual:
            where = int(gaps.argmax())
            missing = round(float(gaps[where]) / usual) - 1
            what = "missing" if missing else "unequally spaced"
            notes.append(
                f"Slices are {what}: {gaps[where]:.2f} mm lie between z = {where} and {where + 1}, "
                "elsewhere mostly "
                f"{usual:.2f} mm; positions beyond are not exact."
            )
            step = (positions[-1] - positions[0]) * usual / gaps.sum()
        else:
            step = (positions[-1] - positions[0]) / (len(slices) - 1)
        tilt = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        if tilt > 0.5:
            notes.append(
                f"The gantry is tilted by {tilt:.1f} degrees; the labels' affine holds it as shear."
            )
    affine = np.eye(4)
    affine[:3, 0] = along_row * between_columns
    affine[:3, 1] = along_column * between_rows
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's LPS to RAS


def _pixels(slices: list[_Slice]) -> np.ndarray:
    """(z, y, x) in modality units, or (z, y, x, 3) uint8 for colour."""
    out: np.ndarray | None = None
    is_scaled = any(s.slope != 1 or s.intercept != 0 for s in slices)
    dtype = _value_type(slices)
    for z, one in enumerate(slices):
        data = _decode(one)
        if data.shape[:2] != one.size:
            raise ReadError(
                f"{one.path} is damaged: its pixels do not fit its {one.size[0]} x {one.size[1]} "
                "picture."
            )
        if is_scaled and not one.is_colour:
            data = (data * one.slope + one.intercept).astype(dtype)
        if out is None:
            out = np.empty((len(slices), *data.shape), dtype=data.dtype if one.is_colour else dtype)
        out[z] = data
    assert out is not None
    return out


def _value_type(slices: list[_Slice]) -> np.dtype:
    """The smallest type that holds every value a slice can have after its slope and intercept."""
    low, high = 0.0, 0.0
    for one in slices:
        if one.values is None or one.slope % 1 or one.intercept % 1:
            return np.dtype(np.float32)
        ends = [value * one.slope + one.intercept for value in one.values]
        low, high = min(low, *ends), max(high, *ends)
    if low >= 0:
        return np.min_scalar_type(int(high))
    return np.promote_types(np.min_scalar_type(int(low)), np.min_scalar_type(-int(high) - 1))


def _decode(one: _Slice) -> np.ndarray:
    """(rows, columns) as stored, or (rows, columns, 3) uint8."""
    dataset = pydicom.dcmread(one.path, force=True)
    try:
        data = pixel_array(dataset, index=one.frame)
    except (RuntimeError, NotImplementedError, AttributeError, ValueError) as error:
        raise _decode_error(one.path, dataset, error) from error
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        data = apply_color_lut(data, dataset)
        if data.dtype == np.uint16:
            data = (data >> 8).astype(np.uint8)
    return data[..., :3] if one.is_colour else data


def _decode_error(path: Path, dataset: pydicom.Dataset, error: Exception) -> ReadError:
    """Name the decoder that is missing; else say that the pixels are damaged."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_compressed and "missing dependencies" in str(error):
        for family, packages in _PLUGINS.items():
            if family in syntax.name:
                return ReadError(
                    f"{path} is compressed with {syntax.name}, which needs a decoder: pip install "
                    f"{packages}."
                )
        return ReadError(
            f"{path} is compressed with {syntax.name}, for which there is no decoder here."
        )
    reason = " ".join(str(error).split())[:150]
    return ReadError(
        f"The pixels of {path} cannot be read ({reason}); copy or export the file again."
    )
