"""Encoding text to tokens and decoding it again, with the vocabulary of a GGUF file, as llama.cpp does."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from ..errors import BadOptionError
from ..formats.gguf_constants import TokenType
from ..wording import counted
from .special_tokens import SpecialTokens
from .subwords import BYTE_OF, SPACE, ByteLevel, SentencePiece, Tokens
from .vocabulary import CONTROL, SPECIAL, Vocabulary, read_vocabulary

SHIELD = "\ufdd0"
"""A character that :meth:`Tokenizer.shield` puts into text that spells a control token.

It is a noncharacter: Unicode reserves it for uses such as this one, so texts do not contain it.
"""

_CLEANING = (
    (re.compile(rb" (?=[?!.,])"), b""),
    (re.compile(rb" ' "), b"'"),
    (re.compile(rb" (?='(?:[sm]|re|ve))"), b""),
)
"""Replacements in decoded text, in this order, for vocabularies with ``clean_spaces``."""


class Tokenizer:
    """The tokenizer of a model.

    Attributes: ``n_vocab``, the number of tokens; ``bos``, ``eos`` and ``eot`` (end of turn), ids of these
    tokens or None; ``add_bos`` and ``add_eos``, whether :meth:`encode` puts these around a text.
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
        """Return the tokenizer that the metadata of a GGUF file describe.

        Raises :class:`UnsupportedModelError` for a type of vocabulary or a pre-tokenizer that is not
        supported, and :class:`BadFileError` if the vocabulary is missing or inconsistent.
        """
        return cls(read_vocabulary(metadata))

    def is_end_of_generation(self, token: int) -> bool:
        """Return whether the model ends its text or answer with ``token``."""
        return token in self._vocabulary.ends

    def is_control(self, token: int) -> bool:
        """Return whether ``token`` is a control token, such as BOS or a chat's markers, and not text."""
        return self._type(token) in CONTROL

    # ---- text to tokens --------------------------------------------------------------------------

    def encode(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False, shield: str = ""
    ) -> list[int]:
        """Return the token ids of ``text``.

        ``add_special``: put BOS and EOS around it, if the file asks for them. ``parse_special``: text that
        spells a control token becomes this token. Otherwise it is encoded as plain text, so that a user
        cannot imitate a chat's markers. Text that spells a user-defined token always becomes this token.
        ``shield``: a character to remove after the search for control tokens; see :meth:`shield`.

        Bytes need not be valid UTF-8. In a str, bytes escaped with ``surrogateescape`` count as these bytes.
        A SentencePiece vocabulary has tokens for single bytes. A byte-level vocabulary encodes each invalid
        byte as U+FFFD, except in overlong sequences and encoded surrogates: these give the code point that
        they spell. Raises :class:`BadOptionError` for other lone surrogates in a str.
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
        """Return the token ids of ``text`` as uint32 [n_tokens], at most the first ``limit`` of them.

        The other options and the errors are those of :meth:`encode`. Of a long text, only as much is encoded
        as the limit needs.
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
        """Yield the token ids that :meth:`encode` returns in arrays, uint32 [n], computed lazily."""
        data = _checked_bytes(text) if isinstance(text, str) else text
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
        """Return ``text`` with a :data:`SHIELD` inside everything that spells a control token.

        A user's words can then be put between real control tokens and encoded together with them:
        ``encode`` with ``shield=SHIELD`` finds only the real ones, and removes the shields.
        """
        data = _checked_bytes(text.replace(SHIELD, ""))
        cuts = [start + _size_of_first(data[start:]) for start in self._control.starts(data)]
        parts = [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]
        return SHIELD.encode().join(parts).decode("utf-8", "surrogateescape")

    def _fragments(self, data: bytes, parse_special: bool) -> Iterator[bytes | int]:
        """Yield the special tokens in ``data``, and the text between them as bytes."""
        start = 0
        for special in (self._special if parse_special else self._user_defined).find(data):
            if start < special.start:
                yield data[start : special.start]
            yield special.token
            start = special.resume
        if start < len(data):
            yield data[start:]

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens(self._of_types(SPECIAL), self._vocabulary.stripping)

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return SpecialTokens(self._of_types((TokenType.USER_DEFINED,)), self._vocabulary.stripping)

    @cached_property
    def _control(self) -> SpecialTokens:
        """Control tokens of two characters or more: no shield fits into a single character."""
        return SpecialTokens(
            {text: i for text, i in self._of_types(CONTROL).items() if _size_of_first(text) < len(text)}
        )

    def _of_types(self, types: Collection[int]) -> dict[bytes, int]:
        vocabulary = self._vocabulary
        return {_bytes(text): i for text, i in vocabulary.ids.items() if vocabulary.types[i] in types}

    @cached_property
    def _subwords(self) -> ByteLevel | SentencePiece:
        encoder = ByteLevel if self._vocabulary.is_byte_level else SentencePiece
        return encoder(self._vocabulary)

    # ---- tokens to text --------------------------------------------------------------------------

    def decode(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of ``tokens``, with U+FFFD for invalid UTF-8; see :meth:`decode_bytes`."""
        return self.decode_bytes(tokens, skip_special=skip_special).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int], *, skip_special: bool = False) -> bytes:
        """Return the text of ``tokens`` as bytes.

        ``skip_special`` leaves out control tokens. The space that :meth:`encode` puts before a text is
        removed. For some vocabularies spaces before punctuation are removed as well, as in llama.cpp. Raises
        :class:`BadOptionError` for an id that is not in the vocabulary.
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
        """Return the bytes of one token, which may end within a character.

        They are empty for an unused token, and with ``skip_special`` for a control token. Raises
        :class:`BadOptionError` for an id that is not in the vocabulary.
        """
        token_type, text = self._type(token), self._vocabulary.texts[token]
        if token_type in SPECIAL:
            return b"" if skip_special and token_type in CONTROL else _bytes(text)
        if token_type == TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        if token_type != TokenType.NORMAL:
            return b""
        if self._vocabulary.is_byte_level:
            return b"".join(BYTE_OF.get(c) or _bytes(c) for c in text)
        return _bytes(text.replace(SPACE, " "))

    def stream(self, *, skip_special: bool = False) -> TokenStream:
        """Return a decoder for a generated text, which takes one token at a time."""
        return TokenStream(self, skip_special)

    def _type(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise BadOptionError(
                f"token {token} is not in the vocabulary, which has {counted(self.n_vocab, 'token')}"
            )
        return self._vocabulary.types[token]


class Pieces(Protocol):
    """A tokenizer that knows the text of a token."""

    def piece(self, token: int, *, skip_special: bool = ...) -> bytes:
        """Return the bytes of one token (:meth:`Tokenizer.piece`)."""
        ...


class TokenStream:
    """Decodes one token at a time. Bytes of an incomplete character wait for the next token.

    Unlike :meth:`Tokenizer.decode`, it keeps a space at the beginning of the text.
    """

    def __init__(self, tokenizer: Pieces, skip_special: bool) -> None:
        """Use :meth:`Tokenizer.stream`."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes; it may be empty."""
        return self._decoder.decode(self._tokenizer.piece(token, skip_special=self._skip_special))

    def finish(self) -> str:
        """Return the rest of the text: U+FFFD if its last character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _checked_bytes(text: str) -> bytes:
    """Return ``_bytes(text)``, or raise BadOptionError for lone surrogates."""
    try:
        return _bytes(text)
    except UnicodeEncodeError as error:
        raise BadOptionError(f"the text is not valid Unicode at character {error.start}: {error}") from None


def _size_of_first(text: bytes) -> int:
    """Return the number of bytes of the first character."""
    return len(next(iter(text[:4].decode("utf-8", "surrogateescape"))).encode("utf-8", "surrogateescape"))
