"""Saving and opening sessions, and what is offered after a crash."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QDateTime, QLocale
from qtpy.QtWidgets import QFileDialog, QMessageBox

from napari_sam2.recovery import find_recovery, forget_recovery
from napari_sam2.session import Session
from napari_sam2.session_file import (
    SUFFIX,
    ChangedImageError,
    MissingModelError,
    open_session,
    read_session,
    save_session,
)
from napari_sam2.widgets.canvas import remove_layers
from napari_sam2.widgets.context import Context
from napari_sam2.widgets.events import call
from napari_sam2.widgets.left_behind import left_behind
from napari_sam2.widgets.proposed_files import beside, folder_of
from napari_sam2.widgets.workspace import Workspace

if TYPE_CHECKING:
    from napari_sam2.widgets.images import Images

_FILTER = f"SAM 2 session (*{SUFFIX})"


class SessionFiles:
    """Files are written and read in the background."""

    def __init__(self, context: Context, images: Images) -> None:
        self._context = context
        self._images = images
        self._panel = context.panel
        menu = context.panel.session_menu
        menu.setToolTipsVisible(True)
        self.found: Path | None = None
        """What has been saved by itself of the image that is chosen, and not been closed."""
        for text, tip, action in (
            ("Save", "Save to the session's file.", lambda: self.save()),
            ("Save as …", "Save to another file.", lambda: self.save(ask=True)),
            ("Open …", "Open a session of the image that is chosen.", lambda: self.open()),
        ):
            entry = menu.addAction(text)
            assert entry is not None
            entry.setToolTip(tip)
            entry.triggered.connect(partial(call, action))
        context.panel.recover.clicked.connect(lambda: self.recover())
        context.panel.discard.clicked.connect(lambda: self.discard())

    def save(self, path: str | os.PathLike[str] | None = None, ask: bool = False) -> None:
        """Save the session; without a path to its file, or to one that the person is asked for."""
        work = self._context.work
        if work is None:
            return
        chosen = path or (None if ask else work.file)
        if chosen is None:
            name = str(work.file or beside(work.image, SUFFIX))
            chosen, _ = QFileDialog.getSaveFileName(self._panel, "Save session", name, _FILTER)
        if not chosen:
            return
        target = Path(chosen)
        if target.suffix != SUFFIX:
            target = target.with_name(target.name + SUFFIX)

        changes = work.changes  # while it is being written, there may be more

        def done(_: object) -> None:
            work.file, work.saved_changes = target, changes
            self._panel.say(f"Saved to {target.name}.")

        self._context.runner.request(partial(save_session, work.session, target), done)

    def open(self, path: str | os.PathLike[str] | None = None) -> None:
        """Open a session of the chosen image; without a path from a file that is asked for."""
        work = self._context.work
        if work is None or self._context.is_running:
            return
        if path is None and not self._may_replace(work):
            return
        start = str(work.file or folder_of(work.image))
        chosen = path or QFileDialog.getOpenFileName(self._panel, "Open session", start, _FILTER)[0]
        if chosen:
            self._read(work, Path(chosen), is_recovery=False)

    def look_for_recovery(self, work: Workspace) -> None:
        """Find out, in the background, whether work on the image was cut off."""
        self._show_found(None)
        self._context.runner.request(
            partial(find_recovery, work.session.image), partial(self._on_found, work)
        )

    def recover(self) -> None:
        """Open what was found."""
        work = self._context.work
        if self.found is not None and work is not None and self._may_replace(work):
            self._read(work, self.found, is_recovery=True)

    def discard(self) -> None:
        """Delete what was found, if the person is sure."""
        if self.found is not None and self._asks(
            "Delete the marks and masks that were not saved? Nothing brings them back then."
        ):
            forget_recovery(self.found)
            self._show_found(None)

    def _read(
        self, work: Workspace, path: Path, is_recovery: bool, changed_image: bool = False
    ) -> None:
        notes: list[str] = []
        chosen = self._context.models.model
        open_with = partial(
            open_session,
            path,
            work.session.image,
            device=chosen.device,
            changed_image=changed_image,
            warn=notes.append,
        )

        def read() -> Session | ChangedImageError:
            try:
                if read_session(path).model == chosen.name:
                    return open_with(model=chosen)  # it need not be loaded twice
                try:
                    return open_with()
                except MissingModelError:
                    return open_with(model=chosen)
            except ChangedImageError as error:
                return error

        def done(opened: Session | ChangedImageError) -> None:
            if isinstance(opened, ChangedImageError):
                if self._asks(f"{opened}\n\nOpen it nevertheless?"):
                    self._read(work, path, is_recovery, changed_image=True)
                return
            if self._images.known.get(work.image) is not work:
                return
            if is_recovery:
                remove_layers(self._context.viewer.layers, left_behind(path))
            new = self._images.replace(work, opened, recovered=path if is_recovery else None)
            new.file = None if is_recovery else path
            self._context.models.use(opened.model)
            self.look_for_recovery(new)  # also of what was there, if it was not saved
            text = f"The work on {work.image.name} is back." if is_recovery else ""
            self._panel.say(" ".join([text or f"Opened {path.name}.", *notes]))

        self._context.runner.request(read, done)

    def _may_replace(self, work: Workspace) -> bool:
        """Whether another session may take the place of this one; asks where it is not saved."""
        is_saved = work.changes == work.saved_changes or work.session.is_empty
        return is_saved or self._asks(
            f"The marks and masks of {work.image.name} are not saved to a file. Open another "
            "session in their place? (Recover can bring them back then.)"
        )

    def _on_found(self, work: Workspace, path: Path | None) -> None:
        if work is self._context.work:
            self._show_found(path)

    def _show_found(self, path: Path | None) -> None:
        self.found = path
        if path is not None:
            self._panel.cut_off.setText(f"Work on this image that was not saved{_when(path)}:")
        self._panel.recovery.setVisible(path is not None)

    def _asks(self, question: str) -> bool:
        answer = QMessageBox.question(self._panel, "SAM 2", question)
        return bool(answer == QMessageBox.StandardButton.Yes)


def _when(path: Path) -> str:
    """When a file was written, for a person who may not remember."""
    with suppress(OSError):
        written = QDateTime.fromSecsSinceEpoch(int(path.stat().st_mtime))
        return f" ({QLocale().toString(written, QLocale.FormatType.ShortFormat)})"
    return ""
