"""What the exported forms are compared with: the model as it was trained, and as it was before.

The base as training stored it (rounded to bf16, or in NF4) with the fp32 adapter on it, unmerged. Once loaded it is also the
base, with its adapter switched off, and it answers the dev rows; a second copy in memory was refused.

**Logits** of both are kept on the disk while the forms take their turns, for some 18 prompts of at most 32 positions: 0.6 GB
each for a vocabulary of 262 k, 0.1 GB for 49 k. Memory was refused, since the forms need it.

Shape suffixes: N rows (positions of all prompts), T tokens (of one), V vocabulary.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError
from tunesmith.pipeline.engines import context_for, output_constraint
from tunesmith.pipeline.parity_forms import Place, model_logits
from tunesmith.pipeline.stage import renderer
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, read_rows
from tunesmith.tracking import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from tunesmith.chat.render import Renderer
    from tunesmith.engines.engine import Constraint, Engine, Message
    from tunesmith.evaluate.arms import Outputs
    from tunesmith.evaluate.metrics import Metric
    from tunesmith.parity.figures import Check, Prompt

logger = logging.getLogger(__name__)

DEV_PROMPTS = 12  # beside the fixed ones: the figures are means over some 500 positions, enough for 1 in 100
LONG = 500  # tokens of the long prompt, at most


@dataclass(frozen=True)
class Task:
    """The dev rows that every form answers.

    Attributes:
        context: tokens that the longest prompt and its answer need.
        margin: the largest loss that is accepted (``parity/figures.py``).
    """

    metric: "Metric"
    rows: list[dict[str, Any]]
    prompts: "list[list[Message]]"
    budget: int
    allowed: "Constraint | None"
    groups: list[str] | None
    context: int
    margin: float

    def answers(self, name: str, engine: "Engine") -> "Outputs":
        """Ask an engine all rows and score what it says."""
        from tunesmith.evaluate.arms import ask

        ids = [row["id"] for row in self.rows]
        references = [row["messages"][-1]["content"] for row in self.rows]
        return ask(f"parity {name}", engine, ids, self.prompts, references, self.metric, self.budget, self.allowed)

    def score(self, answers: "Outputs") -> float:
        """The metric's headline of scored answers."""
        from tunesmith.evaluate.arms import summary
        from tunesmith.evaluate.metrics import HEADLINE

        return summary(answers, self.metric)[HEADLINE]

    def against(self, answers: "Outputs", reference: "Outputs") -> "tuple[dict[str, Any], Check]":
        """``score`` and ``against`` (``Comparison``) of answers beside the reference's, and whether they are non-inferior."""
        from tunesmith.evaluate.compare import compare
        from tunesmith.parity.figures import metric_check

        c = compare(answers, reference, self.metric, self.groups)
        facts = {"score": self.score(answers), "against": asdict(c)}
        return facts, metric_check(c.gain, c.low, c.high, self.margin, c.n)


@dataclass(frozen=True)
class Reference:
    """What the forms are compared with; logits by row, those of prompt i in ``spans[i]``."""

    prompts: "list[Prompt]"
    left_out: dict[str, str]
    spans: list[slice]
    tuned_NV: "NDArray[np.float32]"
    base_NV: "NDArray[np.float32]"
    adapter_kl: float
    answers: "Outputs | None"


def dev_task(run: RunDir, recipe: Recipe, most: int) -> Task | str:
    """At most so many dev rows to answer, or why there are none."""
    from tunesmith.evaluate.metrics import make_metric
    from tunesmith.evaluate.prompts import tuned

    if recipe.task.metric == "judge":
        return "a judge compares two answers and scores none by itself"
    metric = make_metric(recipe.task)
    rows = [row for row in _asking(run) if metric.fits(row["messages"][-1]["content"])]
    rows = _spread(rows, most)
    groups = None if recipe.data.group_by is None else [row.get("group") or row["id"] for row in rows]
    if len(set(groups or [row["id"] for row in rows])) < 2:
        return f"{len(rows)} dev rows can be scored, of one group; an interval needs two"
    budget, prompts = read_json(run.data / "rendered.json")["max_new_tokens"], [tuned(recipe, row) for row in rows]
    context, margin = context_for(recipe, prompts, budget), recipe.task.min_gain / 2
    return Task(metric, rows, prompts, budget, output_constraint(recipe), groups, context, margin)


def run_reference(run: RunDir, recipe: Recipe, place: Place, task: Task | str, scratch: Path) -> Reference:
    """The training stack with the adapter on, then off; its answers to the dev rows."""
    import numpy as np
    import torch

    from tunesmith.engines.in_process import InProcessEngine
    from tunesmith.models.adapter import load_adapter_state, read_adapter
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora, without_adapters
    from tunesmith.parity.figures import NEW_TOKENS, Prompt, base_distance

    directory, made = renderer(recipe)
    _, compute = precision(recipe.base, recipe.train.compute, directory)
    storage = "nf4" if recipe.base == "nf4" else place.arithmetic
    model = load_model(directory, place.arithmetic, storage, place.device, recipe.per_layer_embeddings)
    if place.arithmetic == "fp32" and compute == "bf16":
        for parameter in model.parameters():  # as training stored them; a checkpoint in bf16 stays as it is
            parameter.copy_(parameter.bfloat16())
    layers = add_lora(model, recipe.lora, recipe.seed)
    load_adapter_state(layers, read_adapter(run.adapter))
    room = model.config.get_text_config().max_position_embeddings - NEW_TOKENS
    chosen, left_out = _choose_prompts(run, recipe, made, room)
    stops = set(made.stop_ids)
    with progress("parity reference", 2 * len(chosen)) as bar, torch.inference_mode():
        prompts = []
        for name, messages in chosen.items():
            ids = made.prompt_ids(messages)
            forged = any(made.vocabulary.tokens(message["content"]) for message in messages)
            text = made.text(messages, generate=True)
            prompts.append(Prompt(name, messages, text, ids, forged, _greedy(model, ids, stops, NEW_TOKENS)))
            bar.advance()
        ends = np.cumsum([len(prompt.continuation) for prompt in prompts]).tolist()
        spans = [slice(end - len(prompt.continuation), end) for end, prompt in zip(ends, prompts, strict=True)]
        tuned_NV = _all_logits(model, prompts, spans, scratch / "tuned")
        with without_adapters(layers):
            base_NV = _all_logits(model, prompts, spans, scratch / "base")
        bar.advance(len(prompts))
    changed = np.concatenate([base_distance(tuned_NV[span], base_NV[span]) for span in spans])
    answers = None
    if not isinstance(task, str):
        answers = task.answers("reference", InProcessEngine(model, made, recipe.evaluate.batch_size))
    return Reference(prompts, left_out, spans, tuned_NV, base_NV, float(changed.mean()), answers)


def _asking(run: RunDir) -> list[dict[str, Any]]:
    """Dev rows that ask for a text: no plain texts, no tool calls."""
    rows = read_rows(run.data / "dev.jsonl")
    return [row for row in rows if row.get("kind") != "text" and "tool_calls" not in row["messages"][-1]]


def _spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows from front to back, or all."""
    return rows if len(rows) <= count else [rows[number * len(rows) // count] for number in range(count)]


def _choose_prompts(
    run: RunDir, recipe: Recipe, made: "Renderer", room: int
) -> "tuple[dict[str, list[Message]], dict[str, str]]":
    """Prompts by name: some of dev's, as the tuned arm asks them, and the fixed ones; and why others were left out."""
    from tunesmith.evaluate.prompts import tuned
    from tunesmith.parity.figures import fixed_prompts, long_text

    asked = made.text([{"role": "user", "content": "a"}], generate=True)
    control = list(dict.fromkeys(made.vocabulary.tokens(asked)))[:4]
    sentences = LONG // 10
    while sentences > 1 and len(made.vocabulary.encode([(long_text(sentences), "middle")])[0]) > min(LONG, room // 2):
        sentences //= 2
    wanted = {row["id"]: tuned(recipe, row) for row in _spread(_asking(run), DEV_PROMPTS)}
    wanted |= fixed_prompts(control, long_text(sentences))
    chosen: dict[str, list[Message]] = {}
    left_out: dict[str, str] = {}
    for name, messages in wanted.items():
        try:
            length = len(made.prompt_ids(messages))
        except DataError as error:
            left_out[name] = error.message
            continue
        if length > room:
            left_out[name] = f"{length:,} tokens, and an answer does not fit after them"
        else:
            chosen[name] = messages
    for name, reason in left_out.items():
        logger.warning(f"parity: prompt {name} is left out: {reason}")
    return chosen, left_out


def _greedy(model: "PreTrainedModel", ids: list[int], stops: set[int], count: int) -> list[int]:
    """At most ``count`` new tokens, a stop included."""
    import torch

    feed, past, said = ids, None, []
    while len(said) < count and not (said and said[-1] in stops):
        given = torch.tensor([feed], device=model.device)
        out = model(input_ids=given, past_key_values=past, use_cache=True, logits_to_keep=1)
        said.append(int(out.logits[0, -1].argmax()))
        past, feed = out.past_key_values, said[-1:]
    return said


def _all_logits(model: "PreTrainedModel", prompts: "list[Prompt]", spans: list[slice], file: Path) -> "NDArray[np.float32]":
    """Logits at every position of every continuation, on the disk, shape (N, V)."""
    import numpy as np

    kept_NV = None
    for prompt, span in zip(prompts, spans, strict=True):
        logits_TV = model_logits(model, prompt.ids + prompt.continuation[:-1], len(prompt.ids) - 1)
        if kept_NV is None:
            kept_NV = np.memmap(file, np.float32, "w+", shape=(spans[-1].stop, logits_TV.shape[1]))
        kept_NV[span] = logits_TV
    assert kept_NV is not None, "no prompts"
    return kept_NV
