"""All options of quantizing, as one object: :class:`QuantizeOptions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..errors import BadOptionError
from ..plan.metadata_overrides import MetadataOverride
from ..plan.option import document, option
from ..plan.options import IMATRIX, OUTPUT, SECTIONS, Bytes, FilePath, TypeOptions
from ..plan.pruning import check_layers
from ..progress import Progress


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(TypeOptions):
    """The options of :func:`q4hifi.quantize_file` and :func:`q4hifi.plan_file`.

    All are given by keyword; ``type`` may also come first without one. Creating it raises
    :class:`BadOptionError` for a value that is not possible, and for options that exclude each other.
    ``dataclasses.replace`` returns options with some of them changed.
    """

    allow_requantize: bool = option(
        False, "Allow tensors that are already quantized to change their type. This loses quality."
    )
    imatrix: FilePath | None = option(
        None,
        "Importance matrix, made by 'q4hifi imatrix' or llama-imatrix.",
        section=IMATRIX,
        metavar="FILE",
    )
    include_weights: Sequence[str] = option(
        (),
        "Use the importance matrix only for tensors with NAME in their name.",
        section=IMATRIX,
        metavar="NAME",
    )
    exclude_weights: Sequence[str] = option(
        (),
        "Do not use the importance matrix for tensors with NAME in their name.",
        section=IMATRIX,
        metavar="NAME",
    )
    allow_missing_importance: bool = option(
        False, "Use the importance matrix even if it seems to be of another model.", section=IMATRIX
    )
    keep_split: bool = option(False, "Split the output into as many files as the source.", section=OUTPUT)
    split_max_size: Bytes | None = option(
        None,
        "Split the output into files of at most this size, such as 4GB.",
        section=OUTPUT,
        metavar="SIZE",
        details="A number of bytes of tensor data.",
    )
    override_kv: Sequence[str] = option(
        (),
        "Set a pair of the metadata, such as tokenizer.ggml.add_bos_token=bool:false. TYPE is int, float,"
        " bool or str.",
        section=OUTPUT,
        metavar="KEY=TYPE:VALUE",
        details="A pair that exists keeps its type, if that can hold the value. The types of the tensors are"
        " chosen by the metadata of the source.",
    )
    prune_layers: Sequence[int] = option(
        (),
        "Leave out these layers, such as 20,21. The others are numbered anew.",
        section=OUTPUT,
        metavar="L0,L1,...",
        details="Numbers of layers, from 0 on. The patterns of tensor_types match the new names; the imatrix"
        " and the sensitivities are those of the source.",
    )
    threads: int | None = option(
        None, "Number of threads, at most one per core. 0 means one per core.", unset="as 0"
    )
    overwrite: bool = option(False, "Replace the destination if it exists.")
    progress: Progress | None = option(
        None,
        "A function that is called with the weights done, the weights in all, and the name of the tensor.",
        unset="nothing is called",
    )

    def __post_init__(self) -> None:
        """Check every option, and that they fit together."""
        TypeOptions.__post_init__(self)
        if self.imatrix is None and (self.include_weights or self.exclude_weights):
            raise BadOptionError("`include_weights` and `exclude_weights` choose from an imatrix; give one")
        _ = self.metadata_overrides  # reading them checks them
        check_layers(self.prune_layers)
        if self.keep_split and self.split_max_size is not None:
            raise BadOptionError("`keep_split` and `split_max_size` cannot go together; choose one")

    @cached_property
    def metadata_overrides(self) -> tuple[MetadataOverride, ...]:
        """The pairs of metadata that ``override_kv`` sets. Raises :class:`BadOptionError` for a wrong one."""
        return tuple(map(MetadataOverride.parse, self.override_kv))

    @property
    def guesses_sensitivities(self) -> bool:
        """Whether types are chosen by measured errors, but how much these harm the model was not measured."""
        measured = (self.imatrix, self.sensitivities, self.calibrate)
        return all(file is None for file in measured) and self.is_measured(False)


GUESSED = (
    "without an importance matrix, q4hifi can only guess how much an error in each tensor harms the model."
    " The KL divergence will be higher than estimated, and may be higher than that of a fixed mix of the same"
    " size. Make an importance matrix with 'q4hifi imatrix', and name it with --imatrix"
)
"""The warning for options that :attr:`~QuantizeOptions.guesses_sensitivities`."""


document(QuantizeOptions, QuantizeOptions, SECTIONS)
