"""The checks before the first step: what passes, what is refused and why, and that nothing of them stays behind."""

import copy
import math
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    Qwen3MoeConfig,
    StableLmConfig,
)

from shared import write_recipe
from tunesmith.errors import ModelError, TrainingError
from tunesmith.layers.context import StepContext
from tunesmith.layers.dora import DoRALinear
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention
from tunesmith.models.swap import add_lora
from tunesmith.pipeline import own_loop
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Lora
from tunesmith.rundir import RunDir
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.health import check_adapter, first_rows, refuse_other_loss, stock_loss
from tunesmith.train.step import step_gradients

BARE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, "initializer_range": 0.15}
SMALL = {**BARE, "intermediate_size": 48, "num_key_value_heads": 2}


def _model(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SMALL), Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8, final_logit_softcapping=3.0)]
)
def test_a_model_that_is_computed_right_passes_stock_and_fused(config, dtype):
    model = _model(config, dtype)
    expected = stock_loss(model)
    add_lora(model, Lora(r=2, alpha=4), seed=0)
    refuse_other_loss(model, expected)
    fuse(model)
    refuse_other_loss(model, expected)
    with pytest.raises(ModelError, match="the stock model says"):
        refuse_other_loss(model, expected * 1.1)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SMALL, logits_scaling=3.0),  # its logits are scaled after the head
        CohereConfig(**SMALL, logit_scale=0.25),
        StableLmConfig(**SMALL),  # its layers do not hand down who sees whom
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_would_be_computed_wrong_is_refused(config):
    model = _model(config)
    expected = stock_loss(model)
    add_lora(model, Lora(r=2, alpha=4), seed=0)
    with pytest.raises(ModelError, match=config.model_type):
        refuse_other_loss(model, expected)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "tunesmith.train.step.linear_cross_entropy",
        ),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "torch.nn.functional.silu"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), "torch.nn.functional.linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_gpu_raises_is_not_said_of_the_model(error, where, monkeypatch):
    model = _model(LlamaConfig(**SMALL))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(where, fail)
    with pytest.raises(type(error)) as raised:
        refuse_other_loss(model, 5.7)
    assert raised.value is error


def test_a_call_of_ours_that_pytorch_refuses_is_not_said_of_the_model(monkeypatch):
    model = _model(LlamaConfig(**SMALL))
    monkeypatch.setattr("torch.bmm", lambda one: one)  # as if PyTorch had another signature
    with pytest.raises(TypeError):
        refuse_other_loss(model, 5.7)
    monkeypatch.undo()
    monkeypatch.setattr(type(model.model.layers[0]), "forward", lambda self, x: x)
    with pytest.raises(ModelError, match="cannot run over packed documents"):
        refuse_other_loss(model, 5.7)


@pytest.fixture(scope="module")
def base():
    return _model(LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def documents(base):
    """What the model itself would say, so that its loss is far below ln V."""
    rows = base.generate(torch.arange(5, 17)[:, None], attention_mask=torch.ones(12, 1), max_new_tokens=30, do_sample=False)
    return make_documents([(row, [0] * 10 + [1] * (len(row) - 10)) for row in rows.tolist()])


def _adapted(base, fused=True, **lora):
    model = copy.deepcopy(base)
    layers = add_lora(model, Lora(**{"r": 2, "alpha": 4, "dropout": 0.1, **lora}), seed=0)
    if fused:
        fuse(model)
    return model, layers


def test_the_first_rows_teach_something_and_are_few():
    rows = [
        ([5] * 30, [1] + [0] * 29),
        ([5] * 9, [0] * 9),
        ([5] * 400, [0, 1] * 200),
        ([5] * 100, [1] * 100),
        ([5] * 50, [1] * 50),
    ]
    documents = make_documents(rows)
    assert first_rows(documents, [(0, 1), (2, 3, 4)]) == [2, 3]
    assert first_rows(documents, [(0,), (1,)]) == []
    assert first_rows(make_documents([([5] * 4000, [1] * 4000)]), [(0,)]) == [0]


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"target_modules": "peft-default"}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_a_healthy_start_leaves_no_trace(base, documents, lora, fused):
    outcomes = []
    for checked in (False, True):
        model, layers = _adapted(base, fused, **lora)
        torch.manual_seed(7)
        if checked:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            loss = check_adapter(model, layers, documents, [0, 1, 2])
            assert 0 < loss < 5.0
            assert all(p.grad is None for p in model.parameters())
            assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        with attention(model, PACKED):
            context = StepContext(seed=7, step=0)
            outcomes.append((step_gradients(model, [make_pack(documents, (3, 4, 5))], context), torch.get_rng_state()))
            outcomes[-1] += tuple(p.grad for p in model.parameters() if p.requires_grad)
    (loss, random, *grads), (loss_after, random_after, *grads_after) = outcomes
    assert loss == loss_after and torch.equal(random, random_after)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_after, strict=True))


def test_an_adapter_that_no_gradient_reaches_is_refused(base, documents):
    model, layers = _adapted(base, fused=False)
    unused = "model.layers.1.mlp.up_proj"
    model.get_submodule("model.layers.1.mlp").register_module("up_proj", base.get_submodule(unused))
    with pytest.raises(TrainingError, match=rf"{unused}\.lora_B: no gradient reaches it .* nor 0 of 27 others") as caught:
        check_adapter(model, layers, documents, [0])
    assert "lora.target_modules" in caught.value.hint


def test_experts_without_tokens_are_healthy_and_experts_that_nobody_asks_are_not():
    config = Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=16, num_experts_per_tok=2, moe_intermediate_size=16)
    model = _model(config)
    ids = model.generate(torch.tensor([[5]]), attention_mask=torch.ones(1, 1), max_new_tokens=12, do_sample=False)[0].tolist()
    documents = make_documents([(ids, [0] * 3 + [1] * (len(ids) - 3))])
    layers = add_lora(model, Lora(r=2, alpha=4), seed=0)
    with attention(model, PACKED):
        step_gradients(model, [make_pack(documents, (0,))])
    weights = [layer for name, layer in layers.items() if name.endswith("experts.gate_up_proj")]
    reached = weights[0].lora_B.grad.abs().amax((1, 2)) > 0
    assert 0 < int(reached.sum()) < 16  # so few tokens do not ask all
    check_adapter(model, layers, documents, [0])
    for mlp in (layer.mlp for layer in model.model.layers):
        mlp.experts.register_forward_hook(lambda module, given, out: out * 0.0)
    with pytest.raises(TrainingError, match=r"layers\.0\.mlp\.experts\.gate_up_proj\.lora_B: no gradient reaches it"):
        check_adapter(model, layers, documents, [0])


def test_an_adapter_that_changes_the_model_before_training_is_refused(base, documents):
    model, layers = _adapted(base)
    layers["model.layers.0.self_attn.q_proj"].lora_B.data[3, 1] = 1e-9
    with pytest.raises(TrainingError, match=r"layers\.0\.self_attn\.q_proj: its adapter changes the model .*lora_B"):
        check_adapter(model, layers, documents, [0])
    model, layers = _adapted(base, use_dora=True)
    layer = layers["model.layers.1.mlp.down_proj"]
    assert isinstance(layer, DoRALinear)
    layer.lora_magnitude_vector.data[0].mul_(1.001)
    with pytest.raises(TrainingError, match=r"down_proj: its adapter changes the model .*lora_magnitude_vector"):
        check_adapter(model, layers, documents, [0])


def test_a_model_that_guesses_worse_than_chance_or_computes_nonsense_is_refused(base, documents):
    model, layers = _adapted(base)
    model.lm_head.weight.data.mul_(-3.0)  # its best guess is now its worst
    with pytest.raises(TrainingError, match=r"text of train rows 0, 1 is \d+\.\d\d nats a token, above the 5\.70 of guessing"):
        check_adapter(model, layers, documents, [0, 1])
    for value in (float("nan"), float("inf")):
        model, layers = _adapted(base)
        model.lm_head.weight.data[7].fill_(value)
        with pytest.raises(TrainingError, match=r"loss on train rows 0 is (nan|inf)"):
            check_adapter(model, layers, documents, [0])
        assert all(p.grad is None for p in model.parameters())


def test_an_answer_that_the_base_would_never_give_is_no_fault_of_the_base(base):
    """A label that nobody told the model: worse than guessing, and the text around it is not."""
    sure = copy.deepcopy(base)
    sure.lm_head.weight.data.mul_(3.0)
    ids = sure.generate(torch.tensor([[5]]), attention_mask=torch.ones(1, 1), max_new_tokens=30, do_sample=False)[0].tolist()
    last = int(sure(torch.tensor([ids])).logits[0, -1].argmin())
    model, layers = _adapted(sure)
    rare = make_documents([([*ids, last], [0] * len(ids) + [1])])
    assert check_adapter(model, layers, rare, [0]) > math.log(BARE["vocab_size"])


def test_a_run_says_it_is_healthy_and_its_bytes_are_those_of_a_run_without_checks(tmp_path, tiny_dir, talk, monkeypatch):
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"lora.dropout": 0.2}), tmp_path / "run")
    api.data(run)
    api.render(run)
    shutil.copytree(run.path, tmp_path / "unchecked")
    api.train(run)
    told = talk()
    assert "health: adapters change nothing yet and 14 of 14 get a gradient" in told
    monkeypatch.setattr(own_loop, "check_adapter", lambda *_, **__: 0.0)
    api.train(RunDir(tmp_path / "unchecked"))
    written = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (run.path, tmp_path / "unchecked")]
    assert written[0] == written[1]
