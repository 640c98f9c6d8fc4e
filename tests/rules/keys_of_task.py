"""What each key of the task changes: what is asked, and how an answer is scored."""

import json
from dataclasses import replace

import pytest
from keys_of_data import ROWS, prompt_book

from outputs import answers
from tunesmith.engines.engine import Answer
from tunesmith.engines.open import output_constraint
from tunesmith.errors import RecipeError
from tunesmith.evaluate import prompts
from tunesmith.evaluate.compare import Comparison
from tunesmith.evaluate.gate import Case, decide, terms_of
from tunesmith.evaluate.judge import Pair, calibrate
from tunesmith.evaluate.metrics import make_metric
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.judge import make_judge
from tunesmith.recipe import Judge
from tunesmith.rundir.records.data import Rendered

GAIN = Comparison(gain=0.1, low=0.02, high=0.15, p=0.01, won=9, lost=1, n=80, units=80)


def _decided(recipe, tmp):
    return decide(Case(terms=terms_of(recipe.task), comparisons=(GAIN,), score=0.7, best_prompt_score=0.6)).decision


def _asked(recipe, tmp):
    book = prompt_book(recipe, tmp)
    return [book.messages(prompts.candidates(recipe, book.pool, arm)[0], ROWS[50]) for arm in ("instruction", "zero_shot")]


def _budget(recipe, tmp):
    api.data(run := api.open_run(tmp / "toy.yaml", tmp / f"run-{recipe.task.max_new_tokens}"))
    api.render(run)
    return Rendered.read(run.rendered_file).max_new_tokens


def _code(recipe, tmp):
    for name, tests in (("pass.jsonl", "assert x"), ("fail.jsonl", "assert not x")):
        (tmp / name).write_text(json.dumps({"reference": "x = 1", "tests": tests}))
    try:
        return make_metric(recipe.task).fits("x = 1")
    except RecipeError as error:
        return error.message


def _function(recipe, tmp):
    (tmp / "mine.py").write_text("def all(answer, reference): return 1\ndef none(answer, reference): return 0\n")
    return make_metric(recipe.task).score("a", "b")


def _coverage(recipe, tmp):
    rows = answers(["red"] * 4, ["red", "red", "red", "blue"])
    return make_metric(recipe.task).of_all["coverage"]([replace(row, score=float(row.reference == "red")) for row in rows])


class _Endpoint:
    def __init__(self, *asked):
        self.asked = list(asked)

    def generate(self, prompts, max_new_tokens, advance, allowed=None, tools=None):
        self.asked += prompts
        return [Answer("VERDICT: A", 1, 1, 0.0, True) for _ in prompts]

    def close(self):
        return None


def _judge(recipe):
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.pipeline.judge.OpenAIEndpoint", lambda *a: made.append(_Endpoint(*a)) or made[0])
        return make_judge(recipe)[0], made[0]


def _judge_asked(recipe, tmp):
    judge, endpoint = _judge(recipe)
    return judge.decide([Pair("q", "{}", '{"a": 1}', '{"a": 2}')]) and endpoint.asked


def _judge_checked(recipe, tmp):
    (tmp / "labels.jsonl").write_text('{"question": "q", "reference": "r", "a": "a", "b": "b", "label": "a"}')
    return calibrate(_judge(recipe)[0], recipe.task.judge.human_labels).reason


JUDGE = {"base_url": "http://here/v1", "model": "m", "rubric": "Short."}


FIXED = {  # what a key needs beside it
    "task.metric": {"task.json_schema": None},
    "task.labels": {"task.metric": "classification", "task.labels": ["red", "green"], "task.json_schema": None},
    "task.target_precision": {"task.metric": "calibrated", "task.labels": ["red", "blue"], "task.json_schema": None},
    "task.tolerance": {"task.metric": "numeric", "task.json_schema": None},
    "task.pattern": {"task.metric": "regex", "task.pattern": "x", "task.json_schema": None},
    "task.tests": {"task.metric": "code", "task.tests": "pass.jsonl", "task.allow_code": True, "task.json_schema": None},
    "task.allow_code": {"task.metric": "code", "task.tests": "pass.jsonl", "task.json_schema": None},
    "task.function": {"task.metric": "python", "task.function": "mine.py:all", "task.json_schema": None},
    **{f"task.judge.{key}": {"task": {"metric": "judge", "judge": dict(JUDGE)}} for key in Judge.model_fields},
}


OBSERVE = {
    "task.metric": ("exact_match", lambda r, t: make_metric(r.task).score('{"a":1}', '{"a": 1}')),
    "task.json_schema": (None, lambda r, t: make_metric(r.task).score("{}", "{}")),
    "task.constrained": (True, lambda r, t: (output_constraint(r.task), r.task.held_to)),
    "task.labels": (["red", "blue"], lambda r, t: make_metric(r.task).score("green", "red")),
    "task.target_precision": (0.5, _coverage),
    "task.tolerance": (1.0, lambda r, t: make_metric(r.task).score("2", "1")),
    "task.pattern": ("y", lambda r, t: make_metric(r.task).score("y", "xy")),
    "task.tests": ("fail.jsonl", _code),
    "task.allow_code": (True, _code),
    "task.function": ("mine.py:none", _function),
    "task.judge.base_url": ("http://other/v1", _judge_asked),
    "task.judge.model": ("other", _judge_asked),
    "task.judge.api_key_env": ("OTHER_KEY", _judge_asked),
    "task.judge.rubric": ("Other.", _judge_asked),
    "task.judge.human_labels": ("labels.jsonl", _judge_checked),
    "task.prompt": ("Other.", _asked),
    "task.short_prompt": ("Other.", _asked),
    "task.min_gain": (0.2, _decided),
    "task.certainty": ("worth", _decided),
    "task.min_score": (0.8, _decided),
    "task.max_new_tokens": (None, _budget),
}
