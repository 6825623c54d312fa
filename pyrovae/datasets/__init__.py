r"""Data sets: tensors on a device, minibatches as index tensors, binarization by choice.

A model of N data is trained on minibatches: with :math:`i_1 \dots i_B` a part of a permutation of
:math:`0 \dots N-1`, the batch is :math:`x_{i_1} \dots x_{i_B}` and its objective counts N/B times.
Data that fit in memory need no worker processes for that: :func:`minibatches` yields the index
tensors, :meth:`Dataset.take` gathers the rows on the device where they lie.

Grey pixels are a choice to make. A Bernoulli has no density for them, so intensities
:math:`p \in [0, 1]` are either binarized, :math:`x \sim \mathrm{Bernoulli}(p)`, anew for each
minibatch (`"dynamic"`: the model then fits the mean of :math:`\log p(x)` over binarizations, which
also guards against overfitting) or once from a seed (`"fixed"`), or kept (`None`) for a likelihood
that has grey values, such as a binomial over counts or a normal. log p(x) under different choices
are numbers about different data; :meth:`Dataset.describe` says which it was.

Texts are tokens: padded ids `[N, T]` with lengths `[N]`, and a :class:`Vocabulary` that says what
they stand for.

Checks come first: NaN and inf, empty or ragged data, images of bytes, values outside a
likelihood's support are refused with the row, the feature and what to try
(:mod:`pyrovae.datasets.checks`).
"""

from pyrovae.datasets.checks import check_choice, check_support, check_values
from pyrovae.datasets.convert import as_dataset, from_file
from pyrovae.datasets.dataset import Dataset, minibatches
from pyrovae.datasets.lagging import lagging_synthetic
from pyrovae.datasets.named import NAMES, digits, load, mnist
from pyrovae.datasets.omniglot import build_omniglot, omniglot
from pyrovae.datasets.text import names, shakespeare
from pyrovae.datasets.vocabulary import Vocabulary

__all__ = [
    "NAMES",
    "Dataset",
    "Vocabulary",
    "as_dataset",
    "build_omniglot",
    "check_choice",
    "check_support",
    "check_values",
    "digits",
    "from_file",
    "lagging_synthetic",
    "load",
    "minibatches",
    "mnist",
    "names",
    "omniglot",
    "shakespeare",
]
