"""Collecting the inputs of all matrices while llama.cpp evaluates a text.

llama.cpp calls :meth:`Observer.callback` for every node of its graph. Two operations multiply weights with
inputs. ``MUL_MAT`` has one matrix, or a stack of matrices of which each has its own inputs. ``MUL_MAT_ID``
has a stack of experts, inputs, and for each token the indices of the experts that it is routed to.

Matrices whose inputs are the same tensor of the graph share their sums. The graph shows which these are, so
no table of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from ...codec.input_correlations import pair_count
from ...codec.input_sums import InputSums
from ...errors import BadOptionError, UnavailableError
from ...formats.tensor_names import first_with_same_input, role_of
from .abi import StructOffsets
from .graph import GraphNotes
from .tensors import Tensor, TensorReader

Rows = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Correlating:
    """Which tensors get sums of products.

    ``names``: tensors whose inputs can be correlated at all. ``experts``: whether those experts that have
    inputs of their own (``ffn_down_exps``) get products of their own, each n_in² / 2 floats.
    """

    names: frozenset[str]
    experts: bool = False

    def n_products(self, name: str, n_matrices: int, kind: str) -> int:
        """Return the number of sums of products for a tensor of ``n_matrices``: 0, 1 or ``n_matrices``.

        ``kind`` is "each" for a stack of matrices of which each has inputs of its own, "routed" for experts
        whose inputs are those of the experts alone, and "pooled" for experts that see the tokens themselves.
        """
        if name not in self.names or (kind == "routed" and not self.experts):
            return 0
        return 1 if kind == "pooled" else n_matrices

    def expected_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Return about how many bytes the sums of a model's matrices take in memory and in a file.

        ``shapes`` has the row length first. Which matrices have the same inputs is known only when the model
        runs; the table of our own runtime is used instead.
        """
        memory = file = 0
        for name, (row_length, *rest) in shapes.items():
            n_matrices = prod(rest[1:])
            first = first_with_same_input(name)
            if first != name and first in shapes:
                continue
            kind = "each" if "_exps" not in name else "routed" if role_of(name) == "ffn_down" else "pooled"
            pairs = self.n_products(name, n_matrices, kind) * pair_count(row_length)
            memory += 8 * row_length * n_matrices + 4 * pairs
            file += 4 * row_length * n_matrices + pairs
        return memory, file


class LlamaInputSums:
    """The sums of a model's matrices: a collector as :class:`~q4hifi.engines.protocol.InputCollector`."""

    def __init__(
        self, correlating: Correlating, expected_bytes: tuple[int, int] = (0, 0), threads: int | None = None
    ) -> None:
        """Use :meth:`LlamaModel.input_sums`."""
        self.correlating, self.threads = correlating, threads
        self.expected_bytes = expected_bytes
        """Bytes that the sums take in memory and in a file, estimated before any matrix was seen."""
        self.sums: dict[str, InputSums] = {}
        self.first: dict[str, str] = {}
        """The tensor whose sums a tensor shares: its own name, or that of another with the same inputs."""

    def take(self, other: LlamaInputSums) -> None:
        """Add the sums of another collector of the same model to these, and set the other's to zero.

        Raises :class:`BadOptionError` if the other is of another model.
        """
        for name, first in other.first.items():
            if self.first.setdefault(name, first) != first:
                raise BadOptionError(f"{name} has the inputs of other matrices in the other sums")
        for name, sums in other.sums.items():
            if name not in self.sums:
                self.sums[name] = sums.empty()
            self.sums[name].take(sums)

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        """Return the sums of squares by column, float64 [n_matrices, n_in], and the token counts, by name."""
        every = {name: (sums.squares, sums.counts) for name, sums in self.sums.items()}
        return {name: every[first] for name, first in self.first.items()}

    def products(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Return the sums of products, float32 [n, pairs], under the name of the first with the same
        inputs."""
        return {name: sums.products for name, sums in self.sums.items() if sums.n_products}

    def same_inputs(self) -> dict[str, str]:
        """Return the name under which a tensor's products are, where that is another's."""
        return {name: first for name, first in self.first.items() if name != first}


@dataclass
class Observer:
    """llama.cpp's callback. Between :meth:`begin` and :meth:`end` it adds the inputs of ``names`` to sums."""

    reader: TensorReader
    offsets: StructOffsets
    names: frozenset[str]
    error: BaseException | None = None
    notes: GraphNotes | None = None
    """Where to take notes of the graph, if anywhere."""
    _sums: LlamaInputSums | None = None
    _first: dict[tuple[int, int, int, bool], str] = field(default_factory=dict)
    _wanted: tuple[str, Tensor] | None = None

    def begin(self, sums: LlamaInputSums | None) -> None:
        """Prepare for the evaluation of one batch; ``sums`` None collects nothing."""
        self._sums, self.error = sums, None
        self._first = {}
        if self.notes is not None:
            self.notes.begin()

    def end(self) -> None:
        """Stop collecting. Raises what was raised in the callback, which cannot pass through llama.cpp."""
        self._sums = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def callback(self, address: int, ask: bool, _user: object) -> bool:
        """Say whether the node's values are wanted (``ask``), or take them. False then ends the evaluation.

        It ends only one part of the graph, so every later question is answered with "yes", and the values are
        refused. So an error, or Ctrl-C, ends the evaluation soon.
        """
        try:
            if self.error is not None:
                return ask
            if ask:
                if self.notes is not None:
                    self.notes.note(address)
                return self._sums is not None and self._ask(self._sums, address)
            self._take()
            return True
        except BaseException as error:
            self.error = error
            return ask

    def _ask(self, sums: LlamaInputSums, address: int) -> bool:
        op = self.reader.op(address)
        if op not in (self.offsets.mul_mat, self.offsets.mul_mat_id):
            return False
        node = self.reader.tensor(address)
        weight = self.reader.find(node.src[0], self.names)
        if weight is None:
            return False
        name, _ = weight
        weights, inputs = self.reader.tensor(node.src[0]), self.reader.tensor(node.src[1])
        if inputs.type != self.offsets.f32:
            raise UnavailableError(
                f"{name}: llama.cpp gives inputs that are not F32; use a build without this optimization"
            )
        n_matrices = weights.ne[2] * weights.ne[3]
        ids = node.src[2] if op == self.offsets.mul_mat_id else 0
        # a router keeps sums of its own: it has no products, which a matrix with the same inputs needs
        key = (node.src[1], ids, n_matrices, name in sums.correlating.names)
        first = self._first.setdefault(key, name)
        # a matrix that is used twice in a graph has inputs of two kinds; both are summed
        if sums.first.setdefault(name, first) != first:
            first = sums.first[name]
        if first != name:
            return False
        if name not in sums.sums:
            kind = "each" if op == self.offsets.mul_mat else "routed" if inputs.ne[1] > 1 else "pooled"
            n_products = sums.correlating.n_products(name, n_matrices, kind)
            sums.sums[name] = InputSums(inputs.ne[0], n_matrices, n_products, threads=sums.threads)
        self._wanted = (name, node)
        return True

    def _take(self) -> None:
        assert self._sums is not None and self._wanted is not None
        (name, node), self._wanted = self._wanted, None
        rows = self.reader.values(self.reader.tensor(node.src[1]), np.float32)
        into = self._sums.sums[name]
        if node.op == self.offsets.mul_mat_id:
            experts = self.reader.values(self.reader.tensor(node.src[2]), np.int32)[0, 0]
            _add_experts(into, rows[0], experts)
        else:
            _add_stack(into, rows, self.reader.tensor(node.src[0]).ne)


def _add_experts(into: InputSums, rows: Rows, experts: Indices) -> None:
    """Add the inputs of experts. ``experts`` [n_tokens, n_used] are the indices of the experts of each token.

    ``rows`` is [n_tokens, 1, n_in] if all experts of a token have the same input, else [n_tokens, n_used,
    n_in].
    """
    if rows.shape[1] == 1:
        into.add(rows[:, 0], experts)
    else:
        into.add(rows.reshape(-1, rows.shape[-1]), experts.reshape(-1, 1))


def _add_stack(into: InputSums, rows: Rows, shape: tuple[int, int, int, int]) -> None:
    """Add the inputs of a stack of matrices of ggml's ``shape``; ``rows`` is [n3, n2, n_tokens, n_in].

    Matrix i of the stack is multiplied with the inputs i, and with further ones where there are more of
    these.
    """
    for i3, block in enumerate(rows):
        for i2, part in enumerate(block):
            matrix = (i3 % shape[3]) * shape[2] + i2 % shape[2]
            into.add(part, np.full((len(part), 1), matrix, np.int32))
