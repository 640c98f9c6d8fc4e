from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputs import answers, outputs
from shared import write_recipe
from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics import METRICS, make_metric, scoring_key
from tunesmith.evaluate.resample import SumStatistic
from tunesmith.recipe import Judge, Task, load_recipe
from tunesmith.recipe.metrics import METRIC_KEYS


def test_an_invalid_answer_is_wrong_and_no_class_of_its_own():
    labels = ("red", "green", "blue")
    metric = make_metric(Task(metric="macro_f1", labels=labels))
    wanted = ["red"] * 4 + ["green"] * 2
    garbage = ["Red.", "red", "green", "dunno", "green", "purple"]
    rows = answers(garbage, wanted)
    # red: 2 right of 2 answered and 4 asked; green: 1 of 2 and 2; the two invalid answers cost recall; blue is not asked for
    assert metric.corpus(rows) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert metric.corpus(answers(["?"] * 6, wanted)) == 0.0
    assert metric.score("purple", "red") == {"score": 0.0, "strict": 0.0, "invalid": 1.0}
    assert metric.score("RED", "red") == {"score": 1.0, "strict": 0.0, "invalid": 0.0}
    assert metric.fits("blue") and not metric.fits("purple") and metric.binary
    assert make_metric(Task(metric="classification", labels=labels)).corpus is None
    with pytest.raises(RecipeError, match=r"2 labels, and 1 that differ"):
        make_metric(Task(metric="classification", labels=("a b", "A  b!")))


@given(st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from("abc")), min_size=1, max_size=12))
def test_macro_f1_is_the_mean_over_labels_that_are_asked_for(pairs):
    corpus = make_metric(Task(metric="macro_f1", labels=("class a", "class b", "class c"))).corpus
    rows = answers([f"class {a}" for a, _ in pairs], [f"class {b}" for _, b in pairs])
    f1 = []
    for name in {wanted for _, wanted in pairs}:
        hits = Counter((a == name, b == name) for a, b in pairs)
        f1.append(2 * hits[True, True] / (2 * hits[True, True] + hits[True, False] + hits[False, True]))
    assert corpus(rows) == pytest.approx(np.mean(f1))
    assert isinstance(corpus, SumStatistic)
    counts = corpus.counts(rows)
    drawn = np.stack([counts.sum(0), counts[:1].sum(0)])  # several samples at once are the samples one by one
    assert corpus.value(drawn) == pytest.approx([corpus(rows), corpus(rows[:1])])


def test_pattern_extracts_what_must_be_equal_and_cannot_hang(monkeypatch):
    monkeypatch.setattr("tunesmith.evaluate.metrics.pattern.SECONDS", 0.2)
    whole = make_metric(Task(metric="regex", pattern=r"\d{3}-\d{4}"))
    assert whole.score("call 555-1234", "555-1234")["score"] == 1.0 and whole.score("555-1234", "555-0000")["score"] == 0.0
    assert whole.fits("555-0000") and not whole.fits("none") and whole.score("none", "555-0000")["score"] == 0.0
    extracted = make_metric(Task(metric="regex", pattern=r"#### ?(?P<answer>.*)"))
    assert extracted.score("#### 3\nno: #### The 4.", "so #### 4")["score"] == 1.0
    assert extracted.score("#### 5", "so #### 4")["score"] == 0.0 and extracted.score("4", "#### 4")["score"] == 0.0
    assert extracted.score("####", "#### 4")["score"] == 0.0 and extracted.score("#### -4", "#### 4")["score"] == 0.0
    assert not extracted.fits("####")  # nothing is found, which any answer without one would equal
    slow = make_metric(Task(metric="regex", pattern=r"^(a|aa)+$"))
    assert slow.score("a" * 60 + "b", "aa") == {"score": 0.0, "timed_out": 1.0}
    with pytest.raises(RecipeError, match="not a regular expression"):
        make_metric(Task(metric="regex", pattern="("))


def test_users_function_and_its_errors_are_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def same(answer, reference):\n    return {'score': answer == reference, 'length': len(answer)}\n"
        "def half(answer, reference):\n    return 0.5\n"
        "def bad(answer, reference):\n    return 1 / len(answer)\n"
        "def high(answer, reference):\n    return 2\n"
        "def none(answer, reference):\n    return None\n"
    )

    def metric(name, path=file):
        return make_metric(Task(metric="python", function=f"{path}:{name}"))

    assert metric("same").score("ab", "ab") == {"score": 1.0, "length": 2.0}
    assert metric("half").score("a", "b") == {"score": 0.5} and not metric("half").fits("a")
    with pytest.raises(RecipeError, match=r"mine.py:6 raised ZeroDivisionError: division by zero on the answer ''"):
        metric("bad").score("", "x")
    for name, what in (("high", "the score 2"), ("none", "returned None as score")):
        with pytest.raises(RecipeError, match=what):
            metric(name).score("a", "b")
    with pytest.raises(RecipeError, match="has no function other"):
        metric("other")
    with pytest.raises(RecipeError, match="no Python file"):
        metric("same", tmp_path / "none.py")
    file.write_text("import json\njson.loads('{')\n")
    with pytest.raises(RecipeError, match=r"mine.py:2 raised JSONDecodeError.*when it was loaded"):
        metric("same")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"metric": "exact_match", "labels": ["a", "b"]}, "labels is read by metric: classification or macro_f1"),
        ({"metric": "exact_matc"}, "no such metric; did you mean exact_match"),
        ({"metric": "classification"}, "needs task.labels"),
        ({"metric": "classification", "labels": ["a"]}, "at least 2"),
        ({"metric": "regex"}, "needs task.pattern"),
        ({"metric": "json", "pattern": "x"}, "pattern is read by metric: regex or judge"),
        ({"metric": "numeric", "tolerance": -1}, "expected 0 or more"),
        ({"metric": "json", "tolerance": 0.1}, "tolerance is read by"),
        ({"metric": "json", "constrained": True}, "constrained needs task.json_schema"),
        ({"metric": "code", "allow_code": True}, "needs task.tests"),
        ({"metric": "python", "function": "mine.py"}, "function is written file.py:name"),
        ({"metric": "judge"}, "needs task.judge.base_url"),
        ({"metric": "calibrated"}, "needs task.labels"),
        (
            {"metric": "classification", "labels": ["a", "b"], "target_precision": 0.9},
            "target_precision is read by",
        ),
        ({"metric": "json", "judge": {"model": "x"}}, "judge is read by metric: judge"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path, task, said):
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(write_recipe(tmp_path, tmp_path, {"task": task}))
    assert "task" in error.value.message and error.value.hint


def test_headline_leaves_unscored_rows_out():
    rows = outputs([1.0, None, 0.0, 1.0])
    metric = make_metric(Task(metric="exact_match"))
    assert metric.headline(rows) == pytest.approx(2 / 3) and metric.headline(rows[1:2]) is None


def test_the_recipe_knows_the_metrics_that_there_are():
    assert list(METRICS) == list(METRIC_KEYS)
    keys = set(Task.model_fields)
    for name, metric in METRIC_KEYS.items():
        assert {key.partition(".")[0] for key in (*metric.reads, *metric.needs)} <= keys, name
        assert {key.partition(".")[0] for key in metric.needs} <= set(metric.reads), f"{name} needs what it does not read"
    assert set(Task.model_json_schema()["properties"]["metric"]["enum"]) == set(METRICS)


def test_scoring_follows_the_content_of_files(tmp_path):
    file = tmp_path / "mine.py"
    seen = []
    for text in ("a = 1\n", "a = 2\n"):
        file.write_text(text)
        seen.append(scoring_key(Task(metric="python", function=f"{file}:f")))
    assert seen[0] != seen[1]
    judges = [Judge(base_url="http://x", model=model, rubric="r") for model in ("m", "n")]
    assert scoring_key(Task(metric="judge", judge=judges[0])) != scoring_key(Task(metric="judge", judge=judges[1]))
