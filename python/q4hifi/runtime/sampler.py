"""Choosing the next token by a model's logits: :class:`Sampler`."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import BadOptionError, NotFiniteError

Floats = npt.NDArray[np.float32]


class Sampler:
    """Chooses the next token by the logits, as llama.cpp does with the same options and seed.

    The options are those of :meth:`Model.generate_tokens`; ``seed`` is an attribute.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
    ) -> None:
        """Set the options; ``seed`` is 0 to 2³² - 1, or None for a random one.

        Raises :class:`BadOptionError` for values out of range.
        """
        seed = secrets.randbits(32) if seed is None else seed
        for name, value, least, most in (
            ("temperature", temperature, 0, float("inf")),
            ("top_k", top_k, 0, 1 << 31),
            ("top_p", top_p, 0, 1),
            ("min_p", min_p, 0, 1),
            ("seed", seed, 0, (1 << 32) - 1),
        ):
            if not least <= value <= most:
                allowed = f"{least} or more" if most == float("inf") else f"{least} to {most}"
                raise BadOptionError(f"`{name}` is {value}; choose {allowed}")
        self.seed = seed
        self._core = _core.Sampler(temperature, top_k, top_p, min_p, seed)

    def sample(self, logits: Floats) -> int:
        """Return the id of the next token; ``logits`` is float32 [n_vocab].

        Raises :class:`NotFiniteError` if the logits are NaN.
        """
        token = self._core.sample(np.ascontiguousarray(logits, np.float32))
        if token is None:
            raise NotFiniteError("the model's logits are NaN; its weights may be damaged")
        return token
