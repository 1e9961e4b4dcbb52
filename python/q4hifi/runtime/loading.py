"""Handing a model's weights to the Rust core: mapped from their files, never copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.model_file import ModelFile, ModelTensor, RowRange
from ..codec.rows import Parts, relayout
from ..errors import BadFileError, Q4HifiError, UnsupportedModelError
from ..files.positioned_file import FileMapping
from ..formats.layout import SPLIT
from ..formats.tensor_names import is_expert
from ..formats.types import Q4_HIFI, TYPES
from .architecture import FREQUENCY_FACTORS, SUPPORTED, Config, Experts, name_of, role_and_layer


class MappedFiles:
    """The mapped files of a model's weights, watched as long as this object lives."""

    def __init__(self, mappings: list[FileMapping]) -> None:
        """Watch ``mappings``."""
        self.mappings = mappings
        self._watches = [_core.Watch(mapping.all()) for mapping in mappings]

    @contextmanager
    def intact(self) -> Iterator[None]:
        """Run the ``with`` block, and raise :class:`BadFileError` if a file became shorter meanwhile.

        The block has then computed with wrong weights, so this error replaces any that the block raised.
        """
        try:
            yield
        except Exception:
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        for mapping, watch in zip(self.mappings, self._watches, strict=True):
            if watch.is_lost or mapping.has_shrunk():
                raise BadFileError(
                    f"{mapping.path}: the file became shorter while it was in use; do not write to the file"
                    " of a running model, and start again when it is complete"
                )


def frequency_factors(file: ModelFile) -> list[float]:
    """Return the divisors of the rotary frequencies, empty if the model has none.

    Raises :class:`BadFileError` if one is not above zero.
    """
    tensor = file.tensors.get(FREQUENCY_FACTORS)
    if tensor is None:
        return []
    factors: list[float] = file.dequantize_rows(RowRange(tensor, 0, 0, tensor.n_rows)).reshape(-1).tolist()
    if not all(0 < factor < float("inf") for factor in factors):
        raise BadFileError(f"tensor {FREQUENCY_FACTORS} has values that are not above zero")
    return factors


_CoreTensor = tuple[str, int | None, int, int, int, list[npt.NDArray[np.uint8]]]


def load_weights(file: ModelFile, config: Config, threads: int, mappings: list[FileMapping]) -> _core.Model:
    """Return the core's model, made of ``config`` and the tensors of ``file``, mapped by ``mappings``.

    Raises :class:`UnsupportedModelError` for tensors that the runtime does not know and types that cannot
    be run, and :class:`BadFileError` for missing tensors.
    """
    current = ""

    def tensors() -> Iterator[_CoreTensor]:
        nonlocal current
        for current, tensor in file.tensors.items():
            if current == FREQUENCY_FACTORS:
                continue
            position = role_and_layer(current)
            if position is None:
                raise UnsupportedModelError(f"the runtime does not know this tensor; {SUPPORTED}")
            if not tensor.type.codec:
                raise UnsupportedModelError(f"{tensor.type} is a type that q4hifi cannot decode")
            if config.experts is not None and is_expert(current):
                _check_stack(tensor, config.experts)
            parts = _mapped(tensor, mappings)
            kind = TYPES["Q4_K"] if tensor.type == Q4_HIFI else tensor.type
            yield (*position, kind.id, tensor.row_length, tensor.outliers, list(parts))
            if tensor.format.is_fork:  # was copied
                for part in tensor.parts:
                    mappings[part.shard].forget(part.offset, part.nbytes)

    def bad_model(message: str, what: str, role: str | None, layer: int | None) -> Q4HifiError:
        if what == "missing":
            return BadFileError(
                f"{path}: there is no tensor {name_of(str(role), layer)}; the file is incomplete, or not"
                f" of the architecture that its metadata name; {SUPPORTED}"
            )
        if what == "unknown":
            return UnsupportedModelError(f"models of this architecture have no such tensor; {SUPPORTED}")
        return BadFileError(message)

    path = file.paths[0]
    try:
        with core_errors(BadFileError, bad_model=bad_model):
            return _core.Model(config, tensors(), threads)
    except (BadFileError, UnsupportedModelError) as cause:
        if str(cause).startswith(f"{path}: "):
            raise
        raise type(cause)(f"{path}: {f'tensor {current}: ' * bool(current)}{cause}") from cause


def _check_stack(tensor: ModelTensor, experts: Experts) -> None:
    found = prod(tensor.shape[2:])  # one matrix may be stored as a stack or as a matrix
    if found != experts.count:
        raise BadFileError(f"it has matrices for {found} experts, but the metadata say {experts.count}")


def _mapped(tensor: ModelTensor, mappings: list[FileMapping]) -> Parts:
    """Return the tensor's parts as views of the mapped file; the fork layout is copied to the split one."""
    parts = tuple(mappings[part.shard].view(part.offset, part.nbytes) for part in tensor.parts)
    if tensor.format.is_fork:
        parts = relayout(parts, tensor.format, SPLIT, tensor.row_length)
        for part in parts:
            part.flags.writeable = False
    return parts
