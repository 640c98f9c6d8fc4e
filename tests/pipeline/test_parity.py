"""Parity: forms that are what was trained pass; each kind of wrong form fails for its own reason."""

import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith import cli
from tunesmith.cli.export_text import parity_lines
from tunesmith.engines.form import ComputePlace, DirectoryModel, directory_form
from tunesmith.errors import ExportError, RunError
from tunesmith.parity.measure import measure_form
from tunesmith.parity.reference import Trained, run_reference
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.export import exported_forms, job_of, planned
from tunesmith.report.page import write_report
from tunesmith.rundir import RunDir, write_text
from tunesmith.rundir.records.export import Merge
from tunesmith.rundir.records.parity import Parity

verb = importlib.import_module("tunesmith.pipeline.parity")  # the name in tunesmith.pipeline is the function
PLACE = ComputePlace(device=torch.device("cpu"), arithmetic="fp32")
HOSTILE = "<script>alert(1)</script>"


class _Padded:
    """A form whose vocabulary has likely rows that the model's has not, as a padded file could."""

    def __init__(self, model):
        self._model, self.render, self.tokenize, self.close = model, model.render, model.tokenize, model.close

    def logits(self, ids, first=0):
        return np.pad(self._model.logits(ids, first), ((0, 0), (0, 7)), constant_values=50.0)


def _unreadable(place, context):
    raise ExportError("llama.cpp cannot run it", "")


def _wrong_directories(run, tiny_dir, folder):
    """Copies of the merged directory, each with one thing wrong."""
    wrong = {name: folder / name for name in ("template", "base", "swapped", "noisy")}
    for directory in wrong.values():
        shutil.copytree(run.merged, directory)
    template = (run.merged / "chat_template.jinja").read_text()
    (wrong["template"] / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|im_end|> "))
    shutil.copy(tiny_dir / "model.safetensors", wrong["base"] / "model.safetensors")
    tokenizer = json.loads((wrong["swapped"] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġsky"], vocabulary["Ġred"] = vocabulary["Ġred"], vocabulary["Ġsky"]
    (wrong["swapped"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    generator = torch.Generator().manual_seed(0)
    weights = load_file(wrong["noisy"] / "model.safetensors")
    noisy = {
        name: weight + 0.02 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }
    save_file(noisy, wrong["noisy"] / "model.safetensors", metadata={"format": "pt"})
    return wrong


@pytest.fixture(scope="module")
def compared(tiny_run, tiny_dir, tmp_path_factory):
    """Good and bad forms beside one reference: the run, and what parity says of it."""
    folder = tmp_path_factory.mktemp("parity")
    shutil.copytree(tiny_run.path, folder / "run")
    run = RunDir(folder / "run")
    wrong = _wrong_directories(run, tiny_dir, folder)
    whole = directory_form("merged", run.merged, "fp32", 8)
    forms = [
        whole,
        dataclasses.replace(
            whole, name="padded", rounding="fp16", open=lambda place, context: _Padded(DirectoryModel(run.merged, place))
        ),
        directory_form("noisy", wrong["noisy"], None, 8),
        directory_form("LoRA", run.merged, None, 8),
        directory_form("rounded too much", wrong["noisy"], "fp32", 8),
        directory_form("without adapter", wrong["base"], None, 8),
        directory_form("other template", wrong["template"], None, 8),
        directory_form("swapped tokens", wrong["swapped"], None, 8),
        dataclasses.replace(whole, name="unreadable", rounding=None, open=_unreadable),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "exported_forms", lambda run, recipe: forms)
        api.make(run, ["parity"], force=["parity"])
        result = Parity.read(run.export / "parity.json")
        assert api.parity(run) == result  # kept
    return run, result


def test_each_form_fails_for_its_own_reason(compared):
    run, result = compared
    failed = {form.form: form.failures for form in result.forms}
    assert failed == {
        "merged": [],
        "padded": [],
        "noisy": [],
        "LoRA": [],
        "rounded too much": ["distribution"],
        "without adapter": ["distribution", "adapter"],
        "other template": ["template", "token ids"],
        "swapped tokens": ["token ids"],
        "unreadable": ["runs"],
    }
    assert result.state == "not deployable" and result.exit_code == 14
    states = {form.form: form.state for form in result.forms}
    # Two dev rows show no metric, so what differs by design is not known to do the task as well.
    assert states["merged"] == states["padded"] == "deployable" and states["noisy"] == "unknown"
    asked = {form.form for form in result.forms if form.task is not None}
    assert asked == {"LoRA"}  # beside the form that deploys, which is not among these
    reasons = {form.form: form.reason for form in result.forms}
    assert "<|im_end|> \\n" in reasons["other template"] and "expected" in reasons["other template"]
    assert "' sky'" in reasons["swapped tokens"] and "' red'" in reasons["swapped tokens"]
    assert reasons["unreadable"] == "runs: llama.cpp cannot run it"
    assert not (run.export / verb.SCRATCH).exists()


def test_the_merged_form_computes_what_was_trained(compared):
    _, result = compared
    forms = {form.form: form for form in result.forms}
    merged, padded, base = (forms[name].figures for name in ("merged", "padded", "without adapter"))
    assert merged.kl_mean < 1e-8 and merged.agreement_or_tie == 1.0
    assert padded.kl_mean == pytest.approx(merged.kl_mean, abs=1e-12)  # over the common entries alone
    # The base of the reference carries the adapter's columns as zeros: its sums are in another order.
    assert base.kl_mean == pytest.approx(result.adapter_kl, rel=1e-4) and base.kl_from_base < 1e-8
    assert merged.kl_from_base > 0.01 and result.positions == merged.positions > 50
    assert forms["noisy"].checks["distribution"].state == "shown" and forms["noisy"].figures.kl_mean > 1e-4


def test_control_tokens_in_user_text_are_reported_and_fail_nothing(compared):
    _, result = compared
    assert all(form.control_tokens == ("control tokens",) for form in result.forms if form.form != "unreadable")
    assert {"multi-turn", "system", "empty", "long", "unicode", "control tokens"} <= set(result.prompts)
    assert result.left_out == {}


def test_the_first_divergence_is_shown_in_text(compared):
    _, result = compared
    shown = next(form.divergence for form in result.forms if form.form == "without adapter")
    assert shown.prompt in result.prompts and shown.reference != shown.form and not shown.tie
    assert any("first divergence" in line and repr(shown.reference) in line for line in parity_lines(result))


def test_the_exit_code_and_the_table(compared, monkeypatch, capsys):
    run, _ = compared
    monkeypatch.setattr("sys.argv", ["tunesmith", "parity", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert stop.value.code == 14
    assert "not deployable" in out and "without adapter: adapter: the adapter has no effect in this form" in out


def test_the_report_marks_what_is_not_deployable(compared):
    run, result = compared
    target = run.export / "parity.json"
    forms = list(result.forms)
    forms[4] = dataclasses.replace(forms[4], divergence=dataclasses.replace(forms[4].divergence, so_far=HOSTILE))
    hostile = dataclasses.replace(result, forms=tuple(forms))
    hostile.write(target)
    write_report(run)
    page = run.report_file.read_text()
    assert all(f"{form} is not deployable" in page for form in ("without adapter", "swapped tokens"))
    assert "noisy is unknown" in page
    assert HOSTILE not in page and "&lt;script&gt;" in page
    target.unlink()
    write_report(run)
    assert "Not measured on this export" in run.report_file.read_text()
    result.write(target)


def test_an_nf4_base_is_compared_as_it_was_trained(tiny_run, tmp_path, monkeypatch):
    """The reference dequantises, the merge into the trained weights does too; into the original it does not."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    text = run.recipe_file.read_text().replace("base: fp32", "base: nf4").replace("\ncompute: auto", "\ncompute: fp32")
    write_text(run.recipe_file, text)
    recipe, scratch = run.recipe(), tmp_path / "scratch"
    merging = planned(run, recipe, recipe.lora)[0]
    job = dataclasses.replace(job_of(run, recipe), staged=run.export)
    merging.write(job, merging).write(run.export / "merge.json")
    form = exported_forms(run, recipe)[0]
    assert form.rounding == "fp32"
    scratch.mkdir()
    base = base_of(run, recipe)
    trained = Trained(recipe=recipe, base=base, adapter=run.adapter)
    beside = run_reference(trained, {}, PLACE, None, scratch)
    entry = measure_form(form, beside, base.renderer.tokenizer, PLACE, None, 512, "no task")
    assert entry.deployable and entry.figures.kl_mean < 1e-8 and "metric" not in entry.checks
    merge = Merge.read(run.export / "merge.json")
    dataclasses.replace(merge, into="original").write(run.export / "merge.json")
    assert {form.rounding for form in exported_forms(run, recipe)} == {None}
    (run.export / "toy-Q8_0.gguf").unlink()
    with pytest.raises(RunError, match=r"toy-Q8_0\.gguf"):
        exported_forms(run, recipe)


def test_the_run_of_llama_cpp_passes(tiny_run, tmp_path, monkeypatch):
    """The files of a whole run, by llama.cpp's own template, tokenizer and products."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    result = api.parity(run)
    # Two dev rows show nothing of the task, so what is quantised is not known to do it as well.
    assert [(form.form, form.state) for form in result.forms] == [
        ("merged", "deployable"),
        ("Q8_0", "unknown"),
        ("Q4_K_M", "unknown"),
    ], [form.reason for form in result.forms]
    assert (result.state, result.exit_code) == ("unknown", 12)
    q8, q4 = result.forms[1:]
    assert q8.checks["adapter"].state == q4.checks["adapter"].state == "pass"
    assert 1e-7 < q8.figures.kl_mean < 1e-3 < q4.figures.kl_mean
    assert result.deployed_form.form == result.deployed == "Q4_K_M"
    assert Parity.read(run.export / "parity.json") == result
