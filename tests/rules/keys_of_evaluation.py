"""What each key of the arms, the checks around them and the advice changes: evaluate, advise, data.documents."""

import hashlib
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from keys_of_data import ROWS, prompt_book

from outputs import outputs, selection
from tunesmith.checkpoints.resolve import find_model
from tunesmith.engines.engine import Answer
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.evaluate import prompts
from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.forgetting import Paired
from tunesmith.evaluate.gate import Case, Evidence, decide
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.search import instructions
from tunesmith.evaluate.select import PromptTask, select_prompt
from tunesmith.models.load import load_model
from tunesmith.pipeline import forgetting
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.curve import share_of
from tunesmith.pipeline.evaluation import Evaluation, engine_of
from tunesmith.pipeline.seeds import seed_recipes
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.verdict import saving_of
from tunesmith.retrieval.corpus import open_store, read_corpus
from tunesmith.rundir.records.evaluation import Candidate, Terms
from tunesmith.rundir.records.evidence import Forgetting


class _Echo:
    def generate(self, asked, max_new_tokens, advance, allowed=None, tools=None):
        return [Answer("{}", 1, 1, 0.0, True) for _ in asked]


def _selection(recipe, tmp):
    metric = make_metric(recipe.task)
    writer = (lambda _: "```\nNew.\n```") if recipe.evaluate.optimized_prompt.writer else None
    asked = {"recipe": recipe, "book": prompt_book(recipe, tmp), "dev": ROWS[40:], "metric": metric, "max_new_tokens": 4}
    asked["test_rows"] = 80
    selection = select_prompt(PromptTask(**asked, engine_of=lambda _: _Echo(), writer=writer))
    return [(trial.name, trial.n) for trial in selection.candidates], selection.search, selection.finalists


def _endpoint(recipe, tmp):
    return engine_of(None, recipe, "external:big", None, [], 1)[0]


def _batches(recipe, tmp):
    from tunesmith.chat.render import Renderer
    from tunesmith.models.load import load_tokenizer

    directory = find_model(recipe.model)
    done = []
    engine = InProcessEngine(load_model(directory, "fp32"), Renderer(load_tokenizer(directory)), recipe.evaluate.batch_size)
    engine.generate([[{"role": "user", "content": "a"}]] * 6, 1, done.append)
    return done


def _advised(recipe, tmp):
    """What the checklist says of the price of calls."""
    return api.advise(api.open_run(tmp / "toy.yaml", tmp / "run"), quick=True).checks[6]


def _forgotten(recipe, tmp):
    """What the forgetting check looks at and concludes, with a stub in the place of the model."""
    (tmp / "own.txt").write_text("\n\n".join(f"passage {i}" for i in range(10)))
    asked = []
    lost = np.linspace(-0.02, -0.04, 20)

    def compared(measured, probes, margin):
        asked.append(probes.passages[0].id)
        paired = Paired(name="a", label="a", base_N=lost, tuned_N=lost, differences_N=lost, margin=margin, unit="")
        return [paired], []

    run = api.open_run(tmp / "toy.yaml", tmp / f"run-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}")
    with pytest.MonkeyPatch.context() as patch:
        tasks = SimpleNamespace(task_probes=lambda _, keys: asked.append((keys.tasks, keys.tasks_path, keys.limit)) or [])
        patch.setitem(sys.modules, "tunesmith.pipeline.forgetting_tasks", tasks)
        patch.setattr("tunesmith.pipeline.forgetting.measure", lambda *_: None)
        patch.setattr("tunesmith.pipeline.forgetting.compared", compared)
        patch.setattr("tunesmith.pipeline.forgetting._deployed", lambda *_: None)
        loaded = SimpleNamespace(model=None, layers=None, renderer=None)
        model = SimpleNamespace(here=SimpleNamespace(load=lambda _: loaded), adapter=run.adapter)
        patch.setattr("tunesmith.pipeline.forgetting.tuned_model", lambda *_: model)
        forgetting.execute(run, recipe, Session(), "")
        result = Forgetting.read(run.evaluation / "forgetting.json")
    return asked, result.verdict


GAIN = Comparison(gain=0.1, low=0.05, high=0.15, p=0.01, won=9, lost=1, n=80, units=80)


def _blocked(recipe, tmp):
    """What a clear gain comes to when the forgetting suite cannot tell."""
    unknown = Forgetting(verdict="too little data to tell", reason="", margin=0.02, probes=(), figures=())
    evidence = Evidence(forgetting=unknown, forgetting_required=recipe.evaluate.forgetting.required)
    return decide(Case(terms=Terms(min_gain=0.05), comparisons=(GAIN,), evidence=evidence)).decision


def _searched(recipe, tmp):
    """Passages that the retrieval arms search, and the kind of store and embedder that searches them."""
    (tmp / "faq.md").write_text("Cars are red.")
    corpus = read_corpus(recipe, ROWS[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.retrieval.corpus.load_embedder", lambda name: SimpleNamespace(key=name, cut=0))
        patch.setattr("tunesmith.retrieval.corpus.build_qdrant", lambda url, *_: url)
        patch.setattr("tunesmith.retrieval.corpus.build_store", lambda path, *passages: passages[2] and passages[2].key)
        return corpus.ids, open_store(recipe, tmp / "store.sqlite", corpus)


def _saved(recipe, tmp):
    """What a call of 500 prompt tokens and 10 answer tokens more saves."""
    run = SimpleNamespace(stages=lambda: {"train": SimpleNamespace(seconds=3600.0)})
    arms = {"prompt_deployed": outputs([1, 1], prompt_tokens=509, new_tokens=11), "deployed": outputs([1, 1])}
    chosen = {"few_shot": Candidate(arm="few_shot", instruction=None, k=3)}
    return saving_of(run, recipe, arms, replace(selection("few_shot"), arms=chosen))


ENDPOINT = {"base_url": "http://localhost:1/v1", "model": "big"}


OBSERVE = {
    "evaluate.arms": (["zero_shot", "tuned"], _selection),
    "evaluate.few_shot.k": ([1, 2], _selection),
    "evaluate.few_shot.draws": (1, _selection),
    "evaluate.few_shot.selection": (["random"], _selection),
    "evaluate.finalists": (1, _selection),
    "evaluate.optimized_prompt.calls": (50, _selection),
    "evaluate.optimized_prompt.writer": ({"base_url": "http://x/v1", "model": "m"}, _selection),
    "evaluate.optimized_prompt.instructions": (["Mine."], lambda r, t: instructions(r)),
    "evaluate.external": ({"big": {**ENDPOINT, "model": "other"}}, _endpoint),
    "evaluate.price_per_hour": (2.0, lambda r, t: Evaluation.cost_of(SimpleNamespace(recipe=r), "tuned") is None),
    "evaluate.batch_size": (2, _batches),
    "evaluate.seeds": (2, lambda r, t: [other.seed for other in seed_recipes(r)]),
    "evaluate.learning_curve": ([0.25, 0.5, 1.0], lambda r, t: [len(share_of(r, ROWS, s)) for s in r.evaluate.learning_curve]),
    "advise.calls_per_month": (9000, _advised),
    "advise.price_per_million_prompt_tokens": (2.0, _advised),
    "advise.price_per_million_cached_tokens": (0.5, _saved),
    "advise.price_per_million_output_tokens": (4.0, _saved),
    "advise.hosting_per_month": (3.0, _saved),
    "data.documents": ("faq.md", _searched),
    "evaluate.retrieval.k": (3, lambda r, t: [c.documents for c in prompts.candidates(r, ROWS, "retrieval")]),
    "evaluate.retrieval.embedder": ("all-MiniLM-L6-v2", _searched),
    "evaluate.retrieval.qdrant": ("http://localhost:6333", _searched),
    "evaluate.forgetting.margin": (0.2, _forgotten),
    "evaluate.forgetting.required": (True, _blocked),
    "evaluate.forgetting.texts": ("own.txt", _forgotten),
    "evaluate.forgetting.tasks": (["arc_easy"], _forgotten),
    "evaluate.forgetting.tasks_path": ("tasks", _forgotten),
    "evaluate.forgetting.limit": (9, _forgotten),
}
PRICES = {"advise.calls_per_month": 1e6, "advise.price_per_million_prompt_tokens": 1.0, "evaluate.price_per_hour": 2.0}
TASKS = {"evaluate.forgetting.tasks": ["arc_easy"]}
OPTIMIZED = {"evaluate.arms": ["instruction", "optimized_prompt"]}
FIXED = {
    "evaluate.forgetting.tasks_path": TASKS,
    "evaluate.forgetting.limit": TASKS,
    **{f"advise.{key}": PRICES for key in ("price_per_million_cached_tokens", "price_per_million_output_tokens")},
    "advise.hosting_per_month": PRICES,
    "evaluate.retrieval.qdrant": {"evaluate.retrieval.embedder": "all-MiniLM-L6-v2"},
    "evaluate.external": {"evaluate.arms": ["instruction", "external:big"], "evaluate.external": {"big": ENDPOINT}},
    **{key: OPTIMIZED for key in OBSERVE if key.startswith("evaluate.optimized_prompt.")},
}
