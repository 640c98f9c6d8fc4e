"""The README of a model directory: where it comes from, what was measured, how it is served.

A card is written from the facts of the run alone. A number that was not measured has no line, and a licence that is not known
is not guessed: a page that says "apache-2.0" of weights that are not is worse than none. The front matter is the Hub's
(``base_model``, ``base_model_relation``, ``library_name``, ``license``, ``tags``, ``pipeline_tag``); llama.cpp's converter
reads ``model_name``, ``base_model``, ``license`` and ``tags`` of it into the GGUF, where ``general.name`` would otherwise be
the directory's name, "Merged". The same facts give the same bytes: no date, no path of the machine but those of a base that
lies on it. The card of the merged model is written twice: before the conversion, which takes the name from it, and at the end,
when sizes and commands are known. No card has a verdict: it is found later, by running what is exported here.

Refused: the Hub's full template with its forty headings. Empty headings say nothing.

Source: Hugging Face "Model cards" (metadata specification), ``gguf/metadata.py`` (``apply_metadata_heuristic``).
"""

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import ModelCardData

from tunesmith.checkpoints.positions import positions_words
from tunesmith.export.companions import stop_ids
from tunesmith.export.forms.form import Job
from tunesmith.export.names import gguf_name
from tunesmith.export.ollama.modelfile import stop_texts
from tunesmith.recipe import Lora
from tunesmith.recipe.yaml_text import parse_yaml
from tunesmith.rundir import sha256_file, write_text
from tunesmith.rundir.records.export import Command, Commands, GgufFile, Merge


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is made of. What is not known has no line.

    Attributes:
        name: of the run.
        relation: what the directory is to the base.
        base_model: hub id or name of the base.
        revision: commit of a hub id.
        positions: numbers that the base has in the place of its own (``positions_words``); None where it is as published.
        license: of the base, as its own card says (``license_of``).
        lora: rank and alpha of the adapter.
        dev_loss: of the adapter that was kept, nats a supervised token.
        best_step, steps: of the training.
        files: GGUF files by type.
        merge: what was merged into what.
        system: the system text that was trained with.
        template_sha256: of the chat template's text.
        stops: texts that end an answer.
        differs: what llama.cpp computes otherwise than this model, a line each.
        commands: of the forms that this directory belongs to, typed in the run directory.
    """

    name: str
    relation: Literal["merge", "adapter"]
    base_model: str
    revision: str | None = None
    positions: str | None = None
    license: str | None = None
    lora: Lora | None = None
    dev_loss: float | None = None
    best_step: int | None = None
    steps: int | None = None
    files: Mapping[str, GgufFile] = field(default_factory=dict)
    merge: Merge | None = None
    system: str | None = None
    template_sha256: str | None = None
    stops: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    commands: Mapping[str, Command] = field(default_factory=dict)


def card_of(job: Job, merge: Merge | None) -> Card:
    """The card of a job's merged model, with what is known so far."""
    recipe = job.recipe
    files = {kind: job.result(gguf_name(job.name, kind), GgufFile) for kind in recipe.export.gguf}
    return Card(
        name=job.name,
        relation="merge",
        base_model=recipe.model if job.is_on_hub else Path(recipe.model).name,
        revision=recipe.revision,
        positions=None if recipe.max_position_embeddings is None else positions_words(job.base),
        license=license_of(job.base),
        lora=job.lora,
        dev_loss=job.adapter_loss,
        best_step=job.best_step,
        steps=job.steps,
        files={kind: file for kind, file in files.items() if file is not None},
        merge=merge,
        system=recipe.task.short_prompt,
        template_sha256=sha256_file(job.staged / "merged" / "chat_template.jinja"),
        stops=tuple(stop_texts(job.renderer.tokenizer, stop_ids(job.base, job.renderer.stop_ids))),
        differs=job.differs,
    )


def write_cards(job: Job) -> None:
    """Write the cards of the merged model and of the run's own adapter, once everything else lies there."""
    commands = job.result("commands.json", Commands)
    shown = {} if commands is None else commands.commands
    whole = card_of(job, job.result("merge.json", Merge))
    ours = {name: command for name, command in shown.items() if command.of == "merge"}
    write_card(job.staged / "merged", dataclasses.replace(whole, commands=ours))
    if job.lora is None or job.adapter != job.run.adapter:  # one of several that were brought lies as it came
        return
    others = {name: command for name, command in shown.items() if command.of == "adapter"}
    adapter = dataclasses.replace(whole, relation="adapter", commands=others, files={}, merge=None)
    if "llama_server_adapter" not in others:
        adapter = dataclasses.replace(adapter, differs=())
    write_card(job.adapter, adapter)


def write_card(directory: Path, card: Card) -> None:
    """Write ``README.md``, whole or not at all.

    Args:
        directory: the merged model's or the adapter's.
    """
    write_text(directory / "README.md", card_text(card))


def card_text(card: Card) -> str:
    """The text of a card. A pure function of the facts."""
    sections = [_heading(card), _measured(card), _files(card), _template(card), _llama_cpp(card), _serving(card)]
    front = _front_matter(card).to_yaml()
    return f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def license_of(base: Path) -> str | None:
    """The licence that the base's own card names, or None where it has no card or says nothing."""
    file = base / "README.md"
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return None
    try:
        front = parse_yaml(text[4 : text.index("\n---", 4)])
    except yaml.YAMLError:
        return None  # somebody else's page, of which nothing else is wanted
    name = front.get("license") if isinstance(front, dict) else None
    return name if isinstance(name, str) else None


def _front_matter(card: Card) -> ModelCardData:
    adapter = card.relation == "adapter"
    return ModelCardData(
        model_name=card.name,
        base_model=card.base_model,
        base_model_relation=card.relation,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        license=card.license,
        tags=[
            "tunesmith",
            *(["lora"] if card.lora is not None else []),
            *(["base_model:adapter:" + card.base_model] if adapter else []),
        ],
    )


def _heading(card: Card) -> str:
    at = f" at revision `{card.revision}`" if card.revision else ""
    base = f"`{card.base_model}`{at}"
    made = "Made with tunesmith."
    if card.relation == "adapter":
        what = f"A LoRA adapter for {base}."
    elif card.lora is not None:
        what = f"{base} with a LoRA adapter merged into it."
    else:
        what, made = f"A model that was tuned from {base}.", "Brought to tunesmith as it is."
    changed = f" The base had {card.positions} in its configuration, and nothing else serves what was trained."
    return f"# {card.name}\n\n{what}{changed if card.positions else ''} {made}"


def _measured(card: Card) -> str:
    lines = []
    if card.lora is not None:
        lines.append(f"- LoRA of rank {card.lora.r}, alpha {card.lora.alpha:g}")
    if card.dev_loss is not None:
        at = f", at step {card.best_step} of {card.steps}" if card.best_step is not None else ""
        lines.append(f"- Dev loss {card.dev_loss:.4f} nats a supervised token{at}")
    if card.merge is not None and card.merge.targets:
        into = "weights that it was trained on" if card.merge.into == "trained" else "original weights"
        lines.append(f"- Merged into the {into}: {card.merge.targets} weights, {card.merge.dtype}")
        if card.merge.summary:
            lines.append(f"- {card.merge.summary[:1].upper()}{card.merge.summary[1:]}")
    return "## Measured\n\n" + "\n".join(lines) if lines else ""


def _files(card: Card) -> str:
    if not card.files:
        return ""
    rows = ["## GGUF files", "", "| type | bytes | bits per weight | training kept |", "|---|---|---|---|"]
    for kind, file in card.files.items():
        kept = "" if file.training_kept is None else f"{file.training_kept:.0%}"
        rows.append(f"| {kind} | {file.bytes:,} | {file.bits_per_weight:.2f} | {kept} |")
    return "\n".join(rows)


def _template(card: Card) -> str:
    lines = []
    if card.template_sha256 is not None:
        lines.append(f"- Chat template: sha256 `{card.template_sha256}`, as trained with")
    if card.stops:
        lines.append(f"- An answer ends with {', '.join(f'`{stop}`' for stop in card.stops)}")
    if card.system:
        quoted = "\n".join(f"  > {line}" for line in card.system.splitlines())
        lines.append(f"- System text that it was trained with:\n\n{quoted}")
    return "## Prompt\n\n" + "\n".join(lines) if lines else ""


def _llama_cpp(card: Card) -> str:
    lines = [f"- {line[:1].upper()}{line[1:]}" for line in card.differs]
    return "## llama.cpp\n\nllama.cpp computes this model differently:\n\n" + "\n".join(lines) if lines else ""


def _serving(card: Card) -> str:
    blocks = []
    for command in card.commands.values():
        shown = "\n".join(shlex.join(argv) for argv in command.argvs)
        note = f" ({command.note})" if command.note else ""
        blocks.append(f"{command.engine}{note}:\n\n```sh\n{shown}\n```")
    return "## Serve\n\nTyped in the run directory:\n\n" + "\n\n".join(blocks) if blocks else ""
