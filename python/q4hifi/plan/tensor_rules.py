"""Applies the user's options for tensor types, such as ``--tensor-type``, and finds those without effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from ..formats.layout import Format
from ..formats.tensor_names import is_quantizable, is_tied, role_of
from ..formats.types import Q4_HIFI, TensorType, tensor_type
from ..wording import invisible, shortened
from .options import SINGLE_TYPES, TypeOptions
from .tensor_type_rules import TensorTypes, as_typed, compiled

TENSOR_TYPE = "--tensor-type"

NO_TENSOR = "matches no tensor"
NOTHING = "decides the type of no tensor"
KEEPING = "that keep their type"
EARLIER = "that an earlier --tensor-type decides"


@dataclass(frozen=True, slots=True)
class IdleRule:
    """An option without effect: its name (``option``), its value as the user wrote it, and the reason."""

    option: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.option} {self.text} has no effect: it {self.reason}"


class SourceTensor(Protocol):
    """The properties of a tensor that rules and recipes use."""

    @property
    def name(self) -> str:
        """The tensor's name in the file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions, row length first."""

    @property
    def format(self) -> Format:
        """How the tensor's rows are stored."""


class TensorRules:
    """The user's options for tensor types, for models of one architecture."""

    def __init__(self, options: TypeOptions, architecture: str) -> None:
        """Compile the patterns. Raises :class:`BadOptionError` for an invalid pattern or type."""
        self._options, self._architecture = options, architecture
        self._rules = _rules(tuple((pattern, kind) for pattern, kind in options.tensor_types))

    def type_of(self, tensor: SourceTensor) -> TensorType | None:
        """Return the type that the user's options give to a tensor, or None."""
        if (by_role := self._by_role(tensor.name)) is not None:
            return tensor_type(by_role[1], codec=False)
        rule = self._rules.first(tensor.name)
        return None if rule is None or self._ignores(rule, tensor) else self._rules.types[rule]

    def option_of(self, name: str) -> str | None:
        """Return the option that decides a tensor's type by its role, or None."""
        by_role = self._by_role(name)
        return None if by_role is None else by_role[0]

    def is_quantizable(self, tensor: SourceTensor) -> bool:
        """Return whether recipes quantize this tensor; otherwise it keeps its type."""
        return is_quantizable(
            tensor.name,
            tensor.shape,
            self._architecture,
            leave_output_tensor=self._options.leave_output_tensor,
        )

    def idle(self, tensors: Sequence[SourceTensor]) -> tuple[IdleRule, ...]:
        """Return the options that decide the type of no tensor, rules in the user's order."""
        return (*self._idle_rules(tensors), *self._idle_roles(tensors))

    def _idle_rules(self, tensors: Sequence[SourceTensor]) -> tuple[IdleRule, ...]:
        """The ``--tensor-type`` rules without effect."""
        idle: dict[int, set[str]] = {i: set() for i in range(len(self._rules.types))}
        decided: list[tuple[str, str]] = []  # name, and the decision that takes precedence over later rules
        for tensor in tensors:
            if not self.is_quantizable(tensor):
                decided.append((tensor.name, KEEPING))
            elif (by_role := self._by_role(tensor.name)) is not None:
                decided.append((tensor.name, f"that --{by_role[0].replace('_', '-')} decides"))
            elif (rule := self._rules.first(tensor.name)) is not None:
                if self._ignores(rule, tensor):
                    decided.append(
                        (tensor.name, f"that become {self._options.recipe.name}, as all matrices do")
                    )
                else:
                    idle.pop(rule, None)
                    decided.append((tensor.name, EARLIER))
        for i, reasons in idle.items():
            reasons |= {why for name, why in decided if self._rules.matches(i, name)}
        return tuple(
            IdleRule(
                TENSOR_TYPE,
                shortened(f"{as_typed(pattern)}={kind}"),
                f"matches only tensors {' or '.join(sorted(reasons))}"
                if reasons
                else NO_TENSOR + invisible(as_typed(pattern)),
            )
            for i, reasons in idle.items()
            for pattern, kind in [self._options.tensor_types[i]]
        )

    def _idle_roles(self, tensors: Sequence[SourceTensor]) -> Iterator[IdleRule]:
        """The options for the output matrix and the embeddings without effect."""
        options, recipe = self._options, self._options.recipe.default
        open_ones = [t for t in tensors if self.is_quantizable(t)]
        used = {option for t in open_ones if (option := self.option_of(t.name))}
        mixes = recipe is not None and recipe.quantized and not options.pure
        if mixes and is_tied({t.name for t in tensors}):  # the output matrix is token_embd
            left = [t for t in open_ones if role_of(t.name) == "token_embd" and self.type_of(t) is None]
            used |= {"output_tensor_type"} if left else set()
        for option in SINGLE_TYPES:
            kind = getattr(options, option)
            if kind is not None and option not in used:
                yield IdleRule(f"--{option.replace('_', '-')}", kind, NOTHING)

    def _by_role(self, name: str) -> tuple[str, str] | None:
        """Return the keyword of the option that decides a tensor's type by its role, and the type, if any."""
        role, options = role_of(name), self._options
        if role == "output" and options.output_tensor_type is not None:
            return "output_tensor_type", options.output_tensor_type
        if role != "token_embd" or options.token_embedding_type is None:
            return None
        # the option also applies to per_layer_token_embd, unless a pattern matches that name
        if name.startswith("per_layer_") and self._rules.first(name) is not None:
            return None
        return "token_embedding_type", options.token_embedding_type

    def _ignores(self, rule: int, tensor: SourceTensor) -> bool:
        """Whether a rule decides nothing: llama-quantize reads none for F32, F16 and BF16.

        Two kinds of rules count nevertheless, as llama-quantize has nothing that they contradict: those for
        Q4_HIFI, and those with which a quantized tensor keeps its type.
        """
        recipe, kind = self._options.recipe.default, self._rules.types[rule]
        kept = kind.quantized and kind == tensor.format.type
        return recipe is not None and not recipe.quantized and kind != Q4_HIFI and not kept


class _Rules:
    """Compiled (pattern, type) pairs. They cache their decisions, because one command makes several plans."""

    def __init__(self, pairs: TensorTypes) -> None:
        self._patterns = [compiled(pattern) for pattern, _ in pairs]
        self.types = [tensor_type(kind, codec=False) for _, kind in pairs]
        self._first: dict[str, int | None] = {}

    def first(self, name: str) -> int | None:
        """Return the index of the first rule whose pattern is found in ``name``, or None."""
        if name not in self._first:
            rules = range(len(self._patterns))
            self._first[name] = next((i for i in rules if self.matches(i, name)), None)
        return self._first[name]

    def matches(self, rule: int, name: str) -> bool:
        return self._patterns[rule].search(name)


_rules = lru_cache(maxsize=4)(_Rules)
