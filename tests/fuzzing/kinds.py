"""The table of the kinds of files that are fuzzed: valid files, how to damage them, and what reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from q4hifi.allocation.calibration_file import Calibration, Setting, load_sensitivities
from q4hifi.cli.overview_tables import overview_tables
from q4hifi.codec.model_file import ModelFile
from q4hifi.codec.overview import Overview
from q4hifi.evaluate.chunks import Chunks, read_text
from q4hifi.evaluate.comparison_file import read_comparison
from q4hifi.evaluate.log_probs_file import LogProbsFile, LogProbsWriter
from q4hifi.gguf_io.reader import GgufFile
from q4hifi.imatrix.file import load_importance
from q4hifi.imatrix.statistics import layer_statistics, tensor_statistics
from q4hifi.imatrix.sums import ImportanceSums
from q4hifi.pipeline.quantize import plan_file, quantize_file
from q4hifi.pipeline.verify import verify_file
from q4hifi.plan.shapes_file import plan_shapes
from q4hifi.plan.tensor_type_rules import read_tensor_type_file
from q4hifi.runtime import chat_template as chat
from q4hifi.runtime.model import Model
from q4hifi.runtime.tokenizer import Tokenizer

from . import seeds
from .mutate import Mutate, Seed, damage, damage_json, damage_text

Read = Callable[[bytes, Path], None]


def _from_file(read: Callable[[Path], object]) -> Read:
    """Return a function that writes its input to a file and calls ``read`` on this file."""

    def read_file(data: bytes, path: Path) -> None:
        path.write_bytes(data)
        read(path)

    return read_file


def _header(path: Path) -> None:
    GgufFile.open(path).close()


def _metadata(path: Path) -> None:
    with ModelFile.open(path) as model:
        assert len(dict(model.metadata)) == len(model.metadata)
        overview = Overview.of(model)
        overview.as_dict()
        overview_tables(overview, tensors=True)


def _verify(path: Path) -> None:
    verify_file(path, threads=1)


def _plan(path: Path) -> None:
    plan_file(path, "Q4_K_M").as_dict()


def _quantize(path: Path) -> None:
    out = path.with_suffix(".out")
    quantize_file(path, out, "Q4_K_M", overwrite=True, threads=1)
    ModelFile.open(out).close()


def _run(path: Path) -> None:
    model = Model(path, threads=1, n_ctx=16)
    model.logits(np.arange(min(6, model.n_vocab), dtype=np.uint32))
    model.tokenize("the quick fox", parse_special=True)


def _tokenizer(path: Path) -> None:
    with GgufFile.open(path) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    for special in (False, True):
        tokens = tokenizer.encode(seeds.TEXT[:80], parse_special=special)
        assert all(0 <= token < tokenizer.n_vocab for token in tokens)
    tokenizer.decode(range(min(300, tokenizer.n_vocab)), skip_special=True)
    tokenizer.shield("<|im_start|>")


def _imatrix(path: Path) -> None:
    importance = load_importance(path)
    for name in importance.names:
        n_columns = importance.sums(name)[0].shape[1]
        importance.weights(name, n_columns, importance.sums(name)[0].size // n_columns)
        if n_columns <= seeds.N_EMBD:
            importance.inputs(name, n_columns, threads=1)
            importance.fisher(name, n_columns)
    assert all(isinstance(value, (str, int)) for _, value, _ in importance.metadata())
    sums = ImportanceSums.of(importance)
    layer_statistics(tensor_statistics(sums))
    (sums + sums).save(path.with_suffix(".out.gguf"), overwrite=True)


def _base_file(path: Path) -> None:
    base = LogProbsFile.open(path)
    base.chunks(seeds.N_VOCAB, None)
    for chunk in range(len(base.tokens)):
        base.codes(chunk)


def _partial(data: bytes, path: Path) -> None:
    chunks = Chunks(seeds.tokens(), None, seeds.N_VOCAB)
    target = path.with_suffix(".kld")
    writer = LogProbsWriter(target, chunks, resume=True)
    writer.partial.write_bytes(data)
    with LogProbsWriter(target, chunks, resume=True) as writer:
        assert writer.n_done <= len(chunks)
        writer.nll()
        for chunk in range(writer.n_done):
            writer.read(chunk)


def _comparison(path: Path) -> None:
    for figures in read_comparison(path, {"text": "t"}, seeds.N_CTX).values():
        assert len(figures.nll) == figures.n_chunks


def _calibration(path: Path) -> None:
    Calibration.load(path).sensitivities(seeds.IMATRIX_NAMES)
    Calibration.resumed(path, Setting("m", "t", None, 256, 1))


def _shapes(path: Path) -> None:
    plan_shapes(path, "Q4_K_M").as_dict()


def _rules(path: Path) -> None:
    shapes = path.with_suffix(".json")
    shapes.write_bytes(seeds.shapes()[0].data)
    plan_shapes(shapes, "Q4_K_M", tensor_types=list(read_tensor_type_file(path)))


def _template(data: bytes, _: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    chat.render_words(data.decode("utf-8", "surrogateescape"), messages, bos="<s>", eos="</s>")


@cache
def _tokenizers(folder: Path) -> list[Tokenizer]:
    path, tokenizers = folder / "vocabulary.gguf", []
    for seed in seeds.models()[:2]:
        path.write_bytes(seed.data)
        with GgufFile.open(path) as file:
            tokenizers.append(Tokenizer.from_metadata(file.metadata))
    return tokenizers


def _text(path: Path) -> None:
    text = read_text(path)
    for tokenizer in _tokenizers(path.parent):
        tokens = tokenizer.encode(text, add_special=False)
        tokenizer.encode(text, parse_special=True)
        decoded = tokenizer.decode_bytes(tokens)
        try:
            expected = text.encode()
        except UnicodeEncodeError:
            continue
        assert decoded == expected, "decoding the tokens gives another text"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    ``seeds``: returns the valid files. ``read``: reads an input; it gets the bytes, and the path of a file
    that it may write. ``commands``: arguments of ``q4hifi``. In them ``{f}`` is the damaged file,
    ``{model}``, ``{text}`` and ``{imatrix}`` are valid files, ``{out}`` is a new file, and ``{stem}`` is
    ``{f}`` without its last suffix. ``mutate``: damages a seed. ``suffix``: of the file's name. ``made_by``:
    a command that writes a valid ``{f}``, for kinds whose file must belong to ``{model}`` and ``{text}``;
    ``adapt`` makes a seed from its bytes. ``beside``: suffix of a second file beside the damaged one, which
    always has the content of the second seed.
    """

    seeds: Callable[[], Sequence[Seed]]
    read: Read
    commands: Sequence[str]
    mutate: Mutate = damage
    suffix: str = ".gguf"
    made_by: str = ""
    adapt: Callable[[bytes], Seed] = Seed.of
    beside: str = ""

    def path_in(self, folder: Path) -> Path:
        """Return the path for the damaged file, after writing the file beside it."""
        if self.beside:
            (folder / f"damaged{self.beside}").write_bytes(self.seeds()[1].data)
        return folder / f"damaged{self.suffix}"


def _partial_of(base: bytes) -> Seed:
    """Return a partial file with the first chunk of a base file."""
    magic = b"part" + struct.pack("<I", 1)
    return Seed.of(magic + base[8:] + bytes(8 * 2 * (seeds.N_CTX - 1 - seeds.N_CTX // 2)), 120)


QUANTIZE = "quantize {model} {out} Q4_K_M --overwrite"
EVALUATE = "-f {text} -c 8 --chunks 2"
PLAN = "plan {f} Q4_K_M"

KINDS: Mapping[str, Kind] = {
    "header": Kind(seeds.headers, _from_file(_header), ("inspect {f}", "verify {f}", PLAN)),
    "shards": Kind(
        seeds.shards,
        _from_file(_metadata),
        ("inspect {f}", "verify {f}", PLAN),
        suffix="-00001-of-00002.gguf",
        beside="-00002-of-00002.gguf",
    ),
    "metadata": Kind(
        seeds.headers, _from_file(_metadata), ("inspect {f} --json", "inspect {f} --tensors", "plan {f}")
    ),
    "blocks": Kind(
        seeds.blocks,
        _from_file(_verify),
        ("verify {f}", "dequantize {f} {out} --overwrite"),
    ),
    "outliers": Kind(
        lambda: seeds.headers()[2:3],
        _from_file(_verify),
        (
            "verify {f}",
            "export {f} {out} --as q8_0 --overwrite",
            "export {f} {out} --layout fork --overwrite",
            "dequantize {f} {out} --overwrite",
        ),
    ),
    "plan": Kind(seeds.models, _from_file(_plan), (PLAN, "plan {f} Q4_HIFI --json", "plan {f} COPY")),
    "quantize": Kind(
        seeds.models,
        _from_file(_quantize),
        (
            "quantize {f} {out} Q4_K_M --overwrite",
            "quantize {f} {out} Q8_0 --overwrite",
            "quantize {f} {out} Q4_HIFI --overwrite --imatrix {imatrix} --coverage measured",
        ),
    ),
    "run": Kind(
        seeds.models,
        _from_file(_run),
        (
            f"perplexity {{f}} {EVALUATE}",
            "generate {f} -p the -n 5 --temp 0",
            "generate {f} --chat -p the -n 5",
            f"imatrix {{f}} {EVALUATE} -o {{out}} --overwrite",
            f"compare {{model}} {{f}} {EVALUATE}",
            "bench {f} -p 8 -n 4 -r 1",
        ),
    ),
    "tokenizer": Kind(seeds.models, _from_file(_tokenizer), ("inspect {f}", f"perplexity {{f}} {EVALUATE}")),
    "imatrix": Kind(
        seeds.imatrices,
        _from_file(_imatrix),
        (QUANTIZE + " --imatrix {f}", "imatrix --in-file {f} --show-statistics", "inspect {f}"),
        made_by=f"imatrix {{model}} {EVALUATE} -o {{f}}",
    ),
    "old imatrix": Kind(
        seeds.old_imatrices,
        _from_file(_imatrix),
        (QUANTIZE + " --imatrix {f}", "imatrix --in-file {f} -o {out} --overwrite"),
        suffix=".dat",
        made_by=f"imatrix {{model}} {EVALUATE} -o {{f}}",
    ),
    "base file": Kind(
        seeds.base_files,
        _from_file(_base_file),
        ("perplexity {model} --kl-divergence --kl-divergence-base {f}",),
        suffix=".kld",
        made_by=f"perplexity {{model}} {EVALUATE} --kl-divergence-base {{f}}",
    ),
    "partial": Kind(
        seeds.partial_files,
        _partial,
        (f"perplexity {{model}} {EVALUATE} --kl-divergence-base {{stem}} --resume",),
        suffix=".kld.partial",
        made_by=f"perplexity {{model}} {EVALUATE} --kl-divergence-base {{f}}",
        adapt=_partial_of,
    ),
    "comparison": Kind(
        seeds.comparisons,
        _from_file(_comparison),
        (f"compare {{model}} {{model}} {EVALUATE} --save {{f}} --resume",),
        made_by=f"compare {{model}} {{model}} {EVALUATE} --save {{f}}",
    ),
    "calibration": Kind(
        seeds.calibrations,
        _from_file(_calibration),
        (f"calibrate {{model}} {EVALUATE} -o {{f}}",),
        damage_json,
        ".json",
        made_by=f"calibrate {{model}} {EVALUATE} -o {{f}}",
    ),
    "sensitivities": Kind(
        seeds.calibrations,
        _from_file(load_sensitivities),
        ("quantize {model} {out} --overwrite --like Q4_K_M --sensitivities {f}",),
        damage_json,
        ".json",
        made_by=f"calibrate {{model}} {EVALUATE} -o {{f}}",
    ),
    "shapes": Kind(
        seeds.shapes, _from_file(_shapes), (PLAN, "plan {f} Q4_HIFI --tensors"), damage_json, ".json"
    ),
    "rules": Kind(
        seeds.tensor_type_rules,
        _from_file(_rules),
        ("plan {model} Q4_K_M --tensor-type-file {f}", QUANTIZE + " --tensor-type-file {f}"),
        damage_text,
        ".txt",
    ),
    "template": Kind(
        seeds.templates,
        _template,
        ("generate {model} --chat -p the -n 3 -sys brief --chat-template-file {f}",),
        damage_text,
        ".jinja",
    ),
    "text": Kind(
        seeds.texts,
        _from_file(_text),
        (
            "perplexity {model} -f {f} -c 8 --chunks 2",
            "imatrix {model} -f {f} -c 8 --chunks 2 -o {out} --overwrite",
            "generate {model} -f {f} -n 3 --temp 0 -c 100000",
        ),
        damage_text,
        ".txt",
    ),
}
"""Name -> kind of file."""
