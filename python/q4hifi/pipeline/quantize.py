"""Quantizing model files: :func:`quantize_file` and :func:`plan_file`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from ..allocation.allocate import make_menu, measure_errors, measured_plan
from ..allocation.calibrate import calibrate as measure_sensitivities
from ..allocation.calibration_path import calibration_file
from ..allocation.sampled_errors import logit_variance
from ..allocation.sensitivities import Sensitivities, default_sensitivities, load_sensitivities
from ..codec.model_file import ModelFile
from ..errors import BadOptionError, UnsupportedModelError
from ..evaluate.chunks import read_text
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import KEY_COVERAGE, KEY_LAYOUT, KEY_OUTLIERS, KEY_VERSION, KEYS, SPLIT, VERSION
from ..formats.tensor_names import is_tied
from ..formats.types import Q4_HIFI
from ..gguf_io.header import FILE_TYPE_KEY
from ..gguf_io.metadata import Metadata
from ..gguf_io.writer import file_sizes
from ..imatrix.file import Floats, Importance, load_importance
from ..imatrix.fit import check_fit
from ..plan.keep_rules import keep_rules
from ..plan.model_shape import ModelShape
from ..plan.options import Options, TensorTypes
from ..plan.plan import Plan, PlannedTensor, make_plan
from ..plan.recipes import Recipe
from ..plan.size_classes import overhead_for
from ..plan.tensor_rules import IdleRule
from ..plan.type_rules import Choice, open_tensors
from ..progress import Progress
from ..threads import thread_count
from .report import QuantizeReport
from .rewrite import Output, rewrite

NEED_NO_IMATRIX = frozenset({"token_embd", "output"})
"""Roles that a recipe which requires an imatrix can do without, as in llama-quantize."""


def quantize_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    type: str = "Q4_HIFI",
    *,
    imatrix: str | os.PathLike[str] | None = None,
    layout: str = SPLIT,
    outliers: int | None = None,
    ffn_down_coverage: float | None = None,
    minimal: bool = False,
    tensor_types: TensorTypes | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    no_fallback: bool = False,
    coverage: str | None = None,
    target_size: int | None = None,
    target_bpw: float | None = None,
    like: str | None = None,
    stock: bool = False,
    sensitivities: str | os.PathLike[str] | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    allow_requantize: bool = False,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    allow_missing_importance: bool = False,
    keep_split: bool = False,
    split_max_size: int | None = None,
    refine: bool | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Quantize a GGUF model to a new file, in bounded memory, and report what it cost.

    Parameters
    ----------
    src
        The model, F32, F16 or BF16; any shard of a split one.
    dst
        The file to write; it appears complete or not at all.
    type
        A recipe: Q4_HIFI or one of llama.cpp's mixes (:data:`q4hifi.plan.recipes.RECIPES`), any case.
    imatrix
        An importance matrix file of llama.cpp, in either form.
    layout
        How Q4_HIFI tensors are stored, "split" or "fork" (:mod:`q4hifi.formats.layout`).
    outliers, ffn_down_coverage, minimal
        Q4_HIFI's outliers a block (0 to 32), the share of the layers whose ffn_down is covered
        (0 to 1), and the smallest coverage for models above 100 B. None: by the model's scale
        (:mod:`q4hifi.plan.size_classes`).
    tensor_types
        (regular expression, type) pairs; the first that is found in a tensor's name decides. The
        expressions are llama-quantize's (:mod:`q4hifi.plan.tensor_patterns`). A type that q4hifi cannot
        encode keeps the tensors that have it already.
    output_tensor_type, token_embedding_type, leave_output_tensor, pure
        As llama-quantize's options of these names.
    no_fallback
        Refuse instead of taking another type for rows that 256 does not divide.
    coverage
        How Q4_HIFI decides: "scale", by the table of :mod:`q4hifi.plan.size_classes`, or "measured", the
        types with which the predicted divergence is least within a budget
        (:mod:`q4hifi.allocation.allocate`). None: by :data:`q4hifi.plan.options.DEFAULT_COVERAGE`, and
        measured where one of the following is given.
    target_size, target_bpw, like
        The budget of measured coverage: the most bytes of the output, bits a weight of its tensors, or a
        recipe, whose size on this model is the most. None: somewhat more than Q4_K_S takes.
    stock
        Measured coverage takes only types that stock llama.cpp loads.
    sensitivities
        A file that says what an error in each tensor costs (:mod:`q4hifi.allocation.sensitivities`).
    calibrate
        A text file on which that is measured by running the model (:func:`q4hifi.calibrate`); what was
        measured is kept beside the imatrix, and used the next time.
    allow_requantize
        Let tensors that are quantized already change their type, which loses quality.
    include_weights, exclude_weights
        Parts of names of the tensors that use the imatrix, or do not.
    allow_missing_importance
        Use an imatrix that looks like another model's (:mod:`q4hifi.imatrix.fit`).
    keep_split, split_max_size
        Cut the output as the source is, or so that no file's data exceeds so many bytes.
    refine
        Search for blocks of IQ4_XS, Q4_K, Q5_K, Q6_K and Q4_HIFI with less error, weighted by importance
        and magnitude, than ggml's encoder leaves; and let errors of all types of blocks cancel where the
        imatrix knows how inputs are correlated. The types and sizes stay; encoding takes two to five times
        as long.
        None: for type Q4_HIFI, but not for llama.cpp's mixes, whose bytes are llama-quantize's.
    threads
        None or 0 is one per core; there are never more.
    overwrite
        Let ``dst`` replace an existing file; never the source.
    progress
        Called with (weights done, weights in all, tensor name).

    Raises
    ------
    BadFileError, UnsupportedModelError, BadOptionError, NotFiniteError
        Children of :class:`q4hifi.Q4HifiError`; the message names the place and the remedy.
    """
    options = Options(
        type=type,
        layout=layout,
        outliers=outliers,
        ffn_down_coverage=ffn_down_coverage,
        minimal=minimal,
        tensor_types=tensor_types or (),
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        no_fallback=no_fallback,
        coverage=coverage,
        target_size=target_size,
        target_bpw=target_bpw,
        like=like,
        stock=stock,
        sensitivities=sensitivities,
        calibrate=calibrate,
        refine=refine,
    )
    given_files = tuple(file for file in (imatrix, sensitivities, calibrate) if file is not None)
    output = Output(dst, overwrite, keep_split, split_max_size, given_files)
    started = time.monotonic()
    with ModelFile.open(src) as model:
        given = _Given.of(imatrix, include_weights, exclude_weights, model, options, allow_missing_importance)
        importance = given.importance
        planner = _Planner(model, options, given, output, thread_count(threads), progress)
        output.check(model)
        if planner.measures and not allow_requantize:  # before that; the plan itself is checked afterwards
            _refuse_requantizing(model, planner.unmeasured())
        plan = planner.plan()
        if not allow_requantize:
            _refuse_requantizing(model, plan)
        if options.recipe.requires_imatrix:
            _require_importance(model, plan, options.recipe, importance)
        written = rewrite(
            model,
            plan,
            planner.metadata(plan),
            output,
            importance=importance,
            refine=options.is_refined,
            threads=thread_count(threads),
            progress=progress,
        )
        return QuantizeReport.of(model, plan, written, importance, time.monotonic() - started)


def plan_file(
    src: str | os.PathLike[str],
    type: str = "Q4_HIFI",
    *,
    imatrix: str | os.PathLike[str] | None = None,
    layout: str = SPLIT,
    outliers: int | None = None,
    ffn_down_coverage: float | None = None,
    minimal: bool = False,
    tensor_types: TensorTypes | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    pure: bool = False,
    no_fallback: bool = False,
    coverage: str | None = None,
    target_size: int | None = None,
    target_bpw: float | None = None,
    like: str | None = None,
    stock: bool = False,
    sensitivities: str | os.PathLike[str] | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    allow_missing_importance: bool = False,
    keep_split: bool = False,
    split_max_size: int | None = None,
    refine: bool | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan what :func:`quantize_file` would do with the same arguments.

    Reads no weights, but some for measured coverage. ``Plan.file_bytes`` is the exact size of the output,
    all its files together.
    """
    options = Options(
        type=type,
        layout=layout,
        outliers=outliers,
        ffn_down_coverage=ffn_down_coverage,
        minimal=minimal,
        tensor_types=tensor_types or (),
        output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type,
        leave_output_tensor=leave_output_tensor,
        pure=pure,
        no_fallback=no_fallback,
        coverage=coverage,
        target_size=target_size,
        target_bpw=target_bpw,
        like=like,
        stock=stock,
        sensitivities=sensitivities,
        calibrate=calibrate,
        refine=refine,
    )
    with ModelFile.open(src) as model:
        given = _Given.of(imatrix, include_weights, exclude_weights, model, options, allow_missing_importance)
        output = Output("", keep_split=keep_split, split_max_size=split_max_size)
        planner = _Planner(model, options, given, output, thread_count(threads), progress)
        return planner.plan()


@dataclass(frozen=True, slots=True)
class _Given:
    """The imatrix of a run, if any, and the parts of names that choose from it."""

    file: str | os.PathLike[str] | None
    include: Sequence[str]
    exclude: Sequence[str]
    importance: Importance | None
    """None where no file is given or no tensor is left of it."""

    idle: tuple[IdleRule, ...]

    @classmethod
    def of(
        cls,
        file: str | os.PathLike[str] | None,
        include: Sequence[str],
        exclude: Sequence[str],
        model: ModelFile,
        options: Options,
        allow_missing: bool,
    ) -> _Given:
        """Load it, and check that it is of the model."""
        if file is None:
            if include or exclude:
                raise BadOptionError(
                    "`include_weights` and `exclude_weights` choose from an imatrix; give one"
                )
            return cls(None, include, exclude, None, ())
        found = load_importance(file, include, exclude)
        check_fit(
            found,
            model.tensors,
            str(model.metadata.get("general.architecture")),
            model=str(model.paths[0]),
            allow_missing=allow_missing,
        )
        idle = tuple(
            IdleRule(option, part, "is in no name of the imatrix")
            for option, parts in (("--include-weights", include), ("--exclude-weights", exclude))
            for part in parts
            if not any(part in name for name in found.names_in_file)
        )
        importance = (found.refining() if options.is_refined else found) or None
        return cls(file, include, exclude, importance, idle)


@dataclass(frozen=True, slots=True)
class _Planner:
    """Everything that a plan depends on."""

    model: ModelFile
    options: Options
    given: _Given
    output: Output
    threads: int
    progress: Progress | None

    @property
    def importance(self) -> Importance | None:
        """The importance to use."""
        return self.given.importance

    def plan(self) -> Plan:
        """The plan that the options ask for, with the exact size of its files."""
        plan = self._measured() if self.measures else self.unmeasured()
        return replace(plan, idle_rules=plan.idle_rules + self.given.idle)

    @property
    def measures(self) -> bool:
        """Whether the plan depends on measured errors."""
        return self.options.is_measured(self.importance is not None)

    def unmeasured(self) -> Plan:
        """The plan that the options ask for, or what it would be without measuring."""
        return self._sized(self.options)

    def metadata(self, plan: Plan) -> Metadata:
        """What the files of a plan say of themselves."""
        return planned_metadata(self.model.gguf.metadata, plan, self.importance)

    def _measured(self) -> Plan:
        model, options = self.model, self.options
        shape = ModelShape.from_metadata(model.metadata)
        with model.errors():
            names = list(open_tensors(model.tensors.values(), shape, options))
        given = self._given_sensitivities()
        budget, size_of = self._budget()
        fisher = self._fisher(names) if given is None else {}
        errors = measure_errors(
            model,
            names,
            self.importance,
            fisher=fisher,
            stock=options.stock,
            layout=options.layout,
            threads=self.threads,
            progress=self.progress,
        )
        sensitivities = given or default_sensitivities(
            {name: e.energy for name, e in errors.items()},
            logit_variance(model),
            {name: e.fisher for name, e in errors.items()},
            tied=is_tied(model.tensors),
        )
        return measured_plan(
            make_menu(model, errors, sensitivities, refine=options.is_refined),
            budget,
            lambda chosen: self._sized(options, chosen),
            size_of,
            sensitivities=sensitivities.source,
            stock=options.stock,
        )

    def _given_sensitivities(self) -> Sensitivities | None:
        """Those that the user names or has measured; None leaves them to be told from the weights."""
        file = self.options.sensitivities
        if self.options.calibrate is not None:
            source, given = self.model.paths[0], self.given
            file = calibration_file(source, given.file, given.include, given.exclude)
            text = read_text(self.options.calibrate)
            measure_sensitivities(
                source,
                text,
                file,
                imatrix=given.file,
                include_weights=given.include,
                exclude_weights=given.exclude,
                threads=self.threads or None,
                progress=self.progress,
            )
        return None if file is None else load_sensitivities(file)

    def _fisher(self, names: Sequence[str]) -> dict[str, Floats]:
        """The Fisher information of these matrices, where the imatrix has it."""
        if self.importance is None:
            return {}
        tensors = self.model.tensors
        found = {name: self.importance.fisher(name, tensors[name].row_length) for name in names}
        return {name: columns for name, columns in found.items() if columns is not None}

    def _budget(self) -> tuple[int, Callable[[Plan], int]]:
        """The most bytes that a measured plan may have, and what counts of them."""
        options = self.options
        n_params = sum(t.n_elements for t in self.model.tensors.values())
        if options.target_bpw is not None:
            return floor(options.target_bpw * n_params / 8), lambda plan: plan.tensor_bytes
        if options.target_size is not None:
            return options.target_size, _file_bytes
        if options.like is not None:
            return _file_bytes(self._sized(Options(type=options.like))), _file_bytes
        small = Options(
            type="Q4_K_S",
            tensor_types=options.tensor_types,
            output_tensor_type=options.output_tensor_type,
            token_embedding_type=options.token_embedding_type,
            leave_output_tensor=options.leave_output_tensor,
        )
        return floor(_file_bytes(self._sized(small)) * (1 + overhead_for(n_params))), _file_bytes

    def _sized(self, options: Options, chosen: Mapping[str, Choice] | None = None) -> Plan:
        """The plan of a recipe, or of choices, with the exact size of its files."""
        model = self.model
        if options.recipe.default is None and model.layout is not None:
            options = replace(options, layout=model.layout)
        with model.errors():
            plan = make_plan(
                model.tensors.values(),
                ModelShape.from_metadata(model.metadata),
                options,
                has_imatrix=self.importance is not None,
                keep_order=self.output.keep_split,
                chosen=chosen,
            )
        if any(t.type == Q4_HIFI and t.target.layout != options.layout for t in plan.tensors):
            raise UnsupportedModelError(
                f"{model.paths[0]}: holds Q4_HIFI tensors in the {model.layout} layout;"
                f" use export to bring it into the {options.layout} layout"
            )
        sizes = file_sizes(
            self.metadata(plan),
            [part for t in plan.tensors for part in t.stored],
            alignment=model.gguf.alignment,
            shard_of=self.output.shards(model, plan),
        )
        return replace(plan, file_bytes=sum(sizes))


def _file_bytes(plan: Plan) -> int:
    assert plan.file_bytes is not None  # plans are sized here
    return plan.file_bytes


def planned_metadata(source: Metadata, plan: Plan, importance: Importance | None = None) -> Metadata:
    """Return the source's pairs, and what llama-quantize and Q4_HIFI set, in llama-quantize's order."""
    pairs = source.with_value("general.quantization_version", 2, GGUFValueType.UINT32)
    file_type = source.get(FILE_TYPE_KEY) if plan.file_type is None else plan.file_type
    if isinstance(file_type, int) and 0 <= file_type < 1 << 32:  # else the source's is carried, if it has one
        pairs = pairs.with_value(FILE_TYPE_KEY, file_type, GGUFValueType.UINT32)
    if importance is not None:
        for key, value, kind in importance.metadata():
            pairs = pairs.with_value(key, value, kind)
    if not any(t.type == Q4_HIFI for t in plan.tensors):
        return pairs.without(*KEYS)
    if plan.scale is None:
        return pairs
    return (
        pairs.with_value(KEY_VERSION, VERSION, GGUFValueType.UINT32)
        .with_value(KEY_LAYOUT, plan.layout, GGUFValueType.STRING)
        .with_value(KEY_OUTLIERS, plan.scale.outliers, GGUFValueType.UINT32)
        .with_value(KEY_COVERAGE, plan.scale.ffn_down_coverage, GGUFValueType.FLOAT32)
    )


def _refuse_requantizing(model: ModelFile, plan: Plan) -> None:
    changed = [t for t in plan.tensors if t.requantized]
    if changed:
        first = changed[0]
        # rules that keep all would leave nothing to do
        rules = keep_rules(changed, plan.tensors) if any(_is_encoded(t) for t in plan.tensors) else ""
        raise UnsupportedModelError(
            f"{model.paths[0]}: tensor {first.name} is {first.source_type} already, and {len(changed)}"
            f" tensor{'s' * (len(changed) > 1)} would be quantized a second time; start from the 16-bit"
            f" model,{f' keep what is quantized with {rules},' if rules else ''} or allow it with"
            " `allow_requantize=True`"
        )


def _is_encoded(tensor: PlannedTensor) -> bool:
    """Whether a tensor of single numbers is quantized."""
    return not tensor.copied and not tensor.source_type.quantized


def _require_importance(model: ModelFile, plan: Plan, recipe: Recipe, importance: Importance | None) -> None:
    encoded = [t for t in plan.tensors if t.type == recipe.default and not t.copied]
    needed = [t.name for t in encoded if t.role not in NEED_NO_IMATRIX]
    missing = [name for name in needed if importance is None or name not in importance]
    if missing:
        raise BadOptionError(
            f"{model.paths[0]}: {recipe.name} needs an imatrix, and there is none for {len(missing)} of the"
            f" tensors that would be {recipe.default}, the first being {missing[0]}; give one that covers"
            " them with `imatrix=...`, or give them another type with `tensor_types=...`"
        )
