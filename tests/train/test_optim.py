"""AdamW against torch's, PEFT's and bitsandbytes' own, and its state through a checkpoint."""

import sys

import bitsandbytes
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from shared import train_settings
from tunesmith.errors import MissingPackage, TrainingError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.whole_table import WholeTable
from tunesmith.rundir.records.training import DevLoss
from tunesmith.train.checkpoint import Checkpoints, Progress
from tunesmith.train.optim import make_optimizer, optimizer_state


def _layers(kind=LoRALinear, seed=0):
    """Three layers; the A and B of the first are large enough for 8-bit moments (4,096 weights), the others are not."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (600, 530), "b": (20, 30), "c": (5, 7)}
    layers = {}
    for name, (inputs, outputs) in shapes.items():
        base = nn.Linear(inputs, outputs, bias=False)
        base.weight.data.normal_(generator=generator)
        layers[name] = kind(base, 8, 2.0, 0.0, generator)
    return layers


def _progress(step):
    return Progress(step=step, dev_losses=[DevLoss(step=step, dev_loss=1.5)], tokens=9, seconds=0.5, computed_on=["here"])


def _save(folder, layers, optimizer, progress):
    (folder / "metrics.jsonl").touch()
    Checkpoints(folder, "x", 1).save(layers, optimizer, progress, folder / "metrics.jsonl")


def _parameters(layers):
    return [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]


def _step(optimizer, parameters, number, rate=None):
    generator = torch.Generator().manual_seed(100 + number)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in optimizer.param_groups if rate is not None else ():
        group["lr"] = rate * group["lr_ratio"]
    optimizer.step()


def test_adamw_equals_torchs_default_over_ten_steps():
    ours, theirs = _layers(), _layers()
    optimizer = make_optimizer(ours, train_settings(learning_rate=1e-3, weight_decay=0.1))
    stock = torch.optim.AdamW(_parameters(theirs), lr=1e-3, weight_decay=0.1)
    for number in range(10):
        _step(optimizer, _parameters(ours), number, rate=1e-3)
        _step(stock, _parameters(theirs), number)
    for mine, other in zip(_parameters(ours), _parameters(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_eight_bit_steps_equal_bitsandbytes():
    ours, theirs = _layers(), _layers()
    optimizer = make_optimizer(ours, train_settings(optimizer="adamw_8bit", learning_rate=1e-3, weight_decay=0.1))
    stock = bitsandbytes.optim.AdamW8bit(_parameters(theirs), lr=1e-3, weight_decay=0.1)
    for number in range(5):
        _step(optimizer, _parameters(ours), number, rate=1e-3)
        _step(stock, _parameters(theirs), number)
    assert all(torch.equal(m, o) for m, o in zip(_parameters(ours), _parameters(theirs), strict=True))
    codes = [v for v in optimizer_state(optimizer)[0].values() if v.dtype == torch.uint8]
    assert sum(code.numel() for code in codes) == 2 * 8 * (600 + 530)


@pytest.mark.parametrize("use_dora", [False, True])
def test_loraplus_groups_and_steps_equal_peft(use_dora):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False))
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"], use_dora=use_dora)
    names = {"0": model[0], "2": model[2]}
    kind = DoRALinear if use_dora else LoRALinear
    layers = {name: kind(base, 2, 2.0, 0.0, torch.Generator().manual_seed(1)) for name, base in names.items()}
    wrapped = peft.get_peft_model(model, config)
    for name, layer in layers.items():
        oracle = wrapped.base_model.model.get_submodule(name)
        oracle.lora_A["default"].weight.data.copy_(layer.lora_A)
    theirs = create_loraplus_optimizer(wrapped, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8.0)
    ours = make_optimizer(layers, train_settings(learning_rate=1e-2, loraplus_lr_ratio=8.0))
    x = torch.randn(9, 6)
    for _ in range(4):
        wrapped(x).pow(2).sum().backward()
        layers["2"](torch.tanh(layers["0"](x))).pow(2).sum().backward()
        for group in ours.param_groups:
            group["lr"] = 1e-2 * group["lr_ratio"]
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
    for name, layer in layers.items():
        oracle = wrapped.base_model.model.get_submodule(name)
        pairs = [(layer.lora_A, oracle.lora_A), (layer.lora_B, oracle.lora_B)]
        pairs += [(layer.lora_magnitude_vector, oracle.lora_magnitude_vector)] if use_dora else []
        for mine, other in pairs:
            torch.testing.assert_close(mine, other["default"].weight, rtol=1e-5, atol=1e-5)


def test_decay_pulls_factors_and_whole_tables_and_leaves_magnitudes_and_rows_alone():
    layers = _layers(DoRALinear)
    before = [layer.lora_magnitude_vector.clone() for layer in layers.values()]
    layers |= {"rows": NewRows(3, torch.ones(2, 4)), "table": WholeTable(torch.ones(5, 4))}
    optimizer = make_optimizer(layers, train_settings(learning_rate=2e-4, weight_decay=0.5))
    for parameter in _parameters(layers):
        parameter.grad = torch.zeros_like(parameter)
    norm = layers["a"].lora_A.norm().item()
    optimizer.step()
    assert layers["a"].lora_A.norm().item() == pytest.approx(norm * (1 - 2e-4 * 0.5), rel=1e-6)
    assert torch.equal(layers["rows"].rows, torch.ones(2, 4))
    torch.testing.assert_close(layers["table"].rows.detach(), torch.full((5, 4), 1 - 2e-4 * 0.5))
    adapters = [layer for layer in layers.values() if isinstance(layer, DoRALinear)]
    assert all(torch.equal(layer.lora_magnitude_vector, m) for layer, m in zip(adapters, before, strict=True))


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, name, kind):
    train = train_settings(optimizer=name, learning_rate=1e-3, weight_decay=0.01, loraplus_lr_ratio=4.0)
    whole, first, second = _layers(kind), _layers(kind), _layers(kind, seed=7)
    for ours, theirs in zip(second.values(), whole.values(), strict=True):
        ours.weight.data.copy_(theirs.weight)  # the frozen base is the same; the adapter is not
    optimizers = {id(layers): make_optimizer(layers, train) for layers in (whole, first, second)}
    for number in range(8):
        _step(optimizers[id(whole)], _parameters(whole), number, rate=1e-3)
    for number in range(4):
        _step(optimizers[id(first)], _parameters(first), number, rate=1e-3)
    progress = _progress(4)
    _save(tmp_path, first, optimizers[id(first)], progress)
    assert Checkpoints(tmp_path, "x", 1).resume(second, optimizers[id(second)]) == progress
    for number in range(4, 8):
        _step(optimizers[id(second)], _parameters(second), number, rate=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(_parameters(whole), _parameters(second), strict=True))
    states = [optimizer_state(optimizers[id(layers)]) for layers in (whole, second)]
    assert states[0][1] == states[1][1] and states[0][0].keys() == states[1][0].keys()
    assert all(torch.equal(value, states[1][0][key]) for key, value in states[0][0].items())


def test_before_the_first_step_there_is_nothing_to_keep(tmp_path):
    layers = _layers()
    optimizer = make_optimizer(layers, train_settings())
    _save(tmp_path, layers, optimizer, _progress(0))
    assert Checkpoints(tmp_path, "x", 1).resume(layers, optimizer) == _progress(0)
    assert optimizer_state(optimizer) == ({}, {})


def test_what_the_machine_or_the_installation_cannot_do_is_refused(monkeypatch):
    with pytest.raises(TrainingError, match="paged_adamw_8bit pages between a CUDA GPU"):
        make_optimizer(_layers(), train_settings(optimizer="paged_adamw_8bit"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(MissingPackage, match="bitsandbytes") as caught:
        make_optimizer(_layers(), train_settings(optimizer="adamw_8bit"))
    assert "tunesmith[bnb]" in caught.value.hint


@pytest.mark.gpu
def test_a_resumed_paged_state_is_paged_again(tmp_path):
    layers = {"a": LoRALinear(nn.Linear(40_000, 64, bias=False, device="cuda"), 8, 2.0, 0.0)}
    train = train_settings(optimizer="paged_adamw_8bit")
    optimizer = make_optimizer(layers, train)
    for parameter in _parameters(layers):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    _save(tmp_path, layers, optimizer, _progress(0))
    again = make_optimizer(layers, train)
    assert Checkpoints(tmp_path, "x", 1).resume(layers, again)
    large = layers["a"].lora_A
    assert again.state[large]["state1"].is_paged
    assert torch.equal(again.state[large]["state1"], optimizer.state[large]["state1"])
