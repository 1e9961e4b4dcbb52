"""Encoding text without special tokens: :class:`ByteLevel` BPE and :class:`SentencePiece`.

A long text is encoded in blocks, so that little memory is used and the first tokens come at once. The tokens
are the same as without blocks.
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

from .merge_windows import WITHIN, CutRange, Merged, merged_in_windows
from .utf8 import SURROGATE, decode
from .vocabulary import Vocabulary

Tokens = npt.NDArray[np.uint32]

SPACE = "▁"
"""Spells a space in the tokens of SentencePiece."""


def _byte_alphabet() -> dict[str, bytes]:
    """Return the byte that each character of a byte-level vocabulary represents.

    As in GPT-2, a byte that is a visible character of Latin-1 is represented by this character. The other
    bytes are represented by U+0100 and the following, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return {letter: bytes([byte]) for letter, byte in letters.items()}


BYTE_OF = _byte_alphabet()
"""Character of a byte-level vocabulary -> the byte that it represents."""

_LETTER_OF = {byte[0]: letter for letter, byte in BYTE_OF.items()}

BLOCK = 1 << 14
"""Smallest length of a block in characters. It ends at the next index where a word is sure to end."""

_LONG = 8 * BLOCK
"""Number of characters. A longer block must contain a very long word, so it is merged in windows."""

_CACHED_WINDOWS = 4
"""Number of windows whose tokens are cached. In a long run of one character all windows are equal."""

_MARGIN = 1024
"""Smallest number of characters that a window keeps on either side of a cut within a word."""

_SAMPLE = 3071
"""Number of characters of a run that show how a pre-tokenizer splits the whole run.

It is not a multiple of 3, so that groups of three digits counted from the left differ from groups counted
from the right.
"""

_LIKE_A_SURROGATE = "\ue000"
"""Replaces surrogates, which the tokenizers library rejects. Every pre-tokenizer treats both alike."""

_SYMBOL = re.compile(rb"(?s)[\x00-\xbf]|[\xc0-\xdf].?|[\xe0-\xef].?.?|[\xf0-\xff].?.?.?")
"""One symbol, with the length that its first byte announces."""

_CACHED_PIECES = 1 << 16
"""Number of pieces whose tokens are cached."""

_CACHED_LENGTH = 64
"""Characters of the longest piece that is cached."""

_TABLE_SIZE = 1 << 22
"""Entries in the hash table of neighbours. A collision only means that a text is cut less often."""

_Symbols = str | tuple[str, ...]
"""What SentencePiece merges: characters, or invalid UTF-8 sequences as ``surrogateescape`` decodes them."""


def _as_tokens(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, np.uint32)


class ByteLevel:
    """Byte-level BPE: splits a text into words, and merges the bytes of each word by the list of merges."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build the encoder. This takes half a second for the largest vocabularies."""
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
        self._margin = max(_MARGIN, *map(len, ids))  # longer than any token, as merged_in_windows needs
        run = max(4 * self._margin, _SAMPLE)
        self._run = re.compile(
            rf"[a-z]{{{run},}}|[A-Z]{{{run},}}|[0-9]{{{run},}}|[\r\n]{{{run},}}|[一-龥]{{{run},}}|(.)\1{{{run},}}",
            re.DOTALL,
        )

    def encode(self, data: bytes) -> Iterator[Tokens]:
        """Yield the tokens of a text, block by block. :func:`.utf8.decode` decodes invalid UTF-8."""
        text = decode(data)
        start = 0
        while start < len(text):
            end = self._block_end.search(text, min(start + BLOCK, len(text)))
            stop = end.start() if end else len(text)
            block = text[start:stop]
            if len(block) <= _LONG:
                yield _as_tokens(self._tokens(block))
            else:
                yield from self._in_windows(block)
            start = stop

    def _tokens(self, block: str) -> list[int]:
        if not SURROGATE.search(block):
            return self._backend.encode(block, add_special_tokens=False).ids
        words = [block[start:end] for start, end in self._spans(block)]
        spelled = ["".join(map(_LETTER_OF.__getitem__, w.encode("utf-8", "surrogatepass"))) for w in words]
        return self._of_words.encode(spelled, is_pretokenized=True, add_special_tokens=False).ids

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return the start and the end of every word."""
        like = SURROGATE.sub(_LIKE_A_SURROGATE, text)
        return [span for _, span in self._words.pre_tokenize_str(like)]

    def _in_windows(self, block: str) -> Iterator[Tokens]:
        """Yield the tokens of a block that contains a very long word."""

        def merge(start: int, end: int) -> Merged:
            return self._cached_merge(block[start:end])

        windows = merged_in_windows(len(block), _LONG, merge, partial(self._cut_range, block))
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

    def _cut_range(self, block: str, start: int, end: int) -> CutRange | None:
        """Return where the window ``block[start:end]`` may be cut: in its last long run, if there is one.

        A run consists of one character, or of characters that every pre-tokenizer treats alike. So a sample
        shows how it is split: not at all, into equal words, or depending on where the run ends.
        """
        runs = [run.span() for run in self._run.finditer(block, start, end)]
        if not runs:
            return None
        first, last = runs[-1]
        lengths = [stop - at for at, stop in self._spans(block[first : first + _SAMPLE])]
        allowed = CutRange(first + self._margin - start, last - self._margin - start)
        if len(lengths) == 1:  # one word: cut between any tokens
            return allowed
        if lengths[:3] != lengths[:1] * 3:  # the words depend on where the run ends
            return None
        borders = [stop for _, stop in self._spans(block[start:end])]
        return allowed._replace(last=borders[bisect_right(borders, allowed.last) - 1], is_border=True)


def _pair(merge: str) -> tuple[str, str]:
    """Return the two texts of a merge; the first one may itself begin with a space."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


class SentencePiece:
    """SentencePiece: of all neighbours that form a token together, those with the best score merge first.

    A text is merged as a whole, not word by word. But no merge crosses two characters that are not
    neighbours in any token. So a text can be cut there. Most of these pieces are words, which repeat, so
    their tokens are cached.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Build the encoder."""
        self._ids = ids = vocabulary.ids
        self._scores = vocabulary.scores
        neighbours = {text[i : i + 2] for text in ids for i in range(len(text) - 1)}
        pairs = _codes("".join(neighbours)).reshape(-1, 2).T.astype(np.uint64)
        self._are_neighbours = np.zeros(_TABLE_SIZE, np.bool_)
        self._are_neighbours[_hashes(pairs)] = True
        of_byte = [
            ids.get(f"<0x{i:02X}>", ids.get(bytes([i]).decode("utf-8", "surrogateescape")))
            for i in range(256)
        ]
        self._of_byte = [vocabulary.unknown if token is None else token for token in of_byte]
        self._cached = lru_cache(_CACHED_PIECES)(self._packed)
        self._cached_merge = lru_cache(_CACHED_WINDOWS)(self._merge)
        self._margin = max(_MARGIN, *map(len, ids))

    def encode(self, data: bytes) -> Iterator[Tokens]:
        """Yield the tokens of a text. A character without a token becomes the tokens of its bytes."""
        begun: list[_Symbols] = []  # parts of a piece whose end is in a later block
        before = ""  # the last character of the previous block
        for symbols in _symbols(data.replace(b" ", SPACE.encode())):
            heads, tails = _ends(symbols)
            cuts = self._cuts(before + tails[:-1], heads)
            before = tails[-1]
            if not cuts:
                begun.append(symbols)
                continue
            yield from self._in_windows(_joined([*begun, symbols[: cuts[0]]]))
            pieces = [symbols[start:end] for start, end in pairwise(cuts)]
            tokens = [self._cached(p) if len(p) <= _CACHED_LENGTH else self._packed(p) for p in pieces]
            yield np.frombuffer(b"".join(tokens), np.uint32)
            begun = [symbols[cuts[-1] :]]
        yield from self._in_windows(_joined(begun))

    def _cuts(self, before: str, after: str) -> list[int]:
        """Return the indices i at which ``before[i]`` and ``after[i]`` are not neighbours in any token.

        At the beginning of a text ``before`` lacks its first character, which then counts as U+0000.
        """
        codes = np.zeros((2, len(after)), np.uint64)
        codes[0, len(after) - len(before) :] = _codes(before)
        codes[1] = _codes(after)
        cuts: list[int] = np.flatnonzero(~self._are_neighbours[_hashes(codes)]).tolist()
        return cuts

    def _in_windows(self, symbols: _Symbols) -> Iterator[Tokens]:
        """Yield the tokens of a piece of any length."""

        def merge(start: int, end: int) -> Merged:
            return self._cached_merge(symbols[start:end])

        def cut_range(start: int, end: int) -> CutRange:
            return CutRange(2 * self._margin, end - start - self._margin)

        yield from map(_as_tokens, merged_in_windows(len(symbols), 4 * self._margin, merge, cut_range))

    def _packed(self, symbols: _Symbols) -> bytes:
        """Return the tokens of a piece as uint32 bytes, which take little memory in the cache."""
        return array("I", self._merge(symbols)[0]).tobytes()

    def _merge(self, symbols: _Symbols) -> Merged:
        """Return the tokens of a piece. Of pairs with equal scores, the leftmost merges first."""
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
                continue  # one of the two has been merged with another part meanwhile
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
    """Yield the symbols of ``data`` in blocks: as a str, or as a tuple if there is invalid UTF-8."""
    at = 0
    while at < len(data):
        chunk = data[at : at + BLOCK]
        is_last = at + BLOCK >= len(data)
        try:
            yield chunk.decode()
        except UnicodeDecodeError as error:
            if not is_last and error.start >= BLOCK - 3:  # a character that ends in the next block
                chunk = chunk[: error.start]
                yield chunk.decode()
            else:
                symbols = _SYMBOL.findall(chunk)
                if not is_last:
                    chunk = chunk.removesuffix(symbols.pop())
                yield tuple(symbol.decode("utf-8", "surrogateescape") for symbol in symbols)
        at += len(chunk)


def _ends(symbols: _Symbols) -> tuple[str, str]:
    """Return the first and the last character of every symbol; they differ in invalid UTF-8 only."""
    if isinstance(symbols, str):
        return symbols, symbols
    return "".join(symbol[0] for symbol in symbols), "".join(symbol[-1] for symbol in symbols)


def _joined(parts: Sequence[_Symbols]) -> _Symbols:
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else tuple(chain.from_iterable(parts))


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _hashes(pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the indices in the hash table of neighbours of pairs of code points [2, n]."""
    hashes: npt.NDArray[np.uint64] = (pairs[0] * np.uint64(0x9E3779B1) + pairs[1]) % np.uint64(_TABLE_SIZE)
    return hashes
