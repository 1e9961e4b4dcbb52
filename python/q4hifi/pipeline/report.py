"""The report on a quantization: sizes, errors, types, speed. Data only; the command makes tables of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..codec.model_file import ModelFile
from ..codec.rows import ErrorSums
from ..imatrix.importance import Importance
from ..plan.plan import Plan
from .rewrite import Rewritten


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The report of :func:`q4hifi.quantize_file`. Sizes are in bytes.

    ``errors`` maps the name of each encoded tensor to its squared error and its squared magnitude, weighted
    by importance if the tensor has any. ``without_importance`` names the encoded tensors without importance.
    ``inactive_experts`` maps the names of tensors to the indices of experts that no token of the imatrix's
    text activated; all their columns have the same importance. Both are empty without an imatrix.
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
        """Make the report on a run."""
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
        """Weights of the model divided by the time of the run."""
        return self.plan.n_params / self.seconds if self.seconds else 0.0

    @property
    def error_by_role(self) -> dict[str, ErrorSums]:
        """Role -> the sum of the errors of its encoded tensors; the largest relative error comes first."""
        roles: dict[str, ErrorSums] = {}
        for tensor in self.plan.tensors:
            if tensor.name in self.errors:
                roles[tensor.role] = roles.get(tensor.role, ErrorSums()) + self.errors[tensor.name]
        return dict(sorted(roles.items(), key=lambda item: -item[1].relative))

    @property
    def weighted_by_role(self) -> tuple[Counter[str], Counter[str]]:
        """Role -> number of encoded tensors with importance; and role -> number of encoded tensors."""
        encoded = [t for t in self.plan.tensors if t.name in self.errors]
        plain = set(self.without_importance) if self.imatrix else {t.name for t in encoded}
        return Counter(t.role for t in encoded if t.name not in plain), Counter(t.role for t in encoded)

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


def _is_weighted(importance: Importance, model: ModelFile, name: str) -> bool:
    shape = model.tensors[name].shape
    return importance.has_weights(name, shape[0], prod(shape[2:3]))
