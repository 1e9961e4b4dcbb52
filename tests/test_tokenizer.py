"""Tokens: the same as llama.cpp's, for every kind of vocabulary and the hardest texts."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence, Split

import q4hifi
from q4hifi.errors import BadFileError, BadOptionError, UnsupportedModelError
from q4hifi.runtime import subwords
from q4hifi.runtime.merge_windows import CutRange, Merged, merged_in_windows
from q4hifi.runtime.pre_tokenizers import PRE_TOKENIZERS
from q4hifi.runtime.tokenizer import SHIELD, Tokenizer
from synthetic import EXAMPLE, Pair
from vocabularies import (
    HARD,
    INVALID,
    LlamaVocabulary,
    byte_level,
    hard_texts,
    learn,
    llama_vocabulary,
    tokenizer_pairs,
    write_vocabulary,
)

SPECIAL = {
    "<unk>": TokenType.UNKNOWN,
    "<s>": TokenType.CONTROL,
    "</s>": TokenType.CONTROL,
    "<|im_start|>": TokenType.CONTROL,
    "<|im_end|>": TokenType.CONTROL,
    "<|endoftext|>": TokenType.CONTROL,
    "[INST]": TokenType.USER_DEFINED,
    "[INST]]": TokenType.USER_DEFINED,
    "  \n": TokenType.USER_DEFINED,
    "<unused7>": TokenType.UNUSED,
}
ONE_OF_EACH = list({id(kind): name for name, kind in reversed(PRE_TOKENIZERS.items())}.values())[::-1]

Both = tuple[Tokenizer, LlamaVocabulary]


def byte_level_pairs(pre: str, **others: Any) -> list[Pair]:
    """A byte-level vocabulary with special tokens, and words that no merging leads to."""
    texts, merges = byte_level()
    texts = [*texts, *SPECIAL, "Ġclock", "uote", "Hello", "ĠWe", "Ġtwo"]
    ids = {"bos_token_id": texts.index("<s>"), "eos_token_id": texts.index("</s>")}
    texts = list(dict.fromkeys(texts))
    return tokenizer_pairs("gpt2", texts, SPECIAL, pre=pre, merges=merges, **ids, **others)


def sentence_piece_pairs(
    score: Callable[[int], float], *, longest: int | None = None, **others: Any
) -> list[Pair]:
    """A SentencePiece vocabulary with all bytes; ``score`` of a token by its number."""
    kinds = SPECIAL | {f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)}
    lines = [line.replace(" ", "▁") for line in HARD]
    texts = list(dict.fromkeys([*kinds, *learn(lines, 1500, "▁ab")[0]]))
    texts = [text for text in texts if text in kinds or longest is None or len(text) < longest]
    return tokenizer_pairs(
        "llama", texts, kinds, scores=[float(score(i)) for i in range(len(texts))], **others
    )


@contextmanager
def both(path: Path) -> Iterator[Both]:
    """The tokenizer of a model, and llama.cpp's."""
    with q4hifi.open(path) as model, llama_vocabulary(path) as theirs:
        yield Tokenizer.from_metadata(model.metadata), theirs


def assert_same(ours: Tokenizer, theirs: LlamaVocabulary, text: str | bytes) -> None:
    """Tokens with and without special ones, and what they decode to."""
    for special in (False, True):
        tokens = ours.encode(text, add_special=special, parse_special=special)
        assert tokens == theirs.encode(text, special, special), (text, special)
    for skip in (True, False):
        assert ours.decode_bytes(tokens, skip_special=skip) == theirs.decode(tokens, skip), (text, skip)


def assert_same_vocabulary(ours: Tokenizer, theirs: LlamaVocabulary) -> None:
    """What single tokens are and mean."""
    assert ours.n_vocab == theirs.n
    assert {token for token in range(ours.n_vocab) if ours.is_end_of_generation(token)} == theirs.ends()
    assert (ours.bos, ours.eos) == (theirs.special("bos"), theirs.special("eos"))
    for token in range(ours.n_vocab):
        for skip in (True, False):
            assert ours.piece(token, skip_special=skip) == theirs.piece(token, skip), token


# ---- byte-level BPE ------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_cuts_as_llama_cpp(pre: str, tmp_path: Path) -> None:
    with both(write_vocabulary(tmp_path / "model.gguf", byte_level_pairs(pre))) as (ours, theirs):
        if pre not in ONE_OF_EACH:  # another name of a row of the table
            assert all(ours.encode(text) == theirs.encode(text) for text in HARD)
            return
        for text in [*HARD, *INVALID]:
            assert_same(ours, theirs, text)


@pytest.fixture(scope="module")
def by_row(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Both]]:
    """Both tokenizers for one name of each row of the table."""
    path = tmp_path_factory.mktemp("rows")
    with ExitStack() as stack:
        yield {
            pre: stack.enter_context(both(write_vocabulary(path / f"{pre}.gguf", byte_level_pairs(pre))))
            for pre in ONE_OF_EACH
        }


@settings(derandomize=True, max_examples=100, deadline=None)
@given(text=hard_texts())
def test_every_pre_tokenizer_on_any_text(by_row: dict[str, Both], text: str) -> None:
    for pre, (ours, theirs) in by_row.items():
        assert ours.encode(text) == theirs.encode(text), pre


def test_the_rows_differ(by_row: dict[str, Both]) -> None:
    """Else the two tests above would prove little."""
    results = {tuple(tuple(ours.encode(text)) for text in HARD) for ours, _ in by_row.values()}
    assert len(results) >= 26


BEYOND = re.compile(rb"\xf4[\x90-\xbf][\x80-\xbf]{2}|[\xf5-\xf7][\x80-\xbf]{3}")
"""Forms beyond U+10FFFF, at which llama.cpp ends."""


@settings(derandomize=True, max_examples=300, deadline=None)
@given(data=st.lists(st.binary(max_size=4) | hard_texts().map(str.encode), max_size=5).map(b"".join))
def test_any_bytes(by_row: dict[str, Both], data: bytes) -> None:
    if not BEYOND.search(data):
        ours, theirs = by_row["qwen2"]
        assert ours.encode(data) == theirs.encode(data)


def every_class_of_bytes() -> Iterator[bytes]:
    """Every byte, and longer strings of every first byte and of bytes of each class that UTF-8 knows."""
    others = b"\x00\x20A\x80\x8d\x8f\x90\xa0\xbf\xc3\xed\xff"
    seconds = others + b"\x7f\x9f\xc0\xc1\xc2\xdf\xe0\xef\xf0\xf4\xf5"
    firsts = [0x61, 0x20, 0x80, *range(0xC0, 0x100)]
    yield from (bytes([byte]) for byte in range(256))
    for n, head, tail in ((2, range(256), seconds), (3, firsts, others), (4, firsts[3:], others[4:9])):
        yield from map(bytes, product(head, *[tail] * (n - 1)))


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
def test_every_class_of_bytes(kind: str, tmp_path: Path) -> None:
    pairs = byte_level_pairs("qwen2") if kind == "byte_level" else sentence_piece_pairs(SCORES["by_rank"])
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        for data in every_class_of_bytes():
            if kind == "sentence_piece" or not BEYOND.search(data):
                assert ours.encode(data) == theirs.encode(data), data


def test_every_pre_tokenizer_on_forms_that_are_not_utf8(by_row: dict[str, Both]) -> None:
    forms = [b"\xf0\x8d\xbf\xae", b"\xed\xa0\x80", b"\xc0\xa0", b"\xe0\x80\x8a", b"\xc0\xb1", b"\xff", b"\0"]
    others = [b" ", b"a", b"\n", b"1", b"'s", b",", "中".encode(), b"\xee\x80\x80", "\ufdd0\ufffe".encode()]
    chosen = random.Random(1)
    texts = [b"".join(chosen.choices(forms + others, k=chosen.randint(2, 9))) for _ in range(60)]
    for pre, (ours, theirs) in by_row.items():
        for text in texts:
            assert ours.encode(text) == theirs.encode(text), (pre, text)


def test_bytes_that_llama_cpp_cannot_take(by_row: dict[str, Both]) -> None:
    ours, _ = by_row["qwen2"]
    for data in (b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf"):
        assert ours.encode(data) == ours.encode("\ufffd" * 4)


@pytest.mark.parametrize(
    "flags", [{"add_bos_token": True}, {"add_eos_token": True}, {"add_space_prefix": True}]
)
@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
def test_flags_of_the_file(pre: str, flags: dict[str, bool], tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", byte_level_pairs(pre, **flags))
    with both(path) as (ours, theirs):
        for text in HARD:
            assert_same(ours, theirs, text)


@pytest.mark.parametrize("pre", ["", "llama-bpe", "glm4", "chatglm-bpe"])
def test_a_file_that_says_little(pre: str, tmp_path: Path) -> None:
    texts, merges = byte_level()
    pairs = tokenizer_pairs("gpt2", texts, {}, pre=pre, merges=merges)
    pairs = [pair for pair in pairs if pair[1] and not pair[0].endswith("token_type")]
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        assert_same_vocabulary(ours, theirs)
        for text in HARD:
            assert_same(ours, theirs, text)


# ---- SentencePiece -------------------------------------------------------------------------------

SCORES: dict[str, Callable[[int], float]] = {
    "by_rank": lambda i: -i,
    "equal": lambda i: 0,
    "ties": lambda i: -(i * 7919 % 13),
    "random": lambda i: random.Random(i).gauss(0, 5),
}


@pytest.fixture(scope="module", params=SCORES)
def sentence_piece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    path = tmp_path_factory.mktemp("spm") / "model.gguf"
    with both(write_vocabulary(path, sentence_piece_pairs(SCORES[request.param]))) as pair:
        yield pair


def test_sentence_piece(sentence_piece: Both) -> None:
    ours, theirs = sentence_piece
    assert_same_vocabulary(ours, theirs)
    for text in [*HARD, *INVALID]:
        assert_same(ours, theirs, text)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(text=hard_texts())
def test_sentence_piece_on_any_text(sentence_piece: Both, text: str) -> None:
    assert_same(*sentence_piece, text)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.lists(st.binary(max_size=4) | hard_texts().map(str.encode), max_size=5).map(b"".join))
def test_sentence_piece_on_any_bytes(sentence_piece: Both, data: bytes) -> None:
    assert_same(*sentence_piece, data)


@pytest.mark.parametrize(
    "flags",
    [{"add_space_prefix": False}, {"add_bos_token": False, "add_eos_token": True}, {"bos_token_id": 4}],
)
def test_sentence_piece_flags(flags: dict[str, Any], tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", sentence_piece_pairs(SCORES["by_rank"], **flags))
    with both(path) as (ours, theirs):
        assert_same_vocabulary(ours, theirs)
        for text in HARD:
            assert_same(ours, theirs, text)


def test_a_character_without_tokens_is_unknown() -> None:
    tokenizer = Tokenizer.from_metadata(metadata(["<unk>", "<s>", "</s>", "a", "<0xC3>"]))
    assert tokenizer.encode("aéa", add_special=False) == [0, 0, 0, 3, 4, 0, 3]  # ▁ has three bytes


# ---- long texts ----------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=200, deadline=None)
@given(text=hard_texts())
def test_no_word_spans_the_end_of_a_block(text: str) -> None:
    for name in ONE_OF_EACH:
        rules = PRE_TOKENIZERS[name]
        cut = Sequence([Split(Regex(split), "isolated") for split in rules.splits]).pre_tokenize_str
        words = [word for word, _ in cut(text)]
        for end in re.finditer(rules.block_ends, text):
            parts = [word for part in (text[: end.start()], text[end.start() :]) for word, _ in cut(part)]
            assert parts == words, (name, text[: end.start()])


ENDLESS = [
    *(
        "a" * 999,
        "ab" * 500,
        " " * 700,
        "\n" * 700,
        "\r\n" * 300,
        "7" * 500,
        "=" * 600,
        "中" * 300,
        "\ufffd" * 99,
    ),
    "x".join("the word that has no end " * 20),
    "A 1, b\nc" + "thequickbrownfox" * 40 + " 12\n",
    b"\xff" * 400 + b"\xed\xa0\x80" * 200,
]


SHORT = 20
"""Characters of a token that are less than the margins of the blocks below."""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything long is short."""
    sizes = {"BLOCK": 16, "_LONG": 100, "_MARGIN": 30, "_SAMPLE": 71, "_CACHED_LENGTH": 5}
    for name, size in sizes.items():
        monkeypatch.setattr(subwords, name, size)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pre", [name for name in ONE_OF_EACH if name != "jais-2"])  # which counts to 512
def test_blocks_give_the_tokens_of_the_whole(pre: str, tmp_path: Path) -> None:
    texts, merges = byte_level()
    short = [text for text in texts if len(text) < SHORT]
    merges = [pair for pair in merges if len(pair) <= SHORT]
    pairs = tokenizer_pairs("gpt2", short, {}, pre=pre, merges=merges)
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        for text in [*HARD, *INVALID, *ENDLESS, " ".join(HARD)]:
            assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("score", SCORES)
def test_blocks_of_sentence_piece(score: str, tmp_path: Path) -> None:
    pairs = sentence_piece_pairs(SCORES[score], longest=SHORT)
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        for text in [*HARD, *INVALID, *ENDLESS, " ".join(HARD)]:
            assert ours.encode(text) == theirs.encode(text), text


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    text=st.text("abc", max_size=120),
    pairs=st.lists(st.text("abc", min_size=2, max_size=5), unique=True, max_size=12),
    size=st.integers(2, 40),
    margin=st.integers(0, 3),
)
def test_windows_give_the_tokens_of_the_whole(text: str, pairs: list[str], size: int, margin: int) -> None:
    def merge(start: int, end: int) -> Merged:
        parts = list(text[start:end])
        while found := min(
            ((pairs.index(a + b), i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pairs),
            default=None,
        ):
            at = found[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        starts = [0, *accumulate(map(len, parts))][: len(parts)]
        return [int(part.translate(digits)) for part in parts], starts

    def cut_range(start: int, end: int) -> CutRange:
        return CutRange(1, end - start - margin)

    digits = str.maketrans("abc", "123")
    windows = merged_in_windows(len(text), size, merge, cut_range)
    assert [token for window in windows for token in window] == merge(0, len(text))[0]


def test_a_limit_reads_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = q4hifi.Model(EXAMPLE).tokenizer
    text = "some words, and 12 more\n" * 20_000
    whole = tokenizer.encode_array(text)
    assert whole.dtype == np.uint32 and whole.tolist() == tokenizer.encode(text)
    read: list[int] = []
    encode = subwords.ByteLevel._tokens
    monkeypatch.setattr(
        subwords.ByteLevel, "_tokens", lambda self, block: read.append(len(block)) or encode(self, block)
    )
    for limit in (0, 1, 100, 10_000, 1 << 30):
        read.clear()
        assert tokenizer.encode_array(text, limit=limit).tolist() == whole[:limit].tolist()
        assert sum(read) <= 6 * limit + 2 * subwords.BLOCK


LARGE = """
import resource, sys
import q4hifi
tokenizer = q4hifi.Model(sys.argv[1]).tokenizer
unit = eval(sys.argv[2])
tokenizer.encode_array(unit)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokenizer.encode_array(unit * (2_000_000 // len(unit)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs")
@pytest.mark.parametrize("unit", ["some words, and 12 more\n", "a", " ", "lorem"])
def test_memory_is_a_small_multiple_of_the_text(unit: str) -> None:
    command = [sys.executable, "-c", LARGE, str(EXAMPLE), repr(unit)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 25 * 2_000_000 / 1024


# ---- special tokens ------------------------------------------------------------------------------


def metadata(texts: list[str], model: str = "llama", **others: Any) -> dict[str, Any]:
    """Key-value pairs of a vocabulary, as a reader gives them."""
    return {key: value for key, value, _ in tokenizer_pairs(model, texts, SPECIAL, **others)}


ROLES = [
    "<|eot_id|> <|eom_id|>",
    "<|im_end|> <|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|fim_pad|> <|repo_name|> <|file_sep|>",
    "<end_of_turn> <eos> <bos>",
    "<｜end▁of▁sentence｜> <｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜>",
    "▁<PRE> ▁<SUF> ▁<MID> <EOT> <PAD>",
    "<|return|> <|call|> <|end|> <|channel|> <|message|> <|start|> <|constrain|>",
    "<|flush|> <|calls|> <|end|>",
    "<|call|> <|end|> <|channel|>",
    "<|tool_response> <turn|>",
    "<reponame> <fim_prefix> <fim_suffix> <fim_middle> <fim_pad> <|end_of_text|>",
]


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.NORMAL, TokenType.USER_DEFINED])
@pytest.mark.parametrize("texts", ROLES)
def test_roles_told_by_text(texts: str, kind: TokenType, tmp_path: Path) -> None:
    words = texts.split()
    learned, merges = byte_level()
    kinds = dict.fromkeys(words, kind)
    pairs = tokenizer_pairs(
        "gpt2", [*learned, "</s>", *words], kinds, pre="gpt-2", merges=merges, eos_token_id=3
    )
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        assert {t for t in range(ours.n_vocab) if ours.is_end_of_generation(t)} == theirs.ends()
        text = "a ".join([*words, "</s>", "!"])
        for parse in (True, False):
            tokens = ours.encode(text, parse_special=parse)
            assert tokens == theirs.encode(text, True, parse)
        if kind != TokenType.NORMAL:
            assert_same(ours, theirs, text)


@pytest.mark.parametrize("name", ["", "phi-3"])
@pytest.mark.parametrize("alphabet", ["ab", "abc", "a \n"])
def test_special_tokens_that_overlap(alphabet: str, name: str, tmp_path: Path) -> None:
    chosen = random.Random(alphabet)
    texts, merges = byte_level()
    kinds = dict.fromkeys(
        ("".join(chosen.choices(alphabet, k=k)) for k in (2, 3, 3, 4, 5, 6, 6, 9)), TokenType.CONTROL
    )
    kinds |= dict.fromkeys([alphabet * 2], TokenType.USER_DEFINED)
    kinds |= dict.fromkeys(
        ["<unk>", "<s>", "</s>", "<|endoftext|>"], TokenType.CONTROL
    )  # or llama.cpp refuses Phi-3
    pairs = tokenizer_pairs("gpt2", list(dict.fromkeys([*texts, *kinds])), kinds, pre="qwen2", merges=merges)
    pairs.append(("general.name", name, GGUFValueType.STRING))
    with both(write_vocabulary(tmp_path / "model.gguf", pairs)) as (ours, theirs):
        for _ in range(200):
            text = "".join(chosen.choices(alphabet, k=chosen.randint(1, 40)))
            for parse in (True, False):
                assert ours.encode(text, parse_special=parse) == theirs.encode(text, True, parse), (
                    kinds,
                    text,
                )


def test_many_special_tokens_take_no_more_time_than_few() -> None:
    texts = [f"<unused{i}>" for i in range(5000)]
    kinds = dict.fromkeys(texts, TokenType.CONTROL)
    pairs = tokenizer_pairs("llama", ["<unk>", "<s>", "</s>", *texts], kinds, add_space_prefix=False)
    tokenizer = Tokenizer.from_metadata({key: value for key, value, _ in pairs})
    start = time.process_time()
    tokens = tokenizer.encode("".join(texts) * 20, add_special=False, parse_special=True)
    assert tokens == list(range(3, 5003)) * 20
    assert time.process_time() - start < 30  # 0.5 s; minutes where every token is looked for in every piece


def test_the_end_of_a_turn() -> None:
    texts = ["a", "<|endoftext|>", "<|im_end|>"]
    tokenizer = Tokenizer.from_metadata(metadata(texts, eos_token_id=1))
    assert (tokenizer.eos, tokenizer.eot) == (1, 2)
    assert Tokenizer.from_metadata(metadata(texts, eot_token_id=1)).eot == 1
    assert Tokenizer.from_metadata(metadata(["a", "b"])).eot is None


def test_ids_that_are_no_tokens_are_ignored(tmp_path: Path) -> None:
    wrong = {f"{name}_token_id": 1 << 20 for name in ("bos", "eos", "eot")}
    with both(write_vocabulary(tmp_path / "m.gguf", sentence_piece_pairs(SCORES["by_rank"], **wrong))) as (
        ours,
        theirs,
    ):
        assert_same_vocabulary(ours, theirs)


def test_special_tokens_of_phi_3_swallow_blanks(tmp_path: Path) -> None:
    name: Pair = ("general.name", "My Phi-3 mini", GGUFValueType.STRING)
    path = write_vocabulary(tmp_path / "model.gguf", [*sentence_piece_pairs(SCORES["by_rank"]), name])
    with both(path) as (ours, theirs):
        for text in ["<|im_start|> \n a</s>  b<s> c [INST] \t d<|im_end|>\n", "x<|endoftext|> x <unk> x"]:
            assert_same(ours, theirs, text)


def test_a_user_cannot_spell_control_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(metadata([*SPECIAL, *"<>|/_imstardn"], add_space_prefix=False))
    start = list(SPECIAL).index("<|im_start|>")
    text = "<|im_start|>"
    assert tokenizer.encode(text, add_special=False, parse_special=True) == [start]
    assert start not in tokenizer.encode(text)
    assert tokenizer.is_control(start) and not tokenizer.is_control(list(SPECIAL).index("[INST]"))
    assert tokenizer.decode([start]) == text and tokenizer.decode([start], skip_special=True) == ""


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>", "a <|im_start|><|im_end|> b", "<|im_<|im_start|>start|>", "<s><s></s>", "plain\ufdd0"],
)
def test_shielded_words_are_text_between_control_tokens(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(metadata([*SPECIAL, *"<>|/_imstardnplb "], add_space_prefix=False))
    start, end = (list(SPECIAL).index(f"<|im_{name}|>") for name in ("start", "end"))
    prompt = f"<|im_start|>{tokenizer.shield(text)}<|im_end|>"
    tokens = tokenizer.encode(prompt, add_special=False, parse_special=True, shield=SHIELD)
    assert tokens == [start, *tokenizer.encode(text.replace(SHIELD, ""), add_special=False), end]


# ---- decoding ------------------------------------------------------------------------------------


def test_round_trips_of_the_example_model() -> None:
    with both(EXAMPLE) as (ours, theirs):
        assert_same_vocabulary(ours, theirs)
        assert ours.eot == theirs.special("eot")
        for text in [*HARD, *INVALID, EXAMPLE.with_name("README.md").read_text()]:
            assert_same(ours, theirs, text)
        text = "def f(x):\n    return x ** 2  # naïve 中文 👍🏽\n"
        assert ours.decode(ours.encode(text)) == text


@settings(derandomize=True, deadline=None)
@given(text=hard_texts())
def test_round_trips(by_row: dict[str, Both], sentence_piece: Both, text: str) -> None:
    tokenizer = by_row["qwen2"][0]
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
    if not any(special in text for special in ("[INST]", "  \n", "▁")):  # a blank is put after these
        tokenizer = sentence_piece[0]
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


@settings(derandomize=True, deadline=None)
@given(text=hard_texts())
def test_a_stream_holds_back_what_is_no_character_yet(by_row: dict[str, Both], text: str) -> None:
    tokenizer = by_row["smollm"][0]
    stream, out = tokenizer.stream(), ""
    for token in tokenizer.encode(text, add_special=False):
        out += stream.feed(token)
        assert text.startswith(out)
    assert out == text and stream.finish() == ""


def test_a_stream_that_ends_within_a_character(by_row: dict[str, Both]) -> None:
    tokenizer = by_row["qwen2"][0]
    bos = tokenizer.bos
    assert bos is not None
    stream = tokenizer.stream(skip_special=True)
    byte = next(token for token in range(tokenizer.n_vocab) if tokenizer.piece(token) == b"\xe2")
    assert [stream.feed(byte), stream.feed(bos), stream.finish()] == ["", "", "\ufffd"]
    assert tokenizer.stream().feed(bos) == "<s>"
    assert tokenizer.decode([byte]) == "\ufffd" and tokenizer.decode_bytes([byte]) == b"\xe2"


# ---- errors --------------------------------------------------------------------------------------


def test_what_is_not_supported() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model is 'bert'; .* gpt2 .* llama .* are supported"):
        Tokenizer.from_metadata(metadata(["a"], model="bert"))
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.model is missing"):
        Tokenizer.from_metadata({})
    with pytest.raises(
        UnsupportedModelError, match=r"pre is 'klingon'; only these are supported: .*llama-bpe, .*qwen2"
    ):
        Tokenizer.from_metadata(metadata(["a"], model="gpt2", pre="klingon", merges=["a a"]))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": None}, "tokens is missing"),
    "empty": ({"tokens": []}, "tokens has 0 elements"),
    "no list": ({"tokens": "abc"}, "tokens is 'abc', not an array"),
    "numbers": ({"tokens": [1, 2]}, "tokens has elements of the wrong type, such as 1"),
    "twice": ({"tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'"),
    "types": ({"token_type": [1]}, "token_type has 1 elements; at least 2 are needed"),
    "scores": ({"scores": [0.5]}, "scores has 1 elements"),
    "score": ({"scores": ["x", "y"]}, "scores has elements of the wrong type, such as 'x'"),
    "merges": ({"model": "gpt2"}, "merges is missing"),
    "byte": ({"token_type": [6, 1]}, "token 0 has the type BYTE, but its text is 'a'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_damaged_vocabularies(changes: dict[str, Any], message: str) -> None:
    pairs = metadata(["a", "b"]) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(BadFileError, match=message):
        Tokenizer.from_metadata({key: value for key, value in pairs.items() if value is not None})


def test_tokens_that_are_not_utf8() -> None:
    texts = ["a", "\udcff", "b"]  # as the reader gives a byte FF
    tokenizer = Tokenizer.from_metadata(metadata(texts, model="gpt2", pre="gpt-2", merges=[]))
    assert tokenizer.encode("ab") == [0, 2]
    assert tokenizer.decode_bytes([0, 1]) == b"a\xff"


def test_wrong_arguments() -> None:
    tokenizer = Tokenizer.from_metadata(
        metadata(["<unk>", "<s>", "</s>", "▁", "<0xFF>"], add_space_prefix=False)
    )
    for token in (5, -1):
        with pytest.raises(BadOptionError, match=f"token {token} is not in the vocabulary, which has 5"):
            tokenizer.decode([token])
    with pytest.raises(BadOptionError, match="not valid Unicode at character 1"):
        tokenizer.encode("a\ud800")
    assert tokenizer.encode(" \udcff") == tokenizer.encode(b" \xff")
