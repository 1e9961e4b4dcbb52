"""For the documentation site: roles in docstrings, such as ``:func:`quantize` ``, become links or code.

Docstrings are written for ``help()``, with Sphinx' roles; mkdocstrings reads Markdown. A role that names
something public becomes a link, any other becomes code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(?:[^`<]* <)?~?(?P<name>[\w.]+)>?`")
PACKAGE = "q4hifi"


class DocstringRoles(griffe.Extension):
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
            parent.docstring.value = ROLE.sub(self._markdown, parent.docstring.value)
        for member in parent.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member)

    def _markdown(self, role: re.Match[str]) -> str:
        name = role["name"].removeprefix(f"{PACKAGE}.")
        return f"[`{name}`][{PACKAGE}.{name}]" if name in self.public else f"`{name}`"
