"""What every benchmark shares: fair timing, and a row that says what was measured where.

Contenders take turns, A B C A B C ..., in one process: what the machine does meanwhile hits them
all. A contender is called ``warmup`` times first, so that compiling and first allocations are not
in the numbers. What is reported is the median with its spread (quartiles, least and greatest),
never the best.

A row is appended to ``benchmarks/results/NAME.jsonl``: numbers, arguments, versions, git commit
(and whether the tree had uncommitted changes), device, threads, date. Rows are never rewritten;
compare rows of one machine only.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["RESULTS", "Timing", "alternate", "append_row", "environment", "table"]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "pyro-ppl", "numpy", "numpyro", "jax", "pythae")


class Timing:
    """Times of one contender, in seconds a call."""

    def __init__(self, seconds: list[float]) -> None:
        if not seconds:
            raise ValueError("Timing: no measurement.")
        self.seconds = sorted(seconds)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the calls took less than the first, a quarter more than the second."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def record(self) -> dict[str, float | int]:
        """Ready for JSON."""
        low, high = self.quartiles
        return {
            "median": self.median,
            "quartile_low": low,
            "quartile_high": high,
            "min": self.seconds[0],
            "max": self.seconds[-1],
            "rounds": len(self.seconds),
        }


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    warmup: int = 1,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each contender `rounds` times, in turns.

    Args:
        contenders: name -> what is called, without arguments.
        rounds: measurements of each.
        warmup: calls of each before the first measurement.
        calls: calls a measurement; its time is divided by them.
        clock: seconds.

    Returns:
        name -> seconds a call.
    """
    if rounds < 1 or calls < 1:
        raise ValueError(f"alternate: rounds and calls must be at least 1, got {rounds}, {calls}.")
    for _ in range(warmup):
        for call in contenders.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            _synchronize()
            began = clock()
            for _ in range(calls):
                call()
            _synchronize()
            seconds[name].append((clock() - began) / calls)
    return {name: Timing(times) for name, times in seconds.items()}


def environment() -> dict[str, Any]:
    """Versions, commit, device and threads: what a number needs to be understood later."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "versions": versions,
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def append_row(name: str, row: Mapping[str, Any], folder: Path | None = None) -> Path:
    """Append a row, with the environment, to `NAME.jsonl`; what is not finite becomes null."""
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.jsonl"
    line = json.dumps({**_plain(row), "environment": environment()}, allow_nan=False)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    return file


def table(timings: Mapping[str, Timing], unit: float = 1e-3, name: str = "ms") -> str:
    """Medians with quartiles, and how many times the first contender's median each one is."""
    first = next(iter(timings.values())).median
    width = max(len(n) for n in timings)
    lines = [f"{'':<{width}}  {'median ' + name:>12}  {'quartiles':>21}  {'ratio':>6}"]
    for contender, timing in timings.items():
        low, high = (q / unit for q in timing.quartiles)
        lines.append(
            f"{contender:<{width}}  {timing.median / unit:>12.3f}  {low:>9.3f} - {high:>9.3f}  "
            f"{timing.median / first:>6.2f}"
        )
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, Timing):
        return value.record()
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _git(*arguments: str) -> str | None:
    """What git says about this clone, or None where there is no git or no clone."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """The processor's model where the system says it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
