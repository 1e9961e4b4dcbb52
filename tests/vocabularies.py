"""Small vocabularies learned from hard texts, models that hold them, and llama.cpp's tokens."""

from __future__ import annotations

import ctypes
import json
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_int32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType, TokenType
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import oracle
from synthetic import Pair, write_model

HARD = [
    "Hello world, it's HERE'S they'LL We've I'm you'd don't DON'T 'tis rock'n'roll o'clock 'quoted' ' s ' ll",
    "  two   three    four     five      blanks \t tab\t\ttabs  \n\n\n lines \r\n\r\n  \n \n\n  end   ",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² ٣٤٥ १२३ Ⅻ 𝟙𝟚𝟛 x86_64 abc123def4567 v1.2.3",
    "emoji 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️‍🔥 ☺️ 1️⃣ 🤷🏿‍♀️",
    "中文字符测试，你好世界。日本語のテキストです、カタカナ。한국어 텍스트 입니다 ㄱㄴㄷ ㅏㅑ",
    "Привет, мир! Съешь же ещё этих мягких французских булок. ΑΒΓ αβγ ΐ Ὥ",
    "مرحبا بالعالم، كيف الحال؟ שלום עולם ภาษาไทยไม่มีช่องว่าง हिन्दी में नमस्ते বাংলা தமிழ் ខ្មែរ မြန်မာ",
    "e\u0301 o\u0308\u0304 n\u0303 Z\u0351\u036b\u0343\u036a\u0302 \u0301alone a\u20dd Å",
    "nbsp\u00a0\u00a0thin\u2009sp\u202fnarrow\u3000\u3000 l\u2028p\u2029n\u0085e \u1680 \ufeff \u200b",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x9f",
    "def f(x): return {'a': [1, 2], \"b\": x ** 2}  # comment\n    if x!=0 and not y:\n\t\treturn -x\n\n",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ... --- *** ///// <<<>>> $$$ +++ === ^^^ ~~~ ||| ``` ©®™€£¥§¶†‡•…‰",
    "CamelCaseWords XMLHttpRequest iPhone eBay McDonald's ÄpfelÖl ÉCOLE éCole ǅ ǈ ʰ ª º ſ \u212a",
    "http://example.com/path?q=1&r=2#x user@mail.org C:\\dir\\file.txt /usr/bin/* `code` $PATH",
    "<sentinel:12> IMGIMGABCZ <|im_start|> </s> <s> [INST] [INST]] <0x0A> <unk>",
    "\U0010ffff \ue000 \uffff \ufffd \U000e0001 \U0001f9ff \ud7ff \uf8ff \ufdd0 \u0378\u0530 \U0001fffe",
    "word" * 40 + " " + "é" * 50 + " " * 70 + "x" + "\n" * 20 + "9" * 50 + "!" * 30 + "ー" * 20,
    *(
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        " \n",
        "\n ",
        "a",
        " a",
        "a ",
        "'",
        "'s",
        " 's",
        "''",
        "1",
        " 1",
        "é",
    ),
    *(
        " é",
        "\u3000",
        "a  b",
        "a\n\nb",
        "a \n b",
        "a\r\nb",
        " \u00a0 ",
        "?!",
        " ?!",
        "a ?",
        "12 ",
        " .",
        "▁",
        " ▁",
    ),
    *("hello hello hello", "~me", "#tag", " , ' s 'm 're", "aaaaaaa", "a a a", "x\n\n\n\n", "x \n\n \n\n"),
]
"""Texts on which tokenizers are known to differ."""

INVALID = [
    *(b"\xff", b"\x80", b"abc\xc3", b"\xe2\x82", b"a\xe2\x82z", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\xf0"),
    *(b"\xc3\x28 x", b"\xc0\x80", b"\xe0\x80\xaf", b"\xf0\x80\x80\x80", b"\xfe\xfe\xff\xff", b"\xbf" * 9),
    *(
        b"hello\xa0world \xe9t\xe9",
        b" \xff \xff",
        b"1\xff2",
        b"\xf8\x88\x80\x80\x80",
        b"\xc3\xa9\xc3\xc3\xa9",
    ),
    *("é".encode() + b"\xcc", b"\xe2\x96\x81\xe2\x96"),
]
"""Texts that are not UTF-8, without the forms beyond U+10FFFF, which stop llama.cpp."""

_HOT = [
    *" \t\n\r\v\0\x1c'sStTrRvVlLdDmM019.,!?/-_▁aAzZéÉßКб中日ーㅏก½٣ªʰ$+<=>^~|`€",
    *"\u0301\u200d\u00a0\u3000\u0085👍🏽",
]
_LONG = [
    "'ll",
    "'S",
    "  ",
    "\n\n",
    "123",
    "1234",
    " a",
    "the",
    "aaa",
    "http://",
    "[INST]",
    "</s>",
    "<|im_start|>",
]


@cache
def _old_characters() -> list[str]:
    """Characters of Unicode 3.2: every library knows them, and knows the same of them."""
    old = unicodedata.ucd_3_2_0
    return [c for c in map(chr, range(0x110000)) if old.category(c) not in ("Cn", "Cs")]


def hard_texts() -> st.SearchStrategy[str]:
    """Short texts, mostly of what tokenizers treat specially."""
    character = (
        st.sampled_from(_HOT)
        | st.sampled_from(_LONG)
        | st.deferred(lambda: st.sampled_from(_old_characters()))
    )
    return st.lists(character, max_size=24).map("".join)


# ---- learning ------------------------------------------------------------------------------------


def learn(lines: Iterable[str], n: int, alphabet: Iterable[str]) -> tuple[list[str], list[str]]:
    """Texts of about ``n`` tokens, in the order in which they were learned, and the pairs they come from.

    The lines are not cut into words, so that it shows when they are.
    """
    trainer = trainers.BpeTrainer(vocab_size=n, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(lines, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), pairs


@cache
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and pairs of a byte-level vocabulary."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    lines = [to_bytes.pre_tokenize_str(line)[0][0] for line in HARD if line]
    return learn(lines, 2000, pre_tokenizers.ByteLevel.alphabet())


def tokenizer_pairs(model: str, texts: list[str], kinds: dict[str, TokenType], **others: Any) -> list[Pair]:
    """Key-value pairs of a vocabulary: ``kinds`` of the tokens that are not normal, ``others`` by key."""
    types = [int(kinds.get(text, TokenType.NORMAL)) for text in texts]
    values = {"model": model, "tokens": texts, "token_type": types, **others}
    value_types = {list: GGUFValueType.ARRAY, bool: GGUFValueType.BOOL, str: GGUFValueType.STRING}
    return [
        (f"tokenizer.ggml.{key}", value, value_types.get(type(value), GGUFValueType.UINT32))
        for key, value in values.items()
    ]


def write_vocabulary(path: Path, pairs: Iterable[Pair]) -> Path:
    """Write a whole model, which llama.cpp loads, around a vocabulary."""
    pairs = list(pairs)
    n = next(len(value) for key, value, _ in pairs if key == "tokenizer.ggml.tokens")
    numbers = {"context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    numbers |= {"attention.head_count": 1, "rope.dimension_count": 32}
    shape: list[Pair] = [(f"llama.{key}", value, GGUFValueType.UINT32) for key, value in numbers.items()]
    shape.append(("llama.attention.layer_norm_rms_epsilon", 1e-5, GGUFValueType.FLOAT32))
    sizes: dict[str, tuple[int, ...]] = {
        "token_embd": (n, 32),
        "output_norm": (32,),
        "blk.0.ffn_down": (32, 64),
    }
    sizes |= {f"blk.0.{name}_norm": (32,) for name in ("attn", "ffn")}
    sizes |= {f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")}
    sizes |= {f"blk.0.ffn_{name}": (64, 32) for name in ("gate", "up")}
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
        self.n: int = lib.llama_vocab_n_tokens(vocabulary)

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Tokens of ``text``."""
        data = text.encode() if isinstance(text, str) else text
        room = 3 * len(data) + 8  # an invalid byte becomes U+FFFD, which has three
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
        return {t for t in range(self.n) if self._lib.llama_vocab_is_eog(self._vocabulary, t)}

    def special(self, name: str) -> int | None:
        """The token of a role: bos, eos or eot."""
        token: int = getattr(self._lib, f"llama_vocab_{name}")(self._vocabulary)
        return token if token >= 0 else None


@contextmanager
def llama_vocabulary(path: Path) -> Iterator[LlamaVocabulary]:
    """The vocabulary of a model, for as long as the model is loaded."""
    with oracle.loaded(path) as model:
        yield LlamaVocabulary(oracle.library().llama_model_get_vocab(model))
