"""Whatever happens while labels are written, the file or folder that was there stays whole."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from pydicom.uid import generate_uid

from napari_sam2.io import Volume, WriteError, check_target, read_labels, read_volume, write_labels

NAMES = [
    *("l.nii.gz", "l.nii", "l.tif", "l.ome.tif", "l.nrrd", "l.seg.nrrd", "l.ome.zarr", "l.dcm"),
    "l.rtstruct.dcm",
]
SHAPE = (6, 8, 7)

_START = """\
import sys, numpy as np
from pathlib import Path
from dataclasses import replace
from napari_sam2.io import WriteError, check_target, read_volume, write_labels
folder, names = Path(sys.argv[1]), sys.argv[2:]
image = read_volume(folder / "ct")
rng = np.random.default_rng()

def write(name, value):
    labels = value * (rng.random((6, 8, 7)) < 0.5)
    labels[:, 0, 0] = value
    like = replace(image, axes="tyx", affine=None) if name.endswith("_RES") else image
    write_labels(folder / name, labels, like, overwrite=True)
"""


def child(code: str, folder: Path, names: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _START + code, str(folder), *names],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a CT, and old labels of it in every format, all 1 in the corner."""
    write_series(tmp_path / "ct", FrameOfReferenceUID=generate_uid())
    image = read_volume(tmp_path / "ct")
    for name in NAMES:
        write_labels(tmp_path / name, np.ones(SHAPE, int), image)
    movie = Volume(np.zeros(SHAPE), axes="tyx")
    write_labels(tmp_path / "l_RES", np.ones(SHAPE, int), movie)
    return tmp_path


def corner(path: Path, image: Volume) -> int:
    """The value that all slices have in the corner: the labels are whole, and of one writing."""
    labels, _, _ = read_labels(path, image if path.suffix == ".dcm" else None)
    values = np.unique(np.squeeze(labels.array)[:, 0, 0])
    assert labels.array.size == np.prod(SHAPE) and len(values) == 1
    return int(values[0])


def left_over(folder: Path) -> list[str]:
    return sorted({p.name for p in folder.iterdir()} - {"ct", "l_RES", *NAMES})


def test_a_full_disk(desk: Path) -> None:
    """No file may grow beyond a few bytes, as on a full disk."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
for name in names[:-1]:
    try:
        check_target(folder / name, overwrite=True, like=image)
    except WriteError as error:
        print(error)
for name in names:
    try:
        write(name, 2)
    except WriteError as error:
        print(error)
"""
    names = [*NAMES, "l_RES"]
    out, err = child(code, desk, names).communicate(timeout=120)
    before, lines = out.splitlines()[: len(NAMES)], out.splitlines()[len(NAMES) :]
    for name, line in zip(NAMES, before, strict=True):
        assert line == f"Labels cannot be written to {desk / name}: File too large."
    assert len(lines) == len(names), err
    for name, line in zip(names, lines, strict=True):
        assert str(desk / name) in line and "could not be written: File too large" in line
    image = read_volume(desk / "ct")
    assert [corner(desk / name, image) for name in names] == [1] * len(names)
    assert left_over(desk) == []


def test_a_killed_process(desk: Path) -> None:
    """Killed at any time, every file is the old one or one of the new ones."""
    code = """
print("ready", flush=True)
for value in range(2, 10_000):
    for name in names:
        write(name, value % 200 + 1)
"""
    names = [*NAMES, "l_RES"]
    process = child(code, desk, names)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(np.random.default_rng().uniform(0.3, 1.3))  # some rounds of all files
    process.kill()
    process.communicate()
    image = read_volume(desk / "ct")
    for name in names:
        there = desk / name
        if not there.exists():  # between two renames of a folder
            (there,) = desk.glob(f"{name}.old-*")
        assert corner(there, image) >= 1
    for name in left_over(desk):
        assert (name.startswith(".") and ".part" in name) or ".old-" in name


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that may not be written, as somebody who is not the superuser."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "l.nii.gz").write_bytes(b"old")
        folder.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.seg.nrrd", "l.ome.zarr", "l_RES"])
def test_a_read_only_folder(locked_folder: Path, name: str) -> None:
    with pytest.raises(WriteError, match=r"cannot be written.*Permission denied|write-protected"):
        write_labels(locked_folder / name, np.ones((2, 3, 4), int), volume(), overwrite=True)
    assert [p.name for p in locked_folder.iterdir()] == ["l.nii.gz"]
    assert (locked_folder / "l.nii.gz").read_bytes() == b"old"


def volume() -> Volume:
    return Volume(np.zeros((2, 3, 4), np.uint8), axes="tyx")


@pytest.mark.parametrize("name", ["l.nii.gz", "l.ome.tif", "l.nrrd", "l.ome.zarr", "l_RES"])
def test_what_exists_is_replaced_only_if_asked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_labels(path, np.ones((2, 3, 4), int), volume())
    with pytest.raises(WriteError, match="--overwrite"):
        write_labels(path, np.full((2, 3, 4), 2), volume())
    assert read_labels(path)[0].array.max() == 1
    write_labels(path, np.full((2, 3, 4), 2), volume(), overwrite=True)
    assert read_labels(path)[0].array.min() == 2
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    for name in ("l.ome.zarr", "01_RES"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("years of work")
        with pytest.raises(WriteError, match="something else"):
            check_target(tmp_path / name, overwrite=True)
        assert (tmp_path / name / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file.ome.zarr").write_text("a file")
    with pytest.raises(WriteError, match="it is a file, and a folder is needed"):
        check_target(tmp_path / "file.ome.zarr", overwrite=True)


def test_a_folder_that_cannot_be_moved_into_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.ome.zarr"
    write_labels(path, np.ones((2, 3, 4), int), volume())
    replace = os.replace

    def fails(source: str | Path, target: str | Path) -> None:
        if ".part" in str(source):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(WriteError, match="No space left"):
            write_labels(path, np.full((2, 3, 4), 2), volume(), overwrite=True)
    assert read_labels(path)[0].array.max() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["l.ome.zarr"]
