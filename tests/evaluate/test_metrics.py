import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics import exact_match, json_score, make_scorer

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_json_headline_is_equality_and_f1_agrees_with_it(found, expected):
    score = json_score(json.dumps(found, indent=2), json.dumps(expected), None)
    same = json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert score["score"] == float(same) and score["parse"] == 1.0
    assert 0.0 <= score["field_f1"] <= 1.0
    if same:
        assert score["field_f1"] == 1.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"b": 2, "a": 1}', {"score": 1, "parse": 1, "field_f1": 1}),
        ('```json\n{"a": 1, "b": 2}\n```', {"score": 1, "parse": 1, "field_f1": 1}),
        ('{"a": 1, "b": 3}', {"score": 0, "parse": 1, "field_f1": 0.5}),
        ('{"a": 1}', {"score": 0, "parse": 1, "field_f1": 2 / 3}),
        ('{"a": true, "b": 2}', {"score": 0, "parse": 1, "field_f1": 0.5}),
        ('Sure! {"a": 1, "b": 2}', {"score": 0, "parse": 0, "field_f1": 0}),
        ("[" * 100_000, {"score": 0, "parse": 0, "field_f1": 0}),
    ],
)
def test_json_by_hand(answer, expected):
    assert json_score(answer, '{"a": 1, "b": 2}', None) == pytest.approx(expected)


def test_schema(tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["a"]}')
    scorer = make_scorer("json", schema)
    assert scorer('{"a": 2}', '{"a": 1}')["schema"] == 1.0
    assert scorer('{"b": 1}', '{"a": 1}')["schema"] == 0.0 and scorer("{", '{"a": 1}')["schema"] == 0.0
    for text in ("{", '{"type": 3}'):
        schema.write_text(text)
        with pytest.raises(RecipeError, match="not a JSON schema"):
            make_scorer("json", schema)
    with pytest.raises(RecipeError):
        make_scorer("json", tmp_path / "none.json")


def test_exact_match_beside_strict():
    assert exact_match(" Yes\n", "yes") == {"score": 1.0, "strict": 0.0}
    assert exact_match("yes", "yes") == {"score": 1.0, "strict": 1.0}
    assert exact_match("yes!", "yes") == {"score": 0.0, "strict": 0.0}
