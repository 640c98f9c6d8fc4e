import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ExportError
from tunesmith.export.merge import merge
from tunesmith.models.adapter import WEIGHTS, save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora


@pytest.fixture(params=[{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def adapter(tiny_model, tmp_path, request):
    lora = Lora(r=4, alpha=12, **request.param)
    layers = add_lora(tiny_model, lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
        if lora.use_dora:
            layer.lora_magnitude_vector.data.mul_(1.3)
    directory = tmp_path / "adapter"
    directory.mkdir()
    save_adapter(directory, layers, lora, "base")
    return directory


def test_merged_model_equals_base_plus_adapter_in_stock_transformers(tiny_model, tiny_dir, adapter, tmp_path):
    merge(tiny_dir, adapter, tmp_path / "merged")
    ids = torch.randint(5, 49000, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(tmp_path / "merged", "fp32")(ids).logits, tiny_model(ids).logits, rtol=1e-4, atol=1e-4
        )
    assert {"tokenizer.json", "chat_template.jinja", "config.json"} <= {f.name for f in (tmp_path / "merged").iterdir()}


def test_an_adapter_that_does_nothing_or_fits_nothing_is_refused_and_leaves_nothing(tiny_dir, adapter, tmp_path):
    state = load_file(adapter / WEIGHTS)
    key = next(k for k in state if "lora_B" in k)
    good = state[key].clone()
    length = key.replace("lora_B.weight", "lora_magnitude_vector")
    if length in state:  # a DoRA layer does nothing when its rows also keep the base's length
        state[length] = state[length] / 1.3
    for name, tensor, words in [(key, torch.zeros_like(good), "changes nothing"), (key, good[:-1], "the adapter does not")]:
        save_file({**state, name: tensor.contiguous()}, adapter / WEIGHTS)
        with pytest.raises(ExportError, match=words):
            merge(tiny_dir, adapter, tmp_path / "merged")
    renamed = {k.replace("q_proj", "z_proj"): v for k, v in state.items()}
    save_file(renamed, adapter / WEIGHTS)
    with pytest.raises(ExportError, match="is not in the base"):
        merge(tiny_dir, adapter, tmp_path / "merged")
    assert [f.name for f in tmp_path.iterdir()] == ["adapter"]
