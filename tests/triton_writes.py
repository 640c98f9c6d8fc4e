"""Which of its pointers a launch of a Triton kernel writes, read from the kernel's source.

The target of a ``tl.store`` or an atomic is an address: a parameter plus numbers, often by way of names that were assigned
before. So every name knows which parameters it was made from; what was loaded is no address, and a branch that a constant of
the launch shuts is not taken. Kernels call each other: what the one that is called writes is written.
"""

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from triton.runtime.jit import JITFunction

Roots = frozenset[str]  # parameters
NOTHING: Roots = frozenset()


def written(kernel: Any, given: Mapping[str, Any]) -> Roots:
    """Names of the parameters through which a launch may write.

    Args:
        kernel: a function under ``triton.jit``.
        given: its arguments by name.
    """
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr and p.name in given}
    return _written(kernel, tuple(sorted(constants.items())))


@functools.cache
def _written(kernel: Any, constants: tuple[tuple[str, Any], ...]) -> Roots:
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(kernel.fn))).body
    assert isinstance(function, ast.FunctionDef)
    reader = _Reader([argument.arg for argument in function.args.args], dict(constants), kernel.fn.__globals__)
    before = None
    while before != (before := {name: set(roots) for name, roots in reader.made_from.items()}):
        reader.block(function.body)  # again, as long as a loop carries an address on
    return frozenset(reader.written)


class _Reader:
    """Goes through a kernel's statements in order."""

    def __init__(self, parameters: list[str], constants: dict[str, Any], names: Mapping[str, Any]):
        self.made_from: dict[str, Roots] = {name: frozenset({name}) for name in parameters}
        self.written: set[str] = set()
        self._constants, self._names = constants, names

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.If):
                verdict = self._constant(statement.test)
                if verdict is not False:
                    self.block(statement.body)
                if verdict is not True:
                    self.block(statement.orelse)
            elif isinstance(statement, ast.For | ast.While):
                self.block(statement.body)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self._assign(target, statement.value)
            elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                self.made_from[name] = self.made_from.get(name, NOTHING) | self._roots(statement.value)
            elif isinstance(statement, ast.Expr | ast.Return) and statement.value is not None:
                self._roots(statement.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for one, of_it in zip(target.elts, values, strict=True):
                self._assign(one, of_it)
        elif isinstance(target, ast.Name):
            self.made_from[target.id] = self.made_from.get(target.id, NOTHING) | self._roots(value)

    def _roots(self, value: ast.AST) -> Roots:
        """Parameters that an expression is made from; what calls in it write is written down on the way."""
        if isinstance(value, ast.Name):
            return self.made_from.get(value.id, NOTHING)
        if isinstance(value, ast.Attribute):
            return NOTHING if value.attr in ("dtype", "shape") else self._roots(value.value)
        parts = NOTHING.union(*(self._roots(child) for child in ast.iter_child_nodes(value)))
        if not isinstance(value, ast.Call):
            return parts
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        if name == "store" or name.startswith("atomic_"):
            self.written |= self._roots(value.args[0])
        called = self._names.get(name) if isinstance(value.func, ast.Name) else None
        if isinstance(called, JITFunction):
            of_name = dict(zip((p.name for p in called.params), value.args, strict=False))
            of_name |= {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
            known = {p.name: self._constant(of_name[p.name]) for p in called.params if p.is_constexpr and p.name in of_name}
            constants = tuple(sorted((key, verdict) for key, verdict in known.items() if verdict is not None))
            for parameter in _written(called, constants):
                self.written |= self._roots(of_name[parameter])
        return NOTHING if name == "load" or name.startswith("atomic_") else parts

    def _constant(self, test: ast.expr) -> bool | None:
        """What a condition comes to in this launch; None where that is not known."""
        if isinstance(test, ast.Constant):
            return bool(test.value)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            inner = self._constant(test.operand)
            return None if inner is None else not inner
        if isinstance(test, ast.Name) and test.id in self._constants:
            return bool(self._constants[test.id])
        return None
