"""Replace a model's attention, MLPs and norms by our own, on one instance, where the family is known to fit.

The decoder layers themselves stay stock, but for the last, which is computed where it is read alone. Their attention and
MLP become modules that take in the norm before them, and the norm becomes the identity; norms that stand elsewhere are
replaced alone. Layers of an attention or MLP that carry no adapter get one of rank 0, which computes the frozen layer and
trains nothing.

What does not fit keeps its stock modules and is named: an unknown family, an adapter that is not plain LoRA, a mixture of
experts, a layer without the linear parts that its family has. A last layer that does more than attention and MLP (a scale
of its own, per-layer inputs, experts) runs whole, like any other. Nothing is approximated.

A model that is to answer has attention that knows caches (``models/answering.py``) and whole layers.

Shape suffixes: H query heads.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES, Family
from tunesmith.kernels.attention import ScoreParams
from tunesmith.layers.attention import FusedAttention, Heads, SharedKV
from tunesmith.layers.grid import GridBase
from tunesmith.layers.last import LastLayer
from tunesmith.layers.lora import LoRALinear, Norm
from tunesmith.layers.mlp import FusedMLP
from tunesmith.layers.norm import FusedRMSNorm
from tunesmith.models.answering import AnsweringAttention
from tunesmith.models.load import decoder
from tunesmith.models.recompute import decoder_layers

PLAIN = {"LoRALinear", "Linear", "QuantizedLinear", "HalfLinear", "HalfQuantizedLinear", "GridLinear", "GridBase"}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass
class Fused:
    """What was replaced, and what was not and why.

    Attributes:
        replaced: kind of module -> how many.
        stock_reasons: reason -> how many stock modules stay for it.
    """

    replaced: Counter[str] = field(default_factory=Counter)
    stock_reasons: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line for people."""
        done = ", ".join(f"{count} {kind}" for kind, count in self.replaced.items()) or "nothing"
        left = "; ".join(f"{reason} ({count} stock)" for reason, count in self.stock_reasons.items())
        return f"fused {done}" + (f"; {left}" if left else "")


def fuse(model: PreTrainedModel, *, answering: bool = False) -> Fused:
    """Replace what fits. Call it after ``add_lora``; the adapted layers stay the same objects.

    Args:
        answering: to decode and score, and not to train.

    Raises:
        ModelError: a configuration that gives the scores no real scale.
    """
    fused = Fused()
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        fused.stock_reasons[f"model type {model.config.model_type} is not known"] = len(decoder_layers(model))
        return fused
    config = model.config
    facts = config.to_dict()
    if dropped := facts.get("attention_dropout"):
        fused.stock_reasons[f"attention_dropout {dropped} of the configuration is not applied"] = 0
    layers = decoder(model).get_submodule("layers")
    for layer in layers.children():
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        names = _projections(attention, family)
        if reason := _misfit(attention, (*names, "o_proj")):
            fused.stock_reasons[reason] += 1
        else:
            norm = _norm(layer, "input_layernorm", family, config.rms_norm_eps)
            ours = _attention(attention, names, norm, family, config.rms_norm_eps, facts, answering)
            layer.register_module("self_attn", ours)
            layer.register_module("input_layernorm", nn.Identity())
            fused.replaced["attention"] += 1
        if reason := _mlp_misfit(mlp, family, facts):
            fused.stock_reasons[reason] += 1
        else:
            norm = _norm(layer, family.mlp_norm, family, config.rms_norm_eps)
            inputs = {name: _adapted(mlp, name) for name in _gates(family)}
            gated = FusedMLP(inputs, _adapted(mlp, "down_proj"), ACTIVATIONS[_activation(facts)], norm)
            others = {name for name, _ in layer.named_children()} - {"self_attn", "mlp", "input_layernorm", family.mlp_norm}
            gated.ends_layer = not others and not any(True for _ in layer.buffers(recurse=False))
            layer.register_module("mlp", gated.train(mlp.training))
            layer.register_module(family.mlp_norm, nn.Identity())
            fused.replaced["MLP"] += 1
        present = {name for name, _ in layer.named_children()}
        for name in (name for name in (*family.post_norms, *family.other_norms) if name in present):
            layer.register_module(name, FusedRMSNorm(_norm(layer, name, family, config.rms_norm_eps)))
            fused.replaced["norm"] += 1
    if not answering and _narrow(layers, family):
        fused.replaced["last layer"] += 1
    last = _norm(decoder(model), "norm", family, config.rms_norm_eps)
    decoder(model).register_module("norm", FusedRMSNorm(last))
    fused.replaced["norm"] += 1
    return fused


def is_fused(model: PreTrainedModel) -> bool:
    """Whether ``fuse`` was called on a model of a known family. Cheap: it looks at one module."""
    return isinstance(dict(decoder(model).named_children()).get("norm"), FusedRMSNorm)


def narrows(model: PreTrainedModel) -> bool:
    """Whether the decoder returns the rows of ``rows_N`` alone, in their order. Cheap: it looks at one module."""
    layers = dict(decoder(model).named_children()).get("layers")
    return isinstance(layers, nn.ModuleList) and isinstance(layers[-1], LastLayer)


def _narrow(layers: nn.Module, family: Family) -> bool:
    """Compute the last layer where it is read, if its attention and MLP are ours and there is nothing else to it."""
    *_, (name, layer) = layers.named_children()
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    if not (isinstance(attention, FusedAttention) and isinstance(mlp, FusedMLP)):
        return False
    parts = {"self_attn", "mlp", "input_layernorm", family.mlp_norm, *family.post_norms}
    others = [child for part, child in layer.named_children() if part not in parts]
    idle = all(isinstance(child, nn.Dropout) and child.p == 0 for child in others)
    if not idle or any(True for _ in layer.buffers(recurse=False)):
        return False
    after = [(post, layer.get_submodule(post)) for post in family.post_norms]
    layers.register_module(name, LastLayer(attention, mlp, *after).train(layer.training))
    return True


def fuse_on_gpu(model: PreTrainedModel) -> None:
    """``fuse`` a model that is to answer where that pays: on a GPU, whose time a token is launches as much as bytes.

    Raises:
        ModelError: see ``fuse``.
    """
    if model.device.type == "cuda":
        fuse(model, answering=True)


def _attention(
    attention: Any, names: tuple[str, ...], norm: Norm, family: Family, eps: float, facts: dict[str, Any], answering: bool
) -> FusedAttention:
    """Our module for a stock one, whose own facts it takes: width and scale, and what differs by layer."""
    inputs = {name: _adapted(attention, name) for name in names}
    o, width = _adapted(attention, "o_proj"), attention.head_dim
    if not isinstance(width, int) or not isinstance(attention.scaling, float):
        raise ModelError(
            f"attention of layer {attention.layer_idx}: head_dim {width!r} and scale {attention.scaling!r} of the scores, "
            "expected an integer and a float",
            "both follow from config.json (head_dim, query_pre_attn_scalar): does it belong to the weights?",
        )
    shared = None
    if family.shared_kv and (attention.is_kv_shared_layer or attention.store_full_length_kv):
        shared = SharedKV(attention.layer_type, writes=not attention.is_kv_shared_layer)
    reads = shared is not None and not shared.writes
    queries = o.in_features // width
    heads_in_all = sum(layer.out_features for layer in inputs.values()) // width  # heads of q, k and v, or of q and k
    keys = (heads_in_all - queries) // (1 if names == ("q_proj", "k_proj") else 2)
    v_norm = Norm(torch.ones(width, device=o.lora_A.device), eps, 0.0) if family.v_norm and not reads else None
    heads = Heads(
        queries,
        keys,
        width,
        _norm(attention, "q_norm", family, eps) if family.qk_norm else None,
        _norm(attention, "k_norm", family, eps) if family.qk_norm and not reads else None,
        v_norm,
        rotary=family.rotary == "all" or bool(attention.use_rope),
        half_cosines=family.half_cosines,
        keys_are_values=names == ("q_proj", "k_proj"),
    )
    window = facts.get("sliding_window") if family.window == "config" else None
    if family.window == "layer":
        window = attention.sliding_window
    softcap = None if family.score_softcap is None else facts[family.score_softcap]
    sinks_H = None if family.sinks is None else attention.get_parameter(family.sinks).data
    scoring = ScoreParams(attention.scaling, window, softcap, sinks_H)
    parts: dict[str, Any] = {"inputs": inputs, "o": o, "heads": heads, "scoring": scoring, "norm": norm, "shared": shared}
    if answering:
        return AnsweringAttention(attention.config, attention.layer_idx, **parts).train(attention.training)
    return FusedAttention(**parts).train(attention.training)


def _projections(attention: Any, family: Family) -> tuple[str, ...]:
    """The linear layers that make q, k and v in this layer, in the order of their outputs."""
    if family.fused_qkv is not None:
        return (family.fused_qkv,)
    if family.shared_kv and attention.is_kv_shared_layer:
        return ("q_proj",)
    if family.keys_are_values and "v_proj" not in dict(attention.named_children()):
        return ("q_proj", "k_proj")
    return ("q_proj", "k_proj", "v_proj")


def _gates(family: Family) -> tuple[str, ...]:
    """The linear layers that make gate and up."""
    return ("gate_proj", "up_proj") if family.fused_gate_up is None else (family.fused_gate_up,)


def _norm(parent: nn.Module, name: str, family: Family, eps: float) -> Norm:
    weight = parent.get_submodule(name).get_parameter("weight")
    return Norm(weight.data, eps, family.norm_offset)


def _adapted(parent: nn.Module, name: str) -> LoRALinear:
    """The layer's own adapter, or one of rank 0 for a layer that has none."""
    layer = parent.get_submodule(name)
    layer = layer.as_in_file() if isinstance(layer, GridBase) else layer
    return layer if isinstance(layer, LoRALinear) else LoRALinear(layer, 0, 1.0, 0.0).train(layer.training)  # type: ignore[arg-type]


def _mlp_misfit(mlp: nn.Module, family: Family, facts: dict[str, Any]) -> str | None:
    """Why this MLP cannot be computed by ours, or None."""
    if family.experts is not None and "down_proj" not in dict(mlp.named_children()):
        return "a mixture of experts in place of an MLP"
    reason = _misfit(mlp, (*_gates(family), "down_proj"))
    return reason or (None if _activation(facts) in ACTIVATIONS else f"activation {_activation(facts)}")


def _misfit(parent: nn.Module, names: tuple[str, ...]) -> str | None:
    """Why these linear parts cannot be computed by ours, or None."""
    children = dict(parent.named_children())
    missing = [name for name in names if name not in children]
    if missing:
        return f"no {missing[0]}"
    kinds = {type(children[name]).__name__ for name in names} - PLAIN
    if kinds:
        return f"{sorted(kinds)[0]} is not plain LoRA"
    dropouts = {child.dropout for name in names if isinstance(child := children[name], LoRALinear)}
    return "adapters with different dropout" if len(dropouts) > 1 else None


def _activation(facts: dict[str, Any]) -> str:
    return facts.get("hidden_activation") or facts.get("hidden_act") or "none"
