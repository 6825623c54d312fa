"""The benchmarks' harness: turns, medians, rows."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "_harness.py"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("_harness_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_contenders_take_turns_after_a_warm_up(harness):
    order = []
    contenders = {name: lambda name=name: order.append(name) for name in "ab"}
    harness.alternate(contenders, rounds=3, warmup=1)
    assert "".join(order) == "ab" + "ab" * 3


def test_a_measurement_is_divided_by_its_calls(harness):
    now = [0.0]

    def slow():
        now[0] += 2.0

    timings = harness.alternate({"slow": slow}, rounds=2, warmup=0, calls=5, clock=lambda: now[0])
    assert timings["slow"].seconds == [2.0, 2.0]


def test_median_and_spread_ignore_one_outlier(harness):
    record = harness.Timing([1.0, 2.0, 3.0, 4.0, 1000.0]).record()
    assert record["median"] == 3.0
    assert (record["quartile_low"], record["quartile_high"]) == (2.0, 4.0)
    assert (record["min"], record["max"], record["rounds"]) == (1.0, 1000.0, 5)


def test_no_measurement_is_refused(harness):
    with pytest.raises(ValueError, match="at least 1"):
        harness.alternate({"a": lambda: None}, rounds=0)


def test_rows_are_appended_with_their_environment(harness, tmp_path):
    for value in (1.5, math.nan):
        row = {"nats": torch.tensor([value]), "time": harness.Timing([1.0])}
        file = harness.append_row("question", row, tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["nats"] for row in rows] == [[1.5], [None]]
    assert rows[0]["time"]["median"] == 1.0
    assert rows[0]["environment"]["versions"]["torch"] == torch.__version__
    assert {"commit", "uncommitted_changes", "device", "threads", "date"} <= set(
        rows[0]["environment"]
    )


def test_table_has_ratios_to_the_first(harness):
    lines = harness.table(
        {"ours": harness.Timing([0.002]), "peer": harness.Timing([0.005])}
    ).splitlines()
    assert lines[1].split()[-1] == "1.00"
    assert lines[2].split()[-1] == "2.50"
