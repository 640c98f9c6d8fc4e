"""What goes with the exported files so that others run them: Modelfiles, launch commands, the model cards.

These are texts about the other forms, so they are written last, each time anew. A chat template that a Modelfile cannot
express is no failure of the export: the GGUF carries the Jinja template, which every other engine runs. The reason is said,
and it stands in ``commands.json`` beside the commands that there are.

The card of the merged model is written twice: before the conversion, because llama.cpp's converter takes a GGUF's name from
it, and at the end, when the sizes are known. No card has a verdict: it is found later, by running what is exported here.

Refused: a README for every file. Cost: milliseconds; half a second for a Modelfile, whose template is held against Jinja.
"""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ExportError
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from tunesmith.chat.render import Renderer
    from tunesmith.export import card, launch

logger = logging.getLogger(__name__)

SHOWN = ("vllm", "llama_server", "ollama")  # of the commands, after an export; all stand in the file
ADAPTER_FORMS = ("vllm_adapter", "llama_server_adapter", "ollama_adapter")


@dataclass(frozen=True)
class Exported:
    """The finished files of an export that is not yet in its place.

    Attributes:
        staged: where they lie now.
        base: directory of the base model.
        context: tokens that a served model reserves.
        files: what each said, by its name.
        base_gguf: the base beside an adapter GGUF: a name in the export, or the path of the recipe's own file.
        differs: what llama.cpp computes otherwise than the model, a line each.
    """

    run: RunDir
    recipe: Recipe
    renderer: "Renderer"
    base: Path
    staged: Path
    context: int
    files: dict[str, dict[str, Any]]
    base_gguf: str | None
    differs: tuple[str, ...] = ()

    @property
    def is_on_hub(self) -> bool:
        """Whether the recipe names a hub id, and no file or directory."""
        return not Path(self.recipe.model).is_absolute()


def write_modelfile_of(exported: Exported, target: str, gguf: str, adapter: str | None) -> str | None:
    """Write a Modelfile where the template allows one.

    Args:
        target: its name.
        gguf: the model's file, by name or path.
        adapter: the adapter's file.

    Returns:
        Why there is none; None where it was written.
    """
    from tunesmith.export.companions import stop_ids
    from tunesmith.export.ollama.modelfile import stop_texts, write_modelfile

    made = exported.renderer
    stops = stop_texts(made.tokenizer, stop_ids(exported.base, made.stop_ids))
    system = exported.recipe.task.short_prompt
    try:
        write_modelfile(exported.staged / target, gguf, made.template, made.tokenizer, system, stops, exported.context, adapter)
    except ExportError as error:
        logger.warning(f"export: no {target}: {error.message}")
        return error.message
    return None


def write_commands(exported: Exported) -> None:
    """Write ``commands.json``.

    ``commands`` by form; ``refused``, the reason for each that there is none; ``differs``, what llama.cpp computes otherwise.
    """
    whys = {name: facts["why_not"] for name, facts in exported.files.items() if facts.get("why_not")}
    found = {"commands": _commands(exported), "refused": whys, "differs": list(exported.differs)}
    write_json(exported.staged / "commands.json", found)


def command_lines(run: RunDir) -> list[str]:
    """How to run what was exported, a line each, and where the rest stands."""
    found = read_json(run.export / "commands.json")["commands"]
    lines = []
    for form in SHOWN:
        if form in found:
            argvs = [found[form]] if isinstance(found[form], list) else list(found[form].values())
            lines.append(f"serve: {' && '.join(shlex.join(argv) for argv in argvs)}")
    return [*lines, f"{len(found)} ways to serve it are in {run.export / 'commands.json'}"]


def write_cards(exported: Exported) -> None:
    """Write ``merged/README.md`` and that of the adapter, with what is known so far."""
    from tunesmith.export.card import write_card

    facts = _card_facts(exported)
    if "commands.json" not in exported.files:  # before the conversion, which needs the name alone
        write_card(exported.staged / "merged", facts)
        return
    made = _commands(exported)
    own = {form: argv for form, argv in made.items() if form not in ADAPTER_FORMS}
    write_card(exported.staged / "merged", {**facts, "commands": own})
    others = {form: argv for form, argv in made.items() if form in ADAPTER_FORMS}
    of_adapter: card.Facts = {**facts, "relation": "adapter", "commands": others, "files": {}, "merge": {}}
    if "llama_server_adapter" not in others:
        of_adapter["llama_cpp"] = []
    write_card(exported.run.adapter, of_adapter)


def _card_facts(exported: Exported) -> "card.Facts":
    from tunesmith.export.card import license_of
    from tunesmith.export.companions import stop_ids
    from tunesmith.export.forms import gguf_name
    from tunesmith.export.ollama.modelfile import stop_texts

    recipe, made = exported.recipe, exported.renderer
    manifest = read_json(exported.run.manifest_file) if exported.run.manifest_file.exists() else {}
    names = {kind: gguf_name(str(recipe.name), kind) for kind in recipe.export.gguf}
    files = {kind: exported.files[name] for kind, name in names.items() if name in exported.files}
    facts: card.Facts = {
        "name": str(recipe.name),
        "relation": "merge",
        "base_model": recipe.model if exported.is_on_hub else Path(recipe.model).name,
        "revision": recipe.revision,
        "license": license_of(exported.base),
        "lora": recipe.lora.model_dump(),
        "training": manifest.get("training", {}),
        "files": files,
        "merge": exported.files.get("merge.json") or exported.files.get("merged", {}),
        "system": recipe.task.short_prompt,
        "template_sha256": sha256_file(exported.staged / "merged" / "chat_template.jinja"),
        "stops": stop_texts(made.tokenizer, stop_ids(exported.base, made.stop_ids)),
        "llama_cpp": list(exported.differs),
    }
    return facts


def _commands(exported: Exported) -> "launch.Commands":
    from tunesmith.export.adapter import LARGEST_RANK
    from tunesmith.export.forms import gguf_name, lora_name
    from tunesmith.export.launch import commands

    recipe, export = exported.recipe, exported.run.export
    name = str(recipe.name)
    facts: launch.Facts = {
        "name": name,
        "num_ctx": exported.context,
        "merged": str(export / "merged"),
        "gguf": str(export / gguf_name(name, recipe.export.gguf[-1])),
        "template": str(export / "merged" / "chat_template.jinja"),
    }
    if not recipe.lora.use_dora and recipe.lora.r <= LARGEST_RANK:
        own = (exported.staged / "adapter-vllm").exists()
        facts["adapter"] = str(export / "adapter-vllm" if own else exported.run.adapter)
        facts["base"] = recipe.model if exported.is_on_hub else str(exported.base)
        facts["revision"], facts["rank"] = recipe.revision, recipe.lora.r
    if exported.base_gguf is not None:
        facts["base_gguf"] = str(export / exported.base_gguf)  # a path that is absolute stays as it is
        facts["lora_gguf"] = str(export / lora_name(name))
    if (exported.staged / "Modelfile").exists():
        facts["modelfile"] = str(export / "Modelfile")
    if (exported.staged / "Modelfile.adapter").exists():
        facts["adapter_modelfile"] = str(export / "Modelfile.adapter")
    return commands(facts)
