"""No document of a pack knows its neighbours, or the model is refused; in the precision that trains.

Oracle: the loss of a row behind other neighbours, in fp32.
"""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    Lfm2Config,
    PhiConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)

from tiny_families import TINY, random_model
from tunesmith.errors import ModelError
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.health import refuse_other_loss, stock_loss
from tunesmith.train.step import mean_loss

BARE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
SMALL = {**BARE, "intermediate_size": 48, "num_key_value_heads": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
LINEAR = {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
LINEAR |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
LEAKING = [  # at the usual spread of 0.02, where some losses move by less than 2e-5
    Qwen3_5TextConfig(**SMALL, **LINEAR),
    Qwen3NextConfig(**SMALL, **LINEAR, **MIXTURE),
    GraniteMoeHybridConfig(
        **SMALL, **MAMBA, mamba_expand=2, layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=48
    ),
    FalconH1Config(**SMALL, **MAMBA, head_dim=8, mamba_d_ssm=64),
    Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=300),
]
DTYPES = [torch.float32, torch.bfloat16]


def _drawn(config, dtype, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **settings).requires_grad_(False).eval()


def _loss_behind(model, seed):
    """Of one row, the second of a pack, by what the others are drawn from."""
    row = torch.randint(300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    drawn = torch.Generator().manual_seed(seed)
    others = [(torch.randint(300, (30,), generator=drawn).tolist(), [0] * 30) for _ in range(2)]
    documents = make_documents([others[0], (row, [1] * 40), others[1]])
    with attention(model, PACKED):
        return mean_loss(model, [make_pack(documents, (0, 1, 2))])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", LEAKING, ids=lambda config: config.model_type)
def test_a_model_whose_rows_leak_into_each_other_is_refused(config, dtype):
    wide = _drawn(config, torch.float32)
    for parameter in wide.parameters():
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)  # so that the oracle sees it too
    assert abs(_loss_behind(wide, 2) - _loss_behind(wide, 3)) > 1e-5
    model = _drawn(config, dtype)
    expected = stock_loss(model)
    add_lora(model, Lora(r=2, alpha=4), seed=0)
    with pytest.raises(
        ModelError, match=rf"{config.model_type}: the loss of a document depends on .* \(by .* on one before it"
    ):
        refuse_other_loss(model, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TINY)
def test_every_known_family_keeps_its_rows_apart(name, dtype):
    with torch.no_grad():
        model = random_model(TINY[name].config).to(dtype)
    expected = stock_loss(model)
    add_lora(model, Lora(r=2, alpha=4), seed=0)
    refuse_other_loss(model, expected)
    fuse(model)
    refuse_other_loss(model, expected)
    if dtype == torch.float32:
        assert _loss_behind(model, 2) == pytest.approx(_loss_behind(model, 3), abs=1e-5)


def test_the_proof_leaves_no_trace():
    model = _drawn(PhiConfig(**SMALL), torch.float32)
    layers = add_lora(model, Lora(r=2, alpha=4), seed=0)
    expected, state = stock_loss(model), torch.get_rng_state()
    refuse_other_loss(model.train(), expected)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for layer in layers.values() for parameter in layer.parameters())
    assert not any(module._forward_hooks for module in model.modules())
