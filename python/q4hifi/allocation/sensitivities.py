"""What an error in a tensor costs the model: the KL divergence added per unit of relative squared error.

For errors as small as those of 4 bits and more, the divergences that the tensors add on their own add up,
and each is proportional to the tensor's relative error: KLD = Σ sensitivity x error.

By small errors E the divergence is ½ Σ F E², F being the Fisher information, which `q4hifi imatrix` measures
(:meth:`q4hifi.Model.fisher`) and leaves in its file.

Without it a sensitivity is told from what each matrix adds to the residual stream. The
energy (squared length) of a matrix' output is Σ importance x weight², so the stream's is known after every
attention and feed-forward block. An error in attn_output or ffn_down is noise in the stream, of relative
size error x (its energy / the stream's after it): small where the stream is large already. Measured, the
divergence is that times the variance of the logits and one constant, in every layer but the first; errors
in the matrices before them arrive there as a fixed part. (Measured with `q4hifi calibrate` on the example
model, SmolLM2-135M and Qwen2.5-Coder-1.5B; the constants are geometric means of the three.)

Some models give a few tokens, such as the first of a text, activations that are a thousand times those of
all others. They do not count in the stream, which is that of ordinary tokens; the noise that the matrices
make of them does.

The first is nearer to the truth for most matrices, but single tokens can rule it; the second is coarse, but
knows no tokens. They err apart, and their geometric mean is better than either: that is the default. But
for embeddings that are not the output as well: each row serves one token, and what the few that a sample
meets tell is chance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from types import MappingProxyType
from typing import Any

from ..errors import BadFileError
from ..files.json_file import read_json
from ..formats.tensor_names import MASSIVE, is_tied, layer_of, role_of

STREAM = 0.07
"""Nats per relative squared noise in the residual stream and variance of a token's logits."""

TOKEN_EMBD = 0.035
"""The same for token_embd: half of that in a stream to which layers have added."""

OUTPUT = 0.34
"""The same for the output matrix; where it is tied to token_embd, both add up."""

UNKNOWN_VARIANCE = 6.0
"""That of logits, where it is not known: between the three models' 2.7, 8.1 and 19."""

UNKNOWN_SHARE = 0.08
"""The share of the stream that a block is taken to add where its energy is not known."""

ATTENTION, FEED_FORWARD = "attn_output", "ffn_down"
"""Roles of the matrices that write to the stream, in their order in a layer."""

WRITTEN_BY: Mapping[str, tuple[str, float]] = {
    "attn_output": (ATTENTION, 1.05),
    "attn_v": (ATTENTION, 1.35),
    "attn_k": (ATTENTION, 0.8),
    "attn_q": (ATTENTION, 0.5),
    "attn_qkv": (ATTENTION, 2.4),
    "attn_kv_b": (ATTENTION, 2.0),
    "ffn_down": (FEED_FORWARD, 1.2),
    "ffn_gate": (FEED_FORWARD, 1.1),
    "ffn_up": (FEED_FORWARD, 1.0),
    "other": (ATTENTION, 0.5),
}
"""Role -> the role through which its error reaches the stream, and the part of it that does."""

FIRST_LAYER: Mapping[str, float] = {
    "attn_k": 0.2,
    "attn_q": 0.2,
    "ffn_down": 0.5,
    "ffn_gate": 0.25,
    "ffn_up": 0.25,
}
"""Role -> the part of that in layer 0, where the stream is only the token: much of what is added there,
and of its error, later layers do not read."""

DEFAULT_SOURCE = "the residual stream"
FISHER_SOURCE = "the Fisher information and the residual stream"


@dataclass(frozen=True, slots=True)
class Energy:
    """Mean squared length of a matrix' output: of all tokens, and without massive activations."""

    whole: float
    ordinary: float


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Tensor name -> nats of KL divergence per unit of relative squared error, and where that is from.

    ``probes`` has, where a type was tried to measure a value, its name and the tensor's relative error in
    it: with them what is measured on a sample of rows can be brought to the whole tensor's scale.
    """

    values: Mapping[str, float]
    source: str
    probes: Mapping[str, tuple[str, float]] = field(default_factory=dict)


def default_sensitivities(
    energies: Mapping[str, Energy | None],
    logit_variance: float | None = None,
    fisher: Mapping[str, float | None] = MappingProxyType({}),
    *,
    tied: bool | None = None,
) -> Sensitivities:
    """Return what can be said of the matrices of a model without running it.

    ``energies`` has for each matrix by name Σ importance x weight², the mean squared length of its output,
    or None where its importance is not known; for token_embd the mean squared length of its rows.
    ``logit_variance`` is that over the vocabulary (:func:`~q4hifi.allocation.sampled_errors.logit_variance`).
    What the stream tells is in proportion to it. ``fisher`` is what the Fisher information tells
    (:func:`~q4hifi.allocation.sampled_errors.fisher_sensitivity`): where it tells of all, the geometric means
    of both, but for untied token_embd. ``tied`` says whether the embeddings are the output matrix too;
    default: as the names in ``energies`` show.
    """
    stream = _stream(energies)
    unit = UNKNOWN_VARIANCE if logit_variance is None else logit_variance
    tied = is_tied(energies) if tied is None else tied

    def value(name: str) -> float:
        role = role_of(name)
        if role == "token_embd":
            return TOKEN_EMBD + OUTPUT * tied
        if role in MASSIVE:
            return OUTPUT
        writer, part = WRITTEN_BY.get(role, WRITTEN_BY["other"])
        written, after = stream.get((layer_of(name), writer), (UNKNOWN_SHARE, 1.0))
        energy = energies[name]
        if role == writer and energy is not None and stream:
            written = energy.whole
        if layer_of(name) == 0:
            part *= FIRST_LAYER.get(role, 1.0)
        return STREAM * part * written / after if after else STREAM * part * UNKNOWN_SHARE

    told = {name: unit * value(name) for name in energies}
    if any(fisher.get(name) is None for name in energies):
        return Sensitivities(told, DEFAULT_SOURCE)

    def mean(name: str) -> float:
        a, b = told[name], fisher[name] or 0.0
        if role_of(name) == "token_embd" and not tied:
            return a
        return sqrt(a * b) or a or b  # where one says that a matrix does nothing, the other is to be heard

    return Sensitivities({name: mean(name) for name in energies}, FISHER_SOURCE)


def _stream(energies: Mapping[str, Energy | None]) -> dict[tuple[int | None, str], tuple[float, float]]:
    """(Layer, role that writes to the stream) -> energy that it adds, and the stream's after that.

    Of ordinary tokens. Empty where an energy is not known.
    """
    written: dict[tuple[int, str], float] = {}
    stream = 0.0
    for name, energy in energies.items():
        role, layer = role_of(name), layer_of(name)
        if role == "token_embd" or (layer is not None and role in (ATTENTION, FEED_FORWARD)):
            if energy is None:
                return {}
            if layer is None:
                stream += energy.ordinary
            else:
                written[layer, role] = written.get((layer, role), 0.0) + energy.ordinary
    found: dict[tuple[int | None, str], tuple[float, float]] = {}
    for layer, role in sorted(written):  # attn_output stands before ffn_down in the alphabet, too
        stream += written[layer, role]
        found[layer, role] = (written[layer, role], stream)
    return found


def load_sensitivities(path: str | os.PathLike[str]) -> Sensitivities:
    """Read a JSON object ``{"sensitivities": {tensor name: number}}``, such as a calibration leaves.

    It may have ``"matrices": {tensor name: {"probe": type, "error": number}}``, too. Raises
    :class:`BadFileError` where the file is something else.
    """

    def parse(found: Any) -> tuple[dict[str, float], dict[str, tuple[str, float]]]:
        values = {str(name): float(value) for name, value in found["sensitivities"].items()}
        probes = {
            str(name): (str(value["probe"]), float(value["error"]))
            for name, value in found.get("matrices", {}).items()
        }
        return values, probes

    values, probes = read_json(
        path,
        "the sensitivities",
        'holds no sensitivities, {"sensitivities": {"tensor name": number}} in JSON',
        parse,
    )
    for name, value in values.items():
        if not (isfinite(value) and value >= 0):
            raise BadFileError(f"{path}: the sensitivity of {name} is {value}, which must not be negative")
    return Sensitivities(values, str(path), probes)
