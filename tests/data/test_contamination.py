"""Planted overlaps are found wherever they begin, and nothing is reported that is not there."""

import random
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.contamination import Contamination, normalised
from tunesmith.rundir.rows import Row


def _letters(rng, n, alphabet=string.ascii_lowercase + string.digits):
    return "".join(rng.choices(alphabet, k=n))


def _spaced(rng, text):
    """The same letters and digits in another layout."""
    return "".join(f"{letter.upper() if rng.random() < 0.3 else letter}{rng.choice(['', ' ', ', ', '-'])}" for letter in text)


def _row(name, *turns):
    roles = ["user", "assistant"] * len(turns)
    return Row(name, f"line {name}", [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)])


def _report(benchmark, rows, step=3):
    search = Contamination(benchmark)
    for start in range(0, len(rows), step):
        search.add(rows[start : start + step])
    return search.report("benchmark.jsonl")


ALPHABETS = [string.ascii_lowercase + string.digits, "日本語中文字한국어ねの", "aéöжñ7İ"]


@given(
    seed=st.integers(0, 2**32),
    alphabet=st.sampled_from(ALPHABETS),
    begin=st.integers(0, 200),
    length=st.integers(75, 300),
    before=st.integers(0, 60),
)
@example(seed=0, alphabet=ALPHABETS[0], begin=1, length=75, before=0)
@settings(max_examples=80)
def test_every_overlap_of_75_characters_is_found(seed, alphabet, begin, length, before):
    rng = random.Random(seed)
    items = [(f"item{i}", _spaced(rng, _letters(rng, 300, alphabet))) for i in range(4)]
    text = normalised(items[2][1]).decode()
    planted = text[begin : begin + length]
    if len(planted) < 75:
        planted = text[-75:]
    rows = [_row(str(i), _letters(rng, 150, alphabet), _letters(rng, 150, alphabet)) for i in range(5)]
    around = _letters(rng, before, alphabet), _letters(rng, 40, alphabet)
    rows.insert(3, _row("planted", "hello", around[0] + _spaced(rng, planted) + around[1]))
    report = _report(items, rows)
    assert [(found.row, found.place, found.item, found.items) for found in report.rows] == [
        ("planted", "line planted", "item2", 1)
    ]
    # Letters around the passage may agree by chance: the reported one is at least as long.
    assert report.rows[0].characters >= len(planted)
    excerpt = normalised(report.rows[0].excerpt).decode()
    whole = normalised("".join(m["content"] for m in rows[3].messages)).decode()
    assert excerpt in text and excerpt in whole
    assert (report.items_found, report.rows_read, report.items) == (1, 6, 4)


def test_75_characters_and_no_more_are_found_wherever_they_begin():
    item = _letters(random.Random(8), 300)
    rows = [_row(str(begin), "é" + item[begin : begin + 75] + "é") for begin in range(226)]
    report = _report([("item", item)], rows)
    assert sorted(int(found.row) for found in report.rows) == list(range(226))
    assert {found.characters for found in report.rows} == {75}


@given(seed=st.integers(0, 2**32), common=st.integers(0, 49))
@settings(max_examples=60)
def test_what_shares_less_than_50_characters_is_never_reported(seed, common):
    rng = random.Random(seed)
    # An alphabet of two letters makes agreeing windows common; "z" and "y" keep the shared run from growing by chance.
    item = "x" + _letters(rng, 160, "ab") + "x"
    begin = rng.randrange(0, 100)
    rows = [_row("a", "z" + item[begin : begin + common] + "y", _letters(rng, 49, "ab")), _row("b", _letters(rng, 30, "ab"))]
    assert _report([("item", item)], rows).rows == ()


def test_passages_do_not_run_over_row_borders_but_over_turns():
    item = _letters(random.Random(1), 100)
    apart = [_row("a", "q", item[:45]), _row("b", item[45:90], "r")]
    assert _report([("item", item)], apart).rows == ()
    together = _report([("item", item)], [_row("a", item[:45], item[45:90])]).rows
    assert [(found.row, found.characters) for found in together] == [("a", 90)]


def test_short_items_are_found_whole_and_the_shortest_are_counted():
    benchmark = [
        ("capital", "What is the capital of France?"),
        ("longer", "What is the capital of Francestan?"),
        ("chinese", "法国的首都是哪一座城市请用一个词回答我"),
        ("yes", "Yes."),
        ("empty", ""),
    ]
    rows = [_row("a", "Tell me: what is the capital of... FRANCE", "Paris"), _row("b", "What is the capital of Spain?", "Yes.")]
    report = _report(benchmark, rows)
    assert [(found.row, found.item, found.excerpt) for found in report.rows] == [
        ("a", "capital", "What is the capital of France")
    ]
    assert report.too_short == 3 and report.items_found == 1
    both = _report(benchmark, [_row("c", "What is the capital of Francestan?")])
    assert both.rows[0].item == "longer" and both.items_found == 2
    assert _report([("yes", "Yes.")], rows).rows == () and _report([], rows).rows == ()


def test_a_shared_instruction_is_reported_once_with_its_number():
    instruction = "Choose the option that best completes the sentence below and answer with its letter only. "
    rng = random.Random(2)
    benchmark = [(f"item{i}", instruction + _letters(rng, 200)) for i in range(50)]
    given_away = benchmark[7][1][-120:]
    rows = [_row("boilerplate", instruction), _row("clean", "nothing"), _row("leak", given_away, "b")]
    report = _report(benchmark, rows, step=1)
    assert [(found.row, found.item, found.items) for found in report.rows] == [
        ("leak", "item7", 1),
        ("boilerplate", "item0", 50),
    ]
    assert report.rows[1].excerpt == instruction.strip().rstrip(".") and report.rows[0].characters == 120


def test_tool_turns_and_reasoning_are_read_and_an_excerpt_is_cut():
    item = _letters(random.Random(3), 400)
    call = {"type": "function", "function": {"name": "f", "arguments": {"q": item[:80]}}}
    called = Row("call", "line 1", [{"role": "assistant", "content": "", "tool_calls": [call]}])
    thought = Row("thought", "line 2", [{"role": "assistant", "content": "x", "reasoning_content": item}])
    rows = _report([("item", item)], [called, thought]).rows
    assert [(found.row, found.characters) for found in rows] == [("thought", 400), ("call", 80)]
    assert rows[0].excerpt == item[:200] + "..."


@given(st.text())
def test_normalised_text_is_letters_and_digits_of_each_letter(text):
    expected = "".join(normalized for letter in text for normalized in letter.casefold() if normalized.isalnum())
    assert normalised(text).decode() == expected
    assert normalised("-".join(text)) == normalised(text)


@pytest.mark.parametrize("size", [1, 10_000])
def test_batch_sizes_change_nothing(monkeypatch, size):
    monkeypatch.setattr("tunesmith.data.contamination.BATCH_BYTES", size)
    rng = random.Random(4)
    benchmark = [(str(i), _letters(rng, 120)) for i in range(20)]
    rows = [_row(str(i), _letters(rng, 80) + benchmark[i % 20][1][i % 40 :]) for i in range(200)]
    report = _report(benchmark, rows, step=7)
    assert sorted(int(found.row) for found in report.rows) == list(range(200))
    assert all(int(found.item) == int(found.row) % 20 for found in report.rows)


def test_passages_are_counted_in_characters_and_not_in_bytes():
    rng = random.Random(5)
    signs = "".join(chr(code) for code in rng.sample(range(0x4E00, 0x9000), 400))
    # 49 characters are 147 bytes: three anchors long, and too short.
    assert _report([("item", signs[:200])], [_row("a", signs[30:79])]).rows == ()
    # Both items hold the anchor that opens the passage, but only the second goes on as the row does.
    benchmark = [("first", signs[:20] + signs[200:300]), ("second", signs[:200])]
    rows = _report(benchmark, [_row("a", signs[:75])]).rows
    assert [(found.item, found.characters) for found in rows] == [("second", 75)]
