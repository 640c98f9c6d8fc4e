"""What keeps less computes the same: inputs that wait in host memory to the bit, MLPs in tiles to rounding."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaConfig

from tiny_families import SMALL, TINY, adapted, documents, random_model
from tunesmith.errors import ModelError, RecipeError, TrainingError
from tunesmith.kernels.attention import ScoreParams
from tunesmith.kernels.known_attention import cannot_know
from tunesmith.layers import offload
from tunesmith.layers.context import StepContext
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.keep_less import keep_less, tiled
from tunesmith.models.load import attention
from tunesmith.models.recompute import recompute
from tunesmith.recipe import Train, TrainSettings, section_from
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

PACKS = [make_pack(make_documents(documents()), pack) for pack in ((0, 1, 2), (3,))]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(offload, "ARENA", 1 << 12)
    monkeypatch.setattr(offload, "BLOCK", 1 << 9)


def _gradients(model, layers):
    with attention(model, PACKED):
        loss, _ = step_gradients(model, PACKS, StepContext(seed=3, step=0))
    found = [torch.tensor(loss)]
    for layer in layers.values():
        for parameter in (layer.lora_A, layer.lora_B):
            found.append(parameter.grad)
            parameter.grad = None
    return found


@pytest.mark.parametrize("name", TINY)
def test_inputs_in_host_memory_change_no_bit_and_tiles_nothing_but_rounding(name, small_blocks):
    model = random_model(TINY[name].config)
    layers = adapted(model, dropout=0.3)
    fuse(model)
    with recompute(model, "layer"):
        expected = _gradients(model, layers)
    with recompute(model, "layer", offload="inputs"):
        moved = _gradients(model, layers)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(moved, expected, strict=True))
    if not TINY[name].ours or TINY[name].stock:
        return
    with recompute(model, "layer", offload="attention"):
        known = _gradients(model, layers)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(known, expected, strict=True))
    with recompute(model, "layer", offload="inputs"), tiled(model, 20):  # of 173 tokens
        cut = _gradients(model, layers)
    for mine, theirs in zip(cut, expected, strict=True):
        bound = 4 * TINY[name].noise * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=bound)


def test_inputs_leave_the_device_when_the_next_layer_has_run(monkeypatch):
    inputs, alive, put = [], [], offload.HostRing.put

    def watched(ring, x):
        inputs.append(StorageWeakRef(x.untyped_storage()))
        kept = put(ring, x)
        alive.append(sum(not ref.expired() for ref in inputs[1:]))  # the first is the embedding's
        return kept

    monkeypatch.setattr(offload.HostRing, "put", watched)
    model = random_model(LlamaConfig(**{**SMALL, "num_hidden_layers": 6}))
    layers = adapted(model)
    fuse(model)
    with recompute(model, "layer", offload="inputs"):
        _gradients(model, layers)
    assert alive[:5] == [0, 1, 1, 1, 1]


def test_a_ring_gives_back_what_it_took_and_grows_no_further(small_blocks):
    ring = offload.HostRing(torch.device("cpu"))
    inputs = [torch.randn(7, 40 + n) for n in range(5)]
    for _ in range(3):
        kept = [ring.put(x) for x in inputs]
        assert all(torch.equal(ring.take(kept.pop())[0], x) for x in reversed(inputs))
        gc.collect()
    assert ring.host_bytes == -(-sum(-(-x.nbytes // 512) for x in inputs) // 8) * 4096


def test_a_layer_in_tiles_runs_its_mlp_once_forward(monkeypatch):
    """Recomputation ends with the input of an MLP that no norm follows."""
    from tunesmith.layers import tiled_mlp

    tiles = []
    monkeypatch.setattr(tiled_mlp._Tile, "h_PF", lambda self, real=tiled_mlp._Tile.h_PF: tiles.append(1) or real(self))
    for name, passes in (("llama", 1), ("gemma2", 2)):
        model = random_model(TINY[name].config)
        layers = adapted(model)
        fuse(model)
        tiles.clear()
        with recompute(model, "layer"), tiled(model, 40):
            _gradients(model, layers)
        first_layer = sum(-(-pack.ids_1T.shape[1] // 40) * (pack.ids_1T.shape[1] > 40) for pack in PACKS)
        assert len(tiles) == passes * first_layer, name


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(RecipeError, match="needs recompute: layer"):
        section_from(Train, {"offload": "inputs", "recompute": "mlp"}, "x")
    settings = TrainSettings(learning_rate=1e-3, tokens_per_step=9, num_train_epochs=1, offload="inputs", recompute="layer")
    model = random_model(TINY["unknown"].config)
    with pytest.raises(TrainingError, match="computes on a cpu"), keep_less(model, settings):
        pass
    with pytest.raises(ModelError, match="no MLP of Olmo2ForCausalLM is one of ours"), tiled(model, 64):
        pass


def test_attention_that_was_kept_is_not_computed_again(monkeypatch):
    from tunesmith.kernels import attention as kernel
    from tunesmith.kernels import known_attention

    passes = []

    def counted(*given, real=kernel.attention_forward):
        passes.append(1)
        return real(*given)

    monkeypatch.setattr(known_attention, "attention_forward", counted)
    model = random_model(LlamaConfig(**{**SMALL, "num_hidden_layers": 4}))
    layers = adapted(model)
    fuse(model)
    with recompute(model, "layer", offload="attention"):
        _gradients(model, layers)
    assert len(passes) == 3 * len(PACKS)  # the last layer is never recomputed
    assert not any(hasattr(module, "result") and module.result is not None for module in model.modules())


def test_attention_that_cannot_be_kept_is_refused_by_name(monkeypatch):
    model = random_model(TINY["unknown"].config)
    with pytest.raises(ModelError, match=r"layers\.0 has stock attention"), recompute(model, "layer", offload="attention"):
        pass
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    cuda, scoring = torch.device("cuda"), ScoreParams(1.0)
    assert "float16 heads of 64 on this GPU" in str(cannot_know(cuda, torch.float16, 64, scoring))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert "heads of 512" in str(cannot_know(cuda, torch.bfloat16, 512, scoring))
    assert cannot_know(cuda, torch.bfloat16, 512, ScoreParams(1.0, softcap=30.0)) is None
    assert cannot_know(cuda, torch.bfloat16, 128, ScoreParams(1.0, window=64)) is None
