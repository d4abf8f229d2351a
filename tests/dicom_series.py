"""DICOM series made for tests, with a patient whose name must not turn up anywhere."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORED = np.random.default_rng(0).integers(0, 3000, (6, 8, 7)).astype(np.uint16)
NAME, ID, BIRTH = "Secret^Name", "SECRET-ID", "19611231"


def write_series(
    folder: Path,
    values: np.ndarray = STORED,
    *,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    origin: tuple[float, ...] = (-50.0, -60.0, 20.0),
    step: tuple[float, ...] | None = None,
    spacing: tuple[float, float] = (0.8, 0.6),
    gap: float = 2.5,
    slope: float = 1,
    intercept: float = -1024,
    uid: str | None = None,
    description: str = "made by a test",
    skip: tuple[int, ...] = (),
    tweak: dict[int, dict[str, object]] | None = None,
    **fields: object,
) -> list[Path]:
    """Write values (z, y, x) as a CT file per slice, names in random order; returns paths by z.

    step: from one slice to the next; by default `gap` along the normal. skip: slices that are
    missing. tweak: fields of single slices. fields: of all slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    along = np.array(step, float) if step is not None else np.cross(row, column) * gap
    uid = uid or generate_uid()
    names = random.Random(f"{uid} {len(list(folder.iterdir()))}").sample(range(10**6), len(values))
    paths = []
    for z, picture in enumerate(values):
        if z in skip:
            continue
        dataset = pydicom.Dataset()
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, generate_uid(entropy_srcs=[uid])
        dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = "CT", description, 4
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, ID, BIRTH
        dataset.InstanceNumber = len(values) - z
        dataset.ImagePositionPatient = [float(v) for v in np.array(origin) + z * along]
        dataset.ImageOrientationPatient = [float(v) for v in orientation]
        dataset.PixelSpacing, dataset.SliceThickness = list(spacing), gap
        dataset.Rows, dataset.Columns = picture.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        if picture.ndim == 3:
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
            dataset.PlanarConfiguration = 0
        bits = picture.dtype.itemsize * 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = int(picture.dtype.kind == "i")
        if picture.ndim == 2:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = picture.tobytes()
        for keyword, value in (fields | (tweak or {}).get(z, {})).items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        path = folder / f"IM{names[z]:06d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def macro(**values: object) -> pydicom.Sequence:
    """A functional group, or another sequence of one item."""
    item = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return pydicom.Sequence([item])


def write_enhanced(folder: Path, values: np.ndarray, frames: list[dict[str, object]]) -> Path:
    """Write values (frame, y, x) as one enhanced CT file, `frames` with the functional groups of
    each."""
    path = write_series(folder, values[:1])[0]
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = len(values)
    dataset.PixelData = values.tobytes()
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(dataset, keyword)
    dataset.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    dataset.SharedFunctionalGroupsSequence = macro(
        PixelMeasuresSequence=macro(PixelSpacing=[0.8, 0.6], SliceThickness=3.0),
        PlaneOrientationSequence=macro(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    dataset.PerFrameFunctionalGroupsSequence = pydicom.Sequence(
        [macro(**groups)[0] for groups in frames]
    )
    dataset.save_as(path)
    return path


def itk_series(folder: Path) -> sitk.Image:
    """A folder with one series as SimpleITK reads it, for a second opinion."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()
