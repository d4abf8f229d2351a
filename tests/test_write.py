"""Labels files: each is read back bit for bit, and lies where its image lies for other programs."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import nrrd
import numpy as np
import ome_zarr.io
import ome_zarr.reader
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from dicom_series import macro, write_enhanced, write_series
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image
from pydicom.uid import generate_uid

from napari_sam2.io import (
    Volume,
    WriteError,
    check_target,
    read_labels,
    read_volume,
    write_labels,
)
from napari_sam2.io.volume import spacing_of

NAMES = {1: "liver", 2: "left kidney", 7: "Nr. 7 – Gefäß"}
COLOURS = {1: (1.0, 0.5, 0.0), 7: (0.0, 0.0, 1.0)}


def blobs(shape: tuple[int, ...], ids: tuple[int, ...] = (1, 2, 7)) -> np.ndarray:
    """A box for each id, with none of them alike under any turn of the axes."""
    labels = np.zeros(shape, np.uint32)
    for n, object_id in enumerate(ids):
        labels[(..., slice(2 * n, 2 * n + 3), slice(3 * n + 1, 3 * n + 4))] = object_id
    labels[(0,) * len(shape)] = ids[0]
    labels[-1, ..., -1] = ids[-1]
    return labels


def oblique() -> np.ndarray:
    """(4, 4) voxel to RAS mm: turned about all axes, with three different spacings."""
    affine = np.eye(4)
    affine[:3, :3] = nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag((0.7, 0.9, 2.5))
    affine[:3, 3] = -31.5, 12.25, 90.0
    return affine


def volume(affine: np.ndarray | None = None) -> Volume:
    spacing = (2.5, 0.9, 0.7)
    return Volume(np.zeros((4, 9, 12), np.int16), spacing, "mm", affine, "made")


def lps(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


# ---- all formats

EVERYWHERE = ["l.nii", "l.nii.gz", "l.ome.tif", "l.tif", "l.ome.zarr", "l.nrrd"]


@pytest.mark.parametrize("name", [*EVERYWHERE, "l.seg.nrrd"])
@pytest.mark.parametrize("ids", [(1, 2, 7), (3, 300, 70_000)], ids=["small", "large"])
def test_volumes_come_back_bit_for_bit(tmp_path: Path, name: str, ids: tuple[int, ...]) -> None:
    labels = blobs((4, 9, 12), ids)
    write_labels(tmp_path / name, labels, volume(oblique()))
    back, _, _ = read_labels(tmp_path / name)
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_allclose(back.spacing, (2.5, 0.9, 0.7), rtol=1e-5)
    assert back.unit == "mm" and back.axes == "zyx"
    if name not in ("l.tif", "l.ome.tif", "l.ome.zarr"):  # these know nothing of patients
        np.testing.assert_allclose(back.affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("name", ["l.ome.tif", "l.tif", "l.ome.zarr", "l.nrrd", "01_RES"])
def test_time_lapses_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    labels = blobs((5, 9, 12))
    movie = Volume(np.zeros((5, 9, 12), np.uint8), (30.0, 0.5, 0.5), "um", axes="tyx")
    write_labels(tmp_path / name, labels, movie)
    back, _, _ = read_labels(tmp_path / name)
    np.testing.assert_array_equal(np.squeeze(back.array), labels)
    if name == "l.nrrd":
        assert back.axes == "tyx" and back.unit == "mm"
        np.testing.assert_allclose(back.spacing, (30.0, 0.0005, 0.0005))
        np.testing.assert_array_equal(read_labels(tmp_path / name, movie)[0].array, labels)
    if name in ("l.ome.tif", "l.tif", "l.ome.zarr"):
        assert back.axes == "tyx" and back.unit == "um"
        np.testing.assert_allclose(back.spacing, movie.spacing, rtol=1e-5)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_volumes_over_time_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    labels = blobs((3, 4, 9, 12))
    like = Volume(np.zeros((3, 2, 4, 9, 12), np.uint8), (5.0, 2.5, 0.9, 0.7), "mm", axes="tczyx")
    write_labels(tmp_path / name, labels, like)
    back, _, _ = read_labels(tmp_path / name)
    np.testing.assert_array_equal(back.array, labels)
    assert back.axes == "tzyx"
    np.testing.assert_allclose(back.spacing, like.spacing, rtol=1e-5)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nii", "l.nrrd", "l.seg.nrrd", "l.ome.zarr"])
@pytest.mark.parametrize("affine", [None, oblique()], ids=["nowhere", "placed"])
def test_ids_of_64_bits_are_kept(tmp_path: Path, name: str, affine: np.ndarray | None) -> None:
    labels = blobs((4, 9, 12)).astype(np.uint64)
    write_labels(tmp_path / name, labels, volume(affine))  # they are small, whatever their type
    labels[1, 1, 1] = 2**40
    write_labels(tmp_path / name, labels, volume(affine), overwrite=True)
    np.testing.assert_array_equal(read_labels(tmp_path / name)[0].array, labels)


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    labels = blobs((4, 9, 12))
    for name, array, like, message in [
        ("l.ome.tif", labels.astype(np.uint64) * 2**40, volume(), "TIFF holds ids up to"),
        ("l.tif", labels.astype(np.uint64) * 2**40, volume(), "TIFF holds ids up to"),
        ("l.tif", labels[1:], volume(), "have shape"),
        ("l.tif", labels * 0.5, volume(), "whole numbers from 0, not float64"),
        ("l.tif", labels.astype(int) - 1, volume(), "there is -1"),
        ("l.tif", labels, labels, "must be the Volume of the image .* not ndarray"),
    ]:
        with pytest.raises(WriteError, match=message):
            write_labels(tmp_path / name, array, like)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["l.nii.gz", "l.ome.tif", "l.ome.zarr", "l.nrrd", "l.seg.nrrd"])
def test_names_and_colours_are_kept(tmp_path: Path, name: str) -> None:
    labels = blobs((4, 9, 12))
    write_labels(tmp_path / name, labels, volume(), names=NAMES, colours=COLOURS)
    _, names, colours = read_labels(tmp_path / name)
    assert names == NAMES
    assert colours.keys() == COLOURS.keys()
    for object_id, colour in COLOURS.items():
        np.testing.assert_allclose(colours[object_id], colour, atol=1 / 255)


def test_a_name_of_several_lines_becomes_one(tmp_path: Path) -> None:
    write_labels(
        tmp_path / "l.seg.nrrd", blobs((4, 9, 12)), volume(), names={1: "a\nSegment0_Layer:=9\0"}
    )
    _, names, _ = read_labels(tmp_path / "l.seg.nrrd")
    assert names == {1: "a Segment0_Layer:=9", 2: "Object 2", 7: "Object 7"}


# ---- where they lie, for other programs


@pytest.mark.parametrize("name", ["l.nii", "l.nii.gz", "l.nrrd", "l.seg.nrrd"])
def test_itk_finds_volumes_where_their_image_lies(tmp_path: Path, name: str) -> None:
    labels = blobs((4, 9, 12))
    write_labels(tmp_path / name, labels, volume(oblique()))
    image = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
    expected = lps(oblique())
    steps = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    np.testing.assert_allclose(steps, expected[:3, :3], atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), expected[:3, 3], atol=1e-5)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nrrd"])
def test_itk_finds_images_without_a_patient_at_the_origin(tmp_path: Path, name: str) -> None:
    like = Volume(np.zeros((4, 9, 12)), (2500.0, 900.0, 700.0), "um")
    write_labels(tmp_path / name, blobs((4, 9, 12)), like)
    image = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.9, 2.5), rtol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), 0, atol=1e-6)


def test_nifti_of_volumes_over_time(tmp_path: Path) -> None:
    like = Volume(np.zeros((3, 4, 9, 12)), (5.0, 2.5, 0.9, 0.7), "mm", oblique(), axes="tzyx")
    labels = blobs((3, 4, 9, 12))
    write_labels(tmp_path / "l.nii.gz", labels, like)
    image = nibabel.load(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(image.dataobj, labels.T)
    np.testing.assert_allclose(image.header.get_zooms(), (0.7, 0.9, 2.5, 5.0), rtol=1e-6)
    np.testing.assert_allclose(image.affine, oblique(), atol=1e-5)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    # and onto the header of the 4-D file that it was made on
    again = Volume(
        like.array, like.spacing, "mm", oblique(), axes="tzyx", nifti_header=image.header
    )
    write_labels(tmp_path / "again.nii", labels, again)
    assert nibabel.load(tmp_path / "again.nii").header.get_zooms() == image.header.get_zooms()


def test_slicer_finds_segments(tmp_path: Path) -> None:
    labels = blobs((4, 9, 12))
    write_labels(
        tmp_path / "l.seg.nrrd", labels, volume(oblique()), names={**NAMES, 9: "not there"},
        colours=COLOURS,
    )  # fmt: skip
    array, header = nrrd.read(str(tmp_path / "l.seg.nrrd"))
    assert array.dtype == np.uint8 and header["kinds"] == ["domain"] * 3
    assert header["space"] == "left-posterior-superior"
    assert header["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    segments = [
        {key: header.get(f"Segment{n}_{key}") for key in ("Name", "ID", "LabelValue", "Layer")}
        for n in range(4)
    ]
    assert segments[0] == {"Name": "liver", "ID": "Segment_1", "LabelValue": "1", "Layer": "0"}
    assert [s["LabelValue"] for s in segments] == ["1", "2", "7", "9"]
    assert header["Segment0_Color"] == "1 0.5 0" and "Segment1_Color" not in header
    assert header["Segment3_Extent"] == "0 -1 0 -1 0 -1"
    for n, object_id in enumerate((1, 2, 7)):
        extent = np.reshape(header[f"Segment{n}_Extent"].split(), (3, 2)).astype(int)
        where = np.nonzero(array == object_id)
        np.testing.assert_array_equal(extent, [(axis.min(), axis.max()) for axis in where])
    assert "Segment2_Name:=Nr. 7 – Gefäß\n".encode() in (tmp_path / "l.seg.nrrd").read_bytes()


def test_slicer_has_no_time(tmp_path: Path) -> None:
    movie = Volume(np.zeros((5, 9, 12), np.uint8), axes="tyx")
    with pytest.raises(WriteError, match=r"one volume.*\.ome\.tif"):
        write_labels(tmp_path / "l.seg.nrrd", blobs((5, 9, 12)), movie)
    with pytest.raises(WriteError, match="one volume"):  # before anything is computed
        check_target(tmp_path / "l.seg.nrrd", like=movie)
    assert list(tmp_path.iterdir()) == []


def test_imagej_and_ome_know_the_sizes_of_volumes_over_time(tmp_path: Path) -> None:
    like = Volume(np.zeros((3, 4, 9, 12), np.uint8), (5.0, 2.5, 0.9, 0.7), "um", axes="tzyx")
    for name in ("l.tif", "l.ome.tif"):
        write_labels(tmp_path / name, blobs((3, 4, 9, 12)), like)
    with tifffile.TiffFile(tmp_path / "l.tif") as tif:
        assert tif.series[0].axes == "TZYX"
        found = tif.imagej_metadata
        assert (found["finterval"], found["spacing"], found["unit"]) == (5.0, 2.5, "um")
    with tifffile.TiffFile(tmp_path / "l.ome.tif") as tif:
        assert tif.series[0].axes == "TZYX"
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        sizes = [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"]
        assert (sizes, pixels["TimeIncrement"]) == ([2.5, 0.9, 0.7], 5.0)


# ---- OME-Zarr


def test_ome_zarr_is_a_label_image(tmp_path: Path) -> None:
    labels = np.repeat(np.repeat(blobs((2, 9, 12)), 60, axis=1), 60, axis=2)
    like = Volume(np.zeros(labels.shape, np.uint8), (2.5, 0.9, 0.7), "um")
    write_labels(tmp_path / "l.ome.zarr", labels, like, names=NAMES, colours=COLOURS)

    (node,) = ome_zarr.reader.Reader(ome_zarr.io.parse_url(tmp_path / "l.ome.zarr"))()
    np.testing.assert_array_equal(node.data[0], labels)
    np.testing.assert_array_equal(node.data[1], labels[:, ::2, ::2])
    assert node.data[-1].shape == (2, 135, 180) and node.data[0].chunksize == (1, 512, 512)
    scales = [level[0]["scale"] for level in node.metadata["coordinateTransformations"]]
    assert scales == [[2.5, 0.9, 0.7], [2.5, 1.8, 1.4], [2.5, 3.6, 2.8]]
    assert [(a["name"], a["type"], a["unit"]) for a in node.metadata["axes"]] == [
        ("z", "space", "micrometer"), ("y", "space", "micrometer"), ("x", "space", "micrometer")
    ]  # fmt: skip
    assert node.metadata["properties"] == {i: {"name": name} for i, name in NAMES.items()}
    np.testing.assert_allclose(node.metadata["color"][1], (1, 0.5, 0, 1), atol=1 / 255)


@pytest.mark.parametrize("version", [FormatV04(), FormatV05()], ids=["0.4", "0.5"])
def test_labels_are_added_to_an_ome_zarr_image(
    tmp_path: Path, version: FormatV04 | FormatV05
) -> None:
    image = tmp_path / "scan.ome.zarr"
    group = zarr.open_group(image, mode="w", zarr_format=version.zarr_format)
    write_image(np.ones((4, 9, 12), np.uint16), group, fmt=version, axes="zyx", scale_factors=[])
    labels = blobs((4, 9, 12))
    for name, ids in (("organs", labels), ("vessels", labels * 2), ("organs", labels * 3)):
        write_labels(image / "labels" / name, ids, volume(), overwrite=True, names=NAMES)

    nodes = list(ome_zarr.reader.Reader(ome_zarr.io.parse_url(image))())
    found = {node.zarr.basename(): np.asarray(node.data[0]) for node in nodes if node.data}
    np.testing.assert_array_equal(found["scan.ome.zarr"], 1)
    np.testing.assert_array_equal(found["organs"], labels * 3)
    np.testing.assert_array_equal(found["vessels"], labels * 2)
    assert sorted(p.name for p in (image / "labels").iterdir() if p.is_dir()) == [
        "organs",
        "vessels",
    ]


def test_an_ome_zarr_image_is_never_replaced(tmp_path: Path) -> None:
    image = tmp_path / "scan.ome.zarr"
    group = zarr.open_group(image, mode="w")
    write_image(np.ones((4, 9, 12), np.uint16), group, axes="zyx", scale_factors=[])
    with pytest.raises(WriteError, match=r"scan\.ome\.zarr/labels/NAME"):
        write_labels(image, blobs((4, 9, 12)), volume(), overwrite=True)
    assert zarr.open_group(image, mode="r")["s0" if "s0" in group else "0"][0, 0, 0] == 1


# ---- DICOM SEG


def segments_of(path: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, (4, 4) affine to LPS mm and (z, y, x) mask of each segment, as highdicom reads them."""
    seg = highdicom.seg.segread(path)
    found = []
    for number in seg.segment_numbers:
        mask = seg.get_volume(segment_numbers=[number], combine_segments=True)
        found.append((seg.get_segment_description(number).segment_label, mask.affine, mask.array))
    return found


def ct_series(folder: Path, affine: np.ndarray, **fields: object) -> Volume:
    """A made CT of 4 x 9 x 12 voxels on disk, as it is when read."""
    to_lps, (z, y, x) = lps(affine), spacing_of(affine)
    values = np.arange(4 * 9 * 12, dtype=np.uint16).reshape(4, 9, 12)
    paths = write_series(
        folder,
        values,
        orientation=(*to_lps[:3, 0] / x, *to_lps[:3, 1] / y),
        origin=tuple(to_lps[:3, 3]),
        step=tuple(to_lps[:3, 2]),
        spacing=(y, x),
        gap=z,
        **({"FrameOfReferenceUID": generate_uid()} | fields),
    )
    return Volume(values, (z, y, x), "mm", affine, folder.name, files=tuple(paths))


def multiframe_ct(folder: Path) -> Volume:
    """A made CT in one file, whose frames are in another order than the slices."""
    values = np.arange(4 * 9 * 12, dtype=np.uint16).reshape(4, 9, 12)
    order = [2, 0, 3, 1]
    places = [macro(ImagePositionPatient=[-50.0, -60.0, 20.0 + 3 * z]) for z in order]
    path = write_enhanced(folder, values[order], [{"PlanePositionSequence": p} for p in places])
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.save_as(path)
    affine = np.diag((-0.6, -0.8, 3.0, 1.0))
    affine[:3, 3] = 50.0, 60.0, 20.0
    return Volume(values, (3.0, 0.8, 0.6), "mm", affine, folder.name, files=(path,) * 4)


@pytest.mark.parametrize("is_multiframe", [False, True], ids=["series", "multi-frame"])
def test_a_dicom_segmentation_lies_on_its_series(tmp_path: Path, is_multiframe: bool) -> None:
    folder = tmp_path / "ct"
    like = multiframe_ct(folder) if is_multiframe else ct_series(folder, oblique())
    affine = like.affine
    assert affine is not None
    labels = blobs((4, 9, 12))
    labels[2] = 0  # frames without objects are left out of the file
    write_labels(tmp_path / "l.dcm", labels, like, names=NAMES, colours=COLOURS)

    source = pydicom.dcmread(like.files[0], stop_before_pixels=True)
    seg = pydicom.dcmread(tmp_path / "l.dcm")
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[keyword].value == source[keyword].value
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID != seg.SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == len(set(like.files))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == list(NAMES.values())

    # The voxels of each segment, in the patient.
    for (name, to_lps, mask), object_id in zip(segments_of(tmp_path / "l.dcm"), NAMES, strict=True):
        assert name == NAMES[object_id]
        found = np.argwhere(mask) @ to_lps[:3, :3].T + to_lps[:3, 3]
        expected = np.argwhere(labels == object_id)[:, ::-1] @ lps(affine)[:3, :3].T
        expected = expected + lps(affine)[:3, 3]
        np.testing.assert_allclose(np.sort(found, 0), np.sort(expected, 0), atol=1e-3)

    back, names, colours = read_labels(tmp_path / "l.dcm", like)
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    assert names == NAMES and colours.keys() == COLOURS.keys()
    np.testing.assert_allclose(colours[1], COLOURS[1], atol=2 / 255)
    alone, _, _ = read_labels(tmp_path / "l.dcm")
    np.testing.assert_array_equal(alone.array, labels)
    np.testing.assert_allclose(alone.affine, affine, atol=1e-4)


def test_a_dicom_segmentation_of_a_tilted_series_refers_to_each_slice(tmp_path: Path) -> None:
    tilted = np.diag((0.7, 0.9, 2.5, 1.0))
    tilted[1, 2] = 0.6  # each slice is shifted along y
    like = ct_series(tmp_path / "ct", tilted)
    labels = blobs((4, 9, 12))
    write_labels(tmp_path / "l.dcm", labels, like)
    seg = highdicom.seg.segread(tmp_path / "l.dcm")
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in like.files]
    found = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(found, np.searchsorted([0, 1, 2, 7], labels))


def test_what_a_dicom_segmentation_cannot_hold(tmp_path: Path) -> None:
    labels = blobs((4, 9, 12))
    like = ct_series(tmp_path / "ct", oblique())
    nameless = ct_series(tmp_path / "blank", oblique(), StudyInstanceUID="")
    over_time = Volume(np.zeros((2, 4, 9, 12)), (1.0,) * 4, axes="tzyx", files=like.files)
    for array, where, message in [
        (labels, volume(oblique()), r"not read from a DICOM folder.*\.nii\.gz"),
        (labels * 0, like, "have 0"),
        (labels, nameless, "StudyInstanceUID"),
        (np.stack([labels, labels]), over_time, "one volume"),
    ]:
        with pytest.raises(WriteError, match=message):
            write_labels(tmp_path / "l.dcm", array, where)
        if array.any():  # found out before anything is computed, too
            with pytest.raises(WriteError, match=message):
                check_target(tmp_path / "l.dcm", like=where)
    check_target(tmp_path / "l.dcm", like=like)
    like.files[2].unlink()
    with pytest.raises(WriteError, match="read any more"):
        write_labels(tmp_path / "l.dcm", labels, like)
    assert not any(p.is_file() for p in tmp_path.iterdir())


# ---- Cell Tracking Challenge


def test_a_cell_tracking_challenge_folder(tmp_path: Path) -> None:
    labels = np.zeros((5, 9, 12), int)
    labels[:, 1:4, 1:4] = 1
    labels[[0, 1, 3, 4], 5:8, 1:4] = 4  # gone for a frame
    labels[2:, 5:8, 6:9] = 9
    movie = Volume(np.zeros((5, 9, 12), np.uint8), axes="tyx")
    write_labels(tmp_path / "01_RES", labels, movie)
    assert sorted(p.name for p in (tmp_path / "01_RES").iterdir()) == [
        *(f"mask{frame:03}.tif" for frame in range(5)),
        "res_track.txt",
    ]
    tracks = np.loadtxt(tmp_path / "01_RES" / "res_track.txt", int)
    np.testing.assert_array_equal(tracks, [(1, 0, 4, 0), (4, 0, 1, 0), (9, 2, 4, 0), (10, 3, 4, 4)])
    pictures = [tifffile.imread(tmp_path / "01_RES" / f"mask{frame:03}.tif") for frame in range(5)]
    expected = labels.copy()
    expected[3:][labels[3:] == 4] = 10
    np.testing.assert_array_equal(pictures, expected)
    assert pictures[0].dtype == np.uint16
    for label, first, last, _ in tracks:  # as the challenge checks it
        frames = [frame for frame, picture in enumerate(pictures) if (picture == label).any()]
        assert frames == list(range(first, last + 1))


def test_a_cell_tracking_challenge_folder_of_volumes(tmp_path: Path) -> None:
    labels = blobs((3, 4, 9, 12))
    like = Volume(np.zeros(labels.shape, np.uint8), (1.0,) * 4, axes="tzyx")
    write_labels(tmp_path / "result", labels, like, format="ctc")
    found = [tifffile.imread(tmp_path / "result" / f"mask{frame:03}.tif") for frame in range(3)]
    np.testing.assert_array_equal(found, labels)


def test_a_plain_stack_is_written_as_frames_and_comes_back_as_a_movie(tmp_path: Path) -> None:
    labels = blobs((5, 9, 12))
    tifffile.imwrite(tmp_path / "movie.tif", np.zeros(labels.shape, np.float32))
    movie = read_volume(tmp_path / "movie.tif")  # nothing in it says that the slices are frames
    assert check_target(tmp_path / "01_RES", like=movie) == (tmp_path / "01_RES").resolve()
    write_labels(tmp_path / "01_RES", labels, movie)
    tracked = read_labels(tmp_path / "01_RES")[0]
    assert tracked.axes == "tyx"
    np.testing.assert_array_equal(tracked.array, labels)


def test_what_a_cell_tracking_challenge_folder_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="no time"):
        check_target(tmp_path / "01_RES", like=volume())  # before anything is computed
    with pytest.raises(WriteError, match="no time"):
        write_labels(tmp_path / "01_RES", blobs((4, 9, 12)), volume())
    movie = Volume(np.zeros((4, 9, 12), np.uint8), axes="tyx")
    with pytest.raises(WriteError, match="65535"):
        write_labels(tmp_path / "01_RES", blobs((4, 9, 12), (1, 70_000)), movie)
    assert list(tmp_path.iterdir()) == []
