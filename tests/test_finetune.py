"""Fine-tuning: what is checked, held out, scored, kept and resumed; and that it helps."""

from __future__ import annotations

import itertools
import json
import math
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from images import OBLIQUE, mirrored
from kinds import crosses
from test_training import TINY

from napari_sam2.cli import main
from napari_sam2.cli.common import BAD_COMMAND, BAD_INPUT, BAD_OUTPUT, NO_MODEL, OK, STOPPED
from napari_sam2.finetune import Card, _write, finetune, read_pairs
from napari_sam2.io import ReadError, WriteError
from sam2_engine.model import SAM2
from sam2_engine.training import trainer
from sam2_engine.training.finetune import (
    DataError,
    Examination,
    Moment,
    Score,
    Status,
    fine_tune,
    make_source,
    only_slices,
    split,
    synthetic_sources,
)
from sam2_engine.weights import list_models, load_model, model_info


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny() -> SAM2:
    torch.manual_seed(0)
    return SAM2(TINY).eval()


def stack(name: str = "stack", length: int = 6, empty: tuple[int, ...] = ()):
    """A disc that moves through slices, on none of `empty`."""
    y, x = np.mgrid[:48, :48]
    labels = np.stack([(y - 20 - t) ** 2 + (x - 24) ** 2 < 100 for t in range(length)])
    labels = labels.astype(np.uint8)
    labels[list(empty)] = 0
    noise = np.random.default_rng(0).integers(0, 40, labels.shape)
    return make_source(name, (labels * 150 + noise).astype(np.uint8), labels, volume=True)


# -- data ------------------------------------------------------------------------------------------


def test_the_last_images_are_held_out() -> None:
    sources = [stack(str(n)) for n in range(5)]
    train, held_out = split(sources, 0.4)
    assert train == sources[:3] and held_out == sources[3:]
    assert [len(part) for part in split(sources[:2], 0.01)] == [1, 1]
    assert [len(part) for part in split(sources[:2], 0.99)] == [1, 1]


def test_of_a_single_sequence_its_last_labelled_slices_are_held_out() -> None:
    one = stack(length=8, empty=(0, 6, 7))
    train, held_out = (part[0] for part in split([one], 0.4))
    np.testing.assert_array_equal(train.labels, one.labels[:4])
    np.testing.assert_array_equal(held_out.labels, one.labels[4:])


def test_slices_that_nobody_has_labelled_are_left_out() -> None:
    runs = only_slices(stack(length=8, empty=(3,)), [1, 2, 3, 6])
    assert [len(run.labels) for run in runs] == [3, 1]
    with pytest.raises(DataError, match="no object"):
        only_slices(stack(length=8, empty=(3,)), [3])


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.zeros((1, 32, 32), int), "no object"),
        (np.ones((1, 32, 31), int), "has the shape"),
        (-np.ones((1, 32, 32), int), "negative"),
        (np.full((1, 32, 32), 0.5), "whole numbers"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_source("a.tif", np.zeros((1, 32, 32)), labels)


def test_objects_of_large_ids_are_learnt_from() -> None:
    labels = np.zeros((1, 32, 32), np.uint64)
    labels[0, :8], labels[0, 8:16], labels[0, 16:24] = 2**32, 2**32 + 2**40, 7
    source = make_source("neurites", np.zeros((1, 32, 32)), labels)
    assert source.labels.dtype == np.int32
    assert [np.unique(part).tolist() for part in np.split(source.labels[0], 4)] == [
        [2],
        [3],
        [1],
        [0],
    ]


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        split([stack(), stack()], share)


def test_one_slice_alone_is_refused() -> None:
    with pytest.raises(DataError, match="one slice with objects"):
        split([stack(empty=(0, 1, 2, 3, 4))])
    with pytest.raises(DataError, match="no images"):
        split([])


# -- scores ----------------------------------------------------------------------------------------


def test_scores_are_of_what_there_is() -> None:
    assert Score(0.5, 0.7, math.nan).mean == pytest.approx(0.6)
    assert Score(0.5, 0.7, 0.3).mean == pytest.approx(0.5)
    nano = load_model("nano", device="cpu")
    volume = Examination([stack()]).score(nano)
    assert volume.box > 0.8 and volume.tracked > 0.8, "a bright disc is easy"
    assert math.isnan(Examination(synthetic_sources(2)).score(nano).tracked)


# -- training --------------------------------------------------------------------------------------


def trained(folder: Path, model: SAM2, steps: int, **options):
    """Stopped after so many steps, of which each is looked at."""
    seen: list[Status] = []
    result = fine_tune(
        model,
        *split([stack(str(n)) for n in range(3)]),
        folder,
        minutes=50.0,
        on_status=seen.append,
        should_stop=lambda: len(seen[-1].losses) >= steps,
        **options,
    )
    return result, seen


def test_the_image_encoder_keeps_its_weights_unless_one_asks(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny().state_dict().items()}
    for whole in (False, True):
        model = tiny()
        trained(tmp_path / str(whole), model, 2, whole_model=whole)
        changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        encoder = {n for n in changed if n.startswith("image_encoder") or "conv_s" in n}
        assert changed - encoder
        assert bool(encoder) == whole


def test_a_stopped_training_is_resumed(tmp_path: Path) -> None:
    first, seen = trained(tmp_path, tiny(), 3)
    assert not first.is_complete
    assert [moment.step for moment in first.moments] == [0, 3]
    assert seen[0].moments[0].score == first.before and seen[0].share == seen[0].step == 0
    again, seen = trained(tmp_path, tiny(), 2, resume=True)
    assert [moment.step for moment in again.moments] == [0, 3, 5]
    assert again.moments[:2] == first.moments
    with pytest.raises(DataError, match="no training to resume"):
        trained(tmp_path / "elsewhere", tiny(), 1, resume=True)


def test_the_best_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.9, 0.4])
    monkeypatch.setattr(
        Examination, "score", lambda self, model: Score(next(scores), math.nan, math.nan)
    )
    first, _ = trained(tmp_path, tiny(), 1)
    assert first.best == Moment(1, first.best.seconds, Score(0.9, math.nan, math.nan))
    again, _ = trained(tmp_path, tiny(), 1, resume=True)
    assert again.best.step == 1
    for name, value in first.weights.items():
        assert torch.equal(again.weights[name], value)


def test_nothing_is_kept_that_is_no_better(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Examination, "score", lambda self, model: Score(0.5, 0.5, math.nan))
    result, _ = trained(tmp_path, tiny(), 1)
    assert result.weights is None and result.best.step == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_graphics_card(tmp_path: Path) -> None:
    result, seen = trained(tmp_path, tiny().to("cuda"), 3)
    assert np.isfinite(seen[-1].losses).all() and len(result.moments) == 2


# -- files and the command -------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments for three pairs of pictures."""
    images, labels = [], []
    for seed in range(3):
        for kind, array, names in zip(
            ("image", "labels"), crosses(seed), (images, labels), strict=True
        ):
            path = tmp_path / f"{kind}{seed}.tif"
            tifffile.imwrite(path, array)
            names.append(str(path))
    return ["finetune", "--images", *images, "--labels", *labels]


def test_a_model_of_ones_own_is_made_and_listed(
    files, tmp_path: Path, capsys, monkeypatch, a_step_takes
) -> None:
    a_step_takes(4)
    rising = iter(np.linspace(0.1, 0.9, 100))
    monkeypatch.setattr(
        Examination, "score", lambda self, model: Score(next(rising), 0.3, math.nan)
    )
    out = tmp_path / "my-crosses.safetensors"
    command = [*files, "-o", str(out), "--minutes", "0.2", "--json"]
    assert main(command) == OK
    told = capsys.readouterr()
    card = json.loads(told.out)
    objects = sum(len(np.unique(crosses(seed)[1])) - 1 for seed in range(2))
    assert card["before"]["tracked"] is None
    assert card["steps"] == 3 and card["objects"] == objects and card["slices"] == 2
    assert card["held_out"] == ["image2.tif (1 slice)"]
    assert "after 0 steps: box" in told.err
    assert "Fine-tuned from nano" in out.with_suffix(".md").read_text()
    assert not out.with_suffix(".training").exists()
    info = next(info for info in list_models() if info.name == "my-crosses")
    assert info.is_own and "nano" in info.title
    assert main(["models"]) == OK and "my-crosses" in capsys.readouterr().out
    own, nano = (load_model(name, device="cpu") for name in ("my-crosses", "nano"))
    assert own.config == nano.config
    weights = nano.state_dict()
    changed = [name for name, v in own.state_dict().items() if not torch.equal(v, weights[name])]
    assert changed and not any(name.startswith("image_encoder") for name in changed)

    assert main(command) == BAD_OUTPUT and "exists" in capsys.readouterr().err
    assert main([*command, "--resume"]) == BAD_INPUT
    out.unlink()
    assert "my-crosses" not in [info.name for info in list_models()]


def test_a_model_of_ones_own_says_from_which_it_comes(tmp_path: Path) -> None:
    score, path = Score(0.5, 0.5, math.nan), tmp_path / "mine.safetensors"
    for start in ("sam2.1-tiny@512", "sam2.1-tiny", "/models/heart.v2.pt"):
        card = Card(
            "mine", str(path), start, ("a",), ("b",), 1, 1, False, 1, 1.0, score, score, {}, {},
            is_written=True, is_complete=True,
        )  # fmt: skip
        _write(path, SAM2(TINY), card)
        info = model_info("mine")
        assert info is not None and Path(start).name.removesuffix(".pt") in info.title


def test_a_training_takes_tiny_numbers_for_zero_in_its_threads_alone(
    tmp_path: Path, monkeypatch
) -> None:
    def kept() -> int:
        """How many of many numbers below the normal range are still there."""
        return int((torch.full((1 << 20,), 1e-39) * 0.5).count_nonzero())

    def train() -> None:
        torch.set_num_threads(2)
        sources = [make_source(str(n), *(one[None] for one in crosses(n))) for n in range(2)]
        how = {"on_status": lambda _: found.append(kept()), "should_stop": lambda: True}
        finetune(sources, tmp_path / "a.safetensors", minutes=1, **how)
        torch.set_num_threads(1)
        found.append(kept())

    monkeypatch.setattr(Examination, "score", lambda self, model: Score(0.5, 0.5, math.nan))
    found: list[int] = []
    thread = threading.Thread(target=train)  # as in the widget
    thread.start()
    thread.join()
    assert len(found) > 2 and not any(found[:-1])
    assert found[-1] == kept() == 1 << 20


@pytest.mark.parametrize(
    "change, code, message",
    [
        (["--labels", "{0}/labels0.tif"], BAD_INPUT, "3 images and 1 labels"),
        (["--labels", *["{0}/missing.tif"] * 3], BAD_INPUT, "missing.tif"),
        (["--labels", *["{0}/small.tif"] * 3], BAD_INPUT, "shape"),
        (["--labels", *["{0}/empty.tif"] * 3], BAD_INPUT, "no object"),
        (["--labels", *["{0}/noise.tif"] * 3], BAD_INPUT, "an image, not labels"),
        (["--images", "{0}/image0.tif", "--labels", "{0}/labels0.tif"], BAD_INPUT, "one slice"),
        (["--held-out", "2"], BAD_INPUT, "between 0 and 1"),
        (["--minutes", "0"], BAD_INPUT, "minutes"),
        (["--from", "no-model"], NO_MODEL, "no-model"),
        (["-o", "{0}/model.pt"], BAD_OUTPUT, ".safetensors"),
        (["--from", "nano@100"], NO_MODEL, "multiple of 32"),
        (["-o", "{0}/nano.safetensors"], BAD_OUTPUT, "published"),
        (["-o", "{0}/mine@64.safetensors"], BAD_OUTPUT, "an input of 64 pixels"),
        (["-o", "{0}/nowhere/a.safetensors"], BAD_OUTPUT, "there is no folder"),
        (["-o", "{0}/dir.safetensors", "--overwrite"], BAD_OUTPUT, "it is a folder"),
        (["--resume"], BAD_INPUT, "resume"),
        (["--image"], BAD_COMMAND, "--image"),
    ],
)
def test_bad_input_is_said_before_anything_is_trained(
    files, tmp_path: Path, capsys, monkeypatch, change, code, message
) -> None:
    monkeypatch.setattr(Examination, "score", lambda *a: pytest.fail("it went on"))
    (tmp_path / "dir.safetensors").mkdir()
    tifffile.imwrite(tmp_path / "small.tif", np.ones((9, 9), np.uint8))
    tifffile.imwrite(tmp_path / "empty.tif", np.zeros((128, 128), np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (128, 128))
    tifffile.imwrite(tmp_path / "noise.tif", noise.astype(np.uint8))
    command = [*files, "-o", str(tmp_path / "a.safetensors")]
    assert main([*command, *(one.format(tmp_path) for one in change)]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()


def test_a_stopped_command_keeps_the_best_and_goes_on(
    files, tmp_path: Path, capsys, monkeypatch, a_step_takes
) -> None:
    a_step_takes(5)
    scores = (0.1 + n / 1000 for n in itertools.count())  # better and better
    monkeypatch.setattr(
        Examination, "score", lambda self, model: Score(next(scores), 0.5, math.nan)
    )
    made = []
    update = trainer.Trainer._update

    def interrupted(self, loss):
        update(self, loss)
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "_update", interrupted)
    out = tmp_path / "a.safetensors"
    command = [*files, "-o", str(out), "--minutes", "0.3"]  # four steps
    assert main(command) == STOPPED and "--resume" in capsys.readouterr().err
    assert load_model("a", device="cpu") is not None and out.with_suffix(".training").is_dir()
    assert main([*command, "--resume", "--from", "a"]) == BAD_INPUT
    assert "start" in capsys.readouterr().err
    out.unlink()  # nothing may have been better
    held = (out.with_suffix(".training") / "checkpoint.pt").read_bytes()
    assert main(command) == BAD_OUTPUT
    told = capsys.readouterr().err
    assert "--resume goes on" in told and "--overwrite" in told
    with pytest.raises(WriteError, match="stopped training"):
        finetune(read_pairs(files[2:5], files[6:9]), out, minutes=0.3)
    assert (out.with_suffix(".training") / "checkpoint.pt").read_bytes() == held
    assert main([*command, "--resume"]) == OK
    assert not out.with_suffix(".training").exists()


def test_a_folder_that_is_no_training_is_left_alone(files, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a.training"
    folder.mkdir()
    (folder / "images.txt").write_text("mine")
    assert main([*files, "-o", str(tmp_path / "a.safetensors"), "--overwrite"]) == BAD_OUTPUT
    assert "something else" in capsys.readouterr().err
    assert (folder / "images.txt").read_text() == "mine"


# -- whether it helps ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_minute_of_fine_tuning_helps_on_unseen_images_of_the_kind(
    tmp_path: Path, a_step_takes
) -> None:
    """Crosses of texture, of which nano finds little; other scenes stay what they were."""
    a_step_takes(1.5)
    sources = [make_source(str(n), *(one[None] for one in crosses(n))) for n in range(10)]
    card = finetune(sources, tmp_path / "crosses.safetensors", minutes=1.0, held_out=0.3)
    assert card.is_written and card.after.mean > card.before.mean, card
    (others,) = card.others_before
    assert card.others_after[others].mean > card.others_before[others].mean - 0.05, card
    unseen = [make_source(str(n), *(one[None] for one in crosses(n))) for n in range(100, 104)]
    exam = Examination(unseen)  # of which not even the best moment was chosen
    nano, own = (load_model(name, device="cpu") for name in ("nano", "crosses"))
    assert exam.score(own).mean > exam.score(nano).mean


def test_a_pair_that_does_not_match_is_named(tmp_path: Path) -> None:
    for name, shape in (("a", (8, 8)), ("b", (8, 9))):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.ones(shape, np.uint8))
    with pytest.raises(ReadError, match=r"b\.tif has the shape"):
        read_pairs([tmp_path / "a.tif"], [tmp_path / "b.tif"])


def test_labels_lie_on_their_image(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 4), np.uint8)
    labels[1:4, 2:6, 1:3] = 1
    image, own = tmp_path / "image.nii", tmp_path / "labels.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros(labels.shape, np.int16), OBLIQUE), image)
    nibabel.save(nibabel.Nifti1Image(labels, OBLIQUE), own)
    (source,) = read_pairs([image], [mirrored(own, tmp_path / "flip.nii")])
    np.testing.assert_array_equal(np.asarray(source.labels), labels.T)
    nibabel.save(nibabel.Nifti1Image(labels, OBLIQUE @ np.diag([-1.0, 1, 1, 1])), own)
    with pytest.raises(ReadError, match="lies elsewhere in space"):
        read_pairs([image], [own])
