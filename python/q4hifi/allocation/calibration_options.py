"""The options of a calibration, in a module that loads quickly for the command's help."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from ..errors import BadOptionError
from ..evaluate.limits import LONGEST_CHUNK
from ..progress import Progress


@dataclass(frozen=True)
class CalibrationOptions:
    """How a calibration measures: the options of :func:`q4hifi.calibrate`, which explains them."""

    n_ctx: int = 256
    n_chunks: int = 4
    group: int = 1
    seconds: float | None = None
    threads: int | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Raise :class:`BadOptionError` for a value that is not possible."""
        if self.seconds is not None and not 0 <= self.seconds < inf:
            raise BadOptionError(
                f"a time limit of {self.seconds} seconds is not possible;"
                " choose 0 or more, or None for no limit"
            )
        if not 2 <= self.n_ctx <= LONGEST_CHUNK or self.n_chunks < 1 or self.group < 1:
            raise BadOptionError(
                f"`n_ctx` is {self.n_ctx}, `n_chunks` {self.n_chunks}, `group` {self.group};"
                f" choose 2 to {LONGEST_CHUNK}, 1 or more, 1 or more"
            )


DEFAULTS = CalibrationOptions()
