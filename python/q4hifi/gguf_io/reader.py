"""Reads GGUF models from one file or from a set of shards. Tensors are read in pieces of any size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ..errors import BadFileError, BadOptionError
from ..files.closing import Closing
from ..files.file_kinds import MODEL, Purpose
from ..files.file_pool import FilePool
from ..files.positioned_file import FileMapping, PositionedFile, byte_view, os_errors
from ..files.regular_file import check_regular_file
from ..wording import counted
from .header import FILE_TYPE_KEY, Header, read_header
from .metadata import Metadata
from .split import COUNT, NO, TENSORS, shard_name, shard_paths
from .tensor_table import TensorInfo, tensors_of

__all__ = ["GgufFile", "Metadata", "TensorInfo"]


class GgufFile(Closing):
    """An open GGUF model whose headers have been checked; a context manager that closes its files.

    Of a model with many shards, only some files are open at a time.

    Attributes: ``paths`` of its files; ``version`` (of GGUF), ``alignment`` and ``metadata`` of the first
    file, including its keys ``split.*``; ``tensors`` by name, in the order of the files; ``n_bytes`` of all
    files.
    """

    def __init__(self, files: FilePool, headers: list[Header]) -> None:
        """Private: use :meth:`open`."""
        self._files = files
        self.paths: tuple[Path, ...] = files.paths
        self.version: int = headers[0].version
        self.alignment: int = headers[0].alignment
        self.metadata: Metadata = headers[0].metadata
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_all_tensors(files.paths, headers))
        self.n_bytes: int = sum(header.file_size for header in headers)

    @classmethod
    def open(cls, path: str | os.PathLike[str], purpose: Purpose = MODEL) -> GgufFile:
        """Open a model by the path of its file, or of any of its shards, and check all headers.

        ``purpose`` is what the file is wanted as, if it is another file in the format GGUF.

        Raises :class:`BadFileError` for files that cannot be read, are not GGUF, are cut off or are
        inconsistent, and :class:`UnsupportedModelError` for unknown versions and tensor types.
        """
        path = Path(path)
        opener = partial(open_file, purpose=purpose)
        files = FilePool([path], opener)
        try:
            headers = _read_headers(files, purpose)
            paths = shards_of(path, headers[0].metadata)
            if paths != (path,):
                files.close()
                files = FilePool(paths, opener)
                headers = _read_headers(files, purpose)
                _check_shards(paths, headers)
            return cls(files, headers)
        except BaseException:
            files.close()
            raise

    def read_into(self, tensor: TensorInfo, start: int, out: memoryview | npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` (a contiguous buffer) with the tensor's data from byte ``start`` on; thread safe.

        Raises :class:`BadOptionError` where the range exceeds the tensor, and :class:`BadFileError` where the
        file cannot be read or has become shorter.
        """
        view = byte_view(out)
        if not 0 <= start <= start + len(view) <= tensor.nbytes:
            raise BadOptionError(
                f"tensor {tensor.name!r} has {counted(tensor.nbytes, 'byte')}, not {start} to"
                f" {start + len(view)}"
            )
        path = self.paths[tensor.shard]
        with (
            self._files.use(tensor.shard) as file,
            os_errors(path, f"be read (tensor {tensor.name!r})", BadFileError),
        ):
            got = file.read_into(tensor.offset + start, view)
        if got < len(view):
            raise BadFileError(
                f"{path}: tensor {tensor.name!r} ends at byte {tensor.offset + start + got} of the file:"
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
                f"tensor {tensor.name!r} has {counted(tensor.n_rows, 'row')}, not {first_row} to"
                f" {first_row + count}"
            )
        rows = np.empty((count, tensor.row_bytes), np.uint8)
        if rows.size:
            self.read_into(tensor, first_row * tensor.row_bytes, rows)
        return rows

    def map(self) -> list[FileMapping]:
        """Map all files into memory; return a mapping per shard. They stay valid after :meth:`close`.

        Raises :class:`BadFileError` where a file cannot be mapped or has become shorter.
        """
        needed = [0] * len(self.paths)
        for tensor in self.tensors.values():
            if not tensor.nbytes:
                continue
            needed[tensor.shard] = max(needed[tensor.shard], tensor.offset + tensor.nbytes)
        mappings = []
        for shard, (path, size) in enumerate(zip(self.paths, needed, strict=True)):
            with self._files.use(shard) as file, os_errors(path, "be mapped", BadFileError):
                mapping = file.map()
            if mapping is None or mapping.all().size < size:
                raise BadFileError(f"{path}: has become shorter since it was opened")
            mappings.append(mapping)
        return mappings

    def check_unchanged(self) -> None:
        """Raise :class:`BadFileError` if a file was changed since it was opened."""
        self._files.check_unchanged()

    def close(self) -> None:
        """Close the files; tensors cannot be read any more."""
        self._files.close()


def open_file(path: Path, purpose: Purpose = MODEL) -> PositionedFile:
    """Open a file for reading. Raises :class:`BadFileError` where it is missing or not a regular file."""
    check_regular_file(path, purpose)
    with os_errors(path, "be opened", BadFileError):
        return PositionedFile(path, "rb")


def _read_headers(files: FilePool, purpose: Purpose) -> list[Header]:
    headers = []
    for shard in range(len(files.paths)):
        with files.use(shard) as file:
            headers.append(read_header(file, purpose=purpose))
    return headers


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
            f"{path}: of the model's {named} files, {counted(len(missing), 'is', 'are')} missing, the"
            f" first is {missing[0]};"
            " put all files of the model into one folder"
        )
    return paths


def _check_shards(paths: Sequence[Path], headers: list[Header]) -> None:
    """Raise :class:`BadFileError` where a shard's metadata contradicts the set of shards."""
    n_tensors = sum(len(header.entries) for header in headers)
    for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for key, expected in {NO: i, COUNT: len(paths), TENSORS: n_tensors}.items():
            if header.metadata.get(key) != expected:
                raise BadFileError(
                    f"{path}: {key} is {header.metadata.get(key)!r:.80}, but {expected} is expected;"
                    " the shards do not belong together"
                )


def _all_tensors(paths: Sequence[Path], headers: list[Header]) -> dict[str, TensorInfo]:
    file_type = headers[0].metadata.get(FILE_TYPE_KEY)
    tensors: dict[str, TensorInfo] = {}
    for shard, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for tensor in tensors_of(header, path, shard, file_type):
            if tensor.name in tensors:
                other = paths[tensors[tensor.name].shard]
                raise BadFileError(f"{path}: tensor {tensor.name!r} is in {other} too")
            tensors[tensor.name] = tensor
    return tensors
