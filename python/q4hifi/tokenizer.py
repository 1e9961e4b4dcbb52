"""Text to tokens and back, as llama.cpp does it, from the vocabulary in a GGUF file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from .errors import BadOptionError
from .gguf_constants import TokenType
from .subwords import SPACE, ByteLevel, SentencePiece
from .vocabulary import CONTROL, SPECIAL, Vocabulary, read_vocabulary

SHIELD = "\ufdd0"
"""Keeps what spells a control token from being one: a code point that Unicode keeps out of texts."""

_PREFIX = 4  # bytes of special tokens that are looked for first
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

        Bytes need not be UTF-8: a byte-level vocabulary takes each that is not as U+FFFD, a SentencePiece
        vocabulary has tokens for them. In a str, escaped bytes (``surrogateescape``) mean the bytes.
        Raises :class:`BadOptionError` for other lone surrogates.
        """
        if isinstance(text, str):
            try:
                text = text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise BadOptionError(f"the text is no Unicode at character {error.start}: {error}") from None
        vocabulary = self._vocabulary
        tokens = [self.bos] if add_special and self.add_bos and self.bos is not None else []
        after_special = True
        for fragment in self._fragments(text, parse_special):
            if isinstance(fragment, int):
                tokens.append(fragment)
                after_special = True
                continue
            if shield:
                fragment = fragment.replace(shield.encode(), b"")
            if vocabulary.is_byte_level:
                tokens += self._subwords.encode(fragment)
            else:
                prefix = b" " if vocabulary.add_space_prefix and after_special else b""
                tokens += self._subwords.encode(prefix + fragment)
            after_special = False
        if add_special and self.add_eos and self.eos is not None:
            tokens.append(self.eos)
        return tokens

    def shield(self, text: str) -> str:
        """Return ``text`` with a :data:`SHIELD` in whatever spells a control token.

        So the words of others can be put between control tokens before they are encoded together.
        """
        text = text.replace(SHIELD, "")
        for spelled in self._control_texts:
            while spelled in text:  # again, for those that overlap
                text = text.replace(spelled, spelled[0] + SHIELD + spelled[1:])
        return text

    @cached_property
    def _control_texts(self) -> list[str]:
        """What spells a control token; nothing can keep a single character from it."""
        vocabulary = self._vocabulary
        return [t for t, i in vocabulary.ids.items() if vocabulary.kinds[i] in CONTROL and len(t) > 1]

    @cached_property
    def _subwords(self) -> ByteLevel | SentencePiece:
        kind = ByteLevel if self._vocabulary.is_byte_level else SentencePiece
        return kind(self._vocabulary)

    @cached_property
    def _special(self) -> list[tuple[bytes, int]]:
        """Special tokens with their texts, the longest first."""
        special = [
            (_bytes(text), token)
            for text, token in self._vocabulary.ids.items()
            if self._vocabulary.kinds[token] in SPECIAL
        ]
        return sorted(special, key=lambda pair: -len(pair[0]))

    def _fragments(self, data: bytes, parse_special: bool) -> list[bytes | int]:
        """Cut ``data`` at its special tokens: a longer one counts before all shorter ones."""
        fragments: list[bytes | int] = [data] if data else []
        there: dict[bytes, bool] = {}  # thousands begin alike, such as <unused0>, and none is in a text
        for text, token in self._special:
            if not parse_special and self._vocabulary.kinds[token] in CONTROL:
                continue
            prefix = text[:_PREFIX]
            if prefix not in there:
                there[prefix] = prefix in data
            if there[prefix] and text in data:
                fragments = [piece for fragment in fragments for piece in self._cut(fragment, text, token)]
        return fragments

    def _cut(self, fragment: bytes | int, text: bytes, token: int) -> Iterator[bytes | int]:
        if isinstance(fragment, int):
            yield fragment
            return
        first, *rest = fragment.split(text)
        if first:
            yield first
        for part in rest:
            yield token
            if token in self._vocabulary.stripping:
                part = part.lstrip()
            if part:
                yield part

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
            return b"".join(_BYTE_OF.get(c) or _bytes(c) for c in text)
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


def _byte_alphabet() -> dict[str, bytes]:
    """The characters that stand for the bytes in a byte-level vocabulary.

    A byte that is a visible character of Latin-1 stands for itself, the others count from U+0100 on.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return {letter: bytes([byte]) for letter, byte in letters.items()}


_BYTE_OF = _byte_alphabet()
