"""The type of options that have a few possible values: :class:`Choice`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # in older versions of click it cannot have brackets


class Choice(_Choice):
    """One of a few words. The error for any other word suggests the most similar one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value if it is possible. Raises :class:`click.BadParameter`."""
        try:
            return str(super().convert(value, param, ctx))
        except click.BadParameter as error:
            from difflib import get_close_matches

            words = {word.lower(): word for word in self.choices}
            for similar in get_close_matches(str(value).lower(), words, n=1):
                self.fail(f"{error.message} Did you mean {words[similar]}?", param, ctx)
            raise
