"""What a verb writes at a user's word never costs what stands there."""

import os
from pathlib import Path

import pytest

from tunesmith.data.convert import convert
from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.data.targets import PAGE, SET_ASIDE, refuse_target
from tunesmith.errors import DataError

ROW = '{"prompt": "a", "completion": "b"}\n'
QUARANTINE = ReadOptions(on_bad_row="quarantine")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "a.jsonl"
    file.write_text(ROW)
    return file


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("rows/a.jsonl", "also the source"),
        ("rows/../rows/a.jsonl", "also the source"),
        ("linked.jsonl", "also the source"),
        ("notes.txt", "holds something else"),
        ("rows", "no regular file"),
        ("/dev/null", "no regular file"),
    ],
)
def test_a_page_and_rows_set_aside_cost_nothing(source, named, words):
    folder = source.parents[1]
    (folder / "linked.jsonl").symlink_to(source)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=words):
        Reader(source, QUARANTINE, folder / named)
    with pytest.raises(DataError, match=words):
        refuse_target(folder / named, [source], PAGE)
    assert source.read_text() == ROW and (folder / "notes.txt").read_text() == "mine" and Path("/dev/null").is_char_device()


def test_a_file_of_a_folder_that_is_read_is_not_written(source):
    with pytest.raises(DataError, match="also the source"):
        refuse_target(source, [source.parent])
    refuse_target(source.parent / "new.html", [source.parent], PAGE)


def test_what_the_same_option_wrote_is_replaced(source):
    aside = source.with_name("aside.jsonl")
    source.write_text(ROW + "no row\n")
    read_rows(source, QUARANTINE)
    for _ in range(2):
        list(Reader(source, QUARANTINE, aside))
        assert aside.read_bytes().startswith(SET_ASIDE)
    page = source.with_name("page.html")
    page.write_text("<!DOCTYPE html>")
    refuse_target(page, [source], PAGE)


def test_convert_does_not_write_over_the_rows_that_it_sets_aside(source):
    target = source.with_name("out.jsonl")
    source.write_text(ROW + "no row\n")
    with pytest.raises(DataError, match="another file of this command"):
        convert(source, target, QUARANTINE, target)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(DataError, match="no regular file"):
        Reader(tmp_path / "p.csv")


@pytest.mark.parametrize(("encoding", "words"), [("utf-16", "not utf-16"), ("", "unknown encoding"), ("punycode", "punycode")])
def test_an_encoding_that_does_not_fit_is_told(tmp_path, encoding, words):
    (tmp_path / "u.jsonl").write_text('{"prompt": "é", "completion": "b"}\n')
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / "u.jsonl", ReadOptions(encoding=encoding))
