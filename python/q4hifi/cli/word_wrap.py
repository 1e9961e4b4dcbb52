"""Line breaks between words, for text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Callable

from rich.cells import cell_len

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, which a terminal would execute. Tab and line end are not among them."""

_TAB = 8  # columns


class WordWrap:
    """Breaks lines between words and removes control characters.

    A word is held back until it is complete. Words longer than a line, and characters of scripts without
    spaces (two columns wide), are printed at once.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """Start at the beginning of a line. ``width`` returns the terminal's current number of columns."""
        self._width = width
        self._column = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """Add ``text``, and return the text that can be printed now."""
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
        """Return the word that was held back, after a line break if it does not fit on this line."""
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
