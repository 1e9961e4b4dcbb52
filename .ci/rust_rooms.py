"""Checks the rooms of src/: no circle of files, and no room uses a later one.

A `use` of `crate::…`, `super::…` or `self::…` is an arrow from its file to the file that defines the name.
Re-exports (`pub use`, `pub(crate) use`) in between are followed, and are no arrows themselves. Tests may use
everything: blocks of `#[cfg(test)] mod …` and files named tests.rs are left out.

    python3 .ci/rust_rooms.py           # prints offending arrows, and exits with 1 if there are any
    python3 .ci/rust_rooms.py --arrows  # prints all arrows between rooms
"""

import re
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"

# Lowest first. Rooms of one line may not use each other.
ROOMS = """
error
float error_sums team lost_pages
isa check
simd
block
fit
refine feedback
dot panel
dispatch
rows
matmul
logits
model
python
"""
RANK = {room: rank for rank, line in enumerate(ROOMS.split("\n")) for room in line.split()}
TESTS = {"tests", "testing"}

Names = tuple[str, ...]


def without_tests_and_comments(text: str) -> str:
    """The code, without comments, strings and `#[cfg(test)]` items."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    while match := re.search(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*", text):
        end = match.end()
        semicolon, brace = text.find(";", end), text.find("{", end)
        if text.startswith("use ", end) or brace < 0 or 0 <= semicolon < brace:
            end = semicolon + 1
        else:
            depth = 0
            for end in range(brace, len(text)):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                if depth == 0:
                    break
            end += 1
        text = text[: match.start()] + text[end:]
    return text


def leaves(tree: str) -> list[tuple[Names, str]]:
    """The paths of a use tree, each with the name that it gets: `a::{b, c as d}` has (a, b) and (a, c)."""
    tree = tree.strip()
    brace = tree.find("{")
    if brace < 0:
        path, _, name = tree.partition(" as ")
        parts = tuple(part.strip() for part in path.split("::") if part.strip())
        if parts == ("self",):  # in braces: what stands before them
            return [((), name.strip())]
        return [(parts, name.strip() or parts[-1])]
    head = tuple(part.strip() for part in tree[:brace].split("::") if part.strip())
    found, depth, start = [], 0, brace + 1
    for i in range(brace, len(tree)):
        depth += {"{": 1, "}": -1}.get(tree[i], 0)
        if (tree[i] == "," and depth == 1) or (depth == 0 and tree[i] == "}"):
            if piece := tree[start:i].strip():
                found += [(head + path, name or head[-1]) for path, name in leaves(piece)]
            start = i + 1
    return found


class Module:
    """A file: its path of modules, its children, what it re-exports, and the paths that it uses."""

    def __init__(self, name: Names, file: Path) -> None:
        """Reads the file."""
        self.name, self.file = name, file
        text = without_tests_and_comments(file.read_text())
        # inside `mod name { … }`, super is this module
        inline = re.compile(r"(\bmod \w+ \{.*?)\bsuper::", re.DOTALL)
        while inline.search(text):
            text = inline.sub(r"\1self::", text)
        self.children = set(re.findall(r"\bmod (\w+);", text))
        self.exports: dict[str, Names] = {}
        self.uses: set[Names] = set()
        for visibility, tree in re.findall(r"(pub(?:\([^)]*\))? )?\buse ([^;]+);", text):
            for leaf, alias in leaves(tree):
                absolute = self.absolute(leaf)
                if absolute is None:
                    continue
                if visibility and alias != "_":
                    self.exports[alias] = absolute
                else:
                    self.uses.add(absolute)
        body = re.sub(r"(pub(?:\([^)]*\))? )?\buse [^;]+;", "", text)
        for path in re.findall(r"\b((?:crate|super|self)(?:::\w+)+)", body):
            absolute = self.absolute(tuple(path.split("::")))
            if absolute is not None:
                self.uses.add(absolute)

    def absolute(self, path: Names) -> Names | None:
        """The path from the crate's root on; None of another crate's."""
        if path[0] == "crate":
            return path[1:]
        if path[0] == "self":
            return self.name + path[1:]
        up = 0
        while up < len(path) and path[up] == "super":
            up += 1
        if up:
            return self.name[: len(self.name) - up] + path[up:]
        if path[0] in self.children:
            return self.name + path
        return None


def read_modules() -> dict[Names, Module]:
    """Every file of src/ but the tests."""
    modules = {}
    for file in sorted(SRC.rglob("*.rs")):
        parts = file.relative_to(SRC).with_suffix("").parts
        name = parts[:-1] if parts[-1] in ("mod", "lib") else parts
        if not TESTS & set(name):
            modules[name] = Module(name, file)
    return modules


def defining(modules: dict[Names, Module], path: Names) -> Names | None:
    """The module that defines what the path leads to, re-exports followed."""
    for _ in range(10):
        known = max((n for n in range(len(path) + 1) if path[:n] in modules), default=0)
        module, rest = modules[path[:known]], path[known:]
        if not rest:
            return module.name
        if rest[0] in module.exports:
            path = module.exports[rest[0]] + rest[1:]
            continue
        return module.name if known else None  # of the root, only re-exports can be meant
    raise SystemExit(f"re-exports that lead in a circle: {path}")


def arrows(modules: dict[Names, Module]) -> dict[Names, set[Names]]:
    """The files whose names each file uses."""
    found: dict[Names, set[Names]] = {}
    for module in modules.values():
        targets = {defining(modules, path) for path in module.uses}
        found[module.name] = {target for target in targets if target is not None and target != module.name}
    return found


def circles(graph: dict[Names, set[Names]]) -> list[list[Names]]:
    """Groups of modules that reach each other (Tarjan)."""
    index: dict[Names, int] = {}
    low: dict[Names, int] = {}
    stack: list[Names] = []
    found = []

    def visit(node: Names) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def main() -> int:
    """Prints what is wrong; the exit status."""
    modules = read_modules()
    graph = arrows(modules)
    show = {name: str(module.file.relative_to(SRC)) for name, module in modules.items()}
    faults = [
        f"no place in the order of rooms: {show[name]}" for name in modules if name and name[0] not in RANK
    ]
    for name, targets in graph.items():
        for target in sorted(targets):
            if not name or not target or name[0] == target[0] or name[0] not in RANK or target[0] not in RANK:
                continue
            if RANK[target[0]] >= RANK[name[0]]:
                faults.append(f"upwards: {show[name]} -> {show[target]}")
    for group in circles(graph):
        faults.append("a circle of files: " + ", ".join(show[name] for name in group))
        inner = [f"    {show[a]} -> {show[b]}" for a in group for b in sorted(graph[a]) if b in group]
        faults += inner
    if "--arrows" in sys.argv:
        between = sorted(
            {(a[0], b[0]) for a, targets in graph.items() for b in targets if a and b and a[0] != b[0]}
        )
        print("\n".join(f"{a} -> {b}" for a, b in between))
    print("\n".join(faults) if faults else f"{len(modules)} files, no circle, no arrow upwards")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
