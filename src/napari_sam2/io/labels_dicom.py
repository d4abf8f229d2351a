"""Labels as a DICOM segmentation (SEG) that refers to the series it was made on."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from napari_sam2.io.guard import reason_of
from napari_sam2.io.legend import Legend, LegendEntry, colour_of_bytes
from napari_sam2.io.volume import RAS_OF_LPS, ReadError, Volume, WriteError, spacing_of

_TRACKING_ID = "napari-sam2 object {}"  # keeps the ids, for segments are numbered without gaps
_MOST_SEGMENTS = 65535
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
_KINDS = {
    pydicom.uid.SegmentationStorage: "DICOM SEG",
    pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.66.7"): "DICOM SEG",  # Label Map Segmentation
    pydicom.uid.RTStructureSetStorage: "RTSTRUCT",
}
_TOLERANCE = 0.1  # of a voxel


def write_seg(path: Path, labels: Volume, legend: Legend) -> None:
    """Write one binary segment per object that occurs, with its name and colour.

    Patient and study are taken from the source's files (`Volume.files`).

    Raises: WriteError without such files, for time series and for labels without any object.
    """
    import highdicom
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    sources = sources_of(labels)
    values, numbers = np.unique(labels.array, return_inverse=True)
    numbers = numbers.reshape(labels.array.shape).astype(np.uint16)
    if values[0] != 0:
        numbers += 1
    named = {entry.id: entry for entry in legend}
    present = [named[i] for i in values.tolist() if i]
    if not 1 <= len(present) <= _MOST_SEGMENTS:
        raise WriteError(
            f"A DICOM segmentation holds 1 to {_MOST_SEGMENTS} objects, and these labels have "
            f"{len(present)}."
        )
    software = version("napari-sam2")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="napari-sam2", family=codes.DCM.ArtificialIntelligence, version=software
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=entry.name.replace("\\", "/")[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type="SEMIAUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=highdicom.UID(),
            tracking_id=_TRACKING_ID.format(entry.id),
            display_color=CIELabColor.from_rgb(*entry.bytes) if entry.bytes else None,
        )
        for number, entry in enumerate(present, start=1)
    ]
    is_multiframe = "NumberOfFrames" in sources[0]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=_placed(numbers, labels, sources[0]) if is_multiframe else numbers,
            segmentation_type="BINARY",
            segment_descriptions=segments,
            series_instance_uid=highdicom.UID(),
            series_number=series_number(sources[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="napari-sam2",
            manufacturer_model_name="napari-sam2",
            software_versions=software,
            device_serial_number="0",
            specific_character_set="ISO_IR 192",  # UTF-8, for the names of objects
            content_label="SEGMENTATION",
            content_description="Labels by napari-sam2",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WriteError(
            f"A DICOM segmentation cannot refer to this series ({reason_of(error)}); write .nii.gz "
            "instead."
        ) from error
    segmentation.SeriesDescription = "Segmentation by napari-sam2"
    segmentation.save_as(path)


def read_seg(path: Path, like: Volume | None = None) -> tuple[Volume, Legend]:
    """Read a DICOM segmentation as labels (z, y, x) with names and colours.

    Objects get the ids that `write_seg` was given, else the numbers of the segments.

    like: a volume of the same patient space, on whose slices the labels are put; by default they
        cover the slices of the file that have segments.

    Raises: ReadError where segments overlap, lie on no common grid, or not on the slices of `like`.
    """
    import highdicom

    segmentation = highdicom.seg.segread(path)
    try:
        volume = segmentation.get_volume(combine_segments=True, dtype=np.uint16)
    except (RuntimeError, ValueError) as error:
        raise ReadError(
            f"{path} cannot be read as labels ({reason_of(error)}); segments that overlap, or that "
            "lie on unevenly spaced slices, do not fit into one array."
        ) from error
    numbers, affine = volume.array, RAS_OF_LPS @ volume.affine[:, [2, 1, 0, 3]]
    if np.linalg.det(affine[:3, :3]) < 0:  # z grows along the normal, as in images
        affine[:3, 3] += affine[:3, 2] * (len(numbers) - 1)
        affine[:3, 2] *= -1
        numbers = numbers[::-1]
    ids, legend = _segments(segmentation)
    lookup = np.zeros(max(ids, default=0) + 1, np.int64)
    for number, object_id in ids.items():
        lookup[number] = object_id
    array = lookup[numbers].astype(np.min_scalar_type(int(lookup.max())))
    labels = Volume(array, spacing_of(affine), "mm", affine, path.name)
    return (labels if like is None else _on_slices(path, labels, like)), legend


def seg_legend(path: Path) -> Legend:
    """Names and colours of a DICOM segmentation's objects, by the ids that `read_seg` gives."""
    import highdicom

    return _segments(highdicom.seg.segread(path, lazy_frame_retrieval=True))[1]


def labels_kind(path: Path) -> str | None:
    """ "DICOM SEG" or "RTSTRUCT"; None where a file is neither."""
    if not path.is_file():
        return None
    try:  # of the head alone, for the rest may be a bomb
        head = pydicom.filereader.read_file_meta_info(path)
    except Exception:  # anything but DICOM
        return None
    return _KINDS.get(head.get("MediaStorageSOPClassUID"))


def sources_of(image: Volume) -> list[pydicom.Dataset]:
    """The headers of the files of an image's slices, or of the one that holds them all.

    image: the image or its labels.

    Raises: WriteError where a segmentation cannot refer to them.
    """
    if image.axes.replace("c", "") not in ("zyx", "yx"):
        raise WriteError(
            "A DICOM segmentation holds one volume; write the time points one by one, or as "
            ".nii.gz."
        )
    files = list(dict.fromkeys(image.files))
    if not files:
        raise WriteError(
            "A DICOM segmentation refers to the series it was made on, and this image was not read "
            "from a DICOM folder; write .nii.gz or .seg.nrrd instead."
        )
    slices = image.shape[-3]
    if len(files) not in (1, slices):
        raise WriteError(
            f"The series has {slices} slices in {len(files)} files, to which a "
            "DICOM segmentation cannot refer; write .nii.gz instead."
        )
    try:
        headers: list[pydicom.Dataset] = [
            pydicom.dcmread(file, stop_before_pixels=True) for file in files
        ]
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise WriteError(
            f"The DICOM files of the image cannot be read any more ({error}); open it again."
        ) from error
    for header in headers:
        for keyword in _MAY_BE_EMPTY:
            header.setdefault(keyword, "")
        # Anonymizers may empty these, but the head of the file has them once more.
        header.SOPClassUID = header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID
        header.SOPInstanceUID = (
            header.get("SOPInstanceUID") or header.file_meta.MediaStorageSOPInstanceUID
        )
        for needed in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            if not header.get(needed):
                raise WriteError(
                    f"The DICOM files of the image have no {needed}, by which a segmentation "
                    "refers to them; write .nii.gz or .seg.nrrd instead."
                )
    return headers


def _placed(numbers: np.ndarray, labels: Volume, source: pydicom.Dataset) -> Any:
    """The array with its place in the patient, so that its slices find the frames of one file."""
    import highdicom

    if labels.affine is None:
        raise ValueError("it gives no positions")
    return highdicom.Volume(
        array=numbers,
        affine=(RAS_OF_LPS @ labels.affine)[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=source.FrameOfReferenceUID,
    )


def series_number(source: pydicom.Dataset) -> int:
    """Of a series that is made from another one."""
    return int(source.get("SeriesNumber") or 0) + 1000


def _segments(segmentation: Any) -> tuple[dict[int, int], Legend]:
    """Segment number -> id, and what the segments are called."""
    from highdicom.color import CIELabColor

    ids, entries = {}, []
    for number in segmentation.segment_numbers:
        segment = segmentation.get_segment_description(number)
        match = re.fullmatch(_TRACKING_ID.format(r"(\d+)"), segment.get("TrackingID", ""))
        ids[number] = int(match[1]) if match else number
        lab = segment.get("RecommendedDisplayCIELabValue")
        colour = None
        if lab:
            colour = colour_of_bytes(CIELabColor.from_dicom_value(lab).to_rgb(clip=True))
        entries.append(LegendEntry(ids[number], str(segment.SegmentLabel), colour))
    return ids, tuple(sorted(entries, key=lambda entry: entry.id))


def _on_slices(path: Path, labels: Volume, like: Volume) -> Volume:
    """The labels in an array of the shape of an image on whose slices they lie."""
    if like.affine is None or labels.affine is None or like.axes not in ("zyx", "yx"):
        raise ReadError(f"{path} lies in a patient, and the image does not; give the DICOM series.")
    to_like = np.linalg.inv(like.affine) @ labels.affine
    depth, height, width = labels.array.shape
    exact = to_like[2, 2] * np.arange(depth) + to_like[2, 3], to_like[1, 3], to_like[0, 3]
    z, y, x = (np.rint(part).astype(int) for part in exact)
    drift = (to_like[:3, :3] - np.diag([1, 1, to_like[2, 2]])) * labels.array.shape[::-1]
    off = [np.abs(drift).max(), *(np.abs(np.rint(part) - part).max() for part in exact)]
    if max(off) > _TOLERANCE:
        raise ReadError(f"{path} does not lie on the slices of {like.source}; give its own series.")
    size = like.shape
    if min(z.min(), y, x) < 0 or z.max() >= size[0] or y + height > size[1] or x + width > size[2]:
        raise ReadError(f"{path} reaches beyond {like.source}; give its own series.")
    array = np.zeros(size, labels.array.dtype)
    array[z, y : y + height, x : x + width] = labels.array
    return replace(like, array=array, source=labels.source)
