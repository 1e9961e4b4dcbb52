"""llama.cpp's tokenizer, for a model that it has loaded."""

from __future__ import annotations

import ctypes
from ctypes import c_int32
from functools import cached_property

import numpy as np

from ...errors import BadOptionError
from ...runtime.tokenizer import SHIELD, TokenStream
from ...wording import counted
from ..protocol import Tokens

BYTES_PER_TOKEN = 16
"""Bytes of text that are encoded for each token of a limit, to begin with."""

SPARE_TOKENS = 256
"""Tokens at the end of a cut text that are not used, because the cut may have changed them."""


class LlamaTokenizer:
    """Encodes text as llama.cpp does."""

    def __init__(self, lib: ctypes.CDLL, vocabulary: int, name: str) -> None:
        """Use the vocabulary at an address. ``name`` is the model's file, for messages."""
        self._lib, self._vocabulary, self._name = lib, vocabulary, name
        self.n_vocab: int = lib.llama_vocab_n_tokens(vocabulary)
        bos, eos = lib.llama_vocab_bos(vocabulary), lib.llama_vocab_eos(vocabulary)
        self.bos: int | None = None if bos < 0 else bos
        self.eos: int | None = None if eos < 0 else eos
        self.add_bos: bool = lib.llama_vocab_get_add_bos(vocabulary) and self.bos is not None
        self.add_eos: bool = lib.llama_vocab_get_add_eos(vocabulary) and self.eos is not None

    def encode_array(
        self, text: str, *, limit: int | None = None, add_special: bool = True, parse_special: bool = False
    ) -> Tokens:
        """Return the tokens of a text, uint32 [n], but at most the first ``limit``.

        ``add_special`` puts BOS and EOS around it, if the file asks for them. ``parse_special`` makes text
        that spells a control token that token. Of a long text, only as much is encoded as the limit needs.
        Raises :class:`BadOptionError` for a text of more than 2 GB.
        """
        raw = text.encode("utf-8", "surrogateescape")
        if limit is None:
            return self._encode(raw, add_special, parse_special)
        n_bytes = BYTES_PER_TOKEN * (limit + SPARE_TOKENS)
        while n_bytes < len(raw):
            part = raw[:n_bytes].decode("utf-8", "ignore").encode()  # no half character at the end
            tokens = self._encode(part, add_special, parse_special)
            if len(tokens) >= limit + SPARE_TOKENS:
                return tokens[:limit]
            n_bytes *= 2
        return self._encode(raw, add_special, parse_special)[:limit]

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False, shield: str = ""
    ) -> list[int]:
        """Return the token ids of a text; the options are those of :meth:`encode_array`.

        A character ``shield`` is removed, and the parts before and after it are encoded by themselves
        (:meth:`shield`).
        """
        parts = text.split(shield) if shield else [text]
        tokens = [
            self.encode_array(part, add_special=add_special and i == 0, parse_special=parse_special).tolist()
            for i, part in enumerate(parts)
        ]
        return [token for part in tokens for token in part]

    def shield(self, text: str) -> str:
        """Return ``text`` with a :data:`SHIELD` inside everything that spells a control token.

        A user's words can then be put between real control tokens, and encoded together with them.
        """
        text = text.replace(SHIELD, "")
        for control in self._control_texts:
            text = text.replace(control, control[0] + SHIELD + control[1:])
        return text

    @cached_property
    def _control_texts(self) -> list[str]:
        """The texts of control tokens of two characters or more, the longest first."""
        control = (t for t in range(self.n_vocab) if self._lib.llama_vocab_is_control(self._vocabulary, t))
        texts = {self.piece(token).decode("utf-8", "surrogateescape") for token in control}
        return sorted((text for text in texts if len(text) > 1), key=len, reverse=True)

    def is_end_of_generation(self, token: int) -> bool:
        """Return whether the model ends its text or answer with ``token``."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def piece(self, token: int, *, skip_special: bool = False) -> bytes:
        """Return the bytes of one token, which may end within a character.

        With ``skip_special`` they are empty for a control token. Raises :class:`BadOptionError` for an id
        that is not in the vocabulary.
        """
        if not 0 <= token < self.n_vocab:
            raise BadOptionError(
                f"token {token} is not in the vocabulary, which has {counted(self.n_vocab, 'token')}"
            )
        room = 256
        while True:
            text = ctypes.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocabulary, token, text, room, 0, not skip_special)
            if n >= 0:
                return text.raw[:n]
            room = -n

    def stream(self, *, skip_special: bool = False) -> TokenStream:
        """Return a decoder for a generated text, which takes one token at a time."""
        return TokenStream(self, skip_special)

    def _encode(self, raw: bytes, add_special: bool, parse_special: bool) -> Tokens:
        room = len(raw) + 8  # a token has at least one byte, and few are added at the ends
        if room >= 1 << 31:
            raise BadOptionError(f"{self._name}: the text is longer than 2 GB; give a shorter one")
        tokens = (c_int32 * room)()
        n = self._lib.llama_tokenize(
            self._vocabulary, raw, len(raw), tokens, room, add_special, parse_special
        )
        if n < 0:
            raise BadOptionError(f"{self._name}: llama.cpp cannot split this text into tokens")
        return np.ctypeslib.as_array(tokens)[:n].astype(np.uint32)
