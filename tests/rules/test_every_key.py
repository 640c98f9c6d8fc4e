"""Rule 6: every recipe key changes behaviour. One observation per key; a key without one fails."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from conftest import toy_rows, write_recipe
from tunesmith.chat.fit import fit as fit_lengths
from tunesmith.chat.render import Conversation
from tunesmith.checkpoints import resolve
from tunesmith.checkpoints.resolve import find_model
from tunesmith.data.pack import Plan
from tunesmith.data.read import Reader
from tunesmith.data.split import SplitFacts, answer_key, group_key, split
from tunesmith.engines.base import open_base
from tunesmith.engines.engine import Answer
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.open import output_constraint
from tunesmith.errors import DataError, ExportError, ModelError, RecipeError, RunError
from tunesmith.evaluate import prompts
from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.forgetting import probe
from tunesmith.evaluate.gate import decide
from tunesmith.evaluate.judge import Pair, calibrate
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.search import instructions
from tunesmith.evaluate.select import PromptTask, select_prompt
from tunesmith.export.companions import merged_config
from tunesmith.export.forms.merged import merge_adapter
from tunesmith.layers.context import StepContext, at_step
from tunesmith.models.adapter import adapter_state
from tunesmith.models.load import load_model
from tunesmith.models.precision import precision
from tunesmith.models.swap import add_lora
from tunesmith.pipeline import forgetting
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.curve import share_of
from tunesmith.pipeline.evaluation import Evaluation, engine_of
from tunesmith.pipeline.export import context_of, dry_run
from tunesmith.pipeline.judge import make_judge
from tunesmith.pipeline.render import _refuse_left_out
from tunesmith.pipeline.seeds import seed_recipes
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Judge, Recipe, dump_recipe, load_recipe
from tunesmith.retrieval.corpus import open_store, read_corpus
from tunesmith.retrieval.store import build_store
from tunesmith.rundir.records.data import LeftOut, Rendered
from tunesmith.rundir.records.evidence import Forgetting
from tunesmith.rundir.rows import Row
from tunesmith.tracking import MetricsLog, read_metrics
from tunesmith.train import loop
from tunesmith.train.documents import make_documents
from tunesmith.train.schedule import learning_rate

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
OTHER = "{{ 'Think.' if enable_thinking }}" + TURNS + "{{ '<|im_start|>assistant: ' if add_generation_prompt }}"
ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]


def _find(recipe, tmp):
    try:
        return find_model(recipe.model, recipe.revision, recipe.model_sha256)
    except ModelError as error:
        return error.message


def _split(recipe, tmp):
    facts = SplitFacts()
    for row in Reader(recipe.data.path):
        facts.add(row.id, group_key(row), answer_key(row))
    parts = split(facts, recipe.data.test_fraction, recipe.data.dev_fraction, recipe.seed)
    return dict(zip(facts.ids.tolist(), parts.tolist(), strict=True))


def _precision(recipe, tmp):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.precision._faster", lambda directory: "bf16")
        return precision("nf4", recipe.train.compute, find_model(recipe.model))


def _fit(recipe, tmp):
    folder = tmp / hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
    folder.mkdir(exist_ok=True)
    model = load_model(find_model(recipe.model), recipe.base)
    layers = add_lora(model, recipe.lora, recipe.seed)
    generator = torch.Generator().manual_seed(0)
    documents = make_documents([(torch.randint(5, 900, (20,), generator=generator).tolist(), [0] * 10 + [1] * 10)] * 8)
    t = recipe.train
    steps = Plan(documents.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
    loop.fit(model, layers, documents, steps, documents, recipe, folder / "checkpoints", MetricsLog(folder / "m.jsonl"), "x")
    weights = [float(t.double().sum()) for t in adapter_state(layers).values()]
    records = [(r["loss"], r.get("dev_loss")) for r in read_metrics(folder / "m.jsonl")]
    return weights, records, [len(packs) for _, packs in steps]


def _checkpoints(recipe, tmp):
    """How many checkpoints a run leaves."""
    _fit(recipe, tmp)
    return len(list(tmp.glob("*/checkpoints/step-*")))


def _recomputed(recipe, tmp):
    """How often a run recomputes a part."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.recompute.checkpoint", lambda f, *x, **o: calls.append(1) or checkpoint(f, *x, **o))
        _fit(recipe, tmp)
    return len(calls)


def _is_deterministic(recipe, tmp):
    """Whether a training step runs under PyTorch's deterministic switch."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = loop.step_packs
        patch.setattr(
            loop, "step_packs", lambda *args: seen.append(torch.are_deterministic_algorithms_enabled()) or original(*args)
        )
        _fit(recipe, tmp)
    return any(seen), torch.are_deterministic_algorithms_enabled()


def _per_layer_table(recipe, tmp):
    """What holds the table that feeds every layer."""
    config = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "vocab_size": 8}
    config |= {"num_key_value_heads": 1, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 8}
    Gemma4ForCausalLM(Gemma4TextConfig(**config, head_dim=16, global_head_dim=16)).save_pretrained(tmp / "ple")
    model = load_model(tmp / "ple", "fp32", per_layer_embeddings=recipe.per_layer_embeddings)
    return {type(module) for name, module in model.named_modules() if "embed_tokens_per_layer" in name}


def _adapter(recipe, tmp):
    model = load_model(find_model(recipe.model), "fp32")
    layers = add_lora(model, recipe.lora, recipe.seed)
    first = next(iter(layers.values()))
    first.lora_B.data.normal_(generator=torch.Generator().manual_seed(0))
    with at_step(first, StepContext(seed=0, step=0)) as enter:
        enter(0)
        drawn = first(torch.ones(1, first.weight.shape[1])).sum().item()
    return list(layers), first.lora_A.shape, first.scale, drawn


class _Echo:
    def generate(self, asked, max_new_tokens, advance, allowed=None):
        return [Answer("{}", 1, 1, 0.0, True) for _ in asked]


def _book(recipe, tmp):
    texts, ids = [row.messages[0]["content"] for row in ROWS[:40]], [row.id for row in ROWS[:40]]
    store = build_store(tmp / "questions.sqlite", texts, ids)
    return prompts.PromptBook(recipe, ROWS[:40], ROWS[40:], lambda _: store, lambda: store)


def _selection(recipe, tmp):
    metric = make_metric(recipe.task)
    writer = (lambda _: "```\nNew.\n```") if recipe.evaluate.optimized_prompt.writer else None
    asked = {"recipe": recipe, "book": _book(recipe, tmp), "dev": ROWS[40:], "metric": metric, "max_new_tokens": 4}
    selection = select_prompt(PromptTask(**asked, engine_of=lambda _: _Echo(), writer=writer))
    return [(trial.name, trial.n) for trial in selection.candidates], selection.search


def _endpoint(recipe, tmp):
    return engine_of(None, recipe, "external:big", None, [], 1)[0]


def _asked(recipe, tmp):
    book = _book(recipe, tmp)
    return [book.messages(prompts.candidates(recipe, book.pool, arm)[0], ROWS[50]) for arm in ("instruction", "zero_shot")]


def _batches(recipe, tmp):
    from tunesmith.chat.render import Renderer
    from tunesmith.models.load import load_tokenizer

    directory = find_model(recipe.model)
    done = []
    engine = InProcessEngine(load_model(directory, "fp32"), Renderer(load_tokenizer(directory)), recipe.evaluate.batch_size)
    engine.generate([[{"role": "user", "content": "a"}]] * 6, 1, done.append)
    return done


def _budget(recipe, tmp):
    api.data(run := api.open_run(tmp / "toy.yaml", tmp / f"run-{recipe.task.max_new_tokens}"))
    api.render(run)
    return Rendered.read(run.rendered_file).max_new_tokens


def _downloads(recipe, tmp):
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "snapshot_download", lambda model, revision, **_: asked.update(r=revision) or str(tmp))
        find_model("org/name", recipe.revision)
    return asked


def _exported(recipe, tmp):  # the plan that an export carries out
    return dry_run(api.open_run(tmp / "toy.yaml", tmp / "run"))


def _context(recipe, tmp):
    lengths = Rendered(train_tokens=90, supervised_tokens=9, longest=40, max_new_tokens=10, left_out=0)
    lengths.write((run := api.open_run(tmp / "toy.yaml", tmp / "run")).rendered_file)
    return context_of(run, recipe)


def _merged_into(recipe, tmp):  # what the merge is asked for, up to where its directory would be read
    arguments = []

    def merged(*given, **_):
        arguments.append(given[4])
        raise ExportError("stopped here", "")

    job = SimpleNamespace(run=api.open_run(tmp / "toy.yaml", tmp / "run"), recipe=recipe, base=Path(recipe.model), staged=tmp)
    job.renderer = SimpleNamespace(stop_ids=(), template="")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ExportError):
        patch.setattr("tunesmith.export.forms.merged.merge", merged)
        merge_adapter(job, SimpleNamespace(target="merged"))
    return arguments


def _data(recipe, tmp):
    """What the data stage says or writes for rows made to meet every policy."""
    turns = [{"role": "user", "content": "What is the colour of the third house on the left side of the road?"}]
    kinds = {"question": "a red car", "answer": "red", "prompt": "a red car", "completion": "red", "kind": "x"}
    rows = [{**kinds, "prompt": f"{i} {i * i} a {i % 7} thing", "question": f"q{i}", "kind": f"k{i % 9}"} for i in range(60)]
    rows += [{**kinds, "prompt": f"{turns[0]['content']} {'!' * i}", "question": f"r{i}"} for i in range(30)]
    rows += [{**kinds, "prompt": ""}] * (recipe.data.on_bad_row == "quarantine")
    (tmp / "every.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = api.open_run(tmp / "toy.yaml", tmp / f"run-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}")
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(tmp / "every.jsonl")})})
    run.recipe_file.write_text(dump_recipe(changed))
    try:
        api.data(run)
    except (DataError, RunError) as error:
        return error.message.replace(str(tmp), "")
    return [(run.data / f"{part}.jsonl").read_text() for part in ("train", "test")], (run.data / "rejected.jsonl").exists()


def _rendered(recipe, tmp):
    """Rows around the limit, rendered under the recipe's policy and template."""
    turns = [m for i in range(4) for m in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"})]
    renderer = open_base(recipe).renderer
    fitted = fit_lengths(renderer, [Conversation(turns), Conversation(turns[:2])], 60, recipe.data.on_too_long)
    return [(f.rendered and f.rendered.ids, f.dropped_turns) for f in fitted]


def _refused(recipe, tmp):
    try:
        _refuse_left_out(recipe, "train", [LeftOut(id="a", place="line 1", reason="", hint="", tokens=9)], [9])
    except DataError as error:
        return error.message
    return None


def _advised(recipe, tmp):
    """What the checklist says of the price of calls."""
    return api.advise(api.open_run(tmp / "toy.yaml", tmp / "run"), quick=True).checks[6]


def _code(recipe, tmp):
    for name, tests in (("pass.jsonl", "assert x"), ("fail.jsonl", "assert not x")):
        (tmp / name).write_text(json.dumps({"reference": "x = 1", "tests": tests}))
    try:
        return make_metric(recipe.task).fits("x = 1")
    except RecipeError as error:
        return error.message


def _function(recipe, tmp):
    (tmp / "mine.py").write_text("def all(answer, reference): return 1\ndef none(answer, reference): return 0\n")
    return make_metric(recipe.task).score("a", "b")


class _Endpoint:
    def __init__(self, *asked):
        self.asked = list(asked)

    def generate(self, prompts, max_new_tokens, advance, allowed=None):
        self.asked += prompts
        return [Answer("VERDICT: A", 1, 1, 0.0, True) for _ in prompts]

    def close(self):
        return None


def _judge(recipe):
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.pipeline.judge.OpenAIEndpoint", lambda *a: made.append(_Endpoint(*a)) or made[0])
        return make_judge(recipe)[0], made[0]


def _judge_asked(recipe, tmp):
    judge, endpoint = _judge(recipe)
    return judge.decide([Pair("q", "{}", '{"a": 1}', '{"a": 2}')]) and endpoint.asked


def _judge_checked(recipe, tmp):
    (tmp / "labels.jsonl").write_text('{"question": "q", "reference": "r", "a": "a", "b": "b", "label": "a"}')
    return calibrate(_judge(recipe)[0], recipe.task.judge.human_labels).reason


JUDGE = {"base_url": "http://here/v1", "model": "m", "rubric": "Short."}
FIXED = {  # what a key needs beside it
    "task.metric": {"task.json_schema": None},
    "task.labels": {"task.metric": "classification", "task.labels": ["red", "green"], "task.json_schema": None},
    "task.tolerance": {"task.metric": "numeric", "task.json_schema": None},
    "task.pattern": {"task.metric": "regex", "task.pattern": "x", "task.json_schema": None},
    "task.tests": {"task.metric": "code", "task.tests": "pass.jsonl", "task.allow_code": True, "task.json_schema": None},
    "task.allow_code": {"task.metric": "code", "task.tests": "pass.jsonl", "task.json_schema": None},
    "task.function": {"task.metric": "python", "task.function": "mine.py:all", "task.json_schema": None},
    **{f"task.judge.{key}": {"task": {"metric": "judge", "judge": dict(JUDGE)}} for key in Judge.model_fields},
}


def _forgotten(recipe, tmp):
    """What the forgetting check looks at and concludes, with a stub in the place of the model."""
    (tmp / "own.txt").write_text("\n\n".join(f"passage {i}" for i in range(10)))
    asked = []
    lost = np.linspace(-0.02, -0.04, 20)

    def measure(model, layers, renderer, probes, margin, *_):
        asked.append(probes.passages[0].id)
        return [probe("a", "a", lost, lost, lost, margin, "")], []

    run = api.open_run(tmp / "toy.yaml", tmp / f"run-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}")
    with pytest.MonkeyPatch.context() as patch:
        tasks = SimpleNamespace(task_probes=lambda _, keys: asked.append((keys.tasks, keys.tasks_path, keys.limit)) or [])
        patch.setitem(sys.modules, "tunesmith.pipeline.forgetting_tasks", tasks)
        patch.setattr("tunesmith.pipeline.forgetting.measure", measure)
        loaded = SimpleNamespace(model=None, layers=None, renderer=None)
        patch.setattr("tunesmith.pipeline.forgetting.base_of", lambda *_: SimpleNamespace(load=lambda _: loaded))
        forgetting.execute(run, recipe, Session(), "")
        result = Forgetting.read(run.evaluation / "forgetting.json")
    return asked, result.verdict


GAIN = Comparison(gain=0.1, low=0.05, high=0.15, p=0.01, won=9, lost=1, detectable=0.1, n=80, units=80)


def _blocked(recipe, tmp):
    """What a clear gain comes to when the forgetting suite cannot tell."""
    return decide(GAIN, 0.05, "too little data to tell", recipe.evaluate.forgetting.required)


TASKS = {"evaluate.forgetting.tasks": ["arc_easy"]}
FIXED |= {"evaluate.forgetting.tasks_path": TASKS, "evaluate.forgetting.limit": TASKS}


def _searched(recipe, tmp):
    """Passages that the retrieval arms search, and the kind of store and embedder that searches them."""
    (tmp / "faq.md").write_text("Cars are red.")
    corpus = read_corpus(recipe, ROWS[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.retrieval.corpus.load_embedder", lambda name: SimpleNamespace(key=name, cut=0))
        patch.setattr("tunesmith.retrieval.corpus.build_qdrant", lambda url, *_: url)
        patch.setattr("tunesmith.retrieval.corpus.build_store", lambda path, *passages: passages[2] and passages[2].key)
        return corpus.ids, open_store(recipe, tmp / "store.sqlite", corpus)


SCHEMA = "schema.json"
ENDPOINT = {"base_url": "http://localhost:1/v1", "model": "big"}
OBSERVE = {
    "name": ("other", lambda r, t: api.open_run(t / "toy.yaml").path),
    "model": ("elsewhere.gguf", _find),
    "revision": ("abc", _downloads),
    "model_sha256": ("0" * 64, _find),
    "base": ("bf16", lambda r, t: load_model(find_model(r.model), r.base).dtype),
    "per_layer_embeddings": ("nf4", _per_layer_table),
    "towers": ("keep", lambda r, t: merged_config({"model_type": "gemma3", "text_config": {}}, r.towers == "keep", True)),
    "seed": (1, _split),
    "data.path": ("fewer.jsonl", _split),
    "data.format": ("alpaca", _data),
    "data.columns": ({"prompt": "question", "completion": "answer"}, _data),
    "data.group_by": ("kind", _data),
    "data.on_bad_row": ("quarantine", _data),
    "data.on_too_long": ("drop_oldest_turns", lambda r, t: (_rendered(r, t), _refused(r, t))),
    "data.on_leak": ("refuse", _data),
    "data.earlier_split": ("none.json", _data),
    "chat.template": ("other.jinja", _rendered),
    "chat.enable_thinking": (True, _rendered),
    "data.test_fraction": (0.5, _split),
    "data.dev_fraction": (0.5, _split),
    "task.metric": ("exact_match", lambda r, t: make_metric(r.task).score('{"a":1}', '{"a": 1}')),
    "task.json_schema": (None, lambda r, t: make_metric(r.task).score("{}", "{}")),
    "task.constrained": (True, lambda r, t: output_constraint(r.task)),
    "task.labels": (["red", "blue"], lambda r, t: make_metric(r.task).score("green", "red")),
    "task.tolerance": (1.0, lambda r, t: make_metric(r.task).score("2", "1")),
    "task.pattern": ("y", lambda r, t: make_metric(r.task).score("y", "xy")),
    "task.tests": ("fail.jsonl", _code),
    "task.allow_code": (True, _code),
    "task.function": ("mine.py:none", _function),
    "task.judge.base_url": ("http://other/v1", _judge_asked),
    "task.judge.model": ("other", _judge_asked),
    "task.judge.api_key_env": ("OTHER_KEY", _judge_asked),
    "task.judge.rubric": ("Other.", _judge_asked),
    "task.judge.human_labels": ("labels.jsonl", _judge_checked),
    "task.prompt": ("Other.", _asked),
    "task.short_prompt": ("Other.", _asked),
    "task.min_gain": (0.2, lambda r, t: decide(GAIN, r.task.min_gain)),
    "task.max_new_tokens": (None, _budget),
    "lora.r": (2, _adapter),
    "lora.alpha": (3, _adapter),
    "lora.dropout": (0.5, _adapter),
    "lora.target_modules": ("peft-default", _adapter),
    "lora.use_rslora": (True, _adapter),
    "lora.use_dora": (True, _adapter),
    "train.learning_rate": (0.1, lambda r, t: learning_rate(r.train, 3, 9)),
    "train.schedule": ("linear", lambda r, t: learning_rate(r.train, 3, 9)),
    "train.warmup_ratio": (0.9, lambda r, t: learning_rate(r.train, 3, 9)),
    "train.max_grad_norm": (1e-6, _fit),
    "train.compute": ("fp32", _precision),
    "train.optimizer": ("adamw_8bit", _fit),
    "train.weight_decay": (0.9, _fit),
    "train.loraplus_lr_ratio": (4.0, _fit),
    "train.deterministic": (True, _is_deterministic),
    "train.recompute": ("mlp", _recomputed),
    "train.num_train_epochs": (2, _fit),
    "train.tokens_per_step": (20, _fit),
    "train.max_length": (30, _fit),
    "train.evals_per_epoch": (1, _fit),
    "train.keep_checkpoints": (3, _checkpoints),
    "evaluate.arms": (["zero_shot", "tuned"], _selection),
    "evaluate.few_shot.k": ([1, 2], _selection),
    "evaluate.few_shot.draws": (1, _selection),
    "evaluate.few_shot.selection": (["random"], _selection),
    "evaluate.few_shot.dev_rows": (3, _selection),
    "evaluate.optimized_prompt.calls": (8, _selection),
    "evaluate.optimized_prompt.writer": ({"base_url": "http://x/v1", "model": "m"}, _selection),
    "evaluate.optimized_prompt.instructions": (["Mine."], lambda r, t: instructions(r)),
    "evaluate.external": ({"big": {**ENDPOINT, "model": "other"}}, _endpoint),
    "evaluate.price_per_hour": (2.0, lambda r, t: Evaluation.cost_of(SimpleNamespace(recipe=r), "tuned") is None),
    "evaluate.batch_size": (2, _batches),
    "evaluate.seeds": (2, lambda r, t: [other.seed for other in seed_recipes(r)]),
    "evaluate.learning_curve": ([0.25, 0.5, 1.0], lambda r, t: [len(share_of(r, ROWS, s)) for s in r.evaluate.learning_curve]),
    "advise.calls_per_month": (9000, _advised),
    "advise.price_per_million_prompt_tokens": (2.0, _advised),
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
    "export.merge_into": ("original", _merged_into),
    "export.gguf": (["F16", "Q8_0"], _exported),
    "export.imatrix": (True, _exported),
    "export.lora_gguf": (True, _exported),
    "export.num_ctx": (512, _context),
}


def _keys(section=Recipe, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_an_observation():
    assert set(_keys()) == set(OBSERVE)


@pytest.mark.parametrize("key", sorted(OBSERVE))
def test_key_changes_behaviour(key, tiny_dir, tmp_path):
    value, observe = OBSERVE[key]
    fixed = {"train.tokens_per_step": 80} if key.startswith("train.") else {}
    fixed |= FIXED.get(key, {})
    if key.startswith("evaluate.optimized_prompt."):
        fixed = {"evaluate.arms": ["instruction", "optimized_prompt"]}
    if key == "evaluate.external":
        fixed = {"evaluate.arms": ["instruction", "external:big"], "evaluate.external": {"big": ENDPOINT}}
    if key == "evaluate.retrieval.qdrant":
        fixed = {"evaluate.retrieval.embedder": "all-MiniLM-L6-v2"}
    if key == "chat.enable_thinking":
        fixed = {"chat.template": "other.jinja"}
    if key == "model_sha256":
        (tmp_path / "x.gguf").write_bytes(b"no model")
        fixed = {"model": "./x.gguf"}
    (tmp_path / "other.jinja").write_text(OTHER)
    (tmp_path / "fewer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()[:40]))
    seen = []
    for changes in (fixed, {**fixed, key: value}):
        recipe = load_recipe(write_recipe(tmp_path, tiny_dir, changes))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            seen.append(observe(recipe, tmp_path))
    assert seen[0] != seen[1], f"{key}: {value!r} changes nothing"
