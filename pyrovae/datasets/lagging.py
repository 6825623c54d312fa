r"""Synthetic sentences with a known latent: the data of the lagging-inference paper.

He, Spokoyny, Neubig and Berg-Kirkpatrick (2019, arXiv:1901.05534). A sentence is written by an
LSTM with random weights that reads a z of four clusters:

.. math::

    z \sim \tfrac14 \sum_{m \in \{-2, 2\}^2} \mathcal N(m, I), \qquad
    c_0 = W z, \quad h_0 = \tanh(c_0), \qquad w_1 \sim U\{0 \dots 999\},

    h_t, c_t = \mathrm{LSTM}\big([e(w_t); z], h_{t-1}, c_{t-1}\big), \qquad
    w_{t+1} \sim \mathrm{Categorical}\big(\mathrm{softmax}(A h_t + C z)\big),

embeddings and states of width 100, every weight :math:`U(-1, 1)` but those of C,
:math:`U(-5, 5)`. There are 20,000 sentences of ten words. The law is the paper's; the random
stream is numpy's, so the sentences are not its very own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from pyrovae.datasets.checks import check_choice
from pyrovae.datasets.dataset import Dataset
from pyrovae.datasets.text import SPLITS, Split
from pyrovae.datasets.vocabulary import Vocabulary

__all__ = ["lagging_synthetic"]

WORDS, WIDTH, LATENT, LENGTH = 1000, 100, 2, 10
SENTENCES, TRAIN, VALID = 20_000, 16_000, 2_000
CENTRES = 2.0 * np.array([[-1, -1], [1, 1], [-1, 1], [1, -1]])
_CHUNK = 2_000  # sentences written at once


def lagging_synthetic(split: Split = "train", seed: int = 19950927) -> Dataset:
    """20,000 sentences of ten words out of 1,000, written by a random LSTM from a 2-D z.

    Args:
        split: `"train"` (the first 16,000), `"valid"` (2,000), `"test"` (the last 2,000), `"all"`.
        seed: of weights and sentences; the paper's by default.

    Returns:
        Tokens `[N, 10]`, lengths `[N]` (all 10), with a `vocabulary`; `labels` `[N]` are the
        clusters 0..3 that z was drawn from.

    Example:
        >>> lagging_synthetic("test")
        Dataset('lagging_synthetic-test', 2000 x (10,))

    Source: He et al. (2019), arXiv:1901.05534, section 4.1.
    """
    check_choice("lagging_synthetic: split", split, SPLITS)
    words, clusters = _corpus(seed)
    ends = {"train": (0, TRAIN), "valid": (TRAIN, TRAIN + VALID), "test": (TRAIN + VALID, None)}
    rows = slice(*ends.get(split, (None,)))
    tokens = torch.from_numpy(words[rows].copy())
    return Dataset(
        (tokens, torch.full((len(tokens),), LENGTH)),
        name=f"lagging_synthetic-{split}",
        seed=seed,
        labels=torch.from_numpy(clusters[rows].copy()),
        vocabulary=Vocabulary(tuple(map(str, range(WORDS))), "word"),
    )


@dataclass(frozen=True)
class Writer:
    """The random LSTM: its weights in torch's layout, gates in the order i, f, g, o."""

    embed: np.ndarray  # [V, E]
    w_in: np.ndarray  # [4 H, E + D]
    w_state: np.ndarray  # [4 H, H]
    bias_in: np.ndarray  # [4 H]
    bias_state: np.ndarray  # [4 H]
    to_cell: np.ndarray  # [H, D]
    from_state: np.ndarray  # [V, H]
    from_latent: np.ndarray  # [V, D]

    @classmethod
    def draw(cls, rng: np.random.RandomState) -> Writer:
        """Draw all weights."""
        shapes = (
            (WORDS, WIDTH),
            (4 * WIDTH, WIDTH + LATENT),
            (4 * WIDTH, WIDTH),
            (4 * WIDTH,),
            (4 * WIDTH,),
            (WIDTH, LATENT),
            (WORDS, WIDTH),
        )
        weights = [rng.uniform(-1, 1, shape) for shape in shapes]
        return cls(*weights, rng.uniform(-5, 5, (WORDS, LATENT)))

    def start(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State and cell `[n, H]` before the first word."""
        cell = z @ self.to_cell.T
        return np.tanh(cell), cell

    def step(
        self, words: np.ndarray, z: np.ndarray, state: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits of the next word `[n, V]` after `words` `[n]`, and the new state and cell."""
        read = np.concatenate([self.embed[words], z], 1)
        gates = read @ self.w_in.T + state @ self.w_state.T + self.bias_in + self.bias_state
        i, f, g, o = np.split(gates, 4, 1)
        cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        state = _sigmoid(o) * np.tanh(cell)
        return state @ self.from_state.T + z @ self.from_latent.T, state, cell

    def write(self, z: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """Sentences `[n, 10]` for z `[n, 2]`."""
        words = [rng.randint(0, WORDS, len(z))]
        state, cell = self.start(z)
        while len(words) < LENGTH:
            logits, state, cell = self.step(words[-1], z, state, cell)
            words.append(_categorical(logits, rng))
        return np.stack(words, 1)


@lru_cache(maxsize=2)
def _corpus(seed: int, sentences: int = SENTENCES) -> tuple[np.ndarray, np.ndarray]:
    """All sentences `[N, 10]` and their clusters `[N]`."""
    rng = np.random.RandomState(seed)
    writer = Writer.draw(rng)
    clusters = rng.randint(0, 4, sentences)
    z = CENTRES[clusters] + rng.standard_normal((sentences, LATENT))
    parts = [writer.write(z[i : i + _CHUNK], rng) for i in range(0, sentences, _CHUNK)]
    return np.concatenate(parts), clusters


def _categorical(logits: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """One draw a row, by inversion."""
    below = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    u = rng.random_sample((len(logits), 1)) * below[:, -1:]
    return np.minimum((below <= u).sum(1), logits.shape[1] - 1)


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * a))
