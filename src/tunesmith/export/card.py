"""The README of a model directory: where it comes from, what was measured, how it is served.

A card is written from the facts of the run alone. A number that was not measured has no line, and a licence that is not known
is not guessed: a page that says "apache-2.0" of weights that are not is worse than none. The front matter is the Hub's
(``base_model``, ``base_model_relation``, ``library_name``, ``license``, ``tags``, ``pipeline_tag``); llama.cpp's converter
reads ``model_name``, ``base_model``, ``license`` and ``tags`` of it into the GGUF, where ``general.name`` would otherwise be
the directory's name, "Merged". The same facts give the same bytes: no date, no path of the machine but those in the commands.

Refused: the Hub's full template with its forty headings. Empty headings say nothing.

Source: Hugging Face "Model cards" (metadata specification), ``gguf/metadata.py`` (``apply_metadata_heuristic``).
"""

import shlex
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import yaml

from tunesmith.export.launch import Commands
from tunesmith.rundir import write_text

NAMES = {
    "vllm": "vLLM",
    "vllm_adapter": "vLLM, adapter on the base",
    "llama_server": "llama.cpp",
    "llama_server_adapter": "llama.cpp, adapter on the base",
    "ollama": "Ollama",
    "ollama_adapter": "Ollama, adapter on the base",
    "lm_studio": "LM Studio",
}


class Facts(TypedDict, total=False):
    """What a card is made of. What is missing has no line.

    Attributes:
        name: of the run.
        relation: what the directory is to the base.
        base_model: hub id or name of the base.
        revision: commit of a hub id.
        license: of the base, as its own card says (``license_of``).
        lora: rank, alpha and so on, as in the recipe.
        training: the manifest's ``training``: steps, best dev loss, trained weights.
        verdict: ``evaluation/verdict.json``.
        files: GGUF type -> ``describe`` of the file (bytes, bits per weight).
        merge: ``export/merge.json``.
        system: the system text that was trained with.
        template_sha256: of the chat template's text.
        stops: texts that end an answer.
        llama_cpp: what llama.cpp computes otherwise than this model, a line each.
        commands: ``launch.commands``, of the forms that this directory belongs to.
    """

    name: Required[str]
    relation: Required[Literal["merge", "adapter"]]
    base_model: Required[str]
    revision: str | None
    license: str | None
    lora: dict[str, Any]
    training: dict[str, Any]
    verdict: dict[str, Any]
    files: dict[str, dict[str, Any]]
    merge: dict[str, Any]
    system: str | None
    template_sha256: str
    stops: list[str]
    llama_cpp: list[str]
    commands: Commands


def write_card(directory: Path, facts: Facts) -> None:
    """Write ``README.md``, whole or not at all.

    Args:
        directory: the merged model's or the adapter's.
        facts: ``name``, ``relation`` and ``base_model`` at least.
    """
    write_text(directory / "README.md", card(facts))


def card(facts: Facts) -> str:
    """The text of a card. A pure function of the facts."""
    sections = [_heading(facts), _measured(facts), _files(facts), _template(facts), _llama_cpp(facts)]
    sections.append(_serving(facts.get("commands", {})))
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def license_of(base: Path) -> str | None:
    """The licence that the base's own card names, or None where it has no card or says nothing."""
    file = base / "README.md"
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return None
    try:
        front = yaml.safe_load(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError:
        return None  # somebody else's page, of which nothing else is wanted
    found = front.get("license") if isinstance(front, dict) else None
    return found if isinstance(found, str) else None


def _front_matter(facts: Facts) -> dict[str, Any]:
    adapter = facts["relation"] == "adapter"
    known = facts.get("license")
    return {
        "model_name": facts["name"],
        "base_model": facts["base_model"],
        "base_model_relation": facts["relation"],
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"license": known} if known else {}),
        "tags": ["tunesmith", "lora", *(["base_model:adapter:" + facts["base_model"]] if adapter else [])],
    }


def _heading(facts: Facts) -> str:
    revision = facts.get("revision")
    at = f" at revision `{revision}`" if revision else ""
    base = f"`{facts['base_model']}`{at}"
    what = f"A LoRA adapter for {base}." if facts["relation"] == "adapter" else f"{base} with a LoRA adapter merged into it."
    return f"# {facts['name']}\n\n{what} Made with tunesmith."


def _measured(facts: Facts) -> str:
    lines = []
    lora = facts.get("lora", {})
    if {"r", "alpha"} <= lora.keys():
        lines.append(f"- LoRA of rank {lora['r']}, alpha {lora['alpha']:g}")
    training = facts.get("training", {})
    if {"steps", "best_step", "best_dev_loss"} <= training.keys():
        loss = f"{training['best_dev_loss']:.4f}"
        lines.append(f"- Dev loss {loss} nats a supervised token, at step {training['best_step']} of {training['steps']}")
    merge = facts.get("merge", {})
    if {"targets", "into", "dtype"} <= merge.keys():
        into = "weights that it was trained on" if merge["into"] == "trained" else "original weights"
        lines.append(f"- Merged into the {into}: {merge['targets']} weights, {merge['dtype']}")
    if merge.get("summary"):
        lines.append(f"- {merge['summary'][:1].upper()}{merge['summary'][1:]}")
    verdict = facts.get("verdict")
    if verdict:
        on = f"on {verdict['n']} test rows, metric `{verdict['metric']}`"
        lines.append(f"- Verdict {on}: **{verdict['verdict']}**. {verdict['reason']}")
        lines += _arms(verdict)
    return "## Measured\n\n" + "\n".join(lines) if lines else ""


def _arms(verdict: dict[str, Any]) -> list[str]:
    rows = ["", "| arm | score | 95 % interval |", "|---|---|---|"]
    rows += [f"| {arm['arm']} | {arm['score']:.4f} | {arm['low']:.4f} to {arm['high']:.4f} |" for arm in verdict["arms"]]
    return rows


def _files(facts: Facts) -> str:
    files = facts.get("files", {})
    if not files:
        return ""
    rows = ["## GGUF files", "", "| type | bytes | bits per weight |", "|---|---|---|"]
    return "\n".join(
        [*rows, *(f"| {kind} | {file['bytes']:,} | {file['bits_per_weight']:.2f} |" for kind, file in files.items())]
    )


def _template(facts: Facts) -> str:
    lines = []
    if "template_sha256" in facts:
        lines.append(f"- Chat template: sha256 `{facts['template_sha256']}`, as trained with")
    if facts.get("stops"):
        lines.append(f"- An answer ends with {', '.join(f'`{stop}`' for stop in facts.get('stops', []))}")
    if facts.get("system"):
        quoted = "\n".join(f"  > {line}" for line in str(facts.get("system")).splitlines())
        lines.append(f"- System text that it was trained with:\n\n{quoted}")
    return "## Prompt\n\n" + "\n".join(lines) if lines else ""


def _llama_cpp(facts: Facts) -> str:
    lines = [f"- {line[:1].upper()}{line[1:]}" for line in facts.get("llama_cpp", [])]
    return "## llama.cpp\n\nllama.cpp computes this model differently:\n\n" + "\n".join(lines) if lines else ""


def _serving(commands: Commands) -> str:
    blocks = []
    for form, command in commands.items():
        argvs = [command] if isinstance(command, list) else list(command.values())
        shown = "\n".join(shlex.join(argv) for argv in argvs)
        blocks.append(f"{NAMES[form]}:\n\n```sh\n{shown}\n```")
    return "## Serve\n\n" + "\n\n".join(blocks) if blocks else ""
