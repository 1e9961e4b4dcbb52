"""What llama.cpp's graph says about a model's tensors while a text is evaluated.

- Where llama.cpp keeps the tensors that it multiplies with, so that a trial can replace them.
- Which matrices write to the residual stream. The stream begins with the token embeddings, which may be
  scaled or normalized first. Every sum of the stream and something else is the stream again. The matrices
  that this something else comes from are writers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .tensors import TensorReader

PRODUCTS = frozenset({"MUL_MAT", "MUL_MAT_ID"})
SAME_VALUES = frozenset({"VIEW", "RESHAPE", "CONT", "CPY", "DUP", "SCALE", "GET_ROWS"})
"""Operations whose result is the stream if what they read is: they copy, scale or select tokens."""

PREPARING = frozenset({"MUL", "NORM", "RMS_NORM"})
"""Operations by which embeddings become the stream, before any matrix has written to it."""


@dataclass
class GraphNotes:
    """Notes about the tensors ``names``, taken node by node in the order of evaluation."""

    reader: TensorReader
    names: frozenset[str]
    addresses: dict[str, int] = field(default_factory=dict)
    """Tensor name -> address of the tensor that llama.cpp multiplies with, or takes rows from."""
    writers: set[str] = field(default_factory=set)
    """The tensors that write to the residual stream, among them routers."""
    _stream: set[int] = field(default_factory=set)
    _embeddings: set[int] = field(default_factory=set)
    """The part of the stream to which no matrix has written."""
    _made_of: dict[int, frozenset[str]] = field(default_factory=dict)
    """Address of a node -> the matrices whose outputs it is made of, without another matrix in between."""

    def begin(self) -> None:
        """Prepare for a new graph, whose nodes may be at the addresses of others before."""
        self._stream.clear()
        self._embeddings.clear()
        self._made_of.clear()

    def note(self, address: int) -> None:
        """Take note of a node."""
        node, op = self.reader.tensor(address), self.reader.op_name(address)
        weight = None
        if op in PRODUCTS or op == "GET_ROWS":
            weight = self.reader.find(node.src[0], self.names)
        if weight is not None:
            self.addresses[weight[0]] = weight[1]
        if weight is not None and op == "GET_ROWS":
            self._stream.add(address)
            self._embeddings.add(address)
        elif op in PRODUCTS:
            self._made_of[address] = frozenset() if weight is None else frozenset(weight[:1])
        else:
            self._pass_on(address, op, [source for source in node.src if source])

    def _pass_on(self, address: int, op: str, sources: list[int]) -> None:
        made_of = frozenset[str]().union(*(self._made_of.get(source, ()) for source in sources))
        read = frozenset(sources if op == "ADD" else sources[:1])
        is_embedding = not made_of and not read.isdisjoint(self._embeddings)
        if (
            (op in SAME_VALUES or op == "ADD" or self._is_scaling(op, sources))
            and not read.isdisjoint(self._stream)
        ) or (op in PREPARING and is_embedding):
            self._stream.add(address)
            self.writers |= made_of
            if is_embedding:
                self._embeddings.add(address)
        else:
            self._made_of[address] = made_of

    def _is_scaling(self, op: str, sources: list[int]) -> bool:
        """Return whether an operation multiplies with a single number."""
        return op == "MUL" and self.reader.tensor(sources[1]).ne == (1, 1, 1, 1)
