"""What functions of torch are called in the package, and which keywords the oldest torch that we allow knows of each.

    python -m pip download --no-deps --platform macosx_11_0_arm64 --python-version 3.11 --only-binary :all: torch==2.11.0
    python -m zipfile -e torch-2.11.0-*.whl UNPACKED
    PYTHONPATH=tests:tests/rules python tests/rules/torch_signatures.py UNPACKED    # writes torch_signatures.json

The smallest wheel of a release is that for macOS, and the Python files and stubs in it are those of all. Methods of tensors
are not looked at, since an AST does not say whose method it is, nor are operators under ``torch.ops``, which have no stub.
"""

import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from source_tree import Module, dotted, modules

TABLE = Path(__file__).with_suffix(".json")
RELEASE = "2.11"
FIRST = {  # where names of a package come from, before all files below it
    "torch": ("torch/_C/_VariableFunctions.pyi", "torch/_C/__init__.pyi"),
    "torch.distributed": ("torch/distributed/distributed_c10d.py",),
    "torch._C._distributed_c10d": ("torch/_C/_distributed_c10d.pyi",),
}
NOT_LOOKED_AT = ("torch.ops.", "torch.Tensor.", "torch.nn.Module.")


def calls(module: Module) -> list[tuple[str, set[str], int]]:
    """Full name, keywords and line of each call of a function of torch."""
    home: dict[str, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            home |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            torches = [alias for alias in node.names if alias.name.partition(".")[0] == "torch"]
            home |= {alias.asname or "torch": alias.name if alias.asname else "torch" for alias in torches}
    found = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = dotted(node.func).partition(".")
        name = home.get(first, "") + dot + rest
        if name.startswith("torch.") and name.replace(".", "").isidentifier() and not name.startswith(NOT_LOOKED_AT):
            found.append((name, {keyword.arg for keyword in node.keywords if keyword.arg}, node.lineno))
    return found


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Names of a function's parameters, or of a class's constructor; ``**`` where it takes any."""
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__new__")]
        return set.union({"**"} if not made else set(), *map(_parameters, made))
    arguments = node.args
    names = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return names - {"self", "cls"} | ({"**"} if arguments.kwarg else set())


def _known(unpacked: Path, names: set[str]) -> dict[str, list[str]]:
    """The keywords of each name, by stubs, by files below the name's package, or by the first line of a docstring."""
    found: dict[str, set[str]] = defaultdict(set)
    trees: dict[Path, ast.Module] = {}
    for name in sorted(names):
        package, _, leaf = name.rpartition(".")
        folder = unpacked / package.replace(".", "/")
        files = [unpacked / file for file in FIRST.get(package, ())]
        files += [folder.with_suffix(".py")] if folder.with_suffix(".py").exists() else sorted(folder.rglob("*.py"))
        for file in files:
            text = file.read_text()
            if not re.search(rf"\b(def|class) {re.escape(leaf)}\b|\b{re.escape(leaf)}\(", text):
                continue
            tree = trees.setdefault(file, ast.parse(text))
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == leaf:
                    found[name] |= _parameters(node)
            if name not in found and (line := re.search(rf'r?"""\n?\s*(?:\w+\.)*{re.escape(leaf)}\(([^)]*)\) ->', text)):
                found[name] |= set(re.findall(r"([A-Za-z]\w*)(?:=|,|$)", line[1])) - {"None", "True", "False"}
            if found.get(name):
                break
    return {name: sorted(found[name]) for name in sorted(found)}


def main() -> None:
    """Write the table, and say what was not found."""
    names = {name for module in modules() for name, _, _ in calls(module)} | {"torch.nn.attention.varlen.varlen_attn"}
    known = _known(Path(sys.argv[1]), names)
    print(f"not found: {', '.join(sorted(names - set(known)))}")
    lines = [f"  {json.dumps(name)}: {json.dumps(keywords)}" for name, keywords in known.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
