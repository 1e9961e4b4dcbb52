"""The options of ``q4hifi imatrix`` that it has alone, in groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

import click

from ..errors import BadOptionError
from ..evaluate.limits import FISHER_CHUNKS, NOISE_CHUNKS
from ..imatrix.forms import FORMS
from .choice import Choice
from .files import INPUT
from .numbers import Whole


@dataclass(frozen=True, slots=True)
class MeasuredSums:
    """What is measured of MODEL on the text."""

    from_chunk: int
    parse_special: bool
    process_output: bool
    no_ppl: bool
    fisher_chunks: int | None
    no_correlations: bool
    expert_correlations: bool


@dataclass(frozen=True, slots=True)
class AddedFiles:
    """The files that are added up, and which tensors are taken from them."""

    in_files: tuple[str, ...]
    include_weights: tuple[str, ...]
    exclude_weights: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raise :class:`BadOptionError` for a choice among the tensors of no file."""
        if (self.include_weights or self.exclude_weights) and not self.in_files:
            raise BadOptionError(
                "--include-weights and --exclude-weights select tensors of --in-file; give one"
            )


@dataclass(frozen=True, slots=True)
class ImatrixOutput:
    """The file to write, and when it is saved and copied."""

    output: str | None
    form: str | None
    save_chunks: int | None
    copy_chunks: int | None
    overwrite: bool

    def completed(self, *, is_needed: bool) -> ImatrixOutput:
        """Return it with its form, and with a name if a file ``is_needed``."""
        from ..imatrix.sums import form_of

        form = form_of(self.output or "", self.form)
        return replace(self, form=form, output=self.output or (f"imatrix.{form}" if is_needed else None))


IMATRIX_OPTIONS = (
    click.option("-o", "--output", metavar="OUT", help="File to write. [default: imatrix.gguf]"),
    click.option(
        "--from-chunk", "--chunk", "from_chunk", type=Whole(0), metavar="N", default=0,
        help="Leave out the first N chunks of the text.",
    ),
    click.option(
        "--parse-special", is_flag=True,
        help="Read text that spells a control token, such as <|im_end|>, as that token.",
    ),
    click.option(
        "--process-output", is_flag=True,
        help="Include output.weight. Without this, only --refine uses its importance.",
    ),
    click.option("--no-ppl", is_flag=True, help="Do not compute perplexity. Slightly faster."),
    click.option(
        "--fisher-chunks", type=Whole(min=0), metavar="N",
        help="Measure the Fisher information on N chunks: how much an error in each matrix harms the model."
        " 'quantize' uses it to choose the best types within a budget."
        f" [default: {FISHER_CHUNKS}, or {NOISE_CHUNKS} with llama.cpp and for mixtures of experts, where a"
        " chunk takes longer]",
    ),
    click.option(
        "--no-correlations", is_flag=True,
        help="Do not store how the inputs of a matrix are correlated. OUT is smaller, but 'quantize' cannot"
        " use error feedback (GPTQ).",
    ),
    click.option(
        "--expert-correlations", is_flag=True,
        help="Also store them for each expert whose inputs are its own (ffn_down of a mixture of experts)."
        " Needs row length² / 2 floats per expert in memory.",
    ),
    click.option(
        "--in-file", "in_files", type=INPUT, multiple=True, metavar="FILE",
        help="Add the values of an importance matrix file. Repeatable.",
    ),
    click.option(
        "--output-format", "form", type=Choice(FORMS),
        help="Format of OUT: gguf, or llama.cpp's older dat. [default: dat if OUT ends in .dat, else gguf]",
    ),
    click.option(
        "--include-weights", multiple=True, metavar="NAME",
        help="Take from --in-file only tensors with NAME in their name. Repeatable.",
    ),
    click.option(
        "--exclude-weights", multiple=True, metavar="NAME",
        help="Do not take tensors with NAME in their name from --in-file. Repeatable.",
    ),
    click.option("--show-statistics", is_flag=True, help="Print statistics of each tensor."),
    click.option(
        "--output-frequency", "save_chunks", type=Whole(1), metavar="N",
        help="Save OUT after every N chunks, too, not only every few minutes.",
    ),
    click.option(
        "--save-frequency", "copy_chunks", type=Whole(1), metavar="N",
        help="Keep a copy OUT.at_M of OUT after every N chunks; M is the number of its chunks.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace OUT if it exists."),
)  # fmt: skip
