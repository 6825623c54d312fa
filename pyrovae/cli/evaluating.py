"""`pyrovae evaluate`: log p(x) with its errors, and whether z is in use, for a saved run."""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from pyrovae.checkpoint import write_atomic
from pyrovae.cli.data import choose, load_split
from pyrovae.cli.settings import read_settings
from pyrovae.collapse import CollapseReport, collapse_report
from pyrovae.datasets import NAMES, Dataset
from pyrovae.evidence import Evidence, log_evidence
from pyrovae.run import Run, load_run

__all__ = ["Evaluation", "evaluate", "evaluate_run", "numbers"]

_PER_DATUM = ("log_px", "std_error", "ess", "khat", "elbo")


@dataclass
class Evaluation:
    """What was found on which rows."""

    evidence: Evidence
    collapse: CollapseReport
    data: dict[str, Any]
    rows: Tensor
    seconds: float

    def summary(self) -> str:
        """A few printable lines."""
        size, drawn = self.data["size"], self.data["binarize"] == "dynamic"
        part = (
            f"{len(self.rows):,} of {size:,} rows" if len(self.rows) < size else f"{size:,} rows"
        )
        head = f"{self.data['name']}: {part}{', binarized once (seed 0)' if drawn else ''}"
        return "\n".join([head, self.evidence.summary(), self.collapse.summary()])

    def record(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON; what is not finite is null."""
        evidence = self.evidence
        return {
            "data": self.data,
            "particles": evidence.particles,
            "seed": evidence.seed,
            "seconds": self.seconds,
            "mean": {
                "log_px": numbers(evidence.mean),
                "std_error": numbers(evidence.mean_std_error),
                "monte_carlo_error": numbers(evidence.monte_carlo_error),
                "elbo": numbers(evidence.elbo.mean()),
            },
            "lower_bound": evidence.lower_bound,
            "warnings": evidence.warnings(),
            "collapse": {
                "kl": numbers(self.collapse.kl),
                "kl_std_error": numbers(self.collapse.kl_std_error),
                "kl_per_unit": numbers(self.collapse.kl_per_unit),
                "unit_variance": numbers(self.collapse.unit_variance),
                "active_units": self.collapse.active_units,
                "units": self.collapse.units,
                "mutual_information": numbers(self.collapse.mutual_information),
                "mutual_information_std_error": numbers(
                    self.collapse.mutual_information_std_error
                ),
                "marginal_kl": numbers(self.collapse.marginal_kl),
                "reference": self.collapse.reference,
                "verdict": self.collapse.verdict,
            },
            "per_datum": {
                "row": self.rows.tolist(),
                **{name: numbers(getattr(evidence, name)) for name in _PER_DATUM},
            },
        }


def evaluate_run(
    run: Run,
    data: Dataset,
    *,
    particles: int,
    seed: int,
    limit: int | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Evidence and collapse of a run; dynamic binarization is drawn once, with seed 0."""
    began = time.perf_counter()
    rows = choose(len(data), limit)
    device = next((p.device for p in run.params.values()), data.device)
    args = tuple(x[rows].to(device) for x in data.realize(0)[0])
    with warnings.catch_warnings():  # what it warns of stands in the summary
        warnings.filterwarnings("ignore", message="log_evidence:", category=UserWarning)
        evidence = log_evidence(
            run.model,
            run.guide,
            *args,
            particles=particles,
            seed=seed,
            chunk=chunk,
            progress=progress,
        )
    reference = {"reference": 0} if len(rows) == 1 else {}  # one datum has no mutual information
    collapse = collapse_report(run.model, run.guide, *args, **reference)
    return Evaluation(evidence, collapse, data.describe(), rows, time.perf_counter() - began)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    particles: Annotated[int, typer.Option(help="K, draws of z a datum.", min=1)] = 5000,
    data: Annotated[
        str | None,
        typer.Option(help="Other data: a name or a file. [default: what the run was trained on]"),
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    limit: Annotated[
        int | None, typer.Option(help="At most so many rows, chosen once at random.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    chunk: Annotated[
        int | None,
        typer.Option(help="Rows a model call; bounds memory, not the answer.", min=1),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Print log p(x), ELBO and collapse of a run on held-out data; write evidence.json into it."""
    trained = load_run(run)
    test = load_split(*_data_of(run, trained, data), split)
    found = evaluate_run(
        trained,
        test,
        particles=particles,
        seed=seed,
        limit=limit,
        chunk=chunk,
        progress=False if quiet else None,
    )
    typer.echo(found.summary())
    file = run / "evidence.json"
    write_json(file, {"run": str(run), "split": split} | found.record())
    typer.echo(f"every number per datum: {file}")


evaluate.epilog = """\b
Examples:
  pyrovae evaluate runs/digits-normal
  pyrovae evaluate runs/mnist --limit 1000 --particles 1000    a quick look
  pyrovae evaluate runs/mnist --split train                    is it overfitted?"""


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file at once or not at all."""
    write_atomic(file, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def numbers(values: Any) -> Any:
    """Tensors and numbers, in lists and dictionaries, as JSON has them; not finite: None."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().tolist()
    if isinstance(values, dict):
        return {name: numbers(v) for name, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [numbers(v) for v in values]
    return values if not isinstance(values, float) or math.isfinite(values) else None


def _data_of(folder: Path, run: Run, other: str | None) -> tuple[str, str | None]:
    """Name and binarization of the data to evaluate on."""
    kept = read_settings(folder)
    trained = run.config["data"]
    binarize = kept.get("binarize") or trained.get("binarize") or "none"
    if other is not None:
        return other, binarize
    if "data" in kept:
        return kept["data"], binarize
    name = str(trained["name"]).rpartition("-")[0]
    if name in NAMES:
        return name, binarize
    raise ValueError(
        f"{folder}: it was trained on {trained['name']!r}, which cannot be found by name. "
        "Try: --data, a name or a file."
    )
