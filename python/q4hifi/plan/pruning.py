"""Leaving out layers of a model (``--prune-layers``): the names and the metadata of what remains.

As in llama-quantize, the layers that remain are numbered anew, and types are chosen by the new names and by
the metadata of the source. llama-quantize lowers ``block_count`` only. Here everything that the metadata say
of single layers follows, so that llama.cpp loads the file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import BadOptionError, UnsupportedModelError
from ..formats.gguf_constants import GGUFValueType
from ..formats.tensor_names import layer_of, with_layer
from ..gguf_io.metadata import Metadata
from ..wording import shortened
from .model_shape import ModelShape

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor by its name."""

MAX_DIGITS = 10
"""Layer numbers have fewer digits than this."""

COUNTS = ("block_count", "decoder_block_count")
"""Keys with the number of layers, of the model and of T5's decoder."""

FIRST = ("leading_dense_block_count", "hash_layer_count")
"""Keys with the number of layers at the beginning that are of another kind."""

LAST = ("nextn_predict_layers", "attention.shared_kv_layers")
"""Keys with the number of layers at the end that are of another kind."""

PERIODS = ("full_attention_interval", "interleave_moe_layer_step", "moe_every_n_layers")
"""Keys with a number n: every n-th layer is of another kind."""

NOT_BY_LAYER = ("rope.dimension_sections", "classifier.output_labels")
"""Keys whose lists have no value for each layer, whatever their length."""

OF_ALL_LAYERS = "per_layer_"
"""Prefix of the tensors whose rows have a part for each layer (Gemma 3n)."""

BY_LAYER = "xielu."
"""Beginning of further keys whose lists have a value for each layer (Apertus)."""


def parse_layers(text: str) -> tuple[int, ...]:
    """Read numbers of layers, separated by commas. Raises :class:`BadOptionError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < MAX_DIGITS for part in parts):
        raise BadOptionError(
            f"`prune_layers` {shortened(text)!r}: write numbers of layers, separated by commas, such as 3,7"
        )
    return tuple(map(int, parts))


def check_layers(layers: Sequence[int]) -> None:
    """Raise :class:`BadOptionError` for a number that no layer has."""
    for layer in layers:
        if layer < 0:
            raise BadOptionError(f"`prune_layers` names layer {layer}; layers have numbers from 0 on")


@dataclass(frozen=True, slots=True)
class Pruning:
    """The layers to leave out of a model, sorted; none leave it as it is."""

    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, layers: Iterable[int], metadata: Metadata, shapes: Shapes) -> Pruning:
        """Return the pruning of a model with this metadata and tensors of these names and shapes.

        Raises :class:`BadOptionError` if it has no such layer or no others, and
        :class:`UnsupportedModelError` if llama.cpp would take the layers that remain for others.
        """
        pruning = cls(tuple(sorted({int(layer) for layer in layers})))
        if not pruning.layers:
            return pruning
        model = ModelShape.from_metadata(metadata)
        if not model.n_layer or all(layer_of(name) is None for name in shapes):
            raise BadOptionError(
                "the file has no layers that can be left out, as it is no language model with block_count and"
                " tensors blk.0 and so on; do without `prune_layers`"
            )
        if pruning.layers[-1] >= model.n_layer:
            raise BadOptionError(
                f"`prune_layers` names layer {pruning.layers[-1]}, and the model's layers are 0 to"
                f" {model.n_layer - 1}"
            )
        if len(pruning.layers) == model.n_layer:
            raise BadOptionError(f"`prune_layers` names all {model.n_layer} layers; keep at least one")
        pruning._check_kinds(metadata, model.architecture, shapes)
        return pruning

    def new_name(self, name: str) -> str | None:
        """Return the name that a tensor of the source gets, or None if it is left out."""
        layer = layer_of(name)
        if layer is None:
            return name
        return None if layer in self.layers else with_layer(name, self._new_layer(layer))

    def metadata(self, source: Metadata) -> Metadata:
        """Return the metadata of the model without the layers."""
        if not self.layers:
            return source
        architecture = source["general.architecture"]
        n_layer = source[f"{architecture}.block_count"]
        metadata = source
        for key, count in self._changed_counts(source, architecture, n_layer):
            metadata = metadata.with_value(key, count, source.value_type(key))
        kept = [layer for layer in range(n_layer) if layer not in self.layers]
        for key in _by_layer(source, architecture, n_layer):
            values = [source[key][layer] for layer in kept]
            metadata = metadata.with_value(key, values, _element_type(source, key))
        return metadata

    def _new_layer(self, layer: int) -> int:
        return layer - bisect_left(self.layers, layer)

    def _changed_counts(self, source: Metadata, architecture: str, n_layer: int) -> Iterator[tuple[str, int]]:
        """The keys of numbers of layers, and their new values."""
        for name in (*COUNTS, *FIRST, *LAST):
            key = f"{architecture}.{name}"
            count = source.get(key)
            if type(count) is int:
                counted = range(n_layer - count, n_layer) if name in LAST else range(count)
                yield key, count - sum(layer in counted for layer in self.layers)

    def _check_kinds(self, metadata: Metadata, architecture: str, shapes: Shapes) -> None:
        """Raise :class:`UnsupportedModelError` where a layer would get the place of one of another kind."""
        for name in shapes:
            if name.startswith(OF_ALL_LAYERS):
                raise UnsupportedModelError(
                    f"tensor {name} has values for all layers, so none can be left out; do without"
                    " `prune_layers`"
                )
        parts = _parts_by_layer(shapes)
        moved = {layer: self._new_layer(layer) for layer in sorted(parts) if layer not in self.layers}
        others = {layer: new for layer, new in moved.items() if parts[layer] != parts.get(new)}
        for key in (f"{architecture}.{key}" for key in PERIODS):
            period = metadata.get(key)
            for layer, new in others.items():
                if type(period) is int and period > 1 and (layer - new) % period:
                    raise UnsupportedModelError(
                        f"{key} is {period}, and layer {layer} has other tensors than layer {new}, whose"
                        f" place it would take; let `prune_layers` name whole groups of {period} layers"
                    )
        n_layer = metadata[f"{architecture}.block_count"]
        explained = any(metadata.get(f"{architecture}.{key}") for key in (*FIRST, *PERIODS))
        explained = explained or any(_by_layer(metadata, architecture, n_layer))
        if 0 in others.values() and not explained:
            raise UnsupportedModelError(
                "layer 0 has other tensors than the layer that would take its place; let `prune_layers` keep"
                " layer 0"
            )


def _parts_by_layer(shapes: Shapes) -> dict[int, dict[str, tuple[int, ...]]]:
    """The names and shapes of each layer's tensors, as if it were layer 0."""
    parts: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if (layer := layer_of(name)) is not None:
            parts.setdefault(layer, {})[with_layer(name, 0)] = shape
    return parts


def _by_layer(metadata: Metadata, architecture: str, n_layer: int) -> Iterator[str]:
    """The keys of lists that have a value for each layer."""
    plain = {f"{architecture}.{key}" for key in NOT_BY_LAYER}
    for key in metadata:
        named = key.startswith((f"{architecture}.", BY_LAYER)) and key not in plain
        if named and metadata.array_length(key) == n_layer:
            yield key


def _element_type(metadata: Metadata, key: str) -> GGUFValueType:
    found = metadata.element_type(key)
    assert found is not None  # it is a list
    return found
