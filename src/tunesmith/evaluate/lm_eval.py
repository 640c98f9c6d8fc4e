"""Benchmarks of lm-evaluation-harness on the model in memory, base and tuned, paired document by document.

Any task of the harness runs here that scores given answers (multiple choice, log-likelihood, perplexity of documents that
fit the context) or lets the model write greedily: by name, or from a folder of YAML files, which can point at local JSON and
then needs no network. The model is not loaded again: ``InMemoryLM`` answers the harness's requests with our own scoring
(``engines/score.py``), which computes common beginnings once and never keeps the logits of the vocabulary, and our own
decoding (``engines/decode.py``), in which a row leaves the batch when it ends.

An answer ends at a stop token of the model, behind a text of the task's ``until``, or after ``max_gen_toks``. Whether such a
text was written is looked for in the last tokens as text, since its letters may be cut into tokens in several ways.

The harness's own comparison of two models is an unpaired z-test; it finds a real difference of 5 points on 200 documents
one time in twenty. Here the documents are matched by the harness's hashes of document, prompt and target, and the verdict
is of non-inferiority like that of every other probe.

Refused: the harness's ``HFLM`` around our model (it pads, and scores every answer with its whole prompt), and tasks that
sample: two samples differ without any training, and a pair of them says little. Such a task is an error that says so.

Tokenisation is HFLM's: context and answer are encoded together and cut after the tokens of the context, white space at the
end of the context goes to the answer, and an empty context is the token that begins a text. Other people's documents hold
no control token here, whatever they look like.

Source: ``lm_eval/api/model.py`` and ``lm_eval/evaluator.py`` of lm-evaluation-harness 0.4.13. Extra ``lm-eval``.

Shape suffixes: N rows (documents of a task).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from tunesmith.chat.render import Renderer
from tunesmith.chat.vocabulary import START
from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.score import Scorer
from tunesmith.errors import MissingPackage, RecipeError
from tunesmith.evaluate.forgetting import Paired
from tunesmith.layers.experts import Adapted
from tunesmith.models.swap import without_adapters

try:
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports] - the extra is not in every environment
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingPackage(
        "evaluate.forgetting.tasks needs the package lm_eval, which is not installed", "pip install 'tunesmith[lm-eval]'"
    ) from error

BATCH = 32  # answers decoded together
IDLE = {"temperature", "top_p", "top_k"}  # of sampling; a greedy choice does not look at them


class InMemoryLM(LM):
    """The harness's view of a model in memory."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer):
        super().__init__()
        self._model, self._renderer, self._scorer = model, renderer, Scorer(model)
        tokenizer = renderer.tokenizer
        bos = tokenizer.bos_token_id
        self._begin = bos if isinstance(bos, int) else renderer.stop_ids[0]
        # The tokenizer says itself whether a text begins with that token.
        self._prefix = [self._begin] if renderer.text_begin == [self._begin] else []
        self._limit = int(model.config.max_position_embeddings)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation given its context, and whether greedy decoding would write it."""
        pairs = [self._pair(*request.args) for request in requests]
        return [(scored.logprob, scored.greedy) for scored in self._scorer.continuation_logprobs(pairs)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Log-probability (nats) of each whole text after the token that begins a text.

        Raises:
            RecipeError: a text is longer than the model's context; windows over it were refused, since they depend on the
                context's length and make two models incomparable.
        """
        pairs = [self._fitting([self._begin], ids) for ids in self._encode([request.args[0] for request in requests])]
        return [scored.logprob for scored in self._scorer.continuation_logprobs(pairs)]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What the model writes behind each context, up to and without the first of the task's stop texts.

        A context that leaves no room for ``max_gen_toks`` loses its oldest tokens, as in the harness.

        Raises:
            RecipeError: a task that samples, an option that is not known here, or no room for a context.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for numbers in groups.values():
            until, budget = _greedy_options(requests[numbers[0]].task_name, requests[numbers[0]].args[1])
            if budget >= self._limit:
                raise RecipeError(
                    f"evaluate.forgetting.tasks: max_gen_toks {budget} fills the model's context of {self._limit}",
                    "lower max_gen_toks of the task",
                )
            contexts = self._encode([requests[number].args[0] for number in numbers])
            prompts = [([*self._prefix, *ids] or [self._begin])[budget - self._limit :] for ids in contexts]
            rule = StopRule(budget, self._renderer.stop_ids, self._stop_text(until) if until else None)
            generations = greedy(self._model, prompts, rule, BATCH)
            texts |= {number: self._cut(one.ids, until) for number, one in zip(numbers, generations, strict=True)}
        return [texts[number] for number in range(len(requests))]

    def _stop_text(self, until: list[str]) -> Callable[[list[int]], bool]:
        """Whether the last tokens hold one of these texts; a token is a byte at least, but for one that shows nothing."""
        tail = max(len(text.encode()) for text in until) + 2
        return lambda ids: any(text in self._text(ids[-tail:], False) for text in until)

    def _cut(self, ids: list[int], until: list[str]) -> str:
        text = self._text(ids, True)
        return text[: min(at if at >= 0 else len(text) for at in map(text.find, until))] if until else text

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = self._renderer.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)
        return text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._renderer.vocabulary.encode([(text, START) for text in texts])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return self._fitting([self._begin], self._encode([continuation])[0])
        whole, before = self._encode([context + continuation, context.rstrip()])
        return self._fitting([*self._prefix, *before], whole[len(before) :])

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The pair, with the oldest tokens of the context left out where it is too long, as the harness does."""
        if len(continuation) > self._limit:
            raise RecipeError(
                f"evaluate.forgetting.tasks: a text of {len(continuation)} tokens does not fit the context of {self._limit}",
                "choose a task with shorter documents",
            )
        room = self._limit + 1 - len(continuation)  # the last token is predicted and not read
        return (context or [self._begin])[-room:], continuation


def _greedy_options(task: str, kwargs: Mapping[str, Any]) -> tuple[list[str], int]:
    """Stop texts and token budget of a task that lets the model write."""
    options = normalize_gen_kwargs(kwargs)
    if options.pop("do_sample"):
        raise RecipeError(
            f"evaluate.forgetting.tasks: {task} samples (do_sample {kwargs.get('do_sample')}, temperature "
            f"{kwargs.get('temperature')}); only greedy decoding runs here",
            "set do_sample: false and temperature: 0.0 in its generation_kwargs",
        )
    until, budget = options.pop("until"), int(options.pop("max_gen_toks"))
    if odd := sorted(set(options) - IDLE):
        raise RecipeError(
            f"evaluate.forgetting.tasks: {task}: its generation_kwargs have {odd[0]}, which is not known here",
            "known are until, max_gen_toks, do_sample and temperature",
        )
    if budget < 1:
        raise RecipeError(f"evaluate.forgetting.tasks: {task}: max_gen_toks is {budget}", "give at least 1")
    return [text for text in until if text], budget


def run_tasks(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    renderer: Renderer,
    tasks: tuple[str, ...],
    folder: Path | None,
    limit: int | None,
    margin: float,
) -> list[Paired]:
    """A probe for each task; base and tuned see the same documents.

    Args:
        layers: what ``add_lora`` returned, with the trained weights.
        tasks: names, of the harness or of the folder's files.
        folder: YAML files that define tasks, searched first; None for the harness's alone.
        limit: documents of a task, its first ones; None for all.
        margin: largest loss that does not matter, in the unit of the task's metric.

    Raises:
        RecipeError: no such task, one that samples, or one without a metric of single documents.
    """
    manager = _manager(tasks, folder)
    sides: list[Any] = []
    for adapted in (False, True):
        lm = InMemoryLM(model, renderer)
        if adapted:
            sides.append(_evaluate(lm, manager, tasks, limit))
        else:
            with without_adapters(layers):
                sides.append(_evaluate(lm, manager, tasks, limit))
    base, tuned = sides
    return [_paired(task, base, tuned, margin) for task in base["samples"]]


def _manager(tasks: tuple[str, ...], folder: Path | None) -> TaskManager:
    if folder is not None and not folder.is_dir():
        raise RecipeError(f"evaluate.forgetting.tasks_path: {folder} is no directory", "give a folder of YAML files")
    if folder is not None:
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise RecipeError(f"evaluate.forgetting.tasks: {unknown[0]}: no such task", "lm-eval ls tasks prints all names")
    return manager


def _evaluate(lm: InMemoryLM, manager: TaskManager, tasks: tuple[str, ...], limit: int | None) -> Any:
    settings = {"tasks": list(tasks), "task_manager": manager, "limit": limit, "log_samples": True, "bootstrap_iters": 0}
    return simple_evaluate(model=lm, **settings)  # pyright: ignore[reportCallIssue] - its decorator hides the names


def _paired(task: str, base: Any, tuned: Any, margin: float) -> Paired:
    """One task's documents, by its first metric that is a number for every document."""
    first = base["samples"][task][0]
    metric = next((name for name in first["metrics"] if isinstance(first[name], bool | int | float)), None)
    if metric is None:
        raise RecipeError(
            f"evaluate.forgetting.tasks: {task}: none of its metrics ({', '.join(first['metrics'])}) has a number a document",
            "choose a task with acc, acc_norm or the like",
        )
    by_key = {_key(sample): float(sample[metric]) for sample in tuned["samples"][task]}
    samples: list[Any] = [sample for sample in base["samples"][task] if sample["filter"] == first["filter"]]
    base_N = np.array([float(sample[metric]) for sample in samples])
    tuned_N = np.array([by_key[_key(sample)] for sample in samples])
    higher = base["higher_is_better"].get(task, {}).get(metric, True)
    differences_N = tuned_N - base_N if higher else base_N - tuned_N
    binary = bool(np.isin(np.concatenate([base_N, tuned_N]), (0.0, 1.0)).all())
    return Paired(
        name=f"lm_eval:{task}",
        label=f"{task} ({metric})",
        base_N=base_N,
        tuned_N=tuned_N,
        differences_N=differences_N,
        margin=margin,
        unit=metric,
        binary=binary,
    )


def _key(sample: Any) -> tuple[Any, ...]:
    """What makes two documents the same one: number and hashes, and the filter of the answer."""
    return tuple(sample[name] for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash", "filter"))
