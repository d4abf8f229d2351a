"""Weights: the real download code against a hub on loopback, and every kind of bad file."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import struct
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from models import SMALL, small_model
from safetensors.torch import load_file, save_file

from benchmarks.recipe import recipe_weights
from napari_sam2.lazy_model import CPU_BFLOAT16, LazyModel
from sam2_engine.model import SAM2, VARIANTS, ConvTrunkConfig, ModelConfig
from sam2_engine.weights import (
    WeightsError,
    fetch,
    find,
    find_file,
    list_models,
    load_model,
    loading,
    model_info,
    save_model,
)
from sam2_engine.weights.registry import MODELS

OFFICIAL = sorted((Path(__file__).parent / "parity").glob("full_*.json"))
CHUNK = 1 << 16


# -- a hub on loopback -------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """Answers as the Hugging Face hub does for one file; can break a transfer."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.etag = hashlib.sha256(content).hexdigest()
        self.exists = True
        self.break_after: list[int] = []  # bytes after which the next transfers end
        self.reset = False  # break by a TCP reset instead of an early end
        self.ranges: list[str | None] = []  # of each GET

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        if self.path.endswith(FILE):  # huggingface_hub also asks for other things
            self.server.ranges.append(self.headers.get("Range"))
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.server
        if not hub.exists or self.path != "/facebook/sam2.1-hiera-tiny/resolve/main/" + FILE:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        total = len(hub.content)
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if not with_body:
            return
        end = total
        if hub.break_after:
            end = min(start + hub.break_after.pop(0), total)
        self.wfile.write(hub.content[start:end])
        if end < total:
            self.close_connection = True
            if hub.reset:
                time.sleep(0.1)  # what is not sent yet would be lost
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

    def log_message(self, *args: object) -> None:
        pass


TINY = MODELS["sam2.1-tiny"]
FILE = TINY.file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small checkpoint that tells its configuration."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_model(small_model(), path)
    return path.read_bytes()


@pytest.fixture
def hub(checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hub that huggingface_hub asks in this test, with an empty cache."""
    server = Hub(checkpoint)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.delenv("SAM2_MODELS", raising=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tiny(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch):
    """sam2.1-tiny in the registry, with size and sum of the small checkpoint."""
    info = replace(TINY, size=len(checkpoint), sha256=hashlib.sha256(checkpoint).hexdigest())
    monkeypatch.setitem(MODELS, info.name, info)
    return info


def files_in_cache() -> list[Path]:
    """All files of some size below the hub's cache: links and locks are left out."""
    return [
        path
        for path in Path(constants.HF_HUB_CACHE).rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size > 1000
    ]


def test_a_model_is_downloaded_once_and_then_loaded_without_network(hub, tiny):
    seen: list[tuple[int, int | None]] = []
    assert find(tiny) is None
    model = load_model(
        tiny.name, device="cpu", progress=lambda done, total: seen.append((done, total))
    )
    assert model.config == SMALL
    assert torch.equal(model.no_mem_embed, small_model().no_mem_embed)
    size = len(hub.content)
    assert [done for done, _ in seen] == [*range(CHUNK, size, CHUNK), size]
    assert {total for _, total in seen} == {size}

    hub.exists = False
    assert find(tiny) is not None
    assert load_model(tiny.name, device="cpu").config == SMALL
    assert len(hub.ranges) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_transfer_goes_on_where_it_broke(hub, tiny, reset):
    hub.break_after, hub.reset = [3 * CHUNK], reset
    assert fetch(tiny).read_bytes() == hub.content
    assert hub.ranges == [None, f"bytes={3 * CHUNK}-"]


def test_when_no_more_comes_it_is_one_error_and_the_next_call_goes_on(hub, tiny):
    hub.break_after, hub.reset = [3 * CHUNK, 0], True
    with pytest.raises(WeightsError, match="goes on from where it stopped"):
        fetch(tiny)
    assert find(tiny) is None
    assert fetch(tiny).read_bytes() == hub.content
    assert hub.ranges == [None, *[f"bytes={3 * CHUNK}-"] * 2]


def test_a_cancelled_download_is_never_used_and_goes_on_later(hub, tiny):
    class CancelledError(Exception):
        pass

    def cancel(done: int, total: int | None) -> None:
        if done >= 2 * CHUNK:
            raise CancelledError

    with pytest.raises(CancelledError):
        fetch(tiny, progress=cancel)
    assert find(tiny) is None
    assert fetch(tiny).read_bytes() == hub.content
    assert hub.ranges == [None, f"bytes={2 * CHUNK}-"]


def test_a_wrong_sum_names_both_sums_and_removes_the_file(hub, tiny):
    right = tiny.sha256
    hub.content = hub.content[:-1] + bytes([hub.content[-1] ^ 1])
    wrong = hashlib.sha256(hub.content).hexdigest()
    with pytest.raises(WeightsError) as error:
        load_model(tiny.name, device="cpu")
    assert right in str(error.value)
    assert wrong in str(error.value)
    assert "removed" in str(error.value)
    assert files_in_cache() == []
    assert find(tiny) is None


def test_a_wrong_size_is_told(hub, tiny):
    hub.content += b"more"
    with pytest.raises(WeightsError, match=r"bytes instead of"):
        fetch(tiny)
    assert files_in_cache() == []


def test_where_no_sum_is_published_the_one_that_the_hub_names_is_checked(hub, tiny):
    unknown = replace(tiny, size=None, sha256=None)
    hub.content = hub.content[:-1] + bytes([hub.content[-1] ^ 1])
    with pytest.raises(WeightsError, match=hub.etag):
        fetch(unknown)
    assert files_in_cache() == []


def test_a_file_that_was_damaged_in_the_cache_is_removed_and_downloaded_again(hub, tiny):
    blob = fetch(tiny).resolve()
    blob.write_bytes(hub.content[:-1] + b"x")
    with pytest.raises(WeightsError, match="removed"):
        load_model(tiny.name, device="cpu")
    assert fetch(tiny).read_bytes() == hub.content


def test_a_file_that_the_hub_does_not_have(hub, tiny):
    hub.exists = False
    with pytest.raises(WeightsError, match=r"The hub has no file sam2\.1_hiera_tiny\.pt") as error:
        load_model(tiny.name, device="cpu")
    assert hub.url in str(error.value)


def test_without_network_the_error_says_how_to_do_without(hub, tiny):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(WeightsError, match="SAM2_MODELS") as error:
        load_model(tiny.name, device="cpu")
    assert FILE in str(error.value)
    assert hub.url in str(error.value)
    assert "choose the file itself" in str(error.value) and "settings" not in str(error.value)


def test_a_local_folder_needs_no_network(hub, tiny, tmp_path, monkeypatch):
    hub.exists = False
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / FILE).write_bytes(hub.content)
    assert load_model(tiny.name, device="cpu", folder=folder).config == SMALL
    assert load_model(folder / FILE, device="cpu").config == SMALL
    monkeypatch.setenv("SAM2_MODELS", str(folder))
    assert find(tiny) == folder / FILE
    assert load_model(tiny.name, device="cpu").config == SMALL

    (folder / FILE).write_bytes(hub.content[:-1])
    with pytest.raises(WeightsError, match="Replace it"):
        load_model(tiny.name, device="cpu")
    assert (folder / FILE).exists(), "a person's file is not ours to remove"


# -- recognising and loading -------------------------------------------------------------------


def test_list_models_starts_with_the_bundled_one_and_names_all_published_ones():
    names = [info.name for info in list_models()]
    assert names[0] == "nano"
    assert set(names) == {*VARIANTS, "medsam2"}
    assert all(info.config in VARIANTS for info in list_models() if not info.is_own)


def test_nano_is_bundled_small_and_loads_in_float32():
    model = load_model("nano", device="cpu")
    assert find(MODELS["nano"]).stat().st_size < 20e6
    assert model.image_size == 256
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_every_official_list_of_weights_loads_strictly(path, tmp_path, monkeypatch):
    shapes = json.loads(path.read_text())["state_dict"]
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(loading, "read_checkpoint", lambda path: (state, None))
    (tmp_path / "weights.pt").touch()
    model = load_model(tmp_path / "weights.pt", device="meta")
    _, version, size = path.stem.split("_", 2)
    family = "sam2.1" if version == "2.1" else "sam2"
    assert model.config == VARIANTS[f"{family}-{size.replace('_', '-')}"]


def test_an_official_file_loads_by_path_and_medsam2_by_its_name_at_512(tmp_path):
    info = json.loads((Path(__file__).parent / "parity" / "full_2.1_tiny.json").read_text())
    state = recipe_weights(info["state_dict"], info["seed"], info["obj_bias"])
    path = tmp_path / "mine.pt"
    torch.save({"model": state}, path)
    model = load_model(path, device="cpu")
    assert (model.image_size, model.dtype, model.training) == (1024, torch.float32, False)
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert load_model(path, device="cpu", image_size=512).image_size == 512

    path = path.rename(tmp_path / MODELS["medsam2"].file)
    assert load_model(path, device="cpu").image_size == 512
    medsam2 = load_model("medsam2", device="cpu", dtype="bfloat16", folder=tmp_path)
    assert (medsam2.image_size, medsam2.dtype) == (512, torch.bfloat16)


def test_a_name_or_a_path_may_say_the_size_of_the_input(tmp_path, monkeypatch):
    assert load_model("nano", device="cpu").image_size == 256
    assert load_model("nano@128", device="cpu").image_size == 128
    info = model_info("sam2.1-tiny@512")
    assert (info.name, info.image_size, info.file) == (
        "sam2.1-tiny@512",
        512,
        MODELS["sam2.1-tiny"].file,
    )
    assert info.sha256 == MODELS["sam2.1-tiny"].sha256
    assert model_info("sam3@512") is None

    sums = [LazyModel(name).checksum for name in ("nano", "nano@256", "nano@128")]
    assert sums == [sums[0], sums[0], f"{sums[0]}@128"]

    path = tmp_path / "mine.safetensors"
    save_model(small_model(), path)
    assert load_model(f"{path}@96", device="cpu").image_size == 96
    assert load_model(f"{path}@96", device="cpu", image_size=64).image_size == 64
    assert find_file(f"{path}@96") == path
    whole = path.rename(tmp_path / "mine@96")
    assert find_file(whole) == whole, "a file that is called so"
    assert load_model(whole, device="cpu").image_size == SMALL.image_size
    monkeypatch.setattr(loading, "fetch", None)  # nothing is downloaded first
    for size in (0, 100, 99_968):
        with pytest.raises(ValueError, match=f"multiple of 32 .* not {size}"):
            load_model(f"sam2.1-tiny@{size}", device="cpu")
    assert "sam3@512" in error_of("sam3@512")


def test_a_convolutional_trunk_is_recognised_without_metadata(tmp_path):
    config = ModelConfig(
        trunk=ConvTrunkConfig(), version="2.0", image_size=256, d_model=64, memory_dim=32,
        memory_layers=1, memory_ffn=96, decoder_mlp=80, num_memories=5, refines_masks=True,
    )  # fmt: skip
    torch.save(SAM2(config).state_dict(), tmp_path / "bare.pt")
    assert load_model(tmp_path / "bare.pt", device="cpu").config == config


def test_what_save_model_writes_loads_the_same(tmp_path):
    path = tmp_path / "mine.safetensors"
    config = replace(SMALL, image_size=96, max_pointers=5)
    model = SAM2(config)
    save_model(model, path, licence="CC0-1.0", data=["a", "b"])
    loaded = load_model(path, device="cpu")
    assert loaded.config == config
    assert all(torch.equal(a, b) for a, b in zip(
        loaded.state_dict().values(), model.state_dict().values(), strict=True
    ))  # fmt: skip
    with loading.safe_open(path, "pt") as file:
        assert file.metadata()["licence"] == "CC0-1.0"
        assert json.loads(file.metadata()["data"]) == ["a", "b"]

    conv = SAM2(replace(VARIANTS["nano"], d_model=64))
    save_model(conv, path)
    assert load_model(path, device="cpu").config == conv.config
    assert os.listdir(tmp_path) == ["mine.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_saved_model_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        save_model(small_model(), tmp_path / "own.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "own.safetensors").stat().st_mode & 0o777 == 0o644


def test_half_precision_files_keep_their_vectors_and_load_in_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(small_model(), path, dtype=torch.float16)
    stored = load_file(path)
    assert stored["sam_mask_decoder.conv_s0.weight"].dtype == torch.float16
    assert stored["sam_mask_decoder.conv_s0.bias"].dtype == torch.float32
    model = load_model(path, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    weight, exact = model.obj_ptr_tpos_proj.weight, small_model().obj_ptr_tpos_proj.weight
    torch.testing.assert_close(weight, exact, rtol=1e-3, atol=1e-6)


def test_a_failed_save_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(TypeError):
        save_model(small_model(), path, odd=object())
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        save_model(small_model(), tmp_path / "folder")
    assert path.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["folder", "mine.safetensors"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_chosen_with_bfloat16_where_it_computes_with_it(tmp_path):
    save_model(small_model(), tmp_path / "small.safetensors")
    model = load_model(tmp_path / "small.safetensors")
    assert model.device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert model.dtype == (torch.bfloat16 if native else torch.float32)


def test_a_download_that_is_given_up_before_its_turn_is_not_made(monkeypatch):
    """In the widget: another model is chosen while one waits for the one before."""

    def download(*_, progress, **__):
        progress(1, 2)
        return small_model()

    monkeypatch.setattr("sam2_engine.weights.load_model", download)
    model = LazyModel("sam2.1-tiny")
    model.stop_download()
    with pytest.raises(WeightsError, match="was stopped; choose it to go on"):
        model.get()
    assert not model.is_loaded and model.downloaded is None
    assert model.get() is model.get(), "it was chosen again"


def test_a_processor_can_multiply_in_half_precision_where_it_can(tmp_path, monkeypatch):
    path = tmp_path / "small.safetensors"
    save_model(small_model(), path)
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: True)
    exact, mixed = (load_model(path, "cpu", dtype) for dtype in ("float32", "mixed"))
    assert mixed.is_mixed and not exact.is_mixed
    assert mixed.dtype == torch.float32
    assert LazyModel(str(path), CPU_BFLOAT16).get().is_mixed
    image = torch.randn(1, 3, exact.image_size, exact.image_size)
    with torch.inference_mode():
        features = [model.encode_image(image).stride16 for model in (exact, mixed)]
    assert features[1].dtype == torch.float32
    difference = (features[0] - features[1]).abs().max()
    assert 0 < difference < 0.03 * features[0].abs().max()
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="does not multiply in bfloat16"):
        load_model(path, "cpu", "mixed")
    with pytest.raises(ValueError, match="mixed is for the processor"):
        loading._check_dtype("mixed", torch.device("cuda"))


# -- bad files ---------------------------------------------------------------------------------


def small_state() -> dict[str, torch.Tensor]:
    return dict(small_model().state_dict())


def error_of(path: Path | str, **options: object) -> str:
    """The one error that loading raises: a single line."""
    with pytest.raises(WeightsError) as error:
        load_model(path, device="cpu", **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_missing_unexpected_and_misshapen_weights_are_named_together(tmp_path):
    path = tmp_path / "odd.safetensors"
    state = small_state()
    del state["obj_ptr_proj.layers.1.bias"]
    state["head.weight"] = torch.zeros(3)
    state["no_obj_ptr"] = torch.zeros(1, 7)
    config = json.dumps(loading.asdict(SMALL))
    save_file(state, path, {"config": config})
    message = error_of(path)
    assert "1 missing (obj_ptr_proj.layers.1.bias)" in message
    assert "1 unexpected (head.weight)" in message
    assert "1 of another shape (no_obj_ptr (1, 7) instead of (1, 64))" in message
    assert str(path) in message


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_truncated_file(tmp_path, name, keep):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"model": small_state()}, path)
    else:
        save_model(small_model(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    message = error_of(path)
    assert "truncated" in message
    assert "Download or copy it again" in message


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.pt").touch()
    assert "is empty" in error_of(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    "content",
    [b"hello, this is a text", b"\x89PNG\r\n\x1a\n" + bytes(99), b"<!DOCTYPE html>", bytes(1000)],
)
@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
def test_a_file_of_another_kind(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "not a" in error_of(tmp_path / name)


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, archive):
    path, trace = tmp_path / "code.pt", tmp_path / "trace"
    if archive:
        torch.save({"model": Code(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Code(trace), protocol=2))
    assert "could run code" in error_of(path)
    assert not trace.exists()


def test_other_networks_are_not_sam2(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(3, 3)}, path)
    assert "not a SAM 2 checkpoint" in error_of(path)
    torch.save(torch.zeros(3), path)
    assert "no weights by name" in error_of(path)
    torch.save({"epoch": 3, "state": {"a": torch.zeros(1)}}, path)
    assert "'epoch' is not a tensor" in error_of(path)
    patch_embed = "image_encoder.trunk.patch_embed.proj.weight"
    blocks = {f"image_encoder.trunk.blocks.{i}.norm1.weight": torch.zeros(96) for i in range(12)}
    torch.save({patch_embed: torch.zeros(96, 3, 7, 7), **blocks}, path)
    assert "maskmem_tpos_enc is missing" in error_of(path)


def test_an_unknown_trunk_needs_its_configuration_in_the_file(tmp_path):
    torch.save(small_state(), tmp_path / "small.pt")
    assert "save_model" in error_of(tmp_path / "small.pt")


def test_a_configuration_of_another_version(tmp_path):
    path = tmp_path / "future.safetensors"
    values = loading.asdict(SMALL) | {"flux": 3}
    save_file(small_state(), path, {"config": json.dumps(values)})
    assert "flux" in error_of(path)
    save_file(small_state(), path, {"config": "{"})
    assert "does not know" in error_of(path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    message = error_of("sam3")
    assert "sam3" in message
    assert "sam2.1-base-plus" in message
    assert "no file" in error_of(tmp_path)


def test_impossible_settings_are_told_before_anything_is_loaded(tmp_path):
    save_model(small_model(), tmp_path / "small.safetensors")
    path = tmp_path / "small.safetensors"
    with pytest.raises(ValueError, match="no device 'fridge'"):
        load_model(path, device="fridge")
    with pytest.raises(ValueError, match="dtype int8"):
        load_model(path, device="cpu", dtype="int8")
    with pytest.raises(ValueError, match="multiple of 32"):
        load_model(path, device="cpu", image_size=100)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no cuda device"):
            load_model(path, device="cuda")


@pytest.mark.parametrize("problem", ["no kernel image is available", "invalid device ordinal"])
def test_a_card_that_pytorch_cannot_use_is_passed_over_or_told_of(tmp_path, monkeypatch, problem):
    """It finds cards, too, that are older or newer than it was built for."""
    made = torch.ones

    def ones(*shape, device=None):
        if device is not None and device.type == "cuda":
            raise RuntimeError(f"CUDA error: {problem}\nCompile with TORCH_USE_CUDA_DSA")
        return made(*shape, device=device)

    path = tmp_path / "small.safetensors"
    save_model(small_model(), path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    reason = "was not built for this card" if "kernel" in problem else problem
    told = []
    assert load_model(path, tell=told.append).device.type == "cpu"
    assert len(told) == 1 and reason in told[0] and "the processor computes" in told[0]
    with pytest.raises(ValueError, match=f"cannot use cuda:1 here .*{reason}.*use auto or cpu"):
        load_model(path, device="cuda:1")
