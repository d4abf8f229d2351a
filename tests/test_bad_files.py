"""Damaged and odd files: one clear sentence each; no traceback, no hang, no memory, no traces."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
from damaged import make_all
from dicom_series import write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_sam2.io import ReadError, Volume, list_images, read_image
from napari_sam2.io.readers import get_reader

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    return make_all(tmp_path_factory.mktemp("bad"))


def test_each_gives_one_sentence_and_takes_little_memory(bad_files: dict[Path, str]) -> None:
    assert len(bad_files) >= 40
    wrong = []
    for path, message in bad_files.items():
        tracemalloc.start()
        text = "it was read"
        try:
            read_image(path).array[...].sum()
            np.asarray(read_image(path).array)
        except ReadError as error:
            text = str(error)
        except Exception as error:
            text = f"{error!r} is no ReadError"
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if path.name not in text or message not in text or "\n" in text or len(text) > 600:
            wrong.append(f"{path}: {text}")
        if peak > 200 * MEGABYTE:
            wrong.append(f"{path}: took {peak / MEGABYTE:.0f} MB")
    assert not wrong, "\n".join(wrong)


def test_what_is_in_them_can_be_asked_for(bad_files: dict[Path, str]) -> None:
    """Listing says what is there, or the sentence; pixels are not looked at."""
    for path in bad_files:
        try:
            assert list_images(path)
        except ReadError as error:
            assert path.name in str(error)


def test_the_command_line_says_the_sentence_and_writes_nothing(
    bad_files: dict[Path, str], tmp_path: Path
) -> None:
    """In a process that may not have much memory, and is stopped if it hangs."""
    script = (
        "import resource, sys\n"
        "from napari_sam2.cli import main\n"
        "import sam2_engine.weights\n"  # with its libraries, before memory is limited
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "out, paths = sys.argv[1], sys.argv[2:]\n"
        "for path in paths:\n"
        "    print(main(['segment', path, '-o', out, '--box', '1:0,1,1,5,5']), flush=True)\n"
    )
    folder = next(iter(bad_files)).parents[1]
    before = sorted(folder.rglob("*"))
    paths = [str(path) for path in bad_files if path.name != "damaged_chunk.zarr"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out.nii.gz"), *paths],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("napari-sam2: ")]
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout.split() == ["3"] * len(paths), done.stderr
    assert len(lines) == len(paths)
    assert sorted(folder.rglob("*")) == before and list(tmp_path.iterdir()) == []


def test_napari_gets_the_sentence_too(bad_files: dict[Path, str]) -> None:
    for path in bad_files:
        if path.is_file() and (reader := get_reader(str(path))) is not None:
            try:
                reader(str(path))
            except ReadError as error:
                assert path.name in str(error)


# ---- fuzz


FORMATS = {".nii": 352, ".tif": 400, ".nrrd": 250, ".dcm": 900}  # and how long their headers are


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    data = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / "a.nii")
    tifffile.imwrite(folder / "a.tif", data, compression="zlib", photometric="minisblack")
    directions = {"space": "LPS", "space directions": np.eye(3), "space origin": [0, 0, 0]}
    nrrd.write(str(folder / "a.nrrd"), data, directions | {"encoding": "gzip"})
    (path,) = write_series(folder / "ct", data[:1].astype(np.uint16))
    path.rename(folder / "a.dcm")
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in FORMATS}


@pytest.mark.parametrize("suffix", FORMATS)
@settings(
    max_examples=50, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(flips=st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_header_is_read_or_refused(
    tmp_path: Path, small_files: dict[str, bytes], suffix: str, flips: list[tuple[int, int]]
) -> None:
    """Whatever bytes a header has, the reader gives a Volume or a ReadError, and nothing else."""
    content = bytearray(small_files[suffix])
    for position, value in flips:
        content[position % FORMATS[suffix]] = value
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        volume = read_image(path)
        assert isinstance(volume, Volume)
        assert volume.array.nbytes < 100 * MEGABYTE
        np.asarray(volume.array)
    except ReadError as error:
        assert "\n" not in str(error)
