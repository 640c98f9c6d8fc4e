"""Where a step is computed: nothing of it beside the model's device, and on a GPU the numbers of the CPU.

Without a GPU the meta device stands in: every operation of a forward and backward pass is watched for a tensor that is
elsewhere.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma4TextConfig, LlamaConfig

from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, decoder, load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents
from tunesmith.train.health import check_adapter, refuse_other_loss, stock_loss
from tunesmith.train.step import step_gradients, step_packs

DOCUMENTS = make_documents([([5] * length, [0] * 15 + [1] * (length - 15)) for length in (20, 30)])
LLAMA = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=300
)
GEMMA = Gemma4TextConfig(
    vocab_size=256,
    vocab_size_per_layer_input=256,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=8,
    global_head_dim=16,
    sliding_window=8,
    hidden_size_per_layer_input=8,
    num_kv_shared_layers=2,
)


class Elsewhere(TorchDispatchMode):
    """Names the operations that touch a tensor beside the meta device. A number that is read off one is no tensor."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.seen.add(str(func))
        return found


@pytest.mark.parametrize(("config", "fused"), [(LLAMA, False), (LLAMA, True), (GEMMA, False), (GEMMA, True)])
def test_a_pass_through_the_decoder_touches_no_other_device(config, fused):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    add_lora(model, Lora(r=2, alpha=4, dropout=0.0), seed=0)
    if fused:
        fuse(model)
    (there,) = step_packs(DOCUMENTS, [(0, 1)], 200)
    pack = there.to(torch.device("meta"))
    assert len(pack.spans) == 3 and pack.spans is there.spans and there.to(torch.device("cpu")) is there
    with Elsewhere() as elsewhere, attention(model, PACKED):
        given = {"position_ids": pack.position_1T, "spans": pack.spans, "rows_N": pack.predict_N, "use_cache": False}
        decoder(model)(input_ids=pack.ids_1T, **given).last_hidden_state.sum().backward()
    assert elsewhere.seen == set()
    assert {p.grad.device.type for p in model.parameters() if p.requires_grad and p.numel()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 4e-2)])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_on_a_gpu_is_the_step_on_the_cpu(tiny_dir, dtype, tolerance, fused):
    outcomes = []
    for device in ("cpu", "cuda"):
        model = load_model(tiny_dir, dtype, device=device)
        expected = stock_loss(model)
        layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0), seed=0)
        if fused:
            fuse(model)
        refuse_other_loss(model, expected)
        checked = check_adapter(model, layers, DOCUMENTS, [0, 1])
        generator = torch.Generator().manual_seed(0)
        for layer in layers.values():
            layer.lora_B.data.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.05)
        with attention(model, PACKED):
            loss, _ = step_gradients(model, step_packs(DOCUMENTS, [(0, 1)], 200))
        found = [p.grad.cpu() for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
        outcomes.append((expected, checked, loss, found))
    (*losses, grads), (*losses_gpu, grads_gpu) = outcomes
    assert losses_gpu == pytest.approx(losses, rel=tolerance / 4)
    for grad, on_gpu in zip(grads, grads_gpu, strict=True):
        assert (on_gpu - grad).norm() <= tolerance * grad.norm()
