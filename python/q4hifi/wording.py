"""Text for sizes, counts, durations and names in messages and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def counted(count: int, noun: str, plural: str | None = None, *, form: str = "") -> str:
    """Return a count with its noun: "1 chunk", "2 chunks", "0 matrices".

    ``noun`` may have a verb: ``counted(n, "tensor is", "tensors are")``. Without ``plural`` the plural ends
    in -s, or -matrices. ``form`` is a format specification for the number.
    """
    if plural is None:
        plural = f"{noun.removesuffix('matrix')}matrices" if noun.endswith("matrix") else f"{noun}s"
    return f"{count:{form}} {noun if count == 1 else plural}"


def enumerated(items: Sequence[str]) -> str:
    """Return the items as in a sentence: "a", "a and b", "a, b and c"."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first ``limit`` names, and the number of the others: "a, b, c and 4 more"."""
    names = list(names)
    return " ".join(filter(None, [", ".join(names[:limit]), and_more(len(names), limit)]))


def and_more(count: int, shown: int) -> str:
    """Return "and 4 more" for ``count`` things of which ``shown`` are at most named; "" if these are all."""
    return f"and {count - shown} more" if count > shown else ""


def human_bytes(count: float) -> str:
    """Return a size in bytes as text, in binary units with two decimals: 443.30 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"


def short_size(count: int) -> str:
    """Return a size in bytes as a user would type it: 470MiB, 3.5GiB, 4MB.

    The result is exact where two decimals of a unit can express it, and rounded elsewhere.
    """
    units = {"GiB": 1 << 30, "GB": 10**9, "MiB": 1 << 20, "MB": 10**6}
    for unit, size in units.items():
        text = f"{count / size:.2f}".rstrip("0").rstrip(".")
        if count >= size and float(text) * size == count:
            return text + unit
    return human_bytes(count).replace(" ", "")


def human_count(count: int) -> str:
    """Return a number of weights as text, in millions or billions with three digits: 5.77 M, 1.78 B."""
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def human_time(seconds: float) -> str:
    """Return a duration in seconds as minutes and seconds (4:07), or with hours (1:02:30)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


LONGEST_ECHO = 80
"""Characters of a text from the user that a message repeats."""


def shortened(text: str, most: int = LONGEST_ECHO) -> str:
    """Return a text, without its middle if it has more than ``most`` characters."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def invisible(text: str) -> str:
    """Return a hint about the first character of ``text`` that cannot be seen; "" if there is none.

    The hint continues a message: "; its character 3 is invisible: U+200B (ZERO WIDTH SPACE)".
    """
    from unicodedata import name

    for i, c in enumerate(text, 1):
        if not c.isprintable():
            return f"; its character {i} is invisible: U+{ord(c):04X} ({name(c, 'no character of a text')})"
    return ""


def printable(text: object) -> str:
    """Return ``str(text)`` with control characters and other unprintable characters escaped.

    Names come from untrusted files, and a terminal would execute control sequences in them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
