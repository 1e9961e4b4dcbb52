"""Whether an interrupted run may be resumed: only with the same model, text and options.

A run is described by its settings, a mapping from names to values. Files and texts are represented by their
fingerprints, and options by their values under the names of the keyword arguments. The file of the run keeps
the settings as JSON, so that a message can say which of them differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from ..errors import BadOptionError
from ..wording import enumerated

Settings = Mapping[str, object]
"""Name -> value: a whole number or a truth value of an option, or the fingerprint of a file or text."""

TOKENS = "tokens"
"""The setting for the tokens of all chunks. They differ wherever ``n_ctx`` or ``n_chunks`` differs."""

CORRELATED = "choice of correlated inputs"
"""The setting for the matrices and experts whose input correlations are stored."""

START_AGAIN = "start again with `overwrite=True` and without `resume`"
"""The remedy for a file that a run of q4hifi wrote."""

ANOTHER_FILE = "choose another file, because `resume=True` continues only what was begun here"
"""The remedy for any other file: it may be of use to somebody."""

_LABELS = {
    TOKENS: "text or part of it",
    "correlations": "input correlations",
    "importance": "importance matrix",
}
"""Names of settings in messages, if they differ from the setting's name."""


def encode_settings(settings: Settings) -> str:
    """Return the settings as JSON."""
    return json.dumps(settings)


def decode_settings(text: object) -> Settings | None:
    """Return the settings that :func:`encode_settings` wrote, or None for anything else."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def check_same(
    path: str | os.PathLike[str], old: Settings | None, new: Settings, remedy: str = START_AGAIN
) -> None:
    """Raise :class:`BadOptionError` if the run that ``path`` was begun with had other settings than this.

    ``old`` is None if the file does not say what it was begun with. ``remedy`` is what the user can do
    instead of giving the same files and options.
    """
    if old is None:
        raise BadOptionError(
            f"{path}: does not say what it was begun with, so it cannot be resumed: it was added up from"
            f" several files, or another program or version of q4hifi wrote it; {remedy}"
        )
    different = list(_differences(old, new))
    if different:
        raise BadOptionError(
            f"{path}: was begun with {enumerated(different)}, so it cannot be resumed;"
            f" give the same files and options as then, or {remedy}"
        )


def _differences(old: Settings, new: Settings) -> Iterator[str]:
    names = [name for name in new if old.get(name) != new[name]]
    for name in names:
        before, now = old.get(name), new[name]
        label = _LABELS.get(name, f"`{name}`")
        if name == TOKENS and {"n_ctx", "n_chunks"} & set(names):
            continue
        if isinstance(before, bool) and isinstance(now, bool):
            yield f"{label} (now without)" if before else f"no {label} (now with)"
        elif isinstance(before, int) and isinstance(now, int):
            yield f"`{name}={before}` (now {now})"
        else:
            yield f"another {label.strip('`')}"
