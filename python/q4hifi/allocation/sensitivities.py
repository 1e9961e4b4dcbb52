"""Sensitivities of tensors: how much KL divergence an error in each of them adds.

The errors of types of 4 bits and more are small. Then the divergence that a tensor causes is proportional to
its relative squared error, and the divergences of all tensors add up: KLD = Σ sensitivity x error. There are
three ways to know the sensitivities:

1. *Measured* by running the model, one tensor at a time (``q4hifi calibrate``,
   :mod:`q4hifi.allocation.calibrate`). This takes longest.
2. *By the Fisher information* F, which ``q4hifi imatrix`` measures by gradients and writes to its file
   (:meth:`q4hifi.Model.fisher`). For a small error E of the weights the divergence is ½ Σ F E².
3. *By the residual stream*, from the weights and the importance alone. An error in attn_output or ffn_down is
   noise in the stream. Its relative size is the error times the energy (mean squared length) of the matrix's
   output, divided by the energy of the stream after it. So an error counts little where the stream is large
   already. The divergence is that noise times the variance of the logits times a constant, in every layer
   but the first. Errors in the matrices before attn_output and ffn_down arrive there as a fixed part. The
   energy of an output is Σ importance x weight². The constants are geometric means over the example model,
   SmolLM2-135M and Qwen2.5-Coder-1.5B, measured with ``q4hifi calibrate``.

Some models have massive activations: a few tokens, such as the first of a text, have activations a thousand
times as large as all others. The stream's energy is taken without them, but not the energy of an error.

The default joins 2 and 3: the Fisher information decides how large the values of a role's matrices are
together, and inside a role it is the geometric mean of both. The Fisher information is more exact for most
matrices, but a single unusual token can dominate that of one matrix. Without a backward pass it is known for
all layers of a role together (:mod:`q4hifi.evaluate.noise_trials`). The residual stream is coarse, but does
not depend on single tokens. It knows how layers differ, but not how routers of experts, state-space layers
and the like react to noise. Token embeddings that are not the output matrix as well use 3 alone, times the
typical factor between the two: each row serves one token, and a text has too few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from statistics import geometric_mean
from types import MappingProxyType

from ..formats.tensor_names import VOCABULARY_ROLES, group_of, layer_of, role_of

STREAM = 0.07
"""Nats of divergence per relative squared noise in the residual stream, per variance of the logits."""

TOKEN_EMBD = 0.035
"""The same for token_embd: half of :data:`STREAM`, as the layers add to the stream afterwards."""

OUTPUT = 0.34
"""The same for the output matrix. If the embeddings are tied, this and :data:`TOKEN_EMBD` add up."""

UNKNOWN_VARIANCE = 6.0
"""The variance of the logits if it is not known. The three models have 2.7, 8.1 and 19."""

UNKNOWN_SHARE = 0.08
"""The share of the stream that a matrix adds, if its energy is not known."""

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
"""Role -> the role through which its error reaches the stream, and the part of the error that does."""

FIRST_LAYER: Mapping[str, float] = {
    "attn_k": 0.2,
    "attn_q": 0.2,
    "ffn_down": 0.5,
    "ffn_gate": 0.25,
    "ffn_up": 0.25,
}
"""Role -> a further factor in layer 0. There the stream is only the token's embedding, and later layers do
not read much of what is added to it."""

DEFAULT_SOURCE = "the residual stream"
FISHER_SOURCE = "the imatrix's Fisher information and the residual stream"


@dataclass(frozen=True, slots=True)
class Energy:
    """Mean squared length of a matrix's output: ``whole`` over all tokens, ``ordinary`` without massive
    activations."""

    whole: float
    ordinary: float


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """Tensor name -> nats of KL divergence per unit of relative squared error; ``source`` says where from.

    ``probes`` has the tensors that were quantized to measure the value: the type, and the relative squared
    error of the whole tensor in it. The errors of a sample of rows are compared with that.
    """

    values: Mapping[str, float]
    source: str
    probes: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def renamed(self, new_name: Callable[[str], str | None]) -> Sensitivities:
        """Return a copy for a model whose tensors have other names; ``new_name`` returns None for none."""
        names = {old: new for old in self.values if (new := new_name(old)) is not None}
        return replace(
            self,
            values={new: self.values[old] for old, new in names.items()},
            probes={new: self.probes[old] for old, new in names.items() if old in self.probes},
        )


def default_sensitivities(
    energies: Mapping[str, Energy | None],
    logit_variance: float | None = None,
    fisher: Mapping[str, float | None] = MappingProxyType({}),
    *,
    tied: bool,
) -> Sensitivities:
    """Return the sensitivities of matrices without running the model, as the module describes.

    ``energies`` has the :class:`Energy` of each matrix by name, None if its importance is not known; for
    token_embd the energy of its rows. ``logit_variance`` is the variance of the logits over the vocabulary
    (:func:`~q4hifi.allocation.sampled_errors.logit_variance`). ``fisher`` has the sensitivities by the Fisher
    information (:meth:`~q4hifi.allocation.sampled_errors.SampledTensor.fisher_sensitivity`). They are used
    only if they are known for every matrix. ``tied`` says whether the embeddings are the output matrix as
    well.
    """
    stream = _stream(energies)
    unit = UNKNOWN_VARIANCE if logit_variance is None else logit_variance

    def value(name: str) -> float:
        role = role_of(name)
        if role == "token_embd":
            return TOKEN_EMBD + OUTPUT * tied
        if role in VOCABULARY_ROLES:
            return OUTPUT
        writer, part = WRITTEN_BY.get(role, WRITTEN_BY["other"])
        written, after = stream.get((layer_of(name), writer), (UNKNOWN_SHARE, 1.0))
        energy = energies[name]
        if role == writer and energy is not None and stream:
            written = energy.whole
        if layer_of(name) == 0:
            part *= FIRST_LAYER.get(role, 1.0)
        return STREAM * part * written / after if after else STREAM * part * UNKNOWN_SHARE

    by_stream = {name: unit * value(name) for name in energies}
    known = {
        name: found
        for name in energies
        if (found := fisher.get(name)) is not None and (tied or role_of(name) != "token_embd")
    }
    if not known:
        return Sensitivities(by_stream, DEFAULT_SOURCE)
    return Sensitivities(_joined(by_stream, known), FISHER_SOURCE)


def _joined(by_stream: Mapping[str, float], fisher: Mapping[str, float]) -> dict[str, float]:
    """Join the values by the stream, of all matrices, with those by the Fisher information of some.

    The Fisher information decides how large the values of a group of matrices are (:func:`group_of`). Inside
    a group it is the geometric mean. Matrices without Fisher information have the typical factor of the
    groups.
    """
    n_layer = 1 + max((layer for name in by_stream if (layer := layer_of(name)) is not None), default=0)
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name in fisher:
        groups.setdefault(group_of(name, n_layer), []).append(name)
    joined, factors = {}, []
    for names in groups.values():
        stream = sum(by_stream[name] for name in names)
        factor = sum(fisher[name] for name in names) / stream if stream else 0.0
        factors += [factor] * (factor > 0)
        for name in names:
            a, b = factor * by_stream[name], fisher[name]
            joined[name] = sqrt(a * b) or a or b  # if one of them is zero, the other counts
    typical = geometric_mean(factors) if factors else 1.0
    return {name: joined.get(name, typical * value) for name, value in by_stream.items()}


def _stream(energies: Mapping[str, Energy | None]) -> dict[tuple[int | None, str], tuple[float, float]]:
    """(Layer, role that writes to the stream) -> the energy that it adds, and the stream's energy after that.

    Massive activations are left out. Empty if an energy is not known.
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
    for layer, role in sorted(written):  # attn_output is before ffn_down, also in the alphabet
        stream += written[layer, role]
        found[layer, role] = (written[layer, role], stream)
    return found
