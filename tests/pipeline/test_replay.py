"""The base model's own answers as rows to train on."""

import re
import shutil

import pytest

from tunesmith.engines.in_process import InProcessEngine
from tunesmith.evaluate.probes import load_probes
from tunesmith.messages import Message
from tunesmith.models.load import load_model
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.base import base_of
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.data import Replayed
from tunesmith.rundir.records.training import Training
from tunesmith.tracking import read_metrics
from tunesmith.train.documents import Documents
from tunesmith.train.replay import NEW_TOKENS, load_prompts, replay_count


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def test_no_request_is_a_probe_and_none_stands_there_twice():
    requests = [_words(text) for _, text in load_prompts()]
    assert len(set(requests)) == len(requests) >= 200
    probes = load_probes(None)
    measured = [_words(text) for _, text in probes.prompts] + [_words(question.question) for question in probes.questions]
    for request in requests:
        for probe in measured:
            assert len(request & probe) < 0.7 * len(request | probe), (request, probe)


@pytest.fixture(scope="module")
def replayed(tiny_run, tmp_path_factory):
    """The tiny run trained again with a fifth more rows of the base model's answers."""
    path = tmp_path_factory.mktemp("replay") / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns("*.gguf", "merged"))
    run = RunDir(path)
    recipe = run.recipe()
    train = recipe.train.model_copy(update={"replay": 0.2})
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"train": train})))
    api.make(run, ["train"])
    return run


def test_rows_are_the_base_models_greedy_answers_and_the_answers_alone_are_supervised(replayed, tiny_dir):
    rows, task = Documents.open(replayed.tokens("replay")), Documents.open(replayed.tokens("train"))
    count = replay_count(0.2, len(task))
    assert len(rows) == count == round(0.2 * len(task))
    renderer = base_of(replayed, replayed.recipe()).renderer
    prompts = [[Message(role="user", content=text)] for _, text in load_prompts()[:count]]
    engine = InProcessEngine(load_model(tiny_dir, "fp32"), renderer, replayed.recipe().evaluate.batch_size)
    answers = engine.generate(prompts, NEW_TOKENS, lambda _: None)
    lines = Replayed.read_lines(replayed.data / "replay.jsonl")
    for number, (prompt, answer, line) in enumerate(zip(prompts, answers, lines, strict=True)):
        before = renderer.prompt_ids(prompt)
        ((start, end),) = rows.spans(number).tolist()
        assert rows.ids(number)[:start].tolist() == before and end == len(rows.ids(number)) == start + answer.new_tokens
        assert line.prompt == prompt[0]["content"] and line.id == rows.row_id(number)
        assert (rows.ids(number)[-1] in renderer.stop_ids) == answer.finished


def test_they_are_trained_on_and_another_share_trains_again(replayed):
    rows, task = (Documents.open(replayed.tokens(part)) for part in ("replay", "train"))
    training = Training.read(replayed.training_file)
    assert training.replayed_rows == len(rows)
    seen = sum(line["tokens"] for line in read_metrics(replayed.metrics_file))
    assert seen == rows.lengths.sum() + task.lengths.sum()
    recipe = replayed.recipe()
    train = recipe.train.model_copy(update={"replay": 0.1})
    replayed.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"train": train})))
    status = api.status(replayed)
    assert status["replay"].why == ("train.replay 0.2 -> 0.1",) and status["train"].state != "done"


def test_the_first_documents_are_those(replayed):
    rows = Documents.open(replayed.tokens("replay"))
    some = rows.first(3)
    assert len(some) == 3 and some.supervised_tokens == sum(int(b - a) for n in range(3) for a, b in rows.spans(n))
    both = some.joined(rows)
    assert both.row_id(3) == rows.row_id(0) and both.ids(4).tolist() == rows.ids(1).tolist()
