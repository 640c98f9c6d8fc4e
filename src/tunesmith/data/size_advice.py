"""What the number of rows allows, said plainly before anybody pays for a GPU.

The test part decides what can be proved: with n paired test rows, of which 20 % change between right and wrong, the
smallest gain that a two-sided test at 5 % finds with 80 % power is (1.96 + 0.84) * sqrt(0.20 / n). The training part
decides what can be learned. The bounds are round numbers at which the advice changes, not laws: 200 difficult distinct
rows beat 5,000 copies of one template, which is why distinct prompts are counted beside rows.
"""

import math

from tunesmith.rundir.records.quality import SizeAdvice

BANDS = (
    (
        200,
        "below 200",
        "Prompting is the likely winner: put the best rows into the prompt as examples and measure that first. Tune only a "
        "fixed format or style, with a small rank (r 4-8) and 3-5 epochs, stopping on dev; collect more rows before "
        "believing a gain.",
    ),
    (
        500,
        "200-500",
        "Enough to teach a format, a tone or a few classes, rarely new knowledge: measure few-shot prompting first, then "
        "LoRA with r 8-16 and 2-4 epochs, watching dev for overfitting. The next hundred distinct rows are worth more "
        "than any setting.",
    ),
    (
        1000,
        "500-1,000",
        "A sound size for one narrow task: LoRA with r 16 on all linear layers, 2-3 epochs. Remove near duplicates and "
        "contradictions before adding rows; prompting is still the arm to beat.",
    ),
    (
        5000,
        "1,000-5,000",
        "The usual size at which a tuned small model beats prompting on a narrow task: r 16-32, 1-3 epochs. From here, "
        "covering rare cases and clean answers pay more than volume.",
    ),
    (
        10000,
        "5,000-10,000",
        "Ample for one task and workable for several: r 16-64, 1-2 epochs. Train on a half as well; if dev hardly moves "
        "between half and all, more rows of this kind will not help.",
    ),
    (
        math.inf,
        "above 10,000",
        "Volume is no longer the limit: one epoch is usually enough, r 32-64 or more if dev still falls as rank grows. "
        "Deduplicate, balance the kinds of rows, and try a distinct subset of 5,000: it often does as well.",
    ),
)


def detectable_gain(test_rows: int, discordance: float = 0.2) -> float:
    """Smallest difference of two paired success rates found with 80 % power at two-sided 5 %, as a fraction."""
    return 2.8016 * math.sqrt(discordance / test_rows) if test_rows else math.inf


def advice(
    rows: int,
    prompts: int | None = None,
    test_fraction: float = 0.15,
    test_rows: int | None = None,
    *,
    is_trained: bool = True,
) -> SizeAdvice:
    """Plain advice by size.

    Args:
        rows: distinct rows (after exact duplicates).
        prompts: distinct prompts among them; None for plain text.
        test_fraction: part that the split holds out.
        test_rows: rows of the test part, where the split is already made.
        is_trained: whether something is trained on them; else they are there to judge, and what to train is left out.
    """
    _, band, text = next(entry for entry in BANDS if rows < entry[0])
    tested = round(rows * test_fraction) if test_rows is None else test_rows
    gain = detectable_gain(tested)
    sentences = [text] if is_trained else []
    if tested and gain < 1:
        sentences.append(
            f"With {tested:,} test rows a gain below about {100 * gain:.1f} points cannot be told from chance "
            "(80 % power, if one row in five changes)."
        )
    else:
        sentences.append(f"{tested:,} test rows prove nothing: collect rows for the test first.")
    if prompts is not None and prompts < 0.8 * rows:
        sentences.append(
            f"There are {prompts:,} distinct prompts in {rows:,} rows: judge the size by the prompts. "
            "Distinct data, not more data."
        )
    return SizeAdvice(
        band=band,
        rows=rows,
        test_rows=tested,
        detectable_gain=gain if tested and gain < 1 else None,
        sentences=tuple(sentences),
    )
