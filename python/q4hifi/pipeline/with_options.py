"""Functions whose options are given as one object, or each by its keyword: :func:`with_options`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from ..errors import BadOptionError
from ..plan.option import document
from ..plan.options import SECTIONS, FilePath
from .quantize_options import QuantizeOptions

Keywords = ParamSpec("Keywords")
Result = TypeVar("Result", covariant=True)


class OfOneFile(Protocol[Keywords, Result]):
    """A function of a source, and of options in either form."""

    @overload
    def __call__(self, src: FilePath, options: QuantizeOptions) -> Result: ...
    @overload
    def __call__(self, src: FilePath, *args: Keywords.args, **kwargs: Keywords.kwargs) -> Result: ...


class OfTwoFiles(Protocol[Keywords, Result]):
    """A function of a source, a destination, and of options in either form."""

    @overload
    def __call__(self, src: FilePath, dst: FilePath, options: QuantizeOptions) -> Result: ...
    @overload
    def __call__(
        self, src: FilePath, dst: FilePath, *args: Keywords.args, **kwargs: Keywords.kwargs
    ) -> Result: ...


class Decorator(Protocol[Keywords]):
    """What :func:`with_options` returns."""

    @overload
    def __call__(
        self, function: Callable[[FilePath, QuantizeOptions], Result]
    ) -> OfOneFile[Keywords, Result]: ...
    @overload
    def __call__(
        self, function: Callable[[FilePath, FilePath, QuantizeOptions], Result]
    ) -> OfTwoFiles[Keywords, Result]: ...


def with_options(make: Callable[Keywords, QuantizeOptions]) -> Decorator[Keywords]:
    """Return a decorator for functions whose last parameter is ``options``.

    The decorated function takes the object (as its last argument, or ``options=``), or the arguments of
    ``make``, which makes one. Its signature and its docstring list all options, for :func:`help`.
    """

    made: Callable[..., QuantizeOptions] = make

    def decorator(function: Callable[..., Any]) -> Any:
        own = signature(function)
        *files, options = own.parameters.values()
        fields = list(signature(make).parameters.values())
        options = options.replace(kind=Parameter.KEYWORD_ONLY, default=None)
        shown = own.replace(parameters=[*files, *fields, options])

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                given = shown.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            paths = [given.pop(file.name) for file in files]
            if isinstance(given.get("type"), QuantizeOptions):  # the object as the last argument
                given["options"] = given.pop("type")
            found = given.pop("options", None)
            if found is not None and given:
                raise BadOptionError(f"`options` holds all options; leave out {', '.join(given)}")
            return function(*paths, made(**given) if found is None else found)

        call.__signature__ = shown  # type: ignore[attr-defined]
        document(call, QuantizeOptions, SECTIONS)
        return call

    return decorator
