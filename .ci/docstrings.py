"""For the documentation site: docstrings, which are written for ``help()``, as mkdocstrings reads them.

A role, such as ``:func:`quantize` ``, becomes a link if it names something public, and code otherwise. A
paragraph "Raises ..." behind the list of parameters is moved before it, as it would be read as a parameter.
The list of the options of quantizing is not in the source: it is added when the package is imported.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

import q4hifi

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(?:[^`<]* <)?~?(?P<name>[\w.]+)>?`")
PARAMETERS = re.compile(r"^Parameters\n-+\n", re.MULTILINE)
RAISES = re.compile(r"\n\n(Raises (?:.+\n?)+)")
PACKAGE = "q4hifi"
WITH_OPTIONS = ("quantize_file", "plan_file", "QuantizeOptions")
"""Public names whose docstrings get a list of options when they are imported."""


def raises_first(text: str) -> str:
    """Move the paragraph on exceptions before the list of parameters."""
    parameters = PARAMETERS.search(text)
    raises = RAISES.search(text, parameters.end()) if parameters else None
    if parameters is None or raises is None:
        return text
    start, rest = parameters.start(), text[parameters.start() : raises.start()]
    return f"{text[:start]}{raises[1].rstrip()}\n\n{rest}{text[raises.end() :]}"


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def __init__(self) -> None:
        """Begin with no public names; they are known when the package is loaded."""
        self.public: frozenset[str] = frozenset()

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Show ``option(default, ...)``, which makes a field of a dataclass, as its default."""
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "option":
            attr.value = value.arguments[0]

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of the package, once its public names are known."""
        self.public = frozenset(str(name) for name in pkg.exports or ())
        for name in WITH_OPTIONS:
            found = getattr(q4hifi, name)
            documented = pkg[f"{found.__module__}.{name}".removeprefix(f"{PACKAGE}.")]
            documented.docstring.value = inspect.getdoc(found)
        self._rewrite(pkg)

    def _rewrite(self, parent: griffe.Object) -> None:
        if parent.docstring is not None:
            parent.docstring.value = ROLE.sub(self._markdown, raises_first(parent.docstring.value))
        for member in parent.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)

    def _markdown(self, role: re.Match[str]) -> str:
        name = role["name"].removeprefix(f"{PACKAGE}.")
        return f"[`{name}`][{PACKAGE}.{name}]" if name in self.public else f"`{name}`"
