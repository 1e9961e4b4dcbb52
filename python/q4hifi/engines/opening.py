"""Choosing the engine that runs a model, and opening the model with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from ..codec.model_file import ModelFile
from ..errors import BadOptionError, UnavailableError, UnsupportedModelError
from .names import AUTO, BEST_ENGINE, ENGINES, LLAMA, OWN, EngineOptions, LlamaOptions
from .protocol import LanguageModel, ModelOrPath

if TYPE_CHECKING:
    from ..runtime.model import Model
    from .llama.model import LlamaModel


FileOrPath: TypeAlias = str | os.PathLike[str] | ModelFile
"""A path, or a model's file that is open already."""


def open_model(
    path: FileOrPath,
    *,
    engine: str = AUTO,
    threads: int | None = None,
    n_ctx: int | None = None,
    library: str | os.PathLike[str] | None = None,
    gpu_layers: int | None = None,
    tensor_split: Sequence[float] = (),
    rpc: Sequence[str] = (),
    expert_correlations: bool = False,
) -> Model | LlamaModel:
    """Open a model with the engine that runs it.

    Parameters
    ----------
    path
        GGUF file of the model, or one of its shards; or a file that is open already.
    engine
        "q4hifi" is our own runtime, :class:`q4hifi.Model`. "llama.cpp" is :class:`q4hifi.LlamaModel`. "auto"
        takes our own if it runs the model, else llama.cpp. It also takes llama.cpp if one of its options is
        given.
    threads, n_ctx, expert_correlations
        As for both classes.
    library, gpu_layers, tensor_split, rpc
        Options of llama.cpp, as for :class:`q4hifi.LlamaModel`.

    Raises :class:`UnsupportedModelError` if no engine runs the model, and :class:`BadOptionError` for an
    unknown engine, or for options of llama.cpp with the engine "q4hifi".
    """
    options = EngineOptions(engine, LlamaOptions(library, gpu_layers, tuple(tensor_split), tuple(rpc)))
    (model,) = _open_all(
        [path], options, threads=threads, n_ctx=n_ctx, expert_correlations=expert_correlations
    )
    return model


def _open_all(
    paths: Sequence[FileOrPath], options: EngineOptions, **common: Any
) -> Sequence[Model | LlamaModel]:
    """Open models with one engine; ``common`` are the options that both engines have."""
    engine, given = options.engine, options.llama.given()
    if engine not in ENGINES:
        raise BadOptionError(f"there is no `engine` {engine!r}; choose one of {', '.join(ENGINES)}")
    if engine == OWN and given:
        name = next(iter(given))
        raise BadOptionError(f"`{name}` is an option of the engine {LLAMA}, and `engine` is {OWN}")

    def with_llama() -> list[LlamaModel]:
        from .llama.model import LlamaModel

        with ExitStack() as stack:
            models = [stack.enter_context(LlamaModel(path, **common, **given)) for path in paths]
            stack.pop_all()  # all are open
        return models

    if engine == LLAMA or given:
        return with_llama()
    from ..runtime.model import Model

    try:
        return [Model(path, **common) for path in paths]
    except UnsupportedModelError as error:
        if engine == OWN:
            raise
        try:
            return with_llama()
        except UnavailableError as missing:
            raise UnsupportedModelError(f"{error}; llama.cpp runs more models, but {missing}") from None


@contextmanager
def open_alike(
    paths: Sequence[FileOrPath],
    options: EngineOptions = BEST_ENGINE,
    *,
    n_ctx: int | None,
    threads: int | None,
    expert_correlations: bool = False,
) -> Iterator[Sequence[LanguageModel]]:
    """Yield open models that all run with the same engine, so that their results can be compared.

    The other options and the errors are those of :func:`open_model`.
    """
    with ExitStack() as stack:
        models = _open_all(
            paths, options, threads=threads, n_ctx=n_ctx, expert_correlations=expert_correlations
        )
        for model in models:
            stack.callback(model.close)
        yield models


@contextmanager
def opened(model: ModelOrPath | ModelFile, *, n_ctx: int, threads: int | None) -> Iterator[LanguageModel]:
    """Yield an open model. ``model`` is a path or an open file, or a model that is yielded as it is."""
    with opened_alike([model], n_ctx=n_ctx, threads=threads) as models:
        yield models[0]


@contextmanager
def opened_alike(
    models: Sequence[ModelOrPath | ModelFile], *, n_ctx: int, threads: int | None
) -> Iterator[list[LanguageModel]]:
    """Yield open models. All files are opened with one engine; open models are yielded as they are."""
    kinds = (str, os.PathLike, ModelFile)
    paths = [model for model in models if isinstance(model, kinds)]
    with open_alike(paths, n_ctx=n_ctx, threads=threads) as found:
        opened_ones = iter(found)
        yield [next(opened_ones) if isinstance(m, kinds) else m for m in models]
