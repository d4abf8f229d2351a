"""The recipes of docs/console.md, run from top to bottom as a reader would; and what all import."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "console.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="no documentation beside the tests")


def recipes(page: Path = PAGE) -> list[str]:
    """The page's Python blocks, each at its own line of the page."""
    blocks, lines = [], page.read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        if line == "```python":
            start = number + 1
        elif line == "```" and start is not None:
            blocks.append("\n" * start + "\n".join(lines[start:number]))
            start = None
    return blocks


def run(source: str, names: dict[str, object]) -> int:
    """Run a block; a value after "# ->" must be what the line gives. Returns how many there are."""
    lines, checked = source.splitlines(), 0
    for node in ast.parse(source).body:
        _, arrow, expected = lines[node.end_lineno - 1].partition("  # -> ")
        if arrow:
            assert isinstance(node, ast.Expr), f"line {node.lineno} has no value"
            code = compile(ast.Expression(node.value), str(PAGE), "eval")
            assert str(eval(code, names)) == expected, f"{PAGE}, line {node.lineno}"
            checked += 1
        else:
            exec(compile(ast.Module([node], []), str(PAGE), "exec"), names)
    return checked


def ct_volume() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A volume in Hounsfield units, and where the liver and the spleen are in it."""
    z, y, x = np.indices((16, 64, 64))
    liver = ((z - 8) / 7) ** 2 + ((y - 28) / 14) ** 2 + ((x - 21) / 11.5) ** 2 < 1
    spleen = ((z - 8) / 5) ** 2 + ((y - 35) / 8) ** 2 + ((x - 49) / 7) ** 2 < 1
    noise = np.random.default_rng(0).normal(-60, 15, z.shape)
    return (noise + 140 * liver + 220 * spleen).astype(np.int16), liver, spleen


def test_the_recipes_run(
    tmp_path, monkeypatch, capsys, own_choices, no_thread_left, make_napari_viewer
):
    monkeypatch.chdir(tmp_path)
    volume, liver, spleen = ct_volume()
    viewer = make_napari_viewer()
    viewer.window.add_plugin_dock_widget("napari-sam2", "SAM 2")
    viewer.add_image(volume, name="ct", scale=(3, 0.8, 0.8), contrast_limits=(-160, 240))
    names: dict[str, object] = {"viewer": viewer, "volume": volume}
    checked = sum(run(block, names) for block in recipes())
    assert checked > 15

    for object_id, truth in ((names["liver"], liver), (names["spleen"], spleen)):
        found = names["s"].labels == object_id
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5
    assert capsys.readouterr().out.splitlines()[-1].startswith("slice 10, 3 of ")
    assert (np.load("organs.npy", mmap_mode="r") == names["organ"]).any()
    np.testing.assert_array_equal(viewer.layers["organs"].data, names["s"].labels)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *(ROOT / "docs").glob("*.md")], ids=lambda page: page.name
)
def test_what_a_page_imports_is_there(page):
    for block in recipes(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = import_module(node.module)
                assert [a.name for a in node.names if not hasattr(module, a.name)] == []
