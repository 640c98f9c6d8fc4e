import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.conversation import check_messages, check_text, check_tools, is_plain
from tunesmith.data.problems import RowError

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def call(arguments="{}", name="f", **more):
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}, **more}],
    }


def result(**more):
    return {"role": "tool", "content": "r", **more}


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


# code -> (path, messages): one fault each, everything else right.
BAD = {
    "no-messages": [("", []), ("", None), ("", "hello"), ("", {"role": "user"})],
    "not-object": [("[1]", [USER, "b"])],
    "no-role": [("[0]", [{"content": "a"}, ANSWER]), ("[0]", [{"role": None, "content": "a"}, ANSWER])],
    "no-content": [("[0]", [{"role": "user"}, ANSWER]), ("[1]", [USER, {"role": "assistant", "content": None}])],
    "not-text": [
        ("[0].content", [{**USER, "content": 3}, ANSWER]),
        ("[0].content[0]", [{**USER, "content": ["a"]}, ANSWER]),
        ("[0].content[0]", [{**USER, "content": [{"type": ["image"]}]}, ANSWER]),
    ],
    "media": [
        ("[0].content[0]", [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]),
        ("[0].content[1]", [{**USER, "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}, ANSWER]),
        ("[0].content[0]", [{**USER, "content": [{"type": "image"}, {"type": "text", "text": "a"}]}, ANSWER]),
        ("[0].content[0]", [{**USER, "content": [{"image": "a.png"}, {"text": "a"}]}, ANSWER]),
        ("[2].content[0]", [USER, call(), result(content=[{"type": "video", "video": "a.mp4"}]), ANSWER]),
        ("[0].images", [{**USER, "images": ["a.png"]}, ANSWER]),
    ],
    "unknown-role": [("[0].role", [{"role": "usr", "content": "a"}, ANSWER]), ("[0].role", [{**USER, "role": []}, ANSWER])],
    "unknown-key": [("[1].wieght", [USER, {**ANSWER, "wieght": 1}])],
    "misplaced-key": [
        ("[0].tool_calls", [{**call(), **USER}, ANSWER]),
        ("[1].tool_call_id", [USER, {**ANSWER, "tool_call_id": "1"}]),
        ("[0].reasoning_content", [{**USER, "reasoning_content": "x"}, ANSWER]),
    ],
    "empty-text": [("[0].name", [{**USER, "name": ""}, ANSWER])],
    "empty-turn": [("[1].content", [USER, {**ANSWER, "content": " \n"}]), ("[0].content", [{**USER, "content": ""}, ANSWER])],
    "legacy-function-call": [
        ("[1]", [USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}]),
        ("[1]", [USER, {"role": "function", "name": "f", "content": "r"}, ANSWER]),
    ],
    "bad-weight": [
        ("[1].weight", [USER, {**ANSWER, "weight": 0.5}]),
        ("[1].weight", [USER, {**ANSWER, "weight": True}]),
        ("[0].weight", [{**USER, "weight": 1}, ANSWER]),
    ],
    "all-weights-zero": [("", [USER, {**ANSWER, "weight": 0}])],
    "no-assistant": [("", [USER]), ("", [SYSTEM, USER])],
    "two-systems": [("[1].role", [SYSTEM, {**SYSTEM, "role": "developer"}, USER, ANSWER])],
    "system-not-first": [("[2].role", [USER, ANSWER, SYSTEM, USER, ANSWER])],
    "assistant-first": [("[0].role", [ANSWER]), ("[1].role", [SYSTEM, ANSWER, USER, ANSWER])],
    "role-order": [
        ("[1].role", [USER, USER, ANSWER]),
        ("[2].role", [USER, ANSWER, ANSWER]),
        ("[4].role", [USER, call(), result(), USER, USER, ANSWER]),
    ],
    "no-answer": [("", [USER, ANSWER, USER]), ("", [USER, call(), result()])],
    "result-without-call": [
        ("[1]", [USER, result(), ANSWER]),
        ("[2]", [USER, ANSWER, result(), ANSWER]),
        ("[3]", [USER, call(), result(), result(), ANSWER]),
    ],
    "unknown-call-id": [("[2].tool_call_id", [USER, call(id="1"), result(tool_call_id="2"), ANSWER])],
    "call-without-result": [
        ("[2]", [USER, call(), USER, ANSWER]),
        ("[2]", [USER, call(), ANSWER]),
        (
            "[3]",
            [
                USER,
                {**call(), "tool_calls": [call(id=i)["tool_calls"][0] for i in "12"]},
                result(tool_call_id="1"),
                USER,
                ANSWER,
            ],
        ),
        (
            "[3]",
            [USER, {**call(), "tool_calls": [call(id=i)["tool_calls"][0] for i in "12"]}, result(tool_call_id="1"), ANSWER],
        ),
    ],
    "bad-tool-call": [
        ("[1].tool_calls", [USER, {"role": "assistant", "tool_calls": {"name": "f"}}]),
        ("[1].tool_calls[0]", [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}]),
        ("[1].tool_calls[0].function", [USER, call(name="")]),
        ("[1].tool_calls", [USER, {"role": "assistant", "tool_calls": [call(id="1")["tool_calls"][0]] * 2}]),
    ],
    "arguments-not-json": [("[1].tool_calls[0].function.arguments", [USER, call("{city: Paris}")])],
    "arguments-not-object": [
        ("[1].tool_calls[0].function.arguments", [USER, call("[1]")]),
        ("[1].tool_calls[0].function.arguments", [USER, call(None)]),
    ],
    "duplicate-key": [("[1].tool_calls[0].function.arguments", [USER, call('{"a": 1, "a": 2}')])],
    "not-finite": [
        ("[1].tool_calls[0].function.arguments", [USER, call('{"a": NaN}')]),
        ("[1].tool_calls[0].function.arguments.a", [USER, call('{"a": 1e999}')]),
    ],
    "too-deep": [("[1].tool_calls[0].function.arguments", [USER, call("[" * 100_000)])],
    "lone-surrogate": [
        ("[0].content", [{**USER, "content": "\ud800"}, ANSWER]),
        ("[0].name", [{**USER, "name": "\udc00"}, ANSWER]),
        ("[1].tool_calls[0].function.arguments.a[0]", [USER, call({"a": ["é\ud83d"]})]),
        ("[1].tool_calls[0].function.arguments", [USER, call({"\ud83d": 1})]),
        ("[1].tool_calls[0].function.arguments", [USER, call('{"a": "\\ud800"}')]),
        ("[1].tool_calls[0].function.name", [USER, call(name="\ud800")]),
    ],
}


@pytest.mark.parametrize(("code", "path", "messages"), [(code, *case) for code, cases in BAD.items() for case in cases])
def test_each_fault_has_its_code_path_and_hint(code, path, messages):
    assert code == "lone-surrogate" or not is_plain(messages)  # no parser lets half a pair through to the fast way
    with pytest.raises(RowError) as caught:
        check_messages(messages)
    assert (caught.value.code, caught.value.path) == (code, f"$.messages{path}")
    assert caught.value.message and caught.value.hint


def test_a_hundred_levels_are_kept_and_more_refused():
    assert check_messages([USER, call(nested(100))])[1]["tool_calls"][0]["function"]["arguments"] == nested(100)
    with pytest.raises(RowError) as caught:
        check_messages([USER, call(nested(101))])
    assert caught.value.code == "too-deep"


def test_nearest_role_and_key_are_named():
    for messages, word in [([{"role": "asistant", "content": "a"}], "assistant"), ([{**USER, "wieght": 1}], "weight")]:
        with pytest.raises(RowError, match=f"did you mean '{word}'"):
            check_messages(messages)


def test_form_kept():
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": "b"}]
    calls = [{"id": "1", "index": None, "function": {"name": "f", "arguments": '{"x": null}'}}]
    kept = check_messages(
        [
            {"role": "developer", "content": ""},
            {"role": "user", "content": parts, "tool_calls": None, "name": "Ada", "images": []},
            {"role": "assistant", "content": None, "tool_calls": calls, "weight": 0.0},
            {"role": "tool", "content": "", "tool_call_id": "1"},
            {"role": "assistant", "content": "c", "tool_calls": [], "reasoning_content": "r", "refusal": None},
        ]
    )
    assert kept == [
        {"role": "developer", "content": ""},
        {"role": "user", "content": "ab", "name": "Ada"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": None}}}],
            "weight": 0,
        },
        {"role": "tool", "content": "", "tool_call_id": "1"},
        {"role": "assistant", "content": "c", "reasoning_content": "r"},
    ]
    assert type(kept[2]["weight"]) is int
    assert check_messages(kept) == kept


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "developer", "user", "user", "assistant", "assistant", "tool", "x"]),
                "content": st.sampled_from(["a", "é", "", " ", "\ud800", None, 1]),
            }
        ),
        max_size=5,
    )
)
def test_the_fast_way_says_yes_only_where_the_slow_way_changes_nothing(messages):
    try:
        kept = check_messages(messages)
    except RowError:
        assert not is_plain(messages)
        return
    # The slow way also takes an empty system turn, and leaves out nulls.
    assert kept == messages and (is_plain(messages) or messages[0]["content"] in ("", " "))


def test_tools_in_any_form_become_one():
    bare = {"name": "f", "parameters": {"type": "object", "default": None}}
    whole = {"type": "function", "function": bare}
    for given_ in ([bare], [whole], [{"function": {**bare, "description": None}}], '[{"name": "f", "parameters": %s}]'):
        text = given_ % '{"type": "object", "default": null}' if isinstance(given_, str) else given_
        assert check_tools(text) == [whole]
    assert check_tools([]) is None and check_tools("") is None and check_tools("[]") is None and check_tools(None) is None


@pytest.mark.parametrize(
    ("code", "tools"),
    [
        ("bad-tools", {"name": "f"}),
        ("bad-tools", ["f"]),
        ("bad-tools", [{"parameters": {}}]),
        ("bad-tools", [{"type": "retrieval", "function": {"name": "f"}}]),
        ("bad-tools", [{"name": "f", "parameters": "{}"}]),
        ("not-json", "[{"),
        ("lone-surrogate", [{"name": "f", "description": "\ud800"}]),
        ("too-deep", [{"name": "f", "parameters": nested(101)}]),
    ],
)
def test_bad_tools(code, tools):
    with pytest.raises(RowError) as caught:
        check_tools(tools)
    assert caught.value.code == code and caught.value.path.startswith("$.tools")


def test_text_is_one_assistant_turn():
    assert check_text([ANSWER]) == [ANSWER]
    for turn in (USER, {**ANSWER, "content": " "}, {**ANSWER, "content": 1}, {**ANSWER, "weight": 1}, "b"):
        with pytest.raises(RowError):
            check_text([turn])
