"""Tracks of the Cell Tracking Challenge's format, scored and linked by the field's own packages.

    PYTHON -m benchmarks.tracking_scores score TRUTH RESULT   # prints the measures as JSON
    PYTHON -m benchmarks.tracking_scores link LABELS.npy OUT.npz

It runs in an environment of its own, which `benchmarks.tracking` says how to make.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

_OVERLAP = 0.9  # laptrack's cost of a link: 1 - the share of the later mask that is shared


def score(truth: Path, result: Path) -> dict[str, float]:
    """Of two folders of masks and a *_track.txt: SEG, DET, TRA, and division F1 where the truth
    has divisions.

    DET, TRA (Matula et al. 2015) and divisions by traccuracy, SEG (Maska et al. 2014) by
    py-ctcmetrics, which traccuracy does not have.
    """
    from ctc_metrics.metrics import seg
    from ctc_metrics.utils.representations import match
    from traccuracy import run_metrics
    from traccuracy.loaders import load_ctc_data
    from traccuracy.matchers import CTCMatcher, IOUMatcher
    from traccuracy.metrics import CTCMetrics, DivisionMetrics

    pairs = zip(sorted(truth.glob("mask*.tif")), sorted(result.glob("mask*.tif")), strict=True)
    matches = [match(str(true), str(found)) for true, found in pairs]
    scores = {"SEG": seg([m[0] for m in matches], [m[4] for m in matches])}
    if not (result / "res_track.txt").read_text(encoding="utf-8").strip():
        return scores | {"DET": 0.0, "TRA": 0.0}  # nothing was found; traccuracy takes no such file
    pair = [load_ctc_data(str(folder), name=folder.name) for folder in (truth, result)]
    ((ctc, *_), _) = run_metrics(*pair, CTCMatcher(), [CTCMetrics()])
    scores |= {name: float(ctc["results"][name]) for name in ("DET", "TRA")}
    one_to_one = IOUMatcher(iou_threshold=0.3, one_to_one=True)
    ((divisions, *_), _) = run_metrics(*pair, one_to_one, [DivisionMetrics(max_frame_buffer=1)])
    buffered = divisions["results"]["Frame Buffer 1"]
    if buffered["Total GT Divisions"]:
        scores["divisions"] = float(np.nan_to_num(buffered["Division F1"]))
    return scores


def link(labels: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """Tracks by the overlap of labels (T, H, W) of neighbouring frames, with gaps of one frame
    and divisions, by laptrack. Returns labels with one id per track, and daughter -> parent.
    """
    from laptrack import OverLapTrack

    tracks = np.zeros(labels.shape, np.int32)
    if not labels.any():
        return tracks, {}
    tracker = OverLapTrack(
        cutoff=_OVERLAP,
        gap_closing_cutoff=_OVERLAP,
        gap_closing_max_frame_count=1,
        splitting_cutoff=_OVERLAP,
    )
    found, splits, _ = tracker.predict_overlap_dataframe(labels)
    for (frame, label), track in found["track_id"].items():
        tracks[frame][labels[frame] == label] = track + 1
    if not len(splits):
        return tracks, {}
    pairs = splits[["child_track_id", "parent_track_id"]].to_numpy() + 1
    return tracks, {int(child): int(parent) for child, parent in pairs}


def main() -> None:
    """Run one of the two commands."""
    name, first, second = sys.argv[1:]
    if name == "score":
        print(json.dumps(score(Path(first), Path(second))))
    else:
        tracks, parents = link(np.load(first))
        family = np.array(sorted(parents.items()), np.int64).reshape(-1, 2)
        np.savez_compressed(second, labels=tracks, parents=family)


if __name__ == "__main__":
    main()
