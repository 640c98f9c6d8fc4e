"""The importance matrix against activations that stock transformers computes, a document at a time."""

import gguf
import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tiny_families import TINY, adapted, documents, random_model
from tunesmith.checkpoints.gguf_write.imatrix import Importance, read_imatrix, write_imatrix
from tunesmith.errors import ExportError
from tunesmith.export.gguf.imatrix import PACK, choose, collect

ARCHITECTURE = {"llama": "llama", "qwen3": "qwen3", "phi3": "phi3", "gemma3": "gemma3", "gemma4-e": "gemma4"}
ARCHITECTURE |= {"qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "gemma4-26b": "gemma4", "gemma4-31b": "gemma4"}
STACKS = {"qwen3_moe": ("ffn_gate_exps", "ffn_up_exps"), "gpt_oss": ("ffn_gate_exps", "ffn_up_exps")}
STACKS |= {"gemma4-26b": ("ffn_gate_up_exps",)}
IDS = [ids for ids, _ in documents()]


def squares(model):
    """Sum of squares of every linear layer's input by module, by the stock forward of one document after another."""
    found = {}

    def hook(name, x):
        found[name] = found.get(name, 0) + x.double().square().flatten(0, -2).sum(0)

    linears = [(name, module) for name, module in model.model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(lambda _, x, n=name: hook(n, x[0])) for name, module in linears]
    with torch.no_grad():
        for ids in IDS:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in hooks:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_every_weight_gets_the_mean_square_of_its_inputs(name):
    model = random_model(TINY[name].config)
    importance = collect(model, IDS, ARCHITECTURE[name])
    assert importance.tokens == sum(map(len, IDS))
    names = gguf.get_tensor_name_map(
        {text: arch for arch, text in gguf.MODEL_ARCH_NAMES.items()}[ARCHITECTURE[name]], model.config.num_hidden_layers
    )
    dense = 0
    for module, expected in squares(model).items():
        tensor = names.get_name(f"model.{module}.weight", try_suffixes=(".weight",))
        assert tensor is not None
        if not tensor.startswith("blk.") or tensor.endswith("ffn_gate_inp.weight"):
            assert tensor not in importance.values
            continue
        dense += 1
        np.testing.assert_allclose(importance.values[tensor], (expected / importance.tokens).numpy(), rtol=2e-4)
    assert sum(sums.shape[0] == 1 for sums in importance.sums.values()) == dense
    assert not any(module._forward_pre_hooks for module in model.modules())


class Products(TorchFunctionMode):
    """Sum of squares and rows of what every matrix is multiplied with, by the matrix's address."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("linear", "matmul", "__matmul__") and args[1].ndim == 2:
            rows = args[0].double().flatten(0, -2)
            total, count = self.found.get(args[1].data_ptr(), (0, 0))
            self.found[args[1].data_ptr()] = (total + rows.square().sum(0), count + len(rows))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STACKS)
def test_experts_have_sums_and_counts_of_their_own(name):
    """The stock loop over experts multiplies each one's rows alone; what it multiplies is looked at."""
    model = random_model(TINY[name].config)
    importance = collect(model, IDS, ARCHITECTURE[name])
    model.set_experts_implementation("eager")
    with Products() as products, torch.no_grad():
        for ids in IDS:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    counts = []
    for layer, block in enumerate(model.model.layers):
        experts = block.experts if name.startswith("gemma") else block.mlp.experts
        for tensors, stack in ((STACKS[name], experts.gate_up_proj), (("ffn_down_exps",), experts.down_proj)):
            rows = [products.found.get(weight.data_ptr(), (0, 0)) for weight in stack]
            for tensor in (f"blk.{layer}.{each}.weight" for each in tensors):
                assert importance.counts[tensor].tolist() == [count for _, count in rows]
                for expert, (total, count) in enumerate(rows):
                    mean = (total / count).numpy() if count else 1.0
                    np.testing.assert_allclose(importance.values[tensor][expert], mean, rtol=2e-4)
            counts += [count for _, count in rows]
    assert sum(counts) == 2 * len(model.model.layers) * 2 * importance.tokens  # two products, two experts a token


def test_an_expert_without_tokens_weighs_its_columns_alike():
    importance = Importance({"a": np.array([[4.0, 8.0], [0.0, 0.0]], np.float32)}, {"a": np.array([2.0, 0.0], np.float32)}, 2)
    assert importance.values["a"].tolist() == [[2.0, 4.0], [1.0, 1.0]]


def test_the_file_has_llama_cpps_form_and_comes_back(tmp_path):
    importance = collect(random_model(TINY["gemma4-26b"].config), IDS, "gemma4")
    write_imatrix(tmp_path / "imatrix.gguf", importance, "train rows")
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    expected = {"general.type": "imatrix", "imatrix.datasets": ["train rows"]}
    assert facts == {**expected, "imatrix.chunk_count": 1, "imatrix.chunk_size": 512}
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [32] and shapes["blk.0.attn_q.weight.counts"] == [1]
    assert shapes["blk.0.ffn_down_exps.weight.in_sum2"] == [16, 4] and shapes["blk.0.ffn_down_exps.weight.counts"] == [1, 4]
    again = read_imatrix(tmp_path / "imatrix.gguf")
    assert again.tokens == importance.tokens and again.values.keys() == importance.values.keys()
    assert all(np.array_equal(again.values[name], value) for name, value in importance.values.items())
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ExportError, match="not a GGUF imatrix file"):
        read_imatrix(tmp_path / "none.gguf")
    (tmp_path / "old.dat").write_bytes(b"\x02\x00\x00\x00" * 40)
    with pytest.raises(ExportError, match="llama-imatrix --in-file"):
        read_imatrix(tmp_path / "old.dat")
    writer = gguf.GGUFWriter(tmp_path / "half.gguf", "llama")
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=r"blk.0.attn_q.weight has no sums and counts"):
        read_imatrix(tmp_path / "half.gguf")


def test_what_cannot_be_watched_is_named():
    model = random_model(TINY["smollm2"].config)
    with pytest.raises(ExportError, match="no rows"):
        collect(model, [], "llama")
    with pytest.raises(ExportError, match="not-one"):
        collect(model, IDS, "not-one")
    adapted(model, ("q_proj",))
    with pytest.raises(ExportError, match=r"self_attn\.q_proj\.\w+ of a LoRALinear"):
        collect(model, IDS, "llama")


def test_a_broken_model_is_not_averaged():
    model = random_model(TINY["smollm2"].config)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ExportError, match=r"blk.1.ffn_down.weight: inputs are not finite"):
        collect(model, IDS, "llama")


def test_rows_are_drawn_over_the_whole_file_until_the_budget():
    lengths = [10] * 1000
    rows = choose(lengths, 995)
    assert len(rows) == 100 and rows == sorted(set(rows)) and rows == choose(lengths, 995)
    assert min(rows) < 50 and max(rows) > 950 and 350 < sum(rows) / 100 < 650
    assert choose([5, PACK], 10**6) == [0, 1] and choose([], 5) == []
