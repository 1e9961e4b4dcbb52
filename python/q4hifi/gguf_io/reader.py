"""Reads GGUF models from one file or from a set of shards. Tensors are read in pieces of any size."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, BadOptionError
from ..files.file_kinds import CONVERT
from ..files.positioned_file import FileMapping, PositionedFile, byte_view, os_errors
from .header import FILE_TYPE_KEY, Header, TensorInfo, read_header, tensors_of
from .metadata import Metadata
from .split import COUNT, NO, TENSORS, shard_name, shard_paths

__all__ = ["GgufFile", "Metadata", "TensorInfo"]


class GgufFile:
    """An open GGUF model whose headers have been checked; a context manager that closes its files.

    Attributes: ``paths`` of its files; ``version`` (of GGUF), ``alignment`` and ``metadata`` of the first
    file, including its keys ``split.*``; ``tensors`` by name, in the order of the files; ``n_bytes`` of all
    files.
    """

    def __init__(self, files: list[PositionedFile], headers: list[Header]) -> None:
        """Private: use :meth:`open`."""
        self._files = files
        self._states = [file.state() for file in files]
        self.paths: tuple[Path, ...] = tuple(file.path for file in files)
        self.version: int = headers[0].version
        self.alignment: int = headers[0].alignment
        self.metadata: Metadata = headers[0].metadata
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_all_tensors(files, headers))
        self.n_bytes: int = sum(header.file_size for header in headers)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufFile:
        """Open a model by the path of its file, or of any of its shards, and check all headers.

        Raises :class:`BadFileError` for files that cannot be read, are not GGUF, are cut off or are
        inconsistent, and :class:`UnsupportedModelError` for unknown versions and tensor types.
        """
        path = Path(path)
        with ExitStack() as stack:
            file = stack.enter_context(open_file(path))
            header = read_header(file)
            paths = shards_of(path, header.metadata)
            if paths == (path,):
                files, headers = [file], [header]
            else:
                file.close()
                files = [stack.enter_context(open_file(p)) for p in paths]
                headers = [read_header(f) for f in files]
                _check_shards(files, headers)
            model = cls(files, headers)
            stack.pop_all()  # without an error the files stay open
        return model

    def read_into(self, tensor: TensorInfo, start: int, out: memoryview | npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` (a contiguous buffer) with the tensor's data from byte ``start`` on; thread safe.

        Raises :class:`BadOptionError` where the range exceeds the tensor, and :class:`BadFileError` where the
        file cannot be read or has become shorter.
        """
        view = byte_view(out)
        if not 0 <= start <= start + len(view) <= tensor.nbytes:
            raise BadOptionError(
                f"tensor {tensor.name!r} has {tensor.nbytes} bytes, not {start} to {start + len(view)}"
            )
        file = self._files[tensor.shard]
        with os_errors(file.path, f"be read (tensor {tensor.name!r})", BadFileError):
            got = file.read_into(tensor.offset + start, view)
        if got < len(view):
            raise BadFileError(
                f"{file.path}: tensor {tensor.name!r} ends at byte {tensor.offset + start + got} of the file:"
                " it has become shorter since it was opened"
            )

    def read(
        self, tensor: TensorInfo, first_row: int = 0, n_rows: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return rows as bytes, uint8 [n_rows, row_bytes]: from ``first_row`` on, by default all that follow.

        Raises :class:`BadOptionError` where the tensor does not have these rows, and :class:`BadFileError`
        where the file cannot be read or has become shorter.
        """
        count = tensor.n_rows - first_row if n_rows is None else n_rows
        if not 0 <= first_row <= first_row + count <= tensor.n_rows:
            raise BadOptionError(
                f"tensor {tensor.name!r} has {tensor.n_rows} rows, not {first_row} to {first_row + count}"
            )
        rows = np.empty((count, tensor.row_bytes), np.uint8)
        if rows.size:
            self.read_into(tensor, first_row * tensor.row_bytes, rows)
        return rows

    def map(self) -> list[FileMapping]:
        """Map all files into memory; return a mapping per shard. They stay valid after :meth:`close`.

        Raises :class:`BadFileError` where a file cannot be mapped or has become shorter.
        """
        needed = [0] * len(self._files)
        for tensor in self.tensors.values():
            if not tensor.nbytes:
                continue
            needed[tensor.shard] = max(needed[tensor.shard], tensor.offset + tensor.nbytes)
        mappings = []
        for file, size in zip(self._files, needed, strict=True):
            with os_errors(file.path, "be mapped", BadFileError):
                mapping = file.map()
            if mapping is None or file.size() < size:
                raise BadFileError(f"{file.path}: has become shorter since it was opened")
            mappings.append(mapping)
        return mappings

    def check_unchanged(self) -> None:
        """Raise :class:`BadFileError` if a file was changed since it was opened."""
        for file, state in zip(self._files, self._states, strict=True):
            with os_errors(file.path, "be read", BadFileError):
                if file.state() != state:
                    raise BadFileError(f"{file.path}: was changed while it was read; start again")

    def close(self) -> None:
        """Close the files; tensors cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: Path) -> PositionedFile:
    """Open a file for reading. Raises :class:`BadFileError` where it is missing or not a regular file."""
    with os_errors(path, "be opened", BadFileError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadFileError(f"{path}: not a file but a folder; {_advice_on_folder(path)}")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise BadFileError(f"{path}: not a regular file, but a device or pipe; save the model to a file")
        return PositionedFile(path, "rb")


def _advice_on_folder(path: Path) -> str:
    """Return the advice for a user who named a folder instead of a model file."""
    names = sorted(os.listdir(path))
    models = [name for name in names if name.endswith(".gguf")]
    if models:
        return f"name the model in it, such as {path / models[0]}"
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return CONVERT
    return "name a GGUF file"


def shards_of(path: Path, metadata: Metadata) -> tuple[Path, ...]:
    """Return all files of the model that ``path`` belongs to, by the metadata and the name of this file.

    Raises :class:`BadFileError` where metadata and name contradict each other, or a file is missing.
    """
    name = shard_name(path)
    count, named = metadata.get(COUNT, 1), name.total if name else 1
    if count != named:
        raise BadFileError(
            f"{path}: {COUNT} is {count!r:.80}, but by its name the file is one of {named}; shards must be"
            " called NAME-00001-of-0000N.gguf, and other files must not be called so"
        )
    if name is None or named == 1:
        return (path,)
    paths = shard_paths(path.parent, name.prefix, named)
    if path not in paths:
        raise BadFileError(f"{path}: there is no shard {name.number} of {named}")
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise BadFileError(
            f"{path}: {len(missing)} of the model's {named} files are missing, the first is {missing[0]};"
            " put all files of the model into one folder"
        )
    return paths


def _check_shards(files: list[PositionedFile], headers: list[Header]) -> None:
    """Raise :class:`BadFileError` where a shard's metadata contradicts the set of shards."""
    n_tensors = sum(len(header.entries) for header in headers)
    for i, (file, header) in enumerate(zip(files, headers, strict=True)):
        for key, expected in {NO: i, COUNT: len(files), TENSORS: n_tensors}.items():
            if header.metadata.get(key) != expected:
                raise BadFileError(
                    f"{file.path}: {key} is {header.metadata.get(key)!r:.80}, but {expected} is expected;"
                    " the shards do not belong together"
                )


def _all_tensors(files: list[PositionedFile], headers: list[Header]) -> dict[str, TensorInfo]:
    file_type = headers[0].metadata.get(FILE_TYPE_KEY)
    tensors: dict[str, TensorInfo] = {}
    for shard, (file, header) in enumerate(zip(files, headers, strict=True)):
        for tensor in tensors_of(header, file, shard, file_type):
            if tensor.name in tensors:
                other = files[tensors[tensor.name].shard].path
                raise BadFileError(f"{file.path}: tensor {tensor.name!r} is in {other} too")
            tensors[tensor.name] = tensor
    return tensors
