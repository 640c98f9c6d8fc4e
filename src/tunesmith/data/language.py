"""In which languages the rows speak, and which rows answer in another language than they are asked in.

Judged on the sample (2,000 rows; about 0.3 ms a text) by py3langid, a naive Bayes model over byte n-grams of 140
languages (Lui and Baldwin 2012): it needs no download and no network. fastText is somewhat better and was refused for its
130 MB model. Short texts cannot be told apart by n-grams, so texts with fewer than 20 letters, JSON, code fences, and
texts that the model is not sure about are not judged, and the report says how many were.
"""

from collections import Counter
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tunesmith.data.finding import SHOWN, Example, Finding
from tunesmith.data.sample import Sampled
from tunesmith.rundir.records.quality import Languages

_LETTERS = 20
_CHARACTERS = 500  # read of a text
_SURE = 0.5  # probability from which a text counts
_OTHER = 0.8  # from which a row is shown as one of another language: names and lists read as small languages below it


@cache
def _identifier() -> LanguageIdentifier:
    """The model: 2 s to load, so only when a sample is judged."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str | None, float]:
    """ISO 639 code and probability; None for a text that cannot be judged."""
    text = text.strip()[:_CHARACTERS]
    if text[:1] in ("{", "[", "`") or sum(map(str.isalpha, text)) < _LETTERS:
        return None, 0.0
    language, probability = _identifier().classify(text)
    return (language, probability) if language not in ("zxx", "und") and probability >= _SURE else (None, probability)


def languages(rows: list[Sampled]) -> tuple[Languages, list[Finding]]:
    """Languages of prompts and answers over the sample, and up to two findings: a mix of languages, and answers in another
    language than their prompt.
    """
    prompts, answers = Counter(), Counter()
    other, both, by_language = [], 0, {}
    for row in rows:
        prompt, sure_prompt = language_of(row.prompt)
        answer, sure_answer = language_of(row.answer or "")
        prompts[prompt] += prompt is not None
        answers[answer] += answer is not None
        spoken, sure = (answer, sure_answer) if answer else (prompt, sure_prompt)
        if spoken and sure >= _OTHER:
            by_language.setdefault(spoken, []).append(row.row)
        if prompt and answer and min(sure_prompt, sure_answer) >= _OTHER:
            both += 1
            if prompt != answer:
                other.append(Example(row.row, f"asked in {prompt}, answered in {answer}"))
    findings: list[Finding] = []
    if other:
        most = len(other) > both / 2
        hint = "If the task is translation, this is right." if most else "A minority: the model learns to switch. Intended?"
        text = "sampled rows answered in another language than asked"
        shown = sorted(other, key=lambda example: example.row)[:SHOWN]
        findings.append(Finding("answer-language", "note" if most else "suspect", text, len(other), both, hint, shown))
    total = sum(map(len, by_language.values()))
    ranked = sorted(by_language, key=lambda language: (-len(by_language[language]), language))
    minority = sorted(number for language in ranked[1:] for number in by_language[language])
    if len(minority) >= max(3, 0.01 * total):
        mix = ", ".join(f"{language} {len(by_language[language]) / total:.0%}" for language in ranked[:6])
        hint = f"{mix}. Measure each language on its own in the test part; a few rows of one teach little of it."
        shown = [Example(number) for number in minority[:SHOWN]]
        findings.append(Finding("language-mix", "note", f"sampled rows not in {ranked[0]}", len(minority), total, hint, shown))
    record = Languages(
        sampled=len(rows),
        judged_prompts=prompts.total(),
        judged_answers=answers.total(),
        prompts=_shares(prompts),
        answers=_shares(answers),
    )
    return record, findings


def _shares(counts: Counter[str | None]) -> dict[str, float]:
    total = counts.total()
    named = [(language, count) for language, count in counts.items() if language and count]
    return {language: count / total for language, count in sorted(named, key=lambda item: (-item[1], item[0]))}
