"""The `pyrovae` command: train a VAE, say how good it is, compare posteriors.

Three commands, each a thin layer over what Python has: ``train`` is :func:`pyrovae.fit`,
``evaluate`` is :func:`pyrovae.log_evidence` and :func:`pyrovae.collapse_report` on a saved run,
``compare`` is both for several posteriors on the same data, seed and test rows, with paired
differences. What a command does is in its own file; here are only the entry and its manners:

* a mistake of the user's is one line on standard error and exit code 2, without a traceback, and
  an unknown name comes with the nearest known one;
* data that cannot be fetched or a training that diverges is one line and exit code 1;
* an interrupt is exit code 130, after the checkpoint's whereabouts have been said.

Setting the environment variable ``PYROVAE_TRACEBACK`` shows the traceback instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
import typer.core

from pyrovae.cli.comparing import compare
from pyrovae.cli.evaluating import evaluate
from pyrovae.cli.training import train

__all__ = ["app", "main"]

_EXAMPLES = """\b
Examples:
  pyrovae train                                     a VAE on 8x8 digits, half a minute
  pyrovae train --posterior Laplace --epochs 300
  pyrovae train --data mnist --minutes 15 --out runs/mnist
  pyrovae train --data faces.npy --likelihood normal --valid 0.1 --patience 10
  pyrovae train --out runs/mnist --resume           go on with a run
  pyrovae evaluate runs/mnist --particles 5000
  pyrovae compare --posteriors Normal,Laplace,Logistic --out runs/three

\b
MNIST is downloaded once; PYROVAE_DATA=path/to/data names a folder of local copies.
PYROVAE_TRACEBACK=1 shows where an error came from.
`pyrovae COMMAND --help` lists the options of a command."""


class _Group(typer.core.TyperGroup):
    """Commands whose errors are one line."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        try:
            code = super().main(given or ["--help"], *rest, **options)
        except Exception as error:
            if os.environ.get("PYROVAE_TRACEBACK"):
                raise
            message, code = _in_one_line(error)
            typer.echo(f"pyrovae: {message}", err=True)
        sys.exit(code if isinstance(code, int) else 0)


def _in_one_line(error: Exception) -> tuple[str, int]:
    """The message and exit code of an error that is the user's to mend; raises a bug again."""
    if hasattr(error, "format_message"):  # the command line's own: unknown options and the like
        text, code = error.format_message(), getattr(error, "exit_code", 2)
    elif isinstance(error, (ConnectionError, FloatingPointError)):
        text, code = str(error), 1
    elif isinstance(error, (ValueError, TypeError, OSError)):
        text, code = str(error), 2
    else:
        raise error
    return " ".join(text.split()), code


app = typer.Typer(
    cls=_Group,
    help="Train a VAE and say honestly how good it is: ELBO, and log p(x) with its error.",
    epilog=_EXAMPLES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (train, evaluate, compare):
    app.command(epilog=getattr(command, "epilog", None))(command)


def main() -> None:
    """Run the `pyrovae` command on the arguments of this process."""
    app(prog_name="pyrovae")
