"""What a quantization made of a model: sizes, errors, fallbacks, speed; and plans, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .importance import Importance
from .model_file import ModelFile
from .plan import Plan, TypeTotal
from .rewrite import Rewritten
from .rows import ErrorSums
from .types import Q4_HIFI, STORED_TYPES
from .wording import human_bytes, human_count, printable

MOST_RULES = 20
"""Rules that decided nothing which are printed."""


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The outcome of :func:`q4hifi.quantize_file`.

    ``errors`` maps the name of each tensor that was encoded to its squared error and magnitude,
    weighted by importance where that tensor had one. ``without_importance`` are the encoded
    tensors that had none, and ``inactive_experts`` those of its experts that were
    never activated and count as all equal; both are empty without an imatrix. Sizes are in bytes.
    """

    source: tuple[Path, ...]
    source_bytes: int
    destination: tuple[Path, ...]
    file_bytes: int
    plan: Plan
    errors: dict[str, ErrorSums]
    imatrix: str | None
    without_importance: tuple[str, ...]
    inactive_experts: dict[str, tuple[int, ...]]
    seconds: float

    @classmethod
    def of(
        cls,
        model: ModelFile,
        plan: Plan,
        written: Rewritten,
        importance: Importance | None,
        seconds: float,
    ) -> QuantizeReport:
        """Make the report of a run."""
        encoded = [t.name for t in plan.tensors if t.type.quantized and not t.copied]
        plain = [
            name for name in encoded if importance is not None and not _is_weighted(importance, model, name)
        ]
        inactive = importance.inactive if importance is not None else {}
        return cls(
            source=model.paths,
            source_bytes=model.n_bytes,
            destination=tuple(Path(path) for path in written.paths),
            file_bytes=sum(written.sizes),
            plan=plan,
            errors=written.errors,
            imatrix=None if importance is None else importance.file,
            without_importance=tuple(plain),
            inactive_experts={name: inactive[name] for name in encoded if name in inactive},
            seconds=seconds,
        )

    @property
    def weights_per_second(self) -> float:
        """Weights of the model over the whole run's time."""
        return self.plan.n_params / self.seconds if self.seconds else 0.0

    @property
    def error_by_role(self) -> dict[str, ErrorSums]:
        """Role -> errors of its encoded tensors, added up; the largest relative error first."""
        roles: dict[str, ErrorSums] = {}
        for tensor in self.plan.tensors:
            if tensor.name in self.errors:
                roles[tensor.role] = roles.get(tensor.role, ErrorSums()) + self.errors[tensor.name]
        return dict(sorted(roles.items(), key=lambda item: -item[1].relative))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        plan = self.plan.as_dict()
        for tensor in plan["tensors"]:
            error = self.errors.get(tensor["name"])
            tensor["relative_error"] = None if error is None else error.relative
        return {
            "source": [str(path) for path in self.source],
            "source_bytes": self.source_bytes,
            "destination": [str(path) for path in self.destination],
            "file_bytes": self.file_bytes,
            "imatrix": self.imatrix,
            "without_importance": list(self.without_importance),
            "inactive_experts": {name: list(numbers) for name, numbers in self.inactive_experts.items()},
            "relative_error_by_role": {role: e.relative for role, e in self.error_by_role.items()},
            "seconds": self.seconds,
            "weights_per_second": self.weights_per_second,
            "plan": plan,
        }

    def __rich__(self) -> RenderableType:
        """Return the tables that the command prints."""
        return paragraphs(
            [type_table(self.plan)],
            [role_table(self.plan)] if self.plan.measured else [],
            self._errors() if self.errors else [],
            [*notes(self.plan), *self._importance_notes()],
            [
                Text(
                    f"{human_bytes(self.source_bytes)} -> {human_bytes(self.file_bytes)}, "
                    f"{self.plan.bits_per_weight:.3f} bits a weight, {self.seconds:.1f} s, "
                    f"{self.weights_per_second / 1e6:.1f} million weights a second"
                ),
                *(unbroken(f"wrote {printable(path)}") for path in self.destination),
            ],
        )

    def _errors(self) -> Iterable[RenderableType]:
        known, encoded = self._weighted_by_role()
        every = known == encoded
        weighted = f", weighted by importance{'' if every else ' where it is known'}" if known else ""
        yield Text(f"squared error over squared weight{weighted}", style="italic")
        table = new_table("role", "relative error", *([] if every or not known else ["weighted"]))
        for role, sums in self.error_by_role.items():
            share = f"{known[role]} of {encoded[role]}"
            table.add_row(role, f"{sums.relative:.2e}", *([] if every or not known else [share]))
        yield table

    def _weighted_by_role(self) -> tuple[Counter[str], Counter[str]]:
        """Role -> its encoded tensors with importance, and all of them."""
        encoded = [t for t in self.plan.tensors if t.name in self.errors]
        plain = set(self.without_importance) if self.imatrix else {t.name for t in encoded}
        return Counter(t.role for t in encoded if t.name not in plain), Counter(t.role for t in encoded)

    def _importance_notes(self) -> Iterable[Text]:
        if self.without_importance:
            yield _warning(f"without importance: {_some(self.without_importance)}")
        if self.inactive_experts:
            count = sum(map(len, self.inactive_experts.values()))
            yield _warning(
                f"experts that the imatrix's text never activated: {count}, of {_some(self.inactive_experts)}"
            )


def _is_weighted(importance: Importance, model: ModelFile, name: str) -> bool:
    shape = model.tensors[name].shape
    return importance.has_weights(name, shape[0], prod(shape[2:3]))


def type_table(plan: Plan) -> Table:
    """Return a plan's totals by type."""
    table = new_table("type", "tensors", "weights", "bytes", "bits a weight", title=plan.recipe)
    whole = TypeTotal(len(plan.tensors), plan.n_params, plan.tensor_bytes)
    for name, total in {**plan.by_type, "all": whole}.items():
        bits = 8 * total.bytes / max(1, total.weights)
        table.add_row(name, f"{total.tensors}", f"{total.weights:,}", human_bytes(total.bytes), f"{bits:.3f}")
    return table


def tensor_table(plan: Plan) -> Table:
    """Return a plan's tensors, one a row."""
    table = new_table("tensor", "shape", "from", "to", "outliers", "bytes")
    for t in plan.tensors:
        shape = " x ".join(map(str, t.shape)) or "single number"
        name, outliers = Text(printable(t.name)), str(t.outliers or "")
        table.add_row(name, shape, t.source_type.name, t.type.name, outliers, f"{t.nbytes:,}")
    return table


def role_table(plan: Plan) -> Table:
    """Return how many tensors of each role took which type."""
    table = new_table("role", "types")
    table.columns[1].justify = "left"
    for role, kinds in plan.by_role.items():
        ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
        table.add_row(role, ", ".join(f"{count} {kind}" for kind, count in ordered))
    return table


def notes(plan: Plan) -> Iterable[Text]:
    """Yield what a user should know of a plan: its scale and layout, and the tensors that fell back."""
    if plan.measured is not None:
        measured = plan.measured
        yield Text(
            f"measured coverage: {measured.used / measured.budget:.2%} of {human_bytes(measured.budget)} "
            f"used, predicted KL divergence {measured.predicted_kld:.5f} nats, at most {measured.gap:.2%} "
            f"above the best choice; sensitivities from {printable(measured.sensitivities)}"
        )
    elif plan.scale is not None:
        yield Text(
            f"Q4_HIFI at {human_count(plan.n_params)} parameters: {plan.scale.outliers} outliers a block, "
            f"attn_v of {plan.scale.attn_v_coverage:.0%} and "
            f"ffn_down of {plan.scale.ffn_down_coverage:.0%} of the layers"
        )
    n_hifi = sum(t.type == Q4_HIFI for t in plan.tensors)
    if n_hifi == 0 and plan.recipe == Q4_HIFI.name:
        yield Text("no tensor became Q4_HIFI: the file loads in llama.cpp as it is")
    if n_hifi and not any(t.target.is_fork for t in plan.tensors):
        yield Text(f"{n_hifi} tensors are Q4_HIFI: 'q4hifi export' makes a file that llama.cpp loads")
    if any(t.target.is_fork for t in plan.tensors):
        yield _warning(
            f"the fork layout is only for the llama.cpp branch where Q4_HIFI began: its type id {Q4_HIFI.id}"
            f" means {STORED_TYPES[Q4_HIFI.id]} to all other programs"
        )
    misfits = [t for t in plan.fallbacks if not t.has_long_name]
    if misfits:
        kinds = sorted({f"{t.fallback_from} -> {t.type}" for t in misfits})
        names = _some(t.name for t in misfits)
        yield _warning(
            f"{len(misfits)} of {len(plan.tensors)} tensors have rows that do not fit their type"
            f" and took another ({', '.join(kinds)}): {names}"
        )
    for rule in plan.idle_rules[:MOST_RULES]:
        yield _warning(printable(rule))
    if len(plan.idle_rules) > MOST_RULES:
        yield _warning(
            f"{len(plan.idle_rules) - MOST_RULES} more rules decide nothing; --json lists them all"
        )
    for warning in plan.warnings:
        yield _warning(printable(warning))


def paragraphs(*groups: Iterable[RenderableType]) -> Group:
    """Return the groups that are not empty, one below the other, with an empty line between two."""
    parts: list[RenderableType] = []
    for group in groups:
        lines = list(group)
        parts += [Text(), *lines] if parts and lines else lines
    return Group(*parts)


def unbroken(text: str) -> Text:
    """Return a line that only the terminal itself breaks, so that a path in it can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def _warning(text: str) -> Text:
    return Text(text, style="yellow")


def _some(names: Iterable[str], limit: int = 3) -> str:
    names = [printable(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def new_table(first: str, *others: str, title: str | None = None) -> Table:
    """Return an empty table, the first column to the left and the others to the right.

    Where the terminal is too narrow, the first column is shortened.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first, overflow="ellipsis")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
