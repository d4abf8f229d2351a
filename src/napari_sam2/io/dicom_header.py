"""The part of a DICOM file before its pixels: what is read of it, and its values, with care."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.tag import Tag
from pydicom.uid import MediaStorageDirectoryStorage

from napari_sam2.io.dicom_files import Source, check_inflated_size
from napari_sam2.io.guard import reason_of
from napari_sam2.io.kinds import is_marked
from napari_sam2.io.volume import ReadError

_NOT_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PR", "SR", "KO", "REG", "FID",
               "RWV", "DOC"}  # fmt: skip
_KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription",
    "SeriesNumber", "ImageType", "PatientName", "PatientID", "PatientWeight",
    "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime",
    "ContentDate", "ContentTime",
    "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "TriggerTime",
    "EchoTime", "DiffusionBValue", "FrameTime", "CineRate",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "SliceThickness", "SpacingBetweenSlices",
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "TotalPixelMatrixColumns",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "WindowCenterWidthExplanation",
    "Units", "DecayCorrection", "CorrectedImage", "FrameReferenceTime", "ActualFrameDuration",
    "RadiopharmaceuticalInformationSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_TAGS: list[Any] = [Tag(keyword) for keyword in _KEYWORDS]


class DamagedFile(ReadError):
    """Nothing of a DICOM file can be read; others beside it may be whole."""


def read_header(source: Source, file: BinaryIO, size: int) -> pydicom.Dataset | None:
    """What is needed of the header of a DICOM file of `size` bytes, with its transfer syntax in
    `file_meta`; None for a file of another kind.

    Raises: DamagedFile; ReadError for a file that is not safe.
    """
    marked = is_marked(file.read(132))
    if not marked and not source.name.lower().endswith((".dcm", ".ima")):
        return None
    try:
        check_inflated_size(source, file, size)
        file.seek(0)
        header = pydicom.dcmread(
            file, stop_before_pixels=True, force=not marked, specific_tags=_TAGS
        )
        if header.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
            return None  # a DICOMDIR, as every disc has one
        if "SOPClassUID" in header or "Rows" in header:
            if not header.file_meta.get("TransferSyntaxUID"):
                is_implicit, is_little = header.original_encoding
                header.file_meta.TransferSyntaxUID = (
                    pydicom.uid.ImplicitVRLittleEndian
                    if is_implicit
                    else pydicom.uid.ExplicitVRLittleEndian
                    if is_little
                    else pydicom.uid.ExplicitVRBigEndian
                )
            if not header.file_meta.TransferSyntaxUID.is_transfer_syntax:
                problem = "its transfer syntax is none that DICOM knows"
            elif _should_have_size(header) and not _has_size(header):
                problem = "it does not say how large its picture is"
            else:
                return header
        else:
            problem = "it holds no DICOM object"
    except ReadError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        problem = reason_of(error)
    raise DamagedFile(f"{source} is damaged ({problem}); copy or export it again.")


def is_image(header: pydicom.Dataset) -> bool:
    """Whether the file is a picture, not a segmentation, a report or a plan."""
    return modality(header) not in _NOT_IMAGES and _has_size(header)


def _has_size(header: pydicom.Dataset) -> bool:
    return "Rows" in header and "Columns" in header


def _should_have_size(header: pydicom.Dataset) -> bool:
    """Whether the file says that it is an image of a kind that DICOM knows, in either place."""
    said = text(header, "SOPClassUID"), text(header.file_meta, "MediaStorageSOPClassUID")
    return any("Image Storage" in pydicom.uid.UID(uid).name for uid in said)


def modality(header: pydicom.Dataset) -> str:
    """CT, MR, PT, ...; empty where the file does not say."""
    return text(header, "Modality")


def description(header: pydicom.Dataset) -> str:
    """The series' description, unless someone typed the patient's name or number into it."""
    return without_patient(text(header, "SeriesDescription"), header)


def without_patient(words: str, header: pydicom.Dataset) -> str:
    """The same words, or none where they hold a part of the patient's name or the patient's id."""
    for keyword in ("PatientName", "PatientID"):
        element = header.get_item(keyword)
        raw = getattr(element, "value", None) or b""
        known = raw.decode("latin-1") if isinstance(raw, bytes) else str(raw)
        for part in re.split(r"[\^=\s,\0]+", known.lower()):
            if len(part) > 2 and part in words.lower():
                return ""
    return words


# ---- values, or None or a default where they are missing or no such thing


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # a value that its type does not allow
        return ""
    return "" if value is None else " ".join(str(value).split())


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    try:
        value = float(dataset.get(keyword))
    except Exception:
        return None
    return value if np.isfinite(value) else None


def numbers(dataset: pydicom.Dataset, keyword: str, count: int | None = None) -> np.ndarray | None:
    """All values of a field as float64, (count,); None if they are fewer, more, or no numbers."""
    try:
        value = dataset.get(keyword)
        array = np.array([float(v) for v in _as_list(value)], dtype=np.float64)
    except Exception:
        return None
    fits = len(array) == count if count is not None else len(array) > 0
    return array if fits and np.isfinite(array).all() else None


def strings(dataset: pydicom.Dataset, keyword: str) -> list[str]:
    """The values of a field that holds none, one or several."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return []
    return [" ".join(str(v).split()) for v in _as_list(value)]


def _as_list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def items(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """The items of a sequence; none where it is missing or damaged."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return []
    return list(value) if isinstance(value, pydicom.Sequence) else []


def seconds(dataset: pydicom.Dataset, date_keyword: str, time_keyword: str) -> float | None:
    """A date and a time in two fields as seconds since the year 1; the date counts as 0 if it is
    missing."""
    clock = re.fullmatch(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", text(dataset, time_keyword))
    if clock is None:
        return None
    day = _day(text(dataset, date_keyword)) or 0
    hours, minutes, rest = (float(part or 0) for part in clock.groups())
    return day * 86400.0 + hours * 3600 + minutes * 60 + rest


def date_seconds(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """A field with date and time as seconds since the year 1."""
    moment = re.match(r"(\d{8})(\d\d)(\d\d)(\d\d(?:\.\d*)?)", text(dataset, keyword))
    day = _day(moment[1]) if moment else None
    if moment is None or day is None:
        return None
    return day * 86400.0 + float(moment[2]) * 3600 + float(moment[3]) * 60 + float(moment[4])


def _day(digits: str) -> int | None:
    try:
        return date.fromisoformat(digits.replace(".", "")).toordinal()
    except ValueError:
        return None
