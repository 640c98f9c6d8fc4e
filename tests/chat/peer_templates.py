"""Writes the Jinja templates that two peers' packages carry into a JSON file: ``make assets/peer_templates.json`` runs it.

    python tests/chat/peer_templates.py FOLDER_OF_WHEELS OUT

Axolotl has them as files, Unsloth as texts in a module. LLaMA-Factory and ms-swift describe theirs in code of their own, so
there is no template to take. None is kept in this repository.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path


def of_axolotl(wheel: zipfile.ZipFile) -> dict[str, str]:
    """Name and text of each file."""
    return {Path(name).stem: wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".jinja")}


def of_unsloth(wheel: zipfile.ZipFile) -> dict[str, str]:
    """Name and text of each template that its module assigns; those for Ollama are in another language."""
    found = {}
    for node in ast.parse(wheel.read("unsloth/chat_templates.py")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.targets[0], ast.Name):
            name, text = node.targets[0].id, node.value.value
            if isinstance(text, str) and name.endswith("_template") and "ollama" not in name:
                found[name.removesuffix("_template")] = text
    return found


def main() -> None:
    """Read the wheels, write the file."""
    folder, out = map(Path, sys.argv[1:])
    found = {}
    for package, take in (("axolotl", of_axolotl), ("unsloth", of_unsloth)):
        (wheel,) = folder.glob(f"{package}-*.whl")
        with zipfile.ZipFile(wheel) as opened:
            found[package] = take(opened)
        assert len(found[package]) > 20, f"{wheel}: only {sorted(found[package])}"
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
