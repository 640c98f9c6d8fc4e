"""The verb advise on a tiny model: what it measures, what it leaves alone, and what it writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from shared import toy_rows, train_settings, write_recipe
from tunesmith.advise.decide import EXIT_CODES
from tunesmith.checkpoints.quantized.schemes import NF4_AS_HERE
from tunesmith.cli.text import print_advice
from tunesmith.errors import DataError, ModelError
from tunesmith.memory.dials import BYTES, dials_of
from tunesmith.memory.plan import plan_for_training, turned_words
from tunesmith.memory.room import CONTEXT
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline import advise
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.evaluation import Evaluation
from tunesmith.rundir import read_json, read_rows
from tunesmith.rundir.records.advice import Advice, MachineFacts
from tunesmith.rundir.records.evaluation import Candidate, Selection, Trial
from tunesmith.rundir.records.evidence import CrossFit

CHECKS = 8
PROBE = """
import sys
from tunesmith import cli
sys.argv = ["tunesmith", "advise", {recipe!r}, "--quick", "--out", {out!r}]
try:
    cli.main()
except SystemExit as stop:
    print("code", stop.code)
print("heavy", sorted({{"torch", "transformers", "gguf", "matplotlib"}} & set(sys.modules)))
"""


@pytest.fixture
def open_toy(tmp_path, tiny_dir):
    return lambda changes=None: api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / "run")


def _trial(score, candidate):
    return Trial(
        name=candidate.name,
        arm=candidate.arm,
        candidate=candidate,
        n=8,
        unscored=0,
        score=score,
        figures={},
        prompt_tokens=40.0,
        new_tokens=9.0,
        finished=1.0,
        ms=1.0,
    )


def _sure(score):
    return CrossFit(score=score, low=score, high=score, bound=score, n=8)


def test_quick_imports_no_torch_and_its_exit_code_is_the_endings(tmp_path, tiny_dir):
    """64 rows leave 35 to train on; 50 are asked for."""
    recipe = write_recipe(tmp_path, tiny_dir)
    code = PROBE.format(recipe=str(recipe), out=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "heavy []" in done.stdout and f"code {EXIT_CODES['collect more rows']}" in done.stdout, done.stdout + done.stderr
    result = Advice.read(tmp_path / "run" / "advice.json")
    assert result.quick and result.provisional and len(result.checks) == CHECKS
    assert result.facts.rows.rows == 64 and result.facts.memory.parameters > 500_000
    assert not (tmp_path / "run" / "data").exists() and not (tmp_path / "run" / "evaluation").exists()


def test_quick_tries_the_metric_and_looks_for_the_model(tmp_path, open_toy):
    rows = toy_rows()
    rows[3]["messages"][-1]["content"] = "no object"
    run = open_toy()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="its own reference does not score"):
        api.advise(run, quick=True)
    with pytest.raises(ModelError, match="no such model"):
        api.advise(open_toy({"model": "./none"}), quick=True)
    with pytest.raises(ModelError, match="no such model file"):
        api.advise(open_toy({"model": "none.gguf"}), quick=True)
    unknown = api.advise(open_toy({"model": "org/never-fetched"}), quick=True)
    assert unknown.checks[-1].state == "unknown" and "not been fetched" in unknown.checks[-1].evidence


@pytest.mark.parametrize(
    ("changes", "bases"), [({}, {"fp32", "bf16", "nf4"}), ({"train.qat": True, "export.gguf": ["Q4_0"]}, {"fp32", "bf16"})]
)
def test_only_bases_that_the_recipe_could_name_are_weighed(open_toy, changes, bases):
    assert api.advise(open_toy(changes), quick=True).facts.memory.by_base.keys() == bases


def test_memory_is_what_the_planner_of_training_comes_to_and_the_rent_is_said(open_toy, monkeypatch, capsys):
    here = MachineFacts(name="RTX 4090", kind="gpu", cores=8, memory=540 * 10**6)
    monkeypatch.setattr(advise, "_machine", lambda _: here)
    run = open_toy({"base": "nf4", "train.max_length": 1024, "train.tokens_per_step": 1024})
    result, recipe = api.advise(run, quick=True), run.recipe()
    shape = read_shape(Path(recipe.model))
    assert isinstance(shape, Shape) and here.memory is not None
    train = train_settings(recompute="auto", max_length=1024, tokens_per_step=1024)
    chosen = plan_for_training(shape, dials_of("nf4", "bf16", recipe.lora, train), here.memory, here.name).chosen
    assert result.facts.memory.by_base == {"nf4": chosen.needs(CONTEXT)}
    assert result.facts.memory.plans == {"nf4": turned_words(chosen.dials)}
    assert f"by the plan of training: {turned_words(chosen.dials)}" in result.checks[-1].evidence
    assert result.hours == pytest.approx(chosen.seconds * result.facts.rows.tokens / 1024 / 3600)
    assert result.rents and result.rents[0].dollars <= result.rents[-1].dollars
    print_advice(result, Console(width=400))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rent of one training:"))
    assert result.rents[0].card in line and result.rents[-1].card in line and "not measured" in line


@pytest.mark.parametrize(
    ("changes", "stored"),
    [({"base": "nf4"}, {}), ({"base": "nf4", "base_budget": "+10%"}, {}), ({"base": "nf4"}, NF4_AS_HERE)],
)
def test_bits_are_offered_where_there_are_some_to_give(open_toy, monkeypatch, tiny_dir, tmp_path, changes, stored):
    monkeypatch.setattr(advise, "_machine", lambda _: MachineFacts(name="RTX 4090", kind="gpu", cores=8, memory=24 * 10**9))
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    config = read_json(model / "config.json")
    said = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, **stored}} if stored else {}
    (model / "config.json").write_text(json.dumps({**config, **said}))
    memory = api.advise(open_toy({"model": "./model", **changes}), quick=True).facts.memory
    shape = read_shape(model)
    assert isinstance(shape, Shape)
    all_in_16_bits = int(shape.linear * (BYTES["bf16"] - BYTES["nf4"]))
    assert memory.spare == (0 if stored or "base_budget" in changes else all_in_16_bits) and all_in_16_bits > 10**5


def test_prompts_are_measured_on_dev_and_the_test_part_stays_sealed(open_toy):
    run = open_toy({"evaluate.arms": ["zero_shot", "instruction", "few_shot", "retrieval", "tuned"]})
    result = api.advise(run)
    assert not run.readings.exists() and {p.name for p in run.evaluation.iterdir() if p.is_dir()} == set()
    arms = result.facts.arms
    assert {arm.name for arm in arms} == {"zero_shot", "instruction", "few_shot", "retrieval"}
    dev = len(read_rows(run.data / "dev.jsonl"))
    assert all(arm.n == dev for arm in arms) and {arm.name for arm in arms if arm.retrieves} == {"retrieval"}
    assert not result.provisional and f"n={dev}" in result.checks[0].evidence and result.hours > 0
    prompt, retrieval = result.facts.prompt, result.facts.retrieval
    assert prompt and retrieval and prompt.n == retrieval.n == dev and prompt.bound >= prompt.low
    # The tokens of the short prompt are those that the tuned model will be asked with.
    made = Evaluation.of(run, run.recipe())
    short = [len(made.base().renderer.prompt_ids(made.book.tuned(row))) for row in made.dev]
    best = max((a for a in arms if not a.retrieves), key=lambda a: (a.score, -a.prompt_tokens))
    assert result.facts.price.tokens_saved == pytest.approx(max(0, best.prompt_tokens - sum(short) / dev))
    # A later evaluate finds the choice made.
    before = run.stages()["select"]
    api.evaluate(run, ("zero_shot",))
    assert run.stages()["select"] == before


def test_the_prompt_to_copy_is_the_one_that_was_measured(open_toy, monkeypatch):
    run = open_toy({"evaluate.arms": ["few_shot", "retrieval", "tuned"]})
    api.data(run)
    api.render(run)
    made = Evaluation.of(run, run.recipe())
    shown = tuple(row.id for row in made.book.pool[:2])
    plain = Candidate(arm="few_shot", instruction="Colour and thing.", selection="random", k=2, demonstrations=shown)
    searched = Candidate(arm="retrieval", instruction="Colour and thing.", documents=2)
    row = made.dev[0]

    def copied(ending, plain_score, searched_score):
        selection = Selection(
            finalists=("few_shot",),
            rivals=("few_shot", "retrieval"),
            arms={"few_shot": plain, "retrieval": searched},
            candidates=(_trial(plain_score, plain), _trial(searched_score, searched)),
            search=None,
            dev_rows=4,
            prompt=_sure(plain_score),
            retrieval=_sure(searched_score),
        )
        monkeypatch.setattr(advise, "make", lambda *_, **__: selection.write(run.evaluation / "selection.json"))
        result = api.advise(run)
        assert result.ending == ending and result.arm == {21: "few_shot", 22: "retrieval"}[result.exit_code]
        messages = read_json(run.path / result.prompt)["messages"]
        messages[-1]["content"] = messages[-1]["content"].replace("{question}", row.messages[-2]["content"])
        return messages

    assert copied("prompt is enough", 1.0, 1.0) == made.book.messages(plain, row)
    asked = made.book.messages(searched, row)
    passages = [line[4:] for line in asked[-1]["content"].split("\n\n") if line[:4] in ("[1] ", "[2] ")]
    messages = copied("use retrieval", 0.1, 0.9)
    for number, passage in enumerate(passages, 1):
        messages[-1]["content"] = messages[-1]["content"].replace(f"{{passage {number}}}", passage)
    assert messages == asked


def test_the_table_holds_every_check_at_any_width(open_toy, capsys):
    result = api.advise(open_toy(), quick=True)
    capsys.readouterr()
    for width in (80, 120):
        print_advice(result, Console(width=width))
        printed = capsys.readouterr().out
        table, _, _ = printed.partition("advice:")
        assert max(map(len, table.splitlines())) <= width
        assert all(row.check in printed for row in result.checks)
        assert f"advice: {result.ending}\n{result.reason}" in printed
