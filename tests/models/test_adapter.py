import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.models.adapter import WEIGHTS, adapter_state, load_adapter_state, read_adapter, read_scale, save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "use_rslora": True}])
def test_peft_loads_it_and_gives_the_same_logits(tiny_model, tiny_dir, tmp_path, variant):
    import peft

    lora = Lora(r=4, alpha=12, **variant)
    layers = add_lora(tiny_model, lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
        if lora.use_dora:
            layer.lora_magnitude_vector.data.mul_(1.0 + 0.2 * torch.rand(len(layer.lora_B)))
    save_adapter(tmp_path, layers, lora, str(tiny_dir))
    assert read_scale(tmp_path) == 12 / (2 if lora.use_rslora else 4)
    oracle = peft.PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), str(tmp_path)).eval()
    ids = torch.randint(5, 49000, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)


def test_every_layer_of_a_dora_model_trains_its_magnitude(tiny_model):
    layers = add_lora(tiny_model, Lora(r=4, use_dora=True), seed=0)
    tiny_model(torch.randint(5, 900, (1, 8))).logits.pow(2).sum().backward()
    for name, layer in layers.items():
        assert layer.lora_magnitude_vector.grad.abs().sum() > 0 and layer.lora_B.grad.abs().sum() > 0, name


@pytest.mark.parametrize("use_dora", [False, True])
def test_round_trip_and_what_does_not_fit(tiny_model, tiny_dir, tmp_path, use_dora):
    layers = add_lora(tiny_model, Lora(r=4, use_dora=use_dora), seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_()
    save_adapter(tmp_path, layers, Lora(r=4, use_dora=use_dora), "base")
    other = add_lora(load_model(tiny_dir, "fp32"), Lora(r=4, use_dora=use_dora), seed=1)
    load_adapter_state(other, read_adapter(tmp_path))
    for key, tensor in adapter_state(layers).items():
        assert torch.equal(tensor, adapter_state(other)[key])
    with pytest.raises(ModelError, match="shape"):
        load_adapter_state(add_lora(load_model(tiny_dir, "fp32"), Lora(r=2, use_dora=use_dora), seed=1), read_adapter(tmp_path))
    with pytest.raises(ModelError, match="on one side only"):
        fewer = add_lora(load_model(tiny_dir, "fp32"), Lora(r=4, target_modules=("q_proj",)), seed=1)
        load_adapter_state(fewer, read_adapter(tmp_path))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path)
