"""Writing GGUF models: complete files appear at the destination, or nothing does."""

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
from ..formats.gguf_constants import GGUFValueType
from ..formats.layout import MAX_NAME_BYTES, StoredTensor
from .header import ALIGNMENT_KEY, alignment_of, data_offsets, header_bytes
from .metadata import Metadata
from .split import MAX_SHARDS, output_paths, shard_metadata


@dataclass(frozen=True, slots=True)
class _FilePlan:
    """One file to be written: its header, where each tensor goes, its size in bytes."""

    header: bytes
    offsets: dict[str, int]
    size: int


def _plan_files(
    metadata: Metadata,
    tensors: Sequence[StoredTensor],
    alignment: int | None,
    shard_of: Sequence[int] | None,
) -> list[_FilePlan]:
    """Lay out all files of a model; everything about them but the tensors' data is decided here."""
    _check_names(tensors)
    shards = [0] * len(tensors) if shard_of is None else list(shard_of)
    count = max(shards, default=0) + 1
    if len(shards) != len(tensors) or shards != sorted(shards) or min(shards, default=0) < 0:
        raise BadOptionError("every tensor must have a shard, from 0 on and in the tensors' order")
    if count > MAX_SHARDS:
        raise BadOptionError(f"{count} shards are too many (at most {MAX_SHARDS}); allow larger ones")
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
        places = {t.name: len(header) + offset for t, offset in zip(mine, offsets, strict=True)}
        plans.append(_FilePlan(header, places, len(header) + data_size))
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
    """Return the exact bytes of each file that :class:`GgufWriter` would write with these arguments."""
    return tuple(plan.size for plan in _plan_files(metadata, tensors, alignment, shard_of))


class GgufWriter:
    """Writes a model of known tensors into one file or several; a context manager.

    Entering it makes temporary files beside the destination, of full size, with their headers;
    :meth:`write_at` fills in the tensors in any order and from any thread; :meth:`commit` puts the files
    in their places. Leaving it without :meth:`commit` removes them.

    Attributes: ``paths`` where the files will be, ``sizes`` of them in bytes.
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
        """Lay the files out and check the destination; nothing is written yet.

        ``alignment`` in bytes, default: as ``metadata`` says. ``sources`` are files that the destination
        must not be, under any name. ``shard_of``: shard (from 0) of each tensor, not decreasing; with more
        than one shard the files are called PREFIX-00001-of-0000N.gguf, PREFIX being that of ``dst``.
        The split.* keys are set here, whatever ``metadata`` holds of them. Raises
        :class:`BadOptionError` for a destination that cannot be used.
        """
        self._plans = _plan_files(metadata, tensors, alignment, shard_of)
        self._sizes = {t.name: t.nbytes for t in tensors}
        self._shards = {name: i for i, plan in enumerate(self._plans) for name in plan.offsets}
        self._written: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._cleanup = ExitStack()
        self.paths: tuple[Path, ...] = output_paths(Path(dst), len(self._plans))
        self.sizes: tuple[int, ...] = tuple(plan.size for plan in self._plans)
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
        """Write ``data`` (contiguous) at byte ``start`` of tensor ``name``; thread safe."""
        if name not in self._sizes:
            raise BadOptionError(f"{self.paths[0]}: there is no tensor {name!r} to write")
        view = byte_view(data)
        if not 0 <= start <= start + len(view) <= self._sizes[name]:
            raise BadOptionError(
                f"tensor {name!r} has {self._sizes[name]} bytes; {start} to {start + len(view)} do not fit"
            )
        shard = self._shards[name]
        with self._disk_errors(self.paths[shard], f"be written (tensor {name!r})"):
            self._files[shard].file.write(self._plans[shard].offsets[name] + start, view)
        with self._lock:
            self._written[name] += len(view)

    def commit(self) -> None:
        """Bring the files to the disk and put them in their places, all or none.

        Raises :class:`Q4HifiError` where bytes of a tensor were not written or written twice, and where
        the disk fails.
        """
        for name, size in self._sizes.items():
            if self._written[name] != size:
                raise Q4HifiError(
                    f"{self.paths[self._shards[name]]}: {self._written[name]} bytes of tensor {name!r} were"
                    f" written, not {size}"
                )
        with ExitStack() as undo:
            for new in self._files:
                with self._disk_errors(new.path, "be completed"):
                    if new.publish():
                        undo.callback(_remove, new.target)
            undo.pop_all()

    @contextmanager
    def _disk_errors(self, path: Path, action: str) -> Iterator[None]:
        """Turn an OSError into a Q4HifiError; a full disk is told with the bytes needed and free."""
        with os_errors(path, action):
            try:
                yield
            except OSError as cause:
                if cause.errno != errno.ENOSPC:
                    raise
                raise Q4HifiError(
                    f"{path}: the disk is full: the output needs {sum(self.sizes)} bytes,"
                    f" {self._free} were free; make room or choose another folder"
                ) from cause


def _remove(path: Path) -> None:
    with suppress(OSError):  # the error that ended the work is the one to report
        path.unlink(missing_ok=True)
