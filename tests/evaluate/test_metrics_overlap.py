import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from outputs import answers
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.overlap import tokenizer_of
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
            {"score": expected["rougeL"].fmeasure, "rouge1": expected["rouge1"].fmeasure, "rouge2": expected["rouge2"].fmeasure}
            | {"by_character": 0.0}
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


@pytest.mark.parametrize(
    ("answer", "reference", "rouge1"),
    [
        ("我喜欢吃苹果和梨", "我喜欢吃苹果和桃", 7 / 8),
        ("私は猫が好きです", "私は犬が好きです", 7 / 8),
        ("ฉันชอบแมว", "ฉันชอบหมา", 12 / 16),  # six of eight are shared: a mark stays with its letter
        ("ຂ້ອຍ", "ຂ້ອນ", 2 / 3),
        ("用iPhone 手机", "用 iPhone手机", 1.0),
        ("मैं स्कूल जाता हूँ", "मैं स्कूल जाती हूँ", 3 / 4),
        ("हा", "हि", 0.0),
        ("ভালো", "ভালা", 0.0),
        ("나는 학교에 간다", "나는 학교에 왔다", 2 / 3),
        ("cafe\u0301 noir", "café noir", 1.0),
        ("１２", "13", 0.0),
    ],
)
def test_rouge_counts_what_a_script_has(answer, reference, rouge1):
    assert make_metric(Task(metric="rouge")).score(answer, reference)["rouge1"] == pytest.approx(rouge1)


@pytest.mark.parametrize(
    ("reference", "tokenizer"),
    [
        ("我喜欢吃苹果和桃，因为很甜。", "zh"),
        ("我用iPhone拍照", "zh"),
        ("東京都知事が挨拶をする", "char"),
        ("ฉันชอบหมา", "char"),
        ("The word 猫 is a noun", "zh"),
        ("The word ねこ is a noun", "13a"),
        ("मैं स्कूल जाती हूँ।", "13a"),
        ("나는 학교에 간다", "13a"),
        ("", "13a"),
    ],
)
def test_bleu_takes_sacrebleus_tokenizer_for_the_script_of_the_reference(reference, tokenizer):
    metric, stock = make_metric(Task(metric="bleu")), BLEU(tokenize=tokenizer, effective_order=True)
    assert tokenizer_of(reference) == tokenizer
    for answer in (reference, reference[: len(reference) // 2] + "x", "x"):
        row = metric.score(answer, reference)
        assert row["score"] == pytest.approx(stock.sentence_score(answer, [reference]).score / 100)
        assert row["by_character"] == float(tokenizer != "13a")


def test_bleu_of_a_chinese_corpus_is_sacrebleus():
    references = ["我喜欢吃苹果和桃", "今天北京的天气很好，我们去公园。", "他昨天没有来上课"]
    outputs = ["我喜欢吃苹果和梨", "今天北京天气很好，我们去了公园。", "他昨天来上课了"]
    expected = BLEU(tokenize="zh").corpus_score(outputs, [references]).score / 100
    assert (
        make_metric(Task(metric="bleu")).corpus(answers(outputs, references)) == pytest.approx(expected, abs=1e-9) and expected
    )
