"""The training step against stock transformers + PEFT, and the invariances that a run rests on."""

import pytest
import torch
import transformers
from torch.nn import functional as F

from shared import toy_rows
from ties import FP32, is_greedy
from tunesmith.chat.render import Renderer
from tunesmith.data.pack import Plan
from tunesmith.errors import TrainingError
from tunesmith.layers.context import StepContext
from tunesmith.models.adapter import adapter_state
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, load_model
from tunesmith.models.new_tokens import add_new_rows
from tunesmith.models.swap import add_lora
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.rundir.records.training import DevLoss
from tunesmith.tracking import MetricsLog, read_metrics
from tunesmith.train import loop
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import mean_loss, step_gradients


@pytest.fixture(scope="module")
def documents(tokenizer):
    renderer = Renderer(tokenizer)
    turns = [row["messages"] for row in toy_rows()[:24]]
    turns[3] = turns[3] + turns[4] + turns[5]  # a multi-turn row
    rendered = [renderer.render(messages) for messages in turns]
    return make_documents([(r.ids, r.supervised) for r in rendered])


def _gradients(tiny_dir, recipe, documents, packs):
    """Loss and every gradient of one optimizer step, adapters made non-trivial."""
    model = load_model(tiny_dir, "fp32")
    layers = add_lora(model, recipe.lora, seed=0)
    _perturb(layers)
    with attention(model.eval(), PACKED):
        loss, accuracy = step_gradients(model, [make_pack(documents, pack) for pack in packs])
    grads = {f"{n}.{k}": getattr(layer, k).grad for n, layer in layers.items() for k in ("lora_A", "lora_B")}
    return loss, accuracy, grads, layers


def _perturb(layers):
    generator = torch.Generator().manual_seed(9)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05, generator=generator)


def test_loss_and_every_gradient_equal_stock_transformers_and_peft(tiny_dir, make_recipe, documents):
    import peft

    recipe, chosen = make_recipe(), (0, 3, 7, 1, 2)
    loss, accuracy, grads, layers = _gradients(tiny_dir, recipe, documents, [chosen])
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    oracle = peft.get_peft_model(load_model(tiny_dir, "fp32"), config)
    peft.set_peft_model_state_dict(oracle, adapter_state(layers))
    total, correct = torch.zeros(()), []
    for d in chosen:
        ids = torch.from_numpy(documents.ids(d).astype("int64"))
        labels = torch.full_like(ids, -100)
        for start, end in documents.spans(d):
            labels[start:end] = ids[start:end]
        logits = oracle(input_ids=ids[None]).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        supervised = (labels[1:] != -100).nonzero()[:, 0]
        correct += [is_greedy(logits[t : t + 1].detach(), [int(labels[1 + t])], FP32) for t in supervised]
    (total / len(correct)).backward()
    assert loss == pytest.approx((total / len(correct)).item(), rel=1e-5)
    assert round(accuracy * len(correct)) - correct.count(True) in range(correct.count(None) + 1)
    for name, parameter in oracle.named_parameters():
        if parameter.requires_grad:
            ours = grads[name.removeprefix("base_model.model.").removesuffix(".default.weight")]
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")
    assert len(grads) == sum(p.requires_grad for p in oracle.parameters())


def test_accumulation_is_exact(tiny_dir, make_recipe, documents):
    recipe = make_recipe()
    one = _gradients(tiny_dir, recipe, documents, [tuple(range(8))])
    two = _gradients(tiny_dir, recipe, documents, [(0, 1, 2, 3), (4, 5, 6, 7)])
    many = _gradients(tiny_dir, recipe, documents, [(7,), (5, 0), (2, 1, 3, 4), (6,)])
    for other in (two, many):
        assert other[0] == pytest.approx(one[0], rel=1e-6)
        for name, grad in one[2].items():
            torch.testing.assert_close(other[2][name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()))


@pytest.mark.parametrize("use_dora", [False, True])
def test_gradients_of_a_step_follow_from_seed_step_and_packs_alone(tiny_dir, make_recipe, documents, use_dora):
    """Torch's generator changes no bit; seed and step change the masks."""
    model = load_model(tiny_dir, "fp32")
    layers = add_lora(model, make_recipe({"lora.dropout": 0.3, "lora.use_dora": use_dora}).lora, seed=0)
    _perturb(layers)
    packs = [make_pack(documents, chosen) for chosen in ((0, 1, 2), (5,), (3, 4))]

    def gradients(seed=1, step=2):
        for layer in layers.values():
            layer.zero_grad()
        with attention(model, PACKED):
            step_gradients(model, packs, StepContext(seed=seed, step=step))
        return torch.cat([p.grad.flatten() for layer in layers.values() for p in layer.parameters() if p.requires_grad])

    expected = gradients()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert torch.equal(gradients(), expected) and torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(gradients(seed=2), expected) and not torch.equal(gradients(step=3), expected)


def test_dropouts_of_the_base_are_off(documents):
    """GPT-NeoX has some of its own, drawn from torch's generator; a frozen base computes as it is deployed."""
    sizes = {"vocab_size": 49152, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = (
        transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, hidden_dropout=0.5)).requires_grad_(False).eval()
    )
    layers = add_lora(model, Lora(r=4, dropout=0.0), seed=0)
    _perturb(layers)
    packs = [make_pack(documents, (0, 1))]
    with attention(model, PACKED):
        trained, _ = step_gradients(model, packs, StepContext(seed=0, step=0))
        assert trained == pytest.approx(mean_loss(model, packs), rel=1e-6)


def _fit(tiny_dir, recipe, documents, folder, inputs="x", epochs=None, dtype=None, new_tokens=0, tables=()):
    model = load_model(tiny_dir, dtype or recipe.base)
    layers = add_lora(model, recipe.lora, recipe.seed)
    if new_tokens:  # any run of ids will do: from the first that the rows hold
        layers |= add_new_rows(model, 20, new_tokens)
    layers |= add_whole_tables(model, tables)
    t = recipe.train
    steps = Plan(documents.lengths, epochs or t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
    metrics = MetricsLog(folder / "metrics.jsonl")
    settings = TrainSettings(**t.model_dump())
    trained = loop.fit(
        model, layers, documents, steps, documents, settings, recipe.seed, folder / "checkpoints", metrics, inputs
    )
    return trained, layers


@pytest.mark.parametrize("beside", [{}, {"new_tokens": 30}, {"tables": ["embed_tokens"]}], ids=str)
def test_same_seed_same_bytes_and_resume_to_the_bit(tiny_dir, make_recipe, documents, tmp_path, talk, beside):
    recipe = make_recipe({"train.num_train_epochs": 2, "train.evals_per_epoch": 1})
    folders = [tmp_path / name for name in ("whole", "again", "cut")]
    for folder in folders:
        folder.mkdir()
    whole, layers = _fit(tiny_dir, recipe, documents, folders[0], **beside)
    again, same = _fit(tiny_dir, recipe, documents, folders[1], **beside)
    first_epoch, _ = Plan(documents.lengths, 2, recipe.train.tokens_per_step, recipe.train.max_length, recipe.seed).epoch_ends
    # A kill in the second epoch: the checkpoint of the first is there, and some metrics past it. The whole plan's length
    # sets the learning rate, so the cut run is given the whole plan and stopped by an exception.
    original, calls = loop._optimizer_step, []

    def dying(*args):
        calls.append(1)
        if len(calls) == first_epoch + 2:
            raise KeyboardInterrupt
        return original(*args)

    loop._optimizer_step = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            _fit(tiny_dir, recipe, documents, folders[2], **beside)
    finally:
        loop._optimizer_step = original
    resumed, other = _fit(tiny_dir, recipe, documents, folders[2], **beside)
    assert "resuming after step" in talk()
    for key, tensor in adapter_state(layers).items():
        assert torch.equal(tensor, adapter_state(same)[key]), key
        assert torch.equal(tensor, adapter_state(other)[key]), key
    assert whole.dev_losses == again.dev_losses == resumed.dev_losses
    first, *others = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert first and others == [first, first]


def test_a_run_learns_keeps_the_best_and_other_inputs_do_not_resume(tiny_dir, make_recipe, documents, tmp_path, talk):
    recipe = make_recipe({"train.num_train_epochs": 3, "train.learning_rate": 0.01, "train.schedule": "constant"})
    trained, _ = _fit(tiny_dir, recipe, documents, tmp_path)
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    best = min(trained.dev_losses, key=lambda entry: entry.dev_loss)
    assert best == trained.best and best.step > 0 and not trained.only_worse
    assert trained.checkpoint.name == f"step-{best.step:06d}" and (trained.checkpoint / "state.json").exists()
    _fit(tiny_dir, recipe, documents, tmp_path, inputs="other", epochs=1)
    assert "resuming" not in talk()
    records = read_metrics(tmp_path / "metrics.jsonl")  # those of the other inputs are gone
    assert [r["step"] for r in records] == list(range(1, len(records) + 1)) and {r["epoch"] for r in records} == {0}


def test_overfitting_is_said_aloud():
    def judged(*losses):
        start = DevLoss(step=0, dev_loss=0.5)  # better than all that follow: that is another fact
        trained = [DevLoss(step=n, dev_loss=dev, train_loss=train) for n, (dev, train) in enumerate(losses, 1)]
        return loop.is_overfitting([start, *trained])

    assert judged((2.0, 2.0), (1.0, 1.5), (1.2, 0.9))
    assert not judged((2.0, 2.0), (1.0, 1.5), (0.9, 0.9))
    assert not judged((2.0, 2.0), (1.0, 1.5), (1.2, 1.6))  # both rise: not over-fitting
    assert not judged((2.0, 2.0))


def test_a_loss_that_is_not_finite_stops_the_run(tiny_dir, make_recipe, documents, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.train.distributed.step_gradients", lambda *_: (float("nan"), 0.0))
    with pytest.raises(TrainingError, match="step 1: loss nan"):
        _fit(tiny_dir, make_recipe(), documents, tmp_path)


def test_bf16_base_trains_near_fp32(tiny_dir, make_recipe, documents, tmp_path):
    losses = {}
    for base in ("fp32", "bf16"):
        (tmp_path / base).mkdir()
        _fit(tiny_dir, make_recipe({"base": base}), documents, tmp_path / base)
        losses[base] = [r["loss"] for r in read_metrics(tmp_path / base / "metrics.jsonl")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


def test_rows_that_fp16_would_lose_are_in_the_metrics_where_it_is_computed_in(tiny_dir, make_recipe, documents, tmp_path):
    for dtype, expected in (("fp32", set()), ("fp16", {0})):
        (tmp_path / dtype).mkdir()
        _fit(tiny_dir, make_recipe(), documents, tmp_path / dtype, dtype=dtype)
        records = read_metrics(tmp_path / dtype / "metrics.jsonl")
        assert {r["fp16_rescued_rows"] for r in records if "fp16_rescued_rows" in r} == expected


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((2.0, 1.5, 1.0), True),
        ((2.0, 1.0, 0.95), False),  # a tenth of its mean speed
        ((2.0, 1.0, 0.85), True),
        ((2.0, 1.3, 1.1, 1.06, 1.0), True),
        ((2.0, 1.3, 1.1, 1.03, 1.0), False),
        ((2.0, 1.0, 1.2, 1.1), False),  # falls, but not below its best
        ((2.0, 1.0), False),  # no interval to compare with
    ],
)
def test_a_dev_loss_that_still_falls_is_told_by_its_speed(losses, expected):
    for interval in (1, 50):
        entries = [DevLoss(step=n * interval, dev_loss=loss) for n, loss in enumerate(losses)]
        assert loop.is_undertrained(entries) == expected
