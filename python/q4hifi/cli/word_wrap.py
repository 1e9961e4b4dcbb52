"""Text that comes in pieces, broken into a terminal's lines between words."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.cells import cell_len

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and line end: a terminal would obey them."""

_TAB = 8  # columns


class WordWrap:
    """Breaks lines between words; leaves control characters out.

    A word is held back until it is complete. One that is as long as a line is not, nor are the characters
    of languages that are written without blanks.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """Begin at the start of a line; ``width`` returns the columns that the terminal has now."""
        self._width = width
        self._column = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """Return what can be printed now that ``text`` has come."""
        out: list[str] = []
        for character in _CONTROL.sub("", text):
            if character in " \t\n":
                out += self.flush(), self._blank(character)
                continue
            self._word += character
            if cell_len(character) == 2 or cell_len(self._word) >= self._width():
                out.append(self.flush())
        return "".join(out)

    def flush(self) -> str:
        """Return the word that was held back, on a new line if it does not fit on this one."""
        word, self._word = self._word, ""
        width, length = self._width(), cell_len(word)
        if not 0 < self._column <= width - length:
            new_line = self._column > 0 and length > 0
            self._column = length % width
            return "\n" * new_line + word
        self._column += length
        return word

    def _blank(self, blank: str) -> str:
        if blank == "\n":
            self._column = 0
        elif self._column >= self._width():  # the next word begins a new line
            return ""
        else:
            self._column += 1 if blank == " " else _TAB - self._column % _TAB
        return blank
