"""The estimate against stock models' parameter counts, PEFT's adapters, and published peaks."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from shared import train_settings
from tunesmith.memory.dials import Dials, dials_of
from tunesmith.memory.disk import adapter_file_bytes, checkpoint_bytes
from tunesmith.memory.estimate import estimate
from tunesmith.memory.plan import rounding, settings
from tunesmith.memory.room import training_hours
from tunesmith.memory.shape import Shape, shape_of
from tunesmith.recipe import Lora
from tunesmith.recipe.tables import BOTH

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 300}
SMALL |= {"num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2}
CONFIGS = [
    LlamaConfig(**SMALL, tie_word_embeddings=False),
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True),
    Gemma3TextConfig(**SMALL, head_dim=32),
    MixtralConfig(**SMALL, num_local_experts=4),
    Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=16, decoder_sparse_step=1, tie_word_embeddings=False),
]
LARGE = shape_of(  # 8 billion parameters
    LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8, vocab_size=128256
    ).to_dict()
)
assert isinstance(LARGE, Shape)


def _shape(config, tmp_path):
    config.save_pretrained(tmp_path)
    found = shape_of(json.loads((tmp_path / "config.json").read_text()))
    assert isinstance(found, Shape)
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{c.tie_word_embeddings}")
def test_parameters_are_those_of_the_stock_model(config, tmp_path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert _shape(config, tmp_path).parameters == matrices


def test_a_rank_of_adapter_is_pefts(tmp_path):
    shape = _shape(CONFIGS[0], tmp_path)
    model = get_peft_model(AutoModelForCausalLM.from_config(CONFIGS[0]), LoraConfig(r=3, target_modules="all-linear"))
    assert 3 * shape.adapter_per_rank == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_text_part_of_a_multimodal_configuration(tmp_path):
    CONFIGS[2].save_pretrained(tmp_path)
    text = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert shape_of({"model_type": "x", "text_config": text, "vision_config": {}}) == shape_of(text)
    assert shape_of({"hidden_size": 64}) == "num_hidden_layers"
    assert shape_of({**text, "intermediate_size": [128, 256]}) == "intermediate_size"  # one a layer, as gemma3n has it


@pytest.mark.parametrize(("base", "published"), [("bf16", 16.2 * 2**30), ("nf4", 7.4 * 2**30)])
def test_published_peaks_of_8b_are_met_within_a_tenth(base, published):
    """torchtune's README: Llama-3.1-8B, packed 2,048, recomputed layers, one RTX 4090 or A6000."""
    found = estimate(replace(LARGE, tied=False), Dials(base=base, recompute="layer")).peak
    assert found == pytest.approx(published, rel=0.1)


def test_what_takes_less_is_estimated_as_less():
    def size(**dials):
        return estimate(LARGE, Dials(**{"base": "bf16", **dials})).peak

    assert size(base="nf4") < size() < size(dropout=0.05, r=64)
    assert size(r=8) < size() < size(r=64)
    assert size(tokens=512, rows=512) < size() < size(packs=2)
    assert size(optimizer="adamw_8bit") < size()
    assert size(recompute="layer") < size(recompute=2) < size()
    assert size(recompute="layer") < size(recompute="mlp") < size(recompute="attention") < size()
    assert size(recompute="layer") < size(recompute=tuple(range(2, 32))) < size(recompute=(0, 1)) < size(recompute=()) == size()
    assert size(resident_layers=4) < size()


def test_time_is_linear_and_a_mixture_pays_for_the_chosen_experts_alone():
    dense = training_hours(LARGE, 1e6, 1, gpu=True, cores=2)
    assert training_hours(LARGE, 2e6, 3, gpu=True, cores=2) == pytest.approx(6 * dense)
    assert training_hours(LARGE, 1e6, 1, gpu=False, cores=2) == pytest.approx(500 * dense)
    layers = [replace(layer, intermediate=0, experts=8, chosen=1, expert=layer.intermediate) for layer in LARGE.layers]
    mixture = replace(LARGE, layers=tuple(layers))
    assert training_hours(mixture, 1e6, 1, gpu=True, cores=2) == pytest.approx(dense, rel=1e-3)


def test_every_dial_of_a_recipe_is_reckoned_with():
    train = train_settings(
        recompute="layer", offload="inputs", mlp_tile=64, embedding_on="host", resident_layers=3, optimizer="adamw_8bit"
    )
    dials = dials_of("nf4", "bf16", Lora(r=8, dropout=0.1), train, base_head="int8")
    assert (dials.recompute, dials.offload, dials.mlp_tile, dials.embedding_on) == ("layer", "inputs", 64, "host")
    assert (dials.resident_layers, dials.optimizer, dials.head, dials.r) == (3, "adamw_8bit", "int8", 8)


def test_a_tile_that_is_left_to_the_width_is_the_one_that_training_takes():
    auto = Dials(tokens=16384, recompute="layer", mlp_tile="auto")
    assert estimate(LARGE, auto).peak == estimate(LARGE, replace(auto, mlp_tile=4096)).peak
    assert estimate(LARGE, auto).peak < estimate(LARGE, replace(auto, mlp_tile=0)).peak
    assert estimate(LARGE, replace(auto, plain=False)).peak == estimate(LARGE, replace(auto, mlp_tile=0)).peak


@pytest.mark.parametrize(("tied", "named", "tables"), [(True, ["lm_head"], 1), (False, ["lm_head"], 1), (False, BOTH, 2)])
def test_whole_tables_are_trained_weights_and_stay_where_they_are(tied, named, tables):
    shape, train = replace(LARGE, tied=tied), train_settings()
    without, trained = (dials_of("nf4", "bf16", Lora(modules_to_save=names), train) for names in ((), named))
    before, after = estimate(shape, without), estimate(shape, trained)
    weights = tables * shape.hidden * shape.vocab
    assert after.resident["trained tables"] == 4 * weights
    assert after.resident["optimizer"] - before.resident["optimizer"] == 8 * weights
    assert after.peak - before.peak > 16 * weights - 2**28  # and a gradient, at a moment that was not the largest
    assert adapter_file_bytes(shape, trained) - adapter_file_bytes(shape, without) == 4 * weights * (2 if tied else 1)
    assert checkpoint_bytes(shape, trained) - checkpoint_bytes(shape, without) == 12 * weights
    frozen = not tied and named == ["lm_head"]
    assert {dials.embedding_on for dials in settings(shape, trained)} == ({"device", "host"} if frozen else {"device"})
    assert all(dials.head == "compute" for dials in rounding(trained))


def test_training_onto_a_grid_takes_its_scales_and_a_rounded_copy():
    without, trained = (estimate(LARGE, dials_of("bf16", "bf16", Lora(), train_settings(qat=qat))) for qat in (False, True))
    weights = trained.resident["rounded weights"] // 2
    assert trained.resident["grids of the file"] == weights // 4
    assert trained.peak - without.peak > 2 * weights - 2**28  # no free columns for B stand beside the weights


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_rows_of_new_tokens_are_trained_weights(tied, tables):
    shape, train = replace(LARGE, tied=tied), train_settings()
    without, with_rows = (estimate(shape, dials_of("nf4", "bf16", Lora(), train, new_tokens=n)).resident for n in (0, 7))
    rows = 7 * LARGE.hidden * tables
    assert with_rows["adapter"] - without["adapter"] == 4 * rows
    assert with_rows["optimizer"] - without["optimizer"] == 8 * rows
