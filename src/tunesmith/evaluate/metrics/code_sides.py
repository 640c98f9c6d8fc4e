"""What runs inside the sandbox when tests judge an answer's code; ``code_tests.py`` sends this file's text there.

The idea: the tests run in one confined process (``examine``) and the answer in another (``answer``), which lends its
functions: a call goes over a pipe, and plain data comes back. There is no token to steal, since the answer's process
decides nothing: it does not hold the tests, it cannot end theirs, an object whose ``__eq__`` is True is no plain data, and
``builtins`` or ``AssertionError`` patched there are not patched here. Names are lent only when the tests load them, do not
shadow a builtin, and are not imported by the reference: ``isclose`` is the one of ``math``.

Values go by copy: None, numbers, text, bytes, lists, tuples, sets, dictionaries, each of them as its plain base. Lists,
sets and dictionaries that a call changed in place are changed in the tests as well. Tests that need more, the answer's
classes, generators, callbacks or prints, do not pass for their own reference this way; for those alone answer and tests
share a process (``share``), as they do everywhere else. There an answer that was written against this very file can still
pass, so that what can be refused is: an early exit, reading of the source, an object equal to everything, and whatever
also passes tests that end in ``assert False`` (``code_tests.py`` runs both).

Refused: pickle between the two, which would run the answer's code among the tests; one process with a secret in it, which
the answer can read wherever it lies.
"""

import ast
import builtins
import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.abc import InspectLoader
from typing import IO, Any, cast

Packed = None | bool | str | list[Any]
Message = dict[str, Packed]  # a line between the two sides
Function = Callable[..., Any]

_MUTABLE = (list, dict, set, bytearray)


class Opaque(BaseException):
    """A value that is no plain data; no test catches it by ``except Exception``."""


def pack(value: object) -> Packed:
    """Plain data as JSON knows it, with the type beside what JSON mixes up.

    Raises:
        Opaque: the value is something else.
    """
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return ["int", hex(value)]  # digits in tens are limited
        case float():
            return ["float", value.hex()]
        case complex():
            return ["complex", value.real.hex(), value.imag.hex()]
        case bytes() | bytearray():
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
        case dict():
            return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
        case list() | tuple() | set() | frozenset():
            base = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
            return [base.__name__, [pack(item) for item in value]]
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].generic):
        return pack(cast(Any, value).item())
    raise Opaque(f"{type(value).__name__} is no plain data")


def unpack(packed: Packed) -> Any:
    """The value of ``pack``."""
    if not isinstance(packed, list):
        return packed
    kind, *content = packed
    match kind:
        case "int":
            return int(content[0], 16)
        case "float":
            return float.fromhex(content[0])
        case "complex":
            return complex(float.fromhex(content[0]), float.fromhex(content[1]))
        case "bytes" | "bytearray":
            return {"bytes": bytes, "bytearray": bytearray}[kind].fromhex(content[0])
        case "dict":
            return {unpack(key): unpack(item) for key, item in content[0]}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](unpack(item) for item in content[0])


def restore(old: Any, new: Any) -> Any:
    """``old`` with the content of ``new`` where both are the same changeable kind, else ``new``."""
    if type(old) is not type(new) or not isinstance(old, _MUTABLE):
        return new
    if isinstance(old, list):
        old[:] = [restore(old[at], item) if at < len(old) else item for at, item in enumerate(new)]
    elif isinstance(old, bytearray):
        old[:] = new
    elif isinstance(old, dict):
        content = {key: restore(old[key], item) if key in old else item for key, item in new.items()}
        old.clear()
        old.update(content)
    else:
        old.clear()
        old.update(new)
    return old


class _Program(InspectLoader):
    """Runs a program, given as text or tree, in a module."""

    def __init__(self, program: str | ast.Module):
        self._program = program

    def get_source(self, fullname: str) -> str | None:
        return None

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self._program, f"{fullname}.py")  # pyright: ignore[reportArgumentType] - a tree is well


def module_of(name: str, program: str) -> types.ModuleType:
    """A module of this name in which a program was run; one that ends itself has defined what it has defined."""
    module = types.ModuleType(name)
    module.__file__ = sys.argv[0]
    sys.modules[name] = module
    with suppress(SystemExit):
        _Program(program).exec_module(module)
    return module


class _Raised:
    """Keeps what a block raises, whatever it is."""

    error: BaseException | None = None

    def __enter__(self) -> "_Raised":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = error
        return True


def answer(program: str, requests: IO[str], replies: IO[str]) -> None:
    """Run an answer's program, then lend its functions until the requests end.

    A request is ``{"names": [...]}``, answered by a packed value, ``["function"]`` or nothing for each, or
    ``{"call": name, "args": ..., "kwargs": ...}``, answered by the value and the arguments as they are afterwards.
    """
    names = vars(module_of("answer", program))
    for line in requests:
        request: Message = json.loads(line)
        reply: Message = {}
        if lookups := request.get("names"):
            reply = {name: _lent(names[name]) for name in cast(list[str], lookups) if name in names}
        else:
            args, kwargs = unpack(request["args"]), unpack(request["kwargs"])
            with _Raised() as raised:
                value = names[cast(str, request["call"])](*args, **kwargs)
                reply = {"value": pack(value), "args": pack(args), "kwargs": pack(kwargs)}
            if error := raised.error:
                kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
                reply = {"error": "Opaque" if isinstance(error, Opaque) else kinds[0], "message": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


def _lent(value: object) -> Packed:
    try:
        return ["function"] if callable(value) else pack(value)
    except Opaque:
        return ["opaque"]


def examine(tests: str, imports: str, requests: IO[str], replies: IO[str]) -> None:
    """Run tests on the functions that the other side lends; raises what they raise.

    Args:
        tests: the tests of a reference.
        imports: the reference's own imports, which tests tend to rely on.
        requests: where to ask the other side.
        replies: where it answers.
    """

    def ask(request: Message) -> Message:
        print(json.dumps(request), file=requests, flush=True)
        return json.loads(replies.readline())

    def lend(name: str) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            reply = ask({"call": name, "args": pack(args), "kwargs": pack(kwargs)})
            if "error" in reply:
                _raise(str(reply["error"]), str(reply["message"]))
            for old, new in zip(args, unpack(reply["args"]), strict=True):
                restore(old, new)
            for key, new in unpack(reply["kwargs"]).items():
                restore(kwargs[key], new)
            return unpack(reply["value"])

        call.__name__ = name
        return call

    module = module_of("__main__", imports)
    loaded = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    foreign = sorted(loaded - set(vars(module)) - set(vars(builtins)))
    if not foreign:
        raise Opaque("these tests ask for nothing that is not imported")
    for name, packed in ask({"names": foreign}).items():
        if name in foreign and packed != ["opaque"]:
            vars(module)[name] = lend(name) if packed == ["function"] else unpack(packed)
    _Program(tests).exec_module(module)


def _raise(kind: str, message: str) -> None:
    """Raise what a function of the other side raised, as the nearest builtin exception; it must not end our process."""
    if kind == "Opaque":
        raise Opaque(message)
    error = vars(builtins).get(kind)
    raise (error if isinstance(error, type) and issubclass(error, Exception) else RuntimeError)(message)


def share(program: str, tests: str, token: IO[str]) -> None:
    """Run an answer's program and its tests in this process, then print what can be read from ``token``."""
    module = module_of("answer", program)
    tree = ast.fix_missing_locations(_Same().visit(ast.parse(tests)))
    vars(module).update(__same__=same, __name__="__main__")
    sys.modules["__main__"] = module
    _Program(tree).exec_module(module)
    print("\n" + token.read(32), flush=True)


class _Same(ast.NodeTransformer):
    """``a == b`` as ``__same__(a, b)``."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """A comparison for equality alone becomes the call."""
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            return ast.Call(ast.Name("__same__", ast.Load()), [node.left, node.comparators[0]], [])
        return node


def same(left: Any, right: Any) -> Any:
    """``left == right``; False where a part of either belongs to the answer and is equal to anything at all."""
    for part in (*_parts(left), *_parts(right)):
        kind = type(part)
        if kind.__module__ in sys.modules and kind.__module__ not in ("answer", "__main__"):
            home = vars(sys.modules[kind.__module__])
            if kind.__qualname__.partition(".")[0] in home:
                continue
        anything: object = False
        with _Raised():  # an honest comparison may expect its own kind
            anything = part == object()
        if anything is True or (isinstance(anything, int) and anything == 1):
            return False
    return left == right


def _parts(value: object, depth: int = 3) -> Iterator[object]:
    yield value
    if depth and type(value) in (list, tuple, set, frozenset):
        for item in value:  # type: ignore[attr-defined]
            yield from _parts(item, depth - 1)
    elif depth and type(value) is dict:
        for item in value.values():
            yield from _parts(item, depth - 1)
