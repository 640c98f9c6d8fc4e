"""Rule 6: every recipe key changes behaviour. One observation per key; a key without one fails."""

import hashlib
import json

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from conftest import toy_rows, write_recipe
from tunesmith import api
from tunesmith.api.examples import _refuse_left_out
from tunesmith.api.merged import merge_adapter
from tunesmith.api.stage import renderer
from tunesmith.chat.fit import fit as fit_lengths
from tunesmith.chat.render import Conversation
from tunesmith.data.pack import Plan
from tunesmith.data.read import Reader
from tunesmith.data.split import SplitFacts, answer_key, group_key, split
from tunesmith.errors import DataError, ModelError, RunError
from tunesmith.evaluate import gate, prompts
from tunesmith.evaluate.metrics import make_scorer
from tunesmith.evaluate.select import select_prompt
from tunesmith.export.companions import merged_config
from tunesmith.export.merge import Merged
from tunesmith.infer.engine import Answer
from tunesmith.infer.in_process import InProcessEngine
from tunesmith.models.adapter import adapter_state
from tunesmith.models.load import find_model, load_model
from tunesmith.models.precision import precision
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Recipe, dump_recipe, load_recipe
from tunesmith.track import MetricsLog, read_metrics
from tunesmith.train import loop
from tunesmith.train.documents import make_documents
from tunesmith.train.loop import fit
from tunesmith.train.schedule import learning_rate

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
OTHER = "{{ 'Think.' if enable_thinking }}" + TURNS + "{{ '<|im_start|>assistant: ' if add_generation_prompt }}"
ROWS = [{"id": str(i), "place": f"line {i}", **row} for i, row in enumerate(toy_rows())]


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
    fit(model, layers, documents, steps, documents, recipe, folder / "checkpoints", MetricsLog(folder / "m.jsonl"), "x")
    weights = [float(t.double().sum()) for t in adapter_state(layers).values()]
    records = [(r["loss"], r.get("dev_loss")) for r in read_metrics(folder / "m.jsonl")]
    return weights, records, [len(packs) for _, packs in steps]


def _recomputed(recipe, tmp):
    """How often a run recomputes a part."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.recompute.checkpoint", lambda f, x, **o: calls.append(1) or checkpoint(f, x, **o))
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
    first = next(iter(layers.values())).train()
    torch.manual_seed(0)
    first.lora_B.data.normal_()
    return list(layers), first.lora_A.shape, first.scale, first(torch.ones(1, first.weight.shape[1])).sum().item()


class _Echo:
    def generate(self, asked, max_new_tokens, advance):
        return [Answer("{}", 1, 1, 0.0, True) for _ in asked]


def _selection(recipe, tmp):
    choice = select_prompt(recipe, _Echo(), ROWS[:40], ROWS[40:], make_scorer("json", None), 4, tmp / "selection.json")
    return [(c["name"], c["n"]) for c in choice["candidates"]]


def _batches(recipe, tmp):
    from tunesmith.chat.render import Renderer
    from tunesmith.models.load import load_tokenizer

    directory = find_model(recipe.model)
    done = []
    engine = InProcessEngine(load_model(directory, "fp32"), Renderer(load_tokenizer(directory)), recipe.evaluate.batch_size)
    engine.generate([[{"role": "user", "content": "a"}]] * 6, 1, done.append)
    return done


def _budget(recipe, tmp):
    run = api.open_run(tmp / "toy.yaml", tmp / f"run-{recipe.task.max_new_tokens}")
    api.data(run)
    api.render(run)
    return json.loads((run.data / "rendered.json").read_text())["max_new_tokens"]


def _downloads(recipe, tmp):
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda model, revision, **_: asked.update(r=revision) or str(tmp))
        find_model("org/name", recipe.revision)
    return asked


def _exported(recipe, tmp):
    run = api.open_run(tmp / "toy.yaml", tmp / "run")
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "key_of", lambda stage: "x")
        patch.setattr("tunesmith.api.verbs.merge_adapter", lambda _: None)
        patch.setattr("tunesmith.export.gguf.convert", lambda model, target: (run.export.mkdir(exist_ok=True), target.touch()))
        patch.setattr("tunesmith.export.gguf.describe", lambda _: {"bytes": 1, "bits_per_weight": 1.0})
        patch.setattr(
            "tunesmith.export.gguf.quantize", lambda s, t, kind: written.append(kind) or {"bytes": 1, "bits_per_weight": 1.0}
        )
        api.export(run)
    return written


def _merged_into(recipe, tmp):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.export.merge.merge", lambda *a: asked.append(a[4]) or Merged(a[4], "float32", 1, 1, 0))
        patch.setattr("tunesmith.export.adapter.write_vllm_adapter", lambda *_: None)
        merge_adapter(api.open_run(tmp / "toy.yaml", tmp / "run"))
    return asked


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
    fitted = fit_lengths(renderer(recipe)[1], [Conversation(turns), Conversation(turns[:2])], 60, recipe.data.on_too_long)
    return [(f.rendered and f.rendered.ids, f.dropped_turns) for f in fitted]


def _refused(recipe, tmp):
    try:
        _refuse_left_out(recipe, "train", [{"id": "a", "place": "line 1", "reason": "", "hint": "", "tokens": 9}], [9])
    except DataError as error:
        return error.message
    return None


SCHEMA = "schema.json"
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
    "task.metric": ("exact_match", lambda r, t: make_scorer(r.task.metric, None)('{"a":1}', '{"a": 1}')),
    "task.json_schema": (None, lambda r, t: make_scorer("json", r.task.json_schema)("{}", "{}")),
    "task.prompt": ("Other.", lambda r, t: prompts.prompted(r, ROWS[0], [])),
    "task.short_prompt": ("Other.", lambda r, t: prompts.tuned(r, ROWS[0])),
    "task.min_gain": (0.2, lambda r, t: gate.decide(gate.Comparison(0.1, 0.05, 0.15, 0.01, 9, 1, 0.1), r.task.min_gain)),
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
    "evaluate.arms": (["zero_shot", "tuned"], lambda r, t: [c.name for c in prompts.candidates(r, ROWS)]),
    "evaluate.few_shot.k": ([1, 2], _selection),
    "evaluate.few_shot.draws": (1, _selection),
    "evaluate.few_shot.dev_rows": (3, _selection),
    "evaluate.batch_size": (2, _batches),
    "export.merge_into": ("original", _merged_into),
    "export.gguf": (["F16", "Q8_0"], _exported),
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
    if key == "task.metric":
        fixed = {"task.json_schema": None}
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
