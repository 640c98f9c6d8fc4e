"""The stage ``bring``: tuned models that somebody else trained, checked, written down and put where a training's would lie.

It stands in the place of training, and what comes after it does not know the difference. An adapter is copied in PEFT's form
(``models/peer_adapter.py``) and held against the base: every layer that it names, every shape. A whole model must speak the
base's tokens. What is only different (the chat template, more tokens than the base has, a base of another name) is no error;
it is said, and kept in ``brought.json``.

All of this is asked before the first stage as well, by ``refuse_early``: that an adapter belongs to another model is known from
its headers in seconds, and the prompts that have to be beaten take minutes to hours.

Refused: trusting ``base_model_name_or_path``, which names a copy in 4 bits, a folder of somebody's machine, or nothing.
"""

import logging
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jiter

from tunesmith.checkpoints.check_base import check_base
from tunesmith.checkpoints.content import content_key, gguf_file, model_directory
from tunesmith.checkpoints.facts import base_facts
from tunesmith.engines.base import BaseModel, open_base
from tunesmith.errors import ExportError, ModelError
from tunesmith.export.facts import read_facts
from tunesmith.export.job import plan_export
from tunesmith.models.adapter import CONFIG, WEIGHTS, check_fits, read_adapter_config
from tunesmith.models.identity import base_identity, own_template, read_identity, refuse_other_base, write_identity
from tunesmith.models.nf4_load import shorten
from tunesmith.models.peer_adapter import peft_form, tool_of
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import adapter_directory, of_model
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.adapter import has_patterns
from tunesmith.recipe.train import Train
from tunesmith.recipe.tuned import Tuned, never_with
from tunesmith.rundir import RunDir, atomic_directory, fingerprint, write_text
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.brought import Brought, BroughtModel

logger = logging.getLogger(__name__)

# Keys of train that answering and rendering read as well.
READ_ANYWAY = ("compute", "max_length", "memory", "resident_layers", "embedding_on")
MOST_TOKENS_APART = 0.01  # share of the base's tokens that a whole model may have otherwise
FOUR_BIT = ("4bit", "bnb", "nf4")


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Check what is brought, copy adapters, and write ``brought.json``.

    Raises:
        ModelError: it cannot be read, asks for what is not applied here, or does not belong to the base.
    """
    base = base_of(run, recipe)
    run.brought.mkdir(parents=True, exist_ok=True)
    models: list[BroughtModel] = []
    for one in recipe.tuned:
        if one.kind == "adapter":
            models.append(_bring_adapter(run, recipe, one, base))
        elif one.kind == "endpoint":
            key = fingerprint(one.endpoint, one.model)
            models.append(BroughtModel(name=one.label, kind="endpoint", place=str(one.endpoint), key=key, files={}))
        else:
            models.append(_bring_whole(run, recipe, one, base))
        for line in _lines(models[-1]):
            logger.info(f"bring: {line}")
    Brought(models=tuple(models)).write(run.brought_file)


def refuse_early(recipe: Recipe, base: Path) -> None:
    """Refuse what cannot be gated, before the first stage.

    Args:
        base: directory of the base model.

    Raises:
        ModelError: see ``execute``.
        ExportError: a form that cannot be written of it.
    """
    if ignored := _ignored(recipe):
        logger.warning(f"nothing is trained here, so these keys of the recipe mean nothing: {', '.join(ignored)}")
    exported = len(recipe.tuned) == 1 or recipe.chooses
    if not exported and (why := never_with(recipe.tuned, recipe.task.metric).get("deployed")):
        logger.warning(f"the verdict will be of a tuned model as it came, and not as it is deployed: {why}")
    for one in recipe.tuned:
        if one.adapter is not None:
            with tempfile.TemporaryDirectory() as temporary:
                directory = Path(temporary)
                peft_form(one.adapter, directory)
                _refuse_other_base(directory, base)
                lora, _ = check_fits(base, directory)
                if exported:
                    _refuse_unexportable(recipe, one, lora, base, directory)
            model = open_base(recipe)
            _about_tokenizer(one.adapter, model)
            if (own := own_template(one.adapter)) is not None and recipe.chat.template is None:
                _refuse_bad_template(replace(model, template=own), one.adapter)
        elif one.kind != "endpoint":
            model = _whole(recipe, one)
            _about_tokens(model, open_base(recipe), one.place)
            if exported and one.kind == "merged":
                _refuse_unexportable(recipe, one, None, model.directory)


def _refuse_unexportable(recipe: Recipe, one: Tuned, lora: Lora | None, base: Path, adapter: Path | None = None) -> None:
    """Refuse a tuned model of which a form cannot be written; of several any may be the one that is exported.

    Raises:
        ExportError: which form, and why.
    """
    try:
        plan_export(recipe, read_facts(recipe, lora, base, "", adapter))
    except ExportError as error:
        if not recipe.chooses:
            raise
        as_it_came = "without deployed in evaluate.arms nothing is exported, and the best is judged as it came"
        raise ExportError(f"{one.label}: {error.message}", f"{error.hint}; {as_it_came}") from error


def _ignored(recipe: Recipe) -> list[str]:
    """Keys of a training that are not at their defaults, where none takes place."""
    lora, train = Lora(), Train()
    keys = [f"lora.{key}" for key in Lora.model_fields if recipe.lora.__dict__[key] != lora.__dict__[key]]
    known = (key for key in Train.model_fields if key not in READ_ANYWAY)
    return keys + [f"train.{key}" for key in known if recipe.train.__dict__[key] != train.__dict__[key]]


def _bring_adapter(run: RunDir, recipe: Recipe, one: Tuned, base: BaseModel) -> BroughtModel:
    source, target = one.place, adapter_directory(run, recipe, one)
    with atomic_directory(target) as temporary:
        notes = peft_form(source, temporary)
        _refuse_other_base(temporary, base.directory)
        lora, targets = check_fits(base.directory, temporary)
        if read_identity(temporary) is None:
            write_identity(temporary, base_identity(base.directory, base.renderer.template))
    own = own_template(source)
    write_text(run.brought_template(one.label), _settled(run, recipe, one, own))
    if has_patterns(read_adapter_config(target)):
        notes.append("some layers have a rank or an alpha of their own (rank_pattern, alpha_pattern)")
    notes += _about_base(target, recipe, base) + _about_template(own, base, recipe) + _about_tokenizer(source, base)
    return BroughtModel(
        name=one.label,
        kind="adapter",
        place=str(source),
        key=content_hash(target / WEIGHTS),
        files={name: content_hash(target / name) for name in (CONFIG, WEIGHTS)},
        tool=tool_of(source),
        rank=lora.r,
        scale=lora.scale,
        targets=targets,
        notes=tuple(notes),
    )


def _bring_whole(run: RunDir, recipe: Recipe, one: Tuned, base: BaseModel) -> BroughtModel:
    """A merged directory or a GGUF."""
    place, model = one.place, _whole(recipe, one)
    write_text(run.brought_template(one.label), _settled(run, recipe, one, None))
    notes = _about_template(own_template(model.directory), base, recipe) + _about_tokens(model, base, place)
    if one.kind == "merged":
        files = {file.name: content_hash(file) for file in sorted(place.iterdir()) if file.suffix in (".safetensors", ".json")}
        kind, key = "merged", content_key(str(place))
    else:
        kind, key = "gguf", content_hash(place)
        files = {place.name: key}
    tool = tool_of(place) if one.kind == "merged" else None
    return BroughtModel(name=one.label, kind=kind, place=str(place), key=key, files=files, tool=tool, notes=tuple(notes))


def _whole(recipe: Recipe, one: Tuned) -> BaseModel:
    """A merged directory or a GGUF, as a model that is not loaded yet."""
    if one.kind == "gguf":
        if one.place.is_dir():
            raise ModelError(f"{one.place}: a directory, expected a .gguf file", "name it with merged: (--merged DIR)")
        if gguf_file(one.place).suffix != ".gguf":
            raise ModelError(f"{one.place}: expected a .gguf file", "of a directory of safetensors: merged: (--merged DIR)")
    else:
        _merged_directory(one.place)
    model = open_base(of_model(recipe, one))
    check_base(of_model(recipe, one), base_facts(model.directory))
    return model


def _merged_directory(place: Path) -> Path:
    if (place / CONFIG).exists() and not (place / "config.json").exists():
        raise ModelError(f"{place}: an adapter, expected a whole model", "name it with adapter: (--adapter DIR)")
    return model_directory(place)


def _refuse_other_base(adapter: Path, base: Path) -> None:
    """Only where the adapter says which weights it belongs to; else the shapes have to do."""
    if read_identity(adapter) is not None:
        refuse_other_base(adapter, base)


def _settled(run: RunDir, recipe: Recipe, one: Tuned, own: str | None) -> str:
    """The template that a brought model is asked with, written out as the run's own is."""
    known = run.manifest().moment
    moment = datetime.now().replace(microsecond=0) if known is None else datetime.fromisoformat(known)
    if one.kind == "adapter":
        if own is None or recipe.chat.template is not None:
            return base_of(run, recipe).renderer.template
        return replace(open_base(recipe), template=own, moment=moment).renderer.template
    return replace(open_base(of_model(recipe, one)), moment=moment).renderer.template


def _about_base(adapter: Path, recipe: Recipe, base: BaseModel) -> list[str]:
    """What the adapter says of its base, where that is not the recipe's."""
    named = read_adapter_config(adapter).get("base_model_name_or_path")
    ours = {place.rstrip("/").split("/")[-1] for place in (recipe.model, str(base.directory))}
    if not isinstance(named, str) or named.rstrip("/").split("/")[-1] in ours:
        return []
    notes = [f"it names {named} as its base; here it stands on {recipe.model}, whose layers have the same names and shapes"]
    if any(word in named.lower() for word in FOUR_BIT) and recipe.base != "nf4":
        notes.append("it was trained on a base in 4 bits; base: nf4 in the recipe holds this one as it was held there")
    return notes


def _about_template(own: str | None, base: BaseModel, recipe: Recipe) -> list[str]:
    if own is None or own == own_template(base.directory):
        return []
    if recipe.chat.template is not None:
        return ["its own chat template gives way to chat.template"]
    return ["its chat template is not the base's: it is asked with its own, the prompts with the base's"]


def _about_tokenizer(source: Path, base: BaseModel) -> list[str]:
    """Tokens that a tokenizer beside an adapter has and the base has not.

    Raises:
        ModelError: the file cannot be read.
    """
    file = source / "tokenizer.json"
    if not file.exists():
        return []
    try:
        added = {str(entry["content"]) for entry in jiter.from_json(file.read_bytes()).get("added_tokens", ())}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        hint = "get the file again, or take it away: an adapter is read with the base's tokenizer"
        raise ModelError(f"{file}: no tokenizer that can be read: {error}", hint) from error
    known = base.renderer.tokenizer.get_vocab()
    if not (more := sorted(token for token in added if token not in known)):
        return []
    return [f"its tokenizer has {len(more)} tokens that the base's has not ({shorten(more)}), and no text is read with it"]


def _refuse_bad_template(model: BaseModel, place: Path) -> None:
    """Ask for the renderer of a brought model, whose error says where it came from.

    Raises:
        ModelError: no tokenizer there, or a template that cannot be used.
    """
    try:
        _ = model.renderer
    except ModelError as error:
        where = "" if str(place) in error.message else f"{place}: "
        raise ModelError(f"{where}{error.message}", error.hint) from error


def _about_tokens(model: BaseModel, base: BaseModel, place: Path) -> list[str]:
    """Whether a whole model speaks the base's tokens."""
    _refuse_bad_template(model, place)
    theirs = model.renderer.tokenizer.get_vocab()
    ours = base.renderer.tokenizer.get_vocab()
    apart = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if len(apart) > MOST_TOKENS_APART * len(ours):
        raise ModelError(
            f"{place}: {len(apart):,} of the base's {len(ours):,} tokens are not its tokens ({shorten(apart)})",
            f"it is no tuned form of {base.model}: name the model that it was tuned from as the base",
        )
    notes = [f"{len(apart)} tokens of the base are others in it ({shorten(apart)})"] if apart else []
    more = len(theirs.keys() - ours.keys())
    return [*notes, *([f"it has {more} tokens that the base has not"] if more else [])]


def _lines(model: BroughtModel) -> list[str]:
    what = f"{model.name}: {model.kind} at {model.place}" + (f", written by {model.tool}" if model.tool else "")
    if model.rank is not None:
        what += f", rank {model.rank}, scale {model.scale:g}, {model.targets} weights"
    return [what, *(f"{model.name}: {note}" for note in model.notes)]
