"""The notebooks as they are committed: executed in full, with pictures, and clean."""

import base64
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(?:^|[^\w.])(?:/(?:home|root|tmp|work|Users|usr|opt|var)/|[A-Z]:\\)")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def outputs(path):
    return [output for cell in code_cells(path) for output in cell["outputs"]]


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_executed_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_hold_no_error_and_no_warning(path):
    assert not [output for output in outputs(path) if output["output_type"] == "error"]
    assert not [output for output in outputs(path) if output.get("name") == "stderr"]


@every_notebook
def test_outputs_name_no_machine(path):
    for output in outputs(path):
        texts = {"stream": output.get("text", "")} | output.get("data", {})
        for kind, text in texts.items():
            if not kind.startswith("image/"):
                assert not MACHINE.search("".join(text))


@every_notebook
def test_pictures_are_pictures_and_not_too_large(path):
    found = [
        output["data"]["image/png"]
        for output in outputs(path)
        if "image/png" in output.get("data", {})
    ]
    assert found
    for picture in found:
        assert base64.b64decode("".join(picture)).startswith(b"\x89PNG")
    assert path.stat().st_size < 1_500_000


@every_notebook
def test_shortens_its_loops_when_asked(path):
    assert '"SMOKE"' in path.read_text(encoding="utf-8").replace('\\"', '"')
