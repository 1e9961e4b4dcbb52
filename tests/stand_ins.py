"""A model of numpy for tests of evaluation: it needs no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass
class ToyTokenizer:
    """A token per character."""

    n_vocab: int
    bos: int | None = None

    @property
    def add_bos(self) -> bool:
        return self.bos is not None

    def encode(self, text: str) -> list[int]:
        bos = [self.bos] if self.bos is not None else []
        return bos + [ord(c) % self.n_vocab for c in text]

    def encode_array(
        self, text: str, *, limit: int | None = None, parse_special: bool = False
    ) -> npt.NDArray[np.uint32]:
        return np.array(self.encode(text), np.uint32)[:limit]


@dataclass
class ToyModel:
    """A model whose answer depends on the last token only: row ``table[token]``.

    ``read`` records every token sequence that was begun. The one matrix, blk.0.attn_v.weight, has as
    input (1, token); so has output.weight. As its Fisher information it gives the sums of these.
    """

    table: Floats
    bos: int | None = None
    path: Path = Path("toy.gguf")
    metadata: Mapping[str, Any] = field(default_factory=dict)
    read: list[list[int]] = field(default_factory=list)
    engine: str = "toy"
    backend: str = "toy"
    has_fisher: bool = True
    has_logits: bool = True
    reads_whole_texts: bool = False
    matrices: Sequence[str] = ("blk.0.attn_v.weight",)

    @property
    def n_vocab(self) -> int:
        return self.table.shape[1]

    @property
    def tokenizer(self) -> ToyTokenizer:
        return ToyTokenizer(self.n_vocab, self.bos)

    def sequence(self) -> ToySequence:
        self.read.append([])
        return ToySequence(self, self.read[-1])

    def input_sums(self) -> ToySums:
        return ToySums()

    def fisher(
        self, tokens: npt.NDArray[np.uint32], *, first: int, seed: int
    ) -> dict[str, npt.NDArray[np.float64]]:
        return {"blk.0.attn_v.weight": np.array([len(tokens) - first, tokens[first:].sum()], np.float64)}


@dataclass
class ToySequence:
    model: ToyModel
    tokens: list[int]

    @property
    def length(self) -> int:
        return len(self.tokens)

    def evaluate(
        self, tokens: npt.NDArray[np.uint32], logits: str = "last", *, sums: ToySums | None = None
    ) -> Floats | None:
        self.tokens += tokens.tolist()
        if sums is not None:
            sums.add(tokens)
        if logits == "none":
            return None
        rows = self.model.table[tokens]
        return rows[-1] if logits == "last" else rows


class ToySums:
    def __init__(self) -> None:
        self.squares, self.count = np.zeros(2), 0

    def add(self, tokens: npt.NDArray[np.uint32]) -> None:
        self.squares += [tokens.size, (tokens.astype(float) ** 2).sum()]
        self.count += tokens.size

    def take(self, other: ToySums) -> None:
        self.squares += other.squares
        self.count += other.count
        other.squares, other.count = np.zeros(2), 0

    @property
    def expected_bytes(self) -> tuple[int, int]:
        return 0, 0

    def products(self) -> dict[str, npt.NDArray[np.float32]]:
        return {"blk.0.attn_v.weight": -self.squares[:1].astype(np.float32).reshape(1, 1)}

    def same_inputs(self) -> dict[str, str]:
        return {}

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
        found = (self.squares.copy().reshape(1, -1), np.array([self.count]))
        return {"blk.0.attn_v.weight": found, "output.weight": found, "token_embd.weight": found}


def toy(n_vocab: int = 50, *, noise: float = 0.0, seed: int = 0, **options: Any) -> ToyModel:
    """A toy model of random answers; with ``noise``, the same answers a little off."""
    table = np.random.default_rng(seed).standard_normal((n_vocab, n_vocab)) * 3
    off = np.random.default_rng(seed + 1).standard_normal((n_vocab, n_vocab)) * noise
    return ToyModel((table + off).astype(np.float32), **options)
