"""Rules 1, 2 and 4 of the design, by reading the imports and the names in every source file."""

import ast
import re
from pathlib import Path

import pytest

from conftest import ROOT

SOURCE = ROOT / "src" / "tunesmith"
FILES = sorted(SOURCE.rglob("*.py"))
ORDER = [
    {"errors", "hardware", "families"},
    {"recipe"},
    {"rundir"},
    {"tracking"},
    {"kernels"},
    {"layers"},
    {"checkpoints"},
    {"models", "chat"},
    {"engines", "retrieval"},
    {"advise", "data", "train", "evaluate", "export", "parity", "report"},
    {"pipeline"},
    {"cli", "__init__"},
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def _part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path):
    part = _part(path)
    for name in _imports(path):
        if name.startswith("tunesmith."):
            other = name.split(".")[1]
            if other == part:
                continue
            assert other in RANK, f"{path.name} imports {name}, which has no place in the order"
            assert RANK[other] < RANK[part], f"{path.name} ({part}) imports {name}: {other} does not lie below {part}"


def test_order_is_the_one_written_in_init():
    text = (SOURCE / "__init__.py").read_text()
    block = re.search(r"never import each other:\n\n(.*?)\n\n", text, re.DOTALL).group(1)
    written = [set(line.replace("(stages)", "").split()) for line in block.splitlines()]
    assert written == [parts - {"__init__"} for parts in reversed(ORDER)]


def test_chokepoints():
    for path in FILES:
        imported = {name.split(".")[0] for name in _imports(path)}
        relative = str(path.relative_to(SOURCE))
        assert "triton" not in imported or relative.startswith("kernels/triton/"), relative
        assert not {"fastapi", "uvicorn", "starlette"} & imported or relative.startswith(("serve/", "web/")), relative
        assert "torch.distributed" not in path.read_text() or relative == "train/distributed.py", relative


def test_a_familys_name_appears_in_models_templates_and_tests_alone():
    families = re.compile(r"\b(smollm|gemma|qwen|mistral|phi-?3|gpt-?oss|llama)", re.IGNORECASE)
    allowed = {"families.py"}
    for path in FILES:
        relative = str(path.relative_to(SOURCE))
        if relative in allowed:
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            # llama.cpp is an engine, not a family; its architecture key is data of the GGUF format.
            clean = re.sub(r"x?llama[._]?cpp\w*|Llama(FileType|Model|Process)\b", "", line, flags=re.IGNORECASE)
            clean = re.sub(r"llama-(cpp|server|perplexity|quantize|imatrix|quant|adapter|vocab|context)\b", "", clean)
            clean = re.sub(r"ik_llama|\bllama_\w+|\bllama\.h\b|src/models/\w+\.cpp|architecture == \"llama\"", "", clean)
            assert not families.search(clean), f"{relative}:{number}: {line.strip()}"


FORBIDDEN_CALLS = {"exec", "eval", "compile", "__import__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_exec_no_pickle_no_swallowed_errors_no_stray_environment(path):
    relative = str(path.relative_to(SOURCE))
    tree = ast.parse(path.read_text())
    imported = _imports(path)
    assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in imported}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS, f"{relative}:{node.lineno}: {called}"
            assert called not in {"torch.load", "torch.save"}, f"{relative}:{node.lineno}: {called}"
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
            assert not broad, f"{relative}:{node.lineno}: broad except"
            assert not all(isinstance(n, ast.Pass) for n in node.body), f"{relative}:{node.lineno}: swallowed"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv", "os.environb"}:
            assert relative == "hardware.py", f"{relative}:{node.lineno}: reads the environment"
