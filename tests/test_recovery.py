"""Autosave: never in the way, and after a crash at most the last seconds are gone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lazy import Damaged

from napari_sam2 import recovery, session_format
from napari_sam2.recovery import Autosave, find_recovery, forget_recovery
from napari_sam2.session import Session
from napari_sam2.session_file import SUFFIX, read_session
from napari_sam2.session_format import read_fingerprint

SHAPE = (20, 64, 64)
SECONDS = 0.2
LOST = 2.0
"""Seconds of work that a crash may cost here: SECONDS, and what writing takes on a busy machine."""


def image() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def session() -> Session:
    return Session(image(), "nano", window=(0, 1))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "recovery"
    monkeypatch.setattr(recovery, "FOLDER", found)
    return found


def pattern(n: int) -> np.ndarray:
    return np.random.default_rng(n).random(SHAPE[1:]) < 0.5


def change(work: Session, n: int) -> None:
    """Something to save that tells how often this was called."""
    work.paint(1, n % SHAPE[0], pattern(n))
    work.reject_division(1, n % SHAPE[0])
    work.edit_object(1, name=str(n))


def saved(path: Path) -> int:
    """The last change that a file has; what belongs to it must be there."""
    state = read_session(path).state
    n = int(state.objects[1].name)
    (known,) = (known for (_, object_id), known in state.sequences.items() if object_id == 1)
    assert n % SHAPE[0] in state.no_divisions[1]
    mask = known.prompts[n % SHAPE[0]].mask
    assert mask is not None
    np.testing.assert_array_equal(mask.on_frame(SHAPE[1:]), pattern(n))
    return n


def until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


# -- crashes -------------------------------------------------------------------------------------


def work_until_killed(folder: Path, seconds: float, done: Any) -> None:
    recovery.FOLDER = folder
    work = session()
    for frames in (range(1), range(3), range(5, 9), range(5, 9)):  # the last two are daughters
        object_id = work.add_object()
        for frame in frames:
            work.paint(object_id, frame, pattern(object_id))
    work.set_division(2, [3, 4])
    autosave = Autosave(work, seconds=seconds)
    for n in range(10**9):
        change(work, n)
        done.send((n, time.monotonic()))
        assert not autosave.error, autosave.error
        time.sleep(0.002)


def test_a_killed_process_loses_the_last_seconds_only(folder: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["napari_sam2.recovery", "sam2_engine.weights"])
    cut_off = 0
    # When it is killed: after so many seconds, of which one is longer than what may be lost.
    for is_writing, after in ((False, LOST + 1), (False, 0.3), *((True, n / 5) for n in range(5))):
        here, there = processes.Pipe(duplex=False)
        seconds = 0 if is_writing else SECONDS
        process = processes.Process(target=work_until_killed, args=(folder, seconds, there))
        process.start()
        there.close()
        changes = dict([here.recv()])
        until(lambda: len(list(folder.glob(f"*{SUFFIX}"))) == 1)
        assert find_recovery(image()) is None  # someone works on it
        end = time.monotonic() + after
        while time.monotonic() < end or (is_writing and not list(folder.glob("*.part"))):
            assert time.monotonic() < end + 30
            while here.poll(0.0005):
                changes.update([here.recv()])
        process.kill()
        killed = time.monotonic()
        process.join()
        cut_off += len(list(folder.glob("*.part")))
        path = find_recovery(image())
        assert path is not None
        last = saved(path)
        state = read_session(path).state
        assert state.parents == {3: 2, 4: 2}
        assert {i: known.life for (_, i), known in state.sequences.items() if i > 1} == {
            2: (0, 2), 3: (5, None), 4: (5, None),
        }  # fmt: skip
        lost = [when for n, when in changes.items() if n > last]
        assert killed - min(lost, default=killed) < LOST
        forget_recovery(path)
        assert list(folder.iterdir()) == []
    assert cut_off > 0  # otherwise this tests less than it says


# -- beside the work -----------------------------------------------------------------------------


def test_changes_are_saved_together_and_the_last_one_too(folder: Path) -> None:
    work = session()
    work.add_object()
    writes = []
    autosave = Autosave(work, seconds=0.5)
    write = autosave._writer.write
    autosave._writer.write = lambda path: (writes.append(path), write(path))  # type: ignore
    assert autosave.path is None
    for n in range(50):
        change(work, n)
    until(lambda: len(writes) > 0)
    path = writes[0]
    until(lambda: path.exists() and saved(path) == 49)
    time.sleep(0.7)  # nothing changes
    assert len(writes) <= 3
    change(work, 50)
    autosave.close()  # at once
    assert saved(path) == 50
    assert not autosave._thread.is_alive()
    change(work, 51)
    time.sleep(0.6)
    assert saved(path) == 50
    assert autosave.path == path == find_recovery(image())


def test_nobody_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_writing, may_end = threading.Event(), threading.Event()

    def slow(file: int, real: Callable[[int], None] = os.fsync) -> None:
        is_writing.set()
        assert may_end.wait(120)
        real(file)

    monkeypatch.setattr(session_format.os, "fsync", slow)
    path = tmp_path / f"work{SUFFIX}"
    work = session()
    with Autosave(work, path, seconds=0.01):
        work.add_object()
        assert is_writing.wait(120)
        for n in range(20):
            change(work, n)
        work.undo()
        assert not path.exists()
        may_end.set()
        until(lambda: path.exists() and read_session(path).state.objects[1].name == "18")


def test_every_file_is_whole_while_the_session_changes_quickly(tmp_path: Path) -> None:
    path = tmp_path / f"work{SUFFIX}"
    work = session()
    work.add_object()
    problems: list[str] = []
    seen = set()
    change(work, 0)
    with Autosave(work, path, seconds=0, failed=problems.append):
        for n in range(1, 120):
            change(work, n)
            if n % 7 == 0:
                other = work.add_object()
                work.paint(other, n % SHAPE[0], pattern(n))
                work.undo()
                work.redo()
                work.remove_object(other)
                work.undo()
                work.remove_object(other)
            if path.exists():
                seen.add(int(read_session(path).state.objects[1].name))
    assert problems == []
    assert len(seen) > 5
    assert saved(path) == 119


def test_a_failure_is_told_once_and_tried_again(tmp_path: Path) -> None:
    work = session()
    work.add_object()
    told: list[str] = []
    path = tmp_path / "later" / f"work{SUFFIX}"
    with Autosave(work, path, seconds=0.02, failed=told.append) as autosave:
        change(work, 0)
        until(lambda: bool(autosave.error))
        time.sleep(0.2)
        assert told == [autosave.error]
        assert "there is no folder" in told[0]
        path.parent.mkdir()
        until(lambda: not autosave.error)
        assert saved(path) == 0


# -- recovery ------------------------------------------------------------------------------------


def test_what_is_found_again(folder: Path) -> None:
    assert find_recovery(image()) is None
    work = session()
    work.add_object()
    first = Autosave(work, seconds=0)
    change(work, 1)
    until(lambda: first.path is not None and first.path.exists())
    assert find_recovery(image()) is None  # it is open
    second = Autosave(work, seconds=0)  # the same image in two viewers
    change(work, 2)
    second.close()
    assert second.path is not None
    assert find_recovery(image()) == second.path
    assert find_recovery(image() + 1) is None
    change(work, 3)
    first.close(forget=True)
    assert list(folder.iterdir()) == [second.path]
    forget_recovery(second.path)
    forget_recovery(second.path)
    assert find_recovery(image()) is None


def test_work_is_found_again_when_a_slice_can_be_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = image()
    damaged, opened = Damaged(whole, whole[0].size), []
    damaged.bad = (3,)  # one of those that are looked at
    paths = []
    for one in (damaged, whole + 1, whole[:12] + 2):
        work = Session(one, "nano", window=(0, 1))
        work.add_object()
        with Autosave(work, seconds=0) as autosave:
            work.paint(1, 0, pattern(0))
        assert autosave.path is not None
        paths.append(autosave.path)
    monkeypatch.setattr(recovery, "_in_use", set())
    monkeypatch.setattr(
        recovery, "read_fingerprint", lambda path: opened.append(path) or read_fingerprint(path)
    )
    assert find_recovery(whole) == find_recovery(damaged) == paths[0]
    damaged.bad = (3, 5)
    assert find_recovery(damaged) == paths[0]
    assert find_recovery(whole[:12] + 2) == paths[2]
    assert find_recovery(whole + 3) is None
    assert set(opened) == {paths[0]}, "names tell of the others"
    old = folder / f"{paths[0].name[:32]}-{os.getpid()}-a{SUFFIX}"  # of an older version
    paths[0].rename(old)
    assert find_recovery(whole) == old


def test_a_number_that_another_process_has_by_now(folder: Path) -> None:
    work = session()
    autosave = Autosave(work, seconds=0)
    work.add_object()
    autosave.close()
    assert autosave.path is not None
    stem, _, token = autosave.path.name.split("-")
    path = autosave.path.rename(folder / f"{stem}-{os.getppid()}-{token}")
    assert find_recovery(image()) is None
    os.utime(path, (1, 1))
    assert find_recovery(image()) == path
    copied = path.rename(folder / f"{stem}-copy{SUFFIX}")
    assert find_recovery(image()) == copied


def test_work_goes_on_in_the_file_that_was_found(folder: Path) -> None:
    work = session()
    work.add_object()
    with Autosave(work, seconds=0):
        change(work, 1)
    found = find_recovery(image())
    assert found is not None
    with Autosave(work, found, seconds=0) as autosave:
        assert find_recovery(image()) is None
        assert list(folder.iterdir()) == [autosave.path]
        change(work, 2)
    path = find_recovery(image())
    assert path == autosave.path and saved(path) == 2
    assert list(folder.iterdir()) == [path]


def test_a_session_without_changes_leaves_no_file(folder: Path) -> None:
    with Autosave(session(), seconds=0):
        time.sleep(0.1)
    assert not folder.exists()
