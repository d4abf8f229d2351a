"""Tracks of a session as a layer of napari and as files, which are read back."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from models import small_model
from test_lineage import FRAMES, IMAGES, TRUTH, followed

from napari_sam2.cli import main
from napari_sam2.io import Volume, WriteError, read_volume, write_labels
from napari_sam2.session import Session
from napari_sam2.session_file import save_session
from napari_sam2.tracks import check_lineage, tracks_layer, tracks_of, write_tracks

HALF_MICRONS = {"axes": "TYX"} | {
    key: value
    for axis in "XY"
    for key, value in ((f"PhysicalSize{axis}", 0.5), (f"PhysicalSize{axis}Unit", "µm"))
}
"""Of an OME-TIFF, in time."""


def a_session(image=IMAGES, **how) -> Session:
    """Objects 1 to 4; 1 divides into 2 and 3 before frame 4."""
    session = Session(image, small_model(), window=(0, 200), **how)
    for number in (1, 2, 3, 4):
        followed(session, [number], as_one=number)
    session.set_division(1, [2, 3])
    return session


@pytest.fixture
def session() -> Session:
    return a_session(spacing=(1, 0.5, 0.25))


def test_families_are_listed_together_parents_first(session):
    session.edit_object(3, name="left")
    tracks = tracks_of(session)
    assert [(t.object_id, t.first, t.last, t.parent, t.generation) for t in tracks] == [
        (1, 0, 3, None, 0),
        (2, 4, 7, 1, 1),
        (3, 4, 7, 1, 1),
        (4, 0, 7, None, 0),
    ]
    assert tracks[0].daughters == (2, 3) and tracks[2].name == "left"


def test_napari_shows_the_tracks(session):
    from napari.layers import Tracks

    made = tracks_layer(session)
    assert made["graph"] == {2: [1], 3: [1]}
    layer = Tracks(**made)
    assert len(layer.data) == 4 + 4 + 4 + FRAMES and layer.ndim == 3
    row = layer.data[(layer.data[:, 0] == 4) & (layer.data[:, 1] == 5)]
    np.testing.assert_allclose(row[0, 2:], np.argwhere(TRUTH[5] == 4).mean(axis=0))
    assert set(layer.features["generation"]) == {0, 1}


def test_tracks_of_a_volume_over_time_have_their_place_in_it():
    stack = np.zeros((3, 4, 32, 40), np.float32)
    session = Session(stack, small_model(), window=(0, 1))
    from napari_sam2.sequence_view import SequenceKey

    session.show(SequenceKey(0, (None, 2, None, None)))
    one = session.add_object()
    mask = np.zeros((32, 40))
    mask[10:13, 20:23] = 1
    session.paint(one, 1, mask)
    assert tracks_layer(session)["data"].tolist() == [[one, 1, 2, 11, 21]]
    session.show(SequenceKey.along(3, 4))
    with pytest.raises(ValueError, match="comes first"):
        tracks_layer(session)


def test_a_table_says_where_each_object_is_and_where_it_comes_from(session, tmp_path: Path):
    path = write_tracks(tmp_path / "cells.csv", session)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 4 + 4 + FRAMES
    (row,) = [r for r in rows if r["object"] == "3" and r["frame"] == "6"]
    y, x = np.argwhere(TRUTH[6] == 3).mean(axis=0)
    assert float(row["centroid_y"]) == pytest.approx(0.5 * y)
    assert float(row["centroid_x"]) == pytest.approx(0.25 * x)
    assert float(row["size"]) == pytest.approx((TRUTH[6] == 3).sum() / 8)
    assert (row["parent"], row["generation"], row["name"]) == ("1", "1", "Object 3")
    assert {r["parent"] for r in rows if r["object"] in "14"} == {""}


def test_tracks_of_an_array_have_the_unit_and_place_of_its_volume(tmp_path: Path):
    movie = Volume(IMAGES, (30.0, 0.5, 0.25), "um", axes="tyx")
    session = a_session(movie.array, spacing=movie.spacing)
    with open(write_tracks(tmp_path / "a.csv", session, image=movie), newline="") as file:
        row = next(r for r in csv.DictReader(file) if (r["object"], r["frame"]) == ("3", "6"))
    y, x = np.argwhere(TRUTH[6] == 3).mean(axis=0)
    assert (float(row["size"]), row["unit"]) == (pytest.approx((TRUTH[6] == 3).sum() / 8), "um2")
    assert float(row["centroid_x"]) == pytest.approx(0.25 * x)
    path = write_tracks(tmp_path / "a.geff", session, image=movie)
    axes = zarr.open_group(path, mode="r").attrs["geff"]["axes"]
    assert [axis["unit"] for axis in axes] == ["frame", "micrometer", "micrometer"]

    scan = Volume(IMAGES, (2.0, 0.5, 0.25), "mm", np.diag([-0.25, -0.5, 2.0, 1.0]))
    scan.affine[:3, 3] = 10, 20, -30
    path = write_tracks(tmp_path / "b.csv", session, is_time=False, image=scan)
    with open(path, newline="") as file:
        row = next(r for r in csv.DictReader(file) if (r["object"], r["frame"]) == ("3", "6"))
    found = [float(row[f"centroid_{axis}"]) for axis in "zyx"]
    np.testing.assert_allclose(found, (12 - 30, 0.5 * y - 20, 0.25 * x - 10))
    assert row["unit"] == "mm2"


def test_a_geff_holds_nodes_and_edges(session, tmp_path: Path):
    path = write_tracks(tmp_path / "cells.geff", session)
    group = zarr.open_group(path, mode="r")
    said = group.attrs["geff"]
    assert [axis["name"] for axis in said["axes"]] == ["t", "y", "x"]
    assert said["directed"] and said["track_node_props"] == {
        "lineage": "lineage",
        "tracklet": "object",
    }
    ids = np.asarray(group["nodes/ids"])
    props = {name: np.asarray(group[f"nodes/props/{name}/values"]) for name in ("t", "object")}
    edges = np.asarray(group["edges/ids"]).astype(int)
    assert len(ids) == 12 + FRAMES and len(edges) == len(ids) - 2  # two families
    assert (props["t"][edges[:, 1]] == props["t"][edges[:, 0]] + 1).all()
    pairs = {tuple(pair) for pair in props["object"][edges].tolist() if pair[0] != pair[1]}
    assert pairs == {(1, 2), (1, 3)}
    assert set(np.asarray(group["nodes/props/lineage/values"])) == {1, 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.geff"]
    session.set_parent(3, None)
    write_tracks(path, session, overwrite=True)
    said = zarr.open_group(path, mode="r").attrs["geff"]
    assert said["track_node_props"] == {"lineage": "lineage"}  # 2 goes on with 1


def test_a_challenge_folder_comes_back_with_its_lineage(session, tmp_path: Path):
    movie = Volume(IMAGES, (1.0, 0.5, 0.25), "um", None, "test", "tyx")
    folder = tmp_path / "01_RES"
    write_labels(folder, session.labels, movie, parents=session.parents)
    assert (folder / "res_track.txt").read_text() == "1 0 3 0\n2 4 7 1\n3 4 7 1\n4 0 7 0\n"
    for frame in range(FRAMES):
        picture = tifffile.imread(folder / f"mask{frame:03}.tif")
        assert picture.dtype == np.uint16
        np.testing.assert_array_equal(picture, session.labels[frame])


def test_what_is_no_lineage_is_not_written(session, tmp_path: Path):
    movie = Volume(IMAGES, (1.0, 1.0, 1.0), "pixel", None, "test", "tyx")
    labels = session.labels.copy()
    labels[5][:4, :4] = 1  # the parent is still there
    with pytest.raises(WriteError, match="Object 1 is still there on frame 5"):
        write_labels(tmp_path / "01_RES", labels, movie, parents=session.parents)
    assert list(tmp_path.iterdir()) == []
    check_lineage(session)
    known = session.snapshot()
    wrong = Session(IMAGES, small_model(), window=(0, 200))
    wrong.restore(replace(known, parents={2: 4}))
    with pytest.raises(WriteError, match="Object 2 begins on slice 4, but its parent Object 4"):
        write_tracks(tmp_path / "cells.csv", wrong)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cells.txt", "must end in .csv or .geff"),
        ("no/cells.csv", "no folder"),
        ("there.csv", "exists"),
    ],
)
def test_where_tracks_cannot_be_written_is_said(session, tmp_path: Path, name, what):
    (tmp_path / "there.csv").write_text("mine")
    with pytest.raises(WriteError, match=what):
        write_tracks(tmp_path / name, session)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_what_is_something_else_is_not_replaced(session, tmp_path: Path):
    (tmp_path / "cells.geff").mkdir()
    (tmp_path / "cells.geff" / "mine.txt").write_text("mine")
    with pytest.raises(WriteError, match="something else"):
        write_tracks(tmp_path / "cells.geff", session, overwrite=True)


@pytest.mark.parametrize(("is_time", "places"), [(True, "yx"), (False, "zyx")])
def test_files_without_tracks_are_as_others(tmp_path: Path, is_time, places):
    empty = Session(IMAGES, small_model(), window=(0, 200))
    path = write_tracks(tmp_path / "none.csv", empty, is_time=is_time)
    columns = ",".join(f"centroid_{axis}" for axis in places)
    head = f"object,name,frame,{columns},size,unit,parent,generation\r\n"
    assert path.read_bytes().decode() == head
    path = write_tracks(tmp_path / "none.geff", empty, is_time=is_time)
    group = zarr.open_group(path, mode="r")
    assert [axis["name"] for axis in group.attrs["geff"]["axes"]] == ["t", *places]
    assert group["nodes/ids"].shape == (0,) and group["edges/ids"].shape == (0, 2)
    names = {"t", *places, "object", "lineage", "size"}
    assert {name: group[f"nodes/props/{name}/values"].shape for name in names} == dict.fromkeys(
        names, (0,)
    )


def test_a_full_disk_leaves_the_older_file(session, tmp_path: Path, monkeypatch):
    path = write_tracks(tmp_path / "cells.geff", session)
    before = (path / ".zattrs").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(zarr.Group, "create_array", full)
    with pytest.raises(WriteError, match="No space left"):
        write_tracks(path, session, overwrite=True)
    assert (path / ".zattrs").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cells.geff"]


# -- the command line ----------------------------------------------------------------------------


def test_replay_writes_the_lineage(tmp_path: Path, capsys):
    tifffile.imwrite(tmp_path / "movie.ome.tif", IMAGES, metadata=HALF_MICRONS)
    volume = read_volume(tmp_path / "movie.ome.tif")
    session = a_session(volume.array, spacing=volume.spacing)
    session.model.name = "nano"
    save_session(session, tmp_path / "cells.sam2session")
    command = ["replay", str(tmp_path / "cells.sam2session"), str(tmp_path / "movie.ome.tif")]
    command += ["-o", str(tmp_path / "a_RES"), "--tracks", str(tmp_path / "cells.csv"), "--quiet"]
    assert main([*command, "--model", "nano"]) == 0, capsys.readouterr().err
    assert "2 4 7 1\n" in (tmp_path / "a_RES" / "res_track.txt").read_text()
    assert (tmp_path / "cells.csv").read_text().count("\n") == 1 + 12 + FRAMES
    assert (tmp_path / "cells.csv").read_text().count(",um2,") == 12 + FRAMES
    assert main([*command, "--overwrite", "--tracks", "t.txt"]) == 4
    assert "must end in" in capsys.readouterr().err


def test_a_movie_in_which_nothing_is_found_gives_empty_files(tmp_path: Path, capsys):
    dark = np.full((5, 64, 64), 7, np.uint8)
    tifffile.imwrite(tmp_path / "dark.tif", dark, metadata={"axes": "TYX"})
    command = ["find", str(tmp_path / "dark.tif"), "-o", str(tmp_path / "out.tif")]
    assert main([*command, "--tracks", str(tmp_path / "c.csv")]) == 0
    assert (tmp_path / "c.csv").read_text().startswith("object,name,frame,centroid_y,")
    assert (tmp_path / "c.csv").read_text().count("\n") == 1
    assert "out.tif: nothing was found; " in capsys.readouterr().out
    assert main([*command, "--overwrite", "--tracks", str(tmp_path / "c.geff")]) == 0
    assert zarr.open_group(tmp_path / "c.geff", mode="r")["nodes/ids"].shape == (0,)
    assert not tifffile.imread(tmp_path / "out.tif").any()


def test_find_proposes_and_writes_divisions(tmp_path: Path, capsys):
    from napari_sam2.synthetic_movies import make_movie

    movie = make_movie(10, (64, 96), 2, seed=1, dividing=1, entering=0, leaving=0)
    assert len(movie.parents) == 2
    tifffile.imwrite(tmp_path / "movie.ome.tif", movie.images, metadata=HALF_MICRONS)
    command = ["find", str(tmp_path / "movie.ome.tif"), "-o", str(tmp_path / "b_RES")]
    command += ["--every", "5", "--diameter", "18", "--divisions"]
    assert main([*command, "--tracks", str(tmp_path / "b.geff"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["divisions"] == 1
    lines = (tmp_path / "b_RES" / "res_track.txt").read_text().split()
    assert [int(p) > 0 for p in lines[3::4]].count(True) == 2
    axes = zarr.open_group(tmp_path / "b.geff", mode="r").attrs["geff"]["axes"]
    assert [axis["unit"] for axis in axes] == ["frame", "micrometer", "micrometer"]
