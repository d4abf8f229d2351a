"""Autosave: a session is saved by itself while one works, and found again after a crash."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import psutil
from platformdirs import user_data_path

from napari_sam2.session import Session
from napari_sam2.session_file import SUFFIX, SessionWriter, fingerprint
from napari_sam2.session_format import Fingerprint, read_fingerprint
from sam2_engine.whole_file import short

FOLDER = user_data_path("napari-sam2", appauthor=False) / "recovery"
"""Where sessions are saved that have no file of their own yet."""

_UNREAD = "xx"
"""Of a frame that could not be read, in the name of a file."""

_in_use: set[Path] = set()
"""Files in FOLDER that this process saves to now."""


class Autosave:
    """Saves a session in the background, some seconds after it has changed.

    Whoever changes the session never waits for it. If the process is killed, what was done in the
    last seconds is lost, and the file is whole.
    """

    def __init__(
        self,
        session: Session,
        path: str | os.PathLike[str] | None = None,
        seconds: float = 5,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            session: to be saved, until `close` is called.
            path: of the file, perhaps one that `find_recovery` has found; by default a new one
                that it will find.
            seconds: from the first change that is not saved yet, until it is.
            failed: told, in the background thread, why the session cannot be saved, as soon as
                that is so; it is tried again and again.
        """
        self.path = None if path is None else _taken_over(Path(path))
        """None while the session has not been saved."""
        self.error = ""
        """Why the session cannot be saved; empty while it can."""
        self._session, self._seconds, self._failed = session, seconds, failed
        self._writer = SessionWriter(session)
        self._wake = threading.Condition()
        self._is_changed = self._is_closing = False
        self._signals = session.masks_changed, session.objects_changed, session.prompts_changed
        for signal in self._signals:
            signal.connect(self._on_change)
        self._thread = threading.Thread(target=self._run, name="napari-sam2 autosave", daemon=True)
        self._thread.start()

    def close(self, forget: bool = False) -> None:
        """Save what is not saved yet, and stop. Waits until the file is written.

        forget: delete the file instead.
        """
        for signal in self._signals:
            signal.disconnect(self._on_change, missing_ok=True)
        with self._wake:
            self._is_closing = True
            self._is_changed &= not forget
            self._wake.notify()
        self._thread.join()
        if self.path is not None:
            _in_use.discard(self.path)
            if forget:
                forget_recovery(self.path)

    def __enter__(self) -> Autosave:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_change(self, *_: object) -> None:
        with self._wake:
            self._is_changed = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_changed or self._is_closing)
                self._wake.wait_for(lambda: self._is_closing, self._seconds)
                if not self._is_changed:
                    return
                self._is_changed = False
            if not self._save():
                with self._wake:
                    self._is_changed = not self._is_closing

    def _save(self) -> bool:
        try:
            if self.path is None:
                FOLDER.mkdir(parents=True, exist_ok=True)
                self.path = _new_file(_begin(self._writer.image.fingerprint))
            self._writer.write(self.path)
        except Exception as error:  # whatever it is, work goes on and the next try may succeed
            is_new, self.error = str(error) != self.error, str(error)
            if is_new and self._failed is not None:
                self._failed(self.error)
            return False
        self.error = ""
        return True


def find_recovery(image: Any) -> Path | None:
    """The session of an image that was saved last and that nobody works on, for `open_session`.

    image: as for `Session`; some frames of it are read. Nothing else about it has to be as it was.
    """
    found: dict[Path, float] = {}
    now = fingerprint(image)
    for path in FOLDER.glob(f"*-*{SUFFIX}"):
        if _is_of(path, now) and not _is_in_use(path):
            with suppress(OSError):
                found[path] = path.stat().st_mtime
    return max(found, key=lambda path: found[path], default=None)


def forget_recovery(path: Path) -> None:
    """Delete a file that is not needed any more, because it was saved elsewhere or not wanted."""
    for one in (path, *path.parent.glob(f".{escape(short(path.name))}.*.part")):
        with suppress(OSError):
            one.unlink()


def _is_of(path: Path, image: Fingerprint) -> bool:
    """Whether a file is of an image: by its name; or within, if slices could not be read once, and
    its name does not speak against it."""
    named, own = _begin_of(path), _begin(image)
    if named.whole == own.whole:
        return True
    if named.frames and not named.fits(own):
        return False
    saved = read_fingerprint(path)
    return saved is not None and saved.fits(image)


def _begin(image: Fingerprint) -> Fingerprint:
    """As much of what is known of an image as goes into a name."""
    whole = image.whole.rpartition(":")[2][:32]
    return Fingerprint(whole, tuple(one[:2] for one in image.frames))


def _begin_of(path: Path) -> Fingerprint:
    """What a file's name says of its image; files of older versions say nothing of frames."""
    whole, _, frames = path.name.partition("-")[0].partition("_")
    pairs = (frames[i : i + 2] for i in range(0, len(frames), 2))
    return Fingerprint(whole, tuple("" if one == _UNREAD else one for one in pairs))


def _new_file(begin: Fingerprint) -> Path:
    frames = "".join(one or _UNREAD for one in begin.frames)
    image = f"{begin.whole}_{frames}"
    path = FOLDER / f"{image}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
    _in_use.add(path)
    return path


def _taken_over(path: Path) -> Path:
    """A file of a process that has ended, under the name of this one."""
    if path.parent != FOLDER or _is_in_use(path):
        return path
    new = _new_file(_begin_of(path))
    try:
        return path.rename(new)
    except OSError:
        _in_use.discard(new)
        return path


def _is_in_use(path: Path) -> bool:
    """Whether a living process saves to a file."""
    if path in _in_use:
        return True
    try:
        process = int(path.name.split("-")[1])
        if process == os.getpid():
            return False
        # Another process may have got the number since; then it is younger than the file.
        return psutil.Process(process).create_time() <= path.stat().st_mtime
    except (psutil.Error, OSError, ValueError):
        return False
