"""Tuned models of other tools, each form through a run to its verdict; and what is refused before the first stage."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_server import Server
from shared import toy_rows, write_recipe
from tunesmith.errors import DataError, ModelError, PushError, RunError, TunesmithError
from tunesmith.evaluate import gate
from tunesmith.pipeline import evaluation
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.export import plan as export_plan
from tunesmith.pipeline.push import plan
from tunesmith.pipeline.track import track
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.brought import Brought
from tunesmith.rundir.records.check import DataReport
from tunesmith.serve.catalogue import Catalogue, Choices

CHEAP = {"evaluate.few_shot": {"k": [1], "draws": 1, "selection": ["random"]}, "evaluate.arms": None, "export.gguf": ["Q8_0"]}


@pytest.fixture(scope="module")
def peer(tiny_dir, tmp_path_factory):
    """What another tool leaves: two adapters of PEFT, and the first of them merged."""
    folder = tmp_path_factory.mktemp("peer")
    torch.manual_seed(3)
    for name, dora in (("one", False), ("two", True)):
        targets = ["q_proj", "v_proj"]
        lora = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, use_dora=dora)
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), lora).save_pretrained(folder / name)
    both, own = ["embed_tokens", "lm_head"], {"layers.0.self_attn.q_proj": 8}
    tables = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=both, alpha_pattern=own)
    with pytest.warns(UserWarning, match="ensure_weight_tying"):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), tables)
    for name, parameter in model.named_parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape) * ("modules_to_save" in name)
    model.save_pretrained(folder / "tables")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.chat_template = tokenizer.chat_template + "{# of another tool #}"
    tokenizer.save_pretrained(folder / "one")
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), folder / "one").merge_and_unload()
    whole.save_pretrained(folder / "whole")
    tokenizer.save_pretrained(folder / "whole")
    return folder


def _opened(tmp_path, tiny_dir, tuned, **changes):
    keys = {key: value for key, value in {**CHEAP, "tuned": tuned, **changes}.items() if value is not None}
    return api.open_run(write_recipe(tmp_path, tiny_dir, keys), tmp_path / "run")


def _judged(run):
    verdict = api.run(run)
    assert verdict is not None
    return verdict


def test_an_adapter_is_exported_compared_and_judged_as_if_it_was_trained_here(peer, tiny_dir, tmp_path, talk):
    run = _opened(tmp_path, tiny_dir, {"adapter": str(peer / "one")})
    verdict = _judged(run)
    (brought,) = Brought.read(run.brought_file).models
    assert (brought.rank, brought.scale, brought.targets, brought.tool) == (4, 4.0, 4, "PEFT")
    assert any("template is not the base's" in note for note in brought.notes)
    assert "{# of another tool #}" in tuned_model(run, run.recipe()).here.renderer.template
    assert (run.merged / "chat_template.jinja").read_text().endswith("{# of another tool #}")
    assert verdict.candidate == "deployed" and verdict.parity is not None and verdict.forgetting is not None
    assert "whether the model was trained on these test rows is not known" in verdict.reason
    assert "these keys of the recipe mean nothing: lora.r, lora.alpha" in talk()
    page = run.report_file.read_text()
    assert "What was brought" in page and brought.key in page and "dev loss" not in page
    assert all(state.state == "done" for state in api.status(run).stages)
    planned = plan(run, "team/toy", "adapter")
    (template,) = [file for file in planned.files if file.name == "chat_template.jinja"]
    assert template.sha256 == sha256_file(run.brought_template("one"))
    with pytest.raises(RunError, match="no steps to send"):
        track(run, "tensorboard")
    with pytest.raises(RunError, match="not a stage"):
        api.train(run)
    (run.adapter / "adapter_config.json").write_text("{}")
    assert api.status(run)["bring"].state == "broken"


def test_tables_that_were_trained_apart_are_in_every_form(peer, tiny_dir, tmp_path):
    """The base has one for both; the merged model and its GGUF have two."""
    run = _opened(tmp_path, tiny_dir, {"adapter": str(peer / "tables")}, **{"export.gguf": ["F16"]})
    api.run(run, until="parity")
    assert [(form.form, form.state) for form in api.parity(run).forms] == [("merged", "deployable"), ("F16", "deployable")]
    planned = {step.target: step.bytes for step in export_plan(run).steps}
    (file,) = run.export.glob("*-F16.gguf")
    assert file.stat().st_size == pytest.approx(planned[file.name], rel=0.03)


def test_a_whole_model_is_asked_exported_and_compared_without_an_adapter(peer, tiny_dir, tmp_path):
    run = _opened(tmp_path, tiny_dir, {"merged": str(peer / "whole")})
    verdict = _judged(run)
    assert {form.form: form.state for form in api.parity(run).forms}["merged"] == "deployable"
    assert api.parity(run).adapter_kl > 0.01  # against the base, which was loaded beside it
    assert verdict.forgetting is not None and verdict.form == "merged"


def test_a_file_is_the_deployed_form_itself(tiny_gguf, tiny_dir, tmp_path):
    run = _opened(tmp_path, tiny_dir, {"gguf": str(tiny_gguf)})
    verdict = _judged(run)
    assert verdict.candidate == "deployed" and verdict.deployed_loss is not None and verdict.deployed_loss.gain == 0.0
    assert verdict.parity is not None and verdict.parity.state == "deployable" and not (run.export / "export.json").exists()
    assert verdict.forgetting is not None and verdict.forgetting.verdict == "no regression"  # it is the base


def test_an_endpoint_is_a_candidate_of_which_less_is_known(tiny_dir, tmp_path):
    server = Server()
    try:
        verdict = _judged(_opened(tmp_path, tiny_dir, {"endpoint": server.url, "model": "mine"}))
    finally:
        server.close()
    assert {asked["model"] for _, asked in server.requests} == {"mine"}
    assert verdict.candidate == "tuned" and verdict.forgetting is None and verdict.parity is None


def test_several_take_turns_on_one_base_and_the_chosen_one_is_judged_as_it_is_deployed(
    peer, tiny_gguf, tiny_dir, tmp_path, monkeypatch
):
    tuned = [{"adapter": str(peer / "one")}, {"adapter": str(peer / "two"), "name": "dora"}]
    tuned.append({"gguf": str(tiny_gguf), "name": "file"})
    run = _opened(tmp_path, tiny_dir, tuned)
    asked, opened = [], evaluation.open_llama_cpp
    monkeypatch.setattr(evaluation, "open_llama_cpp", lambda *given: asked.append(given[0]) or opened(*given))
    verdict = _judged(run)
    assert [one.name for one in verdict.candidates] == ["tuned:one", "tuned:dora", "tuned:file"]
    assert verdict.tries.at_once == 3 and verdict.comparison.alpha == pytest.approx(0.05 / 3)
    file = run.export / "toy-Q8_0.gguf"
    assert (verdict.candidate, verdict.chosen) == ("deployed", "tuned:one") and asked == [tiny_gguf, file]
    assert verdict.parity is not None and verdict.parity.form == "Q8_0" and "export/toy-Q8_0.gguf" in verdict.files
    assert "{# of another tool #}" in (run.merged / "chat_template.jinja").read_text()
    lost = api.forgetting(run)  # of each its own as it came, and the verdict's is that of the chosen one's file
    assert {one.name: one.forgetting for one in verdict.candidates} == {name: lost[name] for name in list(lost)[:3]}
    forms = {"tuned:one": "", "tuned:dora": "", "tuned:file": tiny_gguf.name, "deployed": "Q8_0"}
    assert {name: one.form for name, one in lost.items()} == forms and len({repr(one) for one in lost.values()}) == 4
    assert verdict.forgetting == lost["deployed"] and "evaluation/forgetting/dora.json" in verdict.files
    assert all(state.state == "done" for state in api.status(run).stages) and not (run.brought / "one" / "README.md").exists()
    assert {entry.name for entry in plan(run, "team/toy", "merged").files} >= {"model.safetensors", "README.md"}
    with pytest.raises(PushError, match="there is no form adapter") as caught:
        plan(run, "team/toy", "adapter")
    assert "--form merged or gguf; or gate one of them alone, and push that run: one, dora, file" in str(caught.value.hint)
    (tmp_path / "alone").mkdir()
    alone = _opened(tmp_path / "alone", tiny_dir, tuned[1], **{"evaluate.arms": ["few_shot", "tuned"]})
    api.run(alone, until="evaluate tuned")
    assert _answers(run, "tuned:dora") == _answers(alone, "tuned")


def test_another_choice_makes_what_was_exported_stale(peer, tiny_gguf, tiny_dir, tmp_path, monkeypatch):
    """First the adapter, then a GGUF, which is deployed as it lies; both models are random, so the choice is made here."""
    tuned = [{"adapter": str(peer / "one")}, {"gguf": str(tiny_gguf), "name": "file"}]
    run = _opened(tmp_path, tiny_dir, tuned)
    with pytest.raises(RunError, match="which of one, file is deployed is not chosen yet") as caught:
        export_plan(run)
    assert caught.value.hint == f"run: tunesmith run {run.path} --until choose"
    standings = gate.choose
    monkeypatch.setattr(gate, "choose", lambda *given: ("tuned:one", standings(*given)[1]))
    _judged(run)
    assert (run.export / "toy-Q8_0.gguf").exists()
    served = Catalogue(Choices(context=256, force=True)).find(run.path)
    assert served.model == run.export / "toy-Q8_0.gguf"
    monkeypatch.setattr(gate, "choose", lambda *given: ("tuned:file", standings(*given)[1]))
    api.make(run, ["choose"], force=["choose"])
    assert "the chosen tuned model one -> file" in api.status(run)["export"].why
    with pytest.raises(RunError, match="was chosen again since the verdict"):
        Catalogue(Choices(context=256)).find(run.path)
    with pytest.raises(RunError, match="export is stale"):
        api.verdict(run)
    monkeypatch.setattr(evaluation, "open_llama_cpp", lambda *given: pytest.fail("its answers are known"))
    verdict = _judged(run)
    assert verdict.chosen == "tuned:file" and not (run.export / "toy-Q8_0.gguf").exists()
    assert verdict.deployed_loss is not None and verdict.deployed_loss.gain == 0.0
    assert verdict.parity is not None and verdict.parity.form == tiny_gguf.name
    assert verdict.forgetting == api.forgetting(run)["tuned:file"]
    assert Catalogue(Choices(context=256, force=True)).find(run.path).model == tiny_gguf
    with pytest.raises(PushError, match="there is no form gguf"):
        plan(run, "team/toy", "gguf")


def _answers(run, arm):
    return [json.loads(line)["output"] for line in (run.evaluation / arm / "outputs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"r": 8}, "shape"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "are not in the adapter's file"),
        ({"modules_to_save": ["lm_head"]}, "are not in the adapter's file"),
        ({"modules_to_save": ["norm"]}, "'norm' is no table"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_the_first_stage(peer, tiny_dir, tmp_path, spoil, words):
    bad = shutil.copytree(peer / "one", tmp_path / "bad")
    facts = json.loads((bad / "adapter_config.json").read_text())
    (bad / "adapter_config.json").write_text(json.dumps(facts | spoil))
    run = _opened(tmp_path, tiny_dir, {"adapter": str(bad)})
    with pytest.raises(ModelError, match=words):
        api.run(run)
    assert not run.stages()


@pytest.mark.parametrize(
    ("name", "content", "words", "hint"),
    [
        ("chat_template.jinja", b"{% for x in %}", "the chat template cannot be used", "chat.template"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: cannot be read", "get the file again"),
        ("tokenizer.json", b"{", "tokenizer.json: no tokenizer that can be read", "take it away"),
        ("adapter_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "lfs pull"),
        ("adapter_model.safetensors", b"<!DOCTYPE html><title>Sign in", "a web page", "/resolve/"),
        ("adapter_model.safetensors", None, "no adapter_model.safetensors there", "get them again"),
    ],
)
def test_a_bad_file_of_an_adapter_is_named_before_the_first_stage(peer, tiny_dir, tmp_path, name, content, words, hint):
    bad = shutil.copytree(peer / "one", tmp_path / "bad")
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_bytes(content)
    run = _opened(tmp_path, tiny_dir, {"adapter": str(bad)})
    with pytest.raises(ModelError, match=words) as caught:
        api.run(run)
    assert hint in caught.value.hint and str(bad) in caught.value.message and not run.stages()


@pytest.mark.parametrize(("is_up", "words"), [(False, "is the endpoint up"), (True, "is the key right")])
def test_an_endpoint_that_will_not_answer_is_known_before_the_prompts_are_searched(tiny_dir, tmp_path, is_up, words):
    server = Server()
    server.listing = 401
    if not is_up:
        server.close()
    run = _opened(tmp_path, tiny_dir, {"endpoint": server.url, "model": "mine"})
    with pytest.raises(RunError) as caught:
        api.run(run)
    if is_up:
        server.close()
    assert words in caught.value.hint and not run.stages() and not server.requests


@pytest.mark.parametrize(
    ("tuned", "words", "hint"),
    [
        ({"adapter": "whole"}, "it is a whole model", "--merged"),
        ({"merged": "one"}, "an adapter, expected a whole model", "--adapter"),
        ({"adapter": "."}, "there are adapters below it: one, (tables, )?two", "two"),
        ({"adapter": "none"}, "no such adapter directory", "adapter_config.json"),
        ({"gguf": "none.gguf"}, "no such model file", "path"),
        ({"gguf": "whole"}, "a directory, expected a .gguf file", "--merged"),
    ],
)
def test_what_is_named_by_the_wrong_form_is_told_the_right_one(peer, tiny_dir, tmp_path, tuned, words, hint):
    named = {form: str(peer / name) for form, name in tuned.items()}
    with pytest.raises(TunesmithError, match=words) as caught:
        api.run(_opened(tmp_path, tiny_dir, named))
    assert hint in caught.value.hint


def test_a_whole_model_that_speaks_other_tokens_is_refused_before_the_first_stage(peer, tiny_dir, tmp_path):
    other = shutil.copytree(peer / "whole", tmp_path / "other")
    facts = json.loads((other / "tokenizer.json").read_text())
    vocabulary = facts["model"]["vocab"]
    facts["model"]["vocab"] = dict(zip(vocabulary, reversed(list(vocabulary.values())), strict=True))
    (other / "tokenizer.json").write_text(json.dumps(facts))
    run = _opened(tmp_path, tiny_dir, {"merged": str(other)})
    with pytest.raises(ModelError, match="tokens are not its tokens") as caught:
        api.run(run)
    assert "no tuned form of" in caught.value.hint and not run.stages()


def test_rows_of_the_training_are_kept_out_of_dev_and_test(peer, tiny_dir, tmp_path):
    rows = toy_rows()
    known = tmp_path / "trained_on.jsonl"
    known.write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    run = _opened(tmp_path, tiny_dir, {"adapter": str(peer / "one")}, **{"data.trained_on": str(known)})
    api.data(run)
    asked = {row["messages"][0]["content"] for row in rows[:30]}
    parts = {part: (run.data / f"{part}.jsonl").read_text().splitlines() for part in ("train", "dev", "test")}
    held = {part: {json.loads(line)["messages"][0]["content"] for line in lines} for part, lines in parts.items()}
    assert asked <= held["train"] and held["dev"] and held["test"]
    report = DataReport.read(run.data_report_file)
    assert report.seen == 30 and report.kept_out
    advice = report.check.quality.advice
    assert advice.test_rows == report.test and len(advice.sentences) == 1  # what to train is no matter here
    known.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert api.status(run)["data"].why == ("data.trained_on (content) is another one",)
    with pytest.raises(DataError, match=r"trained on 64 of 64 rows .* leaves the dev part empty \(0 rows are new to it\)"):
        api.run(run, until="data")
