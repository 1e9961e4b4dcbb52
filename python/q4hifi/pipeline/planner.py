"""Making the plan for an open model, with the measurements that its options need: :class:`Planner`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import floor

from ..allocation.calibrate import measure_sensitivities
from ..allocation.calibration_file import load_sensitivities
from ..allocation.calibration_options import CalibrationOptions
from ..allocation.calibration_path import calibration_file, part_of_imatrix
from ..allocation.measured_plan import make_menu, measure_errors, measured_plan
from ..allocation.sampled_errors import logit_variance
from ..allocation.sensitivities import FISHER_SOURCE, Sensitivities, default_sensitivities
from ..codec.model_file import ModelFile
from ..errors import UnsupportedModelError
from ..evaluate.chunks import read_text
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import KEY_COVERAGE, KEY_LAYOUT, KEY_OUTLIERS, KEY_VERSION, KEYS, VERSION
from ..formats.tensor_names import is_tied
from ..formats.types import Q4_HIFI
from ..gguf_io.header import FILE_TYPE_KEY
from ..gguf_io.metadata import Metadata
from ..gguf_io.writer import file_sizes
from ..imatrix.belongs import check_belongs
from ..imatrix.file import load_importance
from ..imatrix.importance import Importance
from ..plan.metadata_overrides import overridden
from ..plan.model_shape import ModelShape
from ..plan.options import TypeOptions
from ..plan.plan import Plan, make_plan
from ..plan.pruning import Pruning
from ..plan.size_classes import overhead_for
from ..plan.tensor_rules import IdleRule
from ..plan.type_rules import Choice, open_tensors
from ..threads import thread_count
from .quantize_options import GUESSED, QuantizeOptions
from .rewrite import Output

PRUNED = (
    "the estimated KL divergence is that of quantizing alone, without the effect of the layers that are left"
    " out; 'q4hifi compare' measures both"
)
"""The warning of measured plans with ``prune_layers``."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Everything that a plan depends on.

    ``source`` is the model as its file has it, ``model`` the one without the layers that ``pruning`` leaves
    out. ``loaded`` is the importance matrix as its file has it, and ``used`` the one that is quantized with:
    None if no file was given or no tensor uses it. ``importance`` is ``used`` with the names of ``model``.
    """

    source: ModelFile
    model: ModelFile
    pruning: Pruning
    options: QuantizeOptions
    output: Output
    loaded: Importance | None
    used: Importance | None
    importance: Importance | None

    @classmethod
    def of(cls, model: ModelFile, options: QuantizeOptions, output: Output) -> Planner:
        """Load the importance matrix that the options name, and check that it is of the model."""
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
        with model.errors():
            pruning = Pruning.of(options.prune_layers, model.gguf.metadata, shapes)
        loaded = used = None
        if options.imatrix is not None:
            loaded = load_importance(options.imatrix, options.include_weights, options.exclude_weights)
            check_belongs(
                loaded,
                model.tensors,
                str(model.metadata.get("general.architecture")),
                model=str(model.paths[0]),
                allow_missing=options.allow_missing_importance,
            )
            used = (loaded.refining() if options.is_refined else loaded) or None
        return cls(
            source=model,
            model=model.renamed(pruning.new_name),
            pruning=pruning,
            options=options,
            output=output,
            loaded=loaded,
            used=used,
            importance=used and used.renamed(pruning.new_name),
        )

    @property
    def measures(self) -> bool:
        """Whether the plan depends on measured errors."""
        return self.options.is_measured(self.importance is not None)

    def plan(self) -> Plan:
        """Return the plan that the options ask for, with the exact size of its files.

        Reads weights, and runs the model, only if the options ask for it (:attr:`measures`).
        """
        plan = self._measured() if self.measures else self.unmeasured()
        guessed = [GUESSED] * self.options.guesses_sensitivities
        pruned = [PRUNED] * bool(self.measures and self.pruning.layers)
        return replace(plan, warnings=(*plan.warnings, *self._idle_weights(), *guessed, *pruned))

    def unmeasured(self) -> Plan:
        """Return the plan of the recipe, which reads no weights."""
        return self._sized(self.options)

    def metadata(self, plan: Plan) -> Metadata:
        """Return the metadata of the files that a plan makes."""
        metadata = planned_metadata(self.source.gguf.metadata, plan, self.used)
        return overridden(self.pruning.metadata(metadata), self.options.metadata_overrides)

    def _idle_weights(self) -> list[str]:
        """Warnings about ``include_weights`` and ``exclude_weights`` that match no name."""
        known = () if self.loaded is None else self.loaded.names_in_file
        return [
            str(IdleRule(option, part, "is in no name of the imatrix"))
            for option, parts in (
                ("--include-weights", self.options.include_weights),
                ("--exclude-weights", self.options.exclude_weights),
            )
            for part in parts
            if not any(part in name for name in known)
        ]

    def _measured(self) -> Plan:
        """The plan of the types with the least predicted divergence within the budget."""
        model, options = self.model, self.options
        shape = ModelShape.from_metadata(model.metadata)
        with model.errors():
            names = list(open_tensors(model.tensors.values(), shape, options))
        given = self._given_sensitivities()
        budget, size_of = self._budget()
        errors = measure_errors(
            model,
            names,
            self.importance,
            use_fisher=given is None,
            stock=options.stock,
            layout=options.layout,
            threads=thread_count(options.threads),
            progress=options.progress,
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
            sensitivities=self._source(sensitivities),
            stock=options.stock,
        )

    def _given_sensitivities(self) -> Sensitivities | None:
        """The sensitivities that the options name, or ask to measure; None if they do neither."""
        options = self.options
        if options.calibrate is None:
            if options.sensitivities is None:
                return None
            return load_sensitivities(options.sensitivities).renamed(self.pruning.new_name)
        weights = (options.include_weights, options.exclude_weights)
        measured = measure_sensitivities(
            self.source,
            read_text(options.calibrate),
            calibration_file(self.model.paths[0], options.imatrix, *weights),
            importance=self.loaded,
            part=part_of_imatrix(*weights),
            options=CalibrationOptions(threads=options.threads, progress=options.progress),
        )
        return measured.as_sensitivities().renamed(self.pruning.new_name)

    def _source(self, sensitivities: Sensitivities) -> str:
        """Where sensitivities are from; of Fisher information with its tokens, of which many are better."""
        if sensitivities.source != FISHER_SOURCE or self.importance is None:
            return sensitivities.source
        return f"{FISHER_SOURCE} ({self.importance.fisher_tokens:,} tokens)"

    def _budget(self) -> tuple[int, Callable[[Plan], int]]:
        """The most bytes that a measured plan may have, and the function that counts a plan's bytes."""
        options = self.options
        n_params = sum(t.n_elements for t in self.model.tensors.values())
        if options.target_bpw is not None:
            return floor(options.target_bpw * n_params / 8), lambda plan: plan.tensor_bytes
        if options.target_size is not None:
            return options.target_size, _file_bytes
        if options.like is not None:
            return _file_bytes(self._sized(TypeOptions(options.like))), _file_bytes
        small = TypeOptions(
            "Q4_K_S",
            tensor_types=options.tensor_types,
            output_tensor_type=options.output_tensor_type,
            token_embedding_type=options.token_embedding_type,
            leave_output_tensor=options.leave_output_tensor,
        )
        return floor(_file_bytes(self._sized(small)) * (1 + overhead_for(n_params))), _file_bytes

    def _sized(self, options: TypeOptions, chosen: Mapping[str, Choice] | None = None) -> Plan:
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
    if isinstance(file_type, int) and 0 <= file_type < 1 << 32:  # else the source's pair stays as it is
        pairs = pairs.with_value(FILE_TYPE_KEY, file_type, GGUFValueType.UINT32)
    if importance is not None:
        for key, value, kind in importance.metadata():
            pairs = pairs.with_value(key, value, kind)
    if not any(t.type == Q4_HIFI for t in plan.tensors):
        return pairs.without(*KEYS)
    if plan.size_class is None:
        return pairs
    return (
        pairs.with_value(KEY_VERSION, VERSION, GGUFValueType.UINT32)
        .with_value(KEY_LAYOUT, plan.layout, GGUFValueType.STRING)
        .with_value(KEY_OUTLIERS, plan.size_class.outliers, GGUFValueType.UINT32)
        .with_value(KEY_COVERAGE, plan.size_class.ffn_down_coverage, GGUFValueType.FLOAT32)
    )
