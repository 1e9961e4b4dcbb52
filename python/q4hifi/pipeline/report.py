"""What a quantization made of a model: sizes, errors, fallbacks, speed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..codec.model_file import ModelFile
from ..codec.rows import ErrorSums
from ..imatrix.file import Importance
from ..plan.plan import Plan
from .rewrite import Rewritten


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

    @property
    def weighted_by_role(self) -> tuple[Counter[str], Counter[str]]:
        """Role -> its encoded tensors with importance, and all of them."""
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
