"""Calls of a notebook or script, read from its syntax tree; nothing of it is ever run.

A keyword whose value is a literal, a name that is given one literal in the whole notebook (``max_seq_length = 2048``), or
arithmetic of these is known; ``torch.bfloat16`` is the text after the dot. Anything else is an expression, which is asked for.
What stands below ``if False:`` is not read.

Refused: running the cells, which install packages, download a model and start a training.
"""

import ast
import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from tunesmith.errors import RecipeError

MAGIC = re.compile(r"\s*[%!]")
ARITHMETIC = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv},
}
LARGEST = 1 << 40  # of a number that arithmetic is done with


@dataclass(frozen=True)
class Call:
    """A call in the order of the notebook.

    Attributes:
        name: of the function, as it is written.
        positional: arguments without a name.
        values: keyword arguments that are known.
        computed: keyword arguments that are not, with their text.
    """

    name: str
    positional: tuple[JsonValue, ...] = ()
    values: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    computed: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def last(self) -> str:
        """The name after the last dot."""
        return self.name.rpartition(".")[2]


def calls_of(path: Path) -> list[Call]:
    """The calls of a notebook (.ipynb) or a script (.py).

    Raises:
        RecipeError: it is no notebook, or a cell that trains is no Python.
    """
    trees = [tree for number, source in _cells(path) if (tree := _parsed(path, number, source)) is not None]
    try:
        names = _literals(trees)
        return [_call(node, names) for tree in trees for node in _live(tree) if isinstance(node, ast.Call)]
    except (RecursionError, OverflowError, MemoryError) as error:
        raise RecipeError(f"{path}: its Python is nested too deep, or computes with too large a number", "mend it") from error


def _cells(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}", "name a notebook (.ipynb) or a script (.py)") from error
    if path.suffix == ".py":
        yield 1, text
        return
    try:
        cells = json.loads(text)["cells"]
        whole = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        sources = [source if isinstance(source, str) else "".join(source) for source in whole]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{path}: is no notebook: {error}", "save it anew in Jupyter, as .ipynb") from error
    yield from enumerate(sources, start=1)


def _parsed(path: Path, number: int, source: str) -> ast.Module | None:
    """The tree of a cell; None for one of another language, or of commands of the shell."""
    if source.lstrip().startswith("%%") and not source.lstrip().startswith(("%%capture", "%%time")):
        return None
    lines: list[str] = []
    for line in source.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        lines.append(f"{indent}pass" if MAGIC.match(line) else line)
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError as error:
        if "from_pretrained" in source or "Trainer" in source:
            raise RecipeError(
                f"{path}: code cell {number}, line {error.lineno}: is no Python that is read here: {error.msg}", "mend the cell"
            ) from error
        return None
    except (MemoryError, RecursionError, ValueError) as error:  # nested without measure, or half a character
        reason = str(error) or "it is nested too deep"
        raise RecipeError(f"{path}: code cell {number}: is no Python that is read: {reason:.200}", "mend the cell") from error


def _live(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes in the order of the text, without those below ``if False``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Constant) and not node.test.value:
            for other in node.orelse:
                yield other
                yield from _live(other)
            continue
        yield node
        yield from _live(node)


def _literals(trees: list[ast.Module]) -> dict[str, JsonValue]:
    """Names that are given one value, and that one known."""
    given: dict[str, list[ast.expr]] = {}
    for tree in trees:
        for node in _live(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                given.setdefault(node.targets[0].id, []).append(node.value)
    known: dict[str, JsonValue] = {}
    for name, values in given.items():
        if len({ast.dump(value) for value in values}) == 1:
            is_known, value = _known(values[0], known)
            if is_known:
                known[name] = value
    return known


def _call(node: ast.Call, names: dict[str, JsonValue]) -> Call:
    call = Call(ast.unparse(node.func), tuple(_known(argument, names)[1] for argument in node.args))
    for keyword in node.keywords:
        if keyword.arg is None:
            call.computed["**"] = ast.unparse(keyword.value)
            continue
        is_known, value = _known(keyword.value, names)
        if is_known:
            call.values[keyword.arg] = value
        else:
            call.computed[keyword.arg] = ast.unparse(keyword.value)
    return call


def _known(node: ast.expr, names: dict[str, JsonValue]) -> tuple[bool, JsonValue]:
    """Whether the value of an expression is known without running it, and the value."""
    if isinstance(node, ast.Name):
        return (True, names[node.id]) if node.id in names else (False, None)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        return True, node.attr
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        (is_left, left), (is_right, right) = _known(node.left, names), _known(node.right, names)
        if is_left and is_right and _is_number(left) and _is_number(right) and right != 0:
            return True, ARITHMETIC[type(node.op)](left, right)
        return False, None
    if isinstance(node, ast.List | ast.Tuple):
        known = [_known(entry, names) for entry in node.elts]
        return all(is_known for is_known, _ in known), [value for _, value in known]
    try:
        value = ast.literal_eval(node)
        return True, cast("JsonValue", json.loads(json.dumps(value)))
    except (ValueError, TypeError, SyntaxError):
        return False, None


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
