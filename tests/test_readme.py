"""The README's Python runs as pasted; what it names exists."""

import ast
import re
from pathlib import Path

import pyro.distributions
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


def test_there_are_three_blocks_of_python():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS[:2], ids=["fifteen lines", "own model"])
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


def test_the_readers_own_posteriors_are_short_and_train(float32, tmp_path, monkeypatch, capsys):
    """The block itself asks `check_distribution` of each."""
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)  # noqa: S102
    bases = (pv.distributions.LocationScale, pv.distributions.InverseCDF)
    bases += (pv.distributions.Composition,)
    classes = [node for node in ast.parse(BLOCKS[2]).body if isinstance(node, ast.ClassDef)]
    assert [names[c.name].__base__ for c in classes] == list(bases)
    for node in classes:
        lines = BLOCKS[2].splitlines()[node.lineno - 1 : node.end_lineno]
        assert len([line for line in lines if line.strip()]) <= 12, node.name
        assert not hasattr(torch.distributions, node.name)
        assert not hasattr(pyro.distributions, node.name)
    elbos = dict(re.findall(r"(\w+): ELBO (-[\d.]+)", capsys.readouterr().out))
    assert set(elbos) == {c.name for c in classes}
    assert all(float(elbo) > -45 for elbo in elbos.values())  # 64 fair coins are 44.4 nats


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
