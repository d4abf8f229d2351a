"""RT Structure Sets: contours on DICOM series, out and in."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_series import NAME, macro, write_enhanced, write_series
from napari.layers import Labels
from pydicom.uid import generate_uid
from scipy import ndimage
from skimage.draw import polygon2mask

from napari_sam2 import read_volume, write_labels
from napari_sam2.cli import main
from napari_sam2.io.contours import contours_of, mask_of
from napari_sam2.io.files import list_images
from napari_sam2.io.labels import check_target, read_labels
from napari_sam2.io.readers import get_reader, read_layers
from napari_sam2.io.volume import ReadError, Volume, WriteError
from napari_sam2.io.writers import write_rtstruct, write_seg

TILTED = (0.8, 0.6, 0, -0.6, 0.8, 0)
SHAPE = (5, 40, 36)


def blots(seed=0, shape=SHAPE):
    """Two objects of several parts with holes, and islands in these."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 2, 2))
    labels = np.zeros(shape, np.uint8)
    labels[noise > 0.05] = 3
    labels[noise < -0.08] = 7
    labels[0] = 0
    return labels


@pytest.fixture
def scan(tmp_path):
    """A CT series whose slices lie askew in the patient."""
    values = np.random.default_rng(0).integers(0, 3000, SHAPE).astype(np.uint16)
    write_series(
        tmp_path / "ct",
        values,
        orientation=TILTED,
        FrameOfReferenceUID=generate_uid(),
        StudyDate="20260102",
        SpecificCharacterSet="ISO_IR 192",
    )
    return tmp_path / "ct"


def drawn(path, scan, number):
    """The voxels in an odd number of a region's contours, by scikit-image and the slices' headers
    alone."""
    structures = pydicom.dcmread(path)
    headers = {h.SOPInstanceUID: h for h in map(pydicom.dcmread, scan.iterdir())}
    order = sorted(headers, key=lambda uid: headers[uid].ImagePositionPatient[2])
    mask = np.zeros(SHAPE, bool)
    region = next(r for r in structures.ROIContourSequence if r.ReferencedROINumber == number)
    for contour in region.ContourSequence:
        header = headers[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        assert len(points) == contour.NumberOfContourPoints
        from_corner = points - np.array(header.ImagePositionPatient, float)
        row, column = np.reshape(header.ImageOrientationPatient, (2, 3)).astype(float)
        np.testing.assert_allclose(from_corner @ np.cross(row, column), 0, atol=1e-3)
        y, x = from_corner @ column, from_corner @ row
        corners = np.stack([y / header.PixelSpacing[0], x / header.PixelSpacing[1]], axis=1)
        mask[order.index(header.SOPInstanceUID)] ^= polygon2mask(SHAPE[1:], corners.round(2))
    return mask


def test_any_mask_comes_back_from_its_contours():
    random = np.random.default_rng(1)
    for _ in range(60):
        shape = tuple(random.integers(1, 50, 2))
        smooth = ndimage.gaussian_filter(random.normal(size=shape), random.choice([0.3, 1, 3]))
        mask = smooth > random.normal() * 0.05
        contours = contours_of(mask)
        assert len(contours) == ndimage.label(mask)[1], "one for each part"
        np.testing.assert_array_equal(mask_of(contours, shape), mask)
    mask = ndimage.gaussian_filter(random.normal(size=(256, 256)), 0.7) > -0.2
    assert ndimage.label(~mask)[1] > 1000, "a mask by a threshold, with many holes"
    np.testing.assert_array_equal(mask_of(contours_of(mask), mask.shape), mask)


def test_contours_are_filled_as_scikit_image_fills_them():
    random = np.random.default_rng(2)
    for n in range(60):
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 9)))
        radii = random.uniform(5, 25, len(angles))
        corners = np.stack([20 + radii * np.sin(angles), 25 + radii * np.cos(angles)], axis=1)
        corners = corners.round(0 if n % 3 else 2)  # through the pixels' centres, too
        found = mask_of([corners], (40, 44))  # it reaches beyond the image
        expected = polygon2mask((40, 44), corners)
        assert not (expected & ~found).any()
        assert (found & ~expected).sum() <= 1, "but for rounding, it lies on the contour"


def test_labels_come_back_and_others_find_the_same_voxels(scan, tmp_path):
    labels, image = blots(), read_volume(scan)
    path = tmp_path / "organs.rtstruct.dcm"
    names = {3: "Leber, groß", 7: "a\\b", 9: "not there"}
    write_labels(path, labels, image, names=names, colours={3: (1, 0, 0.2)})
    found, read_names, colours = read_labels(path)
    np.testing.assert_array_equal(found.array, labels)
    np.testing.assert_allclose(found.affine, image.affine)
    assert read_names == {3: "Leber, groß", 7: "a/b"}
    assert colours == {3: (1.0, 0.0, 0.2)}
    for number in (3, 7):
        np.testing.assert_array_equal(drawn(path, scan, number), labels == number)

    structures, source = pydicom.dcmread(path), pydicom.dcmread(next(scan.iterdir()))
    assert structures.PatientName == NAME
    assert structures.StudyInstanceUID == source.StudyInstanceUID
    assert structures.StudyDate == "20260102"
    assert structures.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert structures.file_meta.TransferSyntaxUID.is_implicit_VR
    assert structures.ApprovalStatus == "UNAPPROVED"
    series = structures.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = series.RTReferencedSeriesSequence[0].ContourImageSequence
    assert len({one.ReferencedSOPInstanceUID for one in images}) == SHAPE[0]


def test_it_opens_in_napari_and_converts(scan, tmp_path, capsys):
    labels, path = blots(), tmp_path / "organs.rtstruct.dcm"
    write_labels(path, labels, read_volume(scan), names={3: "liver", 7: "spleen"})
    assert get_reader(str(path)) is not None
    with pytest.warns(UserWarning, match="oblique"):
        ((data, options, kind),) = read_layers(str(path))
    assert kind == "labels"
    np.testing.assert_array_equal(data, labels)
    assert options["features"]["name"] == ["liver", "spleen"]
    (info,) = list_images(path)
    assert (info.kind, info.shape) == ("RTSTRUCT", SHAPE)

    nifti, again = tmp_path / "organs.nii.gz", tmp_path / "again.rtstruct.dcm"
    assert main(["convert", str(path), str(nifti)]) == 0
    assert main(["convert", str(nifti), str(again), "--like", str(scan)]) == 0
    found, names, _ = read_labels(again)
    np.testing.assert_array_equal(found.array, labels)
    assert names == {3: "liver", 7: "spleen"}
    other = [str(tmp_path / "RS.dcm"), "--like", str(scan), "--format", "rtstruct"]
    assert main(["convert", str(nifti), *other]) == 0
    assert pydicom.dcmread(other[0]).Modality == "RTSTRUCT"
    with pytest.raises(ReadError, match="`like` must be the Volume"):
        read_labels(again, scan)
    assert list_images(scan.parent)[0].shape == SHAPE, "beside images it is none"
    capsys.readouterr()
    target = str(tmp_path / "box.rtstruct.dcm")
    assert main(["segment", str(scan), "-o", target, "--box", "1:2,10,10,25,25"]) == 0
    assert read_labels(target)[0].array[2].any()


def test_contours_on_a_multi_frame_file_refer_to_its_frames(tmp_path):
    order, labels = [2, 0, 4, 3, 1], blots()  # frames are in another order than slices
    frames = [
        {"PlanePositionSequence": macro(ImagePositionPatient=[-5.0, -6.0, 3.0 * z])} for z in order
    ]
    enhanced = write_enhanced(tmp_path / "ct", np.zeros(SHAPE, np.uint16), frames)
    source = pydicom.dcmread(enhanced)
    source.FrameOfReferenceUID = generate_uid()
    source.save_as(enhanced)
    path = tmp_path / "organs.rtstruct.dcm"
    write_labels(path, labels, read_volume(enhanced))
    np.testing.assert_array_equal(read_labels(path)[0].array, labels)
    for region in pydicom.dcmread(path).ROIContourSequence:
        for contour in region.ContourSequence:
            (image,) = contour.ContourImageSequence
            assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert contour.ContourData[2] == 3 * order[image.ReferencedFrameNumber - 1]


def test_the_chosen_kind_of_file_says_what_a_name_does_not(scan, tmp_path):
    """In napari's dialog, where "organs.dcm" was typed."""
    with pytest.warns(UserWarning, match="oblique"):
        ((_, options, _),) = read_layers(str(scan))
    layer = Labels(blots(), metadata=options["metadata"])
    for write, kind in ((write_rtstruct, "RTSTRUCT"), (write_seg, "DICOM SEG")):
        (path,) = write(str(tmp_path / "organs.dcm"), *layer.as_layer_data_tuple()[:2])
        assert path == str(tmp_path / "organs.dcm")
        assert list_images(path)[0].kind == kind
        np.testing.assert_array_equal(read_labels(path, read_volume(scan))[0].array, blots())


def add_region(structures, number, contours, z, kind="CLOSED_PLANAR"):
    """Draw contours of corners x, y on the slice at z, as another program would."""
    roi, region = pydicom.Dataset(), pydicom.Dataset()
    roi.ROINumber, roi.ROIName = number, f"region {number}"
    region.ReferencedROINumber, region.ContourSequence = number, []
    for corners in contours:
        contour = pydicom.Dataset()
        contour.ContourGeometricType = kind
        contour.ContourData = [v for x, y in corners for v in (x, y, z)]
        region.ContourSequence.append(contour)
    structures.StructureSetROISequence.append(roi)
    structures.ROIContourSequence.append(region)


def test_what_other_programs_draw(tmp_path):
    write_series(tmp_path / "ct", np.zeros(SHAPE, np.uint16), origin=(0.0, 0.0, 0.0), gap=2.0,
                 spacing=(1.0, 1.0), FrameOfReferenceUID=generate_uid())  # fmt: skip
    image = read_volume(tmp_path / "ct")
    path = tmp_path / "organs.rtstruct.dcm"
    write_labels(path, np.ones(SHAPE, np.uint8), image)
    structures = pydicom.dcmread(path)
    structures.StructureSetROISequence, structures.ROIContourSequence = [], []
    body = [(1, 1), (30, 1), (30, 30), (1, 30)]
    organ, hole = [(5, 5), (20, 5), (20, 20), (5, 20)], [(9, 9), (12, 9), (12, 12), (9, 12)]
    add_region(structures, 0, [body], 4.2)  # beside the slice, but nearest to it
    add_region(structures, 1, [organ, hole], 4, "CLOSEDPLANAR_XOR")
    add_region(structures, 2, [[(3, 3)]], 4, "POINT")
    structures.save_as(path)
    labels, names, _ = read_labels(path)
    assert names == {1: "region 0", 2: "region 1", 3: "region 2"}
    assert set(np.unique(labels.array[2])) == {0, 1, 2}
    assert not labels.array[[0, 1, 3, 4]].any()
    assert labels.array[2, 5, 5] == labels.array[2, 20, 20] == 2, "the contour belongs to it"
    assert labels.array[2, 10, 10] == labels.array[2, 1, 1] == labels.array[2, 30, 30] == 1
    assert labels.array[2, 31, 31] == 0
    assert any("overlap" in note for note in labels.notes)

    structures.ROIContourSequence[0].ContourSequence[0].ContourData[2::3] = [5.0] * 4
    structures.save_as(path)
    with pytest.raises(ReadError, match="do not lie on the slices"):
        read_labels(path)
    with pytest.raises(ReadError, match="lies in a patient"):
        read_labels(path, Volume(np.zeros(SHAPE, np.uint8)))


def test_without_its_series_it_says_what_is_missing(scan, tmp_path):
    path = tmp_path / "organs.rtstruct.dcm"
    write_labels(path, blots(), read_volume(scan))
    lonely = tmp_path / "a" / "b" / path.name
    lonely.parent.mkdir(parents=True)
    path.rename(lonely)
    with pytest.raises(ReadError, match="beside its images"):
        read_labels(lonely)
    np.testing.assert_array_equal(read_labels(lonely, read_volume(scan))[0].array, blots())


def test_a_file_that_was_cut_off_or_damaged_is_not_read_in_part(scan, tmp_path):
    path = tmp_path / "organs.rtstruct.dcm"
    write_labels(path, blots(), read_volume(scan))
    content = path.read_bytes()
    for length in (150, 1000, len(content) // 3, len(content) // 2, len(content) - 200):
        path.write_bytes(content[:length])
        with pytest.raises(ReadError):
            read_labels(path)
    path.write_bytes(content)
    structures = pydicom.dcmread(path)
    del structures.ROIContourSequence[0].ContourSequence[0].ContourData[-1]
    structures.save_as(path)
    with pytest.raises(ReadError, match="damaged"):
        read_labels(path)


def test_what_cannot_be_written_is_told_at_once(scan, tmp_path):
    target, image = tmp_path / "l.rtstruct.dcm", read_volume(scan)
    with pytest.raises(WriteError, match="not read from a DICOM folder"):
        check_target(target, like=Volume(np.zeros(SHAPE)))
    with pytest.raises(WriteError, match="no object"):
        write_labels(target, np.zeros(SHAPE, np.uint8), image)
    one = next(scan.iterdir())
    with pytest.raises(WriteError, match="it is an image"):
        write_labels(one.rename(scan / "x.rtstruct.dcm"), blots(), image, overwrite=True)
    assert not target.exists()
