"""A verdict names its files, and a copy of the run is held against it."""

import json
import shutil

import pytest

from tunesmith.errors import ProvenanceError, RunError
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.provenance import refuse_altered, verify
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.records.evaluation import Verdict


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run, as on another machine."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_a_verdict_names_what_it_speaks_of_and_a_copy_of_the_run_agrees(run):
    files = Verdict.read(run.verdict_file).files
    arms = [f"evaluation/{arm}/outputs.jsonl" for arm in run.recipe().evaluate.arms]
    named = {"data/train.jsonl", "data/test.jsonl", "adapter/adapter_model.safetensors", "export/toy-Q4_K_M.gguf", *arms}
    assert named | {"export/merged/model.safetensors", "export/parity.json", "evaluation/forgetting.json"} <= files.keys()
    assert files["export/toy-Q4_K_M.gguf"] == sha256_file(run.export / "toy-Q4_K_M.gguf")
    found = verify(run)
    assert found.is_whole and found.same == len(files) and not found.unnamed
    assert [name for name in found.elsewhere if name.endswith("rows.jsonl")]  # the run's rows lie where it was made
    refuse_altered(found)


def test_every_file_that_is_another_gone_or_not_named_is_said(run):
    weights = run.export / "toy-Q4_K_M.gguf"
    before = weights.stat()
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert weights.stat().st_size == before.st_size
    (run.evaluation / "tuned" / "outputs.jsonl").unlink()
    (run.merged / "pytorch_model.bin").touch()
    (run.export / "sweep.json").touch()  # which may be made later
    found = verify(run)
    assert (found.differs, found.gone) == (("export/toy-Q4_K_M.gguf",), ("evaluation/tuned/outputs.jsonl",))
    assert found.unnamed == ("export/merged/pytorch_model.bin",)
    with pytest.raises(
        ProvenanceError, match=r"Q4_K_M\.gguf is another one, evaluation/tuned/outputs\.jsonl is gone"
    ) as caught:
        refuse_altered(found)
    assert f"tunesmith run {run.path}" in caught.value.hint


def test_rows_that_were_edited_since_are_another_source(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    content = json.loads(run.verdict_file.read_text())
    run.verdict_file.write_text(json.dumps({**content, "sources": {str(rows): "0" * 64}}))
    assert verify(run).differs == (str(rows),)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"files": {}}, ProvenanceError, "tunesmith verdict"),
        ({"files": {"../secret": "0" * 64}}, ProvenanceError, "no file of the run"),
        (None, RunError, "no verdict yet"),
    ],
)
def test_a_verdict_that_proves_nothing_is_refused(run, change, error, words):
    content = json.loads(run.verdict_file.read_text())
    run.verdict_file.unlink()
    if change is not None:
        run.verdict_file.write_text(json.dumps({**content, **change}))
    with pytest.raises(error) as caught:
        verify(run)
    assert words in str(caught.value)


def test_a_verdict_is_stale_once_a_file_that_it_names_is_another(run):
    (run.adapter / "tunesmith.json").write_text("{}")  # which no other stage reads
    assert api.status(run)["verdict"].why == ("adapter/tunesmith.json is another one",)
    assert Verdict.read(run.verdict_file).files != api.verdict(run).files
    assert verify(run).is_whole
