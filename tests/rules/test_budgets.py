"""Small functions and files, errors that are said, few lookups by string, lazy imports and dictionaries of anything.

A test lists every offender at once. Shares are per 1,000 lines that are neither blank nor comment.
"""

import ast
from collections.abc import Iterator

from source_tree import Module, code_lines, dotted, modules, packages_of_extras, parsed

from shared import ROOT

LINES_OF_A_FUNCTION = 80
LINES_OF_A_FILE = 500
LOOKUPS = 2.0  # getattr, hasattr and setattr
IMPORTS_IN_FUNCTIONS = 2.0
IMPORTS_OUT_OF_PLACE = 0
DICTS_OF_ANYTHING = 2.0
UNSAID_ERRORS = 0

LAZY_PLACES = {"cli", "engines", "__init__"}  # help without torch; a worker's own libraries; the facade


def _report(offenders: list[str], what: str) -> str:
    return "\n".join([f"{len(offenders)} {what}:", *offenders])


def _every_function(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions; expressions, which are most of a tree, hold none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        if not isinstance(child, ast.expr):
            yield from _every_function(child)


def test_sizes():
    offenders = []
    for folder in ("src", "examples", "tests", "benchmarks", "docs", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if any(part.startswith(".") for part in relative.parts):  # environments of the peers
                continue
            text, tree = parsed(path)
            if (lines := len(text.splitlines())) > LINES_OF_A_FILE:
                offenders.append(f"{relative}: {lines} lines")
            for node in _every_function(tree):
                length = node.end_lineno - node.lineno + 1
                if length > LINES_OF_A_FUNCTION:
                    offenders.append(f"{relative}:{node.lineno}: {node.name} has {length} lines")
    assert not offenders, _report(offenders, "too long")


def test_names_looked_up_by_string():
    offenders = [
        f"{module.at(node)}: {ast.unparse(node)[:80]}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and dotted(node.func) in {"getattr", "hasattr", "setattr"}
    ]
    assert 1000 * len(offenders) / code_lines() <= LOOKUPS, _report(offenders, "names looked up by string")


def test_every_module_opens_with_an_essay():
    offenders = [module.relative for module in modules() if not ast.get_docstring(module.tree)]
    assert not offenders, _report(offenders, "modules without a docstring")


def test_few_imports_in_functions():
    lazy = [(module, entry) for module in modules() for entry in module.imports if entry.in_function]
    listed = [f"{module.at(entry)}: {min(entry.names)}" for module, entry in lazy]
    share = 1000 * len(lazy) / code_lines()
    assert share <= IMPORTS_IN_FUNCTIONS, _report(listed, f"imports in functions, {share:.1f} per 1,000 lines")


def test_imports_in_functions_are_for_the_command_line_engines_and_extras():
    offenders = [
        f"{module.at(entry)}: {min(entry.names)}"
        for module in modules()
        for entry in module.imports
        if entry.in_function
        and module.part not in LAZY_PLACES
        and not packages_of_extras() & {name.split(".")[0] for name in entry.names}
    ]
    assert len(offenders) <= IMPORTS_OUT_OF_PLACE, _report(offenders, "imports in functions that belong on top")


MAPPINGS = {"dict", "Mapping", "MutableMapping", "OrderedDict", "defaultdict"}


def _holds_anything(node: ast.AST) -> bool:
    """``dict[str, Any]`` and its like, wherever in an annotation."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
        return False
    name = ast.unparse(node.value).split(".")[-1]
    return name in MAPPINGS and ast.unparse(node.slice.elts[-1]) in {"Any", "object"}


def _is_alias(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    return isinstance(value, ast.Subscript | ast.BinOp) and any(_holds_anything(part) for part in ast.walk(value))


def _with_quoted(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes, those of annotations in quotes included; imports apart."""
    for node in ast.walk(tree):
        yield node
        quoted = [node.annotation] if isinstance(node, ast.arg | ast.AnnAssign) else []
        quoted += [node.returns] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []
        for annotation in quoted:
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                yield from ast.walk(ast.parse(annotation.value, mode="eval"))


def _aliases(module: Module) -> set[str]:
    """Names at the top of a file that stand for a dictionary of anything."""
    assigned = [node for node in module.tree.body if _is_alias(node)]
    targets = [target for node in assigned for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _uses_of_anything(module: Module, aliases: set[str]) -> Iterator[str]:
    """Every dictionary of anything, and every use of another name for one.

    Args:
        aliases: the other names, with the module that defines each.
    """
    imported = {name for entry in module.imports for name in entry.names} & aliases
    known = {name.rpartition(".")[2] for name in imported} | _aliases(module)
    for node in _with_quoted(module.tree):
        named = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in known
        if named or _holds_anything(node):
            yield f"{module.relative}: {ast.unparse(node)}"


def test_few_dictionaries_of_anything():
    aliases = {f"{module.name}.{name}" for module in modules() for name in _aliases(module)}
    offenders = [use for module in modules() for use in _uses_of_anything(module, aliases)]
    share = 1000 * len(offenders) / code_lines()
    counts = {line: offenders.count(line) for line in sorted(set(offenders))}
    listed = [f"{line} x {count}" for line, count in counts.items()]
    assert share <= DICTS_OF_ANYTHING, _report(listed, f"places with dictionaries of anything, {share:.1f} per 1,000 lines")


def test_the_budgets_would_catch_offenders(monkeypatch):
    text = "from a import Json\ndef f(x: 'dict[str, Any]', y: Json) -> Mapping[str, object]:\n    import torch\n"
    module = Module(ROOT / "src" / "tunesmith" / "x.py", text, ast.parse(text))
    assert len(list(_uses_of_anything(module, {"a.Json", "b.Row"}))) == 3
    assert [entry.in_function for entry in module.imports] == [False, True]


OURS = {"RecipeError", "DataError", "ModelError", "RunError", "TrainingError", "ExportError", "MissingPackage"}


def _functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Public functions and methods; what is nested in a function is nobody's to call."""
    for node in body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body)


def test_public_functions_say_what_they_raise():
    offenders = []
    for module in modules():
        for node in _functions(module.tree.body):
            raised = [part.exc for part in ast.walk(node) if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call)]
            unsaid = {ast.unparse(error.func) for error in raised} & OURS
            if unsaid and "Raises:" not in (ast.get_docstring(node) or ""):
                offenders.append(f"{module.at(node)}: {node.name} raises {', '.join(sorted(unsaid))}")
    assert len(offenders) <= UNSAID_ERRORS, _report(offenders, "public functions without Raises:")
