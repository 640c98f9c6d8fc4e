"""The training step on random weights of real shapes, and what bf16 does to a small update.

Weights are random: time and memory of a step do not depend on their values. A model is made on the meta device and filled
layer by layer, each linear layer quantised as soon as it is drawn, so that 27B need no more room than they will take.

A step is some packs of documents up to 2,048 tokens. What is counted: 4 FLOP a base weight and token without recomputation,
6 with it (``floor.py`` has the rest), over the card's measured bf16 product. ``useful`` leaves the recomputation out.

The drift control trains the same adapter in three ways on the same batches: fp32; bf16 with the update added before the
one rounding (``kernels/lora.py``); bf16 as it is usually written, where base product and update are rounded apart and then
added. What is reported is the share of fp32's fall of the loss that each loses.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from floor import step_flops
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

Figures = dict[str, Any]

LONGEST, SUPERVISED, RANK = 2048, 0.14, 16


def random_model(shape: dict[str, Any], device: str, quantized: bool) -> PreTrainedModel:
    """A frozen model of random weights, its linear layers but the head in NF4 or all in bf16."""
    from tunesmith.kernels.nf4 import quantize_nf4
    from tunesmith.layers.nf4 import NF4Weight
    from tunesmith.layers.quantized import QuantizedLinear

    config = LlamaConfig(
        **shape, max_position_embeddings=2 * LONGEST, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    generator = torch.Generator(device).manual_seed(0)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are no parameters

    def drawn(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)

    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module is not head and quantized:
            parent, _, child = name.rpartition(".")
            weight = NF4Weight(quantize_nf4(drawn(*module.weight.shape)), torch.bfloat16)
            model.get_submodule(parent).register_module(child, QuantizedLinear(weight))
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight = nn.Parameter(drawn(*module.weight.shape))
        elif module.__class__.__name__.endswith("RMSNorm"):
            module.register_parameter(
                "weight", nn.Parameter(torch.ones(shape["hidden_size"], dtype=torch.bfloat16, device=device))
            )
    model.tie_weights()
    return model.requires_grad_(False)


def random_documents(tokens: int, vocabulary: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Documents of log-normal lengths that fill so many tokens exactly, supervised at their ends."""
    rng = np.random.default_rng(seed)
    found, left = [], tokens
    while left:
        length = min(left, LONGEST, max(16, round(260 * math.exp(rng.normal(0, 0.7)))))
        if left - length < 16:
            length = left if left <= LONGEST else length - 16
        answer = max(1, round(length * SUPERVISED))
        found.append((rng.integers(3, vocabulary, length).tolist(), [0] * (length - answer) + [1] * answer))
        left -= length
    return found


@contextmanager
def trained(
    model: PreTrainedModel, policy: str, rank: int = RANK, dropout: float = 0.0
) -> Iterator[tuple[Callable[[list[Any]], float], list[list[int]]]]:
    """The optimizer step of ``train/step.py`` on packs that are on the device; and the shapes of the adapted layers."""
    from tunesmith.layers.context import StepContext
    from tunesmith.models.attention import PACKED
    from tunesmith.models.fuse import fuse
    from tunesmith.models.load import attention
    from tunesmith.models.recompute import recompute
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora, TrainSettings
    from tunesmith.train.optim import make_optimizer
    from tunesmith.train.step import step_gradients

    layers = add_lora(model, Lora(r=rank, alpha=32, dropout=dropout), 0)
    fuse(model)
    optimizer = make_optimizer(layers, TrainSettings(learning_rate=2e-4, tokens_per_step=8192, num_train_epochs=1))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    numbers = itertools.count()

    def step(packs: list[Any]) -> float:
        loss = step_gradients(model, packs, StepContext(seed=0, step=next(numbers)))[0]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    with attention(model, PACKED), recompute(model, policy):  # type: ignore[arg-type]
        yield step, [[layer.out_features, layer.in_features] for layer in layers.values()]


def on_device(pack: Any, device: str) -> Any:
    """A pack with its tensors on the device."""
    names = ("ids_1T", "position_1T", "predict_N", "target_N")
    moved = {"ids_1T": pack.ids_1T, "position_1T": pack.position_1T, "predict_N": pack.predict_N, "target_N": pack.target_N}
    return replace(pack, **{name: moved[name].to(device) for name in names})


def measure_step(
    shape: dict[str, Any],
    device: str,
    card: dict[str, float],
    pack_tokens: int,
    packs: int,
    policy: str,
    steps: int = 3,
    quantized: bool = True,
    rank: int = RANK,
    dropout: float = 0.0,
) -> Figures:
    """Tokens a second, share of the card's product, and peak memory of a QLoRA (or, not quantised, a LoRA) step."""
    from tunesmith.train.documents import make_documents, make_pack

    cuda = device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
    model = random_model(shape, device, quantized)
    resident = torch.cuda.memory_allocated() if cuda else 0
    made, lengths, supervised = [], [], 0
    for number in range(packs):
        rows = random_documents(pack_tokens, shape["vocab_size"], number)
        made.append(on_device(make_pack(make_documents(rows), range(len(rows))), device))
        lengths += [len(ids) for ids, _ in rows]
        supervised += sum(sum(flags) for _, flags in rows)
    with trained(model, policy, rank, dropout) as (step, linears):
        step(made)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        durations, losses = [], []
        for _ in range(steps):
            started = time.perf_counter()
            losses.append(step(made))  # the loss is read: the device has finished
            if cuda:
                torch.cuda.synchronize()
            durations.append(time.perf_counter() - started)
    taken = sorted(durations)[len(durations) // 2]
    width = shape["num_attention_heads"] * shape["head_dim"]
    windows = [None] * shape["num_hidden_layers"]
    facts = {"linears": linears, "windows": windows, "attention_width": width, "hidden": shape["hidden_size"]}
    flops = step_flops({**facts, "vocabulary": shape["vocab_size"], "r": rank}, lengths, supervised)
    useful = sum(flops.values())
    again = flops["base"] / 2 + flops["attention"] / 3 + flops["lora"] / 3 if policy == "layer" else 0.0
    return {
        "tokens_per_second": sum(lengths) / taken,
        "share_of_product": (useful + again) / taken / card["flop_per_second"],
        "useful_share_of_product": useful / taken / card["flop_per_second"],
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else 0,
        "reserved_bytes": torch.cuda.max_memory_reserved() if cuda else 0,
        "weights_bytes": resident,
        "losses": losses,
        "pack_tokens": pack_tokens,
        "recompute": policy,
        "r": rank,
        "dropout": dropout,
    }


class RoundedApart(nn.Module):
    """A layer with an adapter as it is usually written: two products, each rounded, then added."""

    def __init__(self, layer: Any):
        super().__init__()
        self.weight, self.lora_A, self.lora_B, self.scale = layer.weight, layer.lora_A, layer.lora_B, layer.scale

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., I) to (..., O)."""
        base = nn.functional.linear(x, self.weight)
        narrow = nn.functional.linear(x, self.lora_A.to(x.dtype))
        return base + nn.functional.linear(narrow, self.lora_B.to(x.dtype)) * self.scale


def drift_losses(shape: dict[str, Any], device: str, arm: str, steps: int, tokens: int, dtype: torch.dtype) -> list[float]:
    """Losses of ``steps`` optimizer steps on one batch, of one of the three ways."""
    from tunesmith.layers.context import StepContext
    from tunesmith.models.attention import PACKED
    from tunesmith.models.load import attention
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora
    from tunesmith.train.documents import make_documents, make_pack
    from tunesmith.train.step import step_gradients

    model = random_model(shape, "cpu", quantized=False)  # drawn in one place: the device's generator gives other numbers
    if dtype == torch.float32:
        model.float()
    layers = add_lora(model, Lora(r=RANK, alpha=32, dropout=0.0), 0)
    if arm == "bf16 rounded apart":
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent).register_module(child, RoundedApart(layer))
    model.to(device)  # type: ignore[arg-type]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    rows = random_documents(tokens, shape["vocab_size"])
    pack = on_device(make_pack(make_documents(rows), range(len(rows))), device)
    losses = []
    with attention(model, PACKED):
        for number in range(steps):
            losses.append(step_gradients(model, [pack], StepContext(seed=0, step=number))[0])
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return losses


def measure_drift(shape: dict[str, Any], device: str, steps: int = 20, tokens: int = 4096) -> Figures:
    """Loss of each way against fp32's: the mean difference, and the share of fp32's gain that is lost."""
    # fp32 on a GPU has no variable-length attention: its run is on the CPU, from the same bf16 weights.
    exact = drift_losses(shape, "cpu", "fp32", steps, tokens, torch.float32)
    gain = sum(exact[0] - loss for loss in exact) / len(exact)
    found: Figures = {"fp32": {"losses": exact, "mean_gain": gain}}
    for arm in ("bf16 accurate", "bf16 rounded apart"):
        losses = drift_losses(shape, device, arm, steps, tokens, torch.bfloat16)
        own_gain = sum(losses[0] - loss for loss in losses) / len(losses)
        difference = sum(a - b for a, b in zip(losses, exact, strict=True)) / steps
        found[arm] = {"losses": losses, "mean_difference": difference, "gain_lost": 1 - own_gain / gain if gain else math.nan}
    return found
