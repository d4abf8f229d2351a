"""Which model works where: the lists to choose from, and loading in the background."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import QFileDialog

from napari_sam2.lazy_model import CPU_BFLOAT16, LazyModel
from napari_sam2.widgets import choices
from napari_sam2.widgets.panel import Panel, size_text
from napari_sam2.widgets.worker import Worker
from sam2_engine.names import split_size, with_size

if TYPE_CHECKING:
    from sam2_engine.model import SAM2

_FILE = "file …"
_FILTER = "Checkpoints (*.pt *.pth *.safetensors);;All files (*)"
_SIZES = (768, 512)  # pixels, besides the size that a model was trained in


_CHOICES: WeakSet[ModelChoice] = WeakSet()
"""Those of all widgets that are open."""


def use_everywhere(name: str) -> bool:
    """List a model in every widget that is open, and use it there; False if there is none.

    It is remembered for widgets that are opened later.
    """
    choices.remember(model=name)
    for one in list(_CHOICES):
        try:
            one.choose(name, one.model.device)
        except RuntimeError:  # Qt has destroyed it with its window
            _CHOICES.discard(one)
    return bool(_CHOICES)


class ModelChoice(QObject):
    """Shows models and devices in the panel, and loads what is chosen in a thread of its own.

    Until another model is there, the one before stays in use.
    """

    changed = Signal()
    """`model` is another one, or has just been loaded."""
    failed = Signal(Exception)

    def __init__(self, panel: Panel, model: SAM2 | str | None, device: str) -> None:
        """model: a name or a loaded model; None for the one that was chosen last."""
        super().__init__(panel)
        _CHOICES.add(self)
        self.model = LazyModel("nano" if model is None else model, device)
        """The one in use."""
        self.worker = Worker(self, self._show_download)
        self._panel = panel
        self._takes_last = model is None
        self._names: set[str] = set()
        """Those of the models that everybody can have."""
        self._trained: dict[str, int] = {}
        """In which size models were trained, by name or path, as far as that is known."""
        self._loading: LazyModel | None = None
        panel.models.addItem("File …", _FILE)
        tip = "A checkpoint on this computer, such as one that you have trained."
        panel.models.setItemData(0, tip, Qt.ItemDataRole.ToolTipRole)
        panel.devices.setCurrentIndex(panel.devices.findData(device))
        panel.models.activated.connect(self._on_chosen)
        panel.devices.activated.connect(self._on_chosen)
        panel.sizes.activated.connect(self._on_chosen)
        panel.stop_download.clicked.connect(lambda: self.stop_download())
        self._show_chosen(self.model.name, device)
        self.worker.request(_look, self._show, self.failed.emit)
        self._load(self.model)

    @property
    def is_loading(self) -> bool:
        """Whether a model is on its way, or the list of models."""
        return not self.worker.is_idle

    @property
    def title(self) -> str:
        """The chosen model as the list shows it."""
        return self._panel.models.currentText()

    def choose(self, name: str, device: str) -> None:
        """Use another model, as soon as it is loaded. name: as for `LazyModel`."""
        self._show_chosen(name, device)
        if (name, device) == (self.model.name, self.model.device):
            if self._loading is not self.model:
                self.stop_download()
                self._loading = None
            self.changed.emit()
        else:
            self._load(LazyModel(name, device))

    def choose_file(self) -> None:
        """Use a checkpoint that the person is asked for."""
        in_use = self._loading or self.model
        self._show_chosen(in_use.name, in_use.device)
        last = str(choices.load().get("model_file", ""))
        path, _ = QFileDialog.getOpenFileName(self._panel, "Choose a checkpoint", last, _FILTER)
        if path:
            self.choose(path, in_use.device)

    def use(self, model: LazyModel) -> None:
        """Use the model of a session that was opened, as soon as it is loaded."""
        if model is not self.model:
            self._show_chosen(model.name, model.device)
            self._load(model)

    def stop_download(self) -> None:
        """Give up what is being loaded, and stay with the model in use."""
        if self._loading is not None:
            self._loading.stop_download()

    def close(self) -> None:
        """End the thread."""
        _CHOICES.discard(self)
        self.stop_download()
        self.worker.close()

    def _show_chosen(self, name: str, device: str) -> None:
        models, devices = self._panel.models, self._panel.devices
        model, size = split_size(name)
        self._list(model)
        models.setCurrentIndex(models.findData(model))
        devices.setCurrentIndex(devices.findData(device))
        self._show_sizes(model, size)

    def _show_sizes(self, model: str, chosen: int | None) -> None:
        trained, smaller = self._trained.get(model), []
        if chosen == trained:
            chosen = None
        if model in self._names or Path(model).is_file():
            smaller = [one for one in _SIZES if trained is None or one < trained]
        if chosen is not None and chosen not in smaller:
            smaller.append(chosen)
        own = "as trained" if trained is None else f"{trained} pixels, as trained"
        sizes = [(own, None), *((f"{one} pixels", one) for one in smaller)]
        self._panel.show_sizes(sizes, chosen)

    def _list(self, name: str, text: str = "", tip: str = "") -> None:
        """Show a model in the list, above the choice of a file."""
        models = self._panel.models
        index = models.findData(name)
        if index < 0:
            index = models.findData(_FILE)
            models.insertItem(index, Path(name).name, name)
            models.setItemData(index, name, Qt.ItemDataRole.ToolTipRole)
        if text:
            models.setItemText(index, text)
            models.setItemData(index, tip, Qt.ItemDataRole.ToolTipRole)

    def _load(self, model: LazyModel) -> None:
        self.stop_download()
        self._loading = model
        file, size = split_size(model.name)

        def loaded(network: SAM2) -> None:
            if size is None:
                self._trained[file] = network.image_size
            if model is self._loading:
                if model is not self.model:
                    choices.remember(model=model.name, device=model.device)
                    if self._is_file(file):
                        choices.remember(model_file=file)
                self._loading, self.model = None, model
                self._show_sizes(file, size)
                self.changed.emit()

        def failed(error: Exception) -> None:
            if model is self._loading:
                self._loading = None
                self._show_chosen(self.model.name, self.model.device)
                if self._is_file(file) and file != split_size(self.model.name)[0]:
                    self._panel.models.removeItem(self._panel.models.findData(file))
                self.failed.emit(error)

        self.worker.request(model.get, loaded, failed)

    def _is_file(self, name: str) -> bool:
        """Whether this is a file of the person's own."""
        return bool(self._names) and name not in self._names

    def _show_download(self) -> None:
        self._panel.show_download(self._loading.downloaded if self._loading else None)

    def _on_chosen(self, *_: object) -> None:
        name, panel = self._panel.models.currentData(), self._panel
        if name == _FILE:
            self.choose_file()
        else:
            size, trained = panel.sizes.currentData(), self._trained.get(name)
            if size is not None and trained is not None and size >= trained:
                size = None
            self.choose(with_size(name, size), panel.devices.currentData())

    def _show(self, found: tuple[list[Any], set[str], set[str]]) -> None:
        models, local, devices = found
        self._names = {info.name for info in models}
        self._trained |= {info.name: info.image_size for info in models}
        for info in models:
            is_bundled = info.repository is None and not info.is_own
            size = "bundled" if is_bundled else size_text(info.size)
            where = "on this computer" if info.name in local else "downloaded when chosen"
            text = f"{info.name}, {size}, {info.licence}"
            self._list(info.name, text, f"{info.title}; {where}")
        self._panel.show_devices(devices)
        last = choices.load()
        file, name, device = (str(last.get(key, "")) for key in ("model_file", "model", "device"))
        if Path(file).is_file():
            local.add(file)
            self._list(file)
        self._show_sizes(*split_size((self._loading or self.model).name))
        if self._takes_last and split_size(name)[0] in local:
            self.choose(name, device if device in devices else self.model.device)


def _look() -> tuple[list[Any], set[str], set[str]]:
    """The models, the names of those that need no download, and the devices of this computer."""
    import torch

    from sam2_engine.weights import list_models
    from sam2_engine.weights.download import find
    from sam2_engine.weights.loading import multiplies_bfloat16

    models = list_models()
    devices = {"auto", "cpu"}
    devices |= {"cuda"} if torch.cuda.is_available() else set()
    devices |= {CPU_BFLOAT16} if multiplies_bfloat16() else set()
    devices |= {"mps"} if torch.backends.mps.is_available() else set()
    return models, {info.name for info in models if find(info) is not None}, devices
