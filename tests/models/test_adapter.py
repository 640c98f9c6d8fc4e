import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.models.adapter import WEIGHTS, adapter_state, load_adapter_state, read_adapter, save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora


def test_peft_loads_it_and_gives_the_same_logits(tiny_model, tiny_dir, tmp_path):
    import peft

    lora = Lora(r=4, alpha=12)
    layers = add_lora(tiny_model, lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
    save_adapter(tmp_path, layers, lora, str(tiny_dir))
    oracle = peft.PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), str(tmp_path)).eval()
    ids = torch.randint(5, 49000, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)


def test_round_trip_and_what_does_not_fit(tiny_model, tiny_dir, tmp_path):
    layers = add_lora(tiny_model, Lora(r=4), seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_()
    save_adapter(tmp_path, layers, Lora(r=4), "base")
    other = add_lora(load_model(tiny_dir, "fp32"), Lora(r=4), seed=1)
    load_adapter_state(other, read_adapter(tmp_path))
    for key, tensor in adapter_state(layers).items():
        assert torch.equal(tensor, adapter_state(other)[key])
    with pytest.raises(ModelError, match="shape"):
        load_adapter_state(add_lora(load_model(tiny_dir, "fp32"), Lora(r=2), seed=1), read_adapter(tmp_path))
    with pytest.raises(ModelError, match="on one side only"):
        fewer = add_lora(load_model(tiny_dir, "fp32"), Lora(r=4, target_modules=("q_proj",)), seed=1)
        load_adapter_state(fewer, read_adapter(tmp_path))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path)
