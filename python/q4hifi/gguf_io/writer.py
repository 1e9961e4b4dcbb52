"""Writes GGUF models. Complete files appear at the destination, or none."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import BadOptionError, Q4HifiError, UnsupportedModelError
from ..files.output_file import NewFile
from ..files.positioned_file import Buffer, byte_view, os_errors
from ..files.reserved_files import check_derived
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import MAX_NAME_BYTES, StoredTensor
from ..wording import counted
from .header import ALIGNMENT_KEY, alignment_of, data_offsets, header_bytes
from .metadata import Metadata
from .split import MAX_SHARDS, output_paths, shard_metadata


@dataclass(frozen=True, slots=True)
class _FilePlan:
    """One file to be written: its header, the offset of each tensor by name, its size in bytes."""

    header: bytes
    offsets: dict[str, int]
    size: int


def _plan_files(
    metadata: Metadata,
    tensors: Sequence[StoredTensor],
    alignment: int | None,
    shard_of: Sequence[int] | None,
) -> list[_FilePlan]:
    """Decide everything about the files of a model but the tensors' data."""
    _check_names(tensors)
    shards = [0] * len(tensors) if shard_of is None else list(shard_of)
    count = max(shards, default=0) + 1
    if len(shards) != len(tensors) or shards != sorted(shards) or min(shards, default=0) < 0:
        raise BadOptionError("shard_of must have a shard for every tensor, from 0 on and not decreasing")
    if count > MAX_SHARDS:
        raise BadOptionError(f"{count} shards are too many (at most {MAX_SHARDS}); allow larger shards")
    if alignment is None:
        alignment = alignment_of(metadata)
    plans = []
    for number in range(count):
        mine = [t for t, shard in zip(tensors, shards, strict=True) if shard == number]
        pairs = shard_metadata(metadata, number, count, len(tensors))
        if alignment != alignment_of(pairs):
            pairs = pairs.with_value(ALIGNMENT_KEY, alignment, GGUFValueType.UINT32)
        header = header_bytes(pairs, mine, alignment)
        *offsets, data_size = data_offsets(mine, alignment)
        in_file = {t.name: len(header) + offset for t, offset in zip(mine, offsets, strict=True)}
        plans.append(_FilePlan(header, in_file, len(header) + data_size))
    return plans


def _check_names(tensors: Sequence[StoredTensor]) -> None:
    for name, uses in Counter(t.name for t in tensors).items():
        if uses > 1:
            raise UnsupportedModelError(f"{uses} tensors would be called {name!r}")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
            raise UnsupportedModelError(f"the tensor name {name!r} is longer than {MAX_NAME_BYTES} bytes")


def file_sizes(
    metadata: Metadata,
    tensors: Sequence[StoredTensor],
    *,
    alignment: int | None = None,
    shard_of: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return the exact size in bytes of each file that :class:`GgufWriter` would write.

    The arguments have the meaning that they have there, and the same errors are raised for them.
    """
    return tuple(plan.size for plan in _plan_files(metadata, tensors, alignment, shard_of))


class GgufWriter:
    """A context manager that writes a model, whose tensors are known in advance, into one file or several.

    Entering it creates temporary files of full size with their headers. :meth:`write_at` fills in the
    tensors, in any order and from any thread. :meth:`commit` moves the files to their destinations. Leaving
    it without :meth:`commit` removes them.

    Attributes: ``paths``, the destinations of the files, and ``sizes``, their sizes in bytes.
    """

    def __init__(
        self,
        dst: str | os.PathLike[str],
        metadata: Metadata,
        tensors: Sequence[StoredTensor],
        *,
        alignment: int | None = None,
        overwrite: bool = False,
        sources: Sequence[str | os.PathLike[str]] = (),
        shard_of: Sequence[int] | None = None,
    ) -> None:
        """Lay out the files and check the destination. Nothing is written yet.

        ``alignment`` is in bytes; by default it is that of ``metadata``. The destination must not be one of
        the files ``sources``, under any name. ``shard_of`` has the shard (from 0) of each tensor, not
        decreasing. With more than one shard the files are called PREFIX-00001-of-0000N.gguf, with the PREFIX
        of ``dst``. The keys ``split.*`` of ``metadata`` are replaced.

        Raises :class:`BadOptionError` for a destination, alignment or ``shard_of`` that cannot be used, and
        :class:`UnsupportedModelError` where two tensors have one name or a name is too long.
        """
        self._plans = _plan_files(metadata, tensors, alignment, shard_of)
        self._sizes = {t.name: t.nbytes for t in tensors}
        self._shards = {name: i for i, plan in enumerate(self._plans) for name in plan.offsets}
        self._written: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._cleanup = ExitStack()
        self.paths: tuple[Path, ...] = output_paths(Path(dst), len(self._plans))
        self.sizes: tuple[int, ...] = tuple(plan.size for plan in self._plans)
        if len(self.paths) > 1:
            for path in self.paths:
                check_derived(path)
        self._files = [NewFile(path, overwrite=overwrite, sources=sources) for path in self.paths]
        with os_errors(self.paths[0], "be the destination"):
            folder = self._files[0].target.parent
            self._free = shutil.disk_usage(folder).free  # before a failed reservation takes it

    def __enter__(self) -> GgufWriter:
        try:
            for new, plan in zip(self._files, self._plans, strict=True):
                with self._disk_errors(new.path, "be created"):
                    file = self._cleanup.enter_context(new).file
                    file.reserve(plan.size)
                    file.write(0, memoryview(plan.header))
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def write_at(self, name: str, start: int, data: Buffer) -> None:
        """Write ``data`` (a contiguous buffer) at byte ``start`` of the tensor ``name``; thread safe.

        Raises :class:`BadOptionError` for a range outside of the tensor, and :class:`Q4HifiError` where the
        disk fails.
        """
        if name not in self._sizes:
            raise BadOptionError(f"{self.paths[0]}: there is no tensor {name!r} to write")
        view = byte_view(data)
        if not 0 <= start <= start + len(view) <= self._sizes[name]:
            raise BadOptionError(
                f"tensor {name!r} has {counted(self._sizes[name], 'byte')}; {start} to"
                f" {start + len(view)} do not fit"
            )
        shard = self._shards[name]
        with self._disk_errors(self.paths[shard], f"be written (tensor {name!r})"):
            self._files[shard].file.write(self._plans[shard].offsets[name] + start, view)
        with self._lock:
            self._written[name] += len(view)

    def commit(self) -> None:
        """Flush the files to the disk and move them to their destinations, all or none.

        Raises :class:`Q4HifiError` where the number of bytes written to a tensor is not its size, and where
        the disk fails.
        """
        for name, size in self._sizes.items():
            if self._written[name] != size:
                raise Q4HifiError(
                    f"{self.paths[self._shards[name]]}: tensor {name!r} takes {counted(size, 'byte')};"
                    f" written: {self._written[name]}"
                )
        with ExitStack() as undo:
            for new in self._files:
                with self._disk_errors(new.path, "be completed"):
                    if new.publish():
                        undo.callback(_remove, new.target)
            undo.pop_all()

    @contextmanager
    def _disk_errors(self, path: Path, action: str) -> Iterator[None]:
        """Turn an OSError into a Q4HifiError; for a full disk the message has the bytes needed and free."""
        with os_errors(path, action):
            try:
                yield
            except OSError as cause:
                if cause.errno != errno.ENOSPC:
                    raise
                raise Q4HifiError(
                    f"{path}: the disk is full: the output needs {counted(sum(self.sizes), 'byte')},"
                    f" {self._free} were free; make room or choose another folder"
                ) from cause


def _remove(path: Path) -> None:
    with suppress(OSError):  # report the error that ended the work, not this one
        path.unlink(missing_ok=True)
