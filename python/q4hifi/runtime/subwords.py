"""How a piece of text without special tokens becomes tokens: byte-level BPE, and SentencePiece.

A long text is worked on in blocks, so that memory stays small and the first tokens come at once.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from heapq import heappop, heappush
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from .merge_windows import WITHIN, Merged, Place, merged_in_windows
from .utf8 import SURROGATE, decode
from .vocabulary import Vocabulary

Tokens = npt.NDArray[np.uint32]

SPACE = "▁"
"""How SentencePiece spells a blank."""


def _byte_alphabet() -> dict[str, bytes]:
    """The characters that stand for the bytes in a byte-level vocabulary.

    A byte that is a visible character of Latin-1 stands for itself, the others count from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return {letter: bytes([byte]) for letter, byte in letters.items()}


BYTE_OF = _byte_alphabet()
"""The byte that each character of a byte-level vocabulary stands for."""

_LETTER_OF = {byte[0]: letter for letter, byte in BYTE_OF.items()}

BLOCK = 1 << 14
"""Characters of a block, at least: it ends at the next place where no word spans."""

_LONG = 8 * BLOCK  # characters; a longer block has a word without end in it
_CACHED_WINDOWS = 4  # in a run of one character, the next window is the same again
_MARGIN = 1024  # characters on either side of a cut within a word
_SAMPLE = 3071  # characters of a run; no multiple of 3, which tells threes from the left and from the right
_LIKE_A_SURROGATE = "\ue000"  # in every class of characters that surrogates are in, and in no other

_SYMBOL = re.compile(rb"(?s)[\x00-\xbf]|[\xc0-\xdf].?|[\xe0-\xef].?.?|[\xf0-\xff].?.?.?")
_CACHED_PIECES = 1 << 16
_CACHED_LENGTH = 64
_PLACES = 1 << 22  # in the table of neighbours: where two pairs share one, a text is cut less often

_Symbols = str | tuple[str, ...]


def _as_tokens(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, np.uint32)


class ByteLevel:
    """Byte-level BPE: cut into words, then merged from single bytes, the first pair of the list first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build it: half a second for the largest vocabularies."""
        rules = vocabulary.rules
        ids = {text: token for text, token in vocabulary.ids.items() if not SURROGATE.search(text)}
        pairs = dict.fromkeys(map(_pair, vocabulary.merges))
        merges = [(a, b) for a, b in pairs if a in ids and b in ids and a + b in ids]
        model = models.BPE(ids, merges, ignore_merges=rules.ignore_merges)
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in rules.splits]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._words = pre_tokenizers.Sequence(splits)
        self._of_words = Backend(model)
        self._backend = Backend(model)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
        self._cached_merge = lru_cache(_CACHED_WINDOWS)(self._merge)
        self._block_end = re.compile(rules.block_ends)
        self._margin = max(_MARGIN, *map(len, ids))  # so that what is left of a word is longer than any token
        run = max(4 * self._margin, _SAMPLE)
        self._run = re.compile(
            rf"[a-z]{{{run},}}|[A-Z]{{{run},}}|[0-9]{{{run},}}|[\r\n]{{{run},}}|[一-龥]{{{run},}}|(.)\1{{{run},}}",
            re.DOTALL,
        )

    def encode(self, data: bytes) -> Iterator[Tokens]:
        """Yield the tokens of a text, block by block. See :func:`.utf8.decode` for what is not UTF-8."""
        text = decode(data)
        start = 0
        while start < len(text):
            end = self._block_end.search(text, min(start + BLOCK, len(text)))
            stop = end.start() if end else len(text)
            block = text[start:stop]
            if len(block) <= _LONG:
                yield _as_tokens(self._tokens(block))
            else:
                yield from self._long(block)
            start = stop

    def _tokens(self, block: str) -> list[int]:
        if not SURROGATE.search(block):
            return self._backend.encode(block, add_special_tokens=False).ids
        words = [block[start:end] for start, end in self._spans(block)]
        spelled = ["".join(map(_LETTER_OF.__getitem__, w.encode("utf-8", "surrogatepass"))) for w in words]
        return self._of_words.encode(spelled, is_pretokenized=True, add_special_tokens=False).ids

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where the words begin and end."""
        like = SURROGATE.sub(_LIKE_A_SURROGATE, text)
        return [span for _, span in self._words.pre_tokenize_str(like)]

    def _long(self, block: str) -> Iterator[Tokens]:
        """Yield the tokens of a block with a word of any length in it."""

        def merge(start: int, end: int) -> Merged:
            return self._cached_merge(block[start:end])

        windows = merged_in_windows(len(block), _LONG, merge, partial(self._place, block))
        yield from map(_as_tokens, windows)

    def _merge(self, part: str) -> Merged:
        if SURROGATE.search(part):
            tokens = self._tokens(part)
            return tokens, [WITHIN] * len(tokens)
        encoding = self._backend.encode(part, add_special_tokens=False)
        before = (0, *(stop for _, stop in encoding.offsets))
        return encoding.ids, [
            at if stop <= at else WITHIN for (at, _), stop in zip(encoding.offsets, before, strict=False)
        ]

    def _place(self, block: str, start: int, end: int) -> Place | None:
        """A place in the last long run of characters that are alike to the pre-tokenizer."""
        runs = [run.span() for run in self._run.finditer(block, start, end)]
        if not runs:
            return None
        first, last = runs[-1]
        alike = [stop - at for at, stop in self._spans(block[first : first + _SAMPLE])]
        place = Place(first + self._margin - start, last - self._margin - start)
        if len(alike) == 1:
            return place
        if alike[:3] != alike[:1] * 3:  # pieces that depend on where the run ends
            return None
        borders = [stop for _, stop in self._spans(block[start:end])]
        return place._replace(last=borders[bisect_right(borders, place.last) - 1], is_border=True)


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
        neighbours = {text[i : i + 2] for text in ids for i in range(len(text) - 1)}
        pairs = _codes("".join(neighbours)).reshape(-1, 2).T.astype(np.uint64)
        self._are_neighbours = np.zeros(_PLACES, np.bool_)
        self._are_neighbours[_places(pairs)] = True
        of_byte = [
            ids.get(f"<0x{i:02X}>", ids.get(bytes([i]).decode("utf-8", "surrogateescape")))
            for i in range(256)
        ]
        self._of_byte = [vocabulary.unknown if token is None else token for token in of_byte]
        self._cached = lru_cache(_CACHED_PIECES)(self._packed)
        self._cached_merge = lru_cache(_CACHED_WINDOWS)(self._merge)
        self._margin = max(_MARGIN, *map(len, ids))

    def encode(self, data: bytes) -> Iterator[Tokens]:
        """Yield the tokens of a text; a character without a token becomes the tokens of its bytes."""
        begun: list[_Symbols] = []  # a piece whose end has not come yet
        before = ""
        for symbols in _symbols(data.replace(b" ", SPACE.encode())):
            heads, tails = _ends(symbols)
            cuts = self._cuts(before + tails[:-1], heads)
            before = tails[-1]
            if not cuts:
                begun.append(symbols)
                continue
            yield from self._long(_joined([*begun, symbols[: cuts[0]]]))
            pieces = [symbols[start:end] for start, end in pairwise(cuts)]
            tokens = [self._cached(p) if len(p) <= _CACHED_LENGTH else self._packed(p) for p in pieces]
            yield np.frombuffer(b"".join(tokens), np.uint32)
            begun = [symbols[cuts[-1] :]]
        yield from self._long(_joined(begun))

    def _cuts(self, before: str, after: str) -> list[int]:
        """Numbers of the characters ``after`` which no token has behind the character ``before``."""
        codes = np.zeros((2, len(after)), np.uint64)
        codes[0, len(after) - len(before) :] = _codes(before)
        codes[1] = _codes(after)
        cuts: list[int] = np.flatnonzero(~self._are_neighbours[_places(codes)]).tolist()
        return cuts

    def _long(self, symbols: _Symbols) -> Iterator[Tokens]:
        """Yield the tokens of a piece of any length."""

        def merge(start: int, end: int) -> Merged:
            return self._cached_merge(symbols[start:end])

        def place(start: int, end: int) -> Place:
            return Place(2 * self._margin, end - start - self._margin)

        yield from map(_as_tokens, merged_in_windows(len(symbols), 4 * self._margin, merge, place))

    def _packed(self, symbols: _Symbols) -> bytes:
        return array("I", self._merge(symbols)[0]).tobytes()

    def _merge(self, symbols: _Symbols) -> Merged:
        """Merge a few characters. Of equal scores, the leftmost pair is merged first."""
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
        tokens: list[int] = []
        starts: list[int] = []
        for start, part in enumerate(parts):
            if part:
                of_part = self._tokens(part)
                tokens += of_part
                starts += [start, *[WITHIN] * (len(of_part) - 1)][: len(of_part)]
        return tokens, starts

    def _tokens(self, part: str) -> list[int]:
        token = self._ids.get(part)
        if token is not None:
            return [token]
        of_bytes = (self._of_byte[byte] for byte in part.encode("utf-8", "surrogateescape"))
        return [token for token in of_bytes if token is not None]


def _symbols(data: bytes) -> Iterator[_Symbols]:
    """Blocks of characters; where ``data`` is not UTF-8, what their first bytes say about their lengths."""
    at = 0
    while at < len(data):
        chunk = data[at : at + BLOCK]
        is_last = at + BLOCK >= len(data)
        try:
            yield chunk.decode()
        except UnicodeDecodeError as error:
            if not is_last and error.start >= BLOCK - 3:  # a character that goes on in the next block
                chunk = chunk[: error.start]
                yield chunk.decode()
            else:
                symbols = _SYMBOL.findall(chunk)
                if not is_last:
                    chunk = chunk.removesuffix(symbols.pop())
                yield tuple(symbol.decode("utf-8", "surrogateescape") for symbol in symbols)
        at += len(chunk)


def _ends(symbols: _Symbols) -> tuple[str, str]:
    """The first characters of the symbols and the last ones; they differ where a symbol is not UTF-8."""
    if isinstance(symbols, str):
        return symbols, symbols
    return "".join(symbol[0] for symbol in symbols), "".join(symbol[-1] for symbol in symbols)


def _joined(parts: Sequence[_Symbols]) -> _Symbols:
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else tuple(chain.from_iterable(parts))


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _places(pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Where pairs of characters [2, n] are in a table; some share a place."""
    places: npt.NDArray[np.uint64] = (pairs[0] * np.uint64(0x9E3779B1) + pairs[1]) % np.uint64(_PLACES)
    return places
