"""What llama.cpp's graph says about a model's tensors while a text is evaluated.

- Where llama.cpp keeps the tensors that it multiplies with, so that a trial can replace them.
- Which matrices write to the residual stream. The stream begins with the token embeddings, and every sum of
the
  stream and something else is the stream again. The matrices that this something else comes from are writers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .tensors import TensorReader

PRODUCTS = frozenset({"MUL_MAT", "MUL_MAT_ID"})
SAME_VALUES = frozenset({"VIEW", "RESHAPE", "CONT", "CPY", "DUP", "SCALE", "GET_ROWS"})
"""Operations whose result is the stream if what they read is: they copy, scale or select tokens."""


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
    _made_of: dict[int, frozenset[str]] = field(default_factory=dict)
    """Address of a node -> the matrices whose outputs it is made of, without another matrix in between."""

    def begin(self) -> None:
        """Prepare for a new graph, whose nodes may be at the addresses of others before."""
        self._stream.clear()
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
        elif op in PRODUCTS:
            self._made_of[address] = frozenset() if weight is None else frozenset(weight[:1])
        else:
            self._pass_on(address, op, [source for source in node.src if source])

    def _pass_on(self, address: int, op: str, sources: list[int]) -> None:
        made_of = frozenset[str]().union(*(self._made_of.get(source, ()) for source in sources))
        if op in SAME_VALUES or op == "ADD":
            of_stream = self._stream.intersection(sources if op == "ADD" else sources[:1])
            if of_stream:
                self._stream.add(address)
                self.writers |= made_of
                return
        self._made_of[address] = made_of
