import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from outputs import answers
from tunesmith.evaluate.metrics import make_metric
from tunesmith.recipe import Task

REFERENCES = [
    "The cat sat on the mat and looked at the dog.",
    "It is raining in the north of the country today.",
    "She sells sea shells by the sea shore every summer.",
]
ANSWERS = [
    "A cat sat on a mat and looked at the dog.",
    "It rains in the north of the land.",
    "Completely different words here, by the sea shore.",
]
ROWS = answers(ANSWERS, REFERENCES)


def test_rouge_is_rouge_score_on_english_and_reads_other_alphabets():
    metric = make_metric(Task(metric="rouge"))
    stock = RougeScorer(["rougeL", "rouge1", "rouge2"])
    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        expected = stock.score(reference, answer)
        found = metric.score(answer, reference)
        assert found == pytest.approx(
            {"score": expected["rougeL"].fmeasure, **{k: expected[k].fmeasure for k in ("rouge1", "rouge2")}}
        )
        assert metric.fits(reference)
    assert metric.fits("Ελλάδα") and metric.score("schöne Grüße", "schöner Grüße")["score"] == 0.5
    assert not metric.fits("...") and not metric.binary


def test_bleu_is_sacrebleu_of_the_corpus():
    metric = make_metric(Task(metric="bleu"))
    expected = BLEU().corpus_score(ANSWERS, [REFERENCES]).score / 100
    assert metric.corpus(ROWS) == pytest.approx(expected, abs=1e-9)
    drawn = [0, 0, 2]  # a bootstrap sample is that corpus
    again = BLEU().corpus_score([ANSWERS[i] for i in drawn], [[REFERENCES[i] for i in drawn]]).score / 100
    counts = metric.corpus.counts(ROWS)
    assert metric.corpus.value(counts[drawn].sum(0)[None]) == pytest.approx([again], abs=1e-9)
    row = metric.score(ANSWERS[0], REFERENCES[0])
    assert row["score"] == pytest.approx(BLEU(effective_order=True).sentence_score(ANSWERS[0], [REFERENCES[0]]).score / 100)
    assert row["chrf"] == pytest.approx(CHRF().sentence_score(ANSWERS[0], [REFERENCES[0]]).score / 100)


def test_short_references_can_be_perfect():
    metric = make_metric(Task(metric="bleu"))
    assert metric.corpus(answers(["a red car"], ["a red car"])) == 1.0
    assert metric.fits("red") and metric.fits(REFERENCES[0]) and not metric.fits("")
    assert metric.score("", "red")["score"] == 0.0
