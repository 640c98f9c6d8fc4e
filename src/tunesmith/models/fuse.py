"""Replace a model's attention, MLPs and norms by our own, on one instance, where the family is known to fit.

The decoder layers themselves stay stock, but for the last, which is computed where it is read alone. Their attention and
MLP become modules that take in the norm before them, and the norm becomes the identity; norms that stand elsewhere are
replaced alone. Layers of an attention or MLP that carry no adapter get one of rank 0, which computes the frozen layer and
trains nothing.

What does not fit keeps its stock modules and is named: an unknown family, an adapter that is not plain LoRA, a layer
without the usual four and three linear parts. Nothing is approximated.
"""

from collections import Counter
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from tunesmith.kernels.attention import Scoring
from tunesmith.layers.attention import FusedAttention, Heads
from tunesmith.layers.last import LastLayer
from tunesmith.layers.lora import LoRALinear, Norm
from tunesmith.layers.mlp import FusedMLP
from tunesmith.layers.norm import FusedRMSNorm
from tunesmith.models.families import FAMILIES, Family
from tunesmith.models.load import decoder
from tunesmith.models.recompute import decoder_layers

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass
class Fused:
    """What was replaced, and what was not and why.

    Attributes:
        replaced: kind of module -> how many.
        kept: reason -> how many stock modules stay for it.
    """

    replaced: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line for people."""
        done = ", ".join(f"{count} {kind}" for kind, count in self.replaced.items()) or "nothing"
        left = "; ".join(f"{reason} ({count} stock)" for reason, count in self.kept.items())
        return f"fused {done}" + (f"; {left}" if left else "")


def fuse(model: PreTrainedModel) -> Fused:
    """Replace what fits. Call it after ``add_lora``; the adapted layers stay the same objects."""
    fused = Fused()
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        fused.kept[f"model type {model.config.model_type} is not known"] = len(decoder_layers(model))
        return fused
    config = model.config
    layers = decoder(model).get_submodule("layers")
    for layer in layers.children():
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        if reason := _misfit(attention, ("q_proj", "k_proj", "v_proj", "o_proj")):
            fused.kept[reason] += 1
        else:
            norm = _norm(layer, "input_layernorm", family, config.rms_norm_eps)
            layer.register_module("self_attn", _attention(attention, norm, family, config))
            layer.register_module("input_layernorm", nn.Identity())
            fused.replaced["attention"] += 1
        activation = ACTIVATIONS.get(_activation(config))
        if reason := _misfit(mlp, ("gate_proj", "up_proj", "down_proj")) or (
            None if activation else f"activation {_activation(config)}"
        ):
            fused.kept[reason] += 1
        else:
            assert activation is not None
            gate, up, down = (_adapted(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
            norm = _norm(layer, family.mlp_norm, family, config.rms_norm_eps)
            layer.register_module("mlp", FusedMLP(gate, up, down, activation, norm).train(mlp.training))
            layer.register_module(family.mlp_norm, nn.Identity())
            fused.replaced["MLP"] += 1
        for name in family.post_norms:
            layer.register_module(name, FusedRMSNorm(_norm(layer, name, family, config.rms_norm_eps)))
            fused.replaced["norm"] += 1
    if _narrow(layers, family):
        fused.replaced["last layer"] += 1
    last = _norm(decoder(model), "norm", family, config.rms_norm_eps)
    decoder(model).register_module("norm", FusedRMSNorm(last))
    fused.replaced["norm"] += 1
    return fused


def narrows(model: PreTrainedModel) -> bool:
    """Whether the decoder returns the rows of ``rows_N`` alone, in their order."""
    return any(isinstance(module, LastLayer) for module in decoder(model).modules())


def _narrow(layers: nn.Module, family: Family) -> bool:
    """Compute the last layer where it is read, if its attention and MLP are ours."""
    *_, (name, layer) = layers.named_children()
    attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
    if not (isinstance(attention, FusedAttention) and isinstance(mlp, FusedMLP)):
        return False
    after = [(post, layer.get_submodule(post)) for post in family.post_norms]
    layers.register_module(name, LastLayer(attention, mlp, *after).train(layer.training))
    return True


def _attention(attention: nn.Module, norm: Norm, family: Family, config) -> FusedAttention:
    parts = [_adapted(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    width = attention.head_dim
    norms = [_norm(attention, name, family, config.rms_norm_eps) if family.qk_norm else None for name in ("q_norm", "k_norm")]
    assert isinstance(width, int) and isinstance(attention.scaling, float)
    heads = Heads(parts[0].out_features // width, parts[1].out_features // width, width, *norms)
    window = {"none": None, "config": config.to_dict().get("sliding_window")}.get(family.window)
    if family.window == "layer":
        window = attention.sliding_window
    return FusedAttention(*parts, heads, Scoring(attention.scaling, window), norm).train(attention.training)  # type: ignore[arg-type]


def _norm(parent: nn.Module, name: str, family: Family, eps: float) -> Norm:
    weight = parent.get_submodule(name).get_parameter("weight")
    return Norm(weight.data, eps, family.norm_offset)


def _adapted(parent: nn.Module, name: str) -> LoRALinear:
    """The layer's own adapter, or one of rank 0 for a layer that has none."""
    layer = parent.get_submodule(name)
    return layer if isinstance(layer, LoRALinear) else LoRALinear(layer, 0, 1.0, 0.0).train(layer.training)  # type: ignore[arg-type]


def _misfit(parent: nn.Module, names: tuple[str, ...]) -> str | None:
    """Why these linear parts cannot be computed by ours, or None."""
    children = dict(parent.named_children())
    missing = [name for name in names if name not in children]
    if missing:
        return f"no {missing[0]}"
    kinds = {type(children[name]).__name__ for name in names} - {"LoRALinear", "Linear", "NF4Linear"}
    if kinds:
        return f"{sorted(kinds)[0]} is not plain LoRA"
    dropouts = {child.dropout for name in names if isinstance(child := children[name], LoRALinear)}
    return "adapters with different dropout" if len(dropouts) > 1 else None


def _activation(config) -> str:
    facts = config.to_dict()
    return facts.get("hidden_activation") or facts.get("hidden_act") or "none"
