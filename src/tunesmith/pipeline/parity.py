"""Run the same prompts through the training stack and every exported form, and say which forms are what was trained.

What is compared, and within which bounds, stands in ``parity/figures.py``; models are opened one at a time.

**Arithmetic.** The reference (``api/parity_reference.py``) is what was trained: the base as training stored it, the adapter on
it. It computes in fp32 all the same, and so does the merged directory (``api/parity_forms.py``): half-precision products would
add an error of their own, of the very size that a wrong form has to be told from. Where fp32 weights fit neither the GPU nor
the machine, both compute as training did, and the bounds are those of that arithmetic.

GGUF forms run in llama.cpp: its own template, tokenizer and products, for the distributions through its library and for the
task's answers through its server. The sealed test part is not read.

Shape suffixes: N rows (positions of all prompts), T tokens (of one), V vocabulary.
"""

import gc
import logging
import shutil
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ExportError, ModelError, RunError
from tunesmith.pipeline.export import context_of
from tunesmith.pipeline.parity_forms import Form, FormModel, Place, choose_place, forms_of, open_engine, opened
from tunesmith.pipeline.parity_reference import DEV_PROMPTS, LONG, Reference, Task, dev_task, run_reference
from tunesmith.pipeline.stage import renderer, stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint, read_json, write_json
from tunesmith.tracking import progress

if TYPE_CHECKING:
    from tunesmith.engines.engine import Message
    from tunesmith.parity.figures import Check, Rendering

logger = logging.getLogger(__name__)

DEV_ROWS = 32  # for the metric: llama.cpp answers them one after another, once a form; enough to see a form that is broken
SCRATCH = ".parity"


def parity(run: RunDir) -> dict[str, Any]:
    """Compare every exported form with the training stack; writes and returns ``export/parity.json``.

    Returns:
        ``deployable`` (every form is), ``exit_code``, ``deployed`` (name of the form that the recipe deploys), ``arithmetic``,
        ``prompts`` (names), ``left_out`` (name -> why), ``positions``, ``adapter_kl`` (mean KL(tuned || base), nats),
        ``metric`` (``name, n, score, margin``, or ``reason`` where there is none), and ``forms``: of each the entry of
        ``export.parity.form_facts`` with ``figures``, ``divergence``, ``control_tokens`` (names of the prompts whose control
        tokens in a user's text the engine parses) and ``task`` (score, and ``Comparison`` with the reference).

    Raises:
        RunError: the run was not exported, or a file of its export is gone.
        MissingPackage: llama.cpp is not installed.
    """
    from tunesmith.evaluate.metrics import scoring
    from tunesmith.parity.figures import BOUNDS, NEW_TOKENS

    recipe = run.recipe()
    exported = run.key_of("export")
    limits = (DEV_PROMPTS, DEV_ROWS, LONG, NEW_TOKENS, BOUNDS)
    key = fingerprint(exported, run.key_of("render"), scoring(recipe.task), recipe.task.min_gain, limits)
    target = run.export / "parity.json"
    with stage(run, "parity", key, target) as needed:
        if needed:
            write_json(target, {"inputs": exported, **_measured(run, recipe)})
    result = read_json(target)
    for form in result["forms"]:
        logger.info(f"parity: {form['form']}: {'deployable' if form['deployable'] else 'not deployable: ' + form['reason']}")
    return result


def parity_lines(result: dict[str, Any]) -> list[str]:
    """What ``parity`` found, beside its table: failed and undecided checks, first divergences, what was left out."""
    lines = []
    for form in result["forms"]:
        name, found, parsed = form["form"], form["divergence"], form["control_tokens"]
        unsettled = {check: facts for check, facts in form["checks"].items() if facts["state"] in ("fail", "unknown")}
        lines += [f"{name}: {check}: {facts['told']}" for check, facts in unsettled.items()]
        if found is not None:
            lag = f"{'a tie, ' if found['tie'] else ''}{found['lag']:.2g} nats"
            said = f"after {found['so_far']!r} the trained model says {found['reference']!r}, the form {found['form']!r}"
            lines.append(f"{name}: first divergence ({lag}): prompt {found['prompt']}: {said}")
        if parsed:
            lines.append(
                f"{name}: its engine parses control tokens in user text, which training takes as text: {', '.join(parsed)}"
            )
    lines += [f"left out: prompt {prompt}: {reason}" for prompt, reason in result["left_out"].items()]
    if "reason" in result["metric"]:
        lines.append(f"metric not compared: {result['metric']['reason']}")
    measured = f"{len(result['prompts'])} prompts, {result['positions']} positions, reference in {result['arithmetic']}"
    return [*lines, f"{measured}; the adapter moves it {result['adapter_kl']:.2g} nats from its base"]


def deployed_parity(run: RunDir) -> dict[str, Any] | None:
    """The entry of the form that the recipe deploys; None where parity was not measured on the export that is there."""
    target = run.export / "parity.json"
    found = read_json(target) if target.exists() else None
    if found is None or found["inputs"] != run.key_of("export"):
        return None
    return next((form for form in found["forms"] if form["form"] == found["deployed"]), None)


def _measured(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    from tunesmith.evaluate.gate import EXIT_CODES, NOT_TRAINED

    forms = forms_of(run, recipe)
    place = choose_place(run, recipe)
    task = dev_task(run, recipe, DEV_ROWS)
    scratch = run.export / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        reference = run_reference(run, recipe, place, task, scratch)
        entries = [_compared(run, form, reference, recipe, place, task) for form in forms]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    deployable = all(entry["deployable"] for entry in entries)
    metric: dict[str, Any] = {"reason": task} if isinstance(task, str) else {"name": task.metric.name, "n": len(task.rows)}
    if not isinstance(task, str) and reference.answers is not None:
        metric |= {"score": task.score(reference.answers), "margin": task.margin}
    return {
        "deployable": deployable,
        "exit_code": 0 if deployable else EXIT_CODES[NOT_TRAINED],
        "deployed": recipe.export.gguf[-1],
        "arithmetic": place.arithmetic,
        "prompts": [prompt.name for prompt in reference.prompts],
        "left_out": reference.left_out,
        "positions": len(reference.tuned_NV),
        "adapter_kl": reference.adapter_kl,
        "metric": metric,
        "forms": entries,
    }


def _compared(run: RunDir, form: Form, reference: Reference, recipe: Recipe, place: Place, task: Task | str) -> dict[str, Any]:
    """A form's entry of the result. What the form cannot do is a failed check, never the end of the comparison."""
    from tunesmith.parity.figures import NEW_TOKENS, Check, form_facts

    checks: dict[str, Check] = {}
    more: dict[str, Any] = {"figures": None, "divergence": None, "control_tokens": [], "task": None}
    asked = list(reference.prompts)
    longest = max(len(prompt.ids) for prompt in asked) + NEW_TOKENS + 64
    context = max(longest, context_of(run, recipe)[0])  # as served: an engine may compute otherwise with a larger one
    try:
        with opened(form, place, context) as model:
            checks |= _check_model(form, model, reference, recipe, place, more)
        if not isinstance(task, str):
            checks["metric"] = _check_metric(form, reference, recipe, place, task, more)
    except (ExportError, ModelError, RunError) as error:
        checks["runs"] = Check("fail", error.message)
    gc.collect()
    return form_facts(form.name, form.path.name, checks, **more)


def _check_model(
    form: Form, model: FormModel, reference: Reference, recipe: Recipe, place: Place, more: dict[str, Any]
) -> "dict[str, Check]":
    """Template, ids, distribution and adapter."""
    from tunesmith.parity import figures as figures_of

    prompts, tokenizer = reference.prompts, renderer(recipe)[1].tokenizer

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    found = [_rendering(model, prompt.messages) for prompt in prompts]
    bos = tokenizer.bos_token if isinstance(tokenizer.bos_token, str) else None
    checks = {
        "template": figures_of.template_check(prompts, found, bos),
        "token ids": figures_of.ids_check(prompts, found, decode),
    }
    more["control_tokens"] = figures_of.parsed_control_tokens(prompts, found)
    measured = []
    with progress(f"parity {form.name}", len(prompts)) as bar:
        for prompt, span in zip(prompts, reference.spans, strict=True):
            logits_TV = model.logits(prompt.ids + prompt.continuation[:-1], len(prompt.ids) - 1)
            measured.append(figures_of.distances(reference.tuned_NV[span], reference.base_NV[span], logits_TV))
            bar.advance()
    bound = None if form.rounding is None else figures_of.BOUNDS[form.rounding]
    if bound is not None and place.arithmetic != "fp32":
        bound = max(bound, figures_of.BOUNDS[place.arithmetic])
    more["figures"] = figures = figures_of.figures(measured)
    more["divergence"] = figures_of.first_divergence(measured, prompts, decode)
    checks["distribution"] = figures_of.distribution_check(figures, bound)
    checks["adapter"] = figures_of.adapter_check(figures, reference.adapter_kl, bound)
    return checks


def _rendering(model: FormModel, messages: "list[Message]") -> "Rendering":
    from tunesmith.parity.figures import Rendering

    try:
        text = model.render(messages)
    except ExportError as error:
        return Rendering("", [], error.message)
    return Rendering(text, model.tokenize(text))


def _check_metric(form: Form, reference: Reference, recipe: Recipe, place: Place, task: Task, more: dict[str, Any]) -> "Check":
    """The form's answers to the dev rows beside the reference's."""
    assert reference.answers is not None
    engine = open_engine(form, recipe, place, task.context)
    try:
        answers = task.answers(form.name, engine)
    finally:
        engine.close()
    more["task"], check = task.against(answers, reference.answers)
    return check
