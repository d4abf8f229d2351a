"""What is otherwise on Windows and macOS, emulated: open files, names, paths, keys."""

from __future__ import annotations

import os
import sys
import threading
import unicodedata
from pathlib import Path, PureWindowsPath

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from models import small_model
from windows_like import held, hold_what_is_open

from napari_sam2 import batch_worker, targets
from napari_sam2.batch import BatchError, JobError, JobResult, Settings, jobs_of, run_batch
from napari_sam2.batch_jobs import read_prompts
from napari_sam2.batch_report import write_report
from napari_sam2.feature_files import FeatureFiles
from napari_sam2.io import Volume, WriteError, read_image, read_labels, write_labels
from napari_sam2.session import Session
from napari_sam2.session_file import open_session, read_session, save_session
from napari_sam2.session_format import write_session
from napari_sam2.targets import file_name, overlap
from napari_sam2.tracks import write_tracks
from sam2_engine import load_model, whole_file
from sam2_engine.weights import WeightsError, download, save_model
from sam2_engine.whole_file import beside, write_text

SHAPE = (3, 24, 32)
OPEN = "may be open in another program, or as a layer in napari"


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("Linux plays Windows")
    hold_what_is_open(monkeypatch)
    monkeypatch.setattr(whole_file, "_WAITS", (0.0, 0.0))


def labels(value: int) -> np.ndarray:
    found = np.zeros(SHAPE, np.uint8)
    found[:, 4:9, 5:12] = value
    return found


# -- files that are open -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l.nii", "l.tif", "l.nii.gz", "l.seg.nrrd", "l_RES"])
def test_labels_over_the_file_that_a_layer_shows(windows: None, tmp_path: Path, name: str) -> None:
    axes = "tyx" if name == "l_RES" else "zyx"
    like, path = Volume(np.zeros(SHAPE, np.uint8), axes=axes), tmp_path / name
    write_labels(path, labels(1), like)
    shown = read_image(path).array
    assert np.asarray(shown[0]).max() == 1
    if name in ("l.nii", "l.tif"):  # of others, values are in memory or read file by file
        assert held(path)
        with pytest.raises(WriteError, match=OPEN):
            write_labels(path, labels(2), like, overwrite=True)
        assert np.asarray(shown).max() == 1
    del shown  # the layer is removed
    known = read_labels(path)[0].array
    write_labels(path, labels(2), like, overwrite=True)
    assert known.max() == 1
    assert read_labels(path)[0].array.max() == 2
    assert os.listdir(tmp_path) == [name]


def test_what_is_open_is_found_before_and_kept_after(windows: None, tmp_path: Path) -> None:
    folder = tmp_path / "l.ome.zarr"
    like = Volume(np.zeros(SHAPE, np.uint8), axes="zyx")
    write_labels(folder, labels(1), like)
    with (folder / "zarr.json").open("rb"), pytest.raises(WriteError, match=OPEN):
        write_labels(folder, labels(2), like, overwrite=True)
    assert read_labels(folder)[0].array.max() == 1
    session, path = Session(np.zeros(SHAPE, np.uint8), small_model()), tmp_path / "w.sam2session"
    save_session(session, path)
    session.add_object("liver")
    with path.open("rb"), pytest.raises(WriteError, match=OPEN):
        save_session(session, path)
    assert not read_session(path).state.objects
    save_session(open_session(path, session.image, model=small_model()), path)
    save_session(session, path)  # it was read, and is closed again
    assert len(read_session(path).state.objects) == 1
    assert sorted(os.listdir(tmp_path)) == ["l.ome.zarr", "w.sam2session"]


def test_a_scanner_that_looks_at_a_file_for_a_moment(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_file, "_WAITS", (0.1, 0.3, 0.6))
    path = tmp_path / "table.csv"
    write_text(path, "old")
    scanned = path.open("rb")
    threading.Timer(0.2, scanned.close).start()
    write_text(path, "new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["table.csv"]


def test_a_model_that_is_in_use_is_replaced(windows: None, tmp_path: Path) -> None:
    path = tmp_path / "my.safetensors"
    save_model(small_model(), path)
    model = load_model(path, device="cpu")
    save_model(model, path)
    assert os.listdir(tmp_path) == ["my.safetensors"]


def test_a_damaged_download_that_is_open_in_another_program(windows: None, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(b"damaged")
    with path.open("rb"), pytest.raises(WeightsError, match=r"7 bytes instead of 9.* It is in use"):
        download._check(path, path.name, 9, None, ours=True)
    with pytest.raises(WeightsError, match="It was removed"):
        download._check(path, path.name, 9, None, ours=True)
    assert not path.exists()


def test_features_and_tracks_that_are_read_by_others(windows: None, tmp_path: Path) -> None:
    model, image = small_model(), torch.zeros(3, 64, 64)
    features = model.encode_image(image[None])
    store = FeatureFiles("sum", 10**9, tmp_path)
    store.put(image, features)
    (path,) = tmp_path.iterdir()
    with path.open("rb"):
        store.put(image, features)  # another session reads it
        assert FeatureFiles("sum", 0, tmp_path).clean() > 0
        assert store.get(image) is not None and list(tmp_path.iterdir()) == [path]
    assert FeatureFiles("sum", 0, tmp_path).clean() == 0 and not path.exists()

    session, tracks = Session(np.zeros(SHAPE, np.uint8), model), tmp_path / "t.geff"
    session.paint(session.add_object(), 1, labels(1)[0] > 0)
    write_tracks(tracks, session)
    with (tracks / ".zattrs").open("rb"), pytest.raises(WriteError, match=OPEN):
        write_tracks(tracks, session, overwrite=True)
    assert list(tmp_path.iterdir()) == [tracks] and (tracks / "nodes" / "ids").is_dir()
    write_tracks(tracks, session, overwrite=True)
    assert list(tmp_path.iterdir()) == [tracks]


def test_a_report_that_is_open_in_a_spreadsheet(windows: None, tmp_path: Path) -> None:
    results = [JobResult("p1", "p1.nii.gz", "done")]
    write_report(tmp_path, [])
    with (tmp_path / "report.csv").open("rb"):
        with pytest.raises(WriteError, match=rf"report.csv could not.*{OPEN}.*labels are there"):
            write_report(tmp_path, results)
        assert "p1" in (tmp_path / "report.html").read_text(encoding="utf-8")
        with pytest.raises(BatchError, match=rf"report.csv cannot.*{OPEN}"):
            run_batch([], Settings(out=tmp_path))  # before hours of work
    write_report(tmp_path, results)
    assert "p1" in (tmp_path / "report.csv").read_text(encoding="utf-8")


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("liver", "liver"),
        ("CON", "_CON"),
        ("aux.v1", "_aux.v1"),
        ("com1", "_com1"),
        ("contrast", "contrast"),
        ("a:b/c\\d", "a_b_c_d"),
        ("what? ", "what_"),
        ("Leber ü 日本 🧠", "Leber ü 日本 🧠"),
        ("...", "image"),
    ],
)
def test_names_that_every_system_takes(text: str, name: str) -> None:
    assert file_name(text) == name


def test_a_long_name_in_letters_of_several_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("日" * 80 + ".csv")  # 244 of 255 bytes
    for text in ("old", "new"):
        write_text(path, text)
    assert path.read_text() == "new" and len(os.listdir(tmp_path)) == 1
    with beside(tmp_path / "x", ".nii.gz") as temporary:
        temporary.touch()


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_tables_that_were_made_on_another_system(tmp_path: Path) -> None:
    """Backslashes between folders, and letters taken apart as macOS does."""
    apart = unicodedata.normalize("NFD", "Schädel")
    (tmp_path / "scans").mkdir()
    for name in (apart, "plain"):
        scan = nibabel.Nifti1Image(np.zeros((4, 4, 3), np.int16), np.eye(4))
        nibabel.save(scan, tmp_path / "scans" / f"{name}.nii.gz")
    jobs = table(tmp_path / "jobs.csv", "image", r"scans\Schädel.nii.gz", r"scans\plain.nii.gz")
    prompts = table(
        tmp_path / "prompts.csv",
        "image,object,z,y,x",
        "Schädel.nii.gz,1,0,1,1",
        rf"{tmp_path}\scans\plain.nii.gz,1,0,2,2",
    )
    found = {job.image.name: job for job in jobs_of(jobs, prompts=prompts)}
    assert all(job.image.is_file() for job in found.values())
    assert found[f"{apart}.nii.gz"].prompts.points == {1: [(0, 1, 1)]}
    assert found["plain.nii.gz"].prompts.points == {1: [(0, 2, 2)]}
    assert set(read_prompts(prompts)) == {"Schädel.nii.gz", f"{tmp_path}/scans/plain.nii.gz"}
    rows = [f"scans/plain.nii.gz,{name}" for name in ("STRASSE", "straße")]
    with pytest.raises(JobError, match="would both be written"):
        jobs_of(table(tmp_path / "two.csv", "image,name", *rows), template="t.sam2session")


def test_on_a_mac_two_spellings_are_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = unicodedata.normalize("NFD", "/x/schädel.csv")
    assert overlap([Path("/x/Schädel.csv")], [Path(apart)]) is None
    monkeypatch.setattr(targets.sys, "platform", "darwin")
    assert overlap([Path("/x/Schädel.csv")], [Path(apart)]) is not None


# -- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [r"D:\Müller\scan.tif", r"\\nas\lab\scan.tif", "/mnt/scan.tif"])
def test_a_session_from_another_computer_finds_its_image_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    image = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    session = Session(image, small_model())
    session.paint(session.add_object("liver"), 1, labels(1)[0] > 0)
    path = tmp_path / "work.sam2session"
    save_session(session, path)
    saved = read_session(path)
    object.__setattr__(saved.image, "paths", (there,))
    write_session(path, saved, {})
    with pytest.raises(ValueError, match="There is no file or folder"):
        open_session(path, model=small_model())
    tifffile.imwrite(tmp_path / "scan.tif", image, photometric="minisblack")
    monkeypatch.chdir("/")
    opened = open_session(path, model=small_model())
    np.testing.assert_array_equal(opened.labels[1], labels(1)[0])
    tifffile.imwrite(tmp_path / "scan.tif", image + 1, photometric="minisblack")
    with pytest.raises(ValueError, match="other pixels"):
        open_session(path, model=small_model())


def test_a_batch_goes_on_on_another_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.ome.zarr" / "0").mkdir(parents=True)
    (tmp_path / "l.ome.zarr" / "0" / "zarr.json").write_text("{}")
    here = batch_worker._sum(tmp_path / "l.ome.zarr")
    relative = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda p, to: PureWindowsPath(relative(p, to)))
    assert batch_worker._sum(tmp_path / "l.ome.zarr") == here


# -- keys ----------------------------------------------------------------------------------------


def test_on_a_mac_undo_is_command_z_on_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    from app_model.types import KeyBinding, KeyCode, KeyMod, OperatingSystem
    from napari.layers import Labels

    from napari_sam2.widgets import events

    pressed = KeyMod.CtrlCmd | KeyCode.KeyZ  # as napari hears it, and binds its own undo
    layer, done = Labels(np.zeros((4, 4), int)), []
    for system, key in ((OperatingSystem.LINUX, "Ctrl"), (OperatingSystem.MACOS, "Cmd")):
        monkeypatch.setattr(sys.modules[OperatingSystem.__module__], "_CURRENT", system)
        monkeypatch.setattr(events, "CTRL", key)
        events.bind_keys(layer, {"Control-Z": lambda key=key: done.append(key)})
        layer.keymap[KeyBinding.from_int(pressed)](layer)
        events.unbind_keys(layer, ["Control-Z"])
    assert done == ["Ctrl", "Cmd"] and not layer.keymap
