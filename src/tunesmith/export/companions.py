"""The files that lie beside the weights of a model directory: configuration, tokenizer, template.

They are copied as they are, but for what would be wrong of a merged model. The merged weights are dense, so the configuration
says nothing of a quantisation. A multimodal model whose towers were dropped is a text model: its configuration is the text
part of the old one, which names the text class, and the files of image and sound processors stay behind. The chat template is
the one that was trained with: a model that is served with another is asked what it was never taught.

The configuration is changed as JSON. Reading it into transformers and saving it again was refused: 5.23 writes some keys under
another spelling than it reads (``global_head_dim`` becomes ``per_layer_config``), which other engines need not know.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunesmith.errors import ExportError
from tunesmith.models.checkpoint import read_config
from tunesmith.models.families import WRAPPERS
from tunesmith.rundir import write_json

SUFFIXES = {".json", ".jinja", ".model", ".txt"}
WRITTEN = {"config.json", "model.safetensors.index.json"}
PROCESSORS = {"processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"}
INHERITED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id")


def copy_companions(base: Path, directory: Path, keep_towers: bool, template: str | None = None) -> None:
    """Copy what belongs to the merged weights from ``base`` to ``directory``, and write ``config.json``.

    Args:
        keep_towers: the merged model stays a multimodal one, if it was.
        template: the chat template that the model was trained with; the base's own when None.

    Raises:
        ExportError: ``base`` has no readable configuration.
        ModelError: an architecture that is not known.
    """
    try:
        facts: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{base}: the configuration cannot be read: {error}", "is config.json there?") from error
    config = merged_config(facts, keep_towers, bool(read_config(base)[0].tie_word_embeddings))
    write_json(directory / "config.json", config)
    left = WRITTEN | (PROCESSORS if "text_config" in facts and "text_config" not in config else set())
    for file in base.iterdir():
        if file.suffix in SUFFIXES and file.name not in left and not file.name.endswith(".safetensors.index.json"):
            shutil.copy(file, directory / file.name)
    if template is not None:
        _put_template(directory, template)


def merged_config(facts: dict[str, Any], keep_towers: bool, tied: bool) -> dict[str, Any]:
    """The configuration of the merged model. A pure function.

    Args:
        facts: ``config.json`` of the base.
        keep_towers: it stays a multimodal one, if it was.
        tied: whether the head is the embedding; of a multimodal model the outer configuration decides that.
    """
    wrapper = WRAPPERS.get(str(facts.get("model_type")))
    config = {key: value for key, value in facts.items() if key != "quantization_config"}
    if keep_towers or wrapper is None:
        return config
    text = {key: config[key] for key in INHERITED if key in config} | dict(config["text_config"])
    text = {key: value for key, value in text.items() if key not in ("quantization_config", "architectures")}
    text.setdefault("model_type", wrapper.family)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text["model_type"]]
    return {"architectures": [architecture]} | text | {"tie_word_embeddings": tied}


def _put_template(directory: Path, template: str) -> None:
    """Leave one chat template in the directory, whatever places the base had for its own."""
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    (directory / "chat_template.json").unlink(missing_ok=True)
    tokenizer = directory / "tokenizer_config.json"
    if tokenizer.exists():
        facts = json.loads(tokenizer.read_text(encoding="utf-8"))
        write_json(tokenizer, {key: value for key, value in facts.items() if key != "chat_template"})
