"""Going on from an adapter that somebody else trained: PEFT is the oracle of where it starts, and reads where it ends."""

import json
import logging
import re
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import tunesmith as ts
from shared import write_recipe
from tunesmith.engines.base import open_base
from tunesmith.errors import ModelError, RecipeError
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.training import Training
from tunesmith.train.documents import Documents

LORA = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}


def _peft(base, directory, **settings):
    """An adapter of PEFT's that changes what the model computes."""
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**{**LORA, **settings}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(directory)
    return directory


def _run(folder, base, adapter, changes=None):
    recipe = write_recipe(folder, base, {"lora": {}, "train.from_adapter": str(adapter), **(changes or {})})
    return api.open_run(recipe, folder / "run")


def _loss(model, documents):
    """Nats a supervised token, each document alone."""
    total, count = 0.0, 0
    for number in range(len(documents)):
        ids = torch.tensor([documents.ids(number).tolist()])
        with torch.no_grad():
            nats_T = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        for first, end in documents.spans(number):
            first = max(int(first), 1)
            total, count = total + float(nats_T[first - 1 : int(end) - 1].sum()), count + int(end) - first
    return total / count


KINDS = [{}, {"use_rslora": True}, {"use_dora": True}, {"layers_to_transform": [1]}, {"rank_pattern": {"q_proj": 5}}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_starts_where_pefts_model_stands_and_peft_reads_where_it_ends(kind, tiny_dir, tmp_path):
    adapter = _peft(tiny_dir, tmp_path / "theirs", **kind)
    run = _run(tmp_path, tiny_dir, adapter)
    api.make(run, ["train"], all_needed=True)
    training = Training.read(run.training_file)
    dev = Documents.open(run.tokens("dev"))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), adapter).eval()
    assert training.first_dev_loss == pytest.approx(_loss(theirs, dev), rel=1e-4)
    assert training.first_dev_loss != pytest.approx(_loss(AutoModelForCausalLM.from_pretrained(tiny_dir), dev), rel=1e-3)
    assert training.best_step > 0 and training.from_adapter == str(adapter)
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), run.adapter).eval()
    config = ours.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 7, 0.05)
    assert (config.use_rslora, config.use_dora) == (bool(kind.get("use_rslora")), bool(kind.get("use_dora")))
    assert _loss(ours, dev) == pytest.approx(training.best_dev_loss, rel=1e-4)
    assert training.target_layers == (2 if "layers_to_transform" in kind else 4)


def test_ranks_do_not_matter_and_another_adapter_is_another_training(tiny_dir, tmp_path):
    adapter = _peft(tiny_dir, tmp_path / "theirs")
    run = _run(tmp_path, tiny_dir, adapter, {"train.ranks": 1, "train.tokens_per_step": 512})
    api.make(run, ["train"], all_needed=True)
    first = sha256_file(run.adapter / "adapter_model.safetensors")
    (tmp_path / "two").mkdir()
    moved = shutil.move(adapter, tmp_path / "elsewhere")
    two = _run(tmp_path / "two", tiny_dir, moved, {"train.ranks": 2, "train.tokens_per_step": 512})
    api.make(two, ["train"], all_needed=True)
    assert sha256_file(two.adapter / "adapter_model.safetensors") == first
    assert api.status(run)["train"].state == "done"  # what it began from is gone, and the run stands
    _peft(tiny_dir, adapter, init_lora_weights=False)
    assert api.status(run)["train"].why == ("train.from_adapter (content) is another one",)
    api.train(run)
    assert sha256_file(run.adapter / "adapter_model.safetensors") != first


def test_a_trainers_checkpoint_says_what_is_left_behind(tiny_dir, tmp_path, caplog):
    adapter = _peft(tiny_dir, tmp_path / "checkpoint-120")
    (adapter / "trainer_state.json").write_text(json.dumps({"global_step": 120, "max_steps": 300, "epoch": 0.8}))
    (adapter / "optimizer.pt").write_bytes(b"no pickle is read")
    run = _run(tmp_path, tiny_dir, adapter, {"lora": {"alpha": 7, "dropout": 0.0}})
    lora = run.recipe().lora
    assert (lora.r, lora.alpha, lora.dropout, sorted(lora.target_modules)) == (3, 7, 0.0, ["q_proj", "v_proj"])
    with caplog.at_level(logging.INFO):
        api.make(run, ["train"], all_needed=True)
    for words in (
        "LoRA of rank 3, alpha 7, as its own file says",
        "a trainer's checkpoint of step 120 of 300",
        r"(optimizer.pt is not read)",
        "lora.dropout 0 is the recipe's; the adapter was trained with 0.1",
    ):
        assert words in caplog.text


def _pickled(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _config(**keys):
    def change(adapter):
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return change


def _pointer(adapter):
    (adapter / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("change", "lora", "error", "words", "hint"),
    [
        (shutil.rmtree, {}, RecipeError, r"train\.from_adapter: .*theirs: no such directory", "as PEFT"),
        (None, {"r": 16}, RecipeError, r"lora\.r: 16, but the adapter of train\.from_adapter has 3", r"leave lora\.r out"),
        (None, {"use_dora": True}, RecipeError, r"lora\.use_dora: True, but .* has False", "leave"),
        (
            None,
            {"target_modules": ["q_proj"]},
            RecipeError,
            r"lora\.target_modules: .* also has model.layers.0.*v_proj",
            "leave",
        ),
        (_pickled, {}, ModelError, "a pickle", "safetensors.torch"),
        (_pointer, {}, ModelError, "a Git LFS pointer", "lfs pull"),
        (_config(rank_pattern={"q_proj": 4}), {}, ModelError, "shape .*expected", "another rank"),
        (_config(modules_to_save=["norm"]), {}, ModelError, "modules_to_save: 'norm' is no table", "PEFT"),
        (_config(modules_to_save=["lm_head"]), {}, ModelError, "lm_head.*not in the adapter's file|tensors are not in", "save"),
        (None, {"modules_to_save": ["lm_head"]}, RecipeError, r"save: \['lm_head'\], but .* has \[\]", "leave"),
        (_config(bias="all"), {}, ModelError, "asks for bias", "PEFT"),
        (_config(peft_type="LOHA"), {}, ModelError, "peft_type is 'LOHA'", "not read"),
    ],
)
def test_what_cannot_be_gone_on_from(tiny_dir, tmp_path, change, lora, error, words, hint):
    adapter = _peft(tiny_dir, tmp_path / "theirs")
    if change is not None:
        change(adapter)
    run = _run(tmp_path, tiny_dir, adapter, {"lora": lora})
    with pytest.raises(error, match=words) as caught:
        api.make(run, ["train"], all_needed=True)
    assert caught.value.hint and re.search(hint, caught.value.hint)


def test_a_folder_of_checkpoints_names_the_newest(tiny_dir, tmp_path):
    for step in (90, 120):
        _peft(tiny_dir, tmp_path / "output" / f"checkpoint-{step}")
    run = _run(tmp_path, tiny_dir, tmp_path / "output")
    with pytest.raises(RecipeError) as caught:
        api.make(run, ["train"], all_needed=True)
    assert caught.value.hint.endswith("output/checkpoint-120")


def test_your_own_loop_goes_on_from_a_loaded_adapter(tiny_dir, tmp_path):
    """The key has a way of its own there, and names it."""
    model = open_base(tiny_dir, base="fp32").load(_peft(tiny_dir, tmp_path / "theirs"))
    rows = ts.render([{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "red"}]}] * 2, model)
    with pytest.raises(RecipeError, match="from_adapter has no meaning here"):
        ts.train_steps(model, rows, from_adapter=tmp_path / "theirs")
