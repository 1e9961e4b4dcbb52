"""The results of a comparison of models: :class:`Comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .bench import ModelFacts
from .estimates import Estimate
from .kl_divergence import KlDivergence
from .perplexity import Perplexity


@dataclass(frozen=True, slots=True, eq=False)
class ComparedModel:
    """The results of one model in a comparison.

    ``quality`` is the divergence from the reference; None for the reference itself. ``prompt_speed`` is the
    speed of reading, measured on the first half of each chunk, which needs no logits. ``decode_speed`` is the
    speed of writing one token after another. Both are in tokens per second, and None if they were not
    measured, as in an interrupted comparison.
    """

    model: str
    facts: ModelFacts
    perplexity: Perplexity = field(repr=False)
    quality: KlDivergence | None = field(repr=False)
    prompt_speed: Estimate | None
    decode_speed: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "model": self.model,
            "file_bytes": self.facts.file_bytes,
            "n_params": self.facts.n_params,
            "bits_per_weight": self.facts.bits_per_weight,
            "perplexity": self.perplexity.as_dict(),
            "quality": None if self.quality is None else self.quality.as_dict(),
            "prompt_speed": self.prompt_speed and self.prompt_speed.as_dict(),
            "decode_speed": self.decode_speed and self.decode_speed.as_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """The result of :func:`q4hifi.compare`.

    ``dataset`` is the name of the text. ``n_chunks`` of its ``total_chunks`` were measured: fewer than all
    if the comparison was interrupted. ``models`` has the models that could be compared, ``failures`` the
    others: the model's file -> the error message.
    """

    dataset: str
    n_ctx: int
    n_chunks: int
    total_chunks: int
    reference: ComparedModel
    models: tuple[ComparedModel, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "dataset": self.dataset,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "total_chunks": self.total_chunks,
            "reference": self.reference.as_dict(),
            "models": [model.as_dict() for model in self.models],
            "failures": dict(self.failures),
        }
