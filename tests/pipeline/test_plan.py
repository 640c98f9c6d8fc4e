"""The verb ``plan``: what it asks of the hub, and that it reckons as training does."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from shared import write_recipe
from tunesmith.cli.plan_text import plan_lines
from tunesmith.errors import ModelError
from tunesmith.hardware import hub_cache
from tunesmith.memory.dials import Dials
from tunesmith.memory.room import resident_bytes
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline import plan_measured
from tunesmith.pipeline.plan import plan
from tunesmith.recipe import Lora


@pytest.fixture
def config_alone(tiny_dir, tmp_path):
    """A directory with nothing but a configuration."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text((tiny_dir / "config.json").read_text())
    return tmp_path / "large"


def test_a_cpu_is_reckoned_with_as_in_training(tiny_dir, monkeypatch):
    monkeypatch.setattr(plan_measured, "cpu", lambda *_: {"fp32": 1e10, "bf16": 1e9})
    monkeypatch.setattr(plan_measured, "gpu", lambda: None)
    report, shape = plan(str(tiny_dir), tokens=256), read_shape(tiny_dir)
    assert isinstance(shape, Shape)
    lora = Lora()
    dials = Dials(base="nf4", compute="fp32", r=lora.r, dropout=lora.dropout, tokens=256, rows=36, device="cpu")
    assert report.place.device == "cpu" and report.plan == {"train.recompute": "none"}
    assert report.needs_bytes == resident_bytes(shape, dials) == report.peak_bytes + report.place.context_bytes


def test_of_a_hub_model_the_configuration_alone_is_fetched_and_that_is_said(config_alone, monkeypatch, talk):
    asked = []

    def fetch(model, name, revision, local_dir):
        asked.append((model, name, revision))
        assert hub_cache() not in Path(local_dir).parents, "where it would look like a model that is there"
        return str(config_alone / "config.json")

    monkeypatch.setattr("tunesmith.checkpoints.fetch_config.hf_hub_download", fetch)
    report = plan("org/large", gpu="T4")
    assert asked == [("org/large", "config.json", None)] and report.model == "org/large" and report.fits
    assert "org/large has not been fetched yet; fetching its config.json alone, a few kB" in talk()
    assert report.disk.there == () and report.disk.cached["base"] == report.disk.missing_bytes > 0


def test_without_a_way_to_the_hub_the_error_says_what_else_will_do(monkeypatch):
    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("tunesmith.checkpoints.fetch_config.hf_hub_download", offline)
    with pytest.raises(
        ModelError, match=r"org/large has not been fetched yet, and its config\.json cannot be: no network"
    ) as caught:
        plan("org/large", gpu="T4")
    assert "a directory of its own" in caught.value.hint


def test_what_a_run_writes_is_printed_with_the_room_there_is(config_alone, monkeypatch, tmp_path):
    monkeypatch.setattr("tunesmith.pipeline.plan.free_bytes", lambda _: 10**6)
    monkeypatch.chdir(tmp_path)
    report = plan(str(config_alone), gpu="T4")
    once, here = [line for line in plan_lines(report) if line.startswith("disk")]
    assert "base" in once and "too little" in once and "streamed layers" not in once
    for name in ("3 checkpoints", "adapter", "merged", "Q8_0.gguf", "Q4_K_M.gguf", "temporary F16.gguf"):
        assert name in here, name
    assert here.endswith("too little") and Path(report.disk.run_in) == Path("runs")
    tight = plan(str(config_alone), gpu="T4", memory="520MB")
    assert ("streamed layers" in tight.disk.cached) == ("train.resident_layers" in tight.plan)


def test_what_is_spare_is_named_and_a_budget_is_part_of_the_plan(tiny_dir, tmp_path):
    plain = plan(str(write_recipe(tmp_path, tiny_dir, {"base": "nf4"})), gpu="T4")
    assert plain.spare_bytes > 0 and "base_budget: auto would give" in "\n".join(plan_lines(plain))
    more = plan(str(write_recipe(tmp_path, tiny_dir, {"base": "nf4", "base_budget": "+50%"})), gpu="T4")
    assert more.needs_bytes - plain.needs_bytes == pytest.approx(more.extra_bytes, rel=0.1)
    assert more.extra_bytes > 0 == more.spare_bytes and "bits of the base beyond NF4" in "\n".join(plan_lines(more))
    assert plan(str(write_recipe(tmp_path, tiny_dir)), gpu="T4").spare_bytes == 0
