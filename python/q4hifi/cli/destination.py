"""The arguments [DST] [TYPE] [THREADS] of 'quantize', and the default of DST.

As in llama-quantize, DST may be left out, so that the first argument is a type. A mistyped type must not
become the name of a file. Therefore a DST without TYPE must end in .gguf.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import BadOptionError
from ..files.gguf_name import SUFFIX, gguf_stem, is_gguf_name
from ..files.regular_file import check_regular_file
from ..plan.options import MEASURED_NAME, TypeOptions
from ..plan.recipes import RECIPES, find_recipe, is_recipe, type_hint
from .files import check_output


class Arguments(NamedTuple):
    """The arguments after SRC. None means that the argument is left out.

    ``type_word`` is the type as the user wrote it.
    """

    dst: str | None
    type: str | None
    threads: int | None
    type_word: str | None = None


def parse_arguments(words: Sequence[str]) -> Arguments:
    """Find out which words are DST, TYPE and THREADS. Raises :class:`BadOptionError` if they do not fit."""
    if "" in words:
        raise BadOptionError("an argument after SRC is empty; leave it out, or name DST, TYPE or THREADS")
    rest = list(words)
    dst = None if not rest or is_recipe(rest[0]) else rest.pop(0)
    if dst is not None and rest[:1] and is_gguf_name(rest[0]) and _looks_like_type(dst):
        raise BadOptionError(f"write DST before TYPE, and a type that exists: {type_hint(dst)}")
    if dst is not None and (not rest or (rest[0].isdecimal() and _looks_like_type(dst))):
        _check_alone(dst)
    word = rest.pop(0) if rest else None
    kind = None if word is None else find_recipe(word).name
    if dst is None and rest and is_gguf_name(rest[0]):
        raise BadOptionError(f"write DST before TYPE: {rest[0]} {kind}")
    threads = _threads(rest.pop(0)) if rest else None
    if rest:
        raise BadOptionError(f"too many arguments: {' '.join(rest)}")
    return Arguments(dst, kind, threads, word)


def check_model_name(dst: str) -> None:
    """Raise :class:`BadOptionError` if ``dst``, the only argument after SRC, does not end in .gguf."""
    if is_gguf_name(dst):
        return
    if _looks_like_type(dst):
        raise BadOptionError(
            f"{dst!r} looks like a type, and DST is missing; for a file of that name, write ./{dst}{SUFFIX}"
        )
    check_output("DST", dst, overwrite=True)  # these messages come first: an input, a folder, a device
    raise BadOptionError(f"{dst!r} does not end in .gguf; write {_with_suffix(dst)}")


def default_destination(src: str, options: TypeOptions) -> str:
    """Return SRC's name with the type in it replaced: model-f16.gguf -> model-Q4_K_M.gguf.

    Raises :class:`BadFileError` if SRC is not a file: that is then the fault, not a name derived from it.
    """
    path = Path(src)
    check_regular_file(path)
    stem = _SHARD_IN_NAME.sub("", gguf_stem(path.name))
    return str(path.with_name(f"{_TYPE_IN_NAME.sub('', stem)}-{options.file_title}{SUFFIX}"))


_TYPES = "|".join(RECIPES)
_BUDGET = rf"({_TYPES}|Q4|[\d.]+(bpw|[KMG]i?B|B)){MEASURED_NAME}"
_TYPE_IN_NAME = re.compile(rf"[-._]((Q4_HIFI-)?{_BUDGET}|{_TYPES})$", re.IGNORECASE)
_SHARD_IN_NAME = re.compile(r"-\d{5}-of-\d{5}$")


def _check_alone(dst: str) -> None:
    """Raise :class:`BadOptionError` if ``dst``, given without a type, does not end in .gguf."""
    if is_gguf_name(dst):
        return
    check_output("DST", dst, overwrite=True)  # these messages come first: an input, a folder, a device
    name = _with_suffix(dst)
    if hint := type_hint(dst):
        raise BadOptionError(f"{dst!r} is not a type: {hint} For a file of that name, write {name}")
    raise BadOptionError(
        f"{dst!r} is not a type, and not a file name that ends in .gguf; write {name}, or give a type as well"
    )


def _with_suffix(dst: str) -> str:
    return (dst if os.path.dirname(dst) else f"./{dst}").rstrip("/") + SUFFIX


def _looks_like_type(word: str) -> bool:
    return not os.path.dirname(word) and not Path(word).suffix and (is_recipe(word) or bool(type_hint(word)))


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise BadOptionError(
            f"{text!r} is not a number of threads; the order of the arguments is SRC DST TYPE THREADS"
        )
    return int(text[:9])
