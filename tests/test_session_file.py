"""Sessions on disk: what is saved comes back, whatever happens to the disk and the file."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
import threading
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from lazy import Damaged, Lazy
from models import small_model
from volumes import two_blobs

from napari_sam2 import UnreadableSlices, read_volume, segment
from napari_sam2.cli import main
from napari_sam2.io import WriteError
from napari_sam2.sequence_view import Channels, SequenceKey
from napari_sam2.session import LockedError, NothingToDo, Session
from napari_sam2.session_file import (
    ChangedImageError,
    MissingModelError,
    SessionFileError,
    fingerprint,
    open_session,
    read_session,
    replay,
    save_session,
)
from sam2_engine.weights import save_model

SHAPE = (6, 40, 56)
WINDOW = (0.0, 250.0)


@pytest.fixture
def volume() -> np.ndarray:
    return two_blobs(SHAPE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work.sam2session"


def rich(volume: np.ndarray, **how: Any) -> Session:
    """A session with something of everything, some of it out of date."""
    session = Session(volume, small_model(), window=WINDOW, **how)
    one, two = session.add_object("liver ☺"), session.add_object("two")
    session.add_points(one, [(2, 16, 16), (2, 2, 2)], [1, 0])
    session.add_box(two, 1, (17, 27, 35, 45))
    session.look_closely(two, times=1.5)
    session.propagate()
    session.keep(one, [1])
    session.keep(two, [4], "locked")
    painted = np.zeros(SHAPE[1:], bool)
    painted[20:24, 5:50] = True
    session.paint(two, 3, painted)
    session.set_prompts(
        one,
        5,
        points=[(20.25, 16)],
        scribbles=[([(18, 14), (22, 17)], 1), ([(1, 1)], 0)],
        lassos=[[(12, 8), (12, 26), (28, 16)]],
    )
    session.set_prompts(two, 0, points=[(27, 39)])  # corrects what was found there
    session.edit_object(one, colour=(0.1, 0.2, 0.7), hidden=True)
    three = session.add_object("three")
    session.remove_object(three)
    session.add_object("nothing yet")
    session.edit_object(two, locked=True)
    session.show(SequenceKey.along(2, 3))
    session.add_points(one, [(3, 17, 16)])
    session.preview(16)
    return session


def plain(value: Any) -> Any:
    """Values that can be compared, of all that a state holds."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def assert_same(found: Session, expected: Session) -> None:
    assert plain(found.snapshot()) == plain(expected.snapshot())
    np.testing.assert_array_equal(found.labels, expected.labels)


# -- round trips ---------------------------------------------------------------------------------


def test_all_of_a_session_comes_back(volume: np.ndarray, path: Path) -> None:
    session = rich(volume, end_after=3, memory="confident", memory_tokens="near")
    session.spend(2, 70)
    session.spend(2, 5.5)
    assert session.prompts_of(SequenceKey.along(0, 3))[2][0].corrects is not None
    save_session(session, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    opened = open_session(path, volume, model=small_model(), warn=pytest.fail)
    assert_same(opened, session)
    assert opened.seconds == {2: 75.5}
    assert opened.history.undo_label is None
    np.testing.assert_array_equal(read_session(path).labels(), session.labels)
    for one in (session, opened):
        one.edit_object(2, locked=False)
        one.update()
        one.show(SequenceKey.along(0, 3))
        one.propagate()
    assert_same(opened, session)
    assert opened.add_object() == session.add_object()  # ids are not used twice


def test_up_to_date_masks_are_not_computed_again(volume: np.ndarray, path: Path) -> None:
    session = Session(volume, small_model(), window=WINDOW)
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    save_session(session, path)
    opened = open_session(path, volume, model=small_model())
    assert opened.stale(one) == []
    assert list(opened.propagation()) == []
    opened.window = (0, 100)
    assert opened.stale(one) == list(range(6))


@pytest.mark.parametrize("kind", ["2-D", "4-D", "colours", "channels", "several"])
def test_any_kind_of_image(kind: str, volume: np.ndarray, path: Path) -> None:
    how: dict[str, Any] = {"window": WINDOW}
    image: Any = volume
    point = [(2, 16, 16)]
    if kind == "2-D":
        image, point = volume[2], [(16, 16)]
    elif kind == "4-D":
        image, point = np.stack([volume, volume[::-1]]), [(1, 3, 16, 16)]
    elif kind == "colours":
        image, how = np.stack([volume.clip(0, 255).astype(np.uint8)] * 3, axis=-1), {"rgb": True}
    elif kind == "channels":
        image, how = np.stack([volume, volume * 2], axis=1), {"channels": Channels(1, (1, 0))}
        point = [(2, 0, 16, 16)]
    else:
        image, how = [volume, volume * 2], {"window": (WINDOW, (0.0, 500.0))}
    spacing = tuple(range(1, 1 + (image[0] if kind == "several" else image).ndim))
    session = Session(image, small_model(), spacing=spacing, **how)
    if kind == "4-D":
        session.show(SequenceKey(1, (1, None, None, None)))
    one = session.add_object()
    session.add_points(one, point)
    session.propagate()
    assert session.labels.any()
    save_session(session, path)
    opened = open_session(path, image, model=small_model(), warn=pytest.fail)
    assert_same(opened, session)
    assert opened.view.pixel_size == session.view.pixel_size
    np.testing.assert_array_equal(read_session(path).labels(), session.labels)
    np.testing.assert_array_equal(replay(path, image, model=small_model()), session.labels)


def test_numbers_of_numpy_are_saved(volume: np.ndarray, path: Path) -> None:
    session = Session(
        volume, small_model(), window=tuple(np.float32([0, 250])), end_after=np.int64(2)
    )
    one = session.add_object(object_id=int(np.int64(7)))
    session.set_prompts(one, np.int64(2), points=np.array([[16, 16]], np.int32))
    session.edit_object(one, colour=np.array([0.5, 0.25, 1]))
    session.preview(np.int64(2))
    save_session(session, path)
    opened = open_session(path, volume, model=small_model())
    np.testing.assert_array_equal(opened.labels, session.labels)
    assert opened.objects[7].colour == (0.5, 0.25, 1)


def test_whatever_can_be_set_comes_back(volume: np.ndarray, path: Path) -> None:
    session = Session(volume, small_model(), window=WINDOW, end_after=0)
    one = session.add_object(object_id=np.int64(7))
    for set_or_refuse in (
        lambda: session.edit_object(one, colour=(1, 0.5, 0, 1)),
        lambda: session.add_object(object_id=9.0),
        lambda: session.add_box(one, 2.0, (5, 5, 20, 20)),
    ):
        with suppress(ValueError):
            set_or_refuse()
    save_session(session, path)
    assert_same(open_session(path, volume, model=small_model()), session)


def test_time_may_be_spent_while_a_session_is_saved(volume: np.ndarray, path: Path) -> None:
    session = Session(volume, small_model())
    for _ in range(300):
        session.add_object()
    saving = threading.Event()
    failed: list[Exception] = []

    def save() -> None:
        while not saving.is_set():
            try:
                session.snapshot()
            except RuntimeError as error:
                failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=save)
    thread.start()
    try:
        for object_id in session.objects:
            session.spend(object_id, 1)
            time.sleep(1e-4)
    finally:
        saving.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not failed


def test_a_session_opens_into_the_labels_that_it_had_written(
    volume: np.ndarray, path: Path
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, :5, :5] = 200
    session = Session(volume, small_model(), window=WINDOW, labels=labels)
    one = session.add_object(object_id=3)
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    save_session(session, path)
    kept = labels.copy()
    opened = open_session(path, volume, model=small_model(), labels=labels)
    assert opened.labels is labels
    np.testing.assert_array_equal(labels, kept)
    opened.remove_object(3)
    assert set(np.unique(labels)) == {0, 200}
    big = rich(volume)
    big.add_object(object_id=70000)
    save_session(big, path)
    with pytest.raises(ValueError, match="cannot hold the object 70000"):
        open_session(path, volume, model=small_model(), labels=labels)


def act(session: Session, rng: np.random.Generator) -> None:
    """Do something, as a person would."""
    view = session.view
    height, width = view.frame_shape
    frame = int(rng.integers(len(view)))
    objects = list(session.objects)
    one = int(rng.choice(objects))
    yx = rng.uniform(0, (height, width), (4, 2))
    y0, x0 = rng.uniform(0, (height - 8, width - 8))
    action = rng.integers(17)
    if action < 4:
        session.add_points(one, view.join(frame, yx[:2]), [1, int(rng.integers(2))])
        session.preview(frame)
    elif action == 4:
        session.add_box(one, frame, (y0, x0, y0 + 8, x0 + 8))
        session.preview(frame)
    elif action == 5:
        session.set_prompts(one, frame, scribbles=[(yx, 1)], lassos=[yx] * int(rng.integers(2)))
        session.preview(frame)
    elif action == 6:
        session.set_prompts(one, frame)
    elif action == 7:
        mask = np.zeros((height, width), bool)
        mask[int(y0) : int(y0) + 6, int(x0) : int(x0) + 7] = True
        session.paint(one, frame, mask)
    elif action == 8:
        session.keep(one, [frame], "approved" if rng.random() < 0.5 else "locked")
    elif action == 9:
        session.release(one, session.kept(one))
    elif action == 10:
        session.propagate(start=min(frame, 2), stop=max(frame, 2))
    elif action == 11:
        session.propagate(objects=[one])
    elif action == 12:
        session.update()
    elif action == 13:
        session.undo()
    elif action == 14:
        session.edit_object(one, locked=bool(rng.random() < 0.3), name=f"name {frame}")
    elif action == 15:
        session.merge_objects(objects[0], one)
    else:
        session.show(SequenceKey.along(int(rng.choice([0, 0, 1])), 3))
    if len(session.objects) < 3:
        session.add_object()


@pytest.mark.parametrize("seed", range(8))
def test_random_sessions_come_back_and_replay_to_the_same_masks(
    seed: int, volume: np.ndarray, path: Path
) -> None:
    rng = np.random.default_rng(seed)
    session = Session(volume, small_model(), window=WINDOW, end_after=[None, 2][seed % 2])
    for _ in range(3):
        session.add_object()
    for _ in range(25):
        with suppress(LockedError, NothingToDo, ValueError):
            act(session, rng)
    if seed % 2:
        session.propagate()
    save_session(session, path)
    opened = open_session(path, volume, model=small_model(), warn=pytest.fail)
    assert_same(opened, session)
    assert session.labels.any()
    replayed = replay(path, volume, model=small_model())
    for view in session.prompted_sequences:
        for one in (session, opened):
            one.show(view.key)
            if one.task().wanted:
                one.update()
    np.testing.assert_array_equal(opened.labels, session.labels)
    np.testing.assert_array_equal(replayed, session.labels)


def test_a_replay_follows_objects_everywhere_when_asked(volume: np.ndarray, path: Path) -> None:
    session = Session(volume, small_model(), window=WINDOW)
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.preview(2)
    save_session(session, path)
    np.testing.assert_array_equal(replay(path, volume, model=small_model()), session.labels)
    steps = []
    everywhere = replay(path, volume, model=small_model(), everywhere=True, progress=steps.append)
    session.propagate()
    np.testing.assert_array_equal(everywhere, session.labels)
    assert steps[-1].done == steps[-1].total >= 6


def test_another_program_reads_the_masks_as_the_documentation_says(
    volume: np.ndarray, path: Path
) -> None:
    text = (Path(__file__).parents[1] / "docs" / "sessions.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import io\n.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    session = rich(volume)
    save_session(session, path)
    found: dict[int, dict[tuple[int, int], np.ndarray]] = {}
    for object_id in session.objects:
        for (axis, frame), (top, left, mask) in names["masks_of"](path, object_id).items():
            shape = session.view_of(SequenceKey.along(axis, 3)).frame_shape
            whole = np.zeros(shape, bool)
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            if whole.any():
                found.setdefault(object_id, {})[axis, frame] = whole
    for axis in (0, 2):
        session.show(SequenceKey.along(axis, 3))
        for object_id, masks in session.masks.items():
            for frame, mask in masks.items():
                expected = mask.on_frame(session.view.frame_shape)
                np.testing.assert_array_equal(found[object_id].pop((axis, frame)), expected)
    assert not any(found.values())


# -- the image and the model ---------------------------------------------------------------------


def test_a_fingerprint_reads_little_and_tells_images_apart(volume: np.ndarray) -> None:
    many = np.random.default_rng(0).integers(0, 1000, (3, 50, 20, 30), np.int16)
    whole = fingerprint(many)
    assert fingerprint(Lazy(many, 20 * 30)) == whole
    assert fingerprint(many.astype(np.float64)) == whole  # readers differ in data types
    assert fingerprint(many[:, :, :, ::-1]) != whole
    assert fingerprint(many.reshape(150, 20, 30)) != whole
    huge = np.zeros((4000, 3000), np.uint8)
    assert fingerprint(Lazy(huge, 1024 * 1024)) == fingerprint(huge)
    assert fingerprint([volume, volume]) != fingerprint(volume)
    colours = np.zeros((5, 20, 30, 3), np.uint8)
    colours[0, 0, 0, 2] = 1
    assert fingerprint(Lazy(colours, 20 * 30 * 3)) != fingerprint(np.zeros_like(colours))
    assert fingerprint(np.array([[0.0, 1]])) == fingerprint(np.array([[-0.0, 1]]))


def test_work_on_an_image_with_a_damaged_slice_goes_on(volume: np.ndarray, path: Path) -> None:
    image, whole = Damaged(volume, volume[0].size), Session(volume, small_model(), window=WINDOW)
    session = Session(image, small_model(), window=WINDOW)
    for one in (session, whole):
        one.add_points(one.add_object(), [(2, 16, 16)], [1])
    whole.propagate()
    told = "Slice 4 cannot be read: data corrupted. It has no new masks; the next run tries again."
    with pytest.raises(UnreadableSlices, match=told) as caught:
        session.propagate()
    assert caught.value.session is session
    assert list(session.unread) == [4]
    assert session.looked_at(1) == {0, 1, 2, 3, 5}
    assert session.stale(1) == []
    np.testing.assert_array_equal(session.labels[:4], whole.labels[:4])
    with pytest.raises(UnreadableSlices):
        session.update()
        session.propagate()

    save_session(session, path)
    again = open_session(path, image, model=small_model())
    assert_same(again, session)
    image.bad = ()
    session.propagate()
    assert not session.unread
    assert session.stale(1) == [5], "it was found without slice 4"
    session.update()
    np.testing.assert_array_equal(session.labels, whole.labels)

    assert_same(open_session(path, volume, model=small_model()), again)  # it can be read by now
    other = volume + (np.arange(6) == 1)[:, None, None]
    with pytest.raises(ChangedImageError):
        open_session(path, other, model=small_model())
    save_session(session, path)
    image.bad = (4,)
    opened = open_session(path, image, model=small_model())  # and then it cannot, again
    assert not opened.stale(1)
    save_session(again, path)
    with pytest.raises(UnreadableSlices, match="Slice 4") as caught:
        replay(path, image, everywhere=True, model=small_model())
    np.testing.assert_array_equal(caught.value.session.labels, again.labels)
    with pytest.raises(UnreadableSlices) as caught:
        segment(image, points={1: (2, 16, 16)}, model=small_model(), window=WINDOW)
    np.testing.assert_array_equal(caught.value.session.labels, again.labels)
    image.bad = ()
    caught.value.session.show(SequenceKey.along(1, 3))
    caught.value.session.add_points(1, [(2, 16, 16)])
    caught.value.session.propagate()  # which knows nothing of slice 4 along the other axis


def test_a_changed_image_is_told_and_can_be_opened(volume: np.ndarray, path: Path) -> None:
    session = rich(volume)
    save_session(session, path)
    changed = volume + 1
    with pytest.raises(ChangedImageError, match="other pixels than when the session was saved"):
        open_session(path, changed, model=small_model())
    told: list[str] = []
    opened = open_session(path, changed, model=small_model(), changed_image=True, warn=told.append)
    assert len(told) == 1 and "out of date" in told[0]
    np.testing.assert_array_equal(opened.labels, session.labels)
    assert opened.snapshot().sequences[opened.view.key, 1].current == frozenset()
    for wrong in (volume[1:], volume[0], [volume, volume], np.stack([volume] * 3, -1)):
        with pytest.raises(SessionFileError, match=r"belongs to an image of 6 x 40 x 56, but"):
            open_session(path, wrong, model=small_model())


def test_another_image_is_told_by_its_own_name(volume: np.ndarray, path: Path) -> None:
    layers = pytest.importorskip("napari.layers")
    save_session(Session(layers.Image(volume, name="scan"), small_model()), path)
    with pytest.raises(ChangedImageError, match='The image "scan" has other pixels than when'):
        open_session(path, layers.Image(volume + 1, name="scan"), model=small_model())
    noisy, told = layers.Image(volume + 1, name="noisy"), []
    sentence = 'The image "noisy" has other pixels than the image "scan" that the session was made'
    with pytest.raises(ChangedImageError, match=sentence):
        open_session(path, noisy, model=small_model())
    open_session(path, noisy, model=small_model(), changed_image=True, warn=told.append)
    assert len(told) == 1 and told[0].startswith(sentence)


def test_a_layer_is_known_by_name_and_file(volume: np.ndarray, path: Path, tmp_path: Path) -> None:
    layers = pytest.importorskip("napari.layers")
    layer = layers.Image(volume, name="ct", scale=(3, 1, 1))
    session = Session(layer, small_model())
    session.add_points(session.add_object(), [(2, 16, 16)])
    session.preview(2)
    save_session(session, path)
    saved = read_session(path).image
    assert (saved.names, saved.paths, saved.spacing) == (("ct",), ("",), (3, 1, 1))
    layer.name = "renamed"
    assert_same(open_session(path, layer, model=small_model(), warn=pytest.fail), session)
    told: list[str] = []
    other = layers.Image(volume, scale=(3, 2, 1))
    opened = open_session(path, other, model=small_model(), warn=told.append)
    assert len(told) == 1 and 'image "ct" has another spacing' in told[0]
    assert opened.stale(1) == [2]
    layer = layers.Image(np.stack([volume.clip(0, 255).astype(np.uint8)] * 3, -1), rgb=True)
    save_session(Session(layer, small_model()), path)
    grey = layers.Image(layer.data, rgb=False)
    with pytest.raises(SessionFileError, match="in colours, unlike this one"):
        open_session(path, grey, model=small_model())


def test_the_image_is_read_from_the_file_that_it_came_from(path: Path, tmp_path: Path) -> None:
    array = two_blobs(SHAPE).astype(np.int16)
    np.save(tmp_path / "image.npy", array)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    session = Session(mapped, small_model(), window=WINDOW)
    save_session(session, path)
    assert read_session(path).image.paths == (str(tmp_path / "image.npy"),)
    with pytest.raises(SessionFileError, match=r"image.npy is not an image that can be read"):
        open_session(path, model=small_model())
    nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), tmp_path / "image.nii")
    rewrite(path, lambda content: content["image"].update(paths=[str(tmp_path / "image.nii")]))
    assert_same(open_session(path, model=small_model(), warn=pytest.fail), session)
    rewrite(path, lambda content: content["image"].update(paths=[""]))
    with pytest.raises(SessionFileError, match="does not say which file"):
        open_session(path, model=small_model())


def test_path_and_session_in_the_wrong_order_are_told():
    session = Session(np.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="session first, and then the path, not a str"):
        save_session("a.sam2session", session)
    with pytest.raises(SessionFileError, match=r"path of the session first.* not a ndarray"):
        open_session(np.zeros((2, 8, 8)), "a.sam2session")


def test_a_missing_model_is_told_and_another_one_opens(
    volume: np.ndarray, path: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "mine.safetensors"
    save_model(small_model(), checkpoint)
    session = Session(volume, str(checkpoint), device="cpu", window=WINDOW)
    one = session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.propagate()
    save_session(session, path)
    opened = open_session(path, volume, warn=pytest.fail)
    assert opened.stale(one) == [] and not opened.model.is_loaded
    np.testing.assert_array_equal(replay(path, volume, device="cpu"), session.labels)
    save_model(small_model(obj_bias=1.0), checkpoint)
    told: list[str] = []
    assert open_session(path, volume, warn=told.append).stale(one) == list(range(6))
    assert len(told) == 1 and "other weights of this name" in told[0]
    checkpoint.unlink()
    with pytest.raises(MissingModelError, match=r"mine.safetensors.*not on this machine"):
        open_session(path, volume)
    np.testing.assert_array_equal(read_session(path).labels(), session.labels)
    opened = open_session(path, volume, model="nano", warn=told.append)
    assert '"nano"' in told[1]
    np.testing.assert_array_equal(opened.labels, session.labels)
    assert opened.stale(one) == list(range(6))


# -- files ---------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(volume: np.ndarray, path: Path) -> None:
    resource = pytest.importorskip("resource")
    session = rich(volume)
    save_session(session, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(WriteError, match=r"could not be saved to .*work.sam2session: "):
            save_session(session, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_where_nothing_can_be_written(volume: np.ndarray, path: Path, tmp_path: Path) -> None:
    session = Session(volume, small_model(), window=WINDOW)
    with pytest.raises(WriteError, match="it is a folder"):
        save_session(session, tmp_path)
    with pytest.raises(WriteError, match="there is no folder"):
        save_session(session, tmp_path / "nowhere" / path.name)
    path.write_bytes(b"")
    with pytest.raises(WriteError, match="is not a folder"):
        save_session(session, path / path.name)
    link = tmp_path / "link.sam2session"
    link.symlink_to(path)
    save_session(session, link)
    assert link.is_symlink() and read_session(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_write_protection_counts(volume: np.ndarray, path: Path) -> None:
    session = Session(volume, small_model(), window=WINDOW)
    save_session(session, path)
    path.chmod(0o444)
    with pytest.raises(WriteError, match="write-protected"):
        save_session(session, path)
    path.parent.chmod(0o555)
    try:
        with pytest.raises(WriteError, match="Permission denied"):
            save_session(session, path.with_name("other"))
    finally:
        path.parent.chmod(0o755)


def rewrite(path: Path, change: Any) -> None:
    """Change session.json within a file."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    content = json.loads(members["session.json"])
    change(content)
    members["session.json"] = json.dumps(content).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, one in members.items():
            file.writestr(name, one)


def test_a_newer_or_foreign_file_is_refused(volume: np.ndarray, path: Path) -> None:
    save_session(Session(volume, small_model(), window=WINDOW), path)
    rewrite(path, lambda content: content.update(version=2, program="napari-sam2 9.9"))
    with pytest.raises(SessionFileError, match=r"newer version .*napari-sam2 9.9.*Update"):
        read_session(path)
    rewrite(path, lambda content: content.update(format="something else"))
    with pytest.raises(SessionFileError, match="is not a session of napari-sam2"):
        read_session(path)
    with pytest.raises(SessionFileError, match="There is no file"):
        read_session(path.with_name("other"))
    with pytest.raises(SessionFileError, match="cannot be read: Is a directory"):
        read_session(path.parent)
    foreign = [b"", b"\0" * 100, b"PK\x03\x04", b'{"format": "napari-sam2 session"}']
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    for content in [*foreign, archive.getvalue()]:
        path.write_bytes(content)
        with pytest.raises(SessionFileError, match="damaged, or not a session"):
            read_session(path)


def test_a_damaged_file_gives_one_error_or_what_was_saved(volume: np.ndarray, path: Path) -> None:
    save_session(rich(volume), path)
    whole = path.read_bytes()
    expected = plain(read_session(path).state)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        content = bytearray(whole)
        at = int(rng.integers(len(whole)))
        if trial % 3 == 0:
            content = content[:at]
        elif trial % 3 == 1:
            content[at] ^= 1 << int(rng.integers(8))
        else:
            content[at : at + 64] = rng.bytes(64)
        path.write_bytes(content)
        try:
            state = read_session(path).state
        except SessionFileError as error:
            refused += 1
            assert "damaged" in str(error)
        else:
            assert plain(state) == expected
    assert refused > 250


def nodes(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in a JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in items:
        found.append((*place, key))
        if isinstance(one, dict | list):
            found += nodes(one, (*place, key))
    return found


def test_values_that_make_no_sense_are_refused_or_harmless(volume: np.ndarray, path: Path) -> None:
    """Whatever stands in session.json, it is refused, or the session can be used."""
    session = rich(volume)
    save_session(session, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        places = nodes(json.loads(file.read("session.json")))
    values = (None, -1, 10**6, "text", [], {}, float("nan"), True)
    tries = list(itertools.product(places, values))
    np.random.default_rng(0).shuffle(tries)
    refused = 0
    for place, value in tries[:400]:

        def change(content: Any, place: Any = place, value: Any = value) -> None:
            for key in place[:-1]:
                content = content[key]
            content[place[-1]] = value

        path.write_bytes(whole)
        rewrite(path, change)
        try:
            saved = read_session(path)
        except SessionFileError:
            refused += 1
            continue
        if saved.image.shape == SHAPE:
            saved.labels()
            fresh = Session(volume, small_model())
            fresh.restore(saved.state)
            save_session(fresh, path)
            read_session(path)
    assert refused > 300


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    found = tmp_path / "scan.nii.gz"
    affine = np.diag([-0.5, 0.5, 2, 1])
    nibabel.save(nibabel.Nifti1Image(two_blobs(SHAPE).astype(np.int16).T, affine), found)
    return found


def test_the_command_replays_a_session(
    scan: Path, path: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    volume = read_volume(scan)
    session = Session(volume.array, checkpoint, device="cpu", window=WINDOW, spacing=volume.spacing)
    one, two = session.add_object(), session.add_object()
    session.add_points(one, [(2, 16, 16)])
    session.show(SequenceKey.along(1, 3))
    session.add_points(two, [(2, 26, 36)])
    session.preview(26)
    session.propagate(start=24, stop=28)
    session.show(SequenceKey.along(0, 3))
    session.propagate()
    save_session(session, path)
    arguments = ["replay", str(path), str(scan), "-o", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    np.testing.assert_array_equal(read_volume(out).array, session.labels)
    np.testing.assert_allclose(read_volume(out).affine, volume.affine)
    text = capsys.readouterr()
    assert "object 1: " in text.out and "object 2: " in text.out and "100%" in text.err
    assert main(arguments) == 4  # OUT exists
    assert main([*arguments, "--overwrite", "--all-slices", "-q"]) == 0
    session.propagate()
    session.show(SequenceKey.along(1, 3))
    session.propagate()
    np.testing.assert_array_equal(read_volume(out).array, session.labels)


def test_the_command_writes_approved_masks_alone(
    scan: Path, path: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    volume = read_volume(scan)
    session = Session(volume.array, small_model(), window=WINDOW, spacing=volume.spacing)
    one, two = session.add_object("one"), session.add_object("two")
    session.add_points(one, [(2, 16, 16)])
    session.add_points(two, [(2, 26, 36)])
    session.propagate()
    session.keep(one, [3])
    session.keep(two, [4], "locked")
    save_session(session, path)  # its model is in no file: none is asked
    arguments = ["replay", str(path), str(scan), "-o", str(out), "--only-approved"]
    assert main(arguments) == 0
    assert "object 1: " in capsys.readouterr().out
    found = read_volume(out).array
    np.testing.assert_array_equal(found, session.approved_labels())
    np.testing.assert_array_equal(np.flatnonzero(found.any(axis=(1, 2))), [3])
    assert main([*arguments, "--overwrite", "--all-slices"]) == 2


def test_the_command_says_what_is_wrong(
    scan: Path, path: Path, tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.nii.gz"
    session = Session(read_volume(scan).array, small_model(), window=WINDOW)
    session.add_points(session.add_object(), [(2, 16, 16)])
    session.preview(2)
    save_session(session, path)

    def run(*more: str) -> int:
        return main(["replay", str(path), str(scan), "-o", str(out), *more])

    def said() -> str:
        text = capsys.readouterr().err
        assert text.startswith("napari-sam2: ") and text.count("\n") == 1
        assert not out.exists()
        return text

    assert run() == 5 and "--model" in said()
    assert run("--model", "no such") == 5 and "no such" in said()
    assert run("--model", checkpoint, "--device", "quantum") == 5 and "quantum" in said()
    nibabel.save(nibabel.Nifti1Image(two_blobs(SHAPE).astype(np.int16).T + 1, np.eye(4)), scan)
    assert run("--model", checkpoint) == 3 and "--changed-image" in said()
    assert run("--model", checkpoint, "--changed-image", "-q") == 0
    out.unlink()
    nibabel.save(nibabel.Nifti1Image(two_blobs(SHAPE).astype(np.int16).T[1:], np.eye(4)), scan)
    assert run("--model", checkpoint) == 3 and "6 x 40 x 56" in said()
    path.write_bytes(b"")
    assert run() == 3 and "damaged" in said()
    path.unlink()
    assert run() == 3 and "no file" in said()


def test_the_command_replays_a_session_of_all_time_points(tmp_path, checkpoint):
    movie = np.stack([two_blobs(SHAPE).astype(np.uint16) + t for t in range(2)])  # t, z, y, x
    tifffile.imwrite(tmp_path / "movie.ome.tif", movie, ome=True, metadata={"axes": "TZYX"})
    session = Session(movie, checkpoint, window=(0, 250))
    cell = session.add_object("cell")
    for t in range(2):
        session.show(SequenceKey(1, (t, None, None, None)))
        session.set_prompts(cell, 2, box=(4, 4, 20, 24))
        session.propagate()
    save_session(session, tmp_path / "movie.sam2session")
    out = tmp_path / "labels.ome.tif"
    image = str(tmp_path / "movie.ome.tif")
    assert main(["replay", str(tmp_path / "movie.sam2session"), image, "-o", str(out), "-q"]) == 0
    labels = tifffile.imread(out)
    assert labels.shape == movie.shape
    np.testing.assert_array_equal(labels, session.labels)
