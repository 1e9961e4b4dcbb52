"""The Fisher information of matrices without a backward pass: by trials of noise in their weights.

Each weight w of a matrix becomes w (1 ± ε), with a random sign. For small ε the KL divergence from the model
is ½ Σ F w² ε² (see :meth:`q4hifi.Model.fisher`), so a trial measures Σ F w² of the matrix. It says nothing
about the columns: each column gets a part in proportion to the mean square of its input.

A trial evaluates the whole model. So the matrices of the same name in all layers but the first and the last
are tried together. The divergence is divided among them: equally, because each has the same relative error,
but among matrices that write to the residual stream by the energy (mean squared length) of their outputs.
Those differ up to a thousandfold between layers, while the stream grows slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..codec.model_file import ModelFile, ModelTensor, row_ranges
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import Bytes, decode, encode
from ..engines.protocol import LanguageModel, Tokens, WeightTrial
from ..formats.layout import Format
from ..formats.tensor_names import group_of
from ..formats.types import F32
from .estimates import mean_per_squared_root
from .logits import Doubles, divergence

NOISE = 1 / 16
"""ε: the relative error of a type of about 4 bits."""

EXACT = frozenset({"F32", "F16", "BF16", "Q8_0"})
"""Types that hold the noisy weights well enough."""

MOST_WEIGHTS = 1 << 29
"""Weights that a trial changes at most, where there is more than one layer: they are kept in memory twice."""

InputSums = Mapping[str, tuple[Doubles, npt.NDArray[np.int64]]]
"""Tensor name -> sums of squares by column, [n_matrices, n_in], and counts of tokens."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A group of matrices, those of them that got noise, and the divergence: its mean, and that of its roots.

    ``energies``: of the outputs of all matrices of the group, if it writes to the residual stream, else
    empty.
    """

    group: Sequence[ModelTensor]
    tried: Sequence[ModelTensor]
    energies: Mapping[str, float]
    mean: float
    mean_root: float


def fisher_by_noise(
    model: LanguageModel, tokens: Tokens, inputs: InputSums, *, first: int, seed: int, threads: int
) -> dict[str, Doubles]:
    """Estimate the Fisher information of the matrices by columns: float64 [n_in] by name.

    ``tokens``: a text of at most 512 tokens, of which the predictions from index ``first`` on count.
    ``inputs``: sums over the inputs of the matrices on any text. ``seed``: of the signs of the noise.
    Matrices that the model does not use, and those of less than 8 bits, are left out. Raises the errors of
    reading and running the model.
    """
    rng = np.random.default_rng(seed)
    trial = model.trial(tokens)
    targets = np.zeros_like(tokens[first:])  # a divergence does not depend on the next tokens
    trials = []
    with ModelFile.open(model.path) as file:
        for group in _groups(model, file, trial):
            tried = _part(group)
            energies = {}
            if group[0].name in trial.writers and len(group) > 1:
                energies = {tensor.name: _energy(file, tensor, inputs, threads) for tensor in group}
            logits = trial.logits({tensor.name: _noisy(file, tensor, rng, threads) for tensor in tried})
            kld = divergence(logits[first:], trial.reference[first:], targets, threads=threads).kld
            trials.append(_Trial(group, tried, energies, float(kld.mean()), float(np.sqrt(kld).mean())))
    factor = mean_per_squared_root((trial.mean, trial.mean_root) for trial in trials)
    found = {}
    for one in trials:
        whole = 2 * len(targets) * factor * one.mean_root**2 / NOISE**2
        for tensor, share in zip(one.group, _shares(one), strict=True):
            found[tensor.name] = whole * share * _columns(tensor, inputs)
    return found


def _groups(model: LanguageModel, file: ModelFile, trial: WeightTrial) -> list[list[ModelTensor]]:
    """The matrices that are tried together."""
    groups: dict[tuple[str, int | None], list[ModelTensor]] = {}
    for name, tensor in file.tensors.items():
        if name in model.matrices and name in trial.used and tensor.type.name in EXACT:
            groups.setdefault(group_of(name, model.n_layer), []).append(tensor)
    return list(groups.values())


def _part(group: Sequence[ModelTensor]) -> Sequence[ModelTensor]:
    """Those of a group that are changed: spread over the layers, and no more than fit into memory."""
    n = max(1, min(len(group), MOST_WEIGHTS // group[0].n_elements))
    return [group[(2 * i + 1) * len(group) // (2 * n)] for i in range(n)]


def _shares(trial: _Trial) -> list[float]:
    """The divergence of each matrix, divided by that of the noisy matrices together."""
    energies = trial.energies
    total = sum(energies[tensor.name] for tensor in trial.tried) if energies else 0.0
    if not total:
        return [1 / len(trial.tried)] * len(trial.group)
    return [energies[tensor.name] / total for tensor in trial.group]


def _columns(tensor: ModelTensor, inputs: InputSums) -> Doubles:
    """The columns' parts of the matrix's value, float64 [n_in] of sum 1: those of the inputs' squares."""
    squares = inputs[tensor.name][0].sum(axis=0) if tensor.name in inputs else np.zeros(tensor.row_length)
    total = squares.sum()
    return squares / total if total else np.full(tensor.row_length, 1 / tensor.row_length)


def _energy(file: ModelFile, tensor: ModelTensor, inputs: InputSums, threads: int) -> float:
    """The sum over all tokens of the squared length of the matrix's output: Σ input² x weight²."""
    squares = inputs[tensor.name][0]
    return sum(
        float(np.square(rows, dtype=np.float64).sum(axis=0) @ squares[matrix % len(squares)])
        for matrix, rows in _weights(file, tensor, threads)
    )


def _noisy(file: ModelFile, tensor: ModelTensor, rng: np.random.Generator, threads: int) -> QuantizedTensor:
    """The matrix with noise, in the type of the file."""
    encoded = list[Bytes]()
    for _, rows in _weights(file, tensor, threads):
        signs = np.unpackbits(rng.integers(0, 256, -(-rows.size // 8), np.uint8), count=rows.size)
        noisy = rows * (1 + NOISE * (2.0 * signs - 1)).astype(np.float32).reshape(rows.shape)
        flat = noisy.reshape(-1).view(np.uint8)
        (part,), _ = encode((flat,), Format(F32), tensor.format, tensor.row_length, threads=threads)
        encoded.append(part)
    return QuantizedTensor.from_parts((np.concatenate(encoded),), tensor.format, tensor.shape[::-1])


def _weights(
    file: ModelFile, tensor: ModelTensor, threads: int
) -> Iterable[tuple[int, npt.NDArray[np.float32]]]:
    """The rows of a tensor piece by piece, each piece with the index of its matrix."""
    for part in row_ranges(tensor, by_matrix=True):
        yield part.matrix, decode(file.read_rows(part), tensor.format, tensor.row_length, threads=threads)
