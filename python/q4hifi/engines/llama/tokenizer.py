"""llama.cpp's tokenizer, for a model that it has loaded."""

from __future__ import annotations

import ctypes
from ctypes import c_int32

import numpy as np

from ...errors import BadOptionError
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
        bos = lib.llama_vocab_bos(vocabulary)
        self.bos: int | None = None if bos < 0 else bos
        self.add_bos: bool = lib.llama_vocab_get_add_bos(vocabulary) and self.bos is not None

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
