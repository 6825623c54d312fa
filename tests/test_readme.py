"""The README's Python runs as pasted; what it names exists."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture
def float32():
    """What a user has; the clean slate puts float64 back."""
    torch.set_default_dtype(torch.float32)


def test_there_are_two_blocks_of_python():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=["fifteen lines", "own model"])
def test_python_runs_as_pasted(block, float32, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "mean log p(x)" in printed
    assert "KL" in printed
    first, last = names["run"].history[0]["elbo"], names["run"].history[-1]["elbo"]
    assert last > first
    assert list(tmp_path.iterdir()) == []


def test_every_family_has_its_row_and_its_prior():
    table = README.split("| posterior family |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", table))
    assert named == set(pv.distributions.names())


def test_every_file_and_picture_exists():
    files = re.findall(r"`((?:\w+/)*\w+\.py)`", README)
    assert len(files) > 10
    for file in files:
        folder = ROOT if file.startswith(("benchmarks/", "tests/")) else ROOT / "pyrovae"
        assert (folder / file).is_file(), file
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file(), picture


def test_every_command_exists():
    for command in set(re.findall(r"`pyrovae (\w+)`|pyrovae (compare|train|evaluate)", README)):
        name = next(filter(None, command))
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name


def test_no_line_needs_scrolling_in_a_terminal():
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long, long
