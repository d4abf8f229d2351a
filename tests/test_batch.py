"""Many images: what to do with each, done once whatever dies, told in a report."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import psutil
import pytest
import tifffile
from images import mirrored
from models import small_model

from napari_sam2 import batch, batch_worker, session_file
from napari_sam2.batch import (
    DONE,
    FAILED,
    SKIPPED,
    BatchError,
    Job,
    JobError,
    Settings,
    jobs_of,
    run_batch,
)
from napari_sam2.batch_worker import run_job
from napari_sam2.cli import main
from napari_sam2.io import WriteError, read_labels, read_volume, write_labels
from napari_sam2.io.labels_ctc import read_parents
from napari_sam2.segmentation import ModelError, segment
from napari_sam2.session import Session
from napari_sam2.session_file import save_session
from sam2_engine.model import SAM2

AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])


def scan(path, seed=0, shape=(5, 24, 32)):
    array = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array.T, AFFINE), path)
    return array


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(3):
        scan(folder / f"p{number}.nii.gz", number)
    return folder


def prompts_of(folder, box="4,5,15,20"):
    """A table with a box and a point for every image of a folder."""
    y0, x0, y1, x1 = box.split(",")
    rows = ["image,object,name,z,y,x,y1,x1,label"]
    for file in sorted(folder.iterdir()):
        rows += [f"{file.name},1,liver,2,{y0},{x0},{y1},{x1},", f"{file.name},2,,1,10,12,,,1"]
    path = folder.parent / "prompts.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def states(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.nii.gz")}


# -- what there is to do -----------------------------------------------------------------------


def test_a_folder_and_a_table_of_prompts_make_jobs(scans, tmp_path):
    (scans / "notes.txt").write_text("not an image")
    (scans / "notes.txt").rename(tmp_path / "notes.txt")
    jobs = jobs_of(scans, prompts=prompts_of(scans))
    assert [job.name for job in jobs] == ["p0", "p1", "p2"]
    said = jobs[1].prompts
    assert said.boxes == {1: [(2, (4, 5, 15, 20))]}
    assert said.points == {2: [(1, 10, 12)]}
    assert said.names == {1: "liver"}


def test_a_table_of_jobs_says_what_each_image_needs(tmp_path):
    (tmp_path / "jobs.csv").write_text(
        "\ufeffimage;name;session;series;volume\na/x.nii;;a/x.sam2session;;\nb/x.nii;other;;2;3\n"
    )
    jobs = jobs_of(tmp_path / "jobs.csv", template="t.sam2session")
    assert jobs[0].session == tmp_path / "a" / "x.sam2session"
    assert jobs[0].image == tmp_path / "a" / "x.nii"
    assert jobs[1].name == "other"
    assert (jobs[1].series, jobs[1].volume) == ("2", 3)
    assert jobs[1].template == Path("t.sam2session")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("picture\na.nii\n", "needs a column 'image'"),
        ("image,colour\na.nii,red\n", "column 'colour', which means nothing"),
        ("image\n", "has no rows"),
        ("image,volume\na.nii,1.5\n", "volume must be a whole number"),
        ("image\na/x.nii\nb/x.nii\n", "would both be written as x"),
        ("image\na.nii,b,c\n", "more values than columns"),
    ],
)
def test_a_wrong_table_of_jobs_says_what_is_wrong(tmp_path, table, message):
    (tmp_path / "jobs.csv").write_text(table)
    with pytest.raises(JobError, match=message):
        jobs_of(tmp_path / "jobs.csv", template="t.sam2session")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0,1,2,3,,,", "whole numbers from 1"),
        ("a,2147483648,1,2,3,,,", "whole numbers from 1 to 2147483647"),
        ("a,1,one,2,3,,,", "line 2: z must be a number"),
        ("a,1,1,2,3,9,,", "a box needs both y1 and x1"),
        ("a,1,1,2,3,9,9,0", "its label cannot be 0"),
        ("a,1,1,2,3,,,maybe", "the label is 1"),
        ("a,1,1,2,3,,,,4", "both its first and its last slice"),
        ("a,1,1,2,3,,,,0,4\na,1,1,2,3,,,,0,5", "line 3: object 1 begins or ends elsewhere above"),
    ],
)
def test_a_wrong_table_of_prompts_says_what_is_wrong(scans, tmp_path, row, message):
    table = tmp_path / "prompts.csv"
    table.write_text(f"image,object,z,y,x,y1,x1,label,first,last\n{row}\n")
    with pytest.raises(JobError, match=message):
        jobs_of(scans, prompts=table)


def test_a_table_says_where_objects_begin_and_end(scans, tmp_path, checkpoint):
    (tmp_path / "prompts.csv").write_text(
        "image,object,z,y,x,y1,x1,first,last\np1,1,2,4,5,15,20,1,3\np1,2,1,10,12,,,,\n"
        "p0,1,2,4,5,15,20,,\np2,1,2,4,5,15,20,,\n"
    )
    job = jobs_of(scans, prompts=tmp_path / "prompts.csv")[1]
    assert job.prompts.ends == {1: (1, 3)}
    result = run_job(job, Settings(out=tmp_path, model=checkpoint, device="cpu"))
    labels, *_ = read_labels(tmp_path / result.output)
    slices = np.flatnonzero((np.asarray(labels.array) == 1).any((1, 2)))
    assert len(slices) and set(slices) <= {1, 2, 3}


def test_an_image_that_nothing_is_said_of_is_an_error(scans):
    with pytest.raises(JobError, match=r"Nothing says what to segment in .*p0.nii.gz"):
        jobs_of(scans)


# -- one job -----------------------------------------------------------------------------------


def test_a_template_goes_to_every_scan_with_its_names_and_colours(scans, tmp_path, checkpoint):
    image = read_volume(scans / "p0.nii.gz")
    session = Session(image.array, checkpoint, window=(0, 200), spacing=image.spacing)
    liver = session.add_object("liver")
    session.edit_object(liver, colour=(1.0, 0.0, 0.0))
    session.set_prompts(liver, 2, box=(4, 5, 15, 20))
    save_session(session, tmp_path / "t.sam2session")
    settings = Settings(
        out=tmp_path, window=(0, 200), template_image=scans / "p0.nii.gz", suffix=".seg.nrrd"
    )
    for job in jobs_of(scans, template=tmp_path / "t.sam2session"):
        result = run_job(job, settings)
        assert (result.status, result.message) == (DONE, "")
        labels, names, colours = read_labels(tmp_path / result.output)
        assert names == {1: "liver"}
        assert colours == {1: (1.0, 0.0, 0.0)}
        image = read_volume(job.image)
        expected = Session(image.array, small_model(), window=(0, 200), spacing=image.spacing)
        expected.set_prompts(expected.add_object(), 2, box=(4, 5, 15, 20))
        expected.propagate()
        np.testing.assert_array_equal(labels.array, expected.labels)
        np.testing.assert_allclose(labels.affine, image.affine, atol=1e-4)


def test_small_objects_are_looked_at_closely_as_the_batch_is_told(tmp_path):
    noise = np.random.default_rng(0).normal(0, 10, (3, 160, 200))
    _, y, x = np.indices(noise.shape)
    volume = (noise + 150 * ((y - 60) ** 2 + (x - 80) ** 2 < 50)).astype(np.float32)
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    box = (1, (53, 73, 67, 87))
    (tmp_path / "boxes.csv").write_text("image,object,z,y,x,y1,x1\na,1,1,53,73,67,87\n")
    session = Session(volume, "nano", window=(-100, 200), spacing=(1, 1, 1))
    session.add_box(session.add_object(), *box)
    save_session(session, tmp_path / "t.sam2session")
    ways = ({"prompts": tmp_path / "boxes.csv"}, {"template": tmp_path / "t.sam2session"})
    for number, way in enumerate(ways):
        keys = set()
        [job] = jobs_of(tmp_path / "scans", **way)
        for closely in (None, True, False):
            out = tmp_path / f"{number}-{closely}"
            out.mkdir()
            settings = Settings(
                out=out,
                window=(-100, 200),
                closely=closely,
                device="cpu",
                template_image=tmp_path / "scans" / "a.nii.gz",
            )
            result = run_job(job, settings)
            assert (result.status, result.message) == (DONE, "")
            keys.add(result.key)
            labels, *_ = read_labels(out / result.output)
            expected = segment(volume, boxes={1: box}, window=(-100, 200), closely=closely)
            np.testing.assert_array_equal(labels.array, expected)
        assert len(keys) == 3, "what was done otherwise is done anew"


def test_first_frames_and_sessions_of_their_own(tmp_path, checkpoint):
    movie = np.random.default_rng(0).integers(0, 200, (4, 24, 32)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "movie.tif", movie, imagej=True, metadata={"axes": "TYX"})
    first = np.zeros((24, 32), np.uint8)
    first[5:12, 6:15], first[14:20, 20:28] = 3, 7
    (tmp_path / "first").mkdir()
    tifffile.imwrite(tmp_path / "first" / "movie.tif", first)
    (tmp_path / "jobs.csv").write_text("image\nmovie.tif\n")
    (job,) = jobs_of(tmp_path / "jobs.csv", masks=tmp_path / "first")
    settings = Settings(out=tmp_path / "out", model=checkpoint, suffix=".ome.tif")
    settings.out.mkdir()
    result = run_job(job, settings)
    assert result.message == ""
    labels = tifffile.imread(settings.out / "movie.ome.tif")
    np.testing.assert_array_equal(labels[0], first)
    assert {found.id for found in result.objects} >= {3, 7}

    session = Session(movie, checkpoint)
    session.set_prompts(session.add_object("cell"), 0, box=(5, 6, 12, 15))
    session.propagate()
    save_session(session, tmp_path / "movie.sam2session")
    (tmp_path / "jobs.csv").write_text("image,name,session\nmovie.tif,own,movie.sam2session\n")
    (job,) = jobs_of(tmp_path / "jobs.csv")
    result = run_job(job, Settings(out=tmp_path / "out", suffix=".ome.tif"))
    assert (result.message, result.objects[0].name) == ("", "cell")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "own.ome.tif"), session.labels)

    session.set_life(1, 0, 1)
    session.paint(session.add_object("daughter"), 2, first == 7)
    session.set_parent(2, 1)
    save_session(session, tmp_path / "movie.sam2session")
    result = run_job(job, Settings(out=tmp_path / "out", suffix="_RES", run="2"))
    assert result.message == ""
    assert read_parents(tmp_path / "out" / "own_RES") == {2: 1}


def test_masks_lie_on_their_image(scans, tmp_path, checkpoint):
    mask = np.zeros((5, 24, 32), np.uint8)
    mask[0, 5:12, 6:15] = 3
    folder = tmp_path / "masks"
    folder.mkdir()

    def save(name, array, affine):
        nibabel.save(nibabel.Nifti1Image(array.T, affine), folder / name)

    save("whole.nii.gz", mask, AFFINE)
    mirrored(folder / "whole.nii.gz", folder / "p0.nii.gz")
    save("first.nii.gz", mask[:1], AFFINE)
    mirrored(folder / "first.nii.gz", folder / "p1.nii.gz")
    save("p2.nii.gz", mask, AFFINE @ np.diag([-1.0, 1, 1, 1]))
    settings = Settings(out=tmp_path / "out", model=checkpoint)
    settings.out.mkdir()
    jobs = jobs_of(scans, masks=folder)
    for job in jobs[:2]:
        result = run_job(job, settings)
        assert result.message == ""
        labels, *_ = read_labels(settings.out / result.output)
        np.testing.assert_array_equal(labels.array[0], mask[0])
    assert "lies elsewhere in space" in run_job(jobs[2], settings).message


def test_files_that_are_of_nobody_s_batch_are_left_alone(scans, tmp_path, checkpoint):
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    (tmp_path / "p0.nii.gz").write_bytes(b"mine")
    result = run_job(job, Settings(out=tmp_path, model=checkpoint))
    assert result.status == FAILED
    assert "exists and is not of a batch; use --overwrite" in result.message
    assert (tmp_path / "p0.nii.gz").read_bytes() == b"mine"
    assert run_job(job, Settings(out=tmp_path, model=checkpoint, overwrite=True)).status == DONE


@pytest.mark.parametrize(
    ("out", "how", "message"),
    [
        ("scans", {}, "p0.nii.gz would replace the image "),
        ("link", {}, "p0.nii.gz would replace the image "),
        ("masks", {}, "p0.nii.gz would replace the mask "),
        (".", {"tables": ["report.csv"]}, "report.csv would replace the table "),
        ("series/out", {}, "would lie in the image .*series;"),
        ("out", {"suffix": "_RES"}, "p0_RES would replace the mask .*p0_RES.mask000.tif;"),
    ],
)
def test_nothing_that_is_read_is_replaced(scans, tmp_path, checkpoint, out, how, message):
    (tmp_path / "link").symlink_to(scans, target_is_directory=True)
    for name in ("masks", "series", "out/p0_RES"):
        (tmp_path / name).mkdir(parents=True)
    mask = tmp_path / ("out/p0_RES/mask000.tif" if how.get("suffix") else "masks/p0.nii.gz")
    scan(mask) if mask.suffix == ".gz" else mask.write_bytes(b"mine")
    jobs = [Job("p0", scans / "p0.nii.gz", mask=mask), Job("p1", tmp_path / "series", mask=mask)]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    tables = [tmp_path / name for name in how.pop("tables", [])]
    settings = Settings(out=tmp_path / out, model=checkpoint, overwrite=True, **how)
    with pytest.raises(WriteError, match=message):
        run_batch(jobs, settings, tables=tables)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_worker_does_not_replace_what_it_reads_either(scans, tmp_path, checkpoint):
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    before = (scans / "p0.nii.gz").read_bytes()
    result = run_job(job, Settings(out=scans, model=checkpoint, overwrite=True))
    assert result.status == FAILED and "would replace the image" in result.message
    assert (scans / "p0.nii.gz").read_bytes() == before


def test_a_template_and_its_image_are_not_replaced(scans, tmp_path, monkeypatch):
    image = SimpleNamespace(paths=(str(scans / "p0.nii.gz"),))
    monkeypatch.setattr(session_file, "read_session", lambda path: SimpleNamespace(image=image))
    template = tmp_path / "report.html"
    template.write_text("mine")
    job = Job("p0", scans / "p1.nii.gz", template=template)
    for out, message in ((scans, "the image of the template"), (tmp_path, "the template")):
        with pytest.raises(WriteError, match=f"would replace {message} "):
            run_batch([job], Settings(out=out, overwrite=True))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-o", "scans", "--overwrite"], 4, "would replace the image"),
        (["-o", "file"], 4, "/file: it is a file, and a folder is needed"),
        (["-o", "/proc/new"], 4, "Nothing can be written to /proc/new: "),
        (["-o", "out", "--format", ".png"], 4, "must end in"),
        (["-o", "out", "--model", "foo"], 5, "foo"),
        (["-o", "out", "--model", "./file"], 5, "file"),
        (["-o", "out", "--device", "tpu9"], 5, "tpu9"),
        (["-o", "out", "--session", "of_an_array"], 3, "give it with --template-image"),
    ],
)
def test_what_would_go_wrong_with_every_image_is_found_before_the_first(
    scans, tmp_path, capsys, monkeypatch, options, code, message
):
    monkeypatch.chdir(tmp_path)
    table = prompts_of(scans)
    (tmp_path / "file").write_text("mine")
    save_session(Session(np.zeros((3, 8, 8))), tmp_path / "of_an_array")
    monkeypatch.setattr(batch, "_results", lambda *_: pytest.fail("it went on"))
    before = states(scans)
    marks = [] if "--session" in options else ["--prompts", str(table)]
    assert main(["batch", "scans", "--workers", "1", *marks, *options]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert states(scans) == before and (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_read_is_bad_input(scans, capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["batch", str(scans), "--session", "t.sam2session", "-o", "out"]) == 3
    assert capsys.readouterr().err == f"napari-sam2: {scans} cannot be read: Permission denied.\n"


def test_a_stopped_batch_says_that_what_is_done_stays(
    scans, tmp_path, checkpoint, capsys, monkeypatch
):
    table, out = prompts_of(scans), tmp_path / "out"
    monkeypatch.chdir(tmp_path)

    def stopped(client, jobs, settings):
        yield run_job(jobs[0], settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_results", stopped)
    command = ["batch", str(scans), "--prompts", str(table), "-o", str(out), "-q"]
    assert main([*command, "--model", checkpoint, "--workers", "1"]) == 130
    said = "napari-sam2: stopped; what is done stays, and the same command goes on with it\n"
    assert capsys.readouterr().err == said
    assert (out / "p0.nii.gz").exists()
    assert "1 done, 2 not yet looked at" in (out / "report.html").read_text()


def test_labels_without_a_record_of_their_end_are_written_anew(
    scans, tmp_path, checkpoint, monkeypatch
):
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    settings = Settings(out=tmp_path, model=checkpoint)
    write = batch_worker._write_record

    def die_at_the_end(job, settings, result):
        if result.status == DONE:
            raise KeyboardInterrupt
        write(job, settings, result)

    monkeypatch.setattr(batch_worker, "_write_record", die_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, settings)
    assert (tmp_path / "p0.nii.gz").exists()
    monkeypatch.undo()
    assert run_job(job, settings).status == DONE
    assert run_job(job, settings).status == SKIPPED


def test_what_a_run_has_done_itself_was_not_done_before(scans, tmp_path, checkpoint):
    """A worker may die between an image and its answer; another one is asked then."""
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    settings = Settings(out=tmp_path, model=checkpoint, run="this")
    assert run_job(job, settings).status == DONE
    before = states(tmp_path)
    assert run_job(job, settings).status == DONE
    assert run_job(job, replace(settings, run="the next")).status == SKIPPED
    assert states(tmp_path) == before


@pytest.mark.parametrize("suffix", [".nii.gz", ".ome.zarr"])
def test_labels_that_a_person_has_changed_are_not_replaced(scans, tmp_path, checkpoint, suffix):
    out = tmp_path / "out"
    out.mkdir()
    settings = Settings(out=out, model=checkpoint, suffix=suffix)
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    again = jobs_of(scans, prompts=prompts_of(scans, box="6,5,15,20"))[0]
    assert [run_job(one, settings).status for one in (job, again, job)] == [DONE] * 3

    labels = out / f"p0{suffix}"
    image = read_volume(scans / "p0.nii.gz")
    edited = np.zeros(image.shape, np.uint8)
    edited[2, 4:9, 4:9] = 1
    write_labels(labels, edited, image, overwrite=True)
    assert run_job(job, settings).status == SKIPPED
    result = run_job(again, settings)
    assert result.status == FAILED
    assert f"{labels} would be done anew, but has been changed since a" in result.message
    np.testing.assert_array_equal(read_labels(labels)[0].array, edited)

    labels.rename(tmp_path / f"mine{suffix}")
    assert run_job(again, settings).status == DONE
    write_labels(labels, edited, image, overwrite=True)
    assert run_job(job, replace(settings, overwrite=True)).status == DONE


def test_labels_that_are_changed_while_they_are_done_anew_are_not_replaced(
    scans, tmp_path, checkpoint, monkeypatch
):
    settings = Settings(out=tmp_path, model=checkpoint)
    assert run_job(jobs_of(scans, prompts=prompts_of(scans))[0], settings).status == DONE
    compute = batch_worker._answer

    def saved_meanwhile(*given):
        (tmp_path / "p0.nii.gz").write_bytes(b"mine")
        return compute(*given)

    monkeypatch.setattr(batch_worker, "_answer", saved_meanwhile)
    job = jobs_of(scans, prompts=prompts_of(scans, box="6,5,15,20"))[0]
    assert "has been changed since" in run_job(job, settings).message
    assert (tmp_path / "p0.nii.gz").read_bytes() == b"mine"


def test_a_run_knows_its_own_labels_though_a_worker_died_before_it_told_of_them(
    scans, tmp_path, checkpoint, monkeypatch
):
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    settings = Settings(out=tmp_path, model=checkpoint, run="this")

    def die(*given, **options):
        write_labels(*given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_sam2.io.write_labels", die)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, settings)
    monkeypatch.undo()
    assert run_job(job, settings).status == DONE


def test_a_worker_reads_a_template_and_its_image_once(scans, tmp_path, checkpoint, monkeypatch):
    image = read_volume(scans / "p0.nii.gz")
    session = Session(image.array, checkpoint, window=(0, 200), spacing=image.spacing)
    session.set_prompts(session.add_object(), 2, box=(4, 5, 15, 20))
    save_session(session, tmp_path / "t.sam2session")
    (scans / "p0.nii.gz").rename(tmp_path / "template.nii.gz")
    read = []

    def counted(function):
        def call(path, *given, **options):
            read.append(Path(path).name)
            return function(path, *given, **options)

        return call

    monkeypatch.setattr(session_file, "read_session", counted(session_file.read_session))
    monkeypatch.setattr("napari_sam2.io.read_volume", counted(read_volume))
    how = {"out": tmp_path, "template_image": tmp_path / "template.nii.gz"}
    jobs = jobs_of(scans, template=tmp_path / "t.sam2session")
    for run in ("one", "another"):
        statuses = [run_job(job, Settings(run=run, **how)).status for job in jobs]
        assert statuses == [DONE if run == "one" else SKIPPED] * 2
    once = ["t.sam2session", "template.nii.gz", "p1.nii.gz", "p2.nii.gz"]
    assert sorted(read) == sorted([*once, "t.sam2session", "p1.nii.gz", "p2.nii.gz"])


def test_a_full_graphics_card_is_told_of_with_what_takes_less(
    scans, tmp_path, checkpoint, capsys, monkeypatch
):
    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(SAM2, "encode_image", full)
    job = jobs_of(scans, prompts=prompts_of(scans))[0]
    result = run_job(job, Settings(out=tmp_path, model=checkpoint, device="cpu"))
    out = tmp_path / "labels.tif"
    asked = ["-o", str(out), "--box", "1:2,4,5,15,20", "--model", checkpoint, "--device", "cpu"]
    assert main(["segment", str(scans / "p0.nii.gz"), *asked]) != 0 and not out.exists()
    for told in (result.message, capsys.readouterr().err):
        assert "graphics card" in told and "sam2.1-tiny@512" in told and "GiB" not in told


# -- all of them -------------------------------------------------------------------------------


def test_a_run_goes_on_past_bad_files_and_is_resumed(scans, tmp_path, checkpoint, capsys):
    (scans / "p1.nii.gz").write_bytes(b"damaged")
    table, out = prompts_of(scans), tmp_path / "out"
    command = ["batch", str(scans), "--prompts", str(table), "-o", str(out), "--model", checkpoint]
    assert main([*command, "--json", "--workers", "1"]) == 6
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["name"]: one["status"] for one in said} == {"p0": DONE, "p1": FAILED, "p2": DONE}
    message = next(one["message"] for one in said if one["name"] == "p1")
    assert "p1.nii.gz" in message
    page = (out / "report.html").read_text()
    assert "2 done, 1 failed" in page
    assert "data:image/png;base64," in page
    assert page.index("p1.nii.gz") < page.index("p0.nii.gz")  # what failed comes first
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    liver = next(row for row in rows if row["name"] == "p0" and row["object"] == "1")
    voxels = int((read_volume(out / "p0.nii.gz").array == 1).sum())
    assert (liver["object name"], int(liver["voxels"])) == ("liver", voxels)
    assert float(liver["size"]) == pytest.approx(voxels * 1.5 * 1.5 * 4 / 1000, rel=1e-4)

    before = states(out)
    scan(scans / "p1.nii.gz", 1)  # now it is whole; and p2 gets another box
    table.write_text(table.read_text().replace("p2.nii.gz,1,liver,2,4,", "p2.nii.gz,1,liver,2,6,"))
    assert main([*command, "--workers", "1"]) == 0
    assert "2 done, 1 done before" in capsys.readouterr().out
    after = states(out)
    assert after["p0.nii.gz"] == before["p0.nii.gz"]
    assert after["p2.nii.gz"] != before["p2.nii.gz"]
    assert set(after) == {"p0.nii.gz", "p1.nii.gz", "p2.nii.gz"}


@pytest.mark.slow
def test_every_image_is_done_once_though_a_worker_is_killed(tmp_path, checkpoint):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        scan(folder / f"p{number}.nii.gz", number, (8, 48, 64))
    jobs = jobs_of(folder, prompts=prompts_of(folder))
    finished: dict[str, int] = {}
    killed = []

    def kill_one(result):
        finished.update(states(out))
        if not killed and len(finished) >= 2:
            workers = [
                process
                for process in psutil.Process().children(recursive=True)
                if "spawn_main" in " ".join(process.cmdline())
            ]
            assert len(workers) == 2
            workers[0].kill()
            killed.append(workers[0].pid)

    results = run_batch(jobs, Settings(out=out, model=checkpoint), workers=2, progress=kill_one)
    assert killed
    assert [(result.status, result.message) for result in results] == [(DONE, "")] * 6
    assert [result.name for result in results] == [job.name for job in jobs]
    after = states(out)
    assert len(after) == 6
    for name, state in finished.items():  # what was done before is not done again
        assert after[name] == state
    for job in jobs:
        labels = read_volume(out / f"{job.name}.nii.gz").array
        image = read_volume(job.image)
        expected = Session(image.array, small_model(), spacing=image.spacing)
        expected.set_prompts(expected.add_object(object_id=1), 2, box=(4, 5, 15, 20))
        expected.set_prompts(expected.add_object(object_id=2), 1, points=[(10, 12)], labels=[1])
        expected.propagate()
        assert np.mean(labels != expected.labels) < 1e-3  # threads may round otherwise
    again = [run_job(job, Settings(out=out, model=checkpoint, run="again")) for job in jobs]
    assert [result.status for result in again] == [SKIPPED] * 6


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, started as on a cluster; gives its address and the workers."""
    file = tmp_path / "scheduler.json"
    started = []

    def start(program, *options):
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--no-dashboard"]
        options = [*options, "--scheduler-file", str(file)]
        started.append(subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL))
        return started[-1]

    here = ["--nthreads", "1", "--memory-limit", "0", "--local-directory", str(tmp_path)]
    start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
    workers = [start("dask_worker", *here, "--no-nanny") for _ in range(2)]
    for _ in range(600):
        if file.exists():
            break
        time.sleep(0.1)
    yield json.loads(file.read_text())["address"], workers
    for process in started:  # asked to end, a worker may wait for its scheduler
        process.kill()
    for process in started:
        process.wait()


@pytest.mark.slow
def test_on_a_cluster_every_image_is_done_once_though_a_worker_is_killed(
    tmp_path, checkpoint, cluster
):
    address, workers = cluster
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        scan(folder / f"p{number}.nii.gz", number, (12, 48, 64))
    finished: dict[str, int] = {}

    def kill_one(result):
        finished.update(states(out))
        if len(finished) >= 2:  # two may end between two calls
            workers[0].kill()

    jobs = jobs_of(folder, prompts=prompts_of(folder))
    settings = Settings(out=out, model=checkpoint)
    with pytest.raises(ModelError, match="no file called small"):  # which the workers know
        run_batch(jobs, replace(settings, model="small"), scheduler=address)
    assert not out.exists() or not list(out.glob("*.*"))
    results = run_batch(jobs, settings, scheduler=address, progress=kill_one)
    assert workers[0].wait(30) < 0
    assert [(result.status, result.message) for result in results] == [(DONE, "")] * 6
    after = states(out)
    assert len(after) == 6
    assert {name: after[name] for name in finished} == finished  # done once
    again = run_batch(jobs, settings, scheduler=address)
    assert [result.status for result in again] == [SKIPPED] * 6


@pytest.mark.parametrize(
    ("device", "cards", "cores", "asked", "expected"),
    [  # the card and the threads of each worker
        ("auto", "", 16, None, [(None, 2)] * 8),  # no card: two cores each
        ("auto", "", 1, None, [(None, 1)]),
        ("auto", "0123", 32, None, [("0", 8), ("1", 8), ("2", 8), ("3", 8)]),  # one worker a card
        ("cuda", "01", 8, 4, [("0", 2), ("1", 2), ("0", 2), ("1", 2)]),  # spread over the cards
        ("auto", "01234567", 4, None, [(str(n), 1) for n in range(8)]),
        ("auto", "5,GPU-1f", 8, None, [("5", 4), ("GPU-1f", 4)]),  # those that Slurm has given us
        ("cuda:1", "01", 16, None, [(None, 16)]),  # all would be on this one
    ],
)
def test_each_worker_has_a_card_or_cores_of_its_own(
    monkeypatch, device, cards, cores, asked, expected
):
    given = cards.split(",") if "," in cards else list(cards)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(given))
    if "," in cards:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr(batch, "_cores", lambda: cores)
    found = []
    for spec in batch._specs_here(Settings(out=Path(), device=device), asked).values():
        environment = spec["options"]["env"]
        card = environment.get("CUDA_VISIBLE_DEVICES")
        found.append((card, int(environment["OMP_NUM_THREADS"])))
        assert spec["options"]["nthreads"] == 1  # one image at a time
    assert found == expected
    specs = batch._specs_here(Settings(out=Path(), device="cpu"), asked)
    assert all("CUDA_VISIBLE_DEVICES" not in spec["options"]["env"] for spec in specs.values())


def test_what_cannot_start_says_why(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("napari_sam2.batch._SCHEDULER_S", 1)
    jobs = jobs_of(scans, prompts=prompts_of(scans))
    with pytest.raises(BatchError, match="There is no dask scheduler at tcp://"):
        run_batch(jobs, Settings(out=tmp_path / "out"), scheduler="tcp://127.0.0.1:1")
    (tmp_path / "file").write_text("")
    with pytest.raises(BatchError, match="Nothing can be written to"):
        run_batch(jobs, Settings(out=tmp_path / "file"))
