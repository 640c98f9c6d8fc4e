"""The stages of a run, in order: what each reads, what it makes, what it is made from. This file is the contract.

``needs`` says whose files a stage reads, ``inputs`` names every one of them, and every recipe key that changes the result. A
key that is not named here does not make a stage again; ``tests/pipeline/test_table.py`` changes each key of a recipe and looks
at which stages are stale. What only says how fast (``evaluate.batch_size``), how often or where is left out.

Prompts come before training: they cost none, and may already be enough.

A recipe with the section ``tuned`` trains nothing: the stage ``bring`` stands where ``train`` would, and what cannot be had of
the form that is brought (an export of a file that is deployed as it is, what an endpoint has forgotten) is no stage. Of several
tuned models the stage ``choose`` says which one is exported (``pipeline/choice_stage.py``).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tunesmith.export.names import deployed_files
from tunesmith.pipeline.base_stage import with_forms
from tunesmith.pipeline.choice_stage import NAME as CHOOSE
from tunesmith.pipeline.choice_stage import choice_stage, is_file
from tunesmith.pipeline.forgetting_stages import forgetting_of_each, forgetting_of_run
from tunesmith.pipeline.importance_stage import BASE_IMATRIX, importance_stage
from tunesmith.pipeline.inputs import DECIDING, Inputs
from tunesmith.pipeline.provenance import named_files
from tunesmith.pipeline.stage import Stage, Table
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, PROMPT_DEPLOYED, Recipe
from tunesmith.recipe.run import plain_type
from tunesmith.rundir.records.stages import Parts

PARTS = ("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl")
TEMPLATE = "data/chat_template.jinja"
RENDERED = "data/rendered.json"
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
BROUGHT = "brought.json"
SUB_RUNS = ("evaluate.seeds", "evaluate.learning_curve")
# What is kept, who computes and where things lie, and nothing that is trained.
CHEAP_TRAIN_KEYS = (
    "train.keep_checkpoints",
    "train.ranks",
    "train.resident_layers",
    "train.shard",
    "train.offload",
    "train.embedding_on",
    "train.memory",
    "train.from_adapter",  # whose content counts, wherever it lies
)


def table_of(recipe: Recipe) -> Table:
    """The stages of a recipe."""
    arms = recipe.evaluate.arms
    asking = [arm for arm in arms if arm in PROMPT_ARMS or arm.startswith(EXTERNAL)]
    finalists = _finalists(asking)
    kind, maker = recipe.tuned_kind, maker_of(recipe)
    replay = [REPLAY] if recipe.train.replay and kind == "trained" else []
    stages = [DATA, RENDER, SELECT, *(_arm(recipe, arm) for arm in asking), finalists, *replay]
    stages += [importance_stage(recipe)] if recipe.grid_is_weighed else []
    stages += [_train(recipe) if kind == "trained" else _bring(recipe)]
    stages += [_arm(recipe, arm) for arm in arms if arm.startswith("tuned")]
    stages += (of_each := forgetting_of_each(recipe, maker, _tuned))
    if recipe.chooses:
        answered = tuple(f"evaluate {arm}" for arm in arms if arm != "deployed")
        stages.append(choice_stage(recipe, of_each, (*answered, finalists.name), lambda read: _answers(read, "deployed")))
    source = CHOOSE if recipe.chooses else maker
    exports = [after(EXPORT, source)] if kind in ("trained", "adapter", "merged") or recipe.chooses else []
    stages += [*exports, *([parity_of(recipe)] if exports or kind == "gguf" else [])]
    stages += [_arm(recipe, arm) for arm in arms if arm in ("deployed", PROMPT_DEPLOYED)]
    tuned = [arm for arm in arms if arm not in (*asking, PROMPT_DEPLOYED)]
    stages += forgetting_of_run(recipe, source, _tuned_and_deployed)
    if recipe.evaluate.seeds > 1:
        stages.append(SEEDS)
    if recipe.evaluate.learning_curve:
        stages.append(CURVE)
    scored = (*(f"evaluate {arm}" for arm in arms), finalists.name)
    if recipe.task.metric == "judge":
        stages.append(_judge(scored))
    names = {stage.name for stage in stages}
    on_page = tuple(
        name for name in ("verdict", maker, "export", "parity", "learning-curve") if name in names or name == "verdict"
    )
    held = ("judge", "choose", "parity", "forgetting", "seeds") if tuned else ("judge",)
    checks = {stage.name: stage.outputs[0] for stage in stages if stage.module in held}
    stages += [_verdict(("select", *scored, *checks), tuple(checks.values())), _report(on_page)]
    return Table(with_forms(stages) if recipe.base_budget else tuple(stages))


def maker_of(recipe: Recipe) -> str:
    """The stage that the tuned model comes from."""
    return "bring" if recipe.tuned else "train"


def after(stage: Stage, maker: str) -> Stage:
    """A stage that needs the tuned model, of whichever stage it comes."""
    return replace(stage, needs=tuple(maker if need == "train" else need for need in stage.needs))


def _data(read: Inputs) -> Parts:
    settings = read.recipe.data
    outside = ("data.path", "data.earlier_split", "data.trained_on", "data.on_too_long", "data.documents")
    return {
        **read.keys("data", without=outside),
        **read.keys("seed"),
        **read.rows("data.path (content)"),
        **read.source("data.earlier_split (content)", settings.earlier_split),
        **read.source("data.trained_on (content)", settings.trained_on),
    }


DATA = Stage(
    name="data",
    module="data",
    about="read, check and split the rows",
    inputs=_data,
    outputs=(*PARTS, "data/split.json", "data/report.json"),
    implied=True,
)


def _render(read: Inputs) -> Parts:
    keys = ("task.short_prompt", "task.max_new_tokens", "train.max_length", "data.on_too_long", "data.on_bad_row")
    return {**read.files(*PARTS[:2]), **read.model(), **read.keys(*keys)}


RENDER = Stage(
    name="render",
    module="render",
    about="render the rows with the model's chat template, and mark what is supervised",
    needs=("data",),
    inputs=_render,
    outputs=("data/train.arrow", "data/dev.arrow", RENDERED, "data/left_out.jsonl", TEMPLATE),
    implied=True,
    asks_base=True,
)


def _select(read: Inputs) -> Parts:
    settings = read.recipe.evaluate
    external = [arm for arm in settings.arms if arm.startswith(EXTERNAL) and arm not in settings.replaced]
    needed = settings.asking
    parts: Parts = {
        **read.files(*PARTS, RENDERED, TEMPLATE),
        **read.base_in_memory(),
        **read.scoring(),
        **read.keys("seed", "task.prompt", "task.short_prompt"),
        **read.keys("evaluate.finalists", "evaluate.few_shot", "evaluate.retrieval.embedder"),
        "arms": [arm for arm in settings.arms if arm in PROMPT_ARMS or arm in external],
    }
    if "optimized_prompt" in needed:
        parts |= read.keys("evaluate.optimized_prompt")
    if "retrieval" in needed:
        parts |= {**read.keys("evaluate.retrieval"), **read.source("data.documents (content)", read.recipe.data.documents)}
    for arm in external:
        if settings.is_rival(arm):
            parts |= _endpoint(read, arm)
    return parts


def _endpoint(read: Inputs, arm: str) -> Parts:
    """Where an arm's answers come from; a time-out asks nobody anew."""
    name, settings = arm.removeprefix(EXTERNAL).partition(":")[0], read.recipe.evaluate
    parts = read.keys(*(f"evaluate.external.{name}.{key}" for key in ("base_url", "model", "body")))
    recorded = read.source(f"evaluate.external.{name}.recorded (content)", settings.endpoint_of(arm).recorded)
    return {**parts, **recorded, f"{arm}: prompts of": "" if arm in settings.replaced else settings.prompt_of(arm)}


SELECT = Stage(
    name="select",
    module="select",
    about="choose the prompts on dev",
    verb="evaluate",
    needs=("data", "render"),
    inputs=_select,
    outputs=("evaluation/selection.json",),
    implied=True,
    asks_base=True,
)


REPLAY = Stage(
    name="replay",
    module="replay",
    about="let the base model write what training mixes in",
    needs=("render",),
    inputs=lambda read: {
        **read.files("data/train.arrow", TEMPLATE),
        **read.base_in_memory(),
        **read.keys("train.replay", "seed"),
    },
    outputs=("data/replay.arrow", "data/replay.jsonl"),
    implied=True,
    asks_base=True,
)


def _tuned(read: Inputs) -> Parts:
    """The files of the tuned model, or what is on record of one that lies elsewhere."""
    recipe = read.recipe
    if not recipe.tuned:
        return read.files(*ADAPTER)
    own = ADAPTER if recipe.tuned_kind == "adapter" else ()
    return read.files(BROUGHT, *own, *read.run.files_below("brought/"))


def _tuned_of_run(read: Inputs) -> Parts:
    """The same of the one that is exported, where there are several."""
    return read.chosen() if read.recipe.chooses else _tuned(read)


def _bring(recipe: Recipe) -> Stage:
    return Stage(
        name="bring",
        module="bring",
        about="check the tuned model that is brought, and write down what it is",
        verb="run",
        needs=("render",),
        inputs=lambda read: {**read.brought(), **read.model(), **read.files(TEMPLATE), **read.keys("base")},
        outputs=(BROUGHT, "brought/", *(ADAPTER if recipe.tuned_kind == "adapter" else ())),
        implied=True,
        asks_base=True,
    )


def _training(read: Inputs) -> Parts:
    beside = (*(("data/replay.arrow",) if read.recipe.train.replay else ()), *(BASE_IMATRIX * read.recipe.grid_is_weighed))
    return {
        **read.files("data/train.arrow", "data/dev.arrow", *beside, TEMPLATE),
        **read.model(),
        **read.first_adapter(),
        **read.base_forms(),
        **read.keys("base", "per_layer_embeddings", "base_head", "lora", "train", "seed", without=CHEAP_TRAIN_KEYS),
        **({"export.gguf": read.recipe.export.gguf[-1]} if read.recipe.train.qat else {}),
    }


def _train(recipe: Recipe) -> Stage:
    return Stage(
        name="train",
        module="train",
        about="train the adapter",
        needs=("render", *(["replay"] if recipe.train.replay else []), *(["importance"] if recipe.grid_is_weighed else [])),
        inputs=_training,
        outputs=(*ADAPTER, "training.json", "metrics.jsonl", "metrics.csv"),
        asks_base=True,
    )


def _arm(recipe: Recipe, arm: str) -> Stage:
    """The stage that scores an arm on the sealed test part."""
    needs: tuple[str, ...] = ("data", "render")
    if arm in PROMPT_ARMS or arm.startswith(EXTERNAL):
        needs += ("select",)
    elif arm.startswith("tuned") or recipe.tuned_kind == "gguf":
        needs += (maker_of(recipe),)
    else:
        needs += ("export", *(("select",) if arm == PROMPT_DEPLOYED else ()))
    return Stage(
        name=f"evaluate {arm}",
        module="evaluate",
        about=f"score the arm {arm} on the sealed test part",
        verb=f"evaluate --arm {arm}",
        needs=needs,
        inputs=_inputs_of_arm(arm),
        outputs=(f"evaluation/{arm}/outputs.jsonl", f"evaluation/{arm}/scores.json"),
        argument=arm,
        asks_base=not arm.startswith(EXTERNAL),
    )


def _inputs_of_arm(arm: str) -> Callable[[Inputs], Parts]:
    def inputs(read: Inputs) -> Parts:
        recipe = read.recipe
        parts = {**read.files("data/test.jsonl", RENDERED, TEMPLATE), **read.scoring(), **read.keys("task.short_prompt")}
        if arm in (*PROMPT_ARMS, PROMPT_DEPLOYED) or arm.startswith(EXTERNAL):
            parts |= {**read.files("evaluation/selection.json"), **read.keys("task.prompt")}
        if arm in PROMPT_ARMS:
            parts |= read.base_in_memory()
        elif arm.startswith(EXTERNAL):
            parts |= _endpoint(read, arm)
        elif arm.startswith("tuned"):
            parts |= {**read.base_in_memory(), **_tuned(read)}
        else:
            parts |= _deployed(read, arm == PROMPT_DEPLOYED)
        if "retrieval" in arm or (arm == PROMPT_DEPLOYED and "retrieval" in recipe.evaluate.arms):
            parts |= {**read.keys("evaluate.retrieval"), **read.source("data.documents (content)", recipe.data.documents)}
        if arm.startswith(EXTERNAL):
            name = arm.removeprefix(EXTERNAL).partition(":")[0]
            return {**parts, **read.keys(f"evaluate.external.{name}.price")}
        return {**parts, **read.keys("evaluate.price_per_hour")}

    return inputs


def _deployed(read: Inputs, is_prompt: bool = False) -> Parts:
    """What llama.cpp is given; a base that lies elsewhere is the recipe's own."""
    if is_file(read):
        return _tuned_of_run(read)
    names = deployed_files(read.recipe, is_prompt)
    return read.files(*(f"export/{name}" for name in names if name is not None and not Path(name).is_absolute()))


def _tuned_and_deployed(read: Inputs) -> Parts:
    return {**_tuned_of_run(read), **(_deployed(read) if "deployed" in read.recipe.evaluate.arms else {})}


def _finalists(asking: list[str]) -> Stage:
    """The stage that scores the finalists beside the arms; it waits for those, which may ask the same."""

    def inputs(read: Inputs) -> Parts:
        parts = _inputs_of_arm("few_shot")(read)
        if "retrieval" in asking:
            parts |= _inputs_of_arm("retrieval")(read)
        return {**parts, "arms": [*asking]}

    return Stage(
        name="evaluate finalists",
        module="evaluate",
        about="score the prompts that have to be beaten and are not the best of their arm",
        verb="evaluate",
        needs=("data", "render", "select", *(f"evaluate {arm}" for arm in asking)),
        inputs=inputs,
        outputs=("evaluation/finalists/",),
        argument="finalists",
        asks_base=True,
    )


def _answers(read: Inputs, without: str = "") -> Parts:
    """The answers of everything that was scored on the test part, but for an arm."""
    arms = [arm for arm in read.recipe.evaluate.arms if arm != without]
    names = read.run.files_below("evaluation/finalists/")
    return read.files(*(f"evaluation/{arm}/{file}" for arm in arms for file in ("outputs.jsonl", "scores.json")), *names)


def _export(read: Inputs) -> Parts:
    recipe = read.recipe
    parts = {
        **_tuned_of_run(read),
        **read.files(TEMPLATE, RENDERED),
        **read.model(),
        **read.base_forms(),
        **read.keys("name", "export", "towers", "base", "per_layer_embeddings", "base_head", "task.short_prompt"),
    }
    if PROMPT_DEPLOYED in recipe.evaluate.arms:
        parts["base as GGUF"] = True
    reads_rows = recipe.export.imatrix or any(plain_type(kind) != kind for kind in recipe.export.gguf)
    return {**parts, **read.files("data/train.arrow")} if reads_rows else parts


EXPORT = Stage(
    name="export",
    module="export",
    about="write the forms that are deployed",
    needs=("render", "train"),
    inputs=_export,
    outputs=("export/",),
    without=("export/parity.json", "export/sweep.json", "export/sweep.svg"),
    asks_base=True,
    form=2,  # since a base that is deployed as a file is written with the run's template
)


def _exported_files(read: Inputs) -> Parts:
    if is_file(read):
        return {}
    names = read.run.files_below(*EXPORT.outputs)
    return read.files("export/export.json", *(name for name in names if name not in EXPORT.without))


def _parity(read: Inputs) -> Parts:
    return {
        **_exported_files(read),
        **_tuned_of_run(read),
        **read.files(RENDERED, TEMPLATE, "data/dev.jsonl"),
        **read.base_in_memory(),
        **read.scoring(),
        **read.keys("task.min_gain", "task.short_prompt"),
    }


PARITY = Stage(
    name="parity",
    module="parity",
    about="hold every exported form against what was trained",
    needs=("render", "train", "export"),
    inputs=_parity,
    outputs=("export/parity.json",),
    asks_base=True,
)


def parity_of(recipe: Recipe) -> Stage:
    """Parity of what is exported, or of a GGUF that was brought."""
    if recipe.tuned_kind == "gguf":
        return replace(PARITY, needs=("render", "bring"))
    return after(PARITY, CHOOSE if recipe.chooses else maker_of(recipe))


def _seeds(read: Inputs) -> Parts:
    return {
        **_training(read),
        **_inputs_of_arm("tuned")(read),
        **read.files("evaluation/tuned/scores.json"),
        **read.keys(SUB_RUNS[0]),
    }


SEEDS = Stage(
    name="seeds",
    module="seeds",
    about="train and score the adapters of evaluate.seeds",
    needs=("render", "train", "evaluate tuned"),
    inputs=_seeds,
    outputs=("evaluation/seeds.json",),
    asks_base=True,
)


def _curve(read: Inputs) -> Parts:
    return {
        **_training(read),
        **read.files(*ADAPTER, *PARTS[:2], RENDERED),
        **read.scoring(),
        **read.keys("task.min_gain", "task.short_prompt", SUB_RUNS[1]),
        **read.present("evaluation/seeds.json"),
    }


CURVE = Stage(
    name="learning-curve",
    module="curve",
    about="train on shares of the train part, and say what more data would buy",
    needs=("render", "train"),
    inputs=_curve,
    outputs=("evaluation/curve.json",),
    asks_base=True,
)


def _judge(scored: tuple[str, ...]) -> Stage:
    def inputs(read: Inputs) -> Parts:
        return {**read.files("data/test.jsonl", "evaluation/selection.json"), **_answers(read), **read.scoring()}

    return Stage(
        name="judge",
        module="judge",
        about="let the judge compare every arm and finalist with the best prompt on dev",
        verb="verdict",
        needs=("select", *scored),
        inputs=inputs,
        outputs=("evaluation/judge.json", "evaluation/judged/"),
        implied=True,
    )


def _verdict(needs: tuple[str, ...], checks: tuple[str, ...]) -> Stage:
    def inputs(read: Inputs) -> Parts:
        priced = read.keys("advise", "evaluate.price_per_hour") if PROMPT_DEPLOYED in read.recipe.evaluate.arms else {}
        return {
            **priced,
            **read.files(*named_files(read.run)),  # which it names, so that it never speaks of files of another day
            **read.files("data/test.jsonl", "evaluation/selection.json"),
            **_answers(read),
            **read.files(*checks),
            **read.present("evaluation/retrieval.json"),
            **read.scoring(),
            **(_tuned(read) if read.recipe.tuned else {}),
            **read.keys(*DECIDING, "evaluate.arms", "evaluate.forgetting.required"),
        }

    return Stage(
        name="verdict",
        module="verdict",
        about="decide from the scored arms",
        needs=needs,
        inputs=inputs,
        outputs=("evaluation/verdict.json",),
    )


def _report(needs: tuple[str, ...]) -> Stage:
    on_page = ["data/report.json", RENDERED]
    on_page += ["metrics.jsonl", "training.json"] if "train" in needs else [BROUGHT]
    on_page += ["export/export.json"] if "export" in needs else []
    maybe = ("export/merge.json", "export/parity.json", "evaluation/curve.json", "evaluation/seeds.json", "data/base.json")
    maybe += ("manifest.json", "recipe.yaml")

    def inputs(read: Inputs) -> Parts:
        return {**read.files("evaluation/verdict.json", *on_page), **read.present(*maybe)}

    return Stage(
        name="report",
        module="report",
        about="write the page",
        needs=needs,
        inputs=inputs,
        outputs=("report.html",),
    )
