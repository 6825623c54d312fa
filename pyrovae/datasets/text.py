"""Named data sets of text, as padded tokens `[N, T]` and lengths `[N]`.

They are the two arguments of :class:`pyrovae.models.SequenceVAE`'s programs; `vocabulary` turns
tokens back into text. Both are downloaded once, or read from `PYROVAE_DATA/text/`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from pyrovae.datasets.checks import check_choice
from pyrovae.datasets.dataset import Dataset
from pyrovae.datasets.fetch import fetch_bytes
from pyrovae.datasets.vocabulary import Level, Vocabulary

__all__ = ["Split", "names", "shakespeare"]

Split = Literal["train", "valid", "test", "all"]
SPLITS = ("train", "valid", "test", "all")

_NAMES = (
    "text/names.txt",
    ("https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",),
    "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
)
_SHAKESPEARE = (
    "text/tinyshakespeare.txt",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def names(split: Split = "train") -> Dataset:
    """32,033 first names in lower case, spelled letter by letter.

    A name is its letters and an end symbol, id 0: at most 16 tokens of 27. Names that belong to
    many people in different years are listed more than once (29,494 are different), so some of
    those held out are also seen in training; this is a sample of names, not a dictionary.

    Args:
        split: `"train"` (25,627), `"valid"` (3,203) or `"test"` (3,203), by one fixed permutation,
            or `"all"`.

    Returns:
        Tokens `[N, 16]`, lengths `[N]`, with a `vocabulary`.

    Raises:
        ConnectionError: no local copy and no network; says what to do.

    Example:
        >>> ds = names("test")  # doctest: +SKIP
        >>> ds.vocabulary.decode(*ds.args)[:2]  # doctest: +SKIP
        ['mia', 'aria']

    Source: names of the US Social Security Administration, as collected for `makemore` (Karpathy,
    2022).
    """
    check_choice("names: split", split, SPLITS)
    listed = fetch_bytes(*_NAMES).decode().split()
    vocabulary = Vocabulary.of(listed)
    tokens, lengths = vocabulary.encode(listed)
    rows = torch.from_numpy(_rows_of_permutation(len(listed), split))
    return Dataset((tokens[rows], lengths[rows]), name=f"names-{split}", vocabulary=vocabulary)


def shakespeare(
    split: Split = "train", level: Level = "character", window: int | None = None
) -> Dataset:
    """Forty thousand lines of Shakespeare's plays, about a million characters.

    Lines are split in the order of the text, which keeps a scene on one side: the first eight
    tenths of it train, then one tenth valid and one tenth test. Empty lines are left out.

    Args:
        split: `"train"` (26,382 lines), `"valid"` (3,236), `"test"` (3,159) or `"all"` (32,777).
        level: `"character"` (64 of them and an end symbol), or `"word"`: words and punctuation
            marks that occur at least twice in the training lines, any other is `"<unknown>"`.
        window: None for one datum a line, closed by an end symbol; or a number of tokens for
            running text cut into pieces of just so many, without end symbols (at character level
            the line break is then a symbol of its own).

    Returns:
        Tokens `[N, T]`, lengths `[N]`, with a `vocabulary`.

    Raises:
        ConnectionError: no local copy and no network; says what to do.

    Source: the `tinyshakespeare` file of char-rnn (Karpathy, 2015).
    """
    check_choice("shakespeare: split", split, SPLITS)
    check_choice("shakespeare: level", level, ("character", "word"))
    if window is not None and window < 1:
        raise ValueError(f"shakespeare: window must be at least 1 token, got {window}")
    lines = fetch_bytes(*_SHAKESPEARE).decode().splitlines()
    part = lines[_tenths(len(lines), split)]
    seen = lines[_tenths(len(lines), "train" if level == "word" else "all")]
    least = 2 if level == "word" else 1
    what = "lines" if window is None else f"windows{window}"
    name = f"shakespeare-{level}-{what}-{split}"
    if window is None:
        vocabulary = Vocabulary.of(seen, level, least)
        width = vocabulary.encode([line for line in lines if line])[0].shape[1]
        tokens, lengths = vocabulary.encode([line for line in part if line], width)
        return Dataset((tokens, lengths), name=name, vocabulary=vocabulary)
    vocabulary = Vocabulary.of(["\n".join(seen)], level, least, end=False)
    running = torch.tensor(vocabulary.ids("\n".join(part)))
    if len(running) < window:
        raise ValueError(
            f"shakespeare: window={window} is longer than the {len(running)} tokens of {split!r}"
        )
    tokens = running[: len(running) // window * window].reshape(-1, window)
    lengths = torch.full((len(tokens),), window)
    return Dataset((tokens, lengths), name=name, vocabulary=vocabulary)


def _rows_of_permutation(n: int, split: str) -> np.ndarray:
    order, tenth = np.random.RandomState(0).permutation(n), n // 10
    parts = {"test": order[:tenth], "valid": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    return np.sort(parts.get(split, order))


def _tenths(n: int, split: str) -> slice:
    first, second = n - 2 * (n // 10), n - n // 10
    parts = {"train": slice(first), "valid": slice(first, second), "test": slice(second, None)}
    return parts.get(split, slice(None))
