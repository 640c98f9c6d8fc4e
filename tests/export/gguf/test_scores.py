"""Scores under the names and in the order of a GGUF; ``checkpoints/gguf_write/test_rounding.py`` has what is chosen by them."""

import numpy as np
import pytest
import torch

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.errors import ExportError
from tunesmith.export.gguf.scores import read_scores, row_order, write_scores


def test_rows_are_scored_in_the_order_of_the_file(tiny_dir, tiny_gguf, tiny_model, tmp_path, talk):
    """The oracle is transformers' own reading of the format, which knows llama.cpp's order of queries and keys."""
    names = [name.removesuffix(".weight") for name, p in tiny_model.named_parameters() if p.ndim == 2]
    shapes = {name: tiny_model.get_submodule(name).weight.shape for name in names}
    numbered = {name: Sensitivity(torch.arange(float(o)), torch.ones(i), 3) for name, (o, i) in shapes.items()}
    head = numbered["model.embed_tokens"]._replace(input_I=torch.ones(shapes["model.embed_tokens"][1]))
    head = head._replace(gradient_O=head.gradient_O.clone())
    numbered |= {"lm_head": head, "model.layers.0.of_ours": Sensitivity(torch.ones(2), torch.ones(2), 3)}
    write_scores(tmp_path / "scores.safetensors", numbered, tiny_gguf, tiny_dir)
    assert "1 modules are no matrices of the GGUF and keep the plain type, first model.layers.0.of_ours" in talk()
    scores = read_scores(tmp_path / "scores.safetensors")
    assert len(scores["token_embd.weight"]) == 2, "embedding and head are one table"
    file, moved = BlockFile.of_base(tiny_gguf, tiny_dir), 0
    for name in names:
        rows = torch.arange(shapes[name][0], dtype=torch.float32)
        expected = file.in_file(f"{name}.weight", rows[:, None].contiguous().view(torch.uint8))
        (found, *_) = scores[file.tensor_of(f"{name}.weight")]
        assert np.array_equal(expected.reshape(-1).view(np.float32), found.gradient_O.numpy()), name
        moved += not torch.equal(found.gradient_O, rows)
    assert moved == 4, "queries and keys of two layers"


def test_rows_that_are_not_the_models_have_no_order():
    model = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float16)
    order = np.array([3, 0, 4, 1, 2])
    found = row_order(model[order], model)
    assert found is not None and np.array_equal(found, order)
    for other in (model + np.float16(1), model[:4], model.astype(np.float32)):
        assert row_order(other, model) is None


def test_a_file_of_which_nothing_was_scored_is_refused(tiny_dir, tiny_gguf, tmp_path):
    scores = {"model.layers.9.mlp.up_proj": Sensitivity(torch.ones(2), torch.ones(2), 3)}
    with pytest.raises(ExportError, match="none of its tensors was scored"):
        write_scores(tmp_path / "scores.safetensors", scores, tiny_gguf, tiny_dir)
