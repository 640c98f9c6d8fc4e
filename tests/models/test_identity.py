"""An adapter knows its base: the hash beside it, and what happens on another base."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith import hardware
from tunesmith.errors import ModelError
from tunesmith.export.merge import merge
from tunesmith.models import identity
from tunesmith.models.adapter import CONFIG, save_adapter
from tunesmith.models.identity import (
    FACTS,
    accept_base,
    base_identity,
    commit_of,
    read_identity,
    refuse_other_base,
    write_identity,
)
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.rundir import sha256_file

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def other(tiny_dir, tmp_path):
    """The same model with one weight changed."""
    shutil.copytree(tiny_dir, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][0] += 1.0
    save_file(state, file, metadata={"format": "pt"})
    return tmp_path / "other"


@pytest.fixture
def adapter(tiny_model, tiny_dir, tmp_path):
    lora = Lora(r=4)
    layers = add_lora(tiny_model, lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", layers, lora, "org/name", COMMIT)
    write_identity(tmp_path / "adapter", base_identity(tiny_dir))
    return tmp_path / "adapter"


def test_another_base_is_refused_until_it_is_accepted_and_a_copy_is_the_same_base(adapter, tiny_dir, other, tmp_path, talk):
    shutil.copytree(tiny_dir, tmp_path / "copy")
    refuse_other_base(adapter, tmp_path / "copy")
    assert talk() == ""
    ours, theirs = base_identity(tiny_dir)["sha256"], base_identity(other)["sha256"]
    with pytest.raises(ModelError, match=f"sha256 {ours}.* have {theirs}"):
        merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    accept_base(adapter, base_identity(other))
    merge(other, adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert json.loads((adapter / FACTS).read_text())["trained_on"]["sha256"] == ours
    with pytest.raises(ModelError, match=f"sha256 {theirs}.* have {ours}"):
        refuse_other_base(adapter, tiny_dir)


def test_an_adapter_without_our_facts_passes_with_a_line_and_damaged_facts_do_not(adapter, tiny_dir, other, talk):
    (adapter / FACTS).write_text('{"base": {}}')
    with pytest.raises(ModelError, match=r"says no base\.sha256"):
        read_identity(adapter)
    (adapter / FACTS).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        refuse_other_base(adapter, tiny_dir)
    (adapter / FACTS).unlink()
    refuse_other_base(adapter, other)
    assert "says nothing of the weights" in talk()


def test_the_template_is_the_bases_own_or_the_one_that_is_given(tiny_dir, tokenizer, tmp_path):
    own = hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert base_identity(tiny_dir)["template_sha256"] == own
    assert base_identity(tiny_dir, "{{ x }}")["template_sha256"] == hashlib.sha256(b"{{ x }}").hexdigest()
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file({"a": torch.ones(1)}, bare / "model.safetensors")
    assert base_identity(bare) == {**base_identity(bare), "template_sha256": None, "revision": None}
    (bare / "tokenizer_config.json").write_text(json.dumps({"chat_template": tokenizer.chat_template}))
    assert base_identity(bare)["template_sha256"] == own


def test_the_commit_is_that_of_the_hubs_directory_and_peft_reads_it(adapter, tmp_path):
    import peft

    assert commit_of(tmp_path / "models--org--name" / "snapshots" / COMMIT) == COMMIT
    assert commit_of(tmp_path / COMMIT) is None and commit_of(tmp_path / "snapshots" / "main") is None
    read = peft.PeftConfig.from_pretrained(str(adapter))
    assert (read.base_model_name_or_path, read.revision) == ("org/name", COMMIT)
    assert "tunesmith" not in json.loads((adapter / CONFIG).read_text())


def test_large_weights_are_hashed_once(tiny_dir, other, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "cache_dir", lambda: tmp_path / "cache")
    small = base_identity(tiny_dir)["sha256"]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(identity, "SMALL", 0)
    hashed = []
    monkeypatch.setattr(identity, "sha256_file", lambda file: hashed.append(file) or sha256_file(file))
    assert [base_identity(tiny_dir)["sha256"] for _ in range(2)] == [small, small] and len(hashed) == 1
    assert base_identity(other)["sha256"] != small and len(hashed) == 2
