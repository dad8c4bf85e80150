"""How numbers are written for people: one way in the page, the model card and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "–"


def score(value: float | None) -> str:
    """An AUROC with three decimals; a dash where there is none."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.3f}"


def epsilon(value: float | None) -> str:
    """An epsilon with two decimals, rounded up: a budget must not look smaller than it is."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞"
    # Rounding away float dust first keeps 8.0 from becoming 8.01.
    return f"{math.ceil(round(value * 100, 6)) / 100:.2f}"


def unbroken(text: str) -> str:
    """Text whose formulas stay on one line: no break within `ε = 4.57` and `(ε, δ)`."""
    for symbol in ("ε", "δ", "N", "C"):
        text = text.replace(f"{symbol} = ", f"{symbol}\u00a0=\u00a0")
    return text.replace("(ε, δ)", "(ε,\u00a0δ)")


def long_worded(text: str) -> bool:
    """Whether a word is too long to stay whole in a table's cell."""
    return any(len(word) > 24 for word in text.split())


def limit(value: float) -> str:
    """A configured bound as it was written: 8, 0.5."""
    return f"{value:g}"


def small(value: float | None) -> str:
    """A delta as a power of ten where it is one: 10⁻⁵, else 3×10⁻⁶."""
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    factor = mantissa.removesuffix(".0")
    return power if factor == "1" else f"{factor}×{power}"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def size(value: int) -> str:
    """Bytes in a unit that keeps the number short."""
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def large(value: float) -> str:
    """A number of operations with three digits and a decimal prefix: 4.29 M."""
    amount, prefixes = float(value), ["", "k", "M", "G", "T", "P"]
    while amount >= 1000 and len(prefixes) > 1:
        amount, prefixes = amount / 1000, prefixes[1:]
    return f"{amount:.3g} {prefixes[0]}".strip()


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes and hours."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def pair(first: float | None, second: float | None) -> str:
    """Two figures that belong together, `3.1, 4.6`; a dash for one that is not known."""
    return ", ".join(NOTHING if value is None else f"{value:.3g}" for value in (first, second))


def plural(value: int, noun: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{count(value)} {noun}" + ("" if value == 1 else "s")


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def ranges(names: Sequence[str], *, limit: int = 10_000) -> str:
    """Site names shortened where they count up: `site01–site05, site09`; above `limit` characters `12 sites`."""
    groups: list[list[str]] = []
    for name in names:
        if groups and _follows(groups[-1][-1], name):
            groups[-1].append(name)
        else:
            groups.append([name])
    text = ", ".join(f"{g[0]}–{g[-1]}" if len(g) > 2 else ", ".join(g) for g in groups)
    return text if len(text) <= limit else plural(len(names), "site")


def spans(numbers: Sequence[int], *, limit: int = 40) -> str:
    """Ascending whole numbers, runs of them shortened: `3, 5–9`; above `limit` characters nothing but how many."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
    return text if len(text) <= limit else f"{count(len(numbers))} of them"


def _follows(first: str, second: str) -> bool:
    """Whether `second` is `first` with its trailing number one higher, such as site09 and site10."""
    stem = first.rstrip("0123456789")
    digits = first[len(stem) :]
    return bool(digits) and second == f"{stem}{int(digits) + 1:0{len(digits)}d}"
