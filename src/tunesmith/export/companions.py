"""The files that lie beside the weights of a model directory: configuration, tokenizer, template.

They are copied as they are, but for what would be wrong of a merged model. The merged weights are dense, so the configuration
says nothing of a quantisation. A multimodal model whose towers were dropped is a text model: its configuration is the text
part of the old one, which names the text class, and the files of image and sound processors stay behind. The chat template is
the one that was trained with: a model that is served with another is asked what it was never taught. And
``generation_config.json`` names every token that ends an answer, the template's end of turn with the tokenizer's
end-of-text: engines stop at these and at no others, and many a base names one of them only.

Two entries are changed so that others read what we read. A base whose configuration ties the head to the embedding, and whose
files hold another head, is saved as one with a head of its own. And a tokenizer of transformers 5 that is called
``TokenizersBackend`` gets its old name, which both 4 and 5 know.

The configuration is changed as JSON. Reading it into transformers and saving it again was refused: 5.23 writes some keys under
another spelling than it reads (``global_head_dim`` becomes ``per_layer_config``), which other engines need not know.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunesmith.checkpoints.hf import has_own_head, read_config
from tunesmith.checkpoints.tokenizer_class import name_tokenizer_class
from tunesmith.errors import ExportError
from tunesmith.export.sizes import SUFFIXES
from tunesmith.families import WRAPPERS
from tunesmith.rundir import write_json

WRITTEN = {"config.json"}
QUANTIZATION = {"quantize_config.json", "quant_config.json", "hf_quant_config.json"}  # of weights that are dense by then
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
PROCESSORS = {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"}
INHERITED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


def copy_companions(
    base: Path,
    directory: Path,
    keep_towers: bool,
    template: str | None = None,
    stops: Iterable[int] | None = None,
    *,
    own_head: bool = False,
) -> None:
    """Copy what belongs to the merged weights from ``base`` to ``directory``, and write ``config.json``.

    Args:
        keep_towers: the merged model stays a multimodal one, if it was.
        template: the chat template that the model was trained with; the base's own when None.
        stops: ids of the tokens that end an answer (``Renderer.stop_ids``); only what the base names when None.
        own_head: the head is a matrix of its own, whatever it was in ``base``.

    Raises:
        ExportError: ``base`` has no readable configuration.
        ModelError: an architecture that is not known.
    """
    try:
        facts: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{base}: the configuration cannot be read: {error}", "is config.json there?") from error
    config = merged_config(facts, keep_towers, bool(read_config(base)[0].tie_word_embeddings))
    if own_head or has_own_head(base):
        config = _untied(config)
    write_json(directory / "config.json", config)
    left = WRITTEN | QUANTIZATION | (PROCESSORS if "text_config" in facts and "text_config" not in config else set())
    for file in base.iterdir():
        if file.suffix in SUFFIXES and file.name not in left and not file.name.endswith(".index.json"):
            shutil.copy(file, directory / file.name)
    name_tokenizer_class(directory)
    if template is not None:
        _put_template(directory, template)
    if stops is not None:
        generation = directory / "generation_config.json"
        settings = _json(generation) if generation.exists() else {}
        write_json(generation, settings | {"eos_token_id": stop_ids(base, stops)})


def stop_ids(base: Path, taught: Iterable[int]) -> list[int]:
    """Ids of every token that ends an answer: those that the base's ``generation_config.json`` names, then the others.

    Args:
        taught: those that training ended answers with, and the tokenizer's end-of-text (``Renderer.stop_ids``).

    Raises:
        ExportError: the base's file cannot be read.
    """
    generation = base / "generation_config.json"
    named = _json(generation).get("eos_token_id") if generation.exists() else None
    return list(dict.fromkeys([*(named if isinstance(named, list) else [] if named is None else [named]), *taught]))


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read: {error}", "is it a whole JSON file?") from error


def merged_config(facts: dict[str, Any], keep_towers: bool, tied: bool) -> dict[str, Any]:
    """The configuration of the merged model. A pure function.

    Args:
        facts: ``config.json`` of the base.
        keep_towers: it stays a multimodal one, if it was.
        tied: whether the head is the embedding; of a multimodal model the outer configuration decides that.
    """
    wrapper = WRAPPERS.get(str(facts.get("model_type")))
    config = {key: value for key, value in facts.items() if key not in QUANTIZATION_KEYS}
    if keep_towers or wrapper is None:
        return config
    text = {key: config[key] for key in INHERITED if key in config} | dict(config["text_config"])
    text = {key: value for key, value in text.items() if key not in (*QUANTIZATION_KEYS, "architectures")}
    text.setdefault("model_type", wrapper.family)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text["model_type"]]
    return {"architectures": [architecture]} | text | {"tie_word_embeddings": tied}


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    """Say that the head is a matrix of its own: engines that obey the flag would leave it out."""
    text = config.get("text_config")
    inner = {} if text is None else {"text_config": text | {"tie_word_embeddings": False}}
    return config | inner | {"tie_word_embeddings": False}


def _put_template(directory: Path, template: str) -> None:
    """Leave one chat template in the directory, whatever places the base had for its own."""
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
    (directory / "chat_template.json").unlink(missing_ok=True)
    tokenizer = directory / "tokenizer_config.json"
    if tokenizer.exists():
        facts = json.loads(tokenizer.read_text(encoding="utf-8"))
        write_json(tokenizer, {key: value for key, value in facts.items() if key != "chat_template"})
