"""The verb ``plan``: the fastest way to run a training in so much memory, before anything is loaded.

It asks for sizes alone, so a directory that holds nothing but ``config.json`` will do, and of a model on the hub that file is
all that is fetched. Of a machine with a GPU it takes what is
there (memory, context and two rates are measured in a second); of a card by name, what the table of cards says.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.checkpoints.content import model_at_hand
from tunesmith.checkpoints.fetch_config import fetch_config
from tunesmith.errors import ModelError, RecipeError
from tunesmith.formatting import parse_amount
from tunesmith.memory.budget import auto_bytes, with_budget
from tunesmith.memory.cards import Card, cards, find_card
from tunesmith.memory.dials import Dials, dials_of
from tunesmith.memory.disk import base_bytes, stored_bytes
from tunesmith.memory.plan import Plan, Point, Rates, make_plan, turned
from tunesmith.memory.room import CONTEXT, PROCESS
from tunesmith.memory.shape import Shape, shape_of
from tunesmith.memory.speed import Sizes
from tunesmith.memory.techniques import SUPERVISED, TECHNIQUES, needed, sizes
from tunesmith.pipeline.disk import training_files
from tunesmith.pipeline.stage import module_of
from tunesmith.recipe import Lora, Recipe, Train, load_recipe
from tunesmith.recipe.derive import derive
from tunesmith.recipe.run import Export
from tunesmith.rundir import RunDir, free_bytes
from tunesmith.rundir.records import Json
from tunesmith.rundir.records.plan import DiskPlan, Place, PlanReport, Setting, SizeRow, TechniqueTable

logger = logging.getLogger(__name__)

ROWS, ROW_TOKENS = 1000, 300  # that settings are derived from where no rows are known


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A GPU of this machine.

    Attributes:
        memory: bytes that a run may take.
        context: bytes of this process beside its allocator.
    """

    name: str
    memory: int
    context: int
    compute: str
    rates: Rates | None


def plan(target: str, memory: str | None = None, gpu: str | None = None, tokens: int | None = None) -> PlanReport:
    """The fastest plan that fits.

    Args:
        target: a recipe, a run directory, a model directory (its ``config.json`` will do), a ``.gguf`` file or a hub id.
        memory: that the run may take, ``16GB``; None for all of the card's.
        gpu: name of a card; None for this machine.
        tokens: of a micro-batch; None for the recipe's ``train.max_length``.

    Raises:
        RecipeError: the recipe, an amount or a card that is none.
        ModelError: no model, or one whose sizes are not known.
    """
    recipe = _recipe_of(target)
    model, revision = (target, None) if recipe is None else (recipe.model, recipe.revision)
    file = _config_file(model, revision)
    config, shape = _shape(file)
    card = None if gpu is None else _card(gpu)
    here: Measured | None = module_of("plan_measured").gpu() if card is None else None
    device: Literal["gpu", "cpu"] = "cpu" if card is None and here is None and memory is None else "gpu"
    products = _products(shape) if device == "cpu" else {}
    dials = _dials(recipe, shape, device, card, here, tokens, max(products, key=products.__getitem__, default="fp32"))
    place, rates = _place(device, card, here, memory)
    if products:
        rates = Rates(card=None, product=products[dials.compute], link=1.0, measured=True)
        place = replace(place, product_flops=rates.product, rates_measured=True)
    found = make_plan(shape, dials, place.budget_bytes, rates, place.context_bytes)
    disk = _disk(recipe, Path(target), file.parent, config, found.chosen)
    return _report(model, found, place, disk)


def table(tokens: int = 2048, gpus: Sequence[str] = ()) -> TechniqueTable:
    """Model size by technique, and what the fastest plan takes on each card.

    Raises:
        RecipeError: a card that is not in the table of cards.
    """
    chosen = [_card(name) for name in gpus]
    rows: list[SizeRow] = []
    for size in sizes():
        times: dict[str, float | None] = {}
        for card in chosen:
            dials = Dials(compute=card.compute, recompute="auto", tokens=tokens, rows=max(1, round(SUPERVISED * tokens)))
            found = make_plan(size.shape, dials, int(card.memory_bytes.value), Rates.of(card))
            times[card.name] = found.chosen.seconds if found.fits else None
        by_technique = {technique.name: needed(size, technique, tokens) for technique in TECHNIQUES}
        published = int(size.published_gb * 1e9)
        rows.append(
            SizeRow(size=size.name, like=size.like, bytes_by_technique=by_technique, published_bytes=published, on_cards=times)
        )
    return TechniqueTable(tokens=tokens, rows=tuple(rows))


def _recipe_of(target: str) -> Recipe | None:
    """The recipe of a file or a run; None for a model."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return load_recipe(path)
    return RunDir.open(path).recipe() if (path / "recipe.yaml").is_file() else None


def _config_file(model: str, revision: str | None) -> Path:
    """The ``config.json`` of a model, fetched from the hub where nothing of it is there yet."""
    if Path(model).is_dir():
        file = Path(model) / "config.json"
        if not file.is_file():
            raise ModelError(f"{model}: holds neither recipe.yaml nor config.json", "give a recipe, a run or a model directory")
        return file
    directory = model_at_hand(model, revision)
    if isinstance(directory, Path):
        return directory / "config.json"
    if model.endswith(".gguf"):
        hint = "put its config.json into a directory of its own and give that; no weights are read"
        raise ModelError(f"{directory}, so its sizes are not known", hint)
    logger.info(f"plan: {directory}; fetching its config.json alone, a few kB")
    return fetch_config(model, revision)


def _shape(file: Path) -> tuple[Json, Shape]:
    """A parsed ``config.json``, and the sizes that it says."""
    try:
        config: JsonValue = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as JSON: {error}", "fetch the model's config.json again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected an object, found a {type(config).__name__}", "fetch the model's config.json again")
    shape = shape_of(config)
    if isinstance(shape, Shape):
        return config, shape
    raise ModelError(f"{file}: has no usable number for {shape}, so nothing can be estimated", f"name {shape} in config.json")


def _disk(recipe: Recipe | None, target: Path, directory: Path, config: Json, point: Point) -> DiskPlan:
    """What a run of the recipe, or of all defaults, has on the disk.

    Args:
        directory: of ``config.json``.
        config: what that says.
        point: the plan.
    """
    shape, dials = point.shape, point.dials
    cached = {"base": base_bytes(shape, config)}
    there = ("base",) if any(directory.glob("*.safetensors")) else ()
    if dials.resident_layers is not None:
        cached["streamed layers"] = stored_bytes(shape)
    files = training_files(shape, dials, Train().keep_checkpoints if recipe is None else recipe.train.keep_checkpoints)
    left_out = ["towers of a multimodal model"] if "text_config" in config else []
    if find_spec("gguf") is not None:
        export = Export() if recipe is None else recipe.export
        files |= module_of("plan_disk").export_files(export, shape, config, directory, dials.r)
    else:
        left_out.append("the export (install tunesmith[gguf] for its sizes)")
    cache = hardware.cache_dir() if there else hardware.hub_cache()
    where = target if target.is_dir() and recipe is not None else Path("runs" if recipe is None else f"runs/{recipe.name}")
    return DiskPlan(
        cached=cached,
        there=there,
        cached_in=str(cache),
        cached_free=free_bytes(cache),
        run=files,
        run_in=str(where),
        run_free=free_bytes(where),
        not_counted=", ".join(left_out),
    )


def _products(shape: Shape) -> dict[str, float]:
    return module_of("plan_measured").cpu(shape.hidden, Sizes.of(shape).intermediate)


def _card(name: str) -> Card:
    card = find_card(name)
    if card is None:
        known = [card.name for card in cards()]
        raise RecipeError(f"--gpu {name}: no such card in the table", f"one of: {', '.join(known)}; or give --memory 16GB")
    return card


def _dials(
    recipe: Recipe | None,
    shape: Shape,
    device: Literal["gpu", "cpu"],
    card: Card | None,
    here: Measured | None,
    tokens: int | None,
    faster: str,
) -> Dials:
    """What a run fixes: of a recipe what it says, else QLoRA with a recipe's defaults; ``faster`` is a CPU's dtype."""
    compute = faster if device == "cpu" else card.compute if card is not None else here.compute if here is not None else "bf16"
    if recipe is None:
        lora, length = Lora(), tokens or 2048
        dials = Dials(base="nf4", compute=compute, r=lora.r, dropout=lora.dropout, recompute="auto", device=device)
        return replace(dials, tokens=length, rows=max(1, round(SUPERVISED * length)))
    if recipe.train.compute != "auto":
        compute = recipe.train.compute
    if recipe.base in ("fp32", "bf16"):
        compute = recipe.base
    settings = derive(recipe.train, rows=ROWS, tokens=ROWS * ROW_TOKENS, hidden=1024).settings
    base = compute if recipe.base == "auto" else recipe.base
    dials = dials_of(base, compute, recipe.lora, settings, device, recipe.base_head, len(recipe.chat.new_tokens))
    dials = dials if tokens is None else replace(dials, tokens=tokens, rows=min(dials.rows, tokens))
    return with_budget(dials, shape, recipe.base_budget)


def _place(
    device: Literal["gpu", "cpu"], card: Card | None, here: Measured | None, memory: str | None
) -> tuple[Place, Rates | None]:
    try:
        asked = None if memory is None else parse_amount(memory)
    except ValueError as error:
        raise RecipeError(f"--memory: {error}", "for example --memory 16GB") from error
    rates, measured = (None if here is None else here.rates), here is not None
    name, whole, context = "a GPU", 0, CONTEXT
    if card is not None:
        name, whole, rates, measured = card.name, int(card.memory_bytes.value), Rates.of(card), False
    elif here is not None:
        name, whole, context = here.name, here.memory, here.context
    elif device == "cpu":
        name, whole, context = "this machine", hardware.total_memory(), PROCESS
    rent = None if rates is None or rates.card is None else rates.card.rent
    return Place(
        name=name,
        device=device,
        budget_bytes=whole if asked is None else asked,
        context_bytes=context,
        context_measured=measured,
        product_flops=None if rates is None else rates.product,
        link_bytes=None if rates is None else rates.link,
        rates_measured=rates is not None and rates.measured,
        dollars_per_hour=None if rent is None else rent.value,
        price_source="" if rent is None else rent.source,
    ), rates


def _report(model: str, found: Plan, place: Place, disk: DiskPlan) -> PlanReport:
    point = found.chosen
    estimate, dials = point.estimate, point.dials
    needs, reserved = point.needs(place.context_bytes), estimate.reserved
    if place.device == "cpu":  # no allocator of segments: what is not tensors is the process's own
        reserved, place = estimate.peak, replace(place, context_bytes=needs - estimate.peak)
    speed = None if place.product_flops is None or not point.seconds else dials.tokens / point.seconds
    rent = place.dollars_per_hour
    return PlanReport(
        model=model,
        tokens=dials.tokens,
        supervised=dials.rows,
        base=dials.base,
        fits=found.fits,
        plan=turned(dials),
        rounds=found.rounds,
        peak_bytes=estimate.peak,
        reserved_bytes=reserved,
        needs_bytes=needs,
        where=estimate.where,
        terms=estimate.terms,
        seconds=None if speed is None else point.seconds,
        tokens_per_second=speed,
        dollars_per_million_tokens=None if speed is None or rent is None else 1e6 / speed / 3600.0 * rent,
        place=place,
        passed_over=tuple(_setting(other, place, speed is not None) for other in found.passed_over),
        disk=disk,
        extra_bytes=dials.extra,
        spare_bytes=auto_bytes(point, place.budget_bytes, place.context_bytes) if found.fits else 0,
    )


def _setting(point: Point, place: Place, timed: bool) -> Setting:
    needs = point.needs(place.context_bytes)
    return Setting(plan=turned(point.dials), needs_bytes=needs, seconds=point.seconds if timed else None)
