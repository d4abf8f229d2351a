"""The command line on real files: what it writes, and that bad input gives one line and no file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr
from dicom_series import STORED, itk_series, write_series
from images import DATA, OBLIQUE, assert_same_grid, mirrored, needs_data
from models import small_model

from napari_sam2 import PromptError, read_volume, segment
from napari_sam2.batch import INCOMPLETE, Job, Settings
from napari_sam2.batch_worker import run_job
from napari_sam2.cli import main, results
from napari_sam2.io import read_labels, read_parents, write_labels
from napari_sam2.measures import measure_labels
from napari_sam2.session import Session
from sam2_engine.model import SAM2


@pytest.fixture(scope="module")
def network() -> SAM2:
    """A quick model whose masks mean nothing, but depend on all that it is given."""
    return small_model()


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """An int16 volume (z, y, x) with two bright balls in noise."""
    grid = np.indices(shape, dtype=float)
    image = np.random.default_rng(1).normal(0, 20, shape)
    for centre in (0.35, 0.7):
        middle = np.array(shape).reshape(3, 1, 1, 1) * centre
        image += 400 * (((grid - middle) ** 2).sum(0) < 30)
    return image.astype(np.int16)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A NIfTI file of shape (z, y, x) = (8, 24, 20) with an oblique affine."""
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(blobs((8, 24, 20)).T, OBLIQUE), path)
    return path


def shell(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a person runs it."""
    command = [sys.executable, "-m", "napari_sam2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# ---- what it writes


def test_labels_lie_on_the_image_and_equal_those_of_the_function(
    scan: Path, tmp_path: Path, checkpoint: str, network: SAM2, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    mask = np.zeros((8, 24, 20), np.uint8)
    mask[3, 5:11, 4:10] = 7
    image = nibabel.load(scan)
    nibabel.save(nibabel.Nifti1Image(mask.T, image.affine), tmp_path / "mask.nii.gz")
    code = main(
        [
            *("segment", str(scan), "-o", str(out), "--model", checkpoint, "--device", "cpu"),
            *("--box", "1:2,3,3,12,12", "1:6,10.5,3,20,14", "--point", "2:5,16,14", "2:5,17,13"),
            *("--negative", "2:5,3,3", "--mask", str(tmp_path / "mask.nii.gz")),
            *("--window", "-100,500", "--ends", "1:2,6"),
        ]
    )
    assert code == 0
    volume = read_volume(scan)
    expected = segment(
        volume,
        boxes={1: [(2, (3, 3, 12, 12)), (6, (10.5, 3, 20, 14))]},
        points={2: [(5, 16, 14), (5, 17, 13)]},
        negative_points={2: (5, 3, 3)},
        masks=mask,
        ends={1: (2, 6)},
        model=network,
        window=(-100, 500),
    )
    written = sitk.ReadImage(out)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), expected)
    assert_same_grid(sitk.ReadImage(scan), written)
    assert written.GetPixelID() == sitk.sitkUInt8
    assert set(np.flatnonzero((expected == 1).any((1, 2)))) <= {2, 3, 4, 5, 6}
    np.testing.assert_array_equal(expected[3] == 7, mask[3] == 7)  # a mask comes back as it is
    text = capsys.readouterr()
    assert f"{out}: object 1: " in text.out and "object 7: " in text.out and " ml)" in text.out
    assert "100%" in text.err and "12/12" in text.err


def test_a_mask_in_another_order_of_axes_is_put_on_the_image(
    scan: Path, tmp_path: Path, checkpoint: str
) -> None:
    mask = np.zeros((20, 24, 8), np.uint8)
    mask[4:9, 5:9, 3] = 7
    nibabel.save(nibabel.Nifti1Image(mask, OBLIQUE), tmp_path / "mask.nii.gz")
    flip, out = mirrored(tmp_path / "mask.nii.gz", tmp_path / "flip.nii.gz"), tmp_path / "o.nii"
    command = ["segment", str(scan), "-o", str(out), "--model", checkpoint, "--device", "cpu"]
    assert main([*command, "--mask", str(flip), "--slices", "3,3", "-q"]) == 0
    np.testing.assert_array_equal(np.asarray(nibabel.load(out).dataobj), mask)


def test_small_objects_are_looked_at_closely(
    tmp_path: Path, checkpoint: str, network: SAM2
) -> None:
    volume, path, out = blobs((4, 80, 90)), tmp_path / "a.nii", tmp_path / "labels.nii"
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)
    boxes = ["--box", "1:1,20,20,26,26"]
    model = ["--model", checkpoint, "--device", "cpu", "--window", "-100,500"]
    assert main(["segment", str(path), "-o", str(out), *boxes, *model, "--closely", "-q"]) == 0
    how = {"boxes": {1: (1, (20, 20, 26, 26))}, "window": (-100, 500), "model": network}
    closely = segment(volume, closely=True, **how)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(out)), closely)
    whole = segment(volume, closely=False, **how)
    assert (closely != whole).any()
    session = Session(volume, network, window=(-100, 500), closely=False)
    session.add_box(session.add_object(), 1, (20, 20, 26, 26))
    top, left, bottom, right = session.look_closely(1)
    session.propagate()
    np.testing.assert_array_equal(session.labels, closely)
    closely[:, top:bottom, left:right] = 0
    assert not closely.any()


def test_small_objects_are_looked_at_closely_unless_it_says_no(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 10, (3, 160, 200))
    _, y, x = np.indices(noise.shape)
    volume = (noise + 150 * ((y - 60) ** 2 + (x - 80) ** 2 < 50)).astype(np.float32)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)
    command = ["segment", str(path), "--box", "1:1,53,73,67,87", "--window", "-100,200", "-q"]
    how = {"boxes": {1: (1, (53, 73, 67, 87))}, "window": (-100, 200)}
    given = {None: [], True: ["--closely"], False: ["--no-closely"]}
    found = {}
    for closely, options in given.items():
        out = tmp_path / f"{closely}.nii"
        assert main([*command, "-o", str(out), "--device", "cpu", *options]) == 0
        found[closely] = sitk.GetArrayFromImage(sitk.ReadImage(out))
        np.testing.assert_array_equal(found[closely], segment(volume, closely=closely, **how))
    np.testing.assert_array_equal(found[None], found[True])
    assert (found[None] != found[False]).any()


def test_what_is_not_found_at_its_points_is_looked_for_on_whole_slices(network: SAM2) -> None:
    volume = np.zeros((3, 40, 50), np.uint8)
    how = {"points": {1: (1, 20, 20)}, "window": (0, 1), "model": network}
    np.testing.assert_array_equal(segment(volume, closely=True, **how), segment(volume, **how))


@pytest.mark.parametrize("axis", ["y", "x"])
def test_another_axis_is_the_turned_volume(network: SAM2, axis: str) -> None:
    """Slicing along y or x equals slicing the turned array along z; coordinates stay z, y, x."""
    image = blobs((8, 24, 20))
    number = "zyx".index(axis)
    turned = np.moveaxis(image, number, 0)
    point = [4, 9, 7]
    order = [number, *(n for n in range(3) if n != number)]
    box = (1.0, 2.0, 7.0, 12.0)
    along = segment(
        image, points={1: tuple(point)}, boxes={2: (6, box)}, axis=axis, model=network
    )  # fmt: skip
    reference = segment(
        turned, points={1: tuple(point[n] for n in order)}, boxes={2: (6, box)}, model=network
    )
    assert 0 < np.count_nonzero(along) < along.size
    np.testing.assert_array_equal(np.moveaxis(along, number, 0), reference)


def test_direction_and_prompt_order(network: SAM2) -> None:
    image = blobs((6, 24, 20))
    mask = np.zeros(image.shape, np.uint8)
    mask[3, 4:9, 4:9] = 300 - 255
    forward = segment(image, masks=mask, direction="forward", model=network)
    assert not forward[:3].any()
    backward = segment(image, masks=mask, direction="backward", model=network)
    assert not backward[4:].any()
    np.testing.assert_array_equal(forward[3], mask[3])
    some = segment(image, masks=mask, slices=(2, 4), model=network)
    np.testing.assert_array_equal(some[2:5], segment(image, masks=mask, model=network)[2:5])
    assert not some[:2].any() and not some[5:].any()
    ends = segment(image, masks=mask, ends={45: (2, 4)}, model=network)
    np.testing.assert_array_equal(ends, some)
    one = segment(image, points={2: [(1, 5, 5)], 9: [(4, 17, 14)]}, model=network)
    other = segment(image, points={9: [(4, 17, 14)], 2: [(1, 5, 5)]}, model=network)
    np.testing.assert_array_equal(one, other)
    assert segment(image, masks=mask.astype(np.uint16) * 10, model=network).dtype == np.uint16


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "u4", "i8", "f2", "f8", ">i2"])
def test_any_number_type(network: SAM2, dtype: str) -> None:
    """The same picture gives the same labels, whatever its values are stored as."""
    image = (blobs((3, 24, 20)) // 16).clip(0, 30)
    image = image > 12 if dtype == "?" else image
    labels = segment(image.astype(dtype), points={1: (1, 8, 7)}, model=network)
    reference = segment(image.astype(np.float32), points={1: (1, 8, 7)}, model=network)
    assert np.count_nonzero(labels != reference) <= 0.02 * labels.size


def test_colour_one_slice_and_progress(network: SAM2) -> None:
    picture = np.random.default_rng(2).integers(0, 255, (1, 30, 40, 3)).astype(np.uint8)
    seen: list[tuple[int, int]] = []
    labels = segment(
        picture, boxes={1: (0, (3, 3, 20, 20))}, model=network, progress=lambda *n: seen.append(n)
    )
    assert labels.shape == (1, 30, 40)
    assert seen == [(1, 1)]


def test_dicom_folder_to_nifti(tmp_path: Path, checkpoint: str) -> None:
    write_series(tmp_path / "ct", STORED, orientation=(0, 1, 0, 0, 0, -1), skip=(4,))
    out = tmp_path / "labels.nii.gz"
    run = shell(
        *("segment", tmp_path / "ct", "-o", out, "--point", "1:2,4,3", "--box", "2:1,1,1,6,5"),
        *("--model", checkpoint),
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("warning: 1 slice is missing: 5.00 mm lie between z = 3 and 4")
    assert "secret" not in (run.stdout + run.stderr).lower()  # the patient's name stays in the file
    image, written = itk_series(tmp_path / "ct"), sitk.ReadImage(out)
    assert written.GetSize() == image.GetSize()
    corners = {(0, 0, 0), (6, 7, 0)}  # ITK may stack the slices the other way round
    flipped = sitk.Flip(written, [False, False, True])
    ours = written if written.GetOrigin() == pytest.approx(image.GetOrigin()) else flipped
    for corner in corners:
        assert ours.TransformIndexToPhysicalPoint(corner) == pytest.approx(
            image.TransformIndexToPhysicalPoint(corner), abs=1e-3
        )


def test_time_lapse_to_ome_tiff(tmp_path: Path, checkpoint: str) -> None:
    movie = (blobs((5, 24, 20)) // 4 + 30).clip(0, 255).astype(np.uint8)
    metadata = {"axes": "TYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "TimeIncrement": 60.0}
    tifffile.imwrite(tmp_path / "m.ome.tif", movie, ome=True, metadata=metadata)
    first = np.zeros(movie.shape, np.uint16)
    first[0, 5:12, 4:11] = 3
    tifffile.imwrite(tmp_path / "first.tif", first)
    arguments = ["segment", str(tmp_path / "m.ome.tif"), "--mask", str(tmp_path / "first.tif")]
    out = tmp_path / "tracked.ome.tif"
    assert main([*arguments, "-o", str(out), "--model", checkpoint, "--quiet"]) == 0
    back = read_volume(out)
    assert back.axes == "tyx" and back.spacing == pytest.approx((60.0, 0.3, 0.3))
    np.testing.assert_array_equal(back.array[0], first[0])


def test_a_slice_that_cannot_be_read_is_left_out_and_told_of(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = damaged_zarr(tmp_path / "scans" / "p.ome.zarr")
    out = tmp_path / "labels.nii.gz"
    how = ["--mask", str(tmp_path / "mask.tif"), "--model", checkpoint]
    mask = np.zeros((8, 24, 20), np.uint8)
    mask[2, 6:12, 4:9] = 1
    tifffile.imwrite(how[1], mask)
    command = ["segment", str(tmp_path / "scans" / "p.ome.zarr"), "-o", str(out), *how, "--json"]
    assert main(command) == 7
    said = capsys.readouterr()
    assert "Slice 5 cannot be read" in json.loads(said.out)["incomplete"]
    assert said.err.splitlines()[-1].startswith("napari-sam2: Slice 5 cannot be read: ")
    incomplete = read_volume(out).array
    assert not incomplete[5].any()

    batch = ["batch", str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "--workers", "1"]
    batch += ["--masks", str(tmp_path / "masks"), "--model", checkpoint]
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "p.tif", mask)
    assert main(batch) == 6
    said = capsys.readouterr()
    assert "1 incomplete" in said.out and "Slice 5 cannot be read" in said.err
    assert "Slice 5 cannot be read" in (tmp_path / "out" / "report.html").read_text()
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "p.nii.gz").array, incomplete)
    chunk.rename(chunk.with_name("5.0.0"))  # now it can be read
    assert main(batch) == 0, "it is done anew"
    assert main([*command, "--overwrite"]) == 0
    whole = read_volume(out).array
    np.testing.assert_array_equal(whole[:5], incomplete[:5])
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "p.nii.gz").array, whole)


def test_so_is_a_slice_whose_dicom_file_is_damaged(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_series(
        tmp_path / "ct", blobs((8, 24, 20)).astype(np.int16), FrameOfReferenceUID="1.2.3"
    )
    out, content = tmp_path / "labels.dcm", paths[5].read_bytes()
    command = ["segment", str(tmp_path / "ct"), "-o", str(out), "--box", "1:2,6,4,12,9", "--json"]
    command += ["--window", "-60,400", "--model", checkpoint, "--measures", str(tmp_path / "m.csv")]
    assert main(command) == 0
    whole = read_labels(out, read_volume(tmp_path / "ct"))[0].array
    paths[5].write_bytes(content[: len(content) // 2])
    assert main([*command, "--overwrite"]) == 7
    said = capsys.readouterr()
    assert f"{paths[5]} is truncated or damaged" in said.err.splitlines()[-1]
    labels = read_labels(out, read_volume(tmp_path / "ct"))[0].array
    assert not labels[5].any()
    np.testing.assert_array_equal(labels[:5], whole[:5])

    mask = np.zeros((8, 24, 20), np.uint8)
    mask[2, 6:12, 4:9], mask[5, 2:18, 2:16] = 1, 1  # a person knows what is there
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    job = Job("ct", tmp_path / "ct", mask=tmp_path / "mask.tif")
    done = run_job(job, Settings(out=tmp_path, model=checkpoint))
    assert done.status == INCOMPLETE and done.thumbnail
    labels = read_labels(tmp_path / "ct.nii.gz")[0].array
    np.testing.assert_array_equal(labels[5], mask[5])
    rows = measure_labels(labels, read_volume(tmp_path / "ct")).frames
    known = {row.frame: row.mean for row in rows}
    assert known[2] is not None and known[5] is None


def damaged_zarr(path: Path) -> Path:
    """An OME-Zarr with rubbish in place of slice 5. Returns where the right chunk is."""
    image = blobs((8, 24, 20))
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=image, chunks=(1, 24, 20))
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [3, 1, 1]}]
    levels = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    chunk = path / "0" / "5.0.0"
    right = chunk.rename(path / "0" / "right")
    chunk.write_bytes(b"rubbish")
    return right


def test_overwrite_quiet_and_link(
    scan: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii"
    out.write_bytes(b"old")
    (tmp_path / "link.nii").symlink_to(out)
    arguments = ["segment", str(scan), "--point", "1:2,8,7", "--model", checkpoint, "-q"]
    assert main([*arguments, "-o", str(out)]) == 4
    assert out.read_bytes() == b"old"
    capsys.readouterr()
    assert main([*arguments, "-o", str(tmp_path / "link.nii"), "--overwrite"]) == 0
    assert nibabel.load(out).shape == (20, 24, 8)
    assert (tmp_path / "link.nii").is_symlink()
    assert capsys.readouterr() == ("", "")


@needs_data
def test_real_volumes(tmp_path: Path, checkpoint: str) -> None:
    for image, box in [
        (DATA / "dev" / "hippocampus" / "hippocampus_034.nii.gz", "1:20,20,10,35,25"),
        (DATA / "io" / "dicom_mr_three_studies" / "Study1", "1:16,10,10,30,25"),
    ]:
        out = tmp_path / f"{image.name}_labels.nii.gz"
        arguments = ["segment", str(image), "-o", str(out), "--box", box, "--model", checkpoint]
        assert main(arguments) == 0
        volume, written = read_volume(image), read_volume(out)
        assert written.shape == volume.shape
        np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)


# ---- bad input


POINT = ("--point", "1:2,8,7")
OUT = ("scan.nii.gz", "-o", "out.nii.gz")
BAD = {
    # name: (arguments after "segment", exit code, part of the message)
    "no such file": (
        ("missing.nii.gz", "-o", "out.nii.gz", *POINT),
        3,
        "no file or folder missing",
    ),
    "empty": (("empty.nii.gz", "-o", "out.nii.gz", *POINT), 3, "empty.nii.gz is empty"),
    "truncated": (("cut.nii.gz", "-o", "out.nii.gz", *POINT), 3, "cut.nii.gz is damaged"),
    "text": (("text.nii", "-o", "out.nii.gz", *POINT), 3, "text.nii is damaged or not what"),
    "text as tif": (("text.tif", "-o", "out.tif", *POINT), 3, "text.tif is damaged or not what"),
    "text as png": (("text.png", "-o", "out.tif", *POINT), 3, "text.png is damaged or not what"),
    "other format": (("text.xyz", "-o", "out.nii.gz", *POINT), 3, "not an image that can be read"),
    "empty folder": (("folder", "-o", "out.nii.gz", *POINT), 3, "folder holds no DICOM images"),
    "4-D": (("4d.nii.gz", "-o", "out.nii.gz", *POINT), 3, "choose one with --volume 0 to"),
    "no prompts": (("scan.nii.gz", "-o", "out.nii.gz"), 2, "there are no prompts"),
    "point outside": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--point", "1:2,8,20"),
        3,
        "point 1:2,8,20 lies outside the image: the image has 8 x 24 x 20 voxels (z, y, x)",
    ),
    "negative index": (("scan.nii.gz", "-o", "out.nii.gz", "--point", "1:-1,8,7"), 3, "outside"),
    "box outside": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--box", "1:8,0,0,5,5"),
        3,
        "box 1:8,0,0,5,5 lies outside the image: the image has 8 x 24 x 20",
    ),
    "box outside along y": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--axis", "y", "--box", "1:5,0,0,9,5"),
        3,
        "outside",
    ),
    "box reversed": (("scan.nii.gz", "-o", "out.nii.gz", "--box", "1:2,9,9,3,3"), 3, "is empty"),
    "two boxes": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--box", "1:2,3,3,9,9", "1:2,3,3,8,8"),
        3,
        "two boxes on slice 2",
    ),
    "between slices": (("scan.nii.gz", "-o", "out.nii.gz", "--point", "1:2.5,8,7"), 3, "between"),
    "only negative": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--negative", "3:2,8,7"),
        3,
        "Object 3 has only negative points",
    ),
    "no id": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--point", "2,8,7"),
        2,
        "number from 1 and a colon",
    ),
    "id 0": (("scan.nii.gz", "-o", "out.nii.gz", "--point", "0:2,8,7"), 2, "number from 1"),
    "id too large": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--point", "99999999999:2,8,7"),
        3,
        "ids are whole numbers from 1 to 2147483647",
    ),
    "id too large in a mask": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "large_ids.nii.gz"),
        3,
        "ids are whole numbers from 1 to 2147483647, not 3999999997",
    ),
    "too few numbers": (("scan.nii.gz", "-o", "out.nii.gz", "--box", "1:2,8,7"), 2, "5 numbers"),
    "not a number": (("scan.nii.gz", "-o", "out.nii.gz", "--point", "1:2,a,7"), 2, "3 numbers"),
    "nan": (("scan.nii.gz", "-o", "out.nii.gz", "--point", "1:2,nan,7"), 2, "3 numbers"),
    "bad axis": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--axis", "w"), 2, "--axis"),
    "bad window": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--window", "5,-5"), 2, "smaller"),
    "empty window": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--window", "5,5"), 2, "smaller"),
    "no such slices": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--slices", "3,8"), 3, "has 8"),
    "slices reversed": (("scan.nii.gz", "-o", "o.nii", *POINT, "--slices", "5,3"), 2, "smaller"),
    "ends between slices": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--ends", "1:1,2.5"),
        3,
        "cannot be on slices 1 to 2.5: the image has 8",
    ),
    "ends without an object": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--ends", "1,2"),
        2,
        "as in 1:30,55",
    ),
    "unknown option": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--boxx", "1"), 2, "--boxx"),
    "no output": (("scan.nii.gz", *POINT), 2, "-o/--output"),
    "output format": (("scan.nii.gz", "-o", "out.png", *POINT), 4, "must end in .nii"),
    "output folder": (("scan.nii.gz", "-o", "no/out.nii", *POINT), 4, "there is no folder no"),
    "output is a folder": (("scan.nii.gz", "-o", "dir.nii", *POINT), 4, "it is a folder"),
    "output exists": (("scan.nii.gz", "-o", "4d.nii.gz", *POINT), 4, "--overwrite"),
    "output is the image": (
        ("scan.nii.gz", "-o", "folder/../scan.nii.gz", *POINT, "--overwrite"),
        4,
        "would replace the image scan.nii.gz",
    ),
    "output is the mask": (
        ("scan.nii.gz", "-o", "mask.nii.gz", "--mask", "mask.nii.gz", "--overwrite"),
        4,
        "would replace the mask mask.nii.gz",
    ),
    "output holds the mask": (
        ("scan.nii.gz", "-o", "a_RES", "--mask", "a_RES/mask000.tif", "--overwrite"),
        4,
        "would replace the mask a_RES/mask000.tif",
    ),
    "measures are the image": (
        (*OUT, *POINT, "--measures", "scan.nii.gz", "--overwrite"),
        4,
        "scan.nii.gz (--measures) would replace the image",
    ),
    "measures are the mask": (
        (*OUT, "--mask", "link.csv", "--measures", "link.csv", "--overwrite"),
        4,
        "would replace the mask",
    ),
    "measures are the output": (
        (*OUT, *POINT, "--measures", "out.nii.gz"),
        4,
        "(--measures) would replace each other",
    ),
    "measures without csv": ((*OUT, *POINT, "--measures", "table.txt"), 4, "must end in .csv"),
    "measures exist": ((*OUT, *POINT, "--measures", "old.csv"), 4, "old.csv: it exists already"),
    "measures of objects exist": (
        (*OUT, *POINT, "--measures", "mm.csv"),
        4,
        "mm_objects.csv: it exists already; --overwrite",
    ),
    "measures are a folder": (
        (*OUT, *POINT, "--measures", "dir.csv", "--overwrite"),
        4,
        "dir.csv: it is a folder",
    ),
    "measures of objects are a folder": (
        (*OUT, *POINT, "--measures", "m.csv", "--overwrite"),
        4,
        "m_objects.csv: it is a folder",
    ),
    "no folder of measures": (
        (*OUT, *POINT, "--measures", "no/m.csv"),
        4,
        "there is no folder no",
    ),
    "unwritable folder of measures": (
        (*OUT, *POINT, "--measures", "/proc/m.csv"),
        4,
        "/proc/m.csv",
    ),
    "unwritable folder": (("scan.nii.gz", "-o", "/proc/out.nii.gz", *POINT), 4, "/proc/out.nii.gz"),
    "mask of another shape": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "small.nii.gz"),
        3,
        "mask small.nii.gz has the shape (3, 4, 5), the image scan.nii.gz (8, 24, 20)",
    ),
    "mask elsewhere": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "moved.nii.gz"),
        3,
        "lies elsewhere in space",
    ),
    "mask is empty": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "blank.nii.gz"),
        3,
        "no prompts",
    ),
    "mask is an image": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "scan.nii.gz"),
        3,
        "holds an image, not labels",
    ),
    "mask is an image of whole numbers": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "mri.nii.gz"),
        3,
        "mri.nii.gz holds an image, not labels: it has many values",
    ),
    "mask and box": (
        ("scan.nii.gz", "-o", "out.nii.gz", "--mask", "mask.nii.gz", "--box", "7:3,1,1,9,9"),
        3,
        "has a mask on slice 3, and a box or points",
    ),
    "no such model": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--model", "sam3-huge"),
        5,
        "sam3-huge",
    ),
    "model file missing": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--model", "none.safetensors"),
        5,
        "none.safetensors",
    ),
    "model is no model": (
        ("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--model", "./text.pt"),
        5,
        "text.pt",
    ),
    "bad device": (("scan.nii.gz", "-o", "out.nii.gz", *POINT, "--device", "tpu9"), 5, "tpu9"),
}


@pytest.fixture
def desk(tmp_path: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of good and bad files, made the current one."""
    monkeypatch.chdir(tmp_path)
    content = scan.read_bytes()
    affine = nibabel.load(scan).affine
    for name, data in [("cut.nii.gz", content[:-900]), ("empty.nii.gz", b"")]:
        (tmp_path / name).write_bytes(data)
    for name in ("text.nii", "text.tif", "text.png", "text.xyz", "text.pt"):
        (tmp_path / name).write_text("not an image, not a model\n" * 40)
    for name in ("folder", "dir.nii", "dir.csv", "m_objects.csv", "a_RES"):
        (tmp_path / name).mkdir()
    for name in ("old.csv", "mm_objects.csv", "a_RES/mask000.tif", "a_RES/res_track.txt"):
        (tmp_path / name).write_text("mine")
    mask = np.zeros((20, 24, 8), np.uint8)

    def save(name: str, array: np.ndarray, where: np.ndarray) -> None:
        nibabel.save(nibabel.Nifti1Image(array, where), tmp_path / name)

    save("4d.nii.gz", np.zeros((3, 4, 5, 6), np.int16), affine)
    save("small.nii.gz", np.ones((5, 4, 3), np.uint8), affine)
    save("blank.nii.gz", mask, affine)
    save("mri.nii.gz", nibabel.load(scan).get_fdata() + 200, affine)
    mask[4:9, 5:9, 3] = 7
    save("mask.nii.gz", mask, affine)
    save("moved.nii.gz", mask, affine @ np.diag([-1.0, 1, 1, 1]))
    save("large_ids.nii.gz", mask.astype(np.uint32) * (4_000_000_000 // 7), affine)
    (tmp_path / "link.csv").symlink_to("mask.nii.gz")
    return tmp_path


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gives_one_line_and_no_file(
    name: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, message = BAD[name]
    before = snapshot(desk)
    assert main(["segment", *arguments]) == code
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.count("\n") == 1 and text.err.startswith("napari-sam2: "), text.err
    assert message in text.err, text.err
    assert snapshot(desk) == before


def test_bad_input_in_a_process_of_its_own(desk: Path) -> None:
    """No traceback, and no line of a library slips through."""
    write_series(desk / "packed", STORED[:2])
    for path in (desk / "packed").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    before = snapshot(desk)
    for arguments, code in [
        (["segment", "cut.nii.gz", "-o", "out.nii", *POINT], 3),
        (["segment", "text.tif", "-o", "out.nii", *POINT], 3),
        (["segment", "packed", "-o", "out.nii", *POINT], 3),
        (["segment", "scan.nii.gz", "-o", "out.nii", *POINT, "--model", "sam3-huge"], 5),
        (["segmnt"], 2),
        ([], 2),
    ]:
        run = shell(*arguments)
        assert run.returncode == code, run.stderr
        assert run.stdout == "" and run.stderr.count("\n") == 1, run.stderr
        assert "Traceback" not in run.stderr
    assert snapshot(desk) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(desk: Path) -> None:
    (desk / "folder").chmod(0o500)
    run = shell("segment", "scan.nii.gz", "-o", "folder/out.nii.gz", *POINT)
    assert run.returncode == 4 and "Permission denied" in run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tracks", "t.csv", "--measures", "t.csv"], "would replace each other"),
        (["--tracks", "t_objects.csv", "--measures", "t.csv"], "would replace each other"),
        (["--tracks", "/proc/t.csv"], "/proc/t.csv: "),
        (["--tracks", "/proc/t.geff"], "/proc/t.geff: "),
        (["--tracks", "dir.csv", "--overwrite"], "dir.csv: it is a folder"),
        (["--tracks", "old.csv"], "old.csv: it exists already; --overwrite"),
    ],
)
def test_tracks_are_looked_at_before_anything_is_read(
    desk: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    before = snapshot(desk)
    for command in (["find", "none.tif"], ["replay", "none.sam2session", "none.tif"]):
        assert main([*command, "-o", "out.tif", *options]) == 4
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert snapshot(desk) == before


def test_replay_does_not_replace_its_session(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["replay", "old.csv", "scan.nii.gz", "-o", "out.nii", "--overwrite"]
    for option in ("--measures", "--tracks"):
        assert main([*command, option, "old.csv"]) == 4
        assert "would replace the session old.csv" in capsys.readouterr().err


def test_what_a_full_disk_does_not_take_is_kept_elsewhere(
    tmp_path: Path,
    desk: Path,
    checkpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No file may grow beyond what tables and compressed labels take."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept")
    image = blobs((3, 600, 600))  # more voxels than bytes that are tried before
    nibabel.save(nibabel.Nifti1Image(image.T, OBLIQUE), "large.nii.gz")
    (desk / "out.nii").write_bytes(b"old")
    command = ["segment", "large.nii.gz", "-o", "out.nii", *POINT, "--model", checkpoint, "-q"]
    command += ["--overwrite", "--measures", "new.csv"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (image.size, limits[1]))
    try:
        assert main(command) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder,) = results.KEPT.iterdir()
    error = capsys.readouterr().err
    assert (
        f"out.nii could not be written: File too large. What was found is kept in {folder}" in error
    )
    assert sorted(file.name for file in folder.iterdir()) == [
        "new.csv",
        "new_objects.csv",
        "out.nii.gz",
    ]
    assert (desk / "out.nii").read_bytes() == b"old"
    assert main(command) == 0
    kept = read_labels(folder / "out.nii.gz")[0].array
    assert kept.any()
    np.testing.assert_array_equal(kept, read_labels("out.nii")[0].array)

    def full(path: Path, text: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("napari_sam2.measures.write_text", full)
    old = (desk / "out.nii").read_bytes()
    assert main(command) == 4
    assert "new.csv could not be written: No space left" in capsys.readouterr().err
    assert (desk / "out.nii").read_bytes() == old and len([*results.KEPT.rglob("out.nii")]) == 1


def test_convert_does_not_replace_what_it_reads(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(desk)
    for arguments in (
        ["mask.nii.gz", "mask.nii.gz"],
        ["mask.nii.gz", "scan.nii.gz", "--like", "scan.nii.gz"],
    ):
        assert main(["convert", *arguments, "--overwrite"]) == 4
        assert "it is the input itself; give another name." in capsys.readouterr().err
    assert snapshot(desk) == before


def test_a_slice_of_a_series_is_not_replaced_by_a_segmentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "series", STORED)
    before = snapshot(tmp_path)
    one, other = sorted((tmp_path / "series").iterdir())[:2]
    other = other.rename(other.with_suffix(".dcm"))
    before = snapshot(tmp_path)
    assert main(["segment", str(one), "-o", str(other), *POINT, "--overwrite"]) == 4
    assert "it is an image, not a segmentation" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_a_mask_of_the_first_frame_alone(tmp_path: Path, checkpoint: str) -> None:
    movie = blobs((6, 24, 20))
    mask = np.zeros((24, 20), np.uint8)
    mask[5:11, 4:10] = 7
    tifffile.imwrite(tmp_path / "cells.ome.tif", movie, metadata={"axes": "TYX"})
    tifffile.imwrite(tmp_path / "first.tif", mask)
    out = tmp_path / "tracked.ome.tif"
    command = ["segment", str(tmp_path / "cells.ome.tif"), "-o", str(out), "--direction", "forward"]
    command += ["--mask", str(tmp_path / "first.tif"), "--model", checkpoint, "--device", "cpu"]
    assert main([*command, "-q"]) == 0
    labels = tifffile.imread(out)
    assert labels.shape == movie.shape
    np.testing.assert_array_equal(labels[0], mask)


def test_a_mask_of_tracks_brings_their_parents(tmp_path: Path, checkpoint: str) -> None:
    image = blobs((6, 24, 20))
    movie, tracks = tmp_path / "movie.ome.tif", np.zeros(image.shape, np.uint16)
    tifffile.imwrite(movie, image, metadata={"axes": "TYX"})
    for number, frames in {1: (0, 1), 2: (3,), 3: (3, 4), 4: (1, 2)}.items():
        tracks[list(frames), 4 * number : 4 * number + 4, 4:9] = number
    volume = read_volume(movie)
    write_labels(tmp_path / "01_RES", tracks, volume, parents={2: 1, 3: 1})
    with (tmp_path / "01_RES" / "res_track.txt").open() as file:
        table = file.read()
    damaged = table.replace("4 1 2 0", "4 1 2 1")  # 1 is still there as 4 begins
    assert damaged != table
    (tmp_path / "01_RES" / "res_track.txt").write_text(damaged)
    how = ["--mask", str(tmp_path / "01_RES"), "--model", checkpoint, "-q"]
    assert main(["segment", str(movie), "-o", str(tmp_path / "out_RES"), *how]) == 0
    assert read_parents(tmp_path / "out_RES") == {2: 1, 3: 1}
    found = read_labels(tmp_path / "out_RES")[0].array
    assert not (found[2:] == 1).any() and not np.isin(found[:3], [2, 3]).any()
    np.testing.assert_array_equal(found[3] == 2, tracks[3] == 2)


def test_functions_of_a_script_raise_the_same(network: SAM2) -> None:
    image = blobs((6, 24, 20))
    for arguments, message in [
        ({}, "no prompts"),
        ({"points": {1: (6, 0, 0)}}, "outside the image"),
        ({"points": {1: (0, 0)}}, "outside the image"),
        ({"points": {-1: (0, 0, 0)}}, "from 1"),
        ({"boxes": {1: (0, (0, 0, 5, 5))}, "axis": 3}, "axis"),
        ({"points": [(0, 0, 0)]}, "are given by object"),
        ({"points": {1: 5}}, "object 1 are given as in"),
        ({"points": {1: ("a", 0, 0)}}, "as in|A point is"),
        ({"boxes": {1: (0, 0, 0, 5, 5)}}, "A box is a slice and its corners"),
        ({"boxes": {1: (0, (0, 0, 5))}}, "A box is a slice and its corners"),
        ({"boxes": {1: [(0, (0, 0, 5, 5)), (1, 2)]}}, "A box is a slice and its corners"),
        ({"masks": np.ones((2, 2, 2), int)}, "shape"),
        ({"masks": np.full(image.shape, 0.5)}, "whole numbers"),
        ({"points": {1: (0, 0, 0)}, "window": (4.0, 4.0)}, "window"),
        ({"points": {1: (0, 0, 0)}, "direction": "up"}, "direction"),
        ({"points": {1: (0, 0, 0)}, "ends": {1: 3}}, "its first and last slice, not 3"),
        ({"points": {1: (0, 0, 0)}, "ends": {1: (0, 6)}}, "slices 0 to 6: the image has 6"),
        ({"points": {1: (0, 0, 0)}, "ends": {1: (3, 1)}}, "slices 3 to 1"),
        ({"points": {1: (0, 0, 0)}, "ends": {1: (2, 4)}}, "2 to 4 alone: it is marked on slice 0"),
        ({"points": {1: (0, 0, 0)}, "ends": {2: (2, 4)}}, "Object 2 has ends, but no box"),
    ]:
        with pytest.raises(PromptError, match=message):
            segment(image, model=network, **arguments)
    with pytest.raises(PromptError, match="not list"):
        segment(image.tolist(), points={1: (0, 0, 0)}, model=network)
    with pytest.raises(PromptError, match="shape"):
        segment(image[0], points={1: (0, 0, 0)}, model=network)


@pytest.mark.skipif(os.name == "nt", reason="signals are sent another way on Windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle(tmp_path: Path, checkpoint: str, number: int) -> None:
    image = np.tile(blobs((8, 64, 64)), (100, 1, 1))
    nibabel.save(nibabel.Nifti1Image(image.T, OBLIQUE), tmp_path / "long.nii")
    (tmp_path / "out.nii").write_bytes(b"old")
    command = [sys.executable, "-m", "napari_sam2", "segment", "long.nii", "-o", "out.nii"]
    command += ["--point", "1:400,22,22", "--model", checkpoint, "--overwrite", "--device", "cpu"]
    # A test run in the background of a script has Ctrl-C switched off, which children inherit.
    attentive = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=attentive
    ) as process:
        assert process.stderr is not None
        begun = b""
        deadline = time.monotonic() + 90
        while b"/800" not in begun and time.monotonic() < deadline:
            begun += os.read(process.stderr.fileno(), 4096)
        process.send_signal(number)
        rest = process.stderr.read().decode()
        assert process.wait(60) == 130, rest
    assert rest.rstrip().splitlines()[-1] == "napari-sam2: stopped; no labels were written"
    assert "Traceback" not in rest
    assert (tmp_path / "out.nii").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.nii", "out.nii"]


# ---- the rest of the command


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, napari_sam2.cli as cli\n"
        "try: cli.main(['segment', '--help'])\n"
        "except SystemExit: pass\n"
        "cli.main(['segment', 'none.nii', '-o', '/tmp/x.nii', '--point', '1:2,3,4'])\n"
        "heavy = {'torch', 'napari', 'qtpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    for word in ("--box", "--mask", "--axis", "exit codes", "130", "examples"):
        assert word in run.stdout


def test_the_shape_of_a_picture_has_as_many_numbers_as_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((256, 320), np.uint8))
    assert main(["info", str(tmp_path / "a.tif")]) == 0
    assert "256 x 320 (y, x), uint8" in capsys.readouterr().out
    assert main(["info", "--json", str(tmp_path / "a.tif")]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["shape"], said["axes"], len(said["spacing"])) == ([256, 320], "yx", 2)


def test_info_tells_of_the_files_beside_one_that_cannot_be_read(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["scan.nii.gz", "cut.nii", "mask.nii.gz", "text.tif"]
    assert main(["info", *files]) == 3
    said = capsys.readouterr()
    assert "8 x 24 x 20 (z, y, x), int16" in said.out
    assert "8 x 24 x 20 (z, y, x), uint8" in said.out
    errors = said.err.splitlines()
    assert len(errors) == 2 and "no file or folder cut.nii" in errors[0]
    assert "text.tif is damaged" in errors[1]
    assert main(["info", "--json", *files]) == 3
    assert [one["dtype"] for one in json.loads(capsys.readouterr().out)] == ["int16", "uint8"]


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in ("nano", "sam2.1-tiny", "sam2.1-large", "sam2-base-plus", "medsam2"):
        assert name in listed


def test_version() -> None:
    run = shell("--version")
    assert run.returncode == 0 and run.stdout.startswith("napari-sam2 0.")
