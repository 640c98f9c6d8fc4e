import json
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.json_object import json_score
from tunesmith.evaluate.metrics.json_values import Values
from tunesmith.recipe import Task

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abcé", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_headline_is_equality_and_f1_agrees_with_it(given_value, expected):
    score = json_score(json.dumps(given_value, indent=2), json.dumps(expected), None)
    same = json.dumps(given_value, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert score["score"] == float(same) and score["parse"] == 1.0
    assert 0.0 <= score["field_f1"] <= 1.0
    if same:
        assert score["field_f1"] == 1.0


@given(values, values)
def test_field_f1_asks_neither_which_side_is_which_nor_for_the_order_of_items(a, b):
    f1 = json_score(json.dumps(a), json.dumps(b), None)["field_f1"]
    assert f1 == pytest.approx(json_score(json.dumps(b), json.dumps(a), None)["field_f1"])
    if isinstance(a, list):
        assert json_score(json.dumps(a[::-1]), json.dumps(a), None)["field_f1"] == 1.0


EQUAL = {  # answer: reference; a careful person calls them the same
    '{"b": 2, "a": 1}': '{"a": 1, "b": 2}',
    '{"a": 1.0}': '{"a": 1}',
    '{"a": 1e3}': '{"a": 1000}',
    '{"a": 1.5E-2}': '{"a": 0.015}',
    '{"a": -0.0}': '{"a": 0}',
    '{"a": 9007199254740993.0}': '{"a": 9007199254740993}',
    '{"a": "cafe\\u0301"}': '{"a": "café"}',
    '{"cafe\u0301": 1}': '{"café": 1}',
    '{"a": "\\/"}': '{"a": "/"}',
    '\ufeff{"a": 1}': '{"a": 1}',
    '```json\n{"a": 1}\n```': '{"a": 1}',
    '```JSON\n{"a": 1}\n```': '{"a": 1}',
    '```jsonc\n{"a": 1}```': '{"a": 1}',
    '```{"a": 1}```': '{"a": 1}',
    '```json {"a": 1} ```': '{"a": 1}',
    '````\n{"a": 1}\n````': '{"a": 1}',
    '  ~~~json\n{"a": 1}\n  ~~~': '{"a": 1}',
    '```json\n{"a": 1}': '{"a": 1}',
    'Sure! Here it is:\n```json\n{"a": 1}\n```\nHope this helps.': '{"a": 1}',
    "9" * 5000: "9" * 5000,
}
DIFFERENT = {  # answer: reference; they parse and are not the same
    '{"a": true}': '{"a": 1}',
    '{"a": "1"}': '{"a": 1}',
    '{"a": null}': "{}",
    '{"a": 9007199254740993}': '{"a": 9007199254740992}',
    '{"a": 1e400}': '{"a": 1e500}',
    '{"a": -1}': '{"a": 1}',
    '{"a": [1, 2]}': '{"a": [2, 1]}',
    '{"a": {}}': '{"a": []}',
    '{"a.b": 1}': '{"a": {"b": 1}}',
    '{"a[]": 1}': '{"a": [1]}',
    '"x "': '"x"',
}
UNREADABLE = [
    "",
    'Sure! {"a": 1}',
    '{"a": 1} {"a": 1}',
    '{"a": "WRONG", "a": 1}',
    '{"b": {"caf\u00e9": 1, "cafe\u0301": 1}}',
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"a": 01}',
    '{"a": 1.}',
    '{"a": .5}',
    '{"a": +1}',
    '{"a": 1,}',
    "[1 2]",
    "{'a': 1}",
    '{"a": "\n"}',
    '{"a": tru}',
    "1e" + "9" * 5000,
    "[" * 100_000,
    "[1}",
    '```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```',
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL.items())
def test_what_is_the_same_value(answer, reference):
    assert json_score(answer, reference, None) == {"score": 1.0, "parse": 1.0, "field_f1": 1.0}


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT.items())
def test_what_is_another_value(answer, reference):
    for a, b in ((answer, reference), (reference, answer)):
        score = json_score(a, b, None)
        assert score["score"] == 0.0 and score["parse"] == 1.0


@pytest.mark.parametrize("answer", UNREADABLE)
def test_what_is_no_json(answer):
    assert json_score(answer, '{"a": 1}', None) == {"score": 0.0, "parse": 0.0, "field_f1": 0.0}
    with pytest.raises(ValueError):
        json_score('{"a": 1}', answer, None)


@pytest.mark.parametrize("depth", [600, 1_000, 20_000])
def test_an_answer_that_is_nested_deep_is_wrong_and_ends_nothing(depth, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    metric = make_metric(Task(metric="json", json_schema=tmp_path / "schema.json"))
    for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        assert metric.score(deep, '{"a": 2}') | {"schema": 0.0} == {"score": 0.0, "parse": 1.0, "field_f1": 0.0, "schema": 0.0}
        assert metric.score(deep, deep)["score"] == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ('{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 0.5),
        ('{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
        ('{"a.b": 1}', '{"a": {"b": 1}}', 0.0),
        ('[{"x": 1, "y": 4}, {"x": 3, "y": 2}]', '[{"x": 1, "y": 2}, {"x": 3, "y": 4}]', 0.5),
        (
            '[{"t": 0, "i": 2, "n": 0}, {"t": 0, "i": 1, "n": 0}]',
            '[{"t": 0, "i": 1, "n": 5}, {"t": 0, "i": 2, "n": 5}]',
            4 / 6,
        ),
        ("[1, 1, 2]", "[1, 2, 2]", 4 / 6),
        ("[[1, 2], [3]]", "[[3, 4], [2, 1]]", 6 / 7),
    ],
)
def test_fields_by_hand(answer, reference, f1):
    assert json_score(answer, reference, None)["field_f1"] == pytest.approx(f1)


small_items = st.lists(st.dictionaries(st.sampled_from("xyz"), st.integers(0, 2), min_size=1), min_size=1, max_size=4)


@given(small_items, small_items)
def test_items_are_paired_hardly_worse_than_by_the_best_assignment(ours, theirs):
    table = Values()
    a, b = (table.read(json.dumps(items)) for items in (ours, theirs))
    one_by_one = [[len(x.items() & y.items()) for y in theirs] for x in ours]
    short, long = (one_by_one, len(theirs)) if len(ours) <= len(theirs) else ([*zip(*one_by_one, strict=True)], len(ours))
    best = max(
        sum(row[place] for row, place in zip(short, places, strict=True)) for places in permutations(range(long), len(short))
    )
    assert best / 3 <= table.shared(a, b) <= best


def test_schema(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["a"]}')
    metric = make_metric(Task(metric="json", json_schema=schema))
    assert metric.score('{"a": 2}', '{"a": 1}')["schema"] == 1.0
    assert metric.score('{"b": 1}', '{"a": 1}')["schema"] == 0.0 and metric.score("{", '{"a": 1}')["schema"] == 0.0
    assert metric.fits('{"a": 1}') and not metric.fits("{")
    for text in ("{", '{"type": 3}'):
        schema.write_text(text)
        with pytest.raises(RecipeError, match="not a JSON schema"):
            make_metric(Task(metric="json", json_schema=schema))
    with pytest.raises(RecipeError):
        make_metric(Task(metric="json", json_schema=tmp_path / "none.json"))
