"""What an error in a tensor costs the model: the KL divergence added per unit of relative squared error.

For errors as small as those of 4 bits and more, the divergences that the tensors add on their own add up,
and each is proportional to the tensor's relative error: KLD = Σ sensitivity x error.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from .errors import BadFileError
from .gguf_io import os_errors
from .names import role_of

ROLE_SENSITIVITY: Mapping[str, float] = {
    "attn_v": 0.95,
    "attn_k": 0.62,
    "attn_q": 0.62,
    "attn_qkv": 2.2,
    "attn_kv_b": 1.6,
    "attn_output": 1.0,
    "ffn_up": 1.8,
    "ffn_gate": 1.8,
    "ffn_down": 2.9,
    "token_embd": 0.35,
    "output": 1.25,
    "lm_head": 1.25,
    "other": 1.0,
}
"""Nats that a relative squared error of 1 in all tensors of a role would add, if that were small: measured
on a model of 1.5 B parameters, whose roles went from Q8_0 to Q4_K one at a time."""

DEFAULT_SOURCE = "a table of roles"


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Tensor name -> nats of KL divergence per unit of relative squared error, and where that is from."""

    values: Mapping[str, float]
    source: str


def default_sensitivities(names: Iterable[str]) -> Sensitivities:
    """Return what can be said of the matrices ``names`` of a model without running it."""
    names = list(names)
    roles = {name: role_of(name) for name in names}
    counts = Counter(roles.values())
    values = {name: ROLE_SENSITIVITY.get(role, 1.0) / counts[role] for name, role in roles.items()}
    if not counts["output"] and counts["token_embd"]:  # tied: the embeddings are the output as well
        values = {
            name: value + ROLE_SENSITIVITY["output"] / counts["token_embd"]
            if roles[name] == "token_embd"
            else value
            for name, value in values.items()
        }
    return Sensitivities(values, DEFAULT_SOURCE)


def load_sensitivities(path: str | os.PathLike[str]) -> Sensitivities:
    """Read a JSON object ``{"sensitivities": {tensor name: number}}``.

    Raises :class:`BadFileError` where the file is something else.
    """
    file = Path(path)
    with os_errors(file, "read the sensitivities", BadFileError):
        text = file.read_bytes()
    try:
        values = json.loads(text)["sensitivities"]
        values = {str(name): float(value) for name, value in values.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        raise BadFileError(
            f'{file}: holds no sensitivities, {{"sensitivities": {{"tensor name": number}}}} in JSON'
        ) from cause
    for name, value in values.items():
        if not (isfinite(value) and value >= 0):
            raise BadFileError(f"{file}: the sensitivity of {name} is {value}, which must not be negative")
    return Sensitivities(values, str(path))
