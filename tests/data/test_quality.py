import json
import subprocess
import sys
import tracemalloc
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.lengths import histogram
from tunesmith.data.quality import Quality, headlines
from tunesmith.data.row_hash import content_hash, prompt_hash
from tunesmith.rundir.records.quality import Duplicates, Prompts, QualityReport, SingleTurn
from tunesmith.rundir.rows import Row


def row(place, *turns, kind="chat", tools=None, **last):
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[-1] |= last
    return Row(content_hash(messages, tools, kind).hex()[:12], f"line {place}", messages, tools, kind=kind)


def ask(place, prompt, answer, **last):
    return row(place, ("user", prompt), ("assistant", answer), **last)


def report(rows, size=2048):
    quality = Quality()
    for start in range(0, len(rows), size):
        quality.add(rows[start : start + size])
    return quality.report()


def findings(reported):
    return {finding.code: finding for finding in reported.findings}


# White space that ``str.split`` removes and ``normalized`` keeps in ASCII texts is left out of the alphabet.
words = st.text(st.sampled_from("abAB \n.é{}1"), max_size=6)
calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), words), min_size=1, max_size=4)
rows_drawn = st.lists(
    st.builds(
        lambda drawn, kind, tools, extra: (drawn, kind, tools, extra),
        turns,
        st.sampled_from(["chat", "chat", "text"]),
        st.sampled_from([None, None, [{"type": "function", "function": {"name": "f"}}]]),
        st.sampled_from([{}, {}, {"weight": 0}, {"tool_calls": calls}]),
    ),
    max_size=40,
)


def made(drawn):
    rows = []
    for place, (spoken, kind, tools, extra) in enumerate(drawn, 1):
        if kind == "text":
            rows.append(row(place, ("assistant", spoken[0][1]), kind="text"))
        else:
            rows.append(row(place, *spoken, tools=tools, **(extra if spoken[-1][0] == "assistant" else {})))
    return rows


@given(rows_drawn)
def test_duplicates_and_conflicts_are_those_of_the_row_hashes(drawn):
    rows = made(drawn)
    reported = report(rows)
    contents = Counter(content_hash(each.messages, each.tools, each.kind) for each in rows)
    assert reported.duplicates == Duplicates(rows=len(rows) - len(contents), distinct=len(contents))

    firsts = {content_hash(each.messages, each.tools, each.kind): each for each in reversed(rows)}.values()
    answers = defaultdict(list)
    for each in firsts:
        if each.kind == "chat" and len(each.messages) > 1:
            last = each.messages[-1]
            answers[prompt_hash(each.messages, each.tools)].append((last["content"].strip(), "tool_calls" in last))
    several = [given for given in answers.values() if len(set(given)) > 1]
    assert reported.prompts == Prompts(
        rows=sum(map(len, answers.values())),
        distinct=len(answers),
        conflicting_prompts=len(several),
        conflicting_rows=sum(map(len, several)),
    )


@given(rows_drawn, st.integers(1, 7))
def test_the_report_does_not_depend_on_batches(drawn, size):
    rows = made(drawn)
    assert report(rows, size) == report(rows)


def test_the_report_is_the_same_in_another_process(tmp_path):
    # Python's own hashes are salted anew in every process.
    program = (
        "import json, random\n"
        "from tunesmith.data.quality import Quality\n"
        "from tunesmith.data.row_hash import content_hash\n"
        "from tunesmith.rundir.rows import Row\n"
        "draw, quality = random.Random(0), Quality()\n"
        "for n in range(300):\n"
        "    said = f'q{draw.randrange(60)}', f'a{draw.randrange(9)}'\n"
        "    m = [{'role': role, 'content': text} for role, text in zip(['user', 'assistant'], said)]\n"
        "    quality.add([Row(content_hash(m).hex()[:12], f'line {n}', m)])\n"
        "print(json.dumps(quality.report().to_json()))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])["prompts"]["conflicting_prompts"] > 20


def test_examples_name_the_rows_and_the_first_of_their_kind():
    rows = [ask(n, f"question {n}", f"answer {n}") for n in range(1, 3001)]
    rows[2999] = ask(3000, "question 7", "answer 7")
    rows[2500] = ask(2501, "Question  8", "another answer")
    found = findings(report(rows))
    (copy,) = found["exact-duplicates"].examples
    assert (copy.place, copy.id, copy.same_as.place) == ("line 3000", rows[2999].id, "line 7")
    (conflict,) = found["conflicting-answers"].examples
    assert (conflict.place, conflict.same_as.place) == ("line 2501", "line 8")
    assert found["conflicting-answers"].count == 2 and found["conflicting-answers"].severity == "wrong"


def test_lengths_turns_and_supervision_are_counted():
    rows = [
        row(1, ("system", "ss"), ("user", "uuu"), ("assistant", "a" * 10)),
        row(2, ("user", "u"), ("assistant", "b" * 4), ("user", "u" * 5), ("assistant", "c" * 6), weight=0),
        row(3, ("assistant", "plain text"), kind="text"),
    ]
    reported = report(rows)
    assert (reported.chat_rows, reported.text_rows) == (2, 1)
    assert reported.turns == {"2": 1, "4": 1}
    assert reported.supervised_turns == {"1": 2}
    assert reported.supervised_share == (10 + 4 + 10) / (15 + 16 + 10)
    assert reported.single_turn == SingleTurn(count=1, share=0.5, note="")
    lengths = reported.lengths
    assert [(entry.place, entry.length) for entry in lengths.answer.longest] == [("line 1", 10), ("line 2", 4)]
    assert [entry.length for entry in lengths.prompt.longest] == [5, 1]
    assert (lengths.whole.min, lengths.whole.max) == (10, 16)


@given(st.lists(st.integers(0, 10**6), max_size=50), st.booleans())
def test_histogram_holds_every_value_once(values, log):
    drawn = histogram(np.array(values, np.int64), log)
    edges, counts = drawn.edges, drawn.counts
    assert sum(counts) == len(values) and len(edges) == (len(counts) + 1 if values else 0)
    assert list(edges) == sorted(set(edges))
    expected = [sum(low <= value < high for value in values) for low, high in pairwise(edges)]
    assert list(counts) == expected


def test_single_turn_data_is_said():
    rows = [ask(n, f"question {n}", f"answer {n}") for n in range(5)]
    assert "multi-turn chat was never shown" in findings(report(rows))["single-turn"].text
    rows.append(row(9, ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert "single-turn" not in findings(report(rows))


def test_findings_are_sorted_and_the_headlines_name_places():
    key = "sk-" + "a1B2" * 8
    rows = [ask(n, f"question {n} of many", f"answer {n}") for n in range(1, 60)] + [ask(60, f"use {key}", "done")] * 2
    reported = report(rows)
    assert [f.severity for f in reported.findings] == sorted(
        (f.severity for f in reported.findings), key=["wrong", "suspect", "note"].index
    )
    lines = headlines(reported)
    assert lines[0].startswith("61 rows (60 distinct), 2 turns")
    assert "line 60" in lines[1] and "OpenAI" in lines[1]
    assert key not in json.dumps(reported.to_json()) and key not in "\n".join(lines)


@pytest.mark.parametrize("rows", [[], [ask(1, "\ud800 lone", "\ud800")], [row(1, ("assistant", ""), kind="text")]])
def test_odd_data_still_give_a_report_that_can_be_written(rows):
    reported = report(rows)
    text = json.dumps(reported.to_json(), allow_nan=False)
    assert QualityReport.parse(text) == reported
    json.dumps(reported.to_json(), ensure_ascii=False).encode("utf-8")
    assert headlines(reported)[0].startswith(f"{len(rows)} rows")


def test_memory_a_row_is_below_100_bytes():
    quality = Quality()
    quality._sample.threshold = ""  # of constant size, but not yet full in so few rows
    answer = "an answer that is too long to be counted as one of a few classes, with number"
    held = []
    tracemalloc.start()
    for start in range(0, 6 * 2048, 2048):
        quality.add([ask(n, f"a question with number {n}", f"{answer} {n}") for n in range(start, start + 2048)])
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[1] < 100 * 4 * 2048


def test_a_rendered_text_is_found_after_rows_of_another_kind():
    rows = [ask(1, "q", "a"), row(2, ("assistant", "<|im_start|>user\nq<|im_end|>\n"), kind="text")]
    assert findings(report(rows))["rendered-template"].count == 1
    assert findings(report(rows[::-1]))["rendered-template"].count == 1
