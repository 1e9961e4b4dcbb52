"""Text to tokens and back, as llama.cpp does it, from the vocabulary in a GGUF file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import BadOptionError
from ..formats.gguf_constants import TokenType
from .special_tokens import SpecialTokens
from .subwords import BYTE_OF, SPACE, ByteLevel, SentencePiece, Tokens
from .vocabulary import CONTROL, SPECIAL, Vocabulary, read_vocabulary

SHIELD = "\ufdd0"
"""Keeps what spells a control token from being one: a code point that Unicode keeps out of texts."""

_CLEANING = (
    (re.compile(rb" (?=[?!.,])"), b""),
    (re.compile(rb" ' "), b"'"),
    (re.compile(rb" (?='(?:[sm]|re|ve))"), b""),
)
"""What old vocabularies want done to decoded text, in this order."""


class Tokenizer:
    """The tokenizer of a model.

    Attributes: ``n_vocab``; ``bos``, ``eos`` and ``eot`` (end of a turn), None where there is no such token;
    ``add_bos`` and ``add_eos``, what ``encode`` puts around a text.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Use :meth:`from_metadata`."""
        self._vocabulary = vocabulary
        self.n_vocab: int = len(vocabulary.texts)
        self.bos: int | None = vocabulary.bos
        self.eos: int | None = vocabulary.eos
        self.eot: int | None = vocabulary.eot
        self.add_bos: bool = vocabulary.add_bos and vocabulary.bos is not None
        self.add_eos: bool = vocabulary.add_eos and vocabulary.eos is not None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Make the tokenizer that the key-value pairs of a GGUF file describe.

        Raises :class:`UnsupportedModelError` for a kind of vocabulary or a pre-tokenizer that is not
        known, and :class:`BadFileError` where there is no vocabulary or it contradicts itself.
        """
        return cls(read_vocabulary(metadata))

    def is_end_of_generation(self, token: int) -> bool:
        """Whether a model that gives ``token`` has said all it has to say."""
        return token in self._vocabulary.ends

    def is_control(self, token: int) -> bool:
        """Whether ``token`` is no text: BOS, the marks of a chat and the like."""
        return self._kind(token) in CONTROL

    # ---- text to tokens --------------------------------------------------------------------------

    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False, shield: str = ""
    ) -> list[int]:
        """Return the tokens of ``text``.

        ``add_special``: with BOS and EOS around it, if the file wants them. ``parse_special``: a control
        token that is spelled in the text becomes this token; else it is text like any other, so that a
        user's words cannot imitate a chat's marks. Tokens that a model's maker added as text always count.
        ``shield``: a character that is left out, once the control tokens were found; see :meth:`shield`.

        Bytes need not be UTF-8. A SentencePiece vocabulary has tokens for them. A byte-level vocabulary takes
        each as U+FFFD, but forms that are longer than needed, or those of surrogates, as what they spell.
        In a str, escaped bytes (``surrogateescape``) mean the bytes.
        Raises :class:`BadOptionError` for other lone surrogates.
        """
        blocks = self.blocks(text, add_special=add_special, parse_special=parse_special, shield=shield)
        return [token for block in blocks for token in block.tolist()]

    def encode_array(
        self,
        text: str | bytes,
        *,
        limit: int | None = None,
        add_special: bool = True,
        parse_special: bool = False,
    ) -> Tokens:
        """Return the tokens of ``text`` as uint32 [n_tokens], the first ``limit`` at most.

        The other options and the errors are those of :meth:`encode`. No more of a long text is read than the
        limit needs, and the tokens take four bytes each.
        """
        blocks, n = [np.empty(0, np.uint32)], 0
        for block in self.blocks(text, add_special=add_special, parse_special=parse_special):
            blocks.append(block)
            n += len(block)
            if limit is not None and n >= limit:
                break
        return np.concatenate(blocks)[:limit]

    def blocks(
        self, text: str | bytes, *, add_special: bool, parse_special: bool, shield: str = ""
    ) -> Iterator[Tokens]:
        """Yield what :meth:`encode` returns, uint32, in pieces, as they are needed."""
        data = _bytes_of(text) if isinstance(text, str) else text
        vocabulary = self._vocabulary
        if add_special and self.add_bos and self.bos is not None:
            yield np.array([self.bos], np.uint32)
        after_special = True
        for fragment in self._fragments(data, parse_special):
            if isinstance(fragment, int):
                yield np.array([fragment], np.uint32)
                after_special = True
                continue
            if shield:
                fragment = fragment.replace(shield.encode(), b"")
            if not vocabulary.is_byte_level and vocabulary.add_space_prefix and after_special:
                fragment = b" " + fragment
            yield from self._subwords.encode(fragment)
            after_special = False
        if add_special and self.add_eos and self.eos is not None:
            yield np.array([self.eos], np.uint32)

    def shield(self, text: str) -> str:
        """Return ``text`` with a :data:`SHIELD` in whatever spells a control token.

        So the words of others can be put between control tokens before they are encoded together.
        """
        data = _bytes_of(text.replace(SHIELD, ""))
        cuts = [start + _size_of_first(data[start:]) for start in self._control.starts(data)]
        parts = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
        return SHIELD.encode().join(parts).decode("utf-8", "surrogateescape")

    def _fragments(self, data: bytes, parse_special: bool) -> Iterator[bytes | int]:
        """Cut ``data`` at its special tokens."""
        start = 0
        for found in (self._special if parse_special else self._user_defined).find(data):
            if start < found.start:
                yield data[start : found.start]
            yield found.token
            start = found.resume
        if start < len(data):
            yield data[start:]

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(self._of_kinds(SPECIAL), self._vocabulary.stripping)

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return SpecialTokens(self._of_kinds((TokenType.USER_DEFINED,)), self._vocabulary.stripping)

    @cached_property
    def _control(self) -> SpecialTokens:
        """Control tokens; nothing can keep a single character from being one."""
        return SpecialTokens(
            {text: i for text, i in self._of_kinds(CONTROL).items() if _size_of_first(text) < len(text)}
        )

    def _of_kinds(self, kinds: Collection[int]) -> dict[bytes, int]:
        vocabulary = self._vocabulary
        return {_bytes(text): i for text, i in vocabulary.ids.items() if vocabulary.kinds[i] in kinds}

    @cached_property
    def _subwords(self) -> ByteLevel | SentencePiece:
        kind = ByteLevel if self._vocabulary.is_byte_level else SentencePiece
        return kind(self._vocabulary)

    # ---- tokens to text --------------------------------------------------------------------------

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ``tokens``; what is not UTF-8 in it becomes U+FFFD. See :meth:`decode_bytes`."""
        return self.decode_bytes(tokens, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int], *, skip_special: bool = False) -> bytes:
        """Return the text of ``tokens`` as bytes; with ``skip_special`` without control tokens.

        The blank that ``encode`` puts before a text is taken away again. Some vocabularies want blanks
        before punctuation taken away too. Raises :class:`BadOptionError` for a token that there is not.
        """
        pieces = [self.piece(token, skip_special=skip_special) for token in tokens]
        if pieces and self._vocabulary.add_space_prefix:
            pieces[0] = pieces[0].removeprefix(b" ")
        data = b"".join(pieces)
        if self._vocabulary.rules.clean_spaces:
            for pattern, replacement in _CLEANING:
                data = pattern.sub(replacement, data)
        return data

    def piece(self, token: int, *, skip_special: bool = False) -> bytes:
        """Return what one token stands for, often less than a character.

        Nothing for an unused token, and with ``skip_special`` for a control token. Raises
        :class:`BadOptionError` where there is no such token.
        """
        kind, text = self._kind(token), self._vocabulary.texts[token]
        if kind in SPECIAL:
            return b"" if skip_special and kind in CONTROL else _bytes(text)
        if kind == TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if kind != TokenType.NORMAL:
            return b""
        if self._vocabulary.is_byte_level:
            return b"".join(BYTE_OF.get(c) or _bytes(c) for c in text)
        return _bytes(text.replace(SPACE, " "))

    def stream(self, *, skip_special: bool = False) -> TokenStream:
        """Return a decoder that takes one token after another."""
        return TokenStream(self, skip_special)

    def _kind(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise BadOptionError(f"there is no token {token}: the vocabulary has {self.n_vocab}")
        return self._vocabulary.kinds[token]


class TokenStream:
    """Tokens to text as they come: bytes that are no whole character yet wait for the next token.

    The pieces are given as they are: of a text's beginning no blank is taken away.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        """Use :meth:`Tokenizer.stream`."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that is complete with ``token``; it may be empty."""
        return self._decoder.decode(self._tokenizer.piece(token, skip_special=self._skip_special))

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _bytes_of(text: str) -> bytes:
    try:
        return _bytes(text)
    except UnicodeEncodeError as error:
        raise BadOptionError(f"the text is no Unicode at character {error.start}: {error}") from None


def _size_of_first(text: bytes) -> int:
    """Bytes of the first character."""
    return len(next(iter(text[:4].decode("utf-8", "surrogateescape"))).encode("utf-8", "surrogateescape"))
