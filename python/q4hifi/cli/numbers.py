"""The types of options that are numbers. Their errors are in plain words, and NaN is not a number."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click

from ..wording import shortened


class Whole(click.IntRange):
    """A whole number, between limits if they are given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. Raises :class:`click.BadParameter`."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"'{shortened(str(value))}' is not a whole number.", param, ctx)
        return super().convert(number, param, ctx)


class Number(click.FloatRange):
    """A number, between limits if they are given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number. Raises :class:`click.BadParameter`."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"'{shortened(str(value))}' is not a number.", param, ctx)
        if not isfinite(number):
            self.fail(f"'{value}' is not a finite number.", param, ctx)
        return super().convert(number, param, ctx)
