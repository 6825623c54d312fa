"""Schedules as text: `joint`, `alternating(5, 1)`, `aggressive(text, patience=5)`.

A command line and a saved run have text only. The grammar is a name and settings::

    schedule  :=  name  |  name "(" [item {"," item}] ")"
    item      :=  value  |  setting "=" value

with values in the order of the constructor's arguments. A value is a number, `yes` or `no`, or a
word. `aggressive(text)` and `aggressive(image)` start from the paper's settings
(:meth:`~pyrovae.Aggressive.paper`). Nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any

from pyrovae.em.schedules import Aggressive, Alternating, Converge, Joint, Schedule, SemiAmortized

__all__ = ["SCHEDULES", "parse_schedule", "spell_schedule"]

SCHEDULES: dict[str, type[Schedule]] = {
    "joint": Joint,
    "alternating": Alternating,
    "converge": Converge,
    "aggressive": Aggressive,
    "semi-amortized": SemiAmortized,
}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


def parse_schedule(text: str) -> Schedule:
    """The schedule that a text describes.

    Raises:
        ValueError: An unknown name or setting (says the nearest known one), or values that the
            schedule refuses.

    >>> parse_schedule("alternating(5, m_steps=2)")
    Alternating(e_steps=5, m_steps=2)
    """
    found = re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*(?:\(([^()]*)\))?\s*", text)
    if found is None:
        raise ValueError(
            f"schedule {text!r}: expected a name and perhaps settings, such as joint, "
            f"alternating(5, 1), converge(tolerance=1e-4), aggressive(text) or aggressive(stop=5)."
        )
    family = SCHEDULES[_near(found[1].lower().replace("_", "-"), SCHEDULES, "schedule")]
    items = [item.strip() for item in (found[2] or "").split(",") if item.strip()]
    make: Any = family
    if family is Aggressive and items and items[0] in ("text", "image"):
        kind = items.pop(0)
        make = lambda **settings: Aggressive.paper(kind, **settings)  # noqa: E731
    elif family is Aggressive and items and items[0].isalpha():
        raise ValueError(
            f"schedule {text!r}: {items[0]!r} is not known. Expected: aggressive(text) or "
            f"aggressive(image), the paper's settings, or settings by name, aggressive(stop=3)."
        )
    try:
        return make(**_settings(family, items, text))
    except TypeError as error:
        raise ValueError(f"schedule {text!r}: {error}.") from None


def spell_schedule(schedule: Schedule) -> str:
    """The text of a schedule: its name, and the settings that are not the usual ones.

    A function among the settings is given by its name, which :func:`parse_schedule` cannot read.

    >>> spell_schedule(Alternating(5))
    'alternating(e_steps=5)'
    """
    names = {family: name for name, family in SCHEDULES.items()}
    name = names.get(type(schedule), type(schedule).__name__)
    if not dataclasses.is_dataclass(schedule):
        return name
    parts = []
    for field in dataclasses.fields(schedule):
        value = getattr(schedule, field.name)
        if value != field.default:
            parts.append(f"{field.name}={_spelled(value)}")
    return f"{name}({', '.join(parts)})" if parts else name


def _settings(family: type[Schedule], items: list[str], text: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(family)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    named = False
    for i, item in enumerate(items):
        name, equals, value = (part.strip() for part in item.rpartition("="))
        named = named or bool(equals)
        if not equals:
            if i >= len(fields) or named:
                raise ValueError(
                    f"schedule {text!r}: {item!r} has no place; give its name, one of "
                    f"{', '.join(fields)}."
                )
            name = list(fields)[i]
        name = _near(name, fields, f"schedule {text!r}: setting")
        if name in settings:
            raise ValueError(f"schedule {text!r}: the setting {name!r} is given twice.")
        settings[name] = _value(value, fields[name].default)
    return settings


def _value(text: str, usual: Any) -> Any:
    if text.lower() in ("yes", "true", "no", "false"):
        return text.lower() in ("yes", "true")
    if text.lower() == "inf":
        return float("inf")
    if _NUMBER.fullmatch(text):
        number = float(text)
        whole = number.is_integer() and not isinstance(usual, float)
        return int(number) if whole else number
    return text


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return getattr(value, "__qualname__", str(value))


def _near(name: str, known: Any, where: str) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
    raise ValueError(
        f"{where} {name!r} is not known; did you mean {near!r}? Known: {', '.join(known)}."
    )
