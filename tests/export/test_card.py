"""A model card holds what was measured, and its front matter is read by those who read front matter."""

import json

import gguf
import pytest
import yaml

from tunesmith.export.card import Card, card_text, license_of, write_card
from tunesmith.export.companions import copy_companions
from tunesmith.recipe import Lora
from tunesmith.rundir.records.export import Command, GgufFile, Merge

FULL = Card(
    name="support: a 1.0",
    relation="merge",
    base_model="org/Base-1B",
    revision="abc",
    license="mit",
    lora=Lora(r=16, alpha=32.0),
    dev_loss=0.12345,
    best_step=8,
    steps=10,
    files={"Q4_K_M": GgufFile(bytes=1234567, weights=2044800, bits_per_weight=4.83, types={"Q4_K": 2044800})},
    merge=Merge(into="trained", dtype="bfloat16", nbytes=4089600, targets=14, dequantized=0, summary="dev loss merged 0.5000"),
    system="Answer.\nShort.",
    template_sha256="f" * 64,
    stops=("<|im_end|>",),
    positions="`rope_theta` 418294",
    commands={"vllm": Command(engine="vLLM", of="merge", argvs=(("vllm", "serve", "it's here"),), note="a note")},
)
BARE = Card(name="s", relation="adapter", base_model="org/b")


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_says_what_the_directory_is(tmp_path):
    write_card(tmp_path, FULL)
    matter = front((tmp_path / "README.md").read_text())
    assert matter["base_model"] == "org/Base-1B" and matter["base_model_relation"] == "merge"
    assert (matter["library_name"], matter["pipeline_tag"], matter["license"]) == ("transformers", "text-generation", "mit")
    assert front(card_text(BARE))["library_name"] == "peft" and "license" not in front(card_text(BARE))


def test_the_converter_names_the_gguf_after_the_card(tmp_path):
    directory = tmp_path / "merged"
    write_card(directory, FULL)
    metadata = gguf.Metadata.load(None, directory)
    assert metadata.name == "support: a 1.0" and metadata.license == "mit"
    assert [base["repo_url"] for base in metadata.base_models] == ["https://huggingface.co/org/Base-1B"]


def test_what_was_measured_stands_there_and_nothing_else():
    full, bare = card_text(FULL), card_text(BARE)
    for shown in ("0.1235", "at step 8 of 10", "rank 16, alpha 32", "Dev loss merged 0.5000", "1,234,567", "4.83"):
        assert shown in full
    assert "vLLM (a note)" in full and "vllm serve 'it'\"'\"'s here'" in full
    assert "The base had `rope_theta` 418294 in its" in full and "The base had" not in bare
    assert "> Short." in full and "`<|im_end|>`" in full
    body = bare.split("---\n", 2)[2]
    assert not any(character.isdigit() for character in body) and "##" not in body
    assert card_text(FULL) == full


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
    ],
)
def test_a_licence_is_taken_from_the_base_or_not_at_all(tmp_path, text, found):
    assert license_of(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert license_of(tmp_path) == found


def test_companions_hold_stops_and_template_and_no_other_weights(tiny_dir, tmp_path):
    base, merged = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    merged.mkdir()
    for file in tiny_dir.iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (base / name).write_text('{"weight_map": {}}')
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')
    copy_companions(base, merged, keep_towers=False, template="{{ messages }}", stops=(5, 2))
    names = {file.name for file in merged.iterdir()}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".index.json"))}
    assert json.loads((merged / "generation_config.json").read_text()) == {"eos_token_id": [2, 5], "temperature": 0.6}
    assert (merged / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "chat_template" not in json.loads((merged / "tokenizer_config.json").read_text())
