"""ROUGE and BLEU, by the libraries that papers cite: rouge-score and sacrebleu (extra ``[metrics]``).

ROUGE: the headline of a row is the F-measure of ROUGE-L; ROUGE-1 and ROUGE-2 stand beside it; an arm's number is the
mean. Words are runs of letters, their marks (the vowel signs of Hindi too) and digits. rouge-score's own tokenizer keeps a-z
and 0-9 alone: it would cut a German word in pieces and drop a Greek one, and on English the two agree.

BLEU: an arm's number is corpus BLEU / 100, from n-gram counts summed over rows; the row's ``score`` is sentence BLEU, for
pairing rows. Orders that no row is long enough for are left out (``effective_order``), or a perfect arm on references
of three words would get 0; on longer ones this is sacrebleu's default, signature ``13a``, ``exp`` smoothing. The counts
of a row are kept, so that a bootstrap sample costs a sum and not a tokenization.

**Scripts without spaces** (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have no words that a rule could find; a whole clause
would be one, and partly right answers score 0. There ROUGE counts characters with their marks, and BLEU is sacrebleu's with its
tokenizer ``zh`` (Han) or ``char`` (the others). The reference's script decides, row by row, so every arm's answer is counted
alike; the figure ``by_character`` says for how many rows. Refused: ``ja-mecab``, whose scores follow from a dictionary of 50 MB
and its version.

Sources: Lin 2004; Papineni et al. 2002; Post 2018 (sacrebleu).
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import MissingPackage
from tunesmith.evaluate.metrics.characters import HAN, INDOCHINA, KANA, SPACELESS
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.resample import SumStatistic
from tunesmith.recipe import Task
from tunesmith.rundir.records.answers import Output

Tokenizer = Literal["13a", "zh", "char"]

ORDERS = 4


_HAN = re.compile(f"[{HAN}]")
_NOT_HAN = re.compile(f"[{KANA}{INDOCHINA}]")
_SPACELESS = re.compile(f"[{SPACELESS}]")


def tokenizer_of(reference: str) -> Tokenizer:
    """sacrebleu's tokenizer for a reference, from its script."""
    letters = sum(character.isalpha() for character in reference)
    if 2 * len(_SPACELESS.findall(reference)) >= letters and _NOT_HAN.search(reference):
        return "char"
    return "zh" if _HAN.search(reference) else "13a"


class _Words:
    """The tokenizer that rouge-score asks for: an object with ``tokenize``."""

    def tokenize(self, text: str) -> list[str]:
        """Runs of letters, marks and digits, folded in case; characters with their marks where a script has no spaces."""
        words: list[str] = []
        joins = False  # whether the next letter or digit goes on with the last word
        for character in unicodedata.normalize("NFC", text.lower()):
            category = unicodedata.category(character)[0]
            alone = _SPACELESS.match(character) is not None
            if category == "M" and words:
                words[-1] += character
            elif category in "LN":
                if joins and not alone:
                    words[-1] += character
                else:
                    words.append(character)
                joins = not alone
            else:
                joins = False
        return words


def rouge(task: Task) -> Metric:
    """ROUGE-L, with ROUGE-1 and ROUGE-2 beside it.

    Raises:
        MissingPackage: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge", "rouge-score") from error
    scorer = RougeScorer(["rougeL", "rouge1", "rouge2"], tokenizer=_Words())

    def score(answer: str, reference: str) -> Score:
        overlap = scorer.score(reference, answer)
        return {
            "score": float(overlap["rougeL"].fmeasure),
            "rouge1": float(overlap["rouge1"].fmeasure),
            "rouge2": float(overlap["rouge2"].fmeasure),
            "by_character": float(tokenizer_of(reference) != "13a"),
        }

    return Metric(name="rouge", score=score, tie_break="rouge1", binary=False)


def bleu(task: Task) -> Metric:
    """BLEU of the corpus, with chrF of the rows beside it.

    Raises:
        MissingPackage: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise _missing("bleu", "sacrebleu") from error
    meters = {name: BLEU(tokenize=name, effective_order=True) for name in get_args(Tokenizer)}
    characters = CHRF()

    @lru_cache(maxsize=65536)
    def ngrams(answer: str, reference: str) -> NDArray[np.float64]:
        """Matches of each order, n-grams of each order, and both lengths; shape (2 * ORDERS + 2,)."""
        bleu = meters[tokenizer_of(reference)].sentence_score(answer, [reference])
        return np.array([*bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len], dtype=np.float64)

    def counts(rows: Sequence[Output]) -> NDArray[np.float64]:
        return np.stack([ngrams(row.output, row.reference) for row in rows])

    def from_sums(sums: NDArray[np.float64]) -> float:
        numbers = [round(number) for number in sums.tolist()]
        bleu = BLEU.compute_bleu(numbers[:ORDERS], numbers[ORDERS:-2], *numbers[-2:], smooth_method="exp", effective_order=True)
        return min(1.0, round(bleu.score / 100.0, 12))  # the exponential of a sum of logarithms misses 1 by 1e-16

    def score(answer: str, reference: str) -> Score:
        return {
            "score": from_sums(ngrams(answer, reference)),
            "chrf": characters.sentence_score(answer, [reference]).score / 100.0,
            "by_character": float(tokenizer_of(reference) != "13a"),
        }

    corpus = SumStatistic(counts, lambda sums: np.apply_along_axis(from_sums, -1, sums))
    return Metric(name="bleu", score=score, corpus=corpus, tie_break="chrf", binary=False)


def _missing(metric: str, package: str) -> MissingPackage:
    return MissingPackage(
        f"task.metric: {metric} needs the package {package}, which is not installed", "pip install 'tunesmith[metrics]'"
    )
