"""Labels as an RT Structure Set (RTSTRUCT): contours on the slices of a DICOM series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from napari_sam2.io.contours import Contour, contours_of, mask_of
from napari_sam2.io.labels_dicom import series_number, sources_of
from napari_sam2.io.legend import Legend, LegendEntry, colour_of_bytes
from napari_sam2.io.volume import RAS_OF_LPS, ReadError, Volume, WriteError, unread

_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # as the standard has it refer to a study
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_OFF_SLICE = 0.3  # of the distance between slices
_FEW_POINTS = 3
_MANY_FILES = 20_000  # in a folder, among which a series is not looked for


def write_rtstruct(path: Path, labels: Volume, legend: Legend) -> None:
    """Write one region of interest per object that occurs, with its name, colour and id.

    Patient and study are taken from the source's files (`Volume.files`).

    Raises: WriteError without such files, for time series and for labels without any object.
    """
    sources = check_image(labels)
    to_patient, references = RAS_OF_LPS @ labels.affine, _references(labels, sources)
    drawn: dict[int, list[Dataset]] = defaultdict(list)
    for z, picture in enumerate(labels.array):
        picture = np.asarray(picture)
        for object_id in np.unique(picture[picture > 0]).tolist():
            for contour in contours_of(picture == object_id):
                drawn[object_id].append(_contour(contour, z, to_patient, references[z : z + 1]))
    if not drawn:
        raise WriteError("The labels hold no object, so there is nothing to draw contours around.")
    structures = _structure_set(sources)
    for entry in legend:
        if entry.id in drawn:
            _add(structures, entry, drawn[entry.id], sources[0].FrameOfReferenceUID)
    structures.save_as(path, enforce_file_format=True)


def check_image(image: Volume) -> list[Dataset]:
    """The headers of the files of an image on which contours can be drawn.

    Raises: WriteError where that is not so.
    """
    sources = sources_of(image)
    if image.affine is None:
        raise WriteError(
            "The DICOM files of the image do not say where its slices lie, and contours lie in the "
            "patient; write .nii.gz or .seg.nrrd instead."
        )
    return sources


def read_rtstruct(
    path: Path, like: Volume | None = None, pixels: bool = True
) -> tuple[Volume, Legend]:
    """Read the regions of interest of an RT Structure Set as labels (z, y, x) of their numbers;
    where there is a number 0, of the numbers after them.

    Where regions overlap, the smaller one lies on the larger one.

    like: the series that they were drawn on; by default it is looked for in the file's folder and
        the one above.
    pixels: whether contours are filled; else the array must not be read.

    Raises: ReadError where that series is not there, or contours lie between its slices.
    """
    header = _read(path)
    like = _series_of(header, path) if like is None else like
    if like.affine is None or like.axes not in ("zyx", "yx"):
        raise ReadError(f"{path} lies in a patient, and the image does not; give the DICOM series.")
    ids, legend = _ids(header), _legend_of(header)
    dtype = np.min_scalar_type(max(ids.values(), default=0))
    labels = replace(
        like, array=unread(like.shape, dtype), source=path.name, pyramid=(), windows={}
    )
    if not pixels:
        return labels, legend
    from_patient = np.linalg.inv(RAS_OF_LPS @ like.affine)
    _, height, width = like.shape
    masks = {
        ids[int(region.ReferencedROINumber)]: {
            z: mask_of(contours, (height, width))
            for z, contours in _by_slice(region, from_patient, like, path).items()
        }
        for region in header.get("ROIContourSequence", [])
    }
    sizes = {i: sum(int(mask.sum()) for mask in slices.values()) for i, slices in masks.items()}
    array = np.zeros(like.shape, dtype)
    for object_id in sorted(sizes, key=lambda one: -sizes[one]):
        for z, mask in masks[object_id].items():
            array[z][mask] = object_id
    notes = labels.notes
    if np.count_nonzero(array) < sum(sizes.values()):
        notes = (*notes, "regions overlap, and the smaller ones lie on the larger ones")
    return replace(labels, array=array, notes=notes), legend


def rtstruct_legend(path: Path) -> Legend:
    """Names and colours of the regions, by the ids that `read_rtstruct` gives."""
    return _legend_of(_read(path))


# ---- out


def _structure_set(sources: list[Dataset]) -> FileDataset:
    """One without regions, that refers to a series."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    # A contour may take more bytes than explicit value representations can tell.
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    now, first = datetime.now(), sources[0]
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID, made.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    for keyword in _STUDY:
        setattr(made, keyword, str(first.get(keyword, "")))
    made.Modality, made.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    made.SeriesNumber, made.InstanceNumber = series_number(first), 1
    made.SeriesDescription, made.OperatorsName = "Contours by napari-sam2", ""
    made.Manufacturer = made.ManufacturerModelName = "napari-sam2"
    made.SoftwareVersions, made.DeviceSerialNumber = version("napari-sam2"), "0"
    made.FrameOfReferenceUID = first.FrameOfReferenceUID
    made.PositionReferenceIndicator = ""
    made.StructureSetLabel = "napari-sam2"
    made.StructureSetDate, made.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    series = _item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=[_reference(source) for source in sources],
    )
    study = _item(
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    frame = _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    made.RTROIObservationsSequence = []
    made.ApprovalStatus = "UNAPPROVED"
    return made


def _add(structures: Dataset, entry: LegendEntry, contours: list[Dataset], frame: str) -> None:
    number = entry.id
    structures.StructureSetROISequence.append(
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=frame,
            ROIName=entry.name.replace("\\", "/")[:64],
            ROIGenerationAlgorithm="SEMIAUTOMATIC",
        )
    )
    region = _item(ReferencedROINumber=number, ContourSequence=contours)
    if entry.bytes:
        region.ROIDisplayColor = list(entry.bytes)
    structures.ROIContourSequence.append(region)
    structures.RTROIObservationsSequence.append(
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIInterpretedType="",
            ROIInterpreter="",
        )
    )


def _contour(
    contour: Contour, z: int, to_patient: NDArray[np.float64], references: list[Dataset]
) -> Dataset:
    y, x = contour.T
    points = (to_patient @ [x, y, np.full(len(x), float(z)), np.ones(len(x))])[:3].T
    made = _item(
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.3f}" for value in points.ravel()],
    )
    if references:
        made.ContourImageSequence = references
    return made


def _references(labels: Volume, sources: list[Dataset]) -> list[Dataset]:
    """To the image of each slice; none where it is not known which frame of a file that is."""
    slices = len(labels.array)
    if len(labels.frames) == slices:
        by_file = dict(zip(dict.fromkeys(labels.files), sources, strict=True))
        images = zip(labels.files, labels.frames, strict=True)
        return [_reference(by_file[file], ReferencedFrameNumber=frame) for file, frame in images]
    return [_reference(source) for source in sources] if len(sources) == slices else []


def _reference(source: Dataset, **frame: int) -> Dataset:
    return _item(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        **frame,
    )


def _item(**fields: Any) -> Dataset:
    item = Dataset()
    for keyword, value in fields.items():
        setattr(item, keyword, value)
    return item


# ---- in


def _read(path: Path) -> Dataset:
    """All of a file; pydicom says nothing of one that was cut off."""
    header = pydicom.dcmread(path)
    if "RTROIObservationsSequence" not in header:  # the last that must be there
        raise ReadError(f"{path} is not complete: it was cut off, or its program left parts out.")
    return header


def _series_of(header: Dataset, path: Path) -> Volume:
    """The series that contours were drawn on, from the folder of their file or the one above."""
    from napari_sam2.io.dicom import find_series

    uids = set(_referenced_series(header))
    for folder in (path.parent, path.parent.parent):
        if sum(1 for _ in islice(folder.rglob("*"), _MANY_FILES)) == _MANY_FILES:
            continue
        try:
            series = [one for one in find_series(folder) if one.info.uid in uids]
        except ReadError:
            continue
        if series:
            return max(series, key=lambda one: one.info.shape).read()
    raise ReadError(
        f"{path} holds contours on a DICOM series, which lies neither in the same folder nor in "
        "the one above. Put the file beside its images, or give them (--like)."
    )


def _referenced_series(header: Dataset) -> Iterable[str]:
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            for series in study.get("RTReferencedSeriesSequence", []):
                yield str(series.SeriesInstanceUID)


def _by_slice(
    region: Dataset, from_patient: NDArray[np.float64], like: Volume, path: Path
) -> dict[int, list[Contour]]:
    """The closed contours of a region in pixels, by the slice that they lie on."""
    found: dict[int, list[Contour]] = defaultdict(list)
    for one in region.get("ContourSequence", []):
        if one.get("ContourGeometricType", "") not in _CLOSED:
            continue
        points = np.array(one.ContourData, float).reshape(-1, 3)
        if len(points) < _FEW_POINTS:
            continue
        x, y, z = (from_patient @ [*points.T, np.ones(len(points))])[:3]
        at = round(float(z.mean()))
        if np.abs(z - at).max() > _OFF_SLICE or not 0 <= at < like.shape[0]:
            raise ReadError(
                f"{path} has contours that do not lie on the slices of {like.source}; give the "
                "series that they were drawn on."
            )
        found[at].append(np.stack([y, x], axis=1))
    return found


def _ids(header: Dataset) -> dict[int, int]:
    """Number of a region -> id."""
    numbers = [int(roi.ROINumber) for roi in header.get("StructureSetROISequence", [])]
    return {number: number + (0 in numbers) for number in numbers}


def _legend_of(header: Dataset) -> Legend:
    ids = _ids(header)
    colours = {
        int(region.ReferencedROINumber): colour_of_bytes(region.ROIDisplayColor)
        for region in header.get("ROIContourSequence", [])
        if region.get("ROIDisplayColor")
    }
    entries = [
        LegendEntry(ids[number], str(roi.get("ROIName", "")), colours.get(number))
        for number, roi in zip(ids, header.get("StructureSetROISequence", []), strict=True)
    ]
    return tuple(sorted(entries, key=lambda entry: entry.id))
