"""Quantizing model files: :func:`quantize_file` and :func:`plan_file`."""

from __future__ import annotations

import time

from ..codec.model_file import ModelFile
from ..errors import BadOptionError, UnsupportedModelError
from ..imatrix.importance import Importance
from ..plan.keep_rules import keep_rules
from ..plan.options import FilePath
from ..plan.plan import Plan, PlannedTensor
from ..plan.recipes import Recipe
from ..threads import thread_count
from ..wording import counted
from .planner import Planner
from .quantize_options import QuantizeOptions
from .report import QuantizeReport
from .rewrite import Output, rewrite
from .with_options import with_options

NEED_NO_IMATRIX = frozenset({"token_embd", "output"})
"""Roles that a recipe which requires an imatrix can do without, as in llama-quantize."""


@with_options(QuantizeOptions)
def quantize_file(src: FilePath, dst: FilePath, options: QuantizeOptions) -> QuantizeReport:
    """Quantize a GGUF model to a new file, in bounded memory, and report on it.

    ``src`` is a model in F32, F16 or BF16, any shard of a split one. ``dst`` is the file to write, which
    appears complete or not at all; it can never be the source. The options are given by keyword::

        q4hifi.quantize_file("model-f16.gguf", "model.gguf", "Q4_K_M", imatrix="imatrix.gguf")

    or as one object, ``options=``:class:`q4hifi.QuantizeOptions`.

    Raises :class:`BadOptionError`, :class:`BadFileError`, :class:`UnsupportedModelError` and
    :class:`NotFiniteError`, all of them :class:`q4hifi.Q4HifiError`. Their messages name the file, the tensor
    and the remedy.
    """
    used = (options.imatrix, options.sensitivities, options.calibrate)
    output = Output(
        dst,
        options.overwrite,
        options.keep_split,
        options.split_max_size,
        tuple(file for file in used if file is not None),
    )
    started = time.monotonic()
    with ModelFile.open(src) as model:
        model.check_has_weights()
        planner = Planner.of(model, options, output)
        model = planner.model
        output.check(model)
        if planner.measures and not options.allow_requantize:
            _refuse_requantizing(model, planner.unmeasured())  # before the work of measuring
        plan = planner.plan()
        if not options.allow_requantize:
            _refuse_requantizing(model, plan)
        if options.recipe.requires_imatrix:
            _require_importance(model, plan, options.recipe, planner.importance)
        written = rewrite(
            model,
            plan,
            planner.metadata(plan),
            output,
            importance=planner.importance,
            refine=options.is_refined,
            threads=thread_count(options.threads),
            progress=options.progress,
        )
        return QuantizeReport.of(model, plan, written, planner.importance, time.monotonic() - started)


@with_options(QuantizeOptions)
def plan_file(src: FilePath, options: QuantizeOptions) -> Plan:
    """Plan what :func:`quantize_file` would do with the same options, and write no model.

    ``Plan.file_bytes`` is the exact size of the output, all its files together. How much work it is depends
    on the options:

    - Fixed mixes, and Q4_HIFI with ``coverage="scale"``: only the header of ``src`` is read.
    - ``coverage="measured"``, the default with an imatrix or a budget: a sample of the weights is read and
      encoded in every type that is possible (``Plan.measured`` is then not None).
    - ``calibrate=TEXT``: the model is run on the text before that, and the result is kept in a file.
    """
    output = Output("", keep_split=options.keep_split, split_max_size=options.split_max_size)
    with ModelFile.open(src) as model:
        model.check_has_weights()
        return Planner.of(model, options, output).plan()


def _refuse_requantizing(model: ModelFile, plan: Plan) -> None:
    changed = [t for t in plan.tensors if t.requantized]
    if changed:
        first = changed[0]
        # rules that keep all tensors would leave nothing to do
        rules = keep_rules(changed, plan.tensors) if any(_is_encoded(t) for t in plan.tensors) else ""
        raise UnsupportedModelError(
            f"{model.paths[0]}: tensor {model.stored_name(first.name)} is {first.source_type} already, and"
            f" {counted(len(changed), 'tensor')} would be quantized a second time; start from the 16-bit"
            f" model,{f' keep what is quantized with {rules},' if rules else ''} or allow it with"
            " `allow_requantize=True`"
        )


def _is_encoded(tensor: PlannedTensor) -> bool:
    """Whether a tensor that is not quantized yet will be."""
    return not tensor.copied and not tensor.source_type.quantized


def _require_importance(model: ModelFile, plan: Plan, recipe: Recipe, importance: Importance | None) -> None:
    encoded = [t for t in plan.tensors if t.type == recipe.default and not t.copied]
    needed = [t.name for t in encoded if t.role not in NEED_NO_IMATRIX]
    missing = [name for name in needed if importance is None or name not in importance]
    if missing:
        raise BadOptionError(
            f"{model.paths[0]}: {recipe.name} needs an imatrix, and there is none for {len(missing)} of the"
            f" tensors that would be {recipe.default}, the first being {model.stored_name(missing[0])};"
            " give one that covers them with `imatrix=...`, or give them another type with `tensor_types=...`"
        )
