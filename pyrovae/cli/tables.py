"""Tables of a few rows, as text for a terminal and as Markdown for a file."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["markdown", "text"]


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a rule: the first to the left, the others to the right.

    Example:
        >>> print(text(["name", "nats"], [["a", "-1.25"], ["bc", "-10.00"]]))
        name |   nats
        -----+-------
        a    |  -1.25
        bc   | -10.00
    """
    widths = _widths(header, rows)
    rule = "-+-".join("-" * w for w in widths)
    lines = [_line(row, widths) for row in [header, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown.

    Example:
        >>> print(markdown(["name", "nats"], [["a", "-1.25"]]))
        | name |  nats |
        | :--- | ----: |
        | a    | -1.25 |
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = _widths(escaped[0], escaped[1:])
    rule = [
        ":" + "-" * (w - 1) if column == 0 else "-" * (w - 1) + ":"
        for column, w in enumerate(widths)
    ]
    lines = [_line(escaped[0], widths), _line(rule, widths)]
    lines += [_line(row, widths) for row in escaped[1:]]
    return "\n".join(f"| {line} |" for line in lines)


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(w) if column == 0 else cell.rjust(w)
        for column, (cell, w) in enumerate(zip(row, widths, strict=True))
    ]
    return " | ".join(cells)
