"""Rules on how torch is used: what a cache keeps, and which keywords the oldest torch that we allow knows."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator

from source_tree import Module, dotted, modules
from torch_signatures import RELEASE, TABLE, calls

from shared import ROOT

CACHES = {"cache", "lru_cache", "cached_property"}
NO_INFERENCE = "torch.inference_mode(False)"


def _name(node: ast.expr) -> str:
    """``f`` of ``f``, ``a.f``, ``f(...)`` and ``f(...)(...)``."""
    while isinstance(node, ast.Call):
        node = node.func
    return ast.unparse(node).rpartition(".")[2]


def _kept(module: Module) -> Iterator[ast.FunctionDef]:
    """Functions whose results a cache keeps: decorated, or wrapped by name."""
    wrapped = {
        _name(call.args[0])
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call) and _name(call) in CACHES and len(call.args) == 1
        if isinstance(call.args[0], ast.Name | ast.Attribute)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef) and (node.name in wrapped or CACHES & set(map(_name, node.decorator_list))):
            yield node


def _makes_tensors(node: ast.FunctionDef) -> bool:
    """Its result says so, or torch is called in it."""
    if node.returns is not None and "Tensor" in ast.unparse(node.returns):
        return True
    calls = [dotted(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
    return any(call.startswith("torch.") and not call.startswith(("torch.cuda.", "torch.device")) for call in calls)


def _is_guarded(node: ast.FunctionDef) -> bool:
    if NO_INFERENCE in map(ast.unparse, node.decorator_list):
        return True
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return len(body) == 1 and isinstance(body[0], ast.With) and ast.unparse(body[0].items[0]) == NO_INFERENCE


def test_no_cache_keeps_a_tensor_of_inference():
    """One that an evaluation has filled is met in training, where autograd refuses it: "Inference tensors cannot be saved"."""
    kept = [(module, node) for module in modules() for node in _kept(module) if _makes_tensors(node)]
    assert len(kept) > 5, "the search finds nothing"
    offenders = [f"{module.at(node)}: {node.name} without {NO_INFERENCE}" for module, node in kept if not _is_guarded(node)]
    assert not offenders, "\n".join(offenders)


def test_the_oldest_torch_that_is_allowed_knows_what_is_called():
    """The machine of the tests has a newer one, which says nothing; a keyword that came later is a TypeError elsewhere."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    (bound,) = [requirement for requirement in extras if requirement.startswith("torch")]
    assert re.fullmatch(rf"torch>={re.escape(RELEASE)}(,.*)?", bound), f"{TABLE.name} is of {RELEASE}: write it anew"
    known = json.loads(TABLE.read_text())
    offenders = []
    for module in modules():
        for name, keywords, line in calls(module):
            if name not in known:
                offenders.append(
                    f"{module.relative}:{line}: {name} is not in {TABLE.name}; torch_signatures.py says how it is written"
                )
            elif "**" not in known[name] and (later := keywords - set(known[name])):
                offenders.append(f"{module.relative}:{line}: torch {RELEASE} has no {', '.join(sorted(later))} in {name}")
    assert not offenders, "\n".join(offenders)


def test_the_table_is_of_the_release_and_not_of_what_is_installed():
    """varlen_attn has had enable_gqa since 2.12."""
    known = json.loads(TABLE.read_text())["torch.nn.attention.varlen.varlen_attn"]
    assert "window_size" in known and "enable_gqa" not in known
