import pytest

from tunesmith.data.language import language_of, languages
from tunesmith.data.sample import Sampled

ENGLISH = "I would like to return the shoes that I bought in your shop last week."
GERMAN = "Ich möchte gerne die Schuhe zurückgeben, die ich letzte Woche gekauft habe."
FRENCH = "Je voudrais rendre les chaussures que j'ai achetées la semaine dernière."
RUSSIAN = "Я хотел бы вернуть обувь, которую купил в вашем магазине на прошлой неделе."


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr"), (RUSSIAN, "ru")])
def test_sentences_are_recognised(text, language):
    assert language_of(text)[0] == language


@pytest.mark.parametrize(
    "text",
    ["", "Positive", "12345 67890 " * 9, '{"name": "a value that is long enough to judge"}', "```python\nimport os\n```"],
)
def test_short_texts_and_code_are_not_judged(text):
    assert language_of(text)[0] is None


def test_answers_in_another_language_and_the_mix_are_found():
    rows = [Sampled(n, ENGLISH, ENGLISH) for n in range(90)]
    rows += [Sampled(n, GERMAN, GERMAN) for n in range(90, 98)] + [Sampled(98, FRENCH, ENGLISH), Sampled(99, "ok", "ok")]
    summary, found = languages(rows)
    assert summary.prompts == {"en": 90 / 99, "de": 8 / 99, "fr": 1 / 99}
    assert summary.answers == {"en": 91 / 99, "de": 8 / 99}
    assert (summary.judged_prompts, summary.judged_answers, summary.sampled) == (99, 99, 100)
    codes = {finding.code: finding for finding in found}
    assert [(example.row, example.excerpt) for example in codes["answer-language"].examples] == [
        (98, "asked in fr, answered in en")
    ]
    assert codes["answer-language"].severity == "suspect"
    assert [example.row for example in codes["language-mix"].examples] == list(range(90, 98))


def test_translation_is_a_note_and_plain_text_has_no_answer():
    _, found = languages([Sampled(n, ENGLISH, FRENCH) for n in range(20)])
    assert [finding.severity for finding in found if finding.code == "answer-language"] == ["note"]
    summary, found = languages([Sampled(n, GERMAN, None) for n in range(20)])
    assert found == [] and summary.prompts == {"de": 1.0} and summary.answers == {}
