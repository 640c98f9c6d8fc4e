"""A model card holds what was measured, and its front matter is read by those who read front matter."""

import json

import gguf
import pytest
import yaml

from tunesmith.export.card import card, license_of, write_card
from tunesmith.export.companions import copy_companions
from tunesmith.export.launch import commands

VERDICT = {
    "verdict": "deploy",
    "reason": "deployed gains +9.0 points",
    "n": 40,
    "metric": "f1",
    "arms": [{"arm": "deployed", "score": 0.91, "low": 0.85, "high": 0.95}],
}
FACTS = {
    "name": "support: a 1.0",
    "relation": "merge",
    "base_model": "org/Base-1B",
    "revision": "abc",
    "license": "mit",
    "lora": {"r": 16, "alpha": 32.0},
    "training": {"steps": 10, "best_step": 8, "best_dev_loss": 0.12345},
    "verdict": VERDICT,
    "files": {"Q4_K_M": {"bytes": 1234567, "bits_per_weight": 4.83}},
    "merge": {"targets": 14, "into": "trained", "dtype": "bfloat16", "told": "dev loss merged 0.5000"},
    "system": "Answer.\nShort.",
    "template_sha256": "f" * 64,
    "stops": ["<|im_end|>"],
    "commands": commands({"name": "s", "num_ctx": 4096, "merged": "it's here"}),
}
BARE = {"name": "s", "relation": "adapter", "base_model": "org/b"}


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_says_what_the_directory_is(tmp_path):
    write_card(tmp_path, FACTS)
    found = front((tmp_path / "README.md").read_text())
    assert found["base_model"] == "org/Base-1B" and found["base_model_relation"] == "merge"
    assert (found["library_name"], found["pipeline_tag"], found["license"]) == ("transformers", "text-generation", "mit")
    assert front(card(BARE))["library_name"] == "peft" and "license" not in front(card(BARE))


def test_the_converter_names_the_gguf_after_the_card(tmp_path):
    directory = tmp_path / "merged"
    write_card(directory, FACTS)
    metadata = gguf.Metadata.load(None, directory)
    assert metadata.name == "support: a 1.0" and metadata.license == "mit"
    assert [base["repo_url"] for base in metadata.base_models] == ["https://huggingface.co/org/Base-1B"]


def test_what_was_measured_stands_there_and_nothing_else():
    full, bare = card(FACTS), card(BARE)
    for shown in ("0.1235", "rank 16, alpha 32", "**deploy**", "| deployed | 0.9100 | 0.8500 to 0.9500 |", "1,234,567", "4.83"):
        assert shown in full
    assert "vllm serve 'it'\"'\"'s here'" in full and "> Short." in full and "`<|im_end|>`" in full
    body = bare.split("---\n", 2)[2]
    assert not any(character.isdigit() for character in body) and "##" not in body
    assert card(FACTS) == full


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
        (base / name).write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.6}')
    copy_companions(base, merged, keep_towers=False, template="{{ messages }}", stops=(5, 2))
    names = {file.name for file in merged.iterdir()}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".index.json"))}
    assert json.loads((merged / "generation_config.json").read_text()) == {"eos_token_id": [2, 5], "temperature": 0.6}
    assert (merged / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "chat_template" not in json.loads((merged / "tokenizer_config.json").read_text())
