"""What the base model writes as rows to train on."""

import re
import shutil

import pytest

from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.sampling import Sampling
from tunesmith.evaluate.probes import load_probes
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
    requests = [_words(prompt.text) for prompt in load_prompts() if prompt.kind == "request"]
    assert len(set(requests)) == len(requests) >= 200
    probes = load_probes(None)
    measured = [_words(text) for _, text in probes.prompts] + [_words(question.question) for question in probes.questions]
    for request in requests:
        for probe in measured:
            assert len(request & probe) < 0.7 * len(request | probe), (request, probe)
    beginnings = {prompt.text for prompt in load_prompts() if prompt.kind == "beginning"}
    assert not [text for text in beginnings for passage in probes.passages if passage.text.startswith(text)]


@pytest.fixture(scope="module")
def replayed(tiny_run, tmp_path_factory):
    """The tiny run trained again with a fifth more rows of the base model's."""
    path = tmp_path_factory.mktemp("replay") / "run"
    shutil.copytree(tiny_run.path, path, ignore=shutil.ignore_patterns("*.gguf", "merged"))
    run = RunDir(path)
    recipe = run.recipe()
    train = recipe.train.model_copy(update={"replay": 0.2})
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"train": train})))
    api.make(run, ["train"])
    return run


def test_rows_are_samples_of_the_base_model_and_what_it_wrote_alone_is_supervised(replayed, tiny_dir):
    rows, task = Documents.open(replayed.tokens("replay")), Documents.open(replayed.tokens("train"))
    count = replay_count(0.2, len(task))
    assert len(rows) == count == round(0.2 * len(task))
    renderer = base_of(replayed, replayed.recipe()).renderer
    chosen = load_prompts()[:count]
    prompts = [prompt.ids(renderer) for prompt in chosen]
    assert {prompt.kind for prompt in chosen} == {"request", "beginning"}
    model, stop_rule = load_model(tiny_dir, "fp32"), StopRule(NEW_TOKENS, renderer.stop_ids)
    written = greedy(model, prompts, stop_rule, 3, constrain=Sampling(replayed.recipe().seed).start)
    lines = Replayed.read_lines(replayed.data / "replay.jsonl")
    for number, (prompt, new, line) in enumerate(zip(prompts, written, lines, strict=True)):
        ((start, end),) = rows.spans(number).tolist()
        assert rows.ids(number).tolist() == prompt + new.ids and (start, end) == (len(prompt), len(rows.ids(number)))
        assert line.prompt == chosen[number].text and line.id == chosen[number].id == rows.row_id(number)


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
