"""Rules 1, 2 and 4 of the design, by reading the imports and the names in every source file. A test lists every offender."""

import ast
import re

from source_tree import Module, dotted, modules, order

from shared import ROOT

RANK = {part: rank for rank, parts in enumerate(reversed(order())) for part in parts} | {"__init__": len(order())}
CYCLES = 0


def _top(module: Module) -> set[str]:
    """The packages that a file imports."""
    return {name.split(".")[0] for entry in module.imports for name in entry.names}


def test_imports_go_down_only():
    """Rooms of one line have one rank, so stages never import each other either."""
    offenders = []
    for module in modules():
        if module.part not in RANK:
            offenders.append(f"{module.relative}: {module.part} has no place in the order of src/tunesmith/__init__.py")
            continue
        for entry in module.imports:
            for name in sorted(entry.names):
                if name.startswith("."):
                    offenders.append(f"{module.at(entry)}: a relative import")
                elif name.startswith("tunesmith."):
                    other = name.split(".")[1]
                    rank = RANK.get(other)
                    if other != module.part and rank is not None and rank >= RANK[module.part]:
                        offenders.append(f"{module.at(entry)}: {other} does not lie below {module.part}")
    assert not offenders, "\n".join(offenders)


def test_every_room_of_the_order_is_there():
    rooms = {module.part for module in modules()} - {"__init__"}
    assert rooms == set(RANK) - {"__init__"}


def _cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected parts of more than one module: those that reach each other."""

    def reach(start: str) -> set[str]:
        reached, stack = set(), [start]
        while stack:
            for name in graph[stack.pop()] - reached:
                reached.add(name)
                stack.append(name)
        return reached

    reaches = {name: reach(name) for name in graph}
    parts = {frozenset({other for other in reaches[name] if name in reaches[other]}) for name in graph}
    return sorted(sorted(part) for part in parts if part)


def test_no_import_cycles():
    """Imports in functions count; those for annotations alone do not run, and do not."""
    names = {module.name for module in modules()}
    graph: dict[str, set[str]] = {}
    for module in modules():
        graph[module.name] = set()
        for entry in module.imports:
            if entry.for_types:
                continue
            inside = entry.names & names
            # ``from a.b import c`` with c a module is an import of a.b.c; a.b runs before it, as every package's parent does.
            graph[module.name] |= {name for name in inside if not any(other.startswith(f"{name}.") for other in inside)}
    cycles = _cycles(graph)
    assert len(cycles) <= CYCLES, "\n".join(" <-> ".join(cycle) for cycle in cycles)


def test_chokepoints():
    offenders = []
    for module in modules():
        relative, imported = module.relative, _top(module)
        if "triton" in imported and not relative.startswith("kernels/triton/"):
            offenders.append(f"{relative}: triton")
        if {"fastapi", "uvicorn", "starlette"} & imported and not relative.startswith(("serve/", "web/")):
            offenders.append(f"{relative}: the web framework")
        if "torch.distributed" in module.text and relative != "launch/group.py":
            offenders.append(f"{relative}: torch.distributed")
    assert not offenders, "\n".join(offenders)


def test_a_familys_name_appears_in_models_templates_and_tests_alone():
    families = re.compile(r"\b(smollm|gemma|qwen|mistral|phi-?3|gpt-?oss|llama)", re.IGNORECASE)
    offenders = []
    for module in modules():
        if module.relative == "families.py":
            continue
        for number, line in enumerate(module.text.splitlines(), start=1):
            if not families.search(line):
                continue
            # llama.cpp is an engine and LLaMA-Factory a tool, not a family; an architecture key is data of the GGUF format.
            clean = re.sub(r"x?llama[._]?cpp\w*|Llama(FileType|Model|Process)\b|llama-factory", "", line, flags=re.IGNORECASE)
            clean = re.sub(r"llama-(cpp|server|perplexity|quantize|imatrix|quant|adapter|vocab|context)\b", "", clean)
            clean = re.sub(r"ik_llama|\bllama_\w+|\bllama\.h\b|src/models/\w+\.cpp|architecture == \"llama\"", "", clean)
            clean = re.sub(r"llama-factory", "", clean, flags=re.IGNORECASE)  # a trainer
            if families.search(clean):
                offenders.append(f"{module.relative}:{number}: {line.strip()}")
    assert not offenders, "\n".join(offenders)


FORBIDDEN_CALLS = {"exec", "eval", "compile", "__import__", "torch.load", "torch.save"}
PICKLES = {"pickle", "dill", "joblib", "shelve", "marshal"}


def _forbidden(module: Module) -> list[str]:
    offenders = [f"{module.relative}: imports {name}" for name in PICKLES & _top(module)]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in FORBIDDEN_CALLS:
            offenders.append(f"{module.at(node)}: {ast.unparse(node.func)}")
        if isinstance(node, ast.ExceptHandler):
            if node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}:
                offenders.append(f"{module.at(node)}: broad except")
            if all(isinstance(statement, ast.Pass) for statement in node.body):
                offenders.append(f"{module.at(node)}: swallowed error")
        variables = isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.getenv", "os.environb"}
        if variables and module.relative != "hardware.py":
            offenders.append(f"{module.at(node)}: reads the environment")
    return offenders


def test_no_exec_no_pickle_no_swallowed_errors_no_stray_environment():
    offenders = [line for module in modules() for line in _forbidden(module)]
    assert not offenders, "\n".join(offenders)


def test_the_rules_would_catch_offenders():
    text = "import os, pickle\ntry:\n    eval('1')\nexcept Exception:\n    pass\nos.environ['A']\n"
    module = Module(ROOT / "src" / "tunesmith" / "x.py", text, ast.parse(text))
    assert len(_forbidden(module)) == 5
    assert _cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
