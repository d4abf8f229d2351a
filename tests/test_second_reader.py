"""Two people's masks of one image: how far they agree, and what becomes of the differences."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import tifffile
from images import AFFINES, mirrored
from napari.layers import Image

from napari_sam2.io import ReadError
from napari_sam2.io.readers import read_layers
from napari_sam2.second_reader import ONLY_MINE, ONLY_THEIRS, OTHER_OBJECT, SecondReading
from napari_sam2.sequence_view import SequenceKey
from napari_sam2.session import LockedError, Session
from napari_sam2.session_file import SessionFileError, save_session

SHAPE = (6, 30, 40)


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros(SHAPE[1:], bool)
    mask[top : top + side, left : left + side] = True
    return mask


def painted(masks: dict[int, dict[int, np.ndarray]], names: dict[int, str] | None = None):
    """A session with these masks, object -> slice -> mask."""
    session = Session(np.zeros(SHAPE, np.uint8))
    for object_id, own in masks.items():
        session.add_object((names or {}).get(object_id, ""), object_id)
        for frame, mask in own.items():
            session.paint(object_id, frame, mask)
    return session


@pytest.fixture
def mine():
    return painted({1: {t: square(5, 5) for t in range(4)}, 2: {1: square(15, 25)}})


@pytest.fixture
def reading(mine):
    """Theirs: the first object under another id, half shifted on slice 2 and there on slice 4 too;
    not the second one, but a third."""
    labels = np.zeros(SHAPE, np.int32)
    for t in range(5):
        labels[t][square(5, 10 if t == 2 else 5)] = 7
    labels[3][square(18, 20)] = 9
    return SecondReading(mine, labels, {7: "Object 7", 9: "cyst"}, "B")


def test_objects_belong_together_that_lie_on_each_other(reading):
    assert reading.pairs == {1: 7}
    assert reading.only_mine == [2] and reading.only_theirs == [9]


def test_objects_of_one_name_belong_together_wherever_they_lie(mine):
    mine.edit_object(2, name="tumour")
    labels = np.zeros(SHAPE, np.int32)
    labels[1][square(5, 5)] = 1
    reading = SecondReading(mine, labels, {1: "tumour"})
    assert reading.pairs == {2: 1}


def test_dice_and_differences_of_each_slice(reading):
    agreement = reading.agreement(1)
    assert agreement.mine.tolist() == [100, 100, 100, 100, 0, 0]
    assert agreement.theirs.tolist() == [100, 100, 100, 100, 100, 0]
    assert agreement.differing.tolist() == [0, 0, 100, 0, 100, 0]
    np.testing.assert_allclose(agreement.dice, [1, 1, 0.5, 1, 0, np.nan])
    assert agreement.total_dice == pytest.approx(2 * 350 / 900)
    # Their object is unknown, so all of mine differs.
    assert reading.agreement(2).differing.tolist() == [0, 100, 0, 0, 0, 0]
    assert reading.agreement(2).total_dice == 0


def test_the_agreement_follows_the_session(reading, mine):
    assert reading.agreement(1).differing[2] == 100
    mine.paint(1, 2, square(5, 10))
    assert reading.agreement(1).differing[2] == 0
    mine.undo()
    assert reading.agreement(1).differing[2] == 100


def test_slices_of_another_axis_are_compared_too(reading, mine):
    mine.show(SequenceKey.along(1, 3))
    mine.paint(1, 6, np.ones((SHAPE[0], SHAPE[2])))
    agreement = reading.agreement(1)
    assert len(agreement.mine) == SHAPE[1]
    # The row lies in their object on 5 slices, 10 pixels each.
    assert agreement.both[6] == 50 and agreement.mine[6] == SHAPE[0] * SHAPE[2]
    assert agreement.theirs[5] == 50 and agreement.mine[5] == 0


def test_the_picture_of_the_differences(reading):
    found = reading.differences()
    assert not found[0].any()
    assert (found[2] == ONLY_MINE).sum() == 50 and (found[2] == ONLY_THEIRS).sum() == 50
    assert (found[1] == ONLY_MINE).sum() == 100
    reading.pairs = {1: 9}
    assert (reading.differences(0) == OTHER_OBJECT).sum() == 100


def test_next_difference_goes_by_size_until_all_is_settled(reading, mine):
    first = reading.next_difference()
    second = reading.next_difference({first})
    assert {first, second} == {(1, 2), (1, 4)}
    assert reading.next_difference({first, second}) is None
    reading.accept_mine(first[0], [first[1]])
    assert reading.next_difference() == second
    assert mine.kept(1) == {first[1]: "approved"}
    reading.accept_theirs(1)
    assert reading.next_difference() is None


def test_theirs_take_the_place_of_mine_in_one_step_of_undo(reading, mine):
    before = mine.labels.copy()
    assert reading.accept_theirs(1) == [2, 4]
    assert reading.agreement(1).total_dice == 1
    assert mine.kept(1) == {2: "approved", 4: "approved"}
    assert mine.history.undo_label == "Accept theirs"
    mine.undo()
    np.testing.assert_array_equal(mine.labels, before)
    assert not mine.kept(1)


def test_where_i_said_that_it_has_ended_theirs_goes_on(reading, mine):
    before = mine.labels.copy()
    mine.set_life(1, last=2)
    theirs = reading.accept_theirs(1)
    assert 4 in theirs and mine.life(1) == (0, max(theirs))
    assert reading.agreement(1).total_dice == 1
    assert [mine.undo(), mine.undo()] == ["Accept theirs", "First and last slice"]
    np.testing.assert_array_equal(mine.labels, before)


def test_where_they_have_nothing_mine_goes(reading, mine):
    assert reading.accept_theirs(2) == [1]
    assert not (mine.labels == 2).any()


def test_what_i_have_approved_changes_only_where_i_say_so(reading, mine):
    mine.keep(1, [2])
    assert reading.accept_theirs(1) == [4]
    assert reading.agreement(1).differing[2] == 100
    assert reading.accept_theirs(1, [2]) == [2]
    assert reading.agreement(1).differing[2] == 0


def test_what_is_locked_does_not_change(reading, mine):
    mine.keep(1, [2], "locked")
    before = mine.labels.copy()
    with pytest.raises(LockedError, match="Object 1 is locked on slice 2"):
        reading.accept_theirs(1, [2, 4])
    mine.edit_object(1, locked=True)
    with pytest.raises(LockedError, match=r"Object 1 is locked\."):
        reading.accept_theirs(1)
    np.testing.assert_array_equal(mine.labels, before)


def test_their_object_becomes_mine(reading, mine):
    added = reading.add(9)
    assert mine.objects[added].name == "cyst" and reading.only_theirs == []
    assert reading.agreement(added).total_dice == 1
    mine.undo()
    assert reading.only_theirs == [9]
    with pytest.raises(ValueError, match="no object 5"):
        reading.add(5)


def test_their_session_file_is_read_without_image_or_model_and_not_changed(mine, tmp_path):
    theirs = painted({3: {0: square(5, 5)}}, {3: "liver"})
    path = tmp_path / "theirs.sam2session"
    save_session(theirs, path)
    content = path.read_bytes()
    reading = SecondReading.open(mine, path)
    assert reading.names == {3: "liver"} and reading.pairs == {1: 3}
    assert reading.reader == "theirs.sam2session"
    reading.accept_theirs(1)
    assert path.read_bytes() == content


def test_any_labels_file_is_read(mine, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0][square(5, 5)] = 4
    path = tmp_path / "theirs.tif"
    tifffile.imwrite(path, labels)
    assert SecondReading.open(mine, path).agreement(1).both.tolist() == [100, 0, 0, 0, 0, 0]


def scan_and_labels(folder, affine, labels_affine):
    """A scan as napari opens it, and a file of labels of it."""
    x, y, z = np.indices((20, 24, 28))
    labels = ((x - 6) ** 2 + (y - 9) ** 2 + (z - 12) ** 2 < 30).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels * np.int16(100), affine), folder / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, labels_affine), folder / "theirs.nii.gz")
    ((data, options, _),) = read_layers(folder / "scan.nii.gz")
    return Image(data, **options), folder / "theirs.nii.gz"


@pytest.mark.parametrize("affine", ["flipped", "sagittal", "oblique"])
def test_labels_files_are_put_on_the_scan_that_napari_shows(tmp_path, affine):
    scan, path = scan_and_labels(tmp_path, AFFINES[affine], AFFINES[affine])
    for theirs in (path, mirrored(path, tmp_path / "mirrored.nii.gz")):
        reading = SecondReading.open(Session(scan), theirs)
        np.testing.assert_array_equal(reading.labels, np.asarray(scan.data) // 100)


def test_labels_that_lie_elsewhere_are_refused(tmp_path):
    place = AFFINES["flipped"]
    away = place.copy()
    away[0, 3] += 15
    scan, path = scan_and_labels(tmp_path, place, away)
    with pytest.raises(ReadError, match="lies elsewhere in space"):
        SecondReading.open(Session(scan), path)
    part = Image(np.asarray(scan.data)[:10], metadata=scan.metadata)
    with pytest.raises(ValueError, match="28 x 24 x 20, but your image is 10 x 24 x 20"):
        SecondReading.open(Session(part), path)


def test_masks_of_another_image_are_refused_in_words(mine, tmp_path):
    with pytest.raises(ValueError, match="5 x 30 x 40, but your image is 6 x 30 x 40"):
        SecondReading(mine, np.zeros((5, 30, 40), int))
    with pytest.raises(ValueError, match="whole numbers"):
        SecondReading(mine, np.zeros(SHAPE))
    (tmp_path / "broken.sam2session").write_bytes(b"nothing")
    with pytest.raises(SessionFileError):
        SecondReading.open(mine, tmp_path / "broken.sam2session")


def test_to_look_for_differences_writes_nothing(reading, mine):
    """What is left to be written in portions stays so, whatever thread looks at differences."""
    mine.remove_object(2)
    written = []
    mine.masks_changed.connect(written.append)
    with mine.writing_first(0):
        mine.undo()
    assert not (reading.differences(1)[15:25, 25:35] == ONLY_MINE).any() and not written
    mine.write_rest()
    assert (reading.differences(1)[15:25, 25:35] == ONLY_MINE).all() and written
