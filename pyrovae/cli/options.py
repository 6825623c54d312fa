"""The options that `train` and `compare` share, each a type that carries its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyrovae.cli.data import NAMED
from pyrovae.distributions import names
from pyrovae.models.likelihoods import likelihood_names

_DATA, _MODEL, _TRAINING, _RUN = "Data", "Model", "Training", "Run"

Data = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(NAMED)}, or a .npy or .npz file (file.npz:key takes one array of "
        "several; arrays called train and test are the split, else a fifth of the rows is held "
        "out)."
    ),
]
Binarize = Annotated[
    str | None,
    typer.Option(
        help="dynamic (anew for each minibatch), fixed (once) or none. "
        "[default: dynamic for mnist and omniglot, none elsewhere]"
    ),
]
BinarizeCompared = Annotated[
    str | None,
    typer.Option(
        "--binarize",
        help="dynamic, fixed or none, as in train. [default: dynamic for digits and mnist, where "
        "log p(x) can be trusted; none elsewhere]",
    ),
]
Posterior = Annotated[
    str,
    typer.Option(
        help=f"Family of q(z|x): {', '.join(names())}. student-t(df=5) fixes a parameter, "
        "mixture(normal, 3) mixes three. Its prior is chosen to fit."
    ),
]
Posteriors = Annotated[
    str, typer.Option(help=f"Families of q(z|x), separated by commas: {', '.join(names())}.")
]
Prior = Annotated[
    str | None,
    typer.Option(
        help="p(z) of each unit: a family, if need be with its numbers: laplace, gamma(0.3, 0.3). "
        "[default: what fits the posterior's support and tails]"
    ),
]
Latent = Annotated[
    int | None,
    typer.Option(
        help="Dimensions of z. [default: 10 on digits, 50 on mnist and omniglot, else 20]", min=1
    ),
]
Hidden = Annotated[
    str, typer.Option(help="Widths of the encoder's hidden layers; the decoder mirrors them.")
]
Likelihood = Annotated[
    str | None,
    typer.Option(
        help=f"p(x|z): {', '.join(likelihood_names())}; binomial:16, normal_fixed:0.1, made:500 "
        "(hidden units) and window:3 (radius) carry their argument. [default: what fits the data]"
    ),
]
Objective = Annotated[str, typer.Option(help="elbo or iwae.")]
ObjectiveParticles = Annotated[
    int | None,
    typer.Option(
        "--particles", help="Draws of z a datum in training. [default: 1; iwae 5]", min=1
    ),
]
KLWeight = Annotated[float, typer.Option(help="Weight of the KL in the ELBO.", min=0.0)]
WarmUp = Annotated[
    float | None,
    typer.Option(help="Epochs in which --kl-weight (or --capacity) is reached from 0.", min=0.0),
]
WarmUpShape = Annotated[
    str,
    typer.Option(help="linear, sigmoid or cyclical (four times, each half of it rising)."),
]
TargetKL = Annotated[
    float | None,
    typer.Option("--target-kl", help="Steer the KL weight, from 0 to 1, to so many nats of KL."),
]
Capacity = Annotated[
    float | None,
    typer.Option(
        help="Penalize the distance of the KL from so many nats, --kl-weight times.", min=0.0
    ),
]
FreeBits = Annotated[float, typer.Option(help="Nats of KL at no cost.", min=0.0)]
FreeBitsPer = Annotated[
    str,
    typer.Option(help="What --free-bits are for: site (all of z), unit, or a number of units."),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the data. [default: 400 on digits, else 100]", min=1),
]
BatchSize = Annotated[int, typer.Option(help="Data a step.", min=1)]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Learning rate. [default: 0.003 on digits, else 0.001; adagrad 0.02]"),
]
Schedule = Annotated[
    str,
    typer.Option(
        help="constant; cosine, down to 0 at the last epoch; burda, the eight stages of the IWAE "
        "paper scaled to the epochs, down to a tenth."
    ),
]
EMSchedule = Annotated[
    str,
    typer.Option(
        "--schedule",
        help="Which of encoder and decoder steps when: joint; alternating(5, 1), steps of each; "
        "converge(tolerance=1e-4), encoder to convergence; aggressive, aggressive(text), "
        "aggressive(image), aggressive(stop=3), many encoder steps a step while z learns (needs "
        "--valid); semi-amortized(10).",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Stop training at the first epoch's end past so many minutes."),
]
Optimizer = Annotated[str, typer.Option(help="adam or adagrad.")]
ClipNorm = Annotated[
    float | None, typer.Option(help="Clip the gradient (nats a datum) at this norm.")
]
Valid = Annotated[
    float | None,
    typer.Option(help="Fraction of the training data held out; its ELBO is shown every epoch."),
]
Patience = Annotated[
    int | None,
    typer.Option(help="Stop after so many epochs without a better --valid ELBO; keep the best."),
]
Seed = Annotated[int, typer.Option(help="Seed of weights, batches and noise.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads. [default: 1 on digits, else as torch does]", min=1)
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. [default: a new one in runs/]")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out; its settings need no repeating."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the result only.")]
EvaluationParticles = Annotated[
    int,
    typer.Option("--evaluate", help="Draws of z a datum for log p(x) at the end; 0: none.", min=0),
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Evaluate on at most so many test rows, chosen once at random; 0: all.", min=0
    ),
]
