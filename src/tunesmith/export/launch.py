"""The commands that serve what was exported, each as the list of its arguments.

A command that is copied from a page is where a name with a space, a rank above vLLM's default of 16 or a forgotten
``--enable-lora`` turns into a server that answers with the base model. So the commands are made from the facts of the run, as
lists that ``shlex.join`` prints and a program can start as they are. vLLM names the request's model after the adapter; the
same name is given to every other form, so that a client need not know which it talks to.

vLLM and LM Studio take the chat template from the model they are given. For an adapter that is the base's, which may not be
the one that was trained with, so its file is named. llama-server is told to run the GGUF's own (``--jinja``). LM Studio
moves an imported file unless it is told to copy; ``--copy`` leaves the run as it is.

Refused: one shell line a form. It breaks on the first path that holds a space.

Sources: vLLM ``entrypoints/openai/models/protocol.py`` (``LoRAModulePath``), ``config/lora.py`` (``MaxLoRARanks``); llama.cpp
``tools/server/README.md``; docs.ollama.com (CLI); lmstudio.ai/docs (``lms import``); GGUF's specification for the keys.
"""

import json
from pathlib import Path
from typing import Required, TypedDict

from gguf import GGUFReader

from tunesmith.errors import ExportError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allocates for; any other value is refused by it

Commands = dict[str, list[str] | dict[str, list[str]]]


class Facts(TypedDict, total=False):
    """What the commands are made of. Paths are written as the user is to type them; a form whose file is missing has none.

    Attributes:
        name: model name in requests.
        num_ctx: tokens of context.
        merged: the merged Hugging Face directory.
        gguf: the deployed GGUF.
        modelfile: Modelfile of that GGUF.
        base: directory or hub id of the base model, where vLLM can apply the adapter.
        revision: commit of a hub id.
        rank: of the adapter.
        adapter: PEFT directory in the form that vLLM applies.
        template: the Jinja file that was trained with.
        base_gguf: GGUF of the base.
        lora_gguf: GGUF of the adapter.
        adapter_modelfile: Modelfile of those two.
    """

    name: Required[str]
    num_ctx: Required[int]
    merged: str
    gguf: str
    modelfile: str
    base: str
    revision: str | None
    rank: int
    adapter: str
    template: str
    base_gguf: str
    lora_gguf: str
    adapter_modelfile: str


def commands(facts: Facts) -> Commands:
    """The commands of every form that there is, by form. A pure function.

    Returns:
        ``vllm``, ``vllm_adapter``, ``llama_server``, ``llama_server_adapter``, ``lm_studio``: the arguments; ``ollama``,
        ``ollama_adapter``: those of ``create`` and of ``run``.

    Raises:
        ExportError: a rank that vLLM does not take.
    """
    name, context = facts["name"], str(facts["num_ctx"])
    made: Commands = {}
    if "merged" in facts:
        made["vllm"] = ["vllm", "serve", facts["merged"], "--served-model-name", name, "--max-model-len", context]
    if "base" in facts and "adapter" in facts and "rank" in facts:
        made["vllm_adapter"] = _vllm_adapter(facts, facts["base"], facts["adapter"], facts["rank"])
    served = ["--alias", name, "--ctx-size", context, "--jinja"]
    if "gguf" in facts:
        made["llama_server"] = ["llama-server", "--model", facts["gguf"], *served]
        made["lm_studio"] = ["lms", "import", facts["gguf"], "--copy", "--yes", "--user-repo", f"tunesmith/{name}"]
    if "base_gguf" in facts and "lora_gguf" in facts:
        made["llama_server_adapter"] = [
            "llama-server",
            *("--model", facts["base_gguf"], "--lora", facts["lora_gguf"]),
            *served,
            *(["--chat-template-file", facts["template"]] if "template" in facts else []),
        ]
    if "modelfile" in facts:
        made["ollama"] = _ollama(name, facts["modelfile"])
    if "adapter_modelfile" in facts:
        made["ollama_adapter"] = _ollama(f"{name}-adapter", facts["adapter_modelfile"])
    return made


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM can be told to make room for and that holds this one.

    Raises:
        ExportError: above the largest.
    """
    for allowed in RANKS:
        if rank <= allowed:
            return allowed
    raise ExportError(f"rank {rank}, vLLM takes {RANKS[-1]} at most", "serve the merged model")


def missing_metadata(path: Path) -> list[str]:
    """Keys that LM Studio and other readers show or run by, and that a GGUF lacks or leaves empty.

    Args:
        path: a GGUF of a model, not of an adapter.

    Returns:
        Names of the keys, in a fixed order; empty for a complete file.
    """
    reader = GGUFReader(path)
    found = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = found["general.architecture"].contents() if "general.architecture" in found else "*"
    wanted = [
        "general.architecture",
        "general.name",
        "general.file_type",
        *(f"{architecture}.{key}" for key in ("context_length", "embedding_length", "block_count")),
        *(f"tokenizer.ggml.{key}" for key in ("model", "tokens", "eos_token_id")),
        "tokenizer.chat_template",
    ]
    return [key for key in wanted if key not in found or found[key].contents() in ("", [])]


def _vllm_adapter(facts: Facts, base: str, adapter: str, rank: int) -> list[str]:
    revision = facts.get("revision")
    module = {"name": facts["name"], "path": adapter, "base_model_name": base}
    return [
        *("vllm", "serve", base),
        *(["--revision", revision] if revision else []),
        *("--enable-lora", "--max-lora-rank", str(max_lora_rank(rank))),
        *("--lora-modules", json.dumps(module, ensure_ascii=False)),
        *("--max-model-len", str(facts["num_ctx"])),
        *(["--chat-template", facts["template"]] if "template" in facts else []),
    ]


def _ollama(name: str, modelfile: str) -> dict[str, list[str]]:
    # Ollama's names are of lower case letters, digits, dots, dashes and underscores; a recipe's name has capitals at most.
    return {"create": ["ollama", "create", name.lower(), "-f", modelfile], "run": ["ollama", "run", name.lower()]}
