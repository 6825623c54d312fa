"""Text to token ids and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

__all__ = ["END", "UNKNOWN", "Level", "Vocabulary"]

Level = Literal["character", "word"]
END = "<end>"
UNKNOWN = "<unknown>"
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|\d+|[^\sA-Za-z\d]")


@dataclass(frozen=True)
class Vocabulary:
    """The symbols that token ids stand for: id i is `symbols[i]`.

    Where `"<end>"` is a symbol, it closes every encoded text and pads it; where `"<unknown>"` is
    one, it stands for what the vocabulary lacks.

    Args:
        symbols: all of them, each once.
        level: a text's symbols are its characters, or its words and punctuation marks.

    Example:
        >>> letters = Vocabulary(("<end>", "a", "n", "v"))
        >>> tokens, lengths = letters.encode(["anna", "eva".replace("e", "a")])
        >>> tokens.tolist(), lengths.tolist()
        ([[1, 2, 2, 1, 0], [1, 3, 1, 0, 0]], [5, 4])
        >>> letters.decode(tokens, lengths)
        ['anna', 'ava']
    """

    symbols: tuple[str, ...]
    level: Level = "character"

    @classmethod
    def of(
        cls, texts: Iterable[str], level: Level = "character", least: int = 1, end: bool = True
    ) -> Vocabulary:
        """Collect the symbols of texts that occur at least `least` times, in sorted order.

        The end symbol, if wanted, is id 0; if symbols are left out, the unknown one comes next.
        """
        counts = Counter(symbol for text in texts for symbol in _split(text, level))
        kept = sorted(symbol for symbol, count in counts.items() if count >= least)
        special = [END] * end + [UNKNOWN] * (len(kept) < len(counts))
        return cls((*special, *kept), level)

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} symbols, {self.level!r})"

    @property
    def end(self) -> int | None:
        """The id of the end symbol, if there is one."""
        return self._ids.get(END)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def encode(self, texts: Sequence[str], size: int = 0) -> tuple[Tensor, Tensor]:
        """Return padded tokens `[N, T]` and lengths `[N]`, the end symbol counted.

        Args:
            texts: the texts.
            size: the least T; it is that of the longest text where that is longer.

        Raises:
            ValueError: no text, an empty one without an end symbol, or a symbol that is not known.
        """
        if isinstance(texts, str):
            raise TypeError(f"Vocabulary: expected a list of texts, got one; try [{texts!r}]")
        closing = [] if self.end is None else [self.end]
        rows = [self.ids(text) + closing for text in texts]
        lengths = [len(row) for row in rows]
        if not lengths or min(lengths) == 0:
            raise ValueError(
                f"Vocabulary: expected texts of at least one token, got {list(texts)[:3]!r}"
            )
        pad, size = self.end or 0, max([size, *lengths])
        padded = [row + [pad] * (size - len(row)) for row in rows]
        return torch.tensor(padded), torch.tensor(lengths)

    def ids(self, text: str) -> list[int]:
        """Return the ids of one text, without an end symbol."""
        unknown = self._ids.get(UNKNOWN)
        found = [self._ids.get(symbol, unknown) for symbol in _split(text, self.level)]
        if None in found:
            symbol = _split(text, self.level)[found.index(None)]
            raise ValueError(
                f"Vocabulary: {symbol!r} in {text[:40]!r} is not one of the {len(self)} symbols, "
                "and none of them stands for unknown ones"
            )
        return found

    def decode(self, tokens: Tensor, lengths: Tensor | None = None) -> list[str]:
        """Return the texts of tokens `[N, T]`, end symbols left out."""
        if tokens.dim() == 1:
            tokens = tokens.unsqueeze(0)
        sizes = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
        space = "" if self.level == "character" else " "
        return [
            space.join(s for i in row[:size] if (s := self.symbols[i]) != END)
            for row, size in zip(tokens.tolist(), sizes, strict=True)
        ]


def _split(text: str, level: Level) -> list[str]:
    return list(text) if level == "character" else _WORD.findall(text)
