"""The matrix: every family times every feature, on tiny random models, against stock transformers, PEFT and bitsandbytes.

A cell is one test, ``test_cell[family-feature]``; ``make families`` runs them and writes docs/reference/families.md from
the results and the records. Each goes the way of a run: a checkpoint on disk, ``load_model``, ``add_lora``, ``fuse``, the
loss over packs, ``save_adapter``, ``merge``. The oracle is the stock model with PEFT, which reads the adapter that we saved
and sees one document at a time.

Cells that a record says are unsupported are held too: the run must refuse with our error.

The GGUF cells compare what llama.cpp itself computes of the exported file with stock transformers and PEFT; see ``ROUNDING``.
"""

import functools
import json
from dataclasses import replace
from functools import cached_property

import bitsandbytes
import numpy as np
import peft
import pytest
import torch
from families_table import FEATURES, PAGE, page, support
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma4UnifiedConfig

from llama_cpp_sources import convert_here
from tiny_families import TINY, VOCABULARY, adapted, documents, random_model
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import quantize
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ExportError, TunesmithError
from tunesmith.export.merge import merge
from tunesmith.families import FAMILIES
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.models.adapter import adapter_state, load_adapter_state, read_adapter, save_adapter
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, decoder, head_weight, load_model
from tunesmith.models.recompute import recompute
from tunesmith.parity.checks import BOUNDS, adapter_check, distribution_check
from tunesmith.parity.figures import base_distance, distances, figures
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients, step_packs

PAIRS = documents()
DOCUMENTS = make_documents(PAIRS)
APART = [make_pack(DOCUMENTS, (i,)) for i in range(len(PAIRS))]
WHOLE = [make_pack(DOCUMENTS, (0, 1, 2, 3))]
SHARED = step_packs(DOCUMENTS, [(0, 1), (2, 3)], 200)
LORA = Lora(r=4, alpha=8, dropout=0.0)

# KL in nats between llama.cpp and transformers that 16 bits explain. A logit, of spread 0.9, passes through about eleven
# products whose inputs have 11 bits, and KL is half the square of its error: (2^-11 * 0.9)^2 * 11 / 2 = 1e-6. Measured: 0.4e-6
# to 1.5e-6 in F16, half of it in F32, where keys and values alone are rounded. A family whose fp32 gradients are noisier than
# others' is so here too, by the same factor, and KL grows with its square: 42 in Gemma 4, where 0.3e-5 to 2.2e-5 was measured.
# Ten times that is allowed. The smallest real difference that was seen, a scale of scores off by the root of two, makes 5e-3.
ROUNDING = 1e-6
QUIET = 2e-6  # noise of fp32 gradients in most families

# What llama.cpp (build b10605) has in its code and not in the file: settings of the tiny model that agree with it. Those of the
# published models of the first three types do; the others' windows are not computed. As it is the tiny model must be told
# apart, by the bound that a run has: once it no longer is, llama.cpp has learned it and the record is wrong.
FIXED = {
    "smollm3": {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "no_rope_layers": None, "layer_types": None},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3": {"query_pre_attn_scalar": 8, "num_hidden_layers": 6, "layer_types": None},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "layer_types": None},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 256, "max_position_embeddings": 512},
}


def gradients(model, layers, packs):
    """Loss of a step, and its gradients laid out and named as the adapter is on disk."""
    for layer in layers.values():
        layer.zero_grad()
    with attention(model, PACKED):
        loss, _ = step_gradients(model, packs)
    trained = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    values = [p.data for p in trained]
    for p in trained:
        assert p.grad is not None
        p.data = p.grad
    found = {name: grad.clone() for name, grad in adapter_state(layers).items()}
    for p, value in zip(trained, values, strict=True):
        p.data = value
    return loss, found


def logits(model, pack):
    """fp32 logits of every position of a pack, shape (T, V)."""
    every_T = torch.arange(pack.ids_1T.shape[1])
    with torch.no_grad(), attention(model, PACKED):
        hidden_TD = decoder(model)(
            input_ids=pack.ids_1T, position_ids=pack.position_1T, spans=pack.spans, rows_N=every_T, use_cache=False
        ).last_hidden_state[0]
        logits_TV = hidden_TD @ head_weight(model).T
        cap = model.config.to_dict().get("final_logit_softcapping")
        return logits_TV if cap is None else cap * torch.tanh(logits_TV / cap)


def stock_logits(model):
    """The same, a document at a time, by the stock model's own forward."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids, _ in PAIRS])


def stock_gradients(model):
    """Loss and gradients of stock transformers and PEFT, a document at a time."""
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for ids, supervised in PAIRS:
        ids = torch.tensor(ids)
        labels = torch.where(torch.tensor(supervised) == 1, ids, -100)
        scores = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(scores, labels[1:], ignore_index=-100, reduction="sum")
        count += sum(supervised)
    (total / count).backward()
    named = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    return total.item() / count, {name.replace(".default", ""): grad for name, grad in named}


def assert_same(found, expected, tolerance):
    """Loss, and each gradient to its own largest element."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        largest = float(grad.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(
            found[1][name], grad, rtol=0, atol=tolerance * largest, msg=lambda text, n=name: f"{n}: {text}"
        )


class Case:
    """One tiny model, and what several cells want of it, made once."""

    def __init__(self, name, folder, **settings):
        self.name, self.tiny = name, TINY[name]
        if settings:
            config = self.tiny.config
            self.tiny = replace(self.tiny, config=type(config)(**config.to_dict() | settings))
        self.directory, self.adapter = folder / name / "base", folder / name / "adapter"
        random_model(self.tiny.config).save_pretrained(self.directory)

    @cached_property
    def run(self):
        """Model, adapters and summary as training has them; the adapter is saved."""
        model = load_model(self.directory, "fp32")
        layers = adapted(model)
        fused = fuse(model)
        self.adapter.mkdir()
        save_adapter(self.adapter, layers, LORA, str(self.directory))
        return model, layers, fused

    @cached_property
    def oracle(self):
        """Stock transformers with the saved adapter read by PEFT."""
        assert self.run
        return peft.PeftModel.from_pretrained(random_model(self.tiny.config), str(self.adapter), is_trainable=True).eval()

    @cached_property
    def expected(self):
        return stock_gradients(self.oracle)

    @cached_property
    def expected_logits(self):
        return stock_logits(self.oracle)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: Case(name, folder))


def check_logits(case, tmp_path):
    tolerance = 4 * case.tiny.noise * float(case.expected_logits.abs().max())
    torch.testing.assert_close(logits(case.run[0], WHOLE[0]), case.expected_logits, rtol=0, atol=tolerance)


def check_gradients(case, tmp_path):
    assert_same(gradients(*case.run[:2], APART), case.expected, 4 * case.tiny.noise)


def check_packed(case, tmp_path):
    assert_same(gradients(*case.run[:2], WHOLE), case.expected, 4 * case.tiny.noise)


def check_prefixes(case, tmp_path):
    assert sum(p.ids_1T.shape[1] for p in SHARED) == sum(p.ids_1T.shape[1] for p in WHOLE) - 2 * 22
    assert_same(gradients(*case.run[:2], SHARED), case.expected, 4 * case.tiny.noise)


def check_fused(case, tmp_path):
    fused = case.run[2]
    assert (set(fused.replaced), set(fused.stock_reasons)) == (set(case.tiny.ours), set(case.tiny.stock)), fused.summary()


def check_recompute(case, tmp_path):
    model, layers, _ = case.run
    expected = gradients(model, layers, SHARED)
    for policy in ("attention", "mlp", "layer", 2):
        with recompute(model, policy):
            assert_same(gradients(model, layers, SHARED), expected, 1e-6)


def check_nf4(case, tmp_path):
    """bitsandbytes quantises and dequantises the same layers of the stock model."""
    model = load_model(case.directory, "fp32", "nf4")
    stock = random_model(case.tiny.config)
    held = {name.removesuffix(".quantized") for name, module in model.named_modules() if isinstance(module, NF4Weight)}
    assert held and (not case.tiny.mixture or any("experts.down_proj" in name for name in held))
    for name, weight in stock.named_parameters():
        if name not in held:
            continue
        rows = weight.data.view(-1, 64)  # its AVX-512 path takes wrong statistics for rows that 64 does not divide
        codes, state = bitsandbytes.functional.quantize_4bit(rows, quant_type="nf4", compress_statistics=True)
        weight.data = bitsandbytes.functional.dequantize_4bit(codes, state).view(weight.shape)
    layers = adapted(model)
    fuse(model)
    assert case.run  # saves the adapter, whose numbers are the same
    oracle = peft.PeftModel.from_pretrained(stock, str(case.adapter), is_trainable=True).eval()
    assert_same(gradients(model, layers, SHARED), stock_gradients(oracle), 4 * case.tiny.noise)


def check_fp16(case, tmp_path):
    model = load_model(case.directory, "fp16")
    layers = adapted(model)
    fuse(model)
    loss, found = gradients(model, layers, SHARED)
    assert loss == pytest.approx(case.expected[0], rel=2e-3)
    one, other = (torch.cat([part[key].flatten() for key in found]).float() for part in (found, case.expected[1]))
    assert F.cosine_similarity(one, other, dim=0) >= 0.999


def check_peft(case, tmp_path):
    """PEFT reads ours (that is the oracle), and we read what it saves again, to the bit."""
    _, layers, _ = case.run
    case.oracle.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in adapter_state(layers).items()}
    again = adapted(load_model(case.directory, "fp32"))
    for layer in again.values():
        layer.lora_B.data.zero_()
    load_adapter_state(again, read_adapter(tmp_path))
    after = adapter_state(again)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


def check_merge(case, tmp_path):
    assert case.run
    merge(case.directory, case.adapter, tmp_path / "merged")
    merged, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, use_safetensors=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(stock_logits(merged.eval()), case.expected_logits, rtol=1e-4, atol=1e-4)


def check_gguf(case, tmp_path):
    """The converter takes every weight, each gets its type of Q4_K_M, and llama.cpp computes stock transformers with PEFT.

    In a mixture, rounding decides between two experts that the router holds for nearly equal, and from there on the model is
    another: F16 is held to the choices at 19 of 20 positions, a file in F32 to the bound.
    """
    target = exported(case, tmp_path)
    tensors = {t.name: t for t in GgufReader(target).tensors}
    made = {name for name in tensors if name.startswith("rope_")}  # tables, not weights
    assert sum(int(t.n_elements) for name, t in tensors.items() if name not in made) == sum(
        tensor.numel() for tensor in unique(random_model(case.tiny.config)).values()
    )
    assert quantize(target, tmp_path / "q.gguf", "Q4_K_M").weights == sum(int(t.n_elements) for t in tensors.values())
    if case.name in FIXED:
        assert distribution_check(beside(case, target)[0], BOUNDS["fp16"]).state == "fail", "llama.cpp has learned it"
        case = Case(case.name, tmp_path, **FIXED[case.name])
        target = exported(case, tmp_path / "fixed")
    if case.tiny.mixture:
        assert beside(case, target)[0].agreement_or_tie >= 0.95
        target = exported(case, tmp_path / "wide", "ALL_F32")
    assert_tuned(*beside(case, target), case.tiny.noise)


def exported(case, folder, kind="MOSTLY_F16"):
    """A GGUF file of the merged model."""
    assert case.run
    merge(case.directory, case.adapter, folder / "merged")
    return convert(folder / "merged", kind)


def beside(case, path):
    """A file in llama.cpp beside stock transformers with PEFT, and without."""
    return compared(case.expected_logits, stock_logits(random_model(case.tiny.config)), path)


def compared(tuned_TV, base_TV, path):
    """``figures`` of a file in llama.cpp, and the mean KL of tuned and base."""
    with LlamaModel(path, context=max(len(ids) for ids, _ in PAIRS)) as model:
        found_TV = np.concatenate([model.logits(ids) for ids, _ in PAIRS])
    tuned_TV, base_TV = tuned_TV.numpy(), base_TV.numpy()
    return figures([distances(tuned_TV, base_TV, found_TV)]), float(base_distance(tuned_TV, base_TV).mean())


def assert_tuned(measured, adapter_kl, noise):
    """As close as 16 bits allow, and nearer to the tuned model than to its base."""
    bound = 10 * ROUNDING * (noise / QUIET) ** 2
    for check in (distribution_check(measured, bound), adapter_check(measured, adapter_kl, bound)):
        assert check.state == "pass", check.summary


def unique(model):
    """Parameters, and buffers that are saved, tied ones once."""
    return {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}


def convert(directory, kind="MOSTLY_F16"):
    """llama.cpp's converter in this process, with a vocabulary of so many tokens without text."""

    def without_text(self):
        self.gguf_writer.add_tokenizer_model("none")
        self.gguf_writer.add_vocab_size(VOCABULARY)

    try:
        return convert_here(directory, kind, without_text)
    except NotImplementedError as error:
        raise ExportError(str(error), "llama.cpp does not know it") from error


CHECKS = {name.removeprefix("check_"): check for name, check in globals().copy().items() if name.startswith("check_")}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", TINY)
def test_cell(name, feature, case, tmp_path):
    if support(name, feature).level == "unsupported":
        with pytest.raises(TunesmithError):
            CHECKS[feature](case(name), tmp_path)
    else:
        CHECKS[feature](case(name), tmp_path)


def test_what_converts_with_its_towers_alone_does_convert_with_them(tmp_path):
    """The way out that the record of ``gemma4_unified_text`` names.

    The converter asks for a key of mixtures that stock transformers does not write for this type; it is put in here.
    """
    eye = {"patch_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32}
    text = TINY["gemma4-12b"].config
    torch.manual_seed(0)
    facts = {**text.to_dict(), "architectures": None}  # as published: the outer configuration names the class
    config = Gemma4UnifiedConfig(text_config=facts, vision_config=eye, audio_config={"audio_embed_dim": 32})
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "base")
    written = json.loads((tmp_path / "base" / "config.json").read_text())
    written["text_config"]["moe_intermediate_size"] = None
    (tmp_path / "base" / "config.json").write_text(json.dumps(written))
    model = load_model(tmp_path / "base", "fp32")
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", adapted(model), LORA, "base")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", towers="keep")
    converted = convert(tmp_path / "merged")
    weights = sum(int(t.n_elements) for t in GgufReader(converted).tensors if not t.name.startswith("rope_"))
    assert weights == sum(tensor.numel() for tensor in unique(random_model(text)).values())
    tuned, base = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / part, dtype=torch.float32).eval() for part in ("merged", "base")
    )
    assert_tuned(*compared(stock_logits(tuned), stock_logits(base), converted), TINY["gemma4-12b"].noise)


def test_every_known_family_has_a_tiny_model():
    assert {tiny.config.model_type for tiny in TINY.values()} - {TINY["unknown"].config.model_type} == FAMILIES.keys()
    assert CHECKS.keys() == FEATURES.keys()


def test_the_page_is_the_one_that_the_records_make():
    """Every cell passes (else this file is red), so the committed table is the one of a whole pass."""
    cells = {(name, feature): "passed" for name in TINY for feature in FEATURES}
    assert PAGE.read_text(encoding="utf-8") == page(cells), "run: make families"
