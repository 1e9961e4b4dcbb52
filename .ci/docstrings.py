"""For the documentation site: docstrings, which are written for ``help()``, as mkdocstrings reads them.

A role, such as ``:func:`quantize` ``, becomes a link if it names something public, and code otherwise. A
paragraph "Raises ..." behind the list of parameters is moved before it, as it would be read as a parameter.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(?:[^`<]* <)?~?(?P<name>[\w.]+)>?`")
PARAMETERS = re.compile(r"^Parameters\n-+\n", re.MULTILINE)
RAISES = re.compile(r"\n\n(Raises (?:.+\n?)+)")
PACKAGE = "q4hifi"


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

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite all docstrings of the package, once its public names are known."""
        self.public = frozenset(str(name) for name in pkg.exports or ())
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
