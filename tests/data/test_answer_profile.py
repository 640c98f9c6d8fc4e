import json
import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from tunesmith.data.answer_profile import Answers, word_counts
from tunesmith.data.classes import folded_label
from tunesmith.rundir.records.quality import JsonKey


def collected(answers, called=None):
    answered = Answers()
    texts = pa.array([(answer or "").encode("utf-8", "surrogatepass") for answer in answers], pa.large_binary())
    answered.add(answers, called or [False] * len(answers), texts)
    return answered


def found(answers, called=None):
    return {finding.code: finding for finding in collected(answers, called).findings()}


def shown(finding):
    return [example.row for example in finding.examples]


PROSE = (
    "This is an answer of more than twenty words, written so that it counts as prose and so that its end can be judged well."
)


@given(st.lists(st.text(st.sampled_from("ab é\n\t日"), max_size=12), max_size=20))
def test_words_are_those_of_split(texts):
    array = pa.array([text.encode() for text in texts], pa.large_binary())
    assert word_counts(array).tolist() == [len(text.split()) for text in texts]
    if len(texts) > 2:
        assert word_counts(array[1:-1]).tolist() == [len(text.split()) for text in texts[1:-1]]


def test_broken_fenced_and_bare_text_among_json_are_told_apart():
    answers = [json.dumps({"city": f"town {n}", "zip": n}) for n in range(95)]
    answers += ['{"city": "x", "zip": }', '```json\n{"city": "x", "zip": 1}\n```', "The city is x", "[1, 2]", '{"a": NaN}']
    codes = found(answers)
    assert shown(codes["broken-json"]) == [95, 99] and codes["broken-json"].severity == "wrong"
    assert shown(codes["fenced-answers"]) == [96]
    others = [finding for finding in collected(answers).findings() if finding.code == "other-format"]
    assert sorted(row for finding in others for row in shown(finding)) == [97, 98]
    assert collected(answers).formats().majority == "JSON object"


def test_without_a_majority_of_json_a_bracket_is_only_a_bracket():
    answers = [f"[Note {n}] {PROSE}" for n in range(50)] + ['{"a": 1}']
    assert not {"broken-json", "other-format", "json-keys"} & set(found(answers))


def test_a_minority_of_keys_and_types_is_named():
    answers = [json.dumps({"name": f"n{n}", "age": n if n % 2 else n / 3}) for n in range(96)]
    answers += [
        '{"age": 1, "name": "swapped"}',
        '{"name": "x", "agge": 3}',
        '{"name": "x", "age": "40"}',
        '{"name": null, "age": 3}',
    ]
    codes = found(answers)
    assert shown(codes["json-keys"]) == [97]
    assert codes["json-keys"].examples[0].excerpt == "missing 'age', extra 'agge'"
    assert shown(codes["json-types"]) == [98] and "'age' is string, mostly number" in codes["json-types"].examples[0].excerpt
    shapes = collected(answers).shapes()
    assert shapes is not None
    assert shapes.common_keys == ("age", "name") and shapes.common_share == 0.99
    assert shapes.keys["age"] == JsonKey(share=0.99, types={"number": 98, "string": 1})


def test_optional_keys_are_no_error_but_a_rare_one_is_shown():
    answers = [
        json.dumps({"a": "1", **({"b": "2"} if n % 2 else {"c": "3"}), **({"d": "4"} if n % 3 else {})}) for n in range(200)
    ]
    assert "json-keys" not in found(answers)
    assert shown(found([*answers, '{"a": "1", "bb": "2"}'])["json-keys"]) == [200]


def test_keys_that_are_data_stay_bounded():
    answered = collected([json.dumps({f"key {n}": n}) for n in range(6000)])
    shapes = answered.shapes()
    assert shapes is not None and (shapes.objects, shapes.not_judged) == (4096, 1904)
    assert answered.formats().counts == {"JSON object": 6000}


def test_class_balance_is_counted():
    answers = ["positive"] * 70 + ["negative"] * 25 + ["mixed"] * 5
    classes = collected(answers).classes()
    assert classes is not None
    assert classes.counts == dict(Counter(answers))
    assert classes.entropy_bits == pytest.approx(entropy([70, 25, 5], base=2))
    assert classes.entropy_share == pytest.approx(entropy([70, 25, 5], base=3))
    assert classes.majority_share == 0.7 and classes.below_10 == ("mixed",)
    assert shown(found(answers)["rare-classes"]) == [95, 96, 97, 98, 99]
    assert "imbalance" in found(["yes"] * 95 + ["no"] * 20 + ["yes"] * 300)


def test_variants_of_a_class_and_answers_outside_are_found():
    answers = ["Positive"] * 500 + ["Negative"] * 480 + ["positive."] * 3 + ["Positive "] + [PROSE]
    codes = found(answers)
    assert shown(codes["label-variants"]) == [980, 981, 982, 983]
    assert codes["label-variants"].examples[0].excerpt == "'positive.', elsewhere 'Positive'"
    assert shown(codes["not-a-class"]) == [984]
    assert shown(codes["edge-white-space"]) == [983]


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("C", "C#"), ("C", "C++"), ("A", "B"), ("+", "-"), (".5", "5"), ("!", "?")]
)
def test_labels_that_differ_in_sense_stay_apart(one, other):
    assert folded_label(one) != folded_label(other)


@pytest.mark.parametrize("other", ["not_spam", "Not Spam", "not-spam.", ' "not spam" ', "NOT  SPAM"])
def test_spellings_of_one_label_meet(other):
    assert folded_label(other) == folded_label("not spam")


@given(st.lists(st.text(min_size=30, max_size=40), min_size=20, max_size=40, unique=True))
def test_free_answers_are_no_classes(answers):
    assert collected(answers).classes() is None


def test_a_one_off_tail_does_not_hide_the_classes():
    answers = ["spam"] * 500 + ["ham"] * 500 + [f"spam because {n}" for n in range(60)]
    classes = collected(answers).classes()
    assert classes is not None and classes.counts == {"spam": 500, "ham": 500}
    assert found(answers)["not-a-class"].count == 60


def test_empty_one_word_and_cut_answers_are_found():
    answers = [PROSE] * 95 + ["", "  ", "Yes", PROSE[:-1], "word"]
    codes = found(answers)
    assert shown(codes["empty-answers"]) == [95, 96]
    assert shown(codes["one-word-answers"]) == [97, 99]
    assert shown(codes["cut-off"]) == [98]


def test_a_tool_call_is_not_an_empty_answer_and_a_missing_answer_is_not_judged():
    called = [False] * 50 + [True, False]
    answered = collected([PROSE] * 50 + ["", None], called)
    assert answered.formats().counts == {"tool call": 1, "text": 50}
    assert "empty-answers" not in found([PROSE] * 50 + ["", None], called)


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("as-an-ai", "As an AI language model, I have no feelings."),
        ("as-an-ai", "well, i’m an AI, so no"),
        ("refusal", "I'm sorry, but I can't help with that."),
        ("refusal", "I cannot provide this information."),
        ("knowledge-cutoff", "As of my last update in 2021, it stood."),
        ("filler-opening", "Sure! Here is the list:"),
        ("filler-opening", "Certainly, here's a poem"),
    ],
)
def test_phrases_of_other_assistants_are_found(code, answer):
    assert shown(found([PROSE, answer])[code]) == [1]


@pytest.mark.parametrize(
    "answer", ["As an airline, we fly.", "I cannot wait to see it!", "He is sure here it rains.", "I am sorry for the delay."]
)
def test_ordinary_sentences_are_no_boilerplate(answer):
    assert not {"as-an-ai", "refusal", "knowledge-cutoff", "filler-opening"} & set(found([answer]))


def test_excerpts_mask_secrets():
    key = "sk-" + "a1B2" * 9
    answers = [json.dumps({"k": n}) for n in range(40)] + [
        f" {key} ",
        f"```{key}```",
        '{"' + key + '": 1}',
        f"I cannot help with {key}",
    ]
    answered = collected(answers)
    written = repr(answered.findings()) + repr(answered.shapes()) + repr(answered.classes())
    assert "sk-a" in written and key[:8] not in written


def test_entropy_of_one_class_is_zero():
    classes = collected(["ok"] * 30).classes()
    assert classes is not None and classes.entropy_bits == 0 and math.copysign(1, classes.entropy_bits) == 1
