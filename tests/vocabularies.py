"""Small vocabularies learned from hard texts, models that hold them, and llama.cpp's tokens."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, TokenType
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import oracle
from synthetic import ROOT, Pair, write_model

HARD = [
    "Hello world, it's HERE'S they'LL We've I'm you'd don't DON'T 'tis rock'n'roll o'clock 'quoted' ' s ' ll",
    "  two   three    four     five      blanks \t tab\t\ttabs  \n\n\n lines \r\n\r\n  \n \n\n  end   ",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² ٣٤٥ १२३ Ⅻ 𝟙𝟚𝟛 x86_64 abc123def4567 v1.2.3",
    "emoji 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 ☺️ 1️⃣ 🤷🏿‍♀️",
    "中文字符测试，你好世界。日本語のテキストです、カタカナ。한국어 텍스트 입니다 ㄱㄴㄷ ㅏㅑ",
    "Привет, мир! Съешь же ещё этих мягких французских булок. ΑΒΓ αβγ ΐ Ὥ",
    "مرحبا بالعالم، كيف الحال؟ שלום עולם ภาษาไทยไม่มีช่องว่าง हिन्दी में नमस्ते বাংলা தமிழ் ខ្មែរ မြန်မာ",
    "e\u0301 o\u0308\u0304 n\u0303 Z\u0351\u036b\u0343\u036a\u0302 \u0301alone a\u20dd Å",
    "nbsp\u00a0here\u00a0\u00a0thin\u2009sp\u202fnarrow\u3000wide\u3000\u3000 line\u2028par\u2029nel\u0085end \u1680 \ufeff \u200b",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x9f",
    "def f(x): return {'a': [1, 2], \"b\": x ** 2}  # comment\n    if x!=0 and not y:\n\t\treturn -x\n\n",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ... --- *** ///// <<<>>> $$$ +++ === ^^^ ~~~ ||| ``` ©®™€£¥§¶†‡•…‰",
    "CamelCaseWords XMLHttpRequest iPhone eBay McDonald's ÄpfelÖl ÉCOLE éCole ǅ ǈ ʰ ª º ſ K",
    "http://example.com/path?q=1&r=2#x user@mail.org C:\\dir\\file.txt /usr/bin/*",
    "<sentinel:12> IMGIMGABCZ <|im_start|> </s> <s> [INST] <0x0A> <unk>",
    "\u10ffff \ue000 \uffff \ufffd \U000e0001 \U0001f9ff \ud7ff \uf8ff \ufdd0",
    "\u0378\u0530 unassigned \U0001fffe",
    "word" * 40 + " " + "é" * 50 + " " * 70 + "x" + "\n" * 20 + "9" * 50 + "!" * 30 + "ー" * 20,
    " ", "  ", "\n", "\n\n", "\t", " \n", "\n ", "a", " a", "a ", "'", "'s", " 's", "''", "1", " 1", "é", " é", "　",
    "a  b", "a\n\nb", "a \n b", "a\r\nb", " \u00a0 ", "?!", " ?!", "a ?", "12 ", "hello hello hello", " .", " , ' s 'm 're",
]  # fmt: skip
"""Texts on which tokenizers are known to differ."""

INVALID = [
    b"\xff", b"\x80", b"abc\xc3", b"\xe2\x82", b"a\xe2\x82z", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\xf0", b"\xc3\x28 x",
    b"\xc0\x80", b"\xe0\x80\xaf", b"\xf0\x80\x80\x80", b"\xfe\xfe\xff\xff", b"hello\xa0world \xe9t\xe9", b"\xbf" * 9,
    b" \xff \xff", b"1\xff2", b"\xf8\x88\x80\x80\x80", "é".encode() + b"\xcc", b"\xc3\xa9\xc3\xc3\xa9",
]  # fmt: skip
"""Texts that are not UTF-8, without the forms that make llama.cpp stop (beyond U+10FFFF)."""

_TEXT = [*HARD, *(ROOT / "README.md").read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Learned:
    """Texts of tokens in the order in which they were learned, and the pairs that made them."""

    texts: list[str]
    merges: list[str]


def learn(lines: Iterable[str], n: int, alphabet: Iterable[str]) -> Learned:
    """Learn ``n`` tokens from lines that are not cut into words, so that cutting them makes a difference."""
    trainer = trainers.BpeTrainer(vocab_size=n, initial_alphabet=list(alphabet), show_progress=False)  # type: ignore[call-arg]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Learned(sorted(model["vocab"], key=model["vocab"].get), pairs)


def byte_level(n: int = 1500) -> Learned:
    """A byte-level vocabulary."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    lines = [to_bytes.pre_tokenize_str(line)[0][0] for line in _TEXT if line]
    return learn(lines, n, pre_tokenizers.ByteLevel.alphabet())


def pairs_of(model: str, texts: list[str], kinds: list[int] | None = None, **others: Any) -> list[Pair]:
    """Key-value pairs ``tokenizer.ggml.*``; ``others`` by the rest of the key, type told from the value."""
    kinds = kinds or [TokenType.NORMAL] * len(texts)
    values = {"model": model, "tokens": texts, "token_type": [int(k) for k in kinds], **others}
    return [(f"tokenizer.ggml.{key}", value, _type(value)) for key, value in values.items()]


def _type(value: Any) -> GGUFValueType:
    if isinstance(value, list):
        return GGUFValueType.ARRAY
    kinds = {bool: GGUFValueType.BOOL, str: GGUFValueType.STRING, int: GGUFValueType.UINT32}
    return kinds[type(value)]


def write_vocabulary(path: Path, pairs: Iterable[Pair]) -> Path:
    """Write a whole model, which llama.cpp loads, around a vocabulary."""
    pairs = list(pairs)
    n = next(len(value) for key, value, _ in pairs if key == "tokenizer.ggml.tokens")
    width, wide = 32, 64
    numbers = {"context_length": 512, "embedding_length": width, "feed_forward_length": wide}
    numbers |= {"attention.head_count": 1, "rope.dimension_count": width}
    shape: list[Pair] = [(f"llama.{key}", value, GGUFValueType.UINT32) for key, value in numbers.items()]
    shape.append(("llama.attention.layer_norm_rms_epsilon", 1e-5, GGUFValueType.FLOAT32))
    sizes = {"token_embd": (n, width), "output_norm": (width,)}
    sizes |= {f"blk.0.{name}_norm": (width,) for name in ("attn", "ffn")}
    sizes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    sizes |= {f"blk.0.ffn_{name}": (wide, width) for name in ("gate", "up")} | {"blk.0.ffn_down": (width, wide)}
    tensors = {f"{name}.weight": np.zeros(size, np.float32) for name, size in sizes.items()}
    return write_model(path, tensors, pairs=[*shape, *pairs])


# ---- llama.cpp -----------------------------------------------------------------------------------


class LlamaVocabulary:
    """llama.cpp's tokenizer of one model."""

    def __init__(self, vocabulary: int) -> None:
        """``vocabulary``: a ``llama_vocab *``."""
        self._vocabulary = vocabulary
        self._lib = lib = oracle.library()
        lib.llama_token_to_piece.argtypes = [c_void_p, c_int32, c_void_p, c_int32, c_int32, c_bool]
        for name in ("bos", "eos", "eot"):
            getattr(lib, f"llama_vocab_{name}").argtypes = [c_void_p]

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of ``text``."""
        data = text.encode() if isinstance(text, str) else text
        room = 3 * len(data) + 8
        tokens = (c_int32 * room)()
        n = self._lib.llama_tokenize(
            self._vocabulary, c_char_p(data), len(data), tokens, room, add_special, parse_special
        )
        assert n >= 0
        return tokens[:n]

    def decode(self, tokens: list[int], skip_special: bool = False) -> bytes:
        """Text of ``tokens``."""
        room = 256 * (len(tokens) + 1)
        text = ctypes.create_string_buffer(room)
        array = (c_int32 * len(tokens))(*tokens)
        n = self._lib.llama_detokenize(
            self._vocabulary, array, len(tokens), text, room, False, not skip_special
        )
        assert n >= 0
        return text.raw[:n]

    def piece(self, token: int, skip_special: bool = False) -> bytes:
        """Text of one token."""
        text = ctypes.create_string_buffer(1024)
        n = self._lib.llama_token_to_piece(self._vocabulary, token, text, 1024, 0, not skip_special)
        assert n >= 0
        return text.raw[:n]

    def ends(self) -> set[int]:
        """Tokens that end a generation."""
        n = self._lib.llama_vocab_n_tokens(self._vocabulary)
        return {token for token in range(n) if self._lib.llama_vocab_is_eog(self._vocabulary, token)}

    def special(self, name: str) -> int | None:
        """The token of a role: bos, eos or eot."""
        token: int = getattr(self._lib, f"llama_vocab_{name}")(self._vocabulary)
        return token if token >= 0 else None


@contextmanager
def llama_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """The vocabulary of a model, for as long as the model is loaded."""
    with oracle.loaded(path) as model:
        yield LlamaVocabulary(oracle.library().llama_model_get_vocab(model))
