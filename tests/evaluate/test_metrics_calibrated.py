import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputs import answers
from shared import write_recipe
from tunesmith.chat.render import Renderer
from tunesmith.engines.engine import Choices, Scored
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.open import output_constraint
from tunesmith.errors import RecipeError
from tunesmith.evaluate.arms import ask, summary
from tunesmith.evaluate.choose import choose
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.calibrated import calibration_error, threshold
from tunesmith.recipe import Task, load_recipe
from tunesmith.rundir.rows import Row

LABELS = ("ham", "spam")
TASK = Task(metric="calibrated", labels=LABELS)
METRIC = make_metric(TASK)


def _rows(spam_P, references):
    """Scored answers that give ``spam`` these probabilities."""
    texts = [json.dumps({"spam": float(p), "ham": float(1 - p)}) for p in spam_P]
    rows = [(row, dict(METRIC.score(row.output, row.reference))) for row in answers(texts, references)]
    return [replace(row, score=figures.pop("score"), figures=figures) for row, figures in rows]


def test_a_row_by_hand():
    answer = '{"spam": 0.7, "ham": 0.3}'
    assert METRIC.score(answer, "Spam.") == pytest.approx({"score": 1.0, "p_right": 0.7, "brier": 2 * 0.3**2})
    assert METRIC.score(answer, "ham") == pytest.approx({"score": 0.0, "p_right": 0.3, "brier": 2 * 0.7**2})
    for nothing in ("eggs", "", "[1]", "{", "[" * 5000):
        assert METRIC.score(nothing, "ham") == {"score": 0.0, "p_right": 0.0, "brier": 1.0}
    assert METRIC.fits("ham") and not METRIC.fits("eggs") and METRIC.binary


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.floats(0.05, 1.0))
def test_the_threshold_covers_most_of_what_reaches_the_target(rows, target):
    sure_N, right_N = np.array([p for p, _ in rows]), np.array([float(right) for _, right in rows])
    best = threshold(sure_N, right_N, target)
    reaching = [t for t in sure_N.tolist() if right_N[sure_N >= t].mean() >= target - 1e-12]
    assert best == min(reaching, default=float("inf"))


def test_calibration_error_is_small_where_sureness_is_the_share_of_right_answers_and_large_where_it_is_not():
    rng = np.random.default_rng(0)
    sure_N = rng.uniform(0.5, 1.0, 20_000)
    right_N = (rng.random(20_000) < sure_N).astype(float)
    assert calibration_error(sure_N, right_N) < 0.015
    assert calibration_error(np.full(20_000, 0.99), right_N) == pytest.approx(0.99 - right_N.mean())
    assert calibration_error(np.array([0.8, 0.6]), np.array([1.0, 0.0])) == pytest.approx(0.2)  # one bin of two rows


def test_coverage_is_measured_on_rows_that_did_not_choose_the_threshold():
    rng = np.random.default_rng(1)
    p_N = rng.uniform(0.5, 1.0, 4_000)
    rows = _rows(p_N, np.where(rng.random(4_000) < p_N, "spam", "ham"))
    coverage, precision = (METRIC.of_all[name](rows) for name in ("coverage", "precision"))
    assert coverage == pytest.approx(0.2, abs=0.06) and precision == pytest.approx(0.95, abs=0.02)  # sure 0.9 and more
    noise = _rows(rng.uniform(0.5, 1.0, 4_000), rng.choice(LABELS, 4_000))  # sureness that says nothing promises nothing
    assert METRIC.of_all["coverage"](noise) < 0.02
    half = make_metric(TASK.model_copy(update={"target_precision": 0.45}))
    assert half.of_all["coverage"](noise) > 0.98
    assert METRIC.of_all["precision"](_rows([0.9] * 4, ["ham"] * 4)) is None


def test_a_summary_holds_figures_of_all_rows():
    figures = summary("tuned", _rows([0.9, 0.8, 0.4, 0.7], ["spam", "spam", "ham", "ham"]), METRIC)
    assert figures.score == 0.75 and list(figures.figures) == ["p_right", "brier", "macro_f1", "ece", "coverage", "precision"]
    assert figures.figures["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert figures.figures["ece"] == pytest.approx(abs(np.mean([0.9, 0.8, 0.6, 0.7]) - 0.75))


class _Engine:
    """Scores each label by a table, and counts as engines do: in any portions."""

    def score(self, items, advance):
        for portion in (1, 2, len(items) - 3):
            advance(portion)
        return [Scored({"ham": -1.0, "spam": -3.0}[label], 7, len(label), False) for _, label in items]


def test_the_answer_is_the_softmax_of_the_labels():
    steps = []
    first, second = choose(_Engine(), [[{"role": "user", "content": text}] for text in "ab"], LABELS, steps.append)
    p = 1 / (1 + np.exp(-2.0))
    read = json.loads(first.text)
    assert read == pytest.approx({"ham": p, "spam": 1 - p}, abs=1e-6) and list(read) == ["ham", "spam"]
    assert (first.prompt_tokens, first.new_tokens, first.finished, sum(steps)) == (7, 3, True, 2) and second.text == first.text


def test_an_arm_is_asked_by_choosing_from_what_the_model_would_say(tiny_model, tokenizer):
    engine = InProcessEngine(tiny_model, Renderer(tokenizer), 2)
    prompts = [[{"role": "user", "content": text}] for text in ("a red car", "b")]
    rows = [Row(str(i), "line", [*prompt, {"role": "assistant", "content": "spam"}]) for i, prompt in enumerate(prompts)]
    allowed = output_constraint(TASK)
    assert allowed == Choices(LABELS)
    for row, prompt in zip(ask("tuned", engine, rows, prompts, METRIC, 8, allowed), prompts, strict=True):
        scores = engine.score([(prompt, label) for label in LABELS], lambda _: None)
        p_C = np.exp([score.logprob for score in scores])
        assert json.loads(row.output) == pytest.approx(dict(zip(LABELS, p_C / p_C.sum(), strict=True)), abs=1e-5)
        assert row.figures["p_right"] == json.loads(row.output)["spam"] and row.prompt_tokens == scores[0].prompt_tokens


@pytest.mark.parametrize(
    ("labels", "words"),
    [(("no", "not at all"), "'not at all' begins with 'no'"), (("a b", "A  b!"), "2 labels, and 1 that differ")],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels, words):
    with pytest.raises(RecipeError, match=words):
        make_metric(Task(metric="calibrated", labels=labels))


def test_an_endpoint_is_refused_when_the_recipe_is_read(tmp_path):
    changes = {
        "task": {"metric": "calibrated", "labels": list(LABELS)},
        "evaluate.arms": ["zero_shot", "external:other"],
        "evaluate.external": {"other": {"base_url": "http://here/v1", "model": "m"}},
    }
    with pytest.raises(RecipeError, match="log-probabilities of the labels, which no external arm gives"):
        load_recipe(write_recipe(tmp_path, tmp_path, changes))
