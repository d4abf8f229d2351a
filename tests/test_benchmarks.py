"""The benchmarks' protocol on masks with known answers, and both benchmarks end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from models import small_model

from benchmarks import (
    against_official,
    cases,
    classical,
    limit,
    memory,
    memory_tokens,
    napari_cost,
    prompting,
    quality,
    report,
    responsiveness,
    robustness,
)
from benchmarks.recipe import movie_frame
from sam2_engine.masks import deepest_point, dice, iou, largest_slice, tight_box
from sam2_engine.model import SAM2, VARIANTS
from sam2_engine.model.config import ConvStage, ConvTrunkConfig, ModelConfig
from sam2_engine.model.layers import linear


def rectangle(shape: tuple[int, ...], *sides: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[sides] = True
    return mask


def disk(shape: tuple[int, int], centre: tuple[int, int], radius: float) -> np.ndarray:
    rows, columns = np.indices(shape)
    return np.hypot(rows - centre[0], columns - centre[1]) <= radius


@pytest.fixture(scope="module")
def model() -> SAM2:
    torch.manual_seed(0)
    stages = (
        ConvStage(1, 8, 3, 1, 1),
        ConvStage(1, 8, 3, 2, 2),
        ConvStage(1, 16, 3, 2, 2),
        ConvStage(1, 16, 3, 2, 2),
        ConvStage(1, 16, 3, 2, 2),
    )
    config = ModelConfig(
        trunk=ConvTrunkConfig(stem_channels=8, stages=stages),
        image_size=64,
        d_model=64,
        memory_layers=1,
        memory_ffn=64,
        decoder_mlp=64,
    )
    return SAM2(config).eval()


# -- the protocol ----------------------------------------------------------------------------------


def test_deepest_point() -> None:
    assert deepest_point(rectangle((20, 30), slice(3, 8), slice(10, 15))) == (5, 12)
    thin_and_thick = rectangle((20, 30), slice(2, 3)) | disk((20, 30), (12, 20), 4)
    assert deepest_point(thin_and_thick) == (12, 20)
    # The image's border is an end of the object too.
    assert deepest_point(np.ones((7, 7), bool)) == (3, 3)


def test_tight_box_and_largest_slice() -> None:
    truth = rectangle((5, 20, 30), slice(1, 4), slice(4, 9), slice(6, 8))
    truth[2, 15, 25] = True
    assert largest_slice(truth) == 2
    assert tight_box(truth[2]) == (4, 6, 15, 25)
    assert tight_box(truth[1]) == (4, 6, 8, 7)


def test_prompted_frame_is_the_first_one_of_a_time_lapse() -> None:
    truth = rectangle((5, 9, 9), slice(1, 3), slice(0, 2), slice(0, 2))
    truth[2] = True
    assert prompting.prompt_frame("timelapse", truth) == 1
    assert prompting.prompt_frame("volume", truth) == 2


def test_corrective_click_goes_to_the_worst_slices_largest_region() -> None:
    truth = rectangle((4, 30, 30), slice(0, 4), slice(5, 10), slice(5, 10))
    predicted = truth.copy()
    assert prompting.corrective_click(predicted, truth) is None

    predicted[1, 5:10, 5:10] = False  # 25 missed
    click = prompting.corrective_click(predicted, truth)
    assert click == prompting.Correction(frame=1, point=(7, 7), positive=True)

    predicted[3, 20:27, 20:27] = True  # 49 added, far from the object
    predicted[3, 5, 5] = False
    click = prompting.corrective_click(predicted, truth)
    assert click == prompting.Correction(frame=3, point=(23, 23), positive=False)


def test_only_slices_between_the_ends_of_an_object_are_left() -> None:
    truth = rectangle((6, 9, 9), slice(1, 5), slice(0, 2), slice(0, 2))
    truth[3] = False  # a hole in it is no end
    np.testing.assert_array_equal(
        quality.between_ends(truth).ravel(), [False, True, True, True, True, False]
    )


def test_missed_and_added_parts_that_touch_are_two_regions() -> None:
    truth = rectangle((1, 12, 20), slice(0, 1), slice(2, 9), slice(0, 5))
    predicted = rectangle((1, 12, 20), slice(0, 1), slice(2, 9), slice(5, 14))
    click = prompting.corrective_click(predicted, truth)
    assert click == prompting.Correction(frame=0, point=click.point, positive=False)
    assert predicted[0][click.point]


def test_dice_and_iou() -> None:
    left = rectangle((4, 4), slice(0, 4), slice(0, 2))
    middle = rectangle((4, 4), slice(0, 4), slice(1, 3))
    nothing = np.zeros((4, 4), bool)
    assert dice(left, middle) == 0.5
    assert iou(left, middle) == pytest.approx(1 / 3)
    assert dice(left, nothing) == iou(left, nothing) == 0
    assert dice(nothing, nothing) == iou(nothing, nothing) == 1


def test_a_time_lapse_counts_the_frames_with_the_object_only() -> None:
    truth = rectangle((4, 6, 6), slice(0, 3), slice(0, 4), slice(0, 4))
    predicted = truth.copy()
    predicted[1] = False
    predicted[3] = True  # the object is gone: does not count
    score = quality.score("timelapse", predicted, truth)
    assert score.value == pytest.approx(2 / 3)
    assert score.share == pytest.approx(2 / 3)
    assert quality.score("volume", predicted, truth).value < 0.6  # here leaks count


def test_the_mean_leaves_out_unions_and_data_sets_apart() -> None:
    def row(dataset: str, part: str, method: str, score: float, apart: bool) -> dict:
        return {
            "dataset": dataset,
            "part": part,
            "method": method,
            "prompt": "box",
            "score": score,
            "apart": apart,
        }

    rows = [
        row("a", "all", "model", 0.4, False),
        row("a", "all", "classical", 0.2, False),
        row("a (union)", "union", "model", 1.0, False),
        row("b", "all", "model", 0.8, False),
        row("c", "all", "model", 0.0, True),
    ]
    assert quality.summarise(rows) == {"box": pytest.approx({"model": 0.6, "classical": 0.2})}


# -- the classical method --------------------------------------------------------------------------


def test_classical_follows_a_ball_and_stops_at_its_end() -> None:
    depth, rows, columns = np.indices((20, 40, 40))
    ball = (depth - 10) ** 2 + (rows - 20) ** 2 + (columns - 18) ** 2 <= 8**2
    noise = np.random.default_rng(0).normal(0, 0.05, ball.shape)
    images = (0.2 + 0.6 * ball + noise).astype(np.float32)
    truth = ball[10]
    for first in (
        classical.from_click(images[10], deepest_point(truth)),
        classical.from_box(images[10], tight_box(truth)),
        truth,
    ):
        assert iou(first, truth) > 0.85
        masks = classical.carry(images, 10, first)
        assert dice(masks, ball) > 0.85
        assert not masks[0].any() and not masks[-1].any()
    forward = classical.carry(images, 10, truth, both_ways=False)
    assert forward[11].any() and not forward[:10].any()


# -- reading a folder ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data folder: organs in two modalities, instances, a time-lapse and an image."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    organs = np.zeros((24, 20, 5), np.uint8)  # X, Y, Z
    organs[6:14, 5:12, 1:4] = 1
    organs[14:18, 5:12, 1:4] = 2
    cells = np.zeros((4, 24, 28), np.uint16)
    cells[:, 3:10, 4:11] = 7
    cells[1:, 14:20, 15:22] = 9
    entries = []

    def add(name: str, kind: str, labels: np.ndarray, **extra: object) -> None:
        image = (60 * (labels > 0) + rng.integers(0, 40, labels.shape)).astype(np.uint8)
        nifti = kind == "volume" and not extra["instances"]
        suffix = ".nii.gz" if nifti else ".tif"
        paths = [name.replace("/", "_") + part + suffix for part in ("", "_labels")]
        for path, array in zip(paths, (image, labels), strict=True):
            if nifti:
                nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / path)
            else:
                tifffile.imwrite(root / path, array)
        entry = {"name": name, "split": "mine", "kind": kind, "image": paths[0]}
        entries.append({**entry, "labels": paths[1], "note": "", **extra})

    add("organ/a", "volume", organs, modality="CT", instances=False)
    add("organ/b", "volume", organs, modality="MR", instances=False)
    add("organ/c", "volume", organs, modality="MR", instances=False)
    add("grains/a", "volume", cells, modality="EM", instances=True)
    note = {"note": "a tracker's ids: report apart"}
    add("cells/a", "timelapse", cells, modality="phase", instances=True, **note)
    add("nuclei/a", "image", cells[1], modality="fluorescence", instances=True)
    entries.append({**entries[-1], "name": "nuclei/other", "split": "train"})
    (root / "manifest.json").write_text(json.dumps({"items": entries}))
    return root


def test_items_are_of_one_split_and_apart_by_modality(folder: Path) -> None:
    items = cases.read_items(folder, "mine")
    assert [item.dataset for item in items] == [
        "cells",
        "grains",
        "nuclei",
        "organ CT",
        "organ MR",
        "organ MR",
    ]
    assert [item.dataset for item in items if item.apart] == ["cells"]
    assert len(cases.read_items(folder, "mine", limit=1)) == 5
    with pytest.raises(SystemExit, match=r"'missing'.*mine, train"):
        cases.read_items(folder, "missing")
    with pytest.raises(SystemExit, match="manifest"):
        cases.read_items(folder / "nowhere", "mine")


def test_nifti_frames_are_its_last_axis_and_labels_have_a_union(folder: Path) -> None:
    item = next(i for i in cases.read_items(folder, "mine") if i.name == "organ/a")
    frames, targets = cases.read_case(item)
    assert frames.shape == (5, 24, 20)
    assert [target.part for target in targets] == ["label 1", "label 2", "union"]
    one, two, union = (target.truth for target in targets)
    assert tight_box(one[2]) == (6, 5, 13, 11)
    assert np.array_equal(union, one | two)


def test_instances_are_the_largest_of_a_volume_and_spread_over_an_image() -> None:
    labels = np.zeros((1, 60, 60), np.int32)
    for i in range(1, 31):
        labels[0, i, : i + 5] = i
    volume = cases.Item("x", "x", "volume", Path(), Path(), instances=True, apart=False)
    sizes = [int(target.truth.sum()) for target in cases.targets(labels, volume)]
    assert sizes == [35, 34, 33, 32, 31, 30, 29, 28]
    image = cases.Item("x", "x", "image", Path(), Path(), instances=True, apart=False)
    sizes = [int(target.truth.sum()) for target in cases.targets(labels, image)]
    assert len(sizes) == 20 and sizes[0] == 6 and sizes[-1] == 35


# -- end to end ------------------------------------------------------------------------------------


def test_quality_end_to_end(
    folder: Path,
    model: SAM2,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quality.LazyModel, "get", lambda self: model)
    out = tmp_path / "quality.json"
    quality.main(["--data", str(folder), "--split", "mine", "--model", "tiny", "--json", str(out)])
    content = json.loads(out.read_text())

    rows = {(row["dataset"], row["method"], row["prompt"]): row for row in content["rows"]}
    assert len(rows) == len(content["rows"])
    by_dataset = {
        dataset: [p for d, m, p in rows if d == dataset and m == "model"] for dataset, _, _ in rows
    }
    volume = ["click", "box", "box, no memory", "box+ends", "mask", "box+3"]
    assert by_dataset == {
        "cells": ["box", "box, no memory", "mask"],
        "grains": volume,
        "nuclei": ["click", "box"],
        **{
            f"organ {modality}{part}": volume
            for modality in ("CT", "MR")
            for part in ("", " (label 1)", " (label 2)", " (union)")
        },
    }
    for (_, method, prompt), row in rows.items():
        assert 0 <= row["score"] <= 1
        assert row["seconds_per_frame"] > 0
        assert row["model"] == "tiny"
        assert ("share" in row) == (row["dataset"] == "cells")
        assert method == "model" or prompt not in ("box+3", "box, no memory")
    assert rows["organ MR", "model", "box"]["n"] == 4  # two labels of two volumes
    assert rows["organ MR (union)", "model", "box"]["n"] == 2
    assert rows["cells", "model", "mask"]["n"] == 2
    # The given masks count, so an object that is lost at once still has its first frame.
    assert rows["cells", "model", "mask"]["share"] >= 0.25
    assert rows["nuclei", "classical", "box"]["score"] > 0.7

    assert set(content["summary"]) == {*volume}
    means = [rows[d, "model", "box"]["score"] for d in ("grains", "nuclei", "organ CT", "organ MR")]
    assert content["summary"]["box"]["model"] == pytest.approx(np.mean(means))
    assert content["machine"]["cores"] and "--split mine" in content["command"]
    printed = capsys.readouterr()
    assert "| organ MR (union) " in printed.out and "mean over data sets" in printed.out
    assert "[6/6]" in printed.err

    again = tmp_path / "again.json"
    known = ["--classical", str(out), "--json", str(again)]
    quality.main(["--data", str(folder), "--split", "mine", "--model", "other", *known])
    others = json.loads(again.read_text())
    assert others["summary"] == content["summary"]  # the same network under another name
    models = {(row["method"], row["model"]) for row in others["rows"]}
    assert models == {("model", "other"), ("classical", "tiny")}
    # Items that are others are noticed before a model is even looked for.
    with pytest.raises(SystemExit, match="other items"):
        quality.main(
            ["--data", str(folder), "--split", "mine", "--limit", "1", "--model", "none", *known]
        )


def test_corrections_add_to_the_prompted_slice_and_refine_others(model: SAM2) -> None:
    frames = np.random.default_rng(0).normal(size=(3, 32, 32))
    truth = rectangle((3, 32, 32), slice(0, 3), slice(8, 20), slice(8, 20))
    truth[1, 4:24, 8:20] = True
    run = prompting.ModelRun(model, frames, "volume", [truth])
    run.run("box")
    run._add_click(0, prompting.Correction(1, (12, 12), True))
    run._add_click(0, prompting.Correction(2, (3, 5), False))
    run._add_click(0, prompting.Correction(2, (9, 10), True))
    prompts = run.predictor.prompts[1]
    assert sorted(prompts) == [1, 2]
    assert prompts[1].box == (4, 8, 23, 19) and prompts[1].mask_input is None
    assert prompts[1].points.tolist() == [[12, 12]] and prompts[1].labels.tolist() == [1]
    assert prompts[2].box is None
    assert prompts[2].points.tolist() == [[3, 5], [9, 10]]
    assert prompts[2].labels.tolist() == [0, 1]
    assert np.array_equal(prompts[2].mask_input, run.answers[0, 2].low_res)


def test_without_memory_each_slice_follows_from_the_box_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model()
    frames = np.random.default_rng(0).normal(size=(5, 32, 32))
    truth = rectangle((5, 32, 32), slice(2, 3), slice(8, 20), slice(8, 20))
    run = prompting.ModelRun(model, frames, "volume", [truth])
    boxes: list[tuple[int, tuple[int, ...]]] = []
    set_prompts = run.predictor.set_prompts
    monkeypatch.setattr(
        run.predictor,
        "set_prompts",
        lambda i, frame, box: boxes.append((frame, box)) or set_prompts(i, frame, box=box),
    )
    monkeypatch.setattr(model, "attend_to_memory", lambda *a: pytest.fail("a memory was used"))
    run.run("box, no memory")
    masks = run.masks[0]
    assert boxes[0] == (2, (8, 8, 19, 19))
    for frame, box in boxes:
        before = frame - 1 if frame > 2 else frame + 1
        if frame != 2:
            assert box == tight_box(masks[before])
    assert {frame for frame, _ in boxes} >= {1, 2, 3}
    assert not run.predictor.prompts


def test_objects_do_not_change_each_other(model: SAM2) -> None:
    frames = np.random.default_rng(0).normal(size=(4, 32, 32))
    one = rectangle((4, 32, 32), slice(1, 3), slice(8, 20), slice(8, 20))
    two = rectangle((4, 32, 32), slice(2, 4), slice(3, 30), slice(20, 30))
    together = prompting.ModelRun(model, frames, "volume", [one, two])
    alone = prompting.ModelRun(model, frames, "volume", [two])
    for run in (together, alone):
        run.run("click")
    logits = [run.answers[index, 0].low_res for run, index in ((together, 1), (alone, 0))]
    assert np.allclose(*logits, atol=1e-3)


# -- robustness ------------------------------------------------------------------------------------


def test_coarser_masks_keep_thin_objects() -> None:
    truth = np.zeros((1, 8, 8), bool)
    truth[0, :4, :4] = True
    assert np.array_equal(np.argwhere(robustness.shrunk(truth, 4)), [[0, 0, 0]])
    thin = np.zeros((1, 8, 8), bool)
    thin[0, 5] = True
    assert np.array_equal(np.argwhere(robustness.shrunk(thin, 4)), [[0, 1, 0], [0, 1, 1]])


def test_prompts_sit_where_they_are_asked_for() -> None:
    truth = np.zeros((9, 20, 20), bool)
    for frame, side in ((1, 1), (2, 5), (3, 6), (4, 9), (5, 7), (6, 6)):
        truth[frame, :side, :side] = True
    assert robustness.prompted_slices(truth, None) == [4]
    assert robustness.prompted_slices(truth, (0.0,)) == [2]  # on slice 1 there is too little of it
    assert robustness.prompted_slices(truth, (0.0, 0.5, 1.0)) == [2, 4, 6]


def test_intensities_change_as_they_are_named() -> None:
    grey = np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2)
    assert robustness.inverted(grey)[0, 0, 0] == 1
    assert np.allclose(robustness.with_gamma(grey, 2.0), grey**2)
    assert robustness.in_window(grey, 0.25, 1.25).max() == 0.75
    noisy = robustness.with_noise(np.full((1, 100, 100), 0.5, np.float32), 0.1)
    assert abs(noisy.std() - 0.1) < 0.01 and 0 <= noisy.min() <= noisy.max() <= 1


def test_robustness_end_to_end(
    folder: Path, model: SAM2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(robustness, "load_model", lambda name, device: model)
    out, picture = tmp_path / "r.json", tmp_path / "r.png"
    robustness.main(
        ["--data", str(folder), "--split", "mine", "--json", str(out), "--plot", str(picture)]
    )
    content = json.loads(out.read_text())
    found = {(row["condition"], row["dataset"]): row for row in content["rows"]}
    datasets = {"organ CT", "organ MR", "grains"}
    assert found.keys() == {(c.name, d) for c in robustness.CONDITIONS for d in datasets}
    assert [found[robustness.BASELINE, d]["n"] for d in ("organ CT", "organ MR", "grains")] == [
        2, 4, 2,
    ]  # fmt: skip
    assert all(0 <= row["score"] <= 1 for row in content["rows"])
    assert picture.stat().st_size > 1000


def test_the_baseline_is_the_box_of_the_quality_benchmark(model: SAM2) -> None:
    rng = np.random.default_rng(1)
    truth = np.zeros((5, 40, 48), bool)
    truth[1:4, 10:25, 12:30] = True
    grey = np.clip(truth * 0.6 + rng.normal(0.2, 0.05, truth.shape), 0, 1).astype(np.float32)
    run = prompting.ModelRun(model, grey, "volume", [truth])
    run.predictor.source.window = (0.0, 1.0)
    run.predictor.features.clear()
    run.run("box")
    (score,) = robustness.segment(model, grey, [truth], robustness.CONDITIONS[0])
    assert score == dice(run.masks[0], truth)


def test_memory_end_to_end(model: SAM2, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sam2_engine.weights.load_model", lambda name, device, image_size: model)
    monkeypatch.setattr(memory, "measure_apart", memory.measure)
    out = tmp_path / "memory.json"
    memory.main(["--frames", "2", "5", "--objects", "1", "2", "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    cases_run = [(row["objects"], row["frames"]) for row in rows]
    assert cases_run == [(1, 2), (1, 5), (2, 2), (2, 5)]
    assert {row["resolution"] for row in rows} == {model.image_size}
    assert all(row["peak_mib"] >= row["before_mib"] > 10 for row in rows)


def test_stalls_are_how_much_later_than_due_a_beat_comes() -> None:
    beats = [0.0, 0.005, 0.010, 0.110, 0.115]
    late = responsiveness.stalls(beats)
    np.testing.assert_allclose(late, [0, 0, 95, 0], atol=1e-6)
    found = responsiveness.summary(late)
    assert found["longest_stall_ms"] == pytest.approx(95)
    assert found["p99_stall_ms"] == pytest.approx(np.percentile([0, 0, 95, 0], 99))


@pytest.mark.slow
def test_responsiveness_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "stalls.json"
    code = (
        "from benchmarks import responsiveness as r; r._SETTLE_MS, r._SCROLL_SECONDS = 50, 0.5; "
        f"r.main(['--frames', '5', '--size', '64', '--json', {str(out)!r}])"
    )
    root = Path(responsiveness.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["longest_stall_ms"] >= found["p99_stall_ms"] >= 0
    rows = {row["phase"]: row for row in found["phases"]}
    phases = ["encoding", "propagation", "correction", "updating"]
    assert list(rows) == [
        "scrolling alone",
        *phases,
        *(f"{name}, scrolling" for name in phases),
        "all",
        "all, scrolling",
    ]
    assert found["longest_stall_ms"] == max(rows[name]["longest_stall_ms"] for name in phases)
    assert found["p99_stall_ms"] == rows["all"]["p99_stall_ms"]
    assert "updating" in done.stdout


def test_the_synthetic_source_is_lazy_and_repeatable() -> None:
    source = memory.MovingDisks(1_000_000, 3, size=64)
    y, x = source.centre(1, 999)
    assert source[999].shape == (64, 64)
    assert source[999][round(y), round(x)] > 0.5
    assert np.array_equal(source[999], source[999])


def test_a_table_lines_up_and_shows_what_is_missing() -> None:
    text = report.table(["data set", "score"], [["a", 0.5], ["long name", None]])
    assert text.splitlines() == [
        "| data set  | score |",
        "| --------- | ----: |",
        "| a         | 0.500 |",
        "| long name |     - |",
    ]


# -- against the official code ---------------------------------------------------------------------


def test_without_the_official_code_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(SystemExit):
        against_official.main(["--resolution", "64"])
    assert "pip install --no-build-isolation sam2==1.1.0" in capsys.readouterr().err


class _Known:
    """An engine whose logits are known."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def click(self, obj: int, yx: tuple[float, float]) -> None:
        raise AssertionError("a pass clicks nowhere")

    def propagate(self):  # type: ignore[no-untyped-def]
        for t in range(3):
            yield np.full((1, 4, 4), t + self.offset * t, np.float32)


def test_both_engines_are_timed_frame_by_frame_and_compared() -> None:
    engines = {"official": _Known(0.0), "ours": _Known(0.25)}
    meters = {name: against_official.Meter("cpu") for name in engines}
    seconds, difference = against_official.side_by_side(engines, meters)  # type: ignore[arg-type]
    assert difference == pytest.approx(0.5)
    assert set(seconds) == set(engines) and all(s > 0 for s in seconds.values())


def test_what_the_official_code_computes_in_does_not_reach_into_the_other_engines_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a card it multiplies in bfloat16, by a setting of the whole thread."""
    seen = []

    def steps(_: object) -> Iterator[tuple[int, list[int], torch.Tensor]]:
        for t in range(2):
            seen.append(torch.is_autocast_enabled("cpu"))
            yield t, [1], torch.zeros(1, 1, 4, 4)

    monkeypatch.setattr(
        against_official.Official, "_precision", lambda _: torch.autocast("cpu", torch.bfloat16)
    )
    official = object.__new__(against_official.Official)
    official.predictor, official.state = SimpleNamespace(propagate_in_video=steps), None
    for logits in official.propagate():
        assert logits.shape == (1, 4, 4) and not torch.is_autocast_enabled("cpu")
    assert seen == [True, True]


def test_this_engine_clicks_tracks_and_corrects_in_the_comparison() -> None:
    config = VARIANTS["sam2.1-tiny"].resized(64)
    ours = against_official.Ours(config, [movie_frame(t, 64) for t in range(2)], "cpu")
    first = ours.click(1, (30.0, 20.0))
    again = ours.click(1, (30.0, 20.0))  # a correction starts from the earlier answer
    assert first.shape == (1, 64, 64) and not np.array_equal(first, again)
    assert [frame.shape for frame in ours.propagate()] == [(1, 64, 64)] * 2


def test_operations_are_counted_the_way_they_are_done() -> None:
    with torch.inference_mode():
        x, weight = torch.zeros(2, 3, 16), torch.zeros(4, 16)
        assert limit.operations(lambda: linear(x, weight)) == 2 * (2 * 3 * 16 * 4)
        plus = torch.zeros(2, 3, 4)
        assert limit.operations(lambda: linear(x, weight, plus=plus)) == 2 * (2 * 3 * 16 * 4)
        rows = torch.zeros(6, 4)
        assert limit.operations(lambda: linear(x.flatten(0, 1), weight, plus=rows)) == 768
        q = torch.zeros(1, 1, 5, 16)
        attended = limit.operations(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)
        )
        assert attended == 2 * 2 * 5 * 5 * 16
        assert limit.operations(lambda: x + 1) == 0


def test_memory_tokens_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "tokens.json"
    arguments = ["--model", "nano", "--resolution", "128", "--objects", "2", "--rounds", "1"]
    memory_tokens.main([*arguments, "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["tokens"] for row in rows] == ["all", "near", "pooled"]
    assert rows[0]["ratio_first"] == 1
    assert all(row["attention"] < row["second"] < row["first"] for row in rows)
    near = memory_tokens.near_square(8, 0.5, 0)  # of 4 x 4 cells, the last four, and those beside
    assert near.tolist() == memory_tokens.near_square(8, 0.4, 0).tolist() and 0 < near.sum() < 16
    assert not memory_tokens.near_square(8, 0.0, 3).any()


def test_limit_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "limit.json"
    limit.main(
        [
            *[
                "--model",
                "nano",
                "--resolution",
                "64",
                "--objects",
                "1",
                "2",
                "--rounds",
                "1",
                "--json",
            ],
            str(out),
        ]
    )
    rows = {(row["objects"], row["part"]): row for row in json.loads(out.read_text())["rows"]}
    one, two = rows[1, "memory attention"], rows[2, "memory attention"]
    assert one["operations"] < two["operations"] < 2 * one["operations"]  # some of it is shared
    assert rows[1, "encoder"]["operations"] == rows[2, "encoder"]["operations"]
    assert rows[1, "decoder"]["operations"] < rows[2, "decoder"]["operations"]
    assert all(rows[1, part]["seconds"] > 0 for part in ("encoder", "a tracked frame"))


def test_importing_the_manifest_loads_nothing_heavy() -> None:
    assert napari_cost.start(napari_cost._IMPORT)["loaded"] == []


def test_opening_the_widget_leaves_torch_to_another_thread() -> None:
    found = napari_cost.start(napari_cost._OPEN)
    assert found["torch_in"] not in (None, "MainThread")
    # Half a second of two to three that napari takes; torch would be as long as napari.
    assert found["own_seconds"] < 0.2 * found["napari_own_seconds"]


def test_writing_a_slice_costs_the_same_in_a_long_volume(tmp_path: Path) -> None:
    short, long = (napari_cost.slices(frames, 256, tmp_path) for frames in (4, 4000))
    assert long["claimed_gb"] == pytest.approx(1000 * short["claimed_gb"])
    assert long["write_ms"] < 10 * short["write_ms"]  # of the whole, it would be a thousand
