"""An adapter of PEFT's in a run whose recipe has another scale: its own facts decide, in every place that loads it."""

import dataclasses
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tunesmith.engines.form import ComputePlace
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.parity import prompts, reference
from tunesmith.parity.reference import Trained, run_reference
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.chat import chat
from tunesmith.pipeline.evaluation import engine_of
from tunesmith.pipeline.export import job_of, planned
from tunesmith.rundir import RunDir, read_json, write_json

PLACE = ComputePlace(device=torch.device("cpu"), arithmetic="fp32")
TURNS = [{"role": "user", "content": "A red ball"}]


def _of_peft(base, adapter):
    """The stock model with an adapter that PEFT itself merged."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload().eval()


def _logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "rslora"])
def foreign(request, tiny_run, tiny_dir, tmp_path_factory):
    """A copy of a run with the adapter in the place of its own; PEFT's model of it, and one with the recipe's scale."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(tiny_run.path, folder / "run")
    run = RunDir(folder / "run")
    shutil.rmtree(run.adapter)
    torch.manual_seed(3)
    settings = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False, use_rslora=request.param
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), settings).save_pretrained(run.adapter)
    lora = run.recipe().lora
    assert (lora.r, lora.alpha, lora.use_rslora) == (4, 8, False)
    wrong = shutil.copytree(run.adapter, folder / "wrong")
    facts = read_json(wrong / "adapter_config.json")
    write_json(wrong / "adapter_config.json", facts | {"lora_alpha": lora.alpha, "use_rslora": lora.use_rslora})
    return run, _of_peft(tiny_dir, run.adapter), _of_peft(tiny_dir, wrong)


def test_the_tuned_arm_and_chat_answer_as_pefts_model(foreign):
    run, expected, wrong = foreign
    recipe = run.recipe()
    renderer = base_of(run, recipe).renderer
    _, make = engine_of(run, recipe, "tuned", lambda: pytest.fail("the base was opened"), [TURNS], 12)
    ids = renderer.prompt_ids(TURNS)
    torch.testing.assert_close(_logits(make().model, ids), _logits(expected, ids), rtol=1e-4, atol=1e-4)
    theirs, other = (
        InProcessEngine(model, renderer, 8).generate([TURNS], 12, lambda _: None)[0].text for model in (expected, wrong)
    )
    assert chat(run)(TURNS)["tuned"] == theirs != other


def test_the_reference_of_parity_and_the_merge_are_pefts_model(foreign, tiny_dir, tmp_path, monkeypatch):
    run, expected, _ = foreign
    recipe = run.recipe()
    monkeypatch.setattr(prompts, "LONG", 60)
    monkeypatch.setattr(reference, "NEW_TOKENS", 4)
    trained = Trained(recipe=recipe, base=base_of(run, recipe), adapter=run.adapter)
    compared = run_reference(trained, {"a": TURNS}, PLACE, None, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
    for prompt, span in zip(compared.prompts, compared.spans, strict=True):
        ids = prompt.ids + prompt.continuation[:-1]
        for model, rows in ((expected, compared.tuned_NV), (base, compared.base_NV)):
            logits = _logits(model, ids)[len(prompt.ids) - 1 :]
            torch.testing.assert_close(torch.tensor(rows[span]), logits, rtol=1e-4, atol=1e-4)
    job = dataclasses.replace(job_of(run, recipe), staged=tmp_path / "export")
    for step in planned(run, recipe, job.lora):
        if step.kind == "merge":
            step.write(job, step)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export" / "merged")
    ids = compared.prompts[0].ids
    torch.testing.assert_close(_logits(merged.eval(), ids), _logits(expected, ids), rtol=1e-4, atol=1e-4)
