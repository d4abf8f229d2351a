"""The simulated reader of three phases, and the scores of tracked sequences."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import phases, tracking
from benchmarks.tracking import paired_iou
from napari_sam2 import Session


@pytest.fixture(scope="module")
def ball():
    """A bright ball on noise, and where it is."""
    z, y, x = np.indices((11, 64, 64))
    truth = (z - 5) ** 2 * 9 + (y - 30) ** 2 + (x - 34) ** 2 < 15**2
    noise = np.random.default_rng(0).normal(0, 8, truth.shape)
    return (noise + 120 * truth).astype(np.float32), truth


def reader_of(ball) -> phases.Reader:
    session = Session(ball[0], "nano")
    return phases.Reader(session, session.add_object(), ball[1])


def test_by_hand_every_slice_is_marked_and_right(ball):
    reader = reader_of(ball)
    phases.by_hand(reader)
    slices = np.flatnonzero(ball[1].any(axis=(1, 2))).tolist()
    assert reader.looks == len(slices) and reader.marks >= len(slices)
    assert all(reader.is_right(frame) for frame in slices)
    assert sorted(reader.session.kept(1)) == slices


def test_a_slice_that_clicks_do_not_mend_is_painted(ball):
    reader = reader_of(ball)
    reader.truth = ball[1].copy()
    reader.truth[5] = np.indices((64, 64)).sum(axis=0) % 7 == 0  # stripes that nobody could click
    reader.box(5)
    assert not reader.look(5)
    assert reader.painted == 1 and reader.marks == 1 + phases.CLICKS
    np.testing.assert_array_equal(reader.mask(5), reader.truth[5])


def test_later_phases_ask_for_less(ball):
    rows = {row["phase"]: row for row in phases.run(ball[0], ball[1], "nano")}
    by_hand, propagated, alone = (rows[name] for name in phases.PHASES)
    assert alone["marks"] <= propagated["marks"] < by_hand["marks"]
    assert alone["looks"] <= propagated["looks"]
    assert propagated["dice"] > 0.85


def test_the_table_has_the_means_of_each_data_set():
    row = {"phase": "2 propagated", "looks": 1.0, "marks": 0.5, "painted": 0.0, "seconds": 1.0}
    rows = [
        {"dataset": "a", "dice": 0.8, "slices": 10, **row},
        {"dataset": "a", "dice": 0.6, "slices": 20, **row},
    ]
    (mean,) = phases.summarise(rows)
    assert mean["dice"] == pytest.approx(0.7) and mean["objects"] == 2 and mean["slices"] == 15
    assert "| a " in phases.as_table([mean])


def test_objects_are_paired_over_all_frames():
    truth = np.zeros((2, 8, 8), np.int32)
    truth[:, :4, :4] = 1
    truth[0, 6:, 6:] = 2
    found = np.zeros_like(truth)
    found[0, :4, :4] = 9
    found[1, :4, :4] = 4  # the track is broken: only one of them counts
    assert paired_iou(found, truth) == pytest.approx(0.25)
    assert paired_iou(np.zeros_like(truth), truth) == 0


def test_a_movie_goes_through_the_measures_environment(tmp_path, monkeypatch):
    """The scoring program is another one here, for its packages are not in this environment."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        'test -f "$5/res_track.txt" && test -f "$4/mask019.tif" || exit 1\n'
        'echo \'{"SEG": 0.5, "DET": 0.6, "TRA": 0.7}\'\n'
    )
    script.chmod(0o755)
    case = next(tracking.movies(1))
    found = tracking.Found(case.truth, case.parents, 1.0)
    scores = tracking.score(case, found, str(script))
    assert scores == {"SEG": 0.5, "DET": 0.6, "TRA": 0.7, "IoU": 1.0}
    script.write_text("#!/bin/sh\necho 'No module named traccuracy' >&2\nexit 1\n")
    with pytest.raises(SystemExit, match=r"No module named traccuracy[\s\S]*pip install"):
        tracking.score(case, found, str(script))
