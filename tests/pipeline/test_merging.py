"""The merge of a run, through the verbs: which base it is made into, and what the run says of both."""

import dataclasses
import shutil

import pytest

from shared import write_recipe
from tunesmith import hardware
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.export import job_of, planned
from tunesmith.report.page import write_report
from tunesmith.rundir import RunDir, write_text
from tunesmith.rundir.records.export import Merge


@pytest.fixture(scope="module")
def nf4_run(tmp_path_factory, tiny_dir):
    folder = tmp_path_factory.mktemp("nf4")
    changes = {"base": "nf4", "train.compute": "fp32", "train.learning_rate": 0.02, "train.num_train_epochs": 2}
    run = api.open_run(write_recipe(folder, tiny_dir, changes), folder / "run")
    api.data(run)
    api.render(run)
    api.train(run)
    return run


def _page(run):
    write_report(run)
    return run.report_file.read_text()


def _merge(run):
    """The steps of an export up to the merge, in its place."""
    recipe = run.recipe()
    job = dataclasses.replace(job_of(run, recipe), staged=run.export)
    for step in planned(run, recipe, recipe.lora):
        if step.kind in ("merge", "measure", "adapter-vllm"):
            job.results[step.target] = step.write(job, step)
    return Merge.read(run.export / "merge.json")


def test_a_run_on_nf4_says_the_dev_loss_of_both_merges(nf4_run, talk):
    facts = _merge(nf4_run)
    losses = facts.dev_loss
    assert (facts.into, facts.dtype, facts.dequantized) == ("trained", "float32", 14)
    # The checkpoint is fp32 here, so the merge computes what was trained to fp32 rounding; the original does not.
    assert losses.trained == pytest.approx(losses.adapter, abs=1e-4)
    assert abs(losses.original - losses.adapter) > 10 * abs(losses.trained - losses.adapter)
    assert f"into the 32-bit original {losses.original:.4f}, adapter unmerged {losses.adapter:.4f}" in facts.summary
    assert facts.summary in talk() and not (nf4_run.export / "adapter-vllm").exists()
    text = nf4_run.recipe_file.read_text()
    write_text(nf4_run.recipe_file, text.replace("merge_into: trained", "merge_into: original"))
    other = _merge(nf4_run)
    write_text(nf4_run.recipe_file, text)
    assert (other.into, other.dequantized) == ("original", 0)
    assert other.dev_loss.to_json() == pytest.approx(losses.to_json(), abs=1e-4)
    assert sorted(file.name for file in nf4_run.export.iterdir()) == ["merge.json", "merged"]


def test_a_model_that_fits_nowhere_is_not_measured_and_the_run_says_so(nf4_run, monkeypatch):
    small = dataclasses.replace(hardware.describe(), memory_bytes=1000)
    monkeypatch.setattr(hardware, "describe", lambda: small)
    facts = _merge(nf4_run)
    assert facts.dev_loss.trained is None and "dequantised base not measured" in facts.summary


def test_the_page_says_both_where_both_were_measured(tiny_run, tmp_path):
    facts = Merge.read(tiny_run.export / "merge.json")
    assert facts.into == "trained" and facts.dequantized == 0 and facts.dev_loss is None
    assert "Dev loss merged" not in tiny_run.report_file.read_text()
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    dataclasses.replace(facts, summary="dev loss merged into the dequantised base 1.5").write(run.export / "merge.json")
    assert "Dev loss merged into the dequantised base 1.5. Merged is the dequantised base, in float32." in _page(run)
