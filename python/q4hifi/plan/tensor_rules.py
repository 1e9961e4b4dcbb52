"""What the user's options say of tensors' types, and which of them say nothing of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from ..formats.tensor_names import is_quantizable, role_of
from ..formats.types import TensorType, tensor_type
from .options import Options, TensorTypes
from .tensor_patterns import compile_pattern

TENSOR_TYPE = "--tensor-type"

NO_TENSOR = "matches no tensor"
KEPT = "that keep their type"
EARLIER = "that an earlier --tensor-type decides"


@dataclass(frozen=True, slots=True)
class IdleRule:
    """An ``option`` of the user that changes nothing, as it was given (``text``), and the reason."""

    option: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.option} {self.text} decides nothing: it {self.reason}"


class NamedTensor(Protocol):
    """What rules read of a tensor; ``shape`` has the row length first."""

    @property
    def name(self) -> str:
        """The tensor's name in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, row length first."""


class TensorRules:
    """The options that name types of tensors, for a model of an architecture."""

    def __init__(self, options: Options, architecture: str) -> None:
        """Compile the patterns of ``options``."""
        self._options, self._architecture = options, architecture
        self._rules = _rules(tuple((pattern, kind) for pattern, kind in options.tensor_types))

    def type_of(self, name: str) -> TensorType | None:
        """Return the type that the user named for a tensor, if any."""
        if (by_role := self._by_role(name)) is not None:
            return tensor_type(by_role[1], codec=False)
        rule = self._rules.first(name)
        return None if rule is None else self._rules.types[rule]

    def is_quantizable(self, tensor: NamedTensor) -> bool:
        """Return whether a quantizing recipe changes this tensor's type at all."""
        return is_quantizable(
            tensor.name,
            tensor.shape,
            self._architecture,
            leave_output_tensor=self._options.leave_output_tensor,
        )

    def idle(self, tensors: Iterable[NamedTensor]) -> tuple[IdleRule, ...]:
        """Return the ``--tensor-type`` rules that decide the type of no tensor, in their order."""
        reasons: dict[int, set[str]] = {i: set() for i in range(len(self._rules.types))}
        others: list[tuple[str, str]] = []
        for tensor in tensors:
            if not self.is_quantizable(tensor):
                others.append((tensor.name, KEPT))
            elif (by_role := self._by_role(tensor.name)) is not None:
                others.append((tensor.name, f"that {by_role[0]} decides"))
            elif (rule := self._rules.first(tensor.name)) is not None:
                reasons.pop(rule, None)
                others.append((tensor.name, EARLIER))
        for i, found in reasons.items():
            found |= {why for name, why in others if self._rules.matches(i, name)}
        return tuple(
            IdleRule(
                TENSOR_TYPE,
                "=".join(self._options.tensor_types[i]),
                f"matches only tensors {' or '.join(sorted(found))}" if found else NO_TENSOR,
            )
            for i, found in reasons.items()
        )

    def _by_role(self, name: str) -> tuple[str, str] | None:
        """The option that decides a tensor's type by its role, and the type."""
        role, options = role_of(name), self._options
        if role == "output" and options.output_tensor_type is not None:
            return "--output-tensor-type", options.output_tensor_type
        if role != "token_embd" or options.token_embedding_type is None:
            return None
        # the option covers per_layer_token_embd too, unless a pattern names that
        if name.startswith("per_layer_") and self._rules.first(name) is not None:
            return None
        return "--token-embedding-type", options.token_embedding_type


class _Rules:
    """Compiled (pattern, type) pairs; what they decide is remembered, as plans are made several times."""

    def __init__(self, pairs: TensorTypes) -> None:
        self._patterns = [compile_pattern(pattern) for pattern, _ in pairs]
        self.types = [tensor_type(kind, codec=False) for _, kind in pairs]
        self._first: dict[str, int | None] = {}

    def first(self, name: str) -> int | None:
        """The number of the first rule that a name matches."""
        if name not in self._first:
            rules = range(len(self._patterns))
            self._first[name] = next((i for i in rules if self.matches(i, name)), None)
        return self._first[name]

    def matches(self, rule: int, name: str) -> bool:
        return self._patterns[rule].search(name)


_rules = lru_cache(maxsize=4)(_Rules)
