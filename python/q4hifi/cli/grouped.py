"""Options that a command receives together, as one object: :func:`grouped`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

Command = TypeVar("Command", bound=Callable[..., Any])


def grouped(**classes: type[Any]) -> Callable[[Command], Command]:
    """Return a decorator for a command that receives some of its options as objects.

    ``classes`` maps the name of an argument to a dataclass. The argument is an object of this class, whose
    fields have the values of the options with the same names.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_objects(**values: Any) -> Any:
            for name, cls in classes.items():
                given = {f.name: values.pop(f.name) for f in fields(cls) if f.name in values}
                values[name] = cls(**given)
            return command(**values)

        return with_objects  # type: ignore[return-value]

    return decorate
