"""Training: losses by hand, honest clips and prompts, learning, and going on after a stop."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import label
from torch import Tensor

from sam2_engine.model import SAM2, VARIANTS, ModelConfig
from sam2_engine.model.config import ConvStage, ConvTrunkConfig
from sam2_engine.training.command import main
from sam2_engine.training.data import BatchDataset, ClipSampler
from sam2_engine.training.drift import Drift
from sam2_engine.training.losses import dice_loss, focal_loss, mask_iou, mask_losses
from sam2_engine.training.prompts import (
    NEGATIVE,
    PADDING,
    POSITIVE,
    boxes_around,
    click_inside,
    corrective_click,
    first_prompts,
)
from sam2_engine.training.regions import grow_bodies
from sam2_engine.training.sources import Source, load_sources, window
from sam2_engine.training.steps import clip_step, geometry_step, image_step
from sam2_engine.training.synthetic import synthetic_clip
from sam2_engine.training.trainer import CLIPS, GEOMETRY, IMAGES, Stage, Trainer
from sam2_engine.weights import load_model

SIDE = 64
TINY = ModelConfig(
    trunk=ConvTrunkConfig(
        stem_channels=8,
        stages=tuple(
            ConvStage(1, channels, 3, stride, 1)
            for channels, stride in ((8, 1), (8, 2), (8, 2), (16, 2), (16, 2))
        ),
    ),
    image_size=SIDE,
    d_model=32,
    memory_dim=16,
    memory_layers=1,
    memory_ffn=32,
    decoder_mlp=32,
    draws_prompts=True,
    refines_masks=True,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors are quicker on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_model() -> SAM2:
    torch.manual_seed(0)
    return SAM2(TINY)


def square(y0: int, x0: int, y1: int, x1: int) -> Tensor:
    """(1, S, S) bool, true from (y0, x0) to (y1, x1) inclusive."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


# -- losses ------------------------------------------------------------------------------------


def test_focal_loss_is_the_published_formula() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    target = torch.tensor([[1.0, 1.0]])
    expected = 0.0
    for logit in (2.0, -1.0):
        p = 1 / (1 + math.exp(-logit))
        expected += -0.25 * (1 - p) ** 2 * math.log(p) / 2
    assert focal_loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
    p = 1 / (1 + math.exp(-2.0))
    one_wrong = focal_loss(torch.tensor([[2.0]]), torch.tensor([[0.0]])).item()
    assert one_wrong == pytest.approx(-0.75 * p**2 * math.log(1 - p), rel=1e-5)


def test_dice_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])  # probability 1/2 on each of 4 pixels
    target = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert dice_loss(logits, target).item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 3 + 1))
    assert dice_loss(torch.full((2, 2), -50.0), torch.zeros(2, 2)).item() == pytest.approx(0.0)


def test_iou_by_hand() -> None:
    logits = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert mask_iou(logits, target).item() == pytest.approx(1 / 3)
    assert mask_iou(torch.full((2, 2), -1.0), torch.zeros(2, 2)).item() == 1.0


def test_only_the_best_candidate_learns_its_shape_and_all_learn_their_quality() -> None:
    truth = square(16, 16, 47, 47)
    good = torch.where(truth[:, ::4, ::4], 6.0, -6.0)
    candidates = torch.stack([-good, good, torch.full_like(good, -6.0)], 1).requires_grad_()
    ious = torch.tensor([[0.5, 0.5, 0.5]], requires_grad=True)
    score = torch.zeros(1, 1, requires_grad=True)
    loss = mask_losses(candidates, ious, score, truth)
    loss.sum().backward()
    assert candidates.grad is not None and ious.grad is not None and score.grad is not None
    learning = candidates.grad.flatten(2).abs().sum(2)[0]
    assert learning[1] > 0 and learning[0] == 0 and learning[2] == 0
    # Real IoUs are 0, 1 and 0: the estimates must go down, up and down.
    assert ious.grad.sign().tolist() == [[1.0, -1.0, 1.0]]
    assert score.grad.item() < 0
    chosen = torch.nn.functional.interpolate(
        candidates.detach()[:, 1:2], size=(SIDE, SIDE), mode="bilinear"
    )
    shape = 20 * focal_loss(chosen, truth[:, None].float()) + dice_loss(
        chosen, truth[:, None].float()
    )
    assert loss.item() == pytest.approx(shape.item() + 0.5 + math.log(2), rel=1e-4)


def test_an_absent_object_teaches_its_absence_alone() -> None:
    candidates = torch.randn(1, 3, 16, 16, generator=generator(), requires_grad=True)
    ious = torch.full((1, 3), 0.5, requires_grad=True)
    score = torch.tensor([[3.0]], requires_grad=True)
    loss = mask_losses(candidates, ious, score, torch.zeros(1, SIDE, SIDE, dtype=torch.bool))
    loss.sum().backward()
    # Cross-entropy with a target of 0.03: nothing is ever quite sure.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(3.0)) - 0.03 * 3.0, rel=1e-5)
    assert candidates.grad is not None and candidates.grad.abs().sum() == 0
    assert score.grad is not None and score.grad.item() > 0


# -- prompts -----------------------------------------------------------------------------------


def test_clicks_are_inside_and_deep_ones_are_central() -> None:
    masks = torch.cat([square(8, 8, 40, 40), square(0, 60, 3, 63), square(30, 2, 30, 2)])
    for seed in range(20):
        for deep in (True, False):
            points = click_inside(masks, generator(seed), torch.full((3,), deep)).long()
            assert masks[torch.arange(3), points[:, 1], points[:, 0]].all()
            if deep:
                assert (points[0] - 24).abs().max() <= 5


def test_boxes_are_tight_or_nearly() -> None:
    masks = square(10, 20, 30, 50)
    tight = boxes_around(masks, generator(), torch.tensor([False]))
    assert tight.tolist() == [[[20, 10], [50, 30]]]
    for seed in range(20):
        noisy = boxes_around(masks, generator(seed), torch.tensor([True]))
        assert (noisy - tight).abs().max() <= 9.1  # 30 % of the longer side


def test_first_prompts_serve_each_object_once() -> None:
    masks = torch.cat([square(4 * i, 4 * i, 4 * i + 12, 4 * i + 12) for i in range(10)])
    prompts = first_prompts(masks, generator(3))
    assert sorted(i for p in prompts for i in p.objects.tolist()) == list(range(10))
    assert {p.points.shape[1] for p in prompts} == {1, 2}
    for p in prompts:
        assert p.points.shape[:2] == p.labels.shape
        # Rounding to a coarse grid moves a point up and left, by less than a small part of the
        # object.
        low = torch.tensor([[4.0 * i] for i in p.objects]) - 8
        assert (p.points.amin((1, 2))[:, None] >= low).all()


def test_a_correction_is_where_the_error_is() -> None:
    truth = torch.cat([square(8, 8, 40, 40)] * 3)
    predicted = torch.cat([square(8, 8, 40, 20), square(8, 8, 60, 40), square(8, 8, 40, 40)])
    points, labels = corrective_click(predicted, truth, generator(), from_truth=0.0)
    assert labels[:, 0].tolist() == [POSITIVE, NEGATIVE, PADDING]
    x, y = points[0, 0].tolist()
    assert 21 <= x <= 40 and 8 <= y <= 40
    x, y = points[1, 0].tolist()
    assert 8 <= x <= 40 and 41 <= y <= 60


# -- clips -------------------------------------------------------------------------------------


def ball_volume() -> Source:
    """30 slices of 40 x 50 with a bright ball (1) beside a dark one (2), present on slices 8 to
    22.
    """
    z, y, x = np.mgrid[:30, :40, :50]
    labels = np.zeros((30, 40, 50), np.int32)
    labels[(z - 15) ** 2 + (y - 20) ** 2 + (x - 15) ** 2 <= 49] = 1
    labels[(z - 15) ** 2 + (y - 20) ** 2 + (x - 33) ** 2 <= 49] = 2
    noise = np.random.default_rng(0).normal(0, 5, labels.shape)
    image = np.choose(labels, (100.0, 200.0, 20.0)) + noise
    return Source("balls/one", window(image), labels, instances=False, volume=True)


def test_clips_have_their_shapes_and_show_every_object_first() -> None:
    sampler = ClipSampler([ball_volume()], SIDE)
    dataset = BatchDataset(sampler, seed=3, frames=(3, 6), clips=3, objects=4)
    absent = 0
    for number in range(6):
        batch = dataset[number]
        frames = batch.images.shape[1]
        assert batch.images.shape == (3, frames, 3, SIDE, SIDE) and 3 <= frames <= 6
        assert batch.masks.shape == (len(batch.clip), frames, SIDE, SIDE)
        assert batch.masks.dtype == torch.bool
        assert batch.masks[:, 0].flatten(1).any(1).all()
        assert set(batch.clip.tolist()) == {0, 1, 2}
        assert torch.bincount(batch.clip).max() <= 4
        assert torch.isfinite(batch.images).all()
        absent += int((~batch.masks.flatten(2).any(2)).sum())
    assert absent > 0, "objects must also end, or their absence is never learnt"


def test_masks_follow_the_image_through_the_augmentation() -> None:
    """Pixels of the bright and the dark ball stay apart however a clip is turned, unless made
    too noisy.
    """
    sampler = ClipSampler([ball_volume()], SIDE)
    sampler.shares = np.array([1.0, 0.0, 0.0])
    good = total = 0
    for seed in range(12):
        images, masks = sampler.clip(np.random.default_rng(seed), 2, 3)
        for mask in masks:
            inside, outside = images[0, 0][mask[0]], images[0, 0][~mask[0]]
            total += 1
            good += bool((inside.mean() - outside.mean()).abs() > 0.1)
    assert good >= 0.6 * total


def test_bodies_are_grown_where_an_edge_is() -> None:
    """A ball that nobody has labelled is found as far as it reaches; noise alone holds no body."""
    source = ball_volume()
    truth = (source.labels == 1).repeat(3, axis=1).repeat(3, axis=2).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02, truth.shape).astype(np.float32)
    image, middle = 0.3 + 0.5 * truth + noise, int(truth.sum((1, 2)).argmax())
    clip, inside = image[middle:], truth[middle:] > 0
    found = [grow_bodies(np.random.default_rng(seed), clip, 4) for seed in range(12)]
    bodies = [b for masks in found for b in masks if (b[0] & inside[0]).sum() > b[0].sum() / 2]
    assert len(bodies) >= 3
    overlap = [2 * (b & inside).sum() / (b.sum() + inside.sum()) for b in bodies]
    assert np.median(overlap) > 0.8
    for seed in range(5):
        assert not len(grow_bodies(np.random.default_rng(seed), 0.5 + 5 * noise, 4))


def test_the_same_number_gives_the_same_batch() -> None:
    dataset = BatchDataset(ClipSampler([ball_volume()], SIDE), 1, (2, 2), 2, 4)
    first, again, other = dataset[5], dataset[5], dataset[6]
    assert torch.equal(first.images, again.images) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images[:1], other.images[:1])


def test_synthetic_objects_begin_on_the_first_frame_and_change() -> None:
    changed = ended = 0
    for seed in range(15):
        clip = synthetic_clip(np.random.default_rng(seed), 6, SIDE)
        assert clip.images.shape == (6, SIDE, SIDE)
        assert clip.images.min() >= 0 and clip.images.max() <= 1
        assert clip.masks.shape[1:] == (6, SIDE, SIDE)
        assert clip.masks[:, 0].any((1, 2)).all()
        changed += int((clip.masks[:, 0] != clip.masks[:, -1]).any())
        ended += int((~clip.masks[:, -1].any((1, 2))).sum())
    assert changed >= 12 and ended > 0


def test_branches_of_a_synthetic_tree_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam2_engine.training.synthetic._TISSUE_SHARE", 0.0)
    monkeypatch.setattr("sam2_engine.training.synthetic._TREES_SHARE", 1.0)
    parted = 0
    for seed in range(8):
        clip = synthetic_clip(np.random.default_rng(seed), 6, SIDE)
        assert clip.masks[:, 0].any((1, 2)).all() and (clip.masks.sum(0) <= 1).all()
        for mask in clip.masks:
            pieces = [label(frame)[1] for frame in mask]
            parted += max(pieces) > pieces[0]
    assert parted >= 3


@pytest.mark.parametrize("side", [512, 1024])
def test_synthetic_scenes_come_in_the_size_of_every_published_model(side: int) -> None:
    for seed in range(4):  # tissues, and bodies before a texture
        clip = synthetic_clip(np.random.default_rng(seed), 1, side)
        assert clip.images.shape == (1, side, side)
        assert clip.masks.shape[1:] == (1, side, side) and clip.masks.any()


def test_only_the_training_split_is_read(tmp_path) -> None:
    from skimage.io import imsave

    items = []
    for split in ("train", "dev"):
        image = np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)
        labels = np.zeros((20, 30), np.uint8)
        labels[5:10, 5:10] = 1
        imsave(tmp_path / f"{split}.png", image, check_contrast=False)
        imsave(tmp_path / f"{split}_labels.png", labels, check_contrast=False)
        items.append(
            {
                "name": f"things/{split}",
                "split": split,
                "kind": "image",
                "image": f"{split}.png",
                "labels": f"{split}_labels.png",
                "axes": "YX",
                "instances": True,
            }
        )
    (tmp_path / "manifest.json").write_text(json.dumps({"items": items}))
    (source,) = load_sources(tmp_path / "manifest.json")
    assert source.name == "things/train" and source.labels.shape == (1, 20, 30)
    with pytest.raises(FileNotFoundError, match="no data manifest"):
        load_sources(tmp_path / "missing.json")


# -- learning ----------------------------------------------------------------------------------


def test_every_part_of_the_model_learns_from_clips() -> None:
    model = tiny_model().train()
    batch = BatchDataset(ClipSampler([], SIDE), 0, (4, 4), 2, 4)[0]
    clip_step(model, batch, generator()).loss.backward()
    image_step(model, batch, generator()).loss.backward()
    # no_mem_pos_enc is in every checkpoint but unused, and so is no_mask_embed where prompts are
    # drawn; a bias of the image's keys adds the same to all scores of a token; the shares of
    # prompts are random, so that one batch need not hold each kind.
    optional = (
        "no_mem_pos_enc",
        "no_mask_embed",
        "token_to_image.k_proj.bias",
        "point_embeddings",
        "mask_downscaling",
        "no_obj",
        "not_a_point",
    )
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and not any(word in name for word in optional)
    ]
    assert still == []


def test_a_refinement_begins_as_no_change() -> None:
    torch.manual_seed(0)
    plain, refined = SAM2(replace(TINY, refines_masks=False)).eval(), tiny_model().eval()
    missing, unexpected = refined.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(".refinements." in name for name in missing)
    image = torch.randn(1, 3, SIDE, SIDE, generator=generator())
    logits = torch.randn(1, 1, SIDE // 4, SIDE // 4, generator=generator())

    def masks(model: SAM2) -> Tensor:
        features = model.encode_image(image)
        conditioned = model.without_memory(features)
        return model.decode_masks(features, conditioned, mask_input=logits).candidates

    with torch.no_grad():
        assert torch.equal(masks(plain), masks(refined))
        for refinement in refined.sam_mask_decoder.refinements:
            torch.nn.init.normal_(refinement.leave.weight)
        assert not torch.allclose(masks(plain), masks(refined))


def test_masks_go_astray_little_by_little() -> None:
    side = 128
    distance = (torch.arange(side) - side / 2).square()
    radius = torch.linspace(8, 40, 32)[:, None, None]
    truth = distance[:, None] + distance[None, :] < radius**2
    drift = Drift(len(truth), side, generator())

    def overlap(progress: float) -> float:
        logits = drift.answers(truth, progress)
        enlarged = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear")
        return float(mask_iou(enlarged[:, 0], truth).mean())

    start, middle, end = overlap(0.0), overlap(0.5), overlap(1.0)
    assert start > 0.8
    assert start > middle > end > 0.2


def test_some_objects_are_still_answered_after_their_end() -> None:
    truth = square(16, 16, 47, 47).expand(40, -1, -1)
    drift = Drift(40, SIDE, generator())
    drift.answers(truth, 0.0)
    answered = (drift.answers(torch.zeros_like(truth), 0.1) > 0).flatten(1).any(1)
    assert 8 < answered.sum() < 32


def test_true_masks_gone_astray_lead_to_the_frames_that_are_learnt_from() -> None:
    model = tiny_model().train()
    batch = BatchDataset(ClipSampler([], SIDE), 0, (6, 6), 2, 4)[0]
    own = clip_step(model, batch, generator(), learnt=2)
    led = clip_step(model, batch, generator(), learnt=2, drift_share=1.0)
    assert led.report.keys() == own.report.keys()
    assert led.loss != own.loss
    led.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_some_steps_lower_the_loss() -> None:
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images = torch.randn((2, 3, SIDE, SIDE), generator=generator())
    losses = []
    for _ in range(40):
        result = geometry_step(model, images, generator(1), 8)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.report["loss"])
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


STAGES = (
    Stage("geometry", GEOMETRY, minutes=10, steps=2, batch=4),
    Stage("images", IMAGES, minutes=10, steps=3, batch=2, objects=3),
    Stage("clips", CLIPS, minutes=10, steps=3, batch=1, objects=3, frames=(2, 3)),
)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path) -> None:
    unbroken = Trainer(tiny_model(), STAGES, tmp_path / "unbroken", [ball_volume()])
    unbroken.run()
    assert unbroken.progress.stage == 3 and unbroken.progress.total_steps == 8
    for name in ("1-geometry.pt", "2-images.pt", "3-clips.pt", "checkpoint.pt"):
        assert (tmp_path / "unbroken" / name).is_file()

    for steps in (1, 3, None):
        broken = Trainer(tiny_model(), STAGES, tmp_path / "broken", [ball_volume()])
        assert broken.resume() == (steps != 1)
        broken.run(steps)
    assert broken.progress.total_steps == 8
    for name, value in unbroken.model.state_dict().items():
        torch.testing.assert_close(broken.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for name, value in unbroken.average.items():
        torch.testing.assert_close(broken.average[name], value, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_other_stages_is_refused(tmp_path) -> None:
    Trainer(tiny_model(), STAGES[:1], tmp_path, []).run()
    with pytest.raises(ValueError, match="another folder"):
        Trainer(tiny_model(), STAGES[1:], tmp_path, []).resume()


def test_training_goes_on_from_a_trained_model(tmp_path) -> None:
    """The heads of a trained model know where a prompt is, so only clips are trained."""
    arguments = ["--from", "nano", "--out", str(tmp_path), "--steps", "1", "--minutes", "1"]
    assert main(arguments) == 0
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["stages"] == ["short clips", "clips"]
    given = load_model("nano", device="cpu", dtype="float32").state_dict()
    change = max(float((state["model"][name] - value).abs().max()) for name, value in given.items())
    assert 0 < change < 1e-3
    assert load_model(tmp_path / "checkpoint.pt", device="cpu").config == VARIANTS["nano"]


def test_the_command_says_what_is_wrong(tmp_path, capsys) -> None:
    missing = str(tmp_path / "missing.json")
    arguments = ["--data", missing, "--out", str(tmp_path / "out"), "--random-trunk"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "missing.json" in error and len(error.splitlines()) == 1
    (tmp_path / "list.json").write_text("[]")
    for wrong in (["--data", str(tmp_path / "list.json")], ["--from", "nothing"]):
        assert main([*wrong, "--out", str(tmp_path / "out"), "--random-trunk"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_several_processes_say_once_what_is_wrong(tmp_path, capfd) -> None:
    arguments = ["--stages", "nothing", "--processes", "2", "--out", str(tmp_path)]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("Error: There is no stage 'nothing'") and len(error.splitlines()) == 1
