"""A form opened, asked what the reference was asked, and judged; models are opened one at a time.

GGUF forms run in llama.cpp: its own template, tokenizer and products, for the distributions through its library and for the
task's answers through its server. What a form cannot do is a failed check of that form, never the end of the comparison.

Shape suffixes: N rows (positions of all prompts), T tokens (of one), V vocabulary.
"""

import gc
from contextlib import closing
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from tunesmith.engines.form import ComputePlace, ExportedForm, FormModel
from tunesmith.errors import ExportError, ModelError, RunError
from tunesmith.messages import Message
from tunesmith.parity.checks import (
    adapter_check,
    bound_of,
    distribution_check,
    form_state,
    ids_check,
    metric_check,
    parsed_control_tokens,
    template_check,
)
from tunesmith.parity.figures import Distances, distances, figures, first_divergence
from tunesmith.parity.prompts import NEW_TOKENS, Rendering
from tunesmith.parity.reference import Reference
from tunesmith.parity.task import Task
from tunesmith.rundir.records.parity import Check, Divergence, Figures, FormParity, TaskScore
from tunesmith.tracking import progress


@dataclass(frozen=True, kw_only=True)
class _Observation:
    """What a form computes, beside the reference."""

    checks: dict[str, Check]
    figures: Figures
    divergence: Divergence | None
    control_tokens: tuple[str, ...]


def measure_form(
    form: ExportedForm,
    reference: Reference,
    tokenizer: PreTrainedTokenizerBase,
    place: ComputePlace,
    task: Task | None,
    context: int,
    no_task: str | None = None,
) -> FormParity:
    """Everything that parity says of a form.

    Args:
        tokenizer: the run's, to show ids as text.
        task: None where none is compared, and ``no_task`` says why.
        context: tokens that a served model reserves; an engine may compute otherwise with a larger context.
    """
    checks: dict[str, Check] = {}
    observation: _Observation | None = None
    score: TaskScore | None = None
    try:
        observation = _observe(form, reference, tokenizer, place, context)
        checks |= observation.checks
        if task is not None:
            score = _score(form, reference, place, task)
            checks["metric"] = metric_check(score, task.margin)
    except (ExportError, ModelError, RunError) as error:
        checks["runs"] = Check(state="fail", summary=error.message)
    gc.collect()
    state, reason = form_state(checks, form.rounding is None, no_task)
    return FormParity(
        form=form.name,
        file=form.files[0].name,
        state=state,
        reason=reason,
        checks=checks,
        figures=None if observation is None else observation.figures,
        divergence=None if observation is None else observation.divergence,
        control_tokens=() if observation is None else observation.control_tokens,
        task=score,
    )


def _observe(
    form: ExportedForm, reference: Reference, tokenizer: PreTrainedTokenizerBase, place: ComputePlace, context: int
) -> _Observation:
    """Template, ids, distribution and adapter."""
    prompts = reference.prompts
    longest = max(len(prompt.ids) for prompt in prompts) + NEW_TOKENS + 64
    distances_of = list[Distances]()
    with closing(form.open(place, max(longest, context))) as model:
        renderings = [_rendering(model, prompt.messages) for prompt in prompts]
        with progress(f"parity {form.name}", len(prompts)) as bar:
            for prompt, span in zip(prompts, reference.spans, strict=True):
                logits_TV = model.logits(prompt.ids + prompt.continuation[:-1], len(prompt.ids) - 1)
                distances_of.append(distances(reference.tuned_NV[span], reference.base_NV[span], logits_TV))
                bar.advance()
    bound, measured = bound_of(form.rounding, place.arithmetic), figures(distances_of)
    bos = tokenizer.bos_token if isinstance(tokenizer.bos_token, str) else None

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return _Observation(
        checks={
            "template": template_check(prompts, renderings, bos),
            "token ids": ids_check(prompts, renderings, decode),
            "distribution": distribution_check(measured, bound),
            "adapter": adapter_check(measured, reference.adapter_kl, bound),
        },
        figures=measured,
        divergence=first_divergence(distances_of, prompts, decode),
        control_tokens=parsed_control_tokens(prompts, renderings),
    )


def _rendering(model: FormModel, messages: list[Message]) -> Rendering:
    try:
        text = model.render(messages)
    except ExportError as error:
        return Rendering(text="", ids=[], refused=error.message)
    return Rendering(text=text, ids=model.tokenize(text))


def _score(form: ExportedForm, reference: Reference, place: ComputePlace, task: Task) -> TaskScore:
    """The form's answers to the dev rows beside the reference's."""
    assert reference.answers is not None  # the reference answers what the forms are asked
    engine = form.engine(place, task.context, task.n)
    try:
        answers = task.ask(form.name, engine)
    finally:
        engine.close()
    return task.compare(answers, reference.answers)
