"""Shape suffixes: a legend in every file that has them, and one meaning for each letter of CONTRIBUTING's table.

``x_TD`` is T tokens by D hidden size. A legend is the paragraph of a module's docstring that begins with ``Shape suffixes``.
What follows ``here:`` in it are the file's own letters; in kernels/ and layers/ those are no letters of the table, and of no
other file.
"""

import ast
import re
from collections import defaultdict

from source_tree import Module, modules

from shared import ROOT

SUFFIX = re.compile(r"^[A-Za-z0-9_]*[a-z][A-Za-z0-9_]*_(?=[a-z]*[A-Z1])([A-Z1bn]{1,5})_?$")
MATRIX = re.compile(r"^[A-Z]_([A-Z1bn]{1,5})_?$")  # a variable whose name is one letter
NO_SHAPES = {"lora_A", "lora_B"}  # PEFT's names
OFFENDERS = 0


def _table() -> dict[str, str]:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Shape letters")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `?(\w)`? \| ([^|]+?) \|", section, re.MULTILINE))


def _used(module: Module) -> set[str]:
    letters: set[str] = set()
    for node in ast.walk(module.tree):
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else None
        name = node.attr if isinstance(node, ast.Attribute) else name
        match = None if name is None or name in NO_SHAPES else SUFFIX.match(name)
        match = match or (MATRIX.match(name) if isinstance(node, ast.Name) else None)
        letters |= set(match.group(1)) - {"1"} if match else set()
    return letters


def _legend(module: Module) -> tuple[dict[str, str], dict[str, str]] | None:
    """Meanings of the table's letters, and of the file's own."""
    text = ast.get_docstring(module.tree) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.startswith("Shape suffixes")]
    if not paragraphs:
        return None
    paragraph = re.sub(r" \(.*?\)", "", paragraphs[0])
    shared, _, local = paragraph.removeprefix("Shape suffixes").rstrip(".").partition("here:")
    return tuple(dict(re.findall(r"(?:^|, )([A-Za-z]) ([^,;]+?)(?=,|;|$)", part.strip("; :"))) for part in (shared, local))


def _offences(module: Module, table: dict[str, str]) -> list[str]:
    used, legend = _used(module), _legend(module)
    if legend is None:
        return [f"{module.relative}: no legend for {''.join(sorted(used))}"] if used else []
    shared, local = legend
    offences = [f"{module.relative}: legend lacks {letter}" for letter in sorted(used - set(shared) - set(local))]
    offences += [
        f"{module.relative}: nothing has {letter}"
        for letter in sorted((set(shared) | set(local)) - used)
        if len(re.findall(rf"\b{letter}\b", module.text)) < 2  # in a docstring's shapes, in another letter's meaning
    ]
    for letter, meaning in shared.items():
        if not meaning.startswith(table.get(letter, "\0")):
            offences.append(f"{module.relative}: {letter} is {meaning!r}, in the table {table.get(letter)!r}")
    if module.part in {"kernels", "layers"}:
        offences += [f"{module.relative}: {letter} has a meaning in the table" for letter in sorted(set(local) & set(table))]
    return offences


def test_every_suffix_has_a_legend_and_every_letter_one_meaning():
    table = _table()
    offenders = [line for module in modules() for line in _offences(module, table)]
    own = defaultdict(set)
    for module in modules():
        legend = _legend(module)
        if module.part in {"kernels", "layers"} and legend:
            for letter, meaning in legend[1].items():
                own[letter].add(meaning)
    offenders += [f"kernels/, layers/: {letter} is {sorted(m)}" for letter, m in own.items() if len(m) > 1]
    assert len(offenders) <= OFFENDERS, "\n".join([f"{len(offenders)} offences:", *offenders])


def test_the_rule_would_catch_offenders():
    text = '"""A module.\n\nShape suffixes: T heads; here: Q quanta, W waste.\n"""\nx_TQ = y_TZ\n'
    module = Module(ROOT / "src" / "tunesmith" / "kernels" / "x.py", text, ast.parse(text))
    assert len(_offences(module, {"T": "tokens", "Q": "NF4 blocks"})) == 4
