"""Running models: :class:`Model` and its :class:`Sequence`."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import _core
from ..codec.core_errors import core_errors
from ..codec.model_file import ErrorsAt, ModelFile, ModelTensor, RowRange
from ..codec.quantized_tensor import QuantizedTensor
from ..codec.rows import Parts, relayout
from ..errors import BadFileError, BadOptionError, NotFiniteError, Q4HifiError, UnsupportedModelError
from ..files.positioned_file import FileMapping
from ..formats.layout import SPLIT
from ..formats.tensor_names import EMBEDDINGS, is_tied, mate_of
from ..formats.types import Q4_HIFI, TYPES
from ..threads import thread_count
from .architecture import FACTORS, SUPPORTED, config_of, name_of, place_of
from .tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Tokens = npt.ArrayLike
"""Numbers of tokens: a list, or a one-dimensional array of integers."""

Wanted = Literal["last", "all", "none"] | range

Trace = _core.Trace


class Model:
    """A language model that can be run.

    Attributes: ``path``, ``metadata`` of the file, ``n_vocab`` tokens of its vocabulary, ``n_layer``
    layers, ``n_ctx`` tokens that a sequence may have. May be used from several threads at the same time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        n_ctx: int | None = None,
    ) -> None:
        """Load a GGUF model by its file or by any of its shards.

        ``threads`` None or 0 is one per core, and there are never more; ``n_ctx`` None is what the model was
        trained with. Weights are not copied, but mapped from the file, which must not be changed meanwhile;
        if it becomes shorter, whatever runs the model raises :class:`BadFileError`.

        Raises :class:`BadFileError` for a file that is not a sound GGUF or lacks a tensor,
        :class:`UnsupportedModelError` for a model that cannot be run, and :class:`BadOptionError`.
        """
        if n_ctx is not None and n_ctx < 1:
            raise BadOptionError(f"`n_ctx` is {n_ctx}; it is a number of tokens, at least 1")
        with ModelFile.open(path) as file:
            self.path: Path = file.paths[0]
            self.metadata: Mapping[str, Any] = file.metadata
            with file.errors_at(EMBEDDINGS):
                embeddings = file.tensors.get(EMBEDDINGS)
                if embeddings is None or len(embeddings.shape) != 2:
                    raise UnsupportedModelError(
                        f"it is not there, or is no matrix, so this is no language model; {SUPPORTED}"
                    )
            with ErrorsAt(f"{self.path}: "):
                config = config_of(file.metadata, embeddings.n_rows, _factors(file))
            self._weights = MappedFiles(file.gguf.map())
            with self._weights.intact():
                self._core = _load(file, config, thread_count(threads), self._weights.mappings)
            self._matrices = {name: place for name in file.tensors if (place := place_of(name))}
        self.n_vocab: int = config.n_vocab
        self.n_layer: int = config.n_layer
        self.n_ctx: int = n_ctx or config.n_context

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its vocabulary, made when first asked for."""
        with ErrorsAt(f"{self.path}: "):
            return Tokenizer.from_metadata(self.metadata)

    def sequence(self) -> Sequence:
        """Return an empty sequence."""
        return Sequence(self, self._core.sequence())

    def logits(self, tokens: Tokens) -> Floats:
        """Return the logits after each token, float32 [n_tokens, n_vocab], of a text on its own."""
        logits = self.sequence().evaluate(tokens, "all")
        assert logits is not None
        return logits

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text; see :meth:`Tokenizer.encode`."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of tokens; see :meth:`Tokenizer.decode`."""
        return self.tokenizer.decode(tokens, skip_special=skip_special)

    def generate_tokens(
        self,
        tokens: Tokens,
        *,
        n: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """Yield the tokens that follow ``tokens``, one after another, as they are chosen.

        Ends after ``n`` tokens, before a token of ``stop``, and where the context is full. Options are
        llama.cpp's, with the same tokens for the same seed: ``temperature`` 0 takes the best token
        always, ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 cut nothing off, ``seed`` None is a random one.
        """
        sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        sequence = self.sequence()
        logits = sequence.evaluate(tokens)
        return self._continue(sequence, logits, sampler, n, frozenset(stop))

    def _continue(
        self,
        sequence: Sequence,
        logits: Floats | None,
        sampler: Sampler,
        n: int | None,
        stop: frozenset[int],
    ) -> Iterator[int]:
        done = 0
        while logits is not None and (n is None or done < n):
            token = sampler.sample(logits)
            if token in stop:
                return
            yield token
            done += 1
            room = sequence.length < self.n_ctx and (n is None or done < n)
            logits = sequence.evaluate([token]) if room else None

    def input_sums(self) -> InputSums:
        """Return a collector of the matrices' inputs, to be given to :meth:`Sequence.evaluate`."""
        return InputSums(self._core.collector(), self._matrices)

    def replaced(self, name: str, tensor: QuantizedTensor) -> Model:
        """Return this model with another matrix under that name; all others are shared.

        Embeddings that serve as output do so here, too. Raises :class:`BadOptionError` for a name that
        is not a matrix of the model, and a tensor that has not its shape or cannot be run.
        """
        places = self._places(name)
        parts = [part.copy() for part in tensor.parts]
        for part in parts:
            part.flags.writeable = False
        kind = TYPES["Q4_K"] if tensor.type == Q4_HIFI else tensor.type
        model = copy.copy(self)
        with ErrorsAt(f"{self.path}: {name} cannot be replaced: "), core_errors(BadOptionError):
            for role, layer in places:
                entry = (role, layer, kind.id, tensor.shape[-1], tensor.outliers, parts)
                model._core = model._core.replaced(entry)
        return model

    def _places(self, name: str) -> list[tuple[str, int | None]]:
        """Where a matrix is used."""
        if name not in self._matrices:
            raise BadOptionError(f"{self.path}: there is no tensor {name}")
        places = [self._matrices[name]]
        if name == EMBEDDINGS and is_tied(self._matrices):
            places.append(("output", None))
        return places

    def first_layer(self, name: str) -> int | None:
        """Return the layer from which on a matrix makes a difference; None for the embeddings.

        For the output matrix that is ``n_layer``; see :meth:`resume`.
        """
        role, layer = self._places(name)[0]
        return self.n_layer if role == "output" else layer

    def trace(self, tokens: Tokens) -> Trace:
        """Follow a text on its own, 512 tokens at most, through the layers; see :meth:`resume`.

        The result holds n_layer + 1 states of each token, float32 [n_embd]. Raises
        :class:`BadOptionError` as :meth:`Sequence.evaluate` does, and for more tokens.
        """
        array = _token_array(tokens, self.n_vocab)
        with core_errors(BadOptionError), self._weights.intact():
            return self._core.trace(array)

    def resume(self, trace: Trace, layer: int) -> Floats:
        """Return the logits of a traced text, float32 [n_tokens, n_vocab], taken up where it enters a layer.

        They are those that this model gives the text if it differs from the one that traced it only
        from ``layer`` on; ``n_layer`` takes the states that leave the last. Raises
        :class:`BadOptionError` for a layer that there is not, and a trace of a model of another shape.
        """
        with ErrorsAt(f"{self.path}: "), core_errors(BadOptionError), self._weights.intact():
            return self._core.resume(trace, layer)

    def fisher(self, tokens: Tokens, *, first: int = 0, seed: int = 0) -> dict[str, npt.NDArray[np.float64]]:
        """Return the Fisher information of every matrix in a text on its own, 512 tokens at most.

        It is that of predictions of the tokens after each one from number ``first`` on, added up over
        these; tokens are drawn from the predictions, by ``seed``. Matrix name -> float64 [row length],
        whose sum is twice the divergence, in nats, that errors in the matrix make which are as large as its
        weights; its parts weigh the columns that they are in (``src/model/fisher``). Embeddings that serve
        as output have both parts. Raises :class:`BadOptionError` as :meth:`trace` does, and
        :class:`NotFiniteError` where the model gives no numbers.
        """
        array = _token_array(tokens, self.n_vocab)
        with (
            ErrorsAt(f"{self.path}: "),
            core_errors(BadOptionError, bad_model=_damaged),
            self._weights.intact(),
        ):
            core = self._core.fisher(array, first, seed)
        found = {}
        for name in self._matrices:
            parts = [part for place in self._places(name) if (part := core.of(*place)) is not None]
            if parts:
                found[name] = np.sum(parts, axis=0)
        return found


class Sequence:
    """A text that a model reads, and what it remembers of it. ``length`` is in tokens."""

    def __init__(self, model: Model, core: _core.Sequence) -> None:
        """Use :meth:`Model.sequence`."""
        self._model = model
        self._core = core

    @property
    def length(self) -> int:
        """Tokens that were evaluated."""
        return self._core.length

    def reset(self) -> None:
        """Forget all tokens."""
        self._core.reset()

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens.

        Raises :class:`BadOptionError` where there are fewer. A layer with a sliding window, as Gemma's,
        forgets what the window has left, by blocks of 64 tokens: once the next token after ``length``
        would see something that is gone, this is an error too, which changes nothing. :meth:`reset` and
        reading the text again always works.
        """
        there = self.length
        if not 0 <= length <= there:
            raise BadOptionError(f"a text of {there} tokens cannot be cut to {length}")
        if not self._core.truncate(length):
            raise BadOptionError(
                f"a text of {there} tokens cannot be cut to {length}: the sliding window of this model has"
                " forgotten what stands before; begin anew with reset()"
            )

    def evaluate(
        self, tokens: Tokens, logits: Wanted = "last", *, sums: InputSums | None = None
    ) -> Floats | None:
        """Read ``tokens`` after those that are there; return the logits that were asked for.

        "last" is float32 [n_vocab], "all" is [n_tokens, n_vocab], "none" is None, and a range of
        ``tokens``, its step 1, is [its length, n_vocab]. ``sums`` sees the inputs of all matrices.
        Raises :class:`BadOptionError` for tokens that are not in the vocabulary, or too many for the
        context. Ctrl-C ends it within a layer's time; the tokens of whole batches of 512 then remain.
        """
        array = _token_array(tokens, self._model.n_vocab)
        n = len(array)
        if self.length + n > self._model.n_ctx:
            raise BadOptionError(
                f"{self.length} tokens and {n} more are too many for a context of {self._model.n_ctx}"
            )
        wanted = _range_of(logits, n)
        core = None if sums is None else sums.core
        with (
            ErrorsAt(f"{self._model.path}: "),
            core_errors(BadOptionError, bad_model=_damaged),
            self._model._weights.intact(),
        ):
            out = self._core.evaluate(array, wanted.start, wanted.stop, core)
        if logits == "none":
            return None
        return out[0] if logits == "last" else out


class Sampler:
    """Chooses tokens by their logits; see :meth:`Model.generate_tokens`."""

    def __init__(
        self,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
    ) -> None:
        """Begin with ``seed``, 0 to 2³² - 1; None is a random one. Raises :class:`BadOptionError`."""
        seed = secrets.randbits(32) if seed is None else seed
        for name, value, least, most in (
            ("temperature", temperature, 0, float("inf")),
            ("top_k", top_k, 0, 1 << 31),
            ("top_p", top_p, 0, 1),
            ("min_p", min_p, 0, 1),
            ("seed", seed, 0, (1 << 32) - 1),
        ):
            if not least <= value <= most:
                allowed = f"{least} or more" if most == float("inf") else f"{least} to {most}"
                raise BadOptionError(f"`{name}` is {value}; choose {allowed}")
        self.seed = seed
        self._core = _core.Sampler(temperature, top_k, top_p, min_p, seed)

    def sample(self, logits: Floats) -> int:
        """Return the next token; ``logits`` is float32 [n_vocab]."""
        token = self._core.sample(np.ascontiguousarray(logits, np.float32))
        if token is None:
            raise NotFiniteError("the model gives logits that are NaN; its weights may be damaged")
        return token


class InputSums:
    """Sums of the inputs' squares and products of every matrix, over all tokens evaluated with it."""

    def __init__(self, core: _core.Collector, places: Mapping[str, tuple[str, int | None]]) -> None:
        """Use :meth:`Model.input_sums`."""
        self.core = core
        self._places = dict(places)
        if is_tied(places):
            self._places[EMBEDDINGS] = ("output", None)

    def take(self, other: InputSums) -> None:
        """Add the sums of ``other`` to these, and set those to zero.

        Raises :class:`BadOptionError` where they are of a model of another shape.
        """
        with core_errors(BadOptionError):
            self.core.take(other.core)

    def of(self, name: str) -> tuple[npt.NDArray[np.float64], int] | None:
        """Return the sums of a matrix, float64 [row length], and the tokens; None where it is none."""
        place = self._places.get(name)
        return self.core.sums(*place) if place else None

    def products(self) -> dict[str, tuple[npt.NDArray[np.float32], int]]:
        """Return the sums of products of the matrices' inputs by name, float32 [pairs], and the tokens.

        Of matrices that share their inputs, the first (:data:`~q4hifi.formats.tensor_names.SAME_INPUT`),
        where errors can cancel (:mod:`q4hifi.codec.input_correlations`).
        """
        found = {}
        for name, place in self._places.items():
            if mate_of(name) in self._places and mate_of(name) != name:
                continue
            if (products := self.core.products(*place)) is not None:
                found[name] = products
        return found

    def all(self) -> dict[str, tuple[npt.NDArray[np.float64], int]]:
        """Return :meth:`of` for all matrices of the model, by name."""
        return {name: found for name in self._places if (found := self.of(name)) is not None}


# ---- loading -------------------------------------------------------------------------------------


class MappedFiles:
    """The files that a model's weights are mapped from, watched for as long as this lives."""

    def __init__(self, mappings: list[FileMapping]) -> None:
        """Watch ``mappings``."""
        self.mappings = mappings
        self._watches = [_core.Watch(mapping.all()) for mapping in mappings]

    @contextmanager
    def intact(self) -> Iterator[None]:
        """Run the block; fail if a file became shorter, for then the block has computed with wrong weights.

        Raises :class:`BadFileError`, also in the place of what the block raises.
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
                    f"{mapping.path}: has become shorter while it was in use; do not write to a model that is"
                    " running, and begin again when it is complete"
                )


def _factors(file: ModelFile) -> list[float]:
    tensor = file.tensors.get(FACTORS)
    if tensor is None:
        return []
    factors: list[float] = file.dequantize_rows(RowRange(tensor, 0, 0, tensor.n_rows)).reshape(-1).tolist()
    if not all(0 < factor < float("inf") for factor in factors):
        raise BadFileError(f"tensor {FACTORS} has numbers that are not positive")
    return factors


_CoreTensor = tuple[str, int | None, int, int, int, list[npt.NDArray[np.uint8]]]


def _load(file: ModelFile, config: object, threads: int, mappings: list[FileMapping]) -> _core.Model:
    """Hand the tensors to the core, one after another."""
    current = ""

    def tensors() -> Iterator[_CoreTensor]:
        nonlocal current
        for current, tensor in file.tensors.items():
            if current == FACTORS:
                continue
            place = place_of(current)
            if place is None:
                raise UnsupportedModelError(f"a tensor that the runtime has no use for; {SUPPORTED}")
            if not tensor.type.codec:
                raise UnsupportedModelError(f"{tensor.type} is a type that q4hifi cannot decode")
            parts = _mapped(tensor, mappings)
            kind = TYPES["Q4_K"] if tensor.type == Q4_HIFI else tensor.type
            yield (*place, kind.id, tensor.row_length, tensor.outliers, list(parts))
            if tensor.format.is_fork:  # was copied
                for part in tensor.parts:
                    mappings[part.shard].forget(part.offset, part.nbytes)

    def bad_model(message: str, what: str, role: str | None, layer: int | None) -> Q4HifiError:
        if what == "missing":
            return BadFileError(
                f"{path}: there is no tensor {name_of(str(role), layer)}; the file is not complete,"
                f" or not of the architecture that it names; {SUPPORTED}"
            )
        if what == "unknown":
            return UnsupportedModelError(
                f"a tensor that a model of this architecture does not have; {SUPPORTED}"
            )
        return BadFileError(message)

    path = file.paths[0]
    try:
        with core_errors(BadFileError, bad_model=bad_model):
            return _core.Model(config, tensors(), threads)
    except (BadFileError, UnsupportedModelError) as cause:
        if str(cause).startswith(f"{path}: "):
            raise
        raise type(cause)(f"{path}: {f'tensor {current}: ' * bool(current)}{cause}") from cause


def _damaged(message: str, *_: object) -> NotFiniteError:
    """The error of a model that was loaded and still cannot be evaluated: its logits are not finite."""
    return NotFiniteError(f"{message}; its weights may be damaged")


def _mapped(tensor: ModelTensor, mappings: list[FileMapping]) -> Parts:
    """The tensor's parts as they lie in the file, and those of the fork layout taken apart."""
    parts = tuple(mappings[part.shard].view(part.offset, part.nbytes) for part in tensor.parts)
    if tensor.format.is_fork:
        parts = relayout(parts, tensor.format, SPLIT, tensor.row_length)
        for part in parts:
            part.flags.writeable = False
    return parts


# ---- tokens --------------------------------------------------------------------------------------


def _token_array(tokens: Tokens, n_vocab: int) -> npt.NDArray[np.uint32]:
    array = np.asarray(tokens)
    if array.ndim != 1 or not array.size:
        raise BadOptionError(f"tokens are a list of numbers, at least one, not {array.shape}")
    if array.dtype.kind not in "iu":
        raise BadOptionError(f"tokens are integers, not {array.dtype}")
    if array.min() < 0 or array.max() >= n_vocab:
        wrong = array[(array < 0) | (array >= n_vocab)][0]
        raise BadOptionError(f"token {wrong} is not in the vocabulary, which has {n_vocab}")
    return np.ascontiguousarray(array, np.uint32)


def _range_of(wanted: Wanted, n: int) -> range:
    if isinstance(wanted, range):
        if wanted.step != 1 or not 0 <= wanted.start <= wanted.stop <= n:
            raise BadOptionError(f"logits of {wanted}, but there are {n} tokens")
        return wanted
    ranges = {"last": range(n - 1, n), "all": range(n), "none": range(n, n)}
    if wanted not in ranges:
        raise BadOptionError(f"logits is {wanted!r}; choose one of {', '.join(ranges)}, or a range")
    return ranges[wanted]
