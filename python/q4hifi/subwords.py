"""How a piece of text without special tokens becomes tokens: byte-level BPE, and SentencePiece."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from itertools import pairwise

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .vocabulary import Vocabulary

SPACE = "▁"
"""How SentencePiece spells a blank."""

_OVERLONG = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}")
_REPLACE = "q4hifi.replace"
_NOT_TEXT = re.compile("[\ud800-\udfff]")  # a token's bytes that are not UTF-8
_SIZE_BY_FIRST_BYTE = (1,) * 12 + (2, 2, 3, 4)  # by its upper four bits
_CACHED_PIECES = 1 << 16


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Decode an overlong form as if it were none, and any other byte that is not UTF-8 as U+FFFD."""
    assert isinstance(error, UnicodeDecodeError)
    data, at = error.object, error.start
    if match := _OVERLONG.match(data, at):
        code = data[at] & (0x1F if data[at] < 0xE0 else 0x0F)
        for byte in data[at + 1 : match.end()]:
            code = code << 6 | byte & 0x3F
        return chr(code), match.end()
    return "\ufffd", at + 1


codecs.register_error(_REPLACE, _replace)


class ByteLevel:
    """Byte-level BPE: cut into words, then merged from single bytes, the first pair of the list first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build it: half a second for the largest vocabularies."""
        rules = vocabulary.rules
        ids = {text: token for text, token in vocabulary.ids.items() if not _NOT_TEXT.search(text)}
        pairs = dict.fromkeys(map(_pair, vocabulary.merges))
        merges = [(a, b) for a, b in pairs if a in ids and b in ids and a + b in ids]
        self._backend = Backend(models.BPE(ids, merges, ignore_merges=rules.ignore_merges))
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in rules.splits]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])

    def encode(self, data: bytes) -> list[int]:
        """Tokens of a text; each byte that is not UTF-8 counts as U+FFFD."""
        text = data.decode("utf-8", _REPLACE)
        return self._backend.encode(text, add_special_tokens=False).ids


def _pair(merge: str) -> tuple[str, str]:
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


class SentencePiece:
    """SentencePiece with scores: of all neighbours that form a token, the best are merged first.

    There are no words: a text is merged as a whole. But nothing merges across two characters that are
    neighbours in no token, so it is cut there, and the pieces, mostly words, come again and again.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build it: as long as it takes to look at every token once."""
        self._ids = ids = vocabulary.ids
        self._scores = vocabulary.scores
        self._neighbours = {text[i : i + 2] for text in ids for i in range(len(text) - 1)}
        of_byte = [
            ids.get(f"<0x{i:02X}>", ids.get(bytes([i]).decode("utf-8", "surrogateescape")))
            for i in range(256)
        ]
        self._of_byte = [vocabulary.unknown if token is None else token for token in of_byte]
        self._cached = lru_cache(_CACHED_PIECES)(self._merge)

    def encode(self, data: bytes) -> list[int]:
        """Tokens of a text; a character without a token becomes the tokens of its bytes."""
        symbols = _symbols(data.replace(b" ", SPACE.encode()))
        tokens: list[int] = []
        start = 0
        for i, (left, right) in enumerate(pairwise(symbols), 1):
            if left[-1] + right[0] not in self._neighbours:
                tokens += self._cached(symbols[start:i])
                start = i
        return tokens + self._cached(symbols[start:])

    def _merge(self, symbols: Sequence[str]) -> list[int]:
        """Tokens of a few characters. Of equal scores, the leftmost pair is merged first."""
        parts = list(symbols)
        n = len(parts)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        queue: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < n:
                token = self._ids.get(parts[left] + parts[right])
                if token is not None:
                    size = len(parts[left]) + len(parts[right])
                    heappush(queue, (-self._scores[token], left, right, size))

        for right in range(1, n):
            consider(right - 1, right)
        while queue:
            _, left, right, size = heappop(queue)
            if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != size:
                continue  # one of the two has been merged since
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[left] < n:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [token for part in parts if part for token in self._tokens(part)]

    def _tokens(self, part: str) -> list[int]:
        token = self._ids.get(part)
        if token is not None:
            return [token]
        of_bytes = (self._of_byte[byte] for byte in part.encode("utf-8", "surrogateescape"))
        return [token for token in of_bytes if token is not None]


def _symbols(data: bytes) -> str | tuple[str, ...]:
    """Characters; where ``data`` is not UTF-8, what their first bytes say about their lengths."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    symbols, at = [], 0
    while at < len(data):
        size = _SIZE_BY_FIRST_BYTE[data[at] >> 4]
        symbols.append(data[at : at + size].decode("utf-8", "surrogateescape"))
        at += size
    return tuple(symbols)
