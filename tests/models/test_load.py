import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GGUF
from tunesmith.errors import ModelError
from tunesmith.models.load import find_model, load_model, load_tokenizer


def test_directory_is_taken_as_it_is_and_frozen(tiny_dir):
    assert find_model(str(tiny_dir)) == tiny_dir
    model = load_model(tiny_dir, "bf16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_weights_that_are_not_in_the_checkpoint_are_never_made_up(tiny_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in the checkpoint, first model.layers.1.mlp.up_proj.weight"):
        load_model(broken, "fp32")


def test_places_that_hold_no_model(tmp_path):
    for model, words in [
        (str(tmp_path / "none"), "no such model"),
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "none.gguf"), "no such model file"),
    ]:
        with pytest.raises(ModelError, match=words):
            find_model(model)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)


def test_gguf_cut_in_half_and_gguf_with_another_hash(tmp_path):
    half = tmp_path / "half.gguf"
    with GGUF.open("rb") as file:
        half.write_bytes(file.read(GGUF.stat().st_size // 2))
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        find_model(str(half))
    with pytest.raises(ModelError, match="the recipe expects 0000"):
        find_model(str(half), sha256="0" * 64)
    half.write_bytes(b"not a gguf")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        find_model(str(half))


def test_unknown_hub_id_is_an_error_not_another_model(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match="nobody/nothing: no such file or directory, and the hub"):
        find_model("nobody/nothing")
