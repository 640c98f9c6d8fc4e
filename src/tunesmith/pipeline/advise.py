"""The verb ``advise``: measure what the checklist asks for, let the rules decide, write down both.

Prompts and retrieval are measured on dev rows, by the very choice that ``evaluate`` makes before it reads the test part, so
an advice spends nothing of the sealed rows and a later ``evaluate`` finds the choice done. Refused: scoring the arms on
test. An advice that has seen the test part makes the verdict after it a second look at the same rows.

With ``quick`` no model is asked and torch is not imported: rows are read and counted, sizes come from ``config.json`` where
the model is on the disk already, tokens are a quarter of the characters, and a GPU is not asked for its memory.
"""

import logging
from dataclasses import replace
from pathlib import Path

from tunesmith import hardware
from tunesmith.advise.decide import decide
from tunesmith.checkpoints.content import model_at_hand
from tunesmith.checkpoints.quantized.schemes import lies_in_nf4
from tunesmith.data.quality import Quality, wrong_lines
from tunesmith.evaluate import rule
from tunesmith.evaluate.gate import terms_of
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.references import check_references
from tunesmith.formatting import parse_amount
from tunesmith.memory.budget import auto_bytes, with_budget
from tunesmith.memory.cards import find_card
from tunesmith.memory.cost import rents
from tunesmith.memory.dials import Dials, dials_of
from tunesmith.memory.plan import Point, plan_for_training, turned_words
from tunesmith.memory.room import CONTEXT, training_bytes, training_hours
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline.lines import reading_lines
from tunesmith.pipeline.reading import reader_of, refuse_plain_texts
from tunesmith.pipeline.stage import make, module_of
from tunesmith.pipeline.table import table_of
from tunesmith.pipeline.taking import taken
from tunesmith.recipe import Recipe, TrainSettings
from tunesmith.recipe.derive import WIDTH, derive
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.advice import (
    Advice,
    Facts,
    MachineFacts,
    MemoryFacts,
    MetricFacts,
    PriceFacts,
    Rent,
    RowFacts,
)
from tunesmith.rundir.records.check import DataReport
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.evidence import Calibration
from tunesmith.rundir.records.quality import QualityReport
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)

REFERENCES = 1000  # rows whose reference is scored against itself under --quick
CHARACTERS_A_TOKEN = 4.0  # of English text under today's tokenizers, roughly
NOT_TRIED = ("judge", "code")  # metrics that ask a model or run a program
PLANNED_DISCORDANCE = 0.20  # share of rows that change between right and wrong, where nothing better is known
WITHOUT_GPU = "this machine, without a GPU,"
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of the drivers for CUDA, ROCm and WSL


def advise(run: RunDir, quick: bool = False) -> Advice:
    """Whether to tune at all, before any training; writes and returns ``advice.json``.

    Args:
        quick: ask no model, and answer in seconds.

    Raises:
        RecipeError, DataError, ModelError: what the stages before training raise.
    """
    recipe = run.recipe()
    if quick:
        rows, arms, selection = _read_rows(run, recipe), (), None
        calibration = Calibration(calibrated=False, reason="not compared with people: --quick asks no model", n=0)
        tokens_saved = max(0.0, (len(recipe.task.prompt or "") - len(recipe.task.short_prompt or "")) / CHARACTERS_A_TOKEN)
    else:
        with run.writing():
            make(run, table_of(recipe), recipe, ("select",), all_needed=True)
        rows = _split_rows(run)
        arms, selection, tokens_saved = module_of("advise_measured").measure(run, recipe)
        calibration = module_of("advise_measured").calibration_of(recipe) if recipe.task.metric == "judge" else None
    machine = _machine(quick)
    directory = model_at_hand(recipe.model, recipe.revision) if quick else module_of("base").directory_of(recipe)
    shape = _shape(recipe, directory)
    derived = _derived(recipe, rows, shape)
    memory = _memory(recipe, derived, shape, machine, quick)
    if isinstance(directory, Path) and lies_in_nf4(directory):
        memory = replace(memory, spare=0)  # it has no bits to give back
    prompt, retrieval = (None, None) if selection is None else (selection.prompt, selection.retrieval)
    price = PriceFacts(
        calls_per_month=recipe.advise.calls_per_month,
        per_million=recipe.advise.price_per_million_prompt_tokens,
        per_hour=recipe.evaluate.price_per_hour,
        tokens_saved=tokens_saved,
        counted=not quick,
        per_million_cached=recipe.advise.price_per_million_cached_tokens,
        hosting=recipe.advise.hosting_per_month,
    )
    facts = Facts(
        rows=rows,
        metric=_metric(recipe, rows, prompt and prompt.score, calibration if recipe.task.metric == "judge" else None),
        arms=arms,
        prompt=prompt,
        retrieval=retrieval,
        documents=recipe.data.documents is not None,
        price=price,
        machine=machine,
        memory=memory,
        use_rslora=recipe.lora.use_rslora,
    )
    hours, rented = _times(recipe, derived, shape, rows.tokens, machine) if isinstance(shape, Shape) else (None, ())
    advice = replace(decide(facts, hours), quick=quick, rents=rented)
    if selection is not None and advice.arm is not None:
        advice = replace(advice, prompt=module_of("advise_measured").write_prompt(run, recipe, selection, advice.arm))
    advice.write(run.path / "advice.json")
    return advice


def _read_rows(run: RunDir, recipe: Recipe) -> RowFacts:
    """Read the source once, count it, and score the first references against themselves."""
    settings = recipe.data
    reader = reader_of(recipe, run.data / "rejected.jsonl")
    quality, characters, supervised = Quality(reasoning_is_text=settings.reasoning == "keep"), 0, 0
    first: list[Row] = []
    given = {"train": 0, "dev": 0, "test": 0}
    for batch in taken(reader, recipe, run.path / ".rows.jsonl"):
        quality.add(batch.rows)
        if batch.part is not None:
            given[batch.part] += len(batch.rows)
        first += batch.rows[: REFERENCES - len(first)]
        for message in (message for row in batch.rows for message in row.messages):
            length = len(str(message.get("content") or ""))
            characters += length
            supervised += length if message["role"] == "assistant" else 0
    reading = reader.summary()
    report = quality.report(reading)
    refuse_plain_texts(recipe, reading, report)
    for line in (*reading_lines(reading), *wrong_lines(report.findings)):
        logger.info(f"rows: {line}")
    if recipe.task.metric not in NOT_TRIED:
        check_references(first, make_metric(recipe.task))
    rows = report.rows
    drawn_from = given["train"] if settings.split == "given" else rows
    test, dev = round(drawn_from * settings.test_fraction), round(drawn_from * settings.dev_fraction)
    if settings.split == "given":
        test, dev = given["test"] or test, given["dev"] or dev
    share = (rows - test - dev) / max(1, rows) / CHARACTERS_A_TOKEN
    return _row_facts(report, (rows - test - dev, dev, test), (characters * share, supervised * share, False))


def _split_rows(run: RunDir) -> RowFacts:
    """What the stages data and render counted."""
    report, rendered = DataReport.read(run.data_report_file), Rendered.read(run.rendered_file)
    parts = (report.train, report.dev, report.test)
    return _row_facts(report.check.quality, parts, (rendered.train_tokens, rendered.supervised_tokens, True))


def _row_facts(quality: QualityReport, parts: tuple[int, int, int], tokens: tuple[float, float, bool]) -> RowFacts:
    prompts, varied = quality.prompts, quality.diversity
    return RowFacts(
        rows=quality.rows,
        distinct=quality.duplicates.distinct,
        prompts=prompts.distinct if prompts.rows else None,
        conflicting=prompts.conflicting_rows,
        distinct_4=varied.prompts.distinct_4,
        compression=varied.prompts.compression_ratio,
        sampled=varied.sampled,
        train=parts[0],
        dev=parts[1],
        test=parts[2],
        split=tokens[2],
        tokens=tokens[0],
        supervised=tokens[1],
        counted=tokens[2],
    )


def _metric(recipe: Recipe, rows: RowFacts, best: float | None, calibration: Calibration | None) -> MetricFacts:
    """What the test rows can show.

    One row in five is planned to change between right and wrong; fewer where the prompt has few rows right, since tuning can
    break only those: at most the planned gain and twice the prompt's score.
    """
    task = recipe.task
    terms = terms_of(task)
    planned = rule.planned_gain(terms)
    share = PLANNED_DISCORDANCE if best is None else min(PLANNED_DISCORDANCE, planned + 2.0 * best)
    share = max(share, planned)
    detectable = rule.detectable_gain(rows.test, share, terms) if rows.test else 1.0
    needed = rule.planned_rows(share, planned, terms) or 0
    tried = 0 if task.metric in NOT_TRIED else min(rows.rows, REFERENCES) if not rows.counted else rows.dev + rows.test
    return MetricFacts(
        name=task.metric,
        tried=tried,
        calibrated=None if calibration is None else calibration.calibrated,
        judge="" if calibration is None else calibration.reason,
        min_gain=task.min_gain,
        planned=planned,
        detectable=detectable,
        test_needed=needed,
        min_score=task.min_score,
        discordance=share,
    )


def _machine(quick: bool) -> MachineFacts:
    """The GPU that training would use, or the machine; without torch only whether there may be a GPU."""
    here = hardware.describe()
    cores, memory = here.cores, here.memory_bytes
    if quick:
        if any(Path(file).exists() for file in GPU_FILES):
            return MachineFacts(name="a GPU", kind="unknown", cores=cores, memory=None)
        return MachineFacts(name=WITHOUT_GPU, kind="cpu", cores=cores, memory=memory)
    on_cpu = MachineFacts(name=WITHOUT_GPU, kind="cpu", cores=cores, memory=memory)
    return module_of("advise_measured").machine() or on_cpu


def _shape(recipe: Recipe, directory: Path | str) -> Shape | str:
    """Sizes of the model, or why they are not known.

    Args:
        directory: of the model, or why there is none.
    """
    if isinstance(directory, str):
        return directory
    shape = read_shape(directory)
    if isinstance(shape, Shape):
        return shape
    return f"{recipe.model}: config.json has no usable number for {shape}, so nothing can be estimated"


def _derived(recipe: Recipe, rows: RowFacts, shape: Shape | str) -> TrainSettings:
    """What the recipe's section ``train`` comes to; its rate counts for nothing here."""
    trained = max(1, rows.train)
    hidden = shape.hidden if isinstance(shape, Shape) else WIDTH
    return derive(recipe.train, rows=trained, tokens=max(trained, rows.tokens), hidden=hidden).settings


def _memory(recipe: Recipe, train: TrainSettings, shape: Shape | str, machine: MachineFacts, quick: bool) -> MemoryFacts:
    """Bytes of training for the recipe's base and the smaller ones."""
    if isinstance(shape, str):
        return MemoryFacts(base=recipe.base, by_base={}, why_not=shape, parameters=0, adapter_per_rank=0, hidden=0)
    if quick:  # the dtype of the products is chosen by a timed probe; fp32 is the larger
        compute = recipe.train.compute if recipe.train.compute != "auto" else "fp32" if machine.kind == "cpu" else "bf16"
        base = compute if recipe.base == "auto" else recipe.base
        compute = recipe.base if recipe.base in ("fp32", "bf16") else compute
    else:
        base, compute = module_of("advise_measured").computed_in(recipe)

    plans: dict[str, str] = {}
    spare = 0  # of the only base in NF4 that is asked for

    def needed(name: str, base: str, compute: str) -> int:
        nonlocal spare
        dials = with_budget(_dials(recipe, train, base, compute, machine), shape, recipe.base_budget)
        if machine.memory is None or (machine.kind == "gpu" and train.memory == "off"):
            return training_bytes(shape, dials)
        room = machine.memory if train.memory in ("auto", "off") else min(machine.memory, parse_amount(train.memory))
        if machine.kind == "cpu":
            spare += auto_bytes(Point(shape, dials, None), room, 0)
            return training_bytes(shape, dials)
        plan = plan_for_training(shape, dials, room, machine.name)
        plans[name] = turned_words(plan.chosen.dials)
        spare += auto_bytes(plan.chosen, room, CONTEXT) if plan.fits else 0
        return plan.chosen.needs(CONTEXT)

    by_base = {recipe.base: needed(recipe.base, base, compute)}
    if recipe.base == "fp32":
        by_base["bf16"] = needed("bf16", "bf16", "bf16")
    if recipe.base != "nf4" and not train.qat:  # which takes a dense base
        by_base["nf4"] = needed("nf4", "nf4", compute)
    return MemoryFacts(
        base=recipe.base,
        by_base=by_base,
        why_not="",
        parameters=shape.parameters,
        adapter_per_rank=shape.adapter_per_rank,
        hidden=shape.hidden,
        plans=plans,
        spare=spare if recipe.base_budget is None and not recipe.tuned and not train.shard else 0,
    )


def _dials(recipe: Recipe, train: TrainSettings, base: str, compute: str, machine: MachineFacts) -> Dials:
    device, tokens = "cpu" if machine.kind == "cpu" else "gpu", len(recipe.chat.new_tokens)
    return dials_of(base, compute, recipe.lora, train, device, recipe.base_head, tokens)


def _times(
    recipe: Recipe, train: TrainSettings, shape: Shape, tokens: float, machine: MachineFacts
) -> tuple[float, tuple[Rent, ...]]:
    """Hours of a training on this machine, and what it costs on cards that are rented.

    Args:
        tokens: of an epoch.
    """
    epochs, base = train.num_train_epochs, "nf4" if recipe.base == "nf4" else "bf16"
    hours = training_hours(shape, tokens, epochs, machine.kind == "gpu", machine.cores)
    card = find_card(machine.name)
    if card is not None and machine.memory is not None:
        there = _dials(recipe, train, "nf4" if base == "nf4" else card.compute, card.compute, machine)
        seconds = plan_for_training(shape, there, machine.memory, machine.name).chosen.seconds
        hours = hours if seconds is None else seconds * tokens * epochs / there.tokens / 3600.0
    return hours, rents(shape, _dials(recipe, train, base, "bf16", machine), tokens * epochs)
