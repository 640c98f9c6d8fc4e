"""What goes to the hub, and what does not: by the hub's own client, to a server that keeps what it is sent."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from hub_server import Hub
from shared import toy_rows
from tunesmith.errors import ProvenanceError, PushError, RunError
from tunesmith.pipeline.push import plan, publish
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.parity import Parity

TOKEN = "hf_" + "s" * 34


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # its protocol is another one than HTTP's
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


def _decide(run, **changes):
    """Another verdict of a run, on the files as they are now."""
    verdict = Verdict.read(run.verdict_file)
    files = {name: sha256_file(run.path / name) for name in verdict.files}
    replace(verdict, files=files, **changes).write(run.verdict_file)


def test_an_adapter_arrives_in_one_commit_as_it_lies_there(run, hub, caplog):
    caplog.set_level(logging.DEBUG)
    planned = plan(run, "team/toy", "adapter", private=True, base="org/base", base_license="mit")
    assert not hub.calls
    sent = publish(run, planned)
    assert hub.commits == ["adapter by tunesmith, verdict: too little data to tell"] and sent.url.endswith("1" * 40)
    repo = hub.repos["team/toy"]
    assert repo["private"] is True
    weights = "adapter_model.safetensors"
    assert repo["files"][weights] == (run.adapter / weights).read_bytes()
    assert repo["files"]["chat_template.jinja"] == run.template_file.read_bytes()
    assert json.loads(repo["files"]["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert {file.name: file.sha256 for file in planned.files} == {
        name: hashlib.sha256(content).hexdigest() for name, content in repo["files"].items()
    }
    assert hub.tokens >= {f"Bearer {TOKEN}"} and TOKEN not in caplog.text and str(run.path) not in planned.card
    publish(run, planned)  # what is there is not sent twice
    assert sum(call.startswith("PUT") for call in hub.calls) == 1


def test_the_card_is_the_hubs_own_form_and_shows_no_row(run):
    verdict = Verdict.read(run.verdict_file)
    card = ModelCard(plan(run, "team/toy", "merged", base="org/base", base_license="mit", data_license="cc-by-4.0").card)
    assert (card.data.base_model, card.data.base_model_relation, card.data.license) == ("org/base", "merge", "mit")
    score, gain = card.data.eval_results
    tuned = verdict.arm("tuned")
    assert (score.metric_type, score.metric_value) == ("json", round(tuned.score, 4))
    assert (score.metric_args["low"], score.metric_args["high"]) == (round(tuned.low, 4), round(tuned.high, 4))
    assert gain.metric_args["verdict"] == verdict.decision and gain.metric_args["low"] == round(tuned.against.low, 4)
    assert score.dataset_args == {"rows": verdict.n, "sha256": sha256_file(run.data / "test.jsonl")}
    assert "Data: cc-by-4.0" in card.text and sha256_file(run.merged / "model.safetensors") in card.text
    assert "## Serve" not in card.text and "vllm serve team/toy" in card.text
    questions = [row["messages"][0]["content"] for row in toy_rows()]
    assert not [question for question in questions if question in card.text]
    asked = plan(run, "team/toy", "merged", examples=2)
    assert sum(question in asked.card for question in questions) == 2 and "the card shows 2 rows of the data" in asked.notes


@pytest.mark.parametrize(
    ("state", "decision", "sent"),
    [
        ("deployable", "regression", ["README.md", "toy-Q4_K_M.gguf", "Modelfile"]),
        ("unknown", "deploy", ["README.md", "toy-Q4_K_M.gguf", "Modelfile"]),  # the sealed rows were asked in it
        ("unknown", "not better", None),
        ("not deployable", "deploy", None),
    ],
)
def test_a_gguf_that_parity_did_not_pass_is_not_published(run, state, decision, sent):
    file = run.export / "parity.json"
    parity = Parity.read(file)
    forms = tuple(replace(form, state=state) if form.form == "Q4_K_M" else form for form in parity.forms)
    replace(parity, forms=forms).write(file)
    _decide(run, decision=decision)
    if sent is None:
        with pytest.raises(PushError, match="parity did not pass it") as caught:
            plan(run, "team/toy", "gguf")
        assert f"tunesmith push {run.path} --to team/toy" in caught.value.hint
        return
    planned = plan(run, "team/toy", "gguf")
    assert [entry.name for entry in planned.files] == sent
    assert any("Q8_0 is left out" in note for note in planned.notes)
    assert any("not deploy" in note for note in planned.notes) == (decision != "deploy")


def _altered(run):
    file = run.adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")


@pytest.mark.parametrize(
    ("harm", "form", "to", "error", "words"),
    [
        (_altered, "adapter", "team/toy", ProvenanceError, "adapter_model.safetensors is not the file"),
        (lambda run: run.verdict_file.unlink(), "adapter", "team/toy", RunError, "no verdict"),
        (lambda run: (run.export / "parity.json").unlink(), "merged", "team/toy", PushError, "tunesmith parity"),
        (lambda run: (run.adapter / "README.md").unlink(), "adapter", "team/toy", PushError, "--force export"),
        (lambda run: shutil.rmtree(run.merged), "merged", "team/toy", PushError, "tunesmith export"),
        (lambda run: None, "adapter", "toy", PushError, "has no owner"),
        (lambda run: None, "adapter", "team/to y", PushError, "--to team/to y"),
    ],
)
def test_what_is_refused_before_anybody_is_asked(run, harm, form, to, error, words):
    harm(run)
    with pytest.raises(error) as caught:
        plan(run, to, form)
    assert words in str(caught.value) and caught.value.hint


def test_a_file_that_the_verdict_does_not_know_stays_here(run):
    (run.adapter / "notes.txt").write_text("to myself")
    planned = plan(run, "team/toy", "adapter")
    assert "notes.txt" not in {file.name for file in planned.files}
    assert any("notes.txt is left out" in note for note in planned.notes)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda hub, patch: hub.repos.update({"team/toy": {"private": False, "files": {}}}), "is public"),
        (lambda hub, patch: setattr(hub, "refuse", 403), "may not write to team"),
        (lambda hub, patch: setattr(hub, "refuse", 401), "hf auth"),
        (lambda hub, patch: hub.close(), "run the same command again"),
        (lambda hub, patch: patch.setattr("tunesmith.pipeline.push.get_token", lambda: None), "hf auth login"),
        (lambda hub, patch: patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(run, hub, harm, words, monkeypatch):
    planned = plan(run, "team/toy", "adapter", private=True)
    harm(hub, monkeypatch)
    with pytest.raises(PushError) as caught:
        publish(run, planned)
    assert words in str(caught.value) and TOKEN not in str(caught.value) and not hub.commits
