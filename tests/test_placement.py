"""A template's marks come to lie on the same places of the patient in another image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from models import small_model

from napari_sam2.io import Volume, world_affine
from napari_sam2.io.volume import spacing_of
from napari_sam2.placement import Placement, PlacementError, place
from napari_sam2.saved_image import SessionImage
from napari_sam2.session import Session
from napari_sam2.session_file import read_session, save_session


def volume(shape, affine):
    array = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    return Volume(array, spacing_of(affine), "mm", affine, source="scan.nii.gz")


def template():
    """A volume of 10 x 40 x 50 at 3 x 1 x 1 mm, and a session with marks of every kind on it."""
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    affine[:3, 3] = (25, 20, -15)
    image = volume((10, 40, 50), affine)
    session = Session(image.array, small_model(), window=(0, 200), spacing=image.spacing)
    liver, cyst = session.add_object("liver"), session.add_object("cyst")
    session.edit_object(liver, colour=(1.0, 0.0, 0.0))
    session.set_prompts(
        liver, 4, points=[(10, 20), (30, 35)], labels=[1, 0], box=(5.0, 10.0, 25.0, 30.0)
    )
    session.set_prompts(
        liver,
        6,
        scribbles=[([(8, 12), (9, 20)], 1)],
        lassos=[[(5, 5), (5, 25), (20, 25), (20, 5)]],
    )
    mask = np.zeros((40, 50), bool)
    mask[12:18, 22:40] = True
    session.paint(cyst, 5, mask)
    return image, session


def moved(image, kind):
    """The same patient in another scan."""
    affine = image.affine.copy()
    if kind == "finer":  # half the slice distance, another origin
        affine[:3, 2] /= 2
        affine[:3, 3] += (-4, 3, -3)
        return volume((22, 44, 56), affine)
    if kind == "flipped":  # z and x grow the other way
        affine = affine @ np.array([[-1, 0, 0, 49], [0, 1, 0, 0], [0, 0, -1, 9], [0, 0, 0, 1.0]])
        return volume((10, 40, 50), affine)
    swap = np.eye(4)[[2, 0, 1, 3]]  # stored along another axis
    return volume((50, 10, 40), affine @ swap)


def in_world(image, session):
    """(object, kind) -> the positions of its marks in mm, whatever slice they lie on."""
    to_world, found = world_affine(image), {}

    def add(object_id, kind, frame, yx):
        zyx = np.insert(np.asarray(yx, float).reshape(-1, 2), session.view.key.axis, frame, axis=1)
        found.setdefault((object_id, kind), []).append(zyx @ to_world[:3, :3].T + to_world[:3, 3])

    for view in session.prompted_sequences:
        session.show(view.key)
        for object_id, frames in session.prompts.items():
            for frame, said in frames.items():
                add(object_id, "points", frame, said.points)
                if said.box is not None:
                    add(object_id, "box", frame, np.sort(np.array(said.box).reshape(2, 2), 0))
                for line in said.scribbles:
                    add(object_id, "scribble", frame, line.path)
                for polygon in said.lassos:
                    add(object_id, "lasso", frame, polygon)
                if said.mask is not None:
                    corner = np.array((said.mask.top, said.mask.left))
                    painted = np.argwhere(said.mask.logits > 0) + corner
                    add(object_id, "painted", frame, painted)
    return {key: np.concatenate(value) for key, value in found.items()}


@pytest.mark.parametrize("kind", ["finer", "flipped", "other axis"])
def test_marks_of_every_kind_come_to_the_same_place(kind):
    image, session = template()
    other = moved(image, kind)
    target = Session(other.array, small_model(), window=(0, 200), spacing=other.spacing)
    notes = place(session.snapshot(), target, Placement.between(image, other))
    assert notes == []
    assert [info.name for info in target.objects.values()] == ["liver", "cyst"]
    assert target.objects[1].colour == (1.0, 0.0, 0.0)
    there, here = in_world(other, target), in_world(image, session)
    assert there.keys() == here.keys()
    for key, positions in here.items():
        if key[1] == "box":  # its corners may be other ones of the same box
            np.testing.assert_allclose(there[key].min(0), positions.min(0), atol=0.76)
            np.testing.assert_allclose(there[key].max(0), positions.max(0), atol=0.76)
        elif key[1] == "painted":
            distance = np.linalg.norm(there[key][:, None] - positions[None], axis=2)
            assert distance.min(1).max() <= 1.0
            assert distance.min(0).max() <= 1.0
        else:  # no farther than to the nearest slice
            np.testing.assert_allclose(there[key], positions, atol=0.76)


def test_a_slice_without_the_object_comes_to_the_same_place():
    image, session = template()
    session.paint(1, 1, np.zeros((40, 50)))
    target = moved(image, "finer")
    other = Session(target.array, small_model(), window=(0, 200), spacing=target.spacing)
    assert place(session.snapshot(), other, Placement.between(image, target)) == []
    marked = sorted(other.prompts[1])
    assert len(marked) == 3
    assert other.prompts[1][marked[0]].mask.is_empty
    assert marked[0] - marked[1] == 2 * (1 - 4)


def test_marks_outside_are_told_and_none_at_all_is_an_error():
    image, session = template()
    affine = image.affine.copy()
    affine[2, 3] += 15.0  # only slices 5 and up are there
    short = volume((6, 40, 50), affine)
    target = Session(short.array, small_model(), window=(0, 200), spacing=short.spacing)
    notes = place(session.snapshot(), target, Placement.between(image, short))
    assert notes == ["liver has 1 marked slice outside this image."]
    affine[2, 3] += 500
    far = volume((6, 40, 50), affine)
    target = Session(far.array, small_model(), window=(0, 200))
    with pytest.raises(PlacementError, match="None of the template's marks lies on this image"):
        place(session.snapshot(), target, Placement.between(image, far))
    nowhere = replace(far, affine=None)
    with pytest.raises(PlacementError, match="does not say where it lies"):
        Placement.between(image, nowhere)


@pytest.mark.parametrize("as_layer", [True, False])
def test_a_sagittal_scan_is_known_as_it_was_shown_and_as_it_is_stored(tmp_path, as_layer):
    affine = np.array([[0, 0, 1.2, -60], [-0.5, 0, 0, 70], [0, -0.5, 0, 80], [0, 0, 0, 1.0]])
    image = volume((12, 20, 20), affine)
    from napari_sam2.io.place import to_layer_order

    array = to_layer_order(image.array, image) if as_layer else image.array
    session = Session(np.array(array), small_model(), window=(0, 200))
    mask = np.zeros(session.view.frame_shape, bool)
    mask[2:6, 3:9] = True
    session.paint(session.add_object("a"), 4, mask)
    save_session(session, tmp_path / "a.sam2session")
    saved = read_session(tmp_path / "a.sam2session")
    found = SessionImage(image, saved.image)
    assert found.is_layer_order is as_layer
    np.testing.assert_array_equal(found.array, array)
    labels = found.labels(session.labels)
    assert labels.shape == image.shape
    back = to_layer_order(labels, image) if as_layer else labels
    np.testing.assert_array_equal(back, session.labels)
    index = np.argwhere(session.labels == 1)[0]
    index_in_file = np.argwhere(labels == 1)
    there = world_affine(found.placed) @ [*index, 1]
    here = np.c_[index_in_file, np.ones(len(index_in_file))] @ world_affine(image).T
    assert np.abs(here - there).max(1).min() < 1e-9


def test_how_closely_a_person_looks_goes_along():
    image, session = template()
    session.closely = False
    box, painted = session.add_object("box"), session.add_object("painted")
    unsaid, whole = session.add_object("unsaid"), session.add_object("whole")
    for object_id in (box, unsaid, whole):
        session.add_box(object_id, 2, (10, 10, 12, 12))
    session.paint(painted, 2, np.pad(np.ones((2, 2)), ((20, 18), (20, 28))))
    for object_id, times in ((box, 2), (painted, 2), (whole, None)):
        session.look_closely(object_id, times)
    other = moved(image, "finer")
    target = Session(other.array, small_model(), window=(0, 200), spacing=other.spacing)
    place(session.snapshot(), target, Placement.between(image, other))
    looks = [target._records.look((target.view.key, i)) for i in (box, painted, unsaid, whole)]
    assert looks[2] is None and looks[3] == (None, True)
    assert looks[0].is_settled and looks[1].is_settled


@pytest.mark.parametrize(
    ("kind", "liver", "cyst"),
    [("finer", (8, 16), (0, 14)), ("flipped", (2, 6), (3, None)), ("rolled", (3, 7), (0, 6))],
)
def test_between_which_slices_an_object_is_goes_along(kind, liver, cyst):
    image, session = template()
    session.set_life(1, first=3, last=7)
    session.set_life(2, last=6)
    other = moved(image, kind)
    target = Session(other.array, small_model(), window=(0, 200), spacing=other.spacing)
    place(session.snapshot(), target, Placement.between(image, other))
    assert (target.life(1), target.life(2)) == (liver, cyst)


def test_what_is_placed_is_inside_the_ends_and_these_on_the_image():
    image, session = template()
    session.set_life(1, first=0, last=9)
    session.set_life(2, first=4, last=6)
    affine = image.affine.copy()
    affine[:3, 3] += (0, 0, 15)  # begins five slices later
    other = volume((20, 40, 50), affine)
    target = Session(other.array, small_model(), window=(0, 200), spacing=other.spacing)
    place(session.snapshot(), target, Placement.between(image, other))
    assert target.life(1) == (0, 4) and target.life(2) == (0, 1)


def test_who_has_no_kin_in_the_other_image_is_not_ended_by_it():
    image, session = template()
    later = session.add_object("later")
    session.paint(later, 8, session.masks_of(2)[5].on_frame((40, 50)))
    session.set_parent(later, 2)
    target = Session(image.array, small_model(), window=(0, 200), spacing=image.spacing)
    place(session.snapshot(), target, Placement.between(image, image))
    assert session.life(2) == (0, 5) and session.life(later) == (8, None)
    assert target.life(2) == target.life(later) == (0, None) and not target.parents
