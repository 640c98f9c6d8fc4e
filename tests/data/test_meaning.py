"""Rows that mean something else than what they teach: what is found, what is settled on request, and what is left alone."""

import json

import pytest

from tunesmith.data.convert import convert
from tunesmith.data.quality import Quality
from tunesmith.data.read import Reader, ReadOptions
from tunesmith.data.rendered_text import FORMS
from tunesmith.data.task_columns import task_finding
from tunesmith.errors import DataError

SPLIT, TAKE = ReadOptions(reasoning="split"), ReadOptions(take="chosen")
ASK = {"role": "user", "content": "q"}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


def asking(content):
    return {"role": "user", "content": content}


def reader_of(tmp_path, rows, options=None):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Reader(tmp_path / "rows.jsonl", options or ReadOptions())


def findings(tmp_path, rows, options=None):
    """Code, number of rows and first excerpt of what is wrong with rows."""
    reader = reader_of(tmp_path, rows, options)
    quality = Quality(reasoning_is_text=reader.options.reasoning == "keep")
    for batch in reader.batches():
        quality.add(batch)
    report = quality.report(reader.summary())
    shown = [f for f in report.findings if f.severity == "wrong" or f.code == "null-argument"]
    return [(f.code, f.count, f.examples[0].excerpt if f.examples else "") for f in shown]


PARTED = [
    ("<think>\nwhy\n</think>\n\nso", "why", "so"),
    ("Why? 4.\n</think>\n\nso", "Why? 4.", "so"),
    ("<|begin_of_thought|>\n\nwhy\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nso\n\n<|end_of_solution|>", "why", "so"),
    *((f"<{word}>\nwhy\n</{word}>\n\nso", "why", "so") for word in ("thinking", "thought", "reasoning")),
    ("  <think>a <think> tag</think>so", "a <think> tag", "so"),
    ("[THINK]why[/THINK]so", "why", "so"),
    ("<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so<|return|>", "why", "so"),
    ("<|channel>thought\nwhy\n<channel|>so", "why", "so"),
]
NOT_PARTED = [
    ("<think>why and why", "never ends"),
    ("<think>a</think>b<think>c</think>d", "2 times"),
    ("Well.\n<think>a</think>\nb", "words stand before <think>"),
    ("<think>why</think>\n", "without an answer"),
    ("The tag is\n</think>\nand it ends thinking.", "no <think> opens it"),
    ("The tag is:\n\n</think>\n\nIt ends thinking.", "no <think> opens it"),
]
PROSE = ["Write <think> and </think> around it.", "Close it with </think> at the end.", "a > b and [THINKING] aloud"]
PROSE += ["An XML:\n<reasoning>\nwhy\n</reasoning>\n\nso", "The end is\n</thought>\n\nso."]


@pytest.mark.parametrize(("text", "thoughts", "answer"), PARTED)
def test_reasoning_in_a_text_is_found_and_split(tmp_path, text, thoughts, answer):
    rows = [{"messages": [ASK, said(text)]}]
    assert [found[:2] for found in findings(tmp_path, rows)] == [("reasoning-in-content", 1)]
    assert not findings(tmp_path, rows, ReadOptions(reasoning="keep"))
    reader = reader_of(tmp_path, rows, SPLIT)
    (row,) = reader
    assert row.messages == [ASK, said(answer, reasoning_content=thoughts)]
    assert any("1 rows: reasoning in the text" in note for note in reader.summary().notes)
    assert next(iter(reader_of(tmp_path, rows, ReadOptions(reasoning="keep")))).messages == rows[0]["messages"]


@pytest.mark.parametrize(("text", "reason"), NOT_PARTED)
def test_reasoning_that_cannot_be_told_from_the_answer_is_refused_by_place(tmp_path, text, reason):
    rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]}]
    assert findings(tmp_path, rows)[0][0] == "reasoning-in-content"
    with pytest.raises(DataError, match=rf"line 1, \$\.conversations\[1\]\.value: .*{reason}"):
        list(reader_of(tmp_path, rows, SPLIT))


@pytest.mark.parametrize("text", PROSE)
def test_a_tag_in_a_sentence_is_prose(tmp_path, text):
    rows = [{"messages": [ASK, said(text)]}]
    assert not findings(tmp_path, rows)
    (row,) = reader_of(tmp_path, rows, SPLIT)
    assert row.messages[1] == said(text)


def test_only_context_loses_its_reasoning(tmp_path):
    thinks = [ASK, said("<think>a</think>b", weight=0), ASK, said("<think>c</think>d")]
    reader = reader_of(tmp_path, [{"messages": thinks}], ReadOptions(reasoning="drop"))
    (row,) = reader
    assert row.messages == [ASK, said("b", weight=0), ASK, said("d", reasoning_content="c")]
    assert any("1 rows: turns of weight 0 lose their reasoning" in note for note in reader.summary().notes)


GOOD, BAD = [said("good")], [said("bad")]
HEAD = [ASK, said("first"), ASK]
CONTEXT = [ASK, said("first", weight=0), ASK]
ORDER = {"role": "system", "content": "s"}
NAMED = [("prompt", "response"), ("question", "answer"), ("query", "response"), ("instruction", "response")]
PREFERENCES = [
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [ASK, *GOOD]),
    ({"prompt": [ASK], "chosen": GOOD, "rejected": BAD}, [ASK, *GOOD]),
    ({"prompt": "q", "chosen": [ASK, *GOOD], "rejected": [ASK, *BAD]}, [ASK, *GOOD]),
    ({"prompt": "q", "messages": [ASK, *GOOD], "chosen": [ASK, *GOOD], "rejected": [ASK, *BAD]}, [ASK, *GOOD]),
    ({"chosen": [*HEAD, *GOOD], "rejected": [*HEAD, *BAD]}, [*CONTEXT, *GOOD]),
    ({"chosen_messages": [ASK, *GOOD], "rejected_messages": [ASK, *BAD]}, [ASK, *GOOD]),
    ({"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, [ASK, *GOOD]),
    ({"messages": [*HEAD, *GOOD], "rejected_response": "bad"}, [*CONTEXT, *GOOD]),
    ({"messages": HEAD, "chosen": GOOD[0], "rejected": BAD[0]}, [*CONTEXT, *GOOD]),
    ({"input": {"messages": [ASK], "tools": []}, "preferred_output": GOOD, "non_preferred_output": BAD}, [ASK, *GOOD]),
    ({"prompt": "q", "completion": "good", "label": True}, [ASK, *GOOD]),
    ({"instruction": "q", "output": "good", "kto_tag": "True"}, [ASK, *GOOD]),
    ({"messages": [ASK, *GOOD], "label": True}, [ASK, *GOOD]),
    ({"messages": [ASK, *BAD], "label": False}, None),
    ({"query": "q", "response": "good", "rejected_response": "bad"}, [ASK, *GOOD]),
    ({"question": "q", "answer": "good", "rejected": "bad"}, [ASK, *GOOD]),
    ({"prompt": "q", "chosen_response": "good", "rejected_response": "bad"}, [ASK, *GOOD]),
    ({"system": "s", "question": "q", "chosen": "good", "rejected": "bad"}, [ORDER, ASK, *GOOD]),
    *(({asked: "q", answered: "bad", mark: False}, None) for asked, answered in NAMED for mark in ("label", "kto_tag")),
]


@pytest.mark.parametrize(("row", "taken"), PREFERENCES)
def test_preference_data_is_refused_or_gives_its_good_half(tmp_path, row, taken):
    with pytest.raises(DataError, match="1 rows of preference data") as refusal:
        list(reader_of(tmp_path, [row]))
    assert "--take chosen" in refusal.value.hint
    # Beside a row that is good, so that one of a bad answer alone does not leave the file without any.
    reader = reader_of(tmp_path, [row, {"prompt": "other", "completion": "good", "label": True}], TAKE)
    assert [read.messages for read in reader][:-1] == ([] if taken is None else [taken])
    assert any(
        note.startswith("1 rows: left out" if taken is None else "2 rows: the chosen") for note in reader.summary().notes
    )


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (
            {"input": "q", "system_prompt": "s", "chosen": "good", "rejected": "bad"},
            TAKE,
            "--column prompt=input --column completion=chosen --column system=system_prompt",
        ),
        ({"prompt": "q", "rejected": "bad"}, TAKE, "no answer that is better"),
        ({"prompt": "other", "chosen": [ASK, *GOOD], "rejected": [ASK, *BAD]}, TAKE, "prompt is not what chosen begins with"),
        ({"prompt": "q", "completion": "a"}, TAKE, "no row of preference data"),
        ({"prompt": "q", "chosen": "a"}, ReadOptions(take="chosen", columns={"prompt": "q"}), "data.columns says already"),
    ],
)
def test_what_cannot_be_taken_is_said(tmp_path, row, options, reason):
    with pytest.raises(DataError) as refusal:
        list(reader_of(tmp_path, [row], options))
    assert reason in f"{refusal.value.message} {refusal.value.hint}"


def test_named_columns_read_bad_answers_and_say_so(tmp_path):
    rows = [{"q": "a", "a": "b", "label": False}, {"q": "c", "a": "d", "label": True}]
    reader = reader_of(tmp_path, rows, ReadOptions(columns={"prompt": "q", "completion": "a"}))
    assert len(list(reader)) == 2
    assert any(note.startswith("1 rows: an answer that label or kto_tag marks as false") for note in reader.summary().notes)


def test_a_class_is_no_preference(tmp_path):
    rows = [{"prompt": "q", "completion": "a", "label": 1}, {"prompt": "r", "completion": "a", "rejected": True}]
    assert len(list(reader_of(tmp_path, rows))) == 2


def marked(*labels, **more):
    """Rows with an answer and a label each, None for a row without one."""
    rows = [{"prompt": f"q{number}", "completion": "a", "label": label} for number, label in enumerate(labels)]
    return [{**{key: value for key, value in row.items() if value is not None}, **more} for row in rows]


@pytest.mark.parametrize(
    ("rows", "reason", "taken"),
    [
        (marked(1, 0, 1), "3 rows of preference data (answers marked label: 0 or 1, 1 of them 0)", 2),
        (marked(1.0, 0.0), "where label is a class and every answer is good: --column prompt=prompt --column completion=c", 1),
        (marked("1", "0"), "0 or 1", 1),
        ([{"question": "q", "answer": "a", "label": n} for n in (0, 1)], "--column instruction=question --column output=", 1),
        ([{"messages": [ASK, *GOOD], "label": n} for n in (0, 1)], "answer is good: --column messages=messages", 1),
        ([{"prompt": "q", "response": "a", "label": mark} for mark in (True, False)], "preference data", 1),
        (marked(True, None, False), "one row has no label (line 2) beside 2 answers marked true or false", "one row has no"),
        ([{"messages": [ASK, *GOOD]}, *marked(True)], "one row has no label (line 1)", "write label there, or remove"),
        (marked(1, None, 0), "answers marked label: 0 or 1, 1 of them 0", "one row has no label (line 2)"),
        (marked(0, 1, 2), None, "0 or 1 in some rows and 2 in others: classes"),
        (marked(1, 1), None, 2),
        (marked("good", "bad"), None, "no row of preference data"),
    ],
)
def test_numbers_and_gaps_among_the_marks_of_answers_are_settled_over_the_whole_file(tmp_path, rows, reason, taken):
    def outcome(options):
        try:
            return f"{len(list(reader_of(tmp_path, rows, options)))} rows"
        except DataError as error:
            return f"{error.message}\n{error.hint}"

    found = outcome(ReadOptions())
    assert found == f"{len(rows)} rows" if reason is None else reason in found and "--take chosen" in found
    assert (taken if isinstance(taken, str) else f"{taken} rows") in outcome(TAKE)
    named = ReadOptions(columns={"prompt": "prompt", "completion": "completion"})
    assert "completion" not in rows[0] or len(list(reader_of(tmp_path, rows, named))) == len(rows)


def declared(properties, required=(), **more):
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": "tide", "parameters": parameters}}


def calling(tools, arguments, name="tide"):
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"messages": [ASK, said(None, tool_calls=[call]), {"role": "tool", "content": "low"}, said("Low.")], "tools": tools}


TEXT = {"type": "string"}
DAY = {"$ref": "#/$defs/day"}
DAYS = {"$defs": {"day": {"enum": ["mon", "tue"]}}}
CALLS = [
    ([declared({"at": TEXT})], {"at": "Elm"}, {}),
    (None, {"whatever": 1}, {}),
    (None, {"whatever": None}, {"null-argument": "tide"}),
    ([declared({"n": {"type": "integer"}, "x": {"type": ["number", "null"]}})], {"n": 2.0, "x": None}, {}),
    ([declared({"at": TEXT}, additionalProperties=True)], {"other": 1}, {}),
    ([declared({"at": {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}})], {"at": ["a", "b"]}, {}),
    ([declared({"on": DAY}, **DAYS)], {"on": "mon"}, {}),
    ([declared({"at": TEXT})], {"port": "Elm"}, {"unknown-argument": "tide: port, declared are at"}),
    ([declared({"at": TEXT}, ["at"])], {}, {"missing-argument": "tide: at is missing"}),
    ([declared({"at": TEXT})], {"at": 7}, {"argument-type": "tide: at is integer, declared string"}),
    ([declared({"n": {"type": "integer"}})], {"n": True}, {"argument-type": "tide: n is boolean, declared integer"}),
    ([declared({"on": DAY}, **DAYS)], {"on": "sun"}, {"argument-type": "tide: on is 'sun', not one of 'mon', 'tue'"}),
    ([declared({"at": {"anyOf": [TEXT, {"type": "null"}]}})], {"at": 1}, {"argument-type": "tide: at is integer, which none"}),
    ([declared({"l": {"type": "array", "items": TEXT}})], {"l": ["a", 1]}, {"argument-type": "tide: l[1] is integer"}),
    ([declared({"o": declared({"p": TEXT})["function"]["parameters"]})], {"o": {"q": 1}}, {"unknown-argument": "tide: o.q"}),
    ([declared({"at": TEXT})] * 2, {"at": "Elm"}, {"duplicate-tool": "tide"}),
    ([{"name": "tide", "parameters": {"at": TEXT}}], {"at": "Elm"}, {"not-a-schema": "tide: at"}),
]


@pytest.mark.parametrize(("tools", "arguments", "wrong"), CALLS)
def test_calls_are_held_against_the_declared_tools(tmp_path, tools, arguments, wrong):
    seen = findings(tmp_path, [calling(tools, arguments)])
    assert {code for code, _, _ in seen} == {*wrong}
    assert all(excerpt.startswith(wrong[code]) for code, _, excerpt in seen)


def test_a_call_of_no_declared_function_is_named(tmp_path):
    ((code, rows, excerpt),) = findings(tmp_path, [calling([declared({})], {}, "rain"), calling([declared({})], {})])
    assert (code, rows, excerpt) == ("undeclared-tool", 1, "rain, declared are tide")


@pytest.mark.parametrize(
    ("row", "clean"),
    [
        (
            calling([declared({"at": TEXT, "line": None})], {"at": "Elm", "line": None}),
            calling([declared({"at": TEXT})], {"at": "Elm"}),
        ),
        (
            calling([declared({"o": declared({"p": {**TEXT, "enum": None}})["function"]["parameters"]})], {"o": {"q": None}}),
            calling([declared({"o": declared({"p": TEXT})["function"]["parameters"]})], {"o": {}}),
        ),
        # What a null could mean is kept: a declared null, an open object, a required argument, a default.
        (calling([declared({"at": {"type": ["string", "null"]}})], {"at": None}), None),
        (calling([declared({"at": TEXT}, additionalProperties=True)], {"on": None}), None),
        (calling([declared({"at": TEXT}, ["at"])], {"at": None}), None),
        (calling([declared({"at": {**TEXT, "default": None}})], {"at": "Elm"}), None),
        (calling(None, {"at": None}), None),
    ],
)
def test_only_nulls_that_can_mean_nothing_are_dropped(tmp_path, row, clean):
    reader = reader_of(tmp_path, [row])
    (read,) = reader
    (expected,) = reader_of(tmp_path, [clean or row])
    assert (read.id, read.messages, read.tools) == (expected.id, expected.messages, expected.tools)
    assert any("nulls dropped" in note for note in reader.summary().notes) == (clean is not None)
    if clean is None:
        written = [call["function"]["arguments"] for call in row["messages"][1]["tool_calls"]]
        assert [call["function"]["arguments"] for call in read.messages[1].get("tool_calls", ())] == written
        assert read.tools == row["tools"]


SYSTEM, QUESTION, ANSWER = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
RENDERED = {
    "ChatML": (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n",
        [SYSTEM, QUESTION, ANSWER],
    ),
    "<|start_header_id|>": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>",
        [SYSTEM, QUESTION, ANSWER],
    ),
    "<start_of_turn>": (
        "<bos><start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n",
        [QUESTION, ANSWER],
    ),
    "[INST]": (
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] u [/INST] a</s>",
        [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER],
    ),
    "<|user|>": ("<|system|>\ns</s>\n<|user|>\nu<|end|>\n<|assistant|>\na<|end|>\n", [SYSTEM, QUESTION, ANSWER]),
    "<｜User｜>": ("<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜>a<｜end▁of▁sentence｜>", [QUESTION, ANSWER]),
    "Alpaca": ("s\n\n### Instruction:\nu\n\n### Input:\n\n\n### Response:\na<|im_end|>\n", [SYSTEM, QUESTION, ANSWER]),
    "Human and Assistant": ("\n\nHuman: u\n\nAssistant: a\n\nHuman: u\n\nAssistant: a", [QUESTION, ANSWER, QUESTION, ANSWER]),
    "Guanaco": ("### Human: u### Assistant: a### Human: u### Assistant: a", [QUESTION, ANSWER, QUESTION, ANSWER]),
}


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_a_rendered_text_is_found_and_parsed_on_request(tmp_path, form):
    text, turns = RENDERED[form]
    assert [(code, count) for code, count, _ in findings(tmp_path, [{"text": text}])] == [("rendered-template", 1)]
    conversion = convert(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", ReadOptions(parse_template=True))
    (row,) = Reader(tmp_path / "out.jsonl")
    assert (row.kind, row.messages) == ("chat", turns)
    assert any(f"1 rows: texts in the form of {form}" in note for note in conversion.reading.notes)


@pytest.mark.parametrize(
    ("asked", "answer", "turns"),
    [
        (
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n",
            "a<|im_end|>",
            [SYSTEM, QUESTION, ANSWER],
        ),
        ("<s>[INST] u [/INST]", " a </s>", [QUESTION, ANSWER]),
        ("### Instruction:\nu\n\n### Response:\n", "a", [QUESTION, ANSWER]),
        ("\n\nHuman: u\n\nAssistant:", " a", [QUESTION, ANSWER]),
        ("u", "a</s>", [QUESTION, ANSWER]),
    ],
)
def test_a_rendered_prompt_is_found_and_parsed_on_request(tmp_path, asked, answer, turns):
    found = findings(tmp_path, [{"prompt": asked, "completion": answer}])
    assert [(code, count) for code, count, _ in found] == [("rendered-template", 1)]
    reader = reader_of(tmp_path, [{"prompt": asked, "completion": answer}], ReadOptions(parse_template=True))
    assert [row.messages for row in reader] == [turns]
    assert any(note.startswith("1 rows: ") for note in reader.summary().notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("an oak is a tree", "no marks of a template"),
        ("<|im_start|>user\nq<|im_end|>\nwords between<|im_start|>assistant\na<|im_end|>", "not a whole conversation"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "ChatML: no turn of the assistant"),
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<tool_call>{}</tool_call><|im_end|>", "holds tools or calls"),
        ("### Instruction:\nq\n### Response:\na\n### Instruction:\nr\n### Response:\nb", "not a whole conversation"),
    ],
)
def test_a_text_is_parsed_whole_or_refused(tmp_path, text, reason):
    with pytest.raises(DataError, match=rf"line 1, \$\.text: .*{reason}"):
        list(reader_of(tmp_path, [{"text": text}], ReadOptions(parse_template=True)))


def test_marks_of_a_template_within_a_turn_are_words(tmp_path):
    assert not findings(tmp_path, [{"messages": [asking("Human: hi\nBot: ho"), said("<s>old</s>")]}])
    assert not findings(tmp_path, [{"messages": [ASK, said("### Response: see <|im_start|>")]}])
    assert not findings(tmp_path, [{"text": "# A page\n### Human rights\nare [for] all"}])


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([ASK, said("<tool_call>\n{}")], ["call-in-text"]),
        ([ASK, said('Wait.\n[TOOL_CALLS] [{"name": "f"}]')], ["call-in-text"]),
        ([ASK, said("<function=f>\n<parameter=x>1</parameter></function>")], ["call-in-text"]),
        ([{"role": "system", "content": "<tools>[{'name': 'f'}]</tools>"}, ASK, said("a")], ["tools-in-text"]),
        ([ASK, said("Write <tool_call> before it and </tool_call> after.")], []),
        ([ASK, said("Calls stand in <tool_call>...</tool_call>")], []),
        ([{"role": "system", "content": "You see <tools></tools>."}, ASK, said("a")], []),
    ],
)
def test_calls_and_tools_that_stay_text_are_found_and_prose_is_not(tmp_path, turns, found):
    assert [code for code, _, _ in findings(tmp_path, [{"messages": turns}])] == found
    assert next(iter(reader_of(tmp_path, [{"messages": turns}]))).messages == turns


def test_a_table_of_texts_and_labels_is_told_from_plain_texts(tmp_path):
    rows = [{"text": "late again", "label": "complaint"}, {"text": "lovely", "label": "praise"}]
    assert findings(tmp_path, rows) == [("text-and-label", 2, "")]
    assert findings(tmp_path, [{"text": "hello", "role": "prompter"}]) == [("text-and-speaker", 1, "")]
    assert not findings(tmp_path, [{"text": "late again", "lang": "en"}])


HALVES = [  # rows, the turns read of them, and the options of the finding
    ({"instruction": "q", "context": "c", "output": "a"}, [asking("q\nc"), said("a")], None),
    ({"instruction": "q", "input": "", "context": "c", "output": "a"}, [asking("q\nc"), said("a")], None),
    ({"question": "q", "passage": "c", "answer": "a"}, [asking("q\nc"), said("a")], None),
    ({"prompt": "q", "response": "a", "history": [["c", "d"]]}, [asking("c"), said("d"), ASK, said("a")], None),
    ({"messages": [ASK, said("a")], "system_prompt": "s"}, [ORDER, ASK, said("a")], None),
    ({"messages": [ORDER, ASK, said("a")], "system_prompt": "s"}, [ORDER, ASK, said("a")], None),
    ({"prompt": "q", "response": "a", "system_prompt": "s"}, [ORDER, ASK, said("a")], None),
    ({"prompt": "q\nc", "response": "a", "context": "c", "options": ["a"]}, [asking("q\nc"), said("a")], None),
    (
        {"system": "s", "prompt": "q", "input": "c", "response": "a"},
        [ORDER, ASK, said("a")],
        "--column instruction=prompt --column input=input --column output=response --column system=system,",
    ),
    ({"question": "q", "reasoning": "b", "answer": "a"}, [ASK, said("a")], "reasoning would not be read"),
    ({"instruction": "q", "options": ["b", "c"], "output": "a"}, [ASK, said("a")], "options would not be read"),
]


@pytest.mark.parametrize(("row", "turns", "named"), HALVES)
def test_columns_of_the_question_are_read_or_named(tmp_path, row, turns, named):
    reader = reader_of(tmp_path, [row])
    assert [read.messages for read in reader] == [turns]
    found = [finding for finding in task_finding(reader.summary()) if finding.code == "part-left-out"]
    assert [finding.severity for finding in found] == ["wrong"] * (named is not None)
    assert named is None or named in found[0].hint


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (
            {"question": "q", "response": "a", "system_prompt": "s"},
            "--column completion=response --column system=system_prompt",
        ),
        ({"question": "q", "options": ["b"], "answer": "a"}, "options would not be read"),
        ({"input": "q", "text": "both", "output": "a"}, "--column prompt=input --column completion=output"),
        (
            {"problem": "q", "context": "c", "reply": "a"},
            "--column instruction=problem --column input=context --column output=reply",
        ),
    ],
)
def test_a_hint_of_columns_loses_nothing_when_obeyed(tmp_path, row, named):
    with pytest.raises(DataError) as refusal:
        list(reader_of(tmp_path, [row]))
    assert named in refusal.value.hint


@pytest.mark.parametrize(
    ("key", "reason"),
    [("finish_reason", "length"), ("stop_reason", "max_tokens"), ("finishReason", "MAX_TOKENS"), ("finish_reason", "stop")],
)
@pytest.mark.parametrize("row", [{"prompt": "q", "completion": "a"}, {"messages": [ASK, said("a")]}, {"text": "a"}])
def test_an_answer_that_was_cut_off_is_no_example(tmp_path, row, key, reason):
    reader = reader_of(tmp_path, [{**row, key: reason}])
    if reason == "stop":
        assert len(list(reader)) == 1
        return
    with pytest.raises(DataError, match=rf"\$\.{key}: the answer was cut off"):
        list(reader)


def test_a_single_turn_is_a_plain_text_when_named_so(tmp_path):
    rows = [{"messages": [said("an oak")]}]
    with pytest.raises(DataError, match="--format text"):
        list(reader_of(tmp_path, rows))
    (row,) = reader_of(tmp_path, rows, ReadOptions(format="text"))
    assert (row.kind, row.messages) == ("text", rows[0]["messages"])
