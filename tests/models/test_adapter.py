import json
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ExportError, ModelError
from tunesmith.export.gguf.lora import write_lora_gguf
from tunesmith.export.merge import merge, read_updates
from tunesmith.models.adapter import (
    CONFIG,
    WEIGHTS,
    adapter_state,
    load_adapted,
    load_adapter_state,
    read_adapter,
    read_adapter_config,
    read_lora,
    save_adapter,
)
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import pack_loss


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
    assert read_lora(tmp_path).scale == 12 / (2 if lora.use_rslora else 4)
    oracle = peft.PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), str(tmp_path)).eval()
    ids = torch.randint(5, 8000, (2, 11))
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
    fewer, all_layers = Lora(r=4, target_modules=("q_proj",), use_dora=use_dora), len(adapter_state(layers))
    with pytest.raises(ModelError, match=rf"of {all_layers} tensors of the adapter belong to no layer .*down_proj"):
        load_adapter_state(add_lora(load_model(tiny_dir, "fp32"), fewer, seed=1), read_adapter(tmp_path))
    some = {key: tensor for key, tensor in read_adapter(tmp_path).items() if "up_proj" not in key}
    with pytest.raises(ModelError, match=rf"{all_layers - len(some)} of {all_layers} tensors are not in the .*up_proj"):
        load_adapter_state(other, some)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        read_adapter(tmp_path)


@pytest.fixture
def written(tiny_model, tmp_path):
    layers = add_lora(tiny_model, Lora(r=4), seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
    save_adapter(tmp_path, layers, Lora(r=4), "base")
    return tmp_path


@pytest.mark.parametrize("name", ["adapter_model.bin", "lora.pt", "x.ckpt", "x.pkl"])
def test_a_pickle_is_refused_and_the_command_in_the_hint_converts_it(written, name):
    expected = load_file(written / WEIGHTS)
    torch.save(expected, written / name)
    (written / WEIGHTS).unlink()
    for place in (written, written / name):
        with pytest.raises(ModelError, match=f"{name}: a pickle") as caught:
            read_adapter(place)
    _, change, convert = (line.strip() for line in caught.value.hint.splitlines())
    assert change == f"cd {written}"
    if name == "adapter_model.bin":
        subprocess.run([sys.executable, *shlex.split(convert)[1:]], cwd=written, check=True)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in read_adapter(written).items())


def test_factors_that_are_no_numbers_or_zero_or_apart_are_refused_by_name(written):
    state = load_file(written / WEIGHTS)
    first, second = (key for key in state if "layers.0.self_attn.q_proj" in key)
    for value, error, words in [
        (float("nan"), ModelError, rf"NaN or infinity in 1 of {len(state)} tensors: {second}"),
        (float("inf"), ModelError, "NaN or infinity"),
        (0.0, ExportError, r"layers.0.self_attn.q_proj.weight: merging changes nothing: lora_A or lora_B is zero in 1 of 14"),
    ]:
        save_file({**state, second: torch.full_like(state[second], value)}, written / WEIGHTS)
        with pytest.raises(error, match=words):
            read_updates(written)
    for changed, words in [
        ({key: tensor for key, tensor in state.items() if key != first}, "q_proj lacks lora_A.weight"),
        ({**state, first: state[first][:2].clone()}, r"q_proj has A \(2, 64\) and B \(64, 4\)"),
        ({**state, first: torch.ones(4, 64, dtype=torch.int8)}, "int8, expected floating point"),
        ({**state, "base_model.model.lm_head.weight": torch.ones(2, 2)}, "lm_head.weight lacks lora_A"),
    ]:
        save_file(changed, written / WEIGHTS)
        with pytest.raises(ModelError, match=words):
            read_updates(written)


def test_a_forged_adapter_file_is_an_error(written):
    raw = (written / WEIGHTS).read_bytes()
    (written / WEIGHTS).write_bytes(raw[:-1])
    with pytest.raises(ModelError, match="not a whole safetensors file: the tensors end at byte"):
        read_adapter(written)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"layer_replication": [[0, 1]], "bias": "all"}, "asks for layer_replication, bias, which"),
        ({"modules_to_save": ["score"]}, "'score' is no table"),
        ({"modules_to_save": "lm_head"}, "expected a list of names"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern gives q_proj 0"),
        ({"rank_pattern": {"q_proj": 2.0}}, r"rank_pattern gives q_proj 2\.0"),
        ({"alpha_pattern": {"q(": 8}}, "no regular expression"),
        (
            {"alpha_pattern": {"(?i)q_proj": 8}},
            "no regular expression",
        ),  # PEFT puts more before it
        ({"rank_pattern": {"q_proj": 8}, "target_parameters": ["x"]}, "beside target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
    ],
)
def test_what_we_would_not_apply_is_refused(written, changes, words):
    config = json.loads((written / CONFIG).read_text())
    assert read_adapter_config(written) == config
    (written / CONFIG).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=words):
        read_updates(written)


def test_the_configuration_that_peft_writes_is_read(tiny_dir, tmp_path):
    import peft

    model = peft.get_peft_model(load_model(tiny_dir, "fp32"), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(tmp_path / "peft")
    merge(tiny_dir, tmp_path / "peft", tmp_path / "merged")
    ids = torch.randint(5, 8000, (2, 11))
    with torch.no_grad():
        merged = load_model(tmp_path / "merged", "fp32")(ids).logits
        torch.testing.assert_close(merged, model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


TARGETS = [
    {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"target_modules": r".*\.(up|down)_proj"},
    {"target_modules": ["self_attn.o_proj", "up_proj"], "layers_to_transform": [1], "use_dora": True},
    {"target_modules": "all-linear", "exclude_modules": ["mlp.gate_proj"]},
]


@pytest.mark.parametrize("settings", TARGETS, ids=str)
def test_an_adapter_of_others_is_what_its_own_configuration_says(tiny_dir, tmp_path, settings):
    """Oracle: PEFT, which wrote it. No recipe is asked."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM", **settings)
    oracle = peft.get_peft_model(load_model(tiny_dir, "fp32"), config).eval()
    for name, parameter in oracle.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    oracle.save_pretrained(tmp_path)
    model = load_model(tiny_dir, "fp32")
    layers = load_adapted(model, tmp_path)
    assert len(layers) == sum("lora_A" in name for name, _ in oracle.named_parameters())
    lora = read_lora(tmp_path)
    assert (lora.r, lora.alpha, lora.use_dora) == (4, 16, settings.get("use_dora", False))
    ids = torch.randint(5, 8000, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, oracle(ids).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_for_layers_that_the_base_does_not_have_is_refused_by_their_names(written, tiny_dir):
    path = written / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_modules": ["Wqkv"]}))
    with pytest.raises(ModelError, match=r"no layer of llama is one of its target_modules, \['Wqkv'\]"):
        load_adapted(load_model(tiny_dir, "fp32"), written)
    path.write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match="belong to no layer that is adapted here") as caught:
        load_adapted(load_model(tiny_dir, "fp32"), written)
    assert "base" not in caught.value.hint  # the base is right


PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*_proj": 6},  # PEFT writes them sorted, and takes the first that matches
    "alpha_pattern": {"model.layers.0.mlp.up_proj": 3, "v_proj": 40},
}


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_layers_with_a_rank_or_an_alpha_of_their_own_are_what_peft_makes_them(tiny_dir, tmp_path, kind):
    import peft

    oracle = peft.get_peft_model(
        load_model(tiny_dir, "fp32"), peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **PATTERNS, **kind)
    ).eval()
    for name, parameter in oracle.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    oracle.save_pretrained(tmp_path / "theirs")
    model, ids = load_model(tiny_dir, "fp32"), torch.randint(5, 8000, (2, 11))
    layers = load_adapted(model, tmp_path / "theirs")
    assert {len(layer.lora_A) for layer in layers.values()} == {2, 4, 6} and len({x.scale for x in layers.values()}) > 3
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", layers, read_lora(tmp_path / "theirs"), str(tiny_dir))
    again = peft.PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), tmp_path / "ours").eval()
    merge(tiny_dir, tmp_path / "theirs", tmp_path / "merged")
    with torch.no_grad():
        expected = oracle(ids).logits
        for found in (model(ids).logits, again(ids).logits):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(load_model(tmp_path / "merged", "fp32")(ids).logits, expected, rtol=1e-4, atol=1e-4)
    fuse(model)
    with torch.no_grad(), attention(model, PACKED):
        pack = make_pack(make_documents([(ids[0].tolist(), [1] * 11)]), (0,))
        nats = torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:])
        assert float(pack_loss(model, pack)[0]) / 10 == pytest.approx(float(nats), rel=1e-5)
    if not kind:
        with pytest.raises(ExportError, match=r"llama\.cpp has one alpha for all"):
            write_lora_gguf(tmp_path / "theirs", tiny_dir, tmp_path / "lora.gguf")
