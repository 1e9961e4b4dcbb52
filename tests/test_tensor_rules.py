"""Rules for tensors' types: the expressions are llama-quantize's, and rules without effect are reported."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

import q4hifi
from command import Run
from q4hifi.errors import BadOptionError
from q4hifi.formats.layout import StoredTensor
from q4hifi.formats.types import F16, F32, tensor_type
from q4hifi.plan.model_shape import ModelShape
from q4hifi.plan.options import TypeOptions
from q4hifi.plan.plan import Plan, make_plan
from q4hifi.plan.tensor_patterns import compile_pattern
from q4hifi.plan.tensor_rules import TensorRules
from q4hifi.plan.tensor_type_rules import parse_tensor_type, read_tensor_type_file
from q4hifi.plan.tensor_types_file import write_tensor_types
from synthetic import EXAMPLE, write_imatrix, write_small_model, write_stored

RECORDED = json.loads((Path(__file__).parent / "golden" / "std_regex.json").read_text())

VALUE, QUERY, DOWN = (f"blk.0.{part}.weight" for part in ("attn_v", "attn_q", "ffn_down"))


# ---- the dialect ---------------------------------------------------------------------------------


def test_patterns_are_found_where_std_regex_finds_them() -> None:
    """Or refused: always where it refuses them, and else only what other programs read differently."""
    refused = []
    for pattern, found in RECORDED["found"].items():
        try:
            compiled = compile_pattern(pattern)
        except BadOptionError as error:
            if found != "e":
                refused.append((pattern, str(error)))
            continue
        assert "".join(str(int(compiled.search(name))) for name in RECORDED["names"]) == found, pattern
    assert len(refused) < 30
    reasons = ("two quantifiers", "nothing in the brackets", "needs brackets of its own", "[:name:]")
    for _, message in refused:
        assert any(why in message for why in (*reasons, "is not supported", "back-references")), message


@pytest.mark.parametrize(
    ("pattern", "place", "remedy"),
    [
        ("[:alpha:]+", 1, "write [[:alpha:]]"),
        ("a[:digit:]", 2, "write [[:digit:]]"),
        ("[^:digit:]", 1, "write [^[:digit:]]"),
        ("[[=a=]]", 2, "classes are written [:name:]"),
        ("[[.a.]]", 2, "classes are written [:name:]"),
        ("[[:letter:]]", 2, "alnum, alpha, blank"),
        ("x(?<=a)b", 2, "lookbehinds"),
        ("(?<!a)b", 1, "lookbehinds"),
        ("(?P<layer>[0-9])", 1, "named groups"),
        ("(?P=layer)", 1, "named groups"),
        ("(?i)attn", 1, "write the pattern in lower case"),
        ("(?i:attn)", 1, "write the pattern in lower case"),
        ("(?>a)b", 1, "atomic groups"),
        ("(?#why)a", 1, "comments"),
        (r"(attn)_\1", 8, "write the repeated text"),
        ("a++", 3, "write (?:...) around the first"),
        ("a{2}{3}", 5, "write (?:...) around the first"),
        ("(?!a)*", 6, "an assertion cannot be repeated"),
        ("a{,3}", 2, "{n}, {n,} or {n,m}"),
        ("a{3,1}", 2, "the smaller one first"),
        ("a{9999999999}", 2, "at most 1000"),
        ("*.weight", 1, r"write \* for the character"),
        ("attn_v|+", 8, r"write \+ for the character"),
        ("[]a]", 1, r"write \] for the character"),
        ("[^]", 1, r"write \] for the character"),
        ("blk[0-9", 4, r"write \[ for the character"),
        ("[z-a]", 3, r"write \- for the character"),
        (r"[\d-z]", 4, r"write \- for the character"),
        ("[0-9\u00e9]", 5, "ASCII characters only"),
        ("a(b", 2, r"write \( for the character"),
        ("a)b", 2, r"write \) for the character"),
        (r"\Ablk", 1, "write A for the character"),
        (r"\cA", 1, "is not supported"),
        (r"\x6", 1, "2 hexadecimal digits"),
        (r"\u00e9", 1, "write the character itself"),
        ("a\\", 2, "ends in a backslash"),
        ("\u00e9+", 1, "write (?:...) around it"),
        ("(" * 60 + ")" * 60, 52, "nested parentheses"),
    ],
)
def test_what_llama_quantize_reads_otherwise_is_refused(pattern: str, place: int, remedy: str) -> None:
    with pytest.raises(
        BadOptionError, match="is no regular expression that llama-quantize supports"
    ) as caught:
        TypeOptions(tensor_types=[(pattern, "q8_0")])
    assert f"(character {place}): " in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("(a+)+$", True),
        ("(a+)+b", False),
        ("(a|aa)+b", False),
        ("(a*)*b", False),
        ("^(([a-z])+.)+[A-Z]([a-z])+$", False),
        ("(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)b", False),
        ("(?:(?:a?){1000}){3}b", False),
        ("(?!(a+)+b)a", True),
    ],
)
def test_no_pattern_takes_exponential_time(pattern: str, found: bool) -> None:
    started = time.monotonic()
    assert compile_pattern(pattern).search("a" * 63) == found
    assert time.monotonic() - started < 20  # milliseconds; one step after another would take years


def test_a_pattern_that_takes_too_long_is_refused() -> None:
    pattern = "((((.?){50}){50}){50}){50}x"
    with pytest.raises(BadOptionError, match=r"takes too long on the tensor 'blk\.0.*fewer repeats inside"):
        compile_pattern(pattern + "|y").search("blk.0.attn_v.weight")
    assert not compile_pattern(pattern).search("blk.0.attn_v.weight")  # it has no x


# ---- REGEX=TYPE ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("attn_v=q8_0", ("attn_v", "q8_0")),
        ("attn_v = q8_0", ("attn_v", "q8_0")),
        ("  ATTN_V\t=Q8_0 ", ("attn_v", "Q8_0")),
        (r"[[:DIGIT:]]\.\x2E=q8_0", (r"[[:digit:]]\.\x2e", "q8_0")),
        (r"a\\D=q8_0", (r"a\\d", "q8_0")),
        (r"a\x3db=q8_0", (r"a\x3db", "q8_0")),
        ("\u00c9=q8_0", ("\u00c9", "q8_0")),
    ],
)
def test_rules_are_read_as_llama_quantize_reads_them(text: str, rule: tuple[str, str]) -> None:
    assert parse_tensor_type(text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attn_v", "write REGEX=TYPE"),
        (" = q8_0", "write REGEX=TYPE"),
        ("attn_v= ", "write REGEX=TYPE"),
        ("a=b=q8_0", r"the first = ends the pattern, so 'b=q8_0' would be the type; write \\x3d"),
        ("(?=v)a=q8_0", r"\(\?=\.\.\.\) cannot be written.*; write \(\?!\(\?!\.\.\.\)\)"),
        (r"\D=q8_0", r"\\D would become \\d; write \[\^0-9\]"),
        (r"a\Wb=q8_0", r"\\W would become \\w"),
        (r"\S=q8_0", r"\\S would become \\s"),
        (r"\Bv=q8_0", r"\\B would become \\b"),
        (r"\Ablk=q8_0", r"\\A would become \\a; write \^"),
        (r"weight\Z=q8_0", r"\\Z would become \\z; write \$"),
        (r"\Nv=q8_0", r"\\N would become \\n; write \."),
        (r"\Qv\E=q8_0", r"\\Q would become \\q; leave it out"),
    ],
)
def test_rules_that_would_mean_something_else_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadOptionError, match=message):
        parse_tensor_type(text)


@pytest.mark.parametrize("pattern", ["(?P<n>a)", "(?<n>a)", "(?p<n>a)", "b(?P<N>A)"])
def test_a_named_group_is_called_so_after_its_case_was_lowered(pattern: str) -> None:
    with pytest.raises(BadOptionError, match="named groups are not supported; write a plain group"):
        TypeOptions(tensor_types=[parse_tensor_type(f"{pattern}=q8_0")])


RULES = (("attn_v", "q8_0"), ("attn_k", "q6_k"))


@pytest.mark.parametrize(
    "data",
    [
        b"attn_v=q8_0\nattn_k=q6_k\n",
        b"\xef\xbb\xbfattn_v=q8_0\r\nattn_k=q6_k\r\n",
        b"attn_v=q8_0 attn_k=q6_k",
        b"\n\n attn_v = q8_0\n\tattn_k= q6_k \n\n",
        b"attn_v =q8_0\rattn_k\t=\tq6_k",
    ],
)
def test_files_of_rules(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_bytes(data)
    assert read_tensor_type_file(path) == RULES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "types.txt: holds no rules"),
        (b"\xef\xbb\xbf \r\n", "types.txt: holds no rules"),
        (b"attn_v=q8_0\n\n# more\n", "types.txt, line 3: .*'#'.*has no comments"),
        (b"attn_v=\nattn_k=q6_k", "types.txt, line 1: .*write REGEX=TYPE"),
        (b"attn_v=q8_0\nattn_k", "types.txt, line 2: .*write REGEX=TYPE"),
        ("attn_v=q8_0\n".encode("utf-16"), "UTF-16, not UTF-8; convert it: iconv -f UTF-16 "),
        ("attn_v=q8_0\n".encode("utf-16-le"), "UTF-16LE, not UTF-8"),
        ("attn_v=q8_0\n".encode("utf-32"), "UTF-32, not UTF-8"),
        (b"attn_\xff=q8_0\n", "save it as UTF-8"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
    ],
)
def test_files_that_hold_no_rules(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_bytes(data)
    with pytest.raises(BadOptionError, match=message):
        read_tensor_type_file(path)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("q6k", "Q6_K"), ("Q4_K_M", "Q4_K"), ("q8", "Q8_0"), ("fp16", "F16"), ("iq4nl", "IQ4_NL")],
)
def test_an_unknown_type_has_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(BadOptionError, match=rf"attn_v={wrong}: unknown .* did you mean {right}\?"):
        TypeOptions(tensor_types=[("attn_v", wrong)])
    with pytest.raises(BadOptionError, match="unknown tensor type 'gold'; choose one of"):
        tensor_type("gold")


# ---- rules that decide nothing -------------------------------------------------------------------

TENSORS = [
    StoredTensor("token_embd.weight", (256, 8), F16),
    StoredTensor("per_layer_token_embd.weight", (256, 8), F16),
    StoredTensor("output.weight", (256, 8), F16),
    *(
        StoredTensor(f"blk.{i}.{part}.weight", (256, 4), F16)
        for i in range(2)
        for part in ("attn_q", "attn_v")
    ),
    StoredTensor("blk.0.attn_norm.weight", (256,), F32),
    StoredTensor("blk.0.ffn_gate_inp.weight", (256, 4), F16),
]


def idle(rules: str, **options: object) -> dict[str, str]:
    """Rule -> the reason why it has no effect, of rules separated by spaces."""
    pairs = [parse_tensor_type(rule) for rule in rules.split()]
    options = {"type": "Q4_K_M", "tensor_types": pairs, **options}
    plan = make_plan(TENSORS, ModelShape("llama", 2), TypeOptions(**options))  # type: ignore[arg-type]
    assert plan.as_dict()["warnings"] == list(plan.warnings)
    found = [re.fullmatch(r"--tensor-type (\S+) has no effect: it (.*)", text) for text in plan.warnings]
    return {rule[1]: rule[2] for rule in found if rule}


EARLIER = "matches only tensors that an earlier --tensor-type decides"
KEPT = "matches only tensors that keep their type"


def test_rules_that_decide_something_are_not_reported() -> None:
    assert idle("") == {}
    assert idle(r"attn_v=q8_0 blk\.1=q6_k") == {}
    assert idle("attn_q=q4_k") == {}  # the type that it would have anyway
    assert idle("norm|attn_v=q8_0") == {}


@pytest.mark.parametrize(
    ("rules", "options", "expected"),
    [
        ("atn_v=q8_0", {}, {"atn_v=q8_0": "matches no tensor"}),
        (
            "attn_v=q8_0 atn=q8_0 blk.7=q8_0",
            {},
            {"atn=q8_0": "matches no tensor", "blk.7=q8_0": "matches no tensor"},
        ),
        ("norm=q8_0 ffn_gate_inp=q8_0", {}, {"norm=q8_0": KEPT, "ffn_gate_inp=q8_0": KEPT}),
        (r"attn_v=q8_0 blk\.1\.attn_v=q6_k", {}, {r"blk\.1\.attn_v=q6_k": EARLIER}),
        ("attn_v=q8_0 attn_v=q8_0", {}, {"attn_v=q8_0": EARLIER}),
        (
            "attn_v=q8_0 attn_q=q8_0 attn=q6_k",
            {},
            {
                "attn=q6_k": "matches only tensors that an earlier --tensor-type decides"
                " or that keep their type"
            },
        ),
        ("output=q8_0", {"leave_output_tensor": True}, {"output=q8_0": KEPT}),
        (
            "output=q8_0",
            {"output_tensor_type": "q6_k"},
            {"output=q8_0": "matches only tensors that --output-tensor-type decides"},
        ),
        (
            "^token_embd=q8_0",
            {"token_embedding_type": "q6_k"},
            {"^token_embd=q8_0": "matches only tensors that --token-embedding-type decides"},
        ),
        (
            "attn_v=q8_0 attn_q=q4_hifi",
            {"type": "BF16"},
            {"attn_v=q8_0": "matches only tensors that become BF16, as all matrices do"},
        ),
        ("token_embd=q8_0", {"token_embedding_type": "q6_k"}, {}),  # it decides per_layer_token_embd
    ],
)
def test_each_rule_that_decides_nothing_has_its_reason(
    rules: str, options: dict[str, object], expected: dict[str, str]
) -> None:
    assert idle(rules, **options) == expected


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"output_tensor_type": "q8_0"}, None),  # the embeddings are the output matrix
        ({"output_tensor_type": "q8_0", "type": "F16"}, "--output-tensor-type"),
        ({"output_tensor_type": "q8_0", "pure": True}, "--output-tensor-type"),
        ({"output_tensor_type": "q8_0", "token_embedding_type": "q6_k"}, "--output-tensor-type"),
        ({"token_embedding_type": "q8_0", "type": "F16"}, None),
    ],
)
def test_options_for_the_vocabulary_without_effect(options: dict[str, object], option: str | None) -> None:
    tensors = [t for t in TENSORS if t.name.startswith(("token_embd", "blk"))]
    given = TypeOptions(**{"type": "Q4_K_M", **options})  # type: ignore[arg-type]
    plan = make_plan(tensors, ModelShape("llama", 2), given)
    expected = [f"{option} q8_0 has no effect: it decides the type of no tensor"] if option else []
    assert list(plan.warnings) == expected


def test_options_for_embeddings_that_a_model_lacks() -> None:
    given = TypeOptions("Q4_K_M", output_tensor_type="q8_0", token_embedding_type="q8_0")
    plan = make_plan([t for t in TENSORS if t.name.startswith("blk")], ModelShape("llama", 2), given)
    assert [text.split()[0] for text in plan.warnings] == ["--output-tensor-type", "--token-embedding-type"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the small model in it, as model-f16.gguf."""
    write_small_model(tmp_path / "model-f16.gguf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["plan model-f16.gguf Q4_K_M", "quantize model-f16.gguf out.gguf Q4_K_M",
                                     "quantize --dry-run model-f16.gguf Q4_K_M"])  # fmt: skip
def test_idle_rules_are_printed(command: str, run: Run, folder: Path) -> None:
    options = ["--tensor-type", "atn_v=q8_0", "--tensor-type", "[[:alpha:]]+_v = q8_0"]
    outcome = run(*command.split(), *options)
    assert outcome.status == 0
    assert "--tensor-type atn_v=q8_0 has no effect: it matches no tensor\n" in outcome.out
    assert outcome.out.count("has no effect") == 1
    printed = json.loads(run(*command.split(), *options, "--json", "--overwrite").out)
    plan = printed.get("plan", printed)
    assert plan["warnings"] == ["--tensor-type atn_v=q8_0 has no effect: it matches no tensor"]
    assert {t["name"]: t["type"] for t in plan["tensors"]}[VALUE] == "Q8_0"


def test_many_idle_rules_are_counted(run: Run, folder: Path) -> None:
    (folder / "types.txt").write_text(" ".join(f"blk.{i}.=q8_0" for i in range(2, 52)))
    outcome = run("plan", "model-f16.gguf", "--tensor-type-file", "types.txt")
    assert outcome.out.count("has no effect") == 20 and "\n30 more warnings" in outcome.out


def test_idle_filters_of_the_imatrix_are_printed(run: Run, folder: Path) -> None:
    write_imatrix(folder / "i.gguf", {name: (np.ones((1, 256)), np.ones(1)) for name in (VALUE, QUERY)})
    for option, parts in (
        ("--include-weights", ("attn_v", "atn_q")),
        ("--exclude-weights", ("atn_q", "attn_v")),
    ):
        options = [word for part in parts for word in (option, part)]
        for command in ("plan", "quantize"):
            target = ["out.gguf"] if command == "quantize" else []
            outcome = run(
                command, "model-f16.gguf", *target, "Q4_K_M", "--imatrix", "i.gguf", "--overwrite", *options
            )
            assert outcome.status == 0
            assert f"{option} atn_q has no effect: it is in no name of the imatrix\n" in outcome.out
            assert outcome.out.count("has no effect") == 1


# ---- the file that --write-tensor-types writes ---------------------------------------------------


def test_written_rules_decide_the_same_whatever_the_names_hold(tmp_path: Path) -> None:
    names = [
        "blk.0.attn_v.weight",
        "blk.0.ATTN_v.weight",
        "blk.0.a+b[c]=d e.weight",
        "blk.0.gr\u00f6\u00dfe.weight",
        "blk.0.\udcff.weight",  # a byte that is not UTF-8
    ]
    source = write_stored(
        tmp_path / "in.gguf",
        dict.fromkeys(names, ("F16", (2, 256))),
        pairs=[
            ("general.architecture", "llama", GGUFValueType.STRING),
            ("llama.block_count", 1, GGUFValueType.UINT32),
        ],
    )
    kinds = ["Q8_0", "Q6_K", "Q5_K", "Q4_0", "Q4_1"]
    exact = [("^" + "".join(f"\\x{ord(c):02x}" if c.isascii() else c for c in name) + "$", kind)
             for name, kind in zip(names, kinds, strict=True)]  # fmt: skip
    plan = q4hifi.plan_file(source, "Q3_K_S", tensor_types=exact)
    write_tensor_types(plan, tmp_path / "types.txt")
    again = q4hifi.plan_file(source, "Q3_K_S", tensor_types=read_tensor_type_file(tmp_path / "types.txt"))
    found = {t.name: t.type.name for t in again.tensors}
    assert found == dict(zip(names, kinds, strict=True)) and again.warnings == ()
    assert again.tensors == plan.tensors


def test_a_rule_for_every_tensor_is_quick() -> None:
    plan: Plan = q4hifi.plan_file(EXAMPLE, "Q4_K_M")
    rules = [("^" + t.name.replace(".", r"\.") + "$", "q8_0") for t in plan.tensors] * 20
    started = time.monotonic()
    assert len(q4hifi.plan_file(EXAMPLE, "Q4_K_M", tensor_types=rules).warnings) == len(rules) - 57
    assert time.monotonic() - started < 30


# ---- what a user typed, in messages ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a=q8_0\nATTN_Q=q9_K\n",
            r"types\.txt, line 2: --tensor-type ATTN_Q=q9_K: unknown tensor type 'q9_K'",
        ),
        (b"a=q8_0\nATTN(\\.Q=q8_0\n", r"types\.txt, line 2: .*'ATTN\(\\\.Q' is no regular .* at '\(\\\.Q' "),
        (b"a=q8_0\r\n\r\nattn_\xe9=q8_0", r"types\.txt, line 3: not UTF-8 \(byte E9\); save it as UTF-8"),
        (b"a=q8_0" * 1000, "=q8_0a=q8_0' would be the type|would be the type"),
        ("a=q6_k\u200b".encode(), r"its character 5 is invisible: U\+200B \(ZERO WIDTH SPACE\)"),
        ("attn_q\u00a0q6_k".encode(), r"its character 7 is invisible: U\+00A0 \(NO-BREAK SPACE\)"),
        (b"x" * 20_000 + b"=q8_0", "has 20000 characters; a pattern has 10000 at most"),
        (b"a=q8_0\n" * 20_000, "holds more than 16384 rules"),
        (b"a=q8_0\n" * 700_000, "types.txt: is longer than 4 MiB, and cannot be a file of rules"),
    ],
)
def test_a_bad_rule_is_shown_as_it_was_typed_and_not_whole(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_bytes(data)
    with pytest.raises(BadOptionError, match=message) as caught:
        read_tensor_type_file(path)
    assert len(str(caught.value)) < 600


def test_a_rule_without_effect_is_shown_as_it_was_typed() -> None:
    pairs = [parse_tensor_type("ATTN_Z=Q8_0"), parse_tensor_type("attn\u200b_q=Q8_0")]
    options = TypeOptions(type="Q4_K_M", tensor_types=pairs)
    first, second = TensorRules(options, "llama").idle(TENSORS)
    assert str(first) == "--tensor-type ATTN_Z=Q8_0 has no effect: it matches no tensor"
    assert str(second).endswith("matches no tensor; its character 5 is invisible: U+200B (ZERO WIDTH SPACE)")


@pytest.mark.parametrize("positive", ["v", "v|k", "."])
def test_the_remedy_for_a_lookahead_means_the_same(positive: str) -> None:
    assert compile_pattern(f"_(?={positive})").search("attn_v") == compile_pattern(
        f"_(?!(?!{positive}))"
    ).search("attn_v")
    assert not compile_pattern("_(?!(?!q))").search("attn_v")


@pytest.mark.parametrize("option", ["--tensor-type-file", "--sensitivities", "--imatrix"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_never_ends_or_never_begins_is_refused(
    option: str, kind: str, run: Run, tmp_path: Path
) -> None:
    given = Path("/dev/zero") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(given)
    outcome = run("plan", EXAMPLE, "Q4_HIFI", option, given)
    assert outcome.status in (1, 2)
    assert f"{given}: not a regular file, but a device or pipe; save its contents" in outcome.err


def test_rules_may_come_from_an_open_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"attn_v=q8_0\n")
    os.close(writing)
    assert read_tensor_type_file(f"/dev/fd/{reading}") == (("attn_v", "q8_0"),)
    os.close(reading)
