"""Numbers as people read them: digits that mean something, a true minus sign, units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"
LONGEST_UNIT = 12  # characters of a unit that is repeated after every number


def decimals(values: Iterable[float | None], digits: int = 3) -> int:
    """Decimal places that give the largest of ``values`` this many significant digits; 0 to 6."""
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    return min(6, max(0, digits - 1 - math.floor(math.log10(largest)))) if largest > 0 else digits - 1


def number(value: float | None, places: int | None = None, sign: bool = False) -> str:
    """``value`` with ``places`` decimals (three significant digits when None); an en dash for None."""
    if value is None:
        return "\N{EN DASH}"
    places = decimals([value]) if places is None else places
    text = f"{abs(value):,.{places}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if not any(character in "123456789" for character in text):
        return text
    return f"{MINUS if value < 0 else '+' if sign else ''}{text}"


def with_unit(text: str, unit: str) -> str:
    """``text`` followed by its unit; the per cent sign stands close, and a long unit is left to the metric's name."""
    if unit == "%":
        return f"{text}%"
    return f"{text}{NO_BREAK}{unit}" if short_unit(unit) else text


def short_unit(unit: str) -> str:
    """``unit`` where it is short enough to be repeated; else nothing, and the metric's name says it."""
    return unit if len(unit) <= LONGEST_UNIT else ""


def difference_unit(unit: str) -> str:
    """The unit of a difference of two values: per cent differ by percentage points."""
    return "points" if unit == "%" else unit


def spread_text(mean: float, spread: float | None, unit: str, places: int | None = None) -> str:
    """``mean ± standard deviation``; the mean alone where there is one run."""
    if spread is None:
        return with_unit(number(mean, places), unit)
    places = (decimals([spread], 2) if spread else decimals([mean])) if places is None else places
    return with_unit(f"{number(mean, places)}{NO_BREAK}±{NO_BREAK}{number(spread, places)}", unit)


def arm_places(system: Mapping[str, Any], metric: str) -> int | None:
    """Decimals that all arms of a system share for a metric; None where no spread is known."""
    spreads = [arm["metrics"][metric]["spread"] for arm in system["arms"] if metric in arm["metrics"]]
    return decimals(spreads, 2) if any(spreads) else None


def interval_text(comparison: Mapping[str, Any]) -> str:
    """The interval of a comparison, ``lower to upper``; empty with one pair."""
    if comparison["lower"] is None:
        return ""
    places = difference_places(comparison)
    return f"{number(comparison['lower'], places, sign=True)} to {number(comparison['upper'], places, sign=True)}"


def difference_places(comparison: Mapping[str, Any]) -> int:
    """Decimals that a difference and its interval share."""
    return decimals([comparison["mean"], comparison["lower"], comparison["upper"]])


def difference_text(comparison: Mapping[str, Any], unit: str) -> str:
    """The mean paired difference, signed, with its unit."""
    return with_unit(number(comparison["mean"], difference_places(comparison), sign=True), difference_unit(unit))


def duration(seconds: float) -> str:
    """A time span: ``0.4 s``, ``38 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 10:
        return f"{seconds:.1f}{NO_BREAK}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NO_BREAK}s"
    if whole < 3600:
        return f"{whole // 60}{NO_BREAK}min {whole % 60}{NO_BREAK}s"
    return f"{whole // 3600}{NO_BREAK}h {whole % 3600 // 60}{NO_BREAK}min"


def memory(size: float) -> str:
    """A number of bytes in binary units."""
    return f"{number(size / 2**20, 0)}{NO_BREAK}MiB" if size < 2**30 else f"{size / 2**30:.2f}{NO_BREAK}GiB"


def spoken(name: str) -> str:
    """The name of a metric or a curve as people read it: ``top1_error`` is ``top1 error``."""
    return name.replace("_", " ")


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{number(count, 0)}{NO_BREAK}{noun}{'' if count == 1 else 's'}"


def setting_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line, ``name value, …``."""
    return ", ".join(f"{spoken(name)} {_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}".replace("-", MINUS)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "(" + setting_text(value) + ")"
    return str(value)
