import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma3TextConfig, GraniteConfig, LlamaConfig, StableLmConfig

from tunesmith.errors import ModelError
from tunesmith.models.fuse import fuse
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.health import refuse_other_loss, stock_loss

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
