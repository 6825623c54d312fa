"""Rules of the house that a test can read: no global state, no unpickling, no machine's paths."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

STATE = """
import random, sys, warnings
import numpy, pyro, torch

def state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "pyro settings": pyro.settings.get(),
        "param store": sorted(pyro.get_param_store().keys()),
        "handler stack": len(pyro.poutine.runtime._PYRO_STACK),
        "warning filters": list(warnings.filters),
        "torch random state": torch.get_rng_state().tolist(),
        "numpy random state": numpy.random.get_state()[1].tolist(),
        "python random state": random.getstate(),
    }

before = state()
CHANGE
after = state()
print([name for name in before if before[name] != after[name]])
"""


def changed_by(statement):
    code = STATE.replace("CHANGE", statement)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_importing_the_package_changes_nothing_global():
    assert changed_by("import pyrovae") == []


def test_the_probe_sees_a_change():
    assert changed_by("torch.set_default_dtype(torch.float64); torch.rand(())") == [
        "default dtype",
        "torch random state",
    ]


def tracked_text():
    """Path and text of every file that git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.is_symlink():
            continue
        raw = path.read_bytes()
        if b"\0" not in raw:
            yield name, raw.decode("utf-8", errors="replace")


def test_no_file_holds_the_path_of_one_machine():
    of_a_machine = re.compile(r"(?:^|[^A-Za-z0-9_.])/(?:home|root|tmp|work|Users)/")
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_text()
        for number, line in enumerate(text.splitlines(), 1)
        if of_a_machine.search(line)
    ]
    assert not found, "\n".join(found)


def test_uniform_noise_is_drawn_in_one_helper():
    """A uniform of exactly 0 has an infinite logit: `noise` alone draws, in the open interval."""
    draws = re.compile(r"\btorch\.rand(?:_like)?\(|\.uniform_\(|\bnp\.random\b")
    folder = PACKAGE / "distributions"
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(folder.rglob("*.py"))
        if path.name != "noise.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if draws.search(line)
    ]
    assert not found, "\n".join(found)


def imports(tree):
    """Every module name that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_pickled(path):
    """A checkpoint is safetensors and JSON: nothing here may execute what a file says."""
    tree = parsed(path)
    roots = {name.split(".")[0] for name in imports(tree)}
    assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            assert called not in {"torch.load", "torch.save"}, f"line {node.lineno}: {called}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("allow_pickle") == "False", f"line {node.lineno}: np.load"


OWN_IMPORTS = {  # what a room may import besides the standard library and itself
    "bounds.py": {"torch"},
    "compile.py": {"torch"},
    "datasets": {"torch", "numpy", "sklearn", "pooch", "PIL"},
    "distributions": {"torch", "pyro.distributions"},
}


@pytest.mark.parametrize("room", OWN_IMPORTS)
def test_ground_floor_imports_little(room):
    allowed = {*OWN_IMPORTS[room], f"pyrovae.{room.removesuffix('.py')}"}
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] != room:
            continue
        for name in imports(parsed(path)):
            known = name.split(".")[0] in sys.stdlib_module_names or any(
                name == other or name.startswith(f"{other}.") for other in allowed
            )
            parent = any(other.startswith(f"{name}.") for other in allowed)  # from pyro import ...
            assert known or parent, f"{path.name} imports {name}; {room} may import {allowed}"


def test_poutine_has_one_home():
    """Everything known about running a program is in traces/."""
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] == "traces":
            continue
        for name in imports(parsed(path)):
            assert not name.startswith("pyro.poutine"), f"{path.relative_to(ROOT)} imports {name}"
