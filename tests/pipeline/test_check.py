"""Check, convert, preview, and what a run does with its rows, as a user meets them."""

import json
from functools import partial

import pytest

from shared import GGUF, toy_rows, write_recipe
from tunesmith import cli
from tunesmith.data.read import read_rows as read_any
from tunesmith.errors import DataError
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import read_json
from tunesmith.rundir.records.data import LeftOut

ALPACA = [
    {"instruction": "Name the colour.", "input": f"a {c} car", "output": c, "source": "x"} for c in ("red", "blue", "grey")
]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def test_check_says_format_ignored_columns_and_bad_rows(tmp_path, command):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*ALPACA, {"instruction": "\x1b[31mx", "output": ""}]))
    code, out, err = command("check", path)
    assert code == 5 and out == "" and "row 4, $.output" in err and "[empty-turn]" in err and "hint:" in err
    code, out, err = command("check", path, "--quarantine", tmp_path / "bad.jsonl")
    assert code == 0 and "format alpaca" in out and "column source is ignored (3 rows)" in out and "1 bad rows set aside" in out
    assert json.loads((tmp_path / "bad.jsonl").read_text())["problems"][0]["code"] == "empty-turn"
    assert "\x1b" not in out + err


def test_check_with_a_model_counts_its_tokens_and_draws_them(tmp_path, tiny_dir, tokenizer, command):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    arguments = ("check", path, "--model", tiny_dir, "--max-length", 47)
    code, out, _ = command(*arguments, "--page", tmp_path / "page.html")
    lengths = [len(tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"]) for row in toy_rows()]
    tokens = json.loads(command(*arguments, "--json")[1])["tokens"]
    assert code == 0 and tokens["lengths"]["max"] == max(lengths) and sum(tokens["lengths"]["histogram"]["counts"]) == 64
    assert tokens["too_long"]["count"] == sum(length > 47 for length in lengths) > 0
    assert f"{tokens['too_long']['count']} rows are longer than 47 tokens" in out
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert command("check", path, "--max-length", 47)[0] == 2


def test_check_finds_a_benchmark_among_the_rows(tmp_path, command):
    item = "The quick brown fox jumps over the lazy dog while seven wizards quietly brew a potion of purple daylight."
    rows, benchmark = tmp_path / "rows.jsonl", tmp_path / "benchmark.jsonl"
    rows.write_text(json.dumps({"prompt": f"Explain this. {item}", "completion": "No."}) + "\n")
    benchmark.write_text(json.dumps({"question": item, "answerKey": "A"}) + "\n")
    assert command("check", rows, "--benchmark", benchmark)[0] == 5
    out = command("check", rows, "--benchmark", benchmark, "--benchmark-column", "question")[1]
    assert "1 rows share a passage with" in out and "line 1 ~" in out


def test_convert_writes_what_reads_back_and_columns_are_named(tmp_path, command):
    source, target = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    source.write_text('question,answer,id\n"a ""red"" car",red,1\na blue car,blue,2\n')
    named = ("--column", "prompt=question", "--column", "completion=answer")
    code, out, err = command("convert", source, target, *named)
    assert code == 0 and "2 rows written" in out and "column id is ignored" in err
    assert [row.messages[0]["content"] for row in read_any(target)] == ['a "red" car', "a blue car"]
    assert command("convert", source, target, "--column", "prompt")[0] == 2
    assert command("convert", source, source, *named)[0] == 5


def test_of_many_columns_that_nothing_reads_some_are_named_and_the_others_counted(tmp_path, command):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a", **{f"c{n}": n for n in range(99)}, "systen": "s"}) + "\n")
    out = command("check", path, "--no-near")[1]
    assert out.count("column ") == 8 and "column systen is ignored (1 rows); did you mean system?" in out
    assert "and 92 others are ignored: c7, c8, c9, c10, c11, ..." in out


def test_convert_says_what_is_wrong_with_the_rows_that_it_writes(tmp_path, command):
    source, target = tmp_path / "rows.jsonl", tmp_path / "written.jsonl"
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "<think>b</think>c"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = command("convert", source, target)
    assert code == 0 and "wrong: 1 of 2 (50.00%) rows whose answers hold reasoning" in err and "line 2 (" in err
    code, out, err = command("convert", source, target, "--reasoning", "keep", "--json")
    assert code == 0 and "wrong:" not in err and json.loads(out)["findings"] == []
    source.write_text(json.dumps({"text": "late again", "label": "complaint"}) + "\n")
    assert "--column prompt=text --column completion=label" in command("convert", source, target)[2]


def test_preview_shows_what_is_supervised(tmp_path, tiny_dir, command):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "say <|im_end|>", "completion": "no"}) + "\n")
    code, out, _ = command("preview", path, "--model", tiny_dir, "--ids")
    assert code == 0 and "«no» [" in out and "«‹<|im_end|>›» [2]" in out and "say <|im_end|> [" in out
    assert "2 supervised" in out
    code, out, _ = command("preview", path, "--model", tiny_dir, "--page", tmp_path / "rows.html")
    assert code == 0 and not out and (tmp_path / "rows.html").read_text().count('class="example"') == 1


def test_tokens_of_unchanged_rows_come_from_the_cache(tmp_path, tiny_dir, talk):
    recipe = write_recipe(tmp_path, tiny_dir, {"task.short_prompt": f"{tmp_path}"})  # a key of this test's own
    first, second = (api.open_run(recipe, tmp_path / name) for name in ("a", "b"))
    for run in (first, second):
        api.data(run)
        api.render(run)
        said = talk()
        assert ("train: the tokens of these rows are in the cache" in said) == (run is second)
    assert first.tokens("train").read_bytes() == second.tokens("train").read_bytes()
    assert read_json(first.data / "rendered.json") == read_json(second.data / "rendered.json")


def test_too_long_rows_are_refused_with_the_length_that_keeps_them_or_dropped_by_name(tmp_path, tiny_dir):
    with pytest.raises(DataError) as caught:
        _rendered(tmp_path, tiny_dir, {"train.max_length": 57})
    keeps_all = int(caught.value.hint.split(" keeps 100 %")[0].split()[-1])
    assert _rendered(tmp_path, tiny_dir, {"train.max_length": keeps_all})[1] == []
    run, left_out = _rendered(tmp_path, tiny_dir, {"train.max_length": 57, "data.on_too_long": "drop"})
    assert left_out and all(row.reason == f"{row.tokens} tokens" and row.tokens > 57 for row in left_out)
    assert read_json(run.data / "rendered.json")["longest"] == 57


def _rendered(tmp_path, tiny_dir, changes):
    run = api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / str(len(list(tmp_path.iterdir()))))
    api.data(run)
    api.render(run)
    return run, LeftOut.read_lines(run.data / "left_out.jsonl")


def _row(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_a_row_that_cannot_be_rendered_refuses_the_run_or_is_left_out_by_name(tmp_path, tiny_dir):
    for policy in ("refuse", "quarantine"):
        recipe = write_recipe(tmp_path, tiny_dir, {"data.on_bad_row": policy})
        rows = [*toy_rows(), *(_row(f"thing {i}", f"a\x16{i}") for i in range(9))]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = api.open_run(recipe, tmp_path / policy)
        api.data(run)
        if policy == "refuse":
            with pytest.raises(
                DataError, match=r"train rows cannot be rendered\nrow [0-9a-f]{12}, line \d+: the tokenizer cannot"
            ):
                api.render(run)
        else:
            api.render(run)
            assert all("cannot represent" in row.reason for row in LeftOut.read_lines(run.data / "left_out.jsonl"))


def test_more_rows_keep_the_old_test_rows_in_test(tmp_path, tiny_dir):
    recipe = write_recipe(tmp_path, tiny_dir)
    run = api.open_run(recipe, tmp_path / "run")
    api.data(run)
    before = read_json(run.split_file)["parts"]
    (tmp_path / "other").mkdir()
    other = write_recipe(tmp_path / "other", tiny_dir, {"data.earlier_split": str(run.split_file), "seed": 5})
    rows = [*(_row(f"thing {i}", "{}") for i in range(80)), *toy_rows()[::-1]]
    for path in (tmp_path / "rows.jsonl", tmp_path / "other" / "rows.jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for later in (run, api.open_run(other, tmp_path / "later")):
        api.data(later)
        after = read_json(later.split_file)["parts"]
        assert all(set(before[part]) <= set(after[part]) for part in before)
        assert sum(map(len, after.values())) == 144 and len(after["test"]) > len(before["test"])


def test_a_model_that_is_not_there_is_said(tmp_path, command):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    assert command("preview", path, "--model", GGUF.with_name("none.gguf"))[0] == 6


def test_rows_of_a_recipe_that_are_not_there_are_looked_for_from_the_recipe(tmp_path, tiny_dir):
    recipe = write_recipe(tmp_path, tiny_dir, {"data.path": "./nowhere.jsonl"})
    for verb in (api.data, api.check, partial(api.advise, quick=True)):
        with pytest.raises(DataError, match=r"data\.path: .*nowhere\.jsonl: no such file") as caught:
            verb(api.open_run(recipe, tmp_path / "run"))
        assert "the directory of the recipe file" in caught.value.hint
