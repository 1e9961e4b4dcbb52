"""The table of what is fuzzed: sound files, how they are damaged, and what reads them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from q4hifi.allocation.calibration_file import Calibration, Setting
from q4hifi.allocation.sensitivities import load_sensitivities
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
from q4hifi.plan.options import read_tensor_type_file
from q4hifi.plan.shapes_file import plan_shapes
from q4hifi.runtime import chat_template as chat
from q4hifi.runtime.model import Model
from q4hifi.runtime.tokenizer import Tokenizer

from . import seeds
from .mutate import Mutate, Seed, damage, damage_json, damage_text

Eat = Callable[[bytes, Path], None]


def _written(read: Callable[[Path], object]) -> Eat:
    """Reads the input from a file."""

    def eat(data: bytes, path: Path) -> None:
        path.write_bytes(data)
        read(path)

    return eat


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
    for figures in read_comparison(path, "text", seeds.N_CTX).values():
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
    path, found = folder / "vocabulary.gguf", []
    for seed in seeds.models()[:2]:
        path.write_bytes(seed.data)
        with GgufFile.open(path) as file:
            found.append(Tokenizer.from_metadata(file.metadata))
    return found


def _text(path: Path) -> None:
    text = read_text(path)
    for tokenizer in _tokenizers(path.parent):
        tokens = tokenizer.encode(text, add_special=False)
        tokenizer.encode(text, parse_special=True)
        found = tokenizer.decode_bytes(tokens)
        try:
            expected = text.encode()
        except UnicodeEncodeError:
            continue
        assert found == expected, "the text is not what its tokens stand for"


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    ``eat`` reads an input, given as bytes and as the path of a file that it may write. ``commands`` are
    arguments of the command, ``{f}`` standing for the damaged file, ``{model}``, ``{text}`` and ``{imatrix}``
    for sound ones, ``{out}`` for a new file. ``suffix`` is that of the file's name. ``made_by`` is a command
    that writes a sound ``{f}`` where the seeds are of another model and text; ``adapt`` makes it a seed.
    ``beside`` is the suffix of a file beside the damaged one that is always the second seed.
    """

    seeds: Callable[[], Sequence[Seed]]
    eat: Eat
    commands: Sequence[str]
    mutate: Mutate = damage
    suffix: str = ".gguf"
    made_by: str = ""
    adapt: Callable[[bytes], Seed] = Seed.of
    beside: str = ""

    def path_in(self, folder: Path) -> Path:
        """Return where the damaged file goes; the one beside it is there already."""
        if self.beside:
            (folder / f"damaged{self.beside}").write_bytes(self.seeds()[1].data)
        return folder / f"damaged{self.suffix}"


def _partial_of(base: bytes) -> Seed:
    """The partial file with the first chunk of a base file."""
    magic = b"part" + struct.pack("<I", 1)
    return Seed.of(magic + base[8:] + bytes(8 * 2 * (seeds.N_CTX - 1 - seeds.N_CTX // 2)), 120)


QUANTIZE = "quantize {model} {out} Q4_K_M --overwrite"
EVALUATE = "-f {text} -c 8 --chunks 2"
PLAN = "plan {f} Q4_K_M"

KINDS: Mapping[str, Kind] = {
    "header": Kind(seeds.headers, _written(_header), ("inspect {f}", "verify {f}", PLAN)),
    "shards": Kind(
        seeds.shards,
        _written(_metadata),
        ("inspect {f}", "verify {f}", PLAN),
        suffix="-00001-of-00002.gguf",
        beside="-00002-of-00002.gguf",
    ),
    "metadata": Kind(
        seeds.headers, _written(_metadata), ("inspect {f} --json", "inspect {f} --tensors", "plan {f}")
    ),
    "blocks": Kind(
        seeds.blocks,
        _written(_verify),
        ("verify {f}", "dequantize {f} {out} --overwrite"),
    ),
    "outliers": Kind(
        lambda: seeds.headers()[2:3],
        _written(_verify),
        (
            "verify {f}",
            "export {f} {out} --as q8_0 --overwrite",
            "export {f} {out} --layout fork --overwrite",
            "dequantize {f} {out} --overwrite",
        ),
    ),
    "plan": Kind(seeds.models, _written(_plan), (PLAN, "plan {f} Q4_HIFI --json", "plan {f} COPY")),
    "quantize": Kind(
        seeds.models,
        _written(_quantize),
        (
            "quantize {f} {out} Q4_K_M --overwrite",
            "quantize {f} {out} Q8_0 --overwrite",
            "quantize {f} {out} Q4_HIFI --overwrite --imatrix {imatrix} --coverage measured",
        ),
    ),
    "run": Kind(
        seeds.models,
        _written(_run),
        (
            f"perplexity {{f}} {EVALUATE}",
            "generate {f} -p the -n 5 --temp 0",
            "generate {f} --chat -p the -n 5",
            f"imatrix {{f}} {EVALUATE} -o {{out}} --overwrite",
            f"compare {{model}} {{f}} {EVALUATE}",
            "bench {f} -p 8 -n 4 -r 1",
        ),
    ),
    "tokenizer": Kind(seeds.models, _written(_tokenizer), ("inspect {f}", f"perplexity {{f}} {EVALUATE}")),
    "imatrix": Kind(
        seeds.imatrices,
        _written(_imatrix),
        (QUANTIZE + " --imatrix {f}", "imatrix --in-file {f} --show-statistics", "inspect {f}"),
        made_by=f"imatrix {{model}} {EVALUATE} -o {{f}}",
    ),
    "old imatrix": Kind(
        seeds.old_imatrices,
        _written(_imatrix),
        (QUANTIZE + " --imatrix {f}", "imatrix --in-file {f} -o {out} --overwrite"),
        suffix=".dat",
        made_by=f"imatrix {{model}} {EVALUATE} -o {{f}}",
    ),
    "base file": Kind(
        seeds.base_files,
        _written(_base_file),
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
        _written(_comparison),
        (f"compare {{model}} {{model}} {EVALUATE} --save {{f}} --resume",),
        made_by=f"compare {{model}} {{model}} {EVALUATE} --save {{f}}",
    ),
    "calibration": Kind(
        seeds.calibrations,
        _written(_calibration),
        (f"calibrate {{model}} {EVALUATE} -o {{f}}",),
        damage_json,
        ".json",
        made_by=f"calibrate {{model}} {EVALUATE} -o {{f}}",
    ),
    "sensitivities": Kind(
        seeds.calibrations,
        _written(load_sensitivities),
        ("quantize {model} {out} --overwrite --like Q4_K_M --sensitivities {f}",),
        damage_json,
        ".json",
        made_by=f"calibrate {{model}} {EVALUATE} -o {{f}}",
    ),
    "shapes": Kind(
        seeds.shapes, _written(_shapes), (PLAN, "plan {f} Q4_HIFI --tensors"), damage_json, ".json"
    ),
    "rules": Kind(
        seeds.rules,
        _written(_rules),
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
        _written(_text),
        (
            "perplexity {model} -f {f} -c 8 --chunks 2",
            "imatrix {model} -f {f} -c 8 --chunks 2 -o {out} --overwrite",
            "generate {model} -f {f} -n 3 --temp 0 -c 100000",
        ),
        damage_text,
        ".txt",
    ),
}
"""Kind of file -> how it is fuzzed."""
