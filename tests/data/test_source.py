"""Files of every format give the same rows; a damaged file is an error that names it."""

import bz2
import gzip
import json
import lzma
import shutil
import zipfile

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from tunesmith.data.json_file import json_rows
from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.data.source import SUFFIXES
from tunesmith.errors import DataError
from tunesmith.rundir.records.check import IgnoredColumn

ROWS = [
    {"prompt": f'{i} é, "quoted"\n[{{', "completion": f"answer {i}\\", "system": "s" if i % 2 else None} for i in range(3000)
]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table():
    return pa.Table.from_pylist([{**row, "score": 0.5} for row in ROWS])


def as_csv(delimiter):
    def cell(value):
        return '"' + value.replace('"', '""') + '"' if value else ""

    head = {name: name for name in ROWS[0]}
    return "".join(delimiter.join(map(cell, row.values())) + "\r\n" for row in [head, *ROWS]).encode()


def write_stream(path):
    with pa.ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=700)


def write_archive(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


FILES = {
    "a.jsonl": lambda path: path.write_bytes(lines()),
    "crlf.ndjson": lambda path: path.write_bytes(lines().replace(b"\n", b"\r\n")),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines()),
    "no_last_break.jsonl": lambda path: path.write_bytes(lines()[:-1]),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines()[:99_999]) + gzip.compress(lines()[99_999:])),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(lines()[:99_999]) + zstandard.compress(lines()[99_999:])),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(lines())),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(lines())),
    "a.jsonl.zip": lambda path: write_archive(path, {"folder/a.jsonl": lines(), "__MACOSX/a.jsonl": b"x"}),
    "utf16.jsonl": lambda path: path.write_bytes(lines().decode().encode("utf-16")),
    "utf16_without_mark.json": lambda path: path.write_bytes(json.dumps(ROWS).encode("utf-16-be")),
    "objects.json": lambda path: path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS)),
    "objects.jsonl": lambda path: path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS)),
    "array.jsonl": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "indented.json": lambda path: path.write_text("\n" + json.dumps(ROWS, indent=2) + "\n"),
    "holder.json": lambda path: path.write_text(json.dumps({"version": 1, "meta": {"list": [{}]}, "data": ROWS})),
    "indented_holder.json": lambda path: path.write_text(json.dumps({"version": "]", "data": ROWS, "end": {}}, indent=1)),
    "lines.json": lambda path: path.write_bytes(lines()),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": lambda path: path.write_bytes(as_csv(",")),
    "semicolons.csv": lambda path: path.write_bytes(as_csv(";")),
    "bars.tsv": lambda path: path.write_bytes(as_csv("|").decode().encode("utf-16")),
    "a.tsv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + as_csv("\t")),
    "a.csv.gz": lambda path: path.write_bytes(gzip.compress(as_csv(","))),
    "a.parquet": lambda path: pq.write_table(table(), path, row_group_size=1300),
    "a.feather": lambda path: pyarrow.feather.write_feather(table(), path),
    "data-00000-of-00001.arrow": write_stream,
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("expected") / "a.jsonl"
    path.write_bytes(lines())
    return [(row.id, row.messages) for row in read_rows(path)]


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_and_every_byte_is_counted(tmp_path, name, expected):
    path = tmp_path / name
    FILES[name](path)
    read = []
    reader = Reader(path, progress=read.append)
    sizes, rows = [], []
    for batch in reader.batches():
        sizes.append(len(batch))
        rows += batch
    assert [(row.id, row.messages) for row in rows] == expected
    assert max(sizes) <= 2048 and sum(read) == reader.total_bytes == path.stat().st_size
    ignored = {"score": IgnoredColumn(rows=3000, nearest=None)} if path.suffix in (".parquet", ".feather", ".arrow") else {}
    assert reader.summary().ignored_columns == ignored
    is_list = any(word in name for word in ("array", "indented", "holder", "objects", "without_mark"))
    unit = "row" if is_list or ignored else "line"
    assert rows[0].place.split()[0] == unit


def test_places_of_csv_rows_are_their_first_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"a\n\nb",c\n\nd,e\n')
    reader = Reader(path)
    rows = list(reader)
    assert [row.place for row in rows] == ["line 2", "line 6"] and rows[0].messages[0]["content"] == "a\n\nb"
    assert reader.summary().notes[-1] == "1 empty lines were passed over"


def test_nested_tables_lose_their_nulls(tmp_path):
    calls = [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": calls, "weight": 1},
            {"role": "tool", "content": "r"},
            {"role": "assistant", "content": "b"},
        ]
    }
    path, plain = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    pq.write_table(pa.Table.from_pylist([row, {"messages": row["messages"][:1] + row["messages"][3:]}]), path)
    plain.write_bytes(lines([row, {"messages": row["messages"][:1] + row["messages"][3:]}]))
    assert [row.id for row in read_rows(path)] == [row.id for row in read_rows(plain)]


def test_a_directory_is_its_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in [("b.jsonl", '{"text": "2"}'), ("a.json", '[{"text": "1"}]'), ("README.md", "x"), ("state.json", "{}")]:
        (tmp_path / name).write_text(text)
    reader = Reader(tmp_path)
    assert [(row.place, row.messages[0]["content"]) for row in reader] == [("a.json row 1", "1"), ("b.jsonl line 1", "2")]
    assert reader.summary().files == ("a.json", "b.jsonl")
    assert "README.md, state.json, sub/" in reader.summary().notes[0]


def test_a_hub_data_set_goes_through_datasets(tmp_path, monkeypatch, expected):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(lines())
    (folder / "test.jsonl").write_bytes(lines(ROWS[:5]))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    # A split is asked for, so that the name is not an existing path, and datasets finds the directory by its own rules.
    monkeypatch.chdir(tmp_path)
    reader = Reader("owner/name:train")
    assert [(row.id, row.messages) for row in reader] == expected
    assert [row.place for row in read_rows("owner/name:test")] == [f"test row {i}" for i in range(1, 6)]
    with pytest.raises(DataError, match="no split dev, found"):
        read_rows("owner/name:dev")
    with pytest.raises(DataError, match="the hub does not give it"):
        read_rows("owner/name:other:train")
    shutil.rmtree(folder)


def test_a_long_line_is_passed_over_without_being_held(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "1"}\n{"text": "')
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "2"}\n')
    tracemalloc.start()
    reader = Reader(path, ReadOptions(on_bad_row="quarantine"), tmp_path / "rejected.jsonl")
    assert [row.place for row in reader] == ["line 1", "line 3"]
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()
    rejected = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert rejected["place"] == "line 2" and "50,000,012 bytes" in rejected["problems"][0]["message"]
    assert rejected["problems"][0]["code"] == "line-too-long" and len(rejected["raw"]) == 200


def archive(*names):
    return lambda path: write_archive(path, dict.fromkeys(names, lines()))


def cut(name, keep):
    return lambda path: (FILES[name](path), path.write_bytes(path.read_bytes()[:-keep]))


def put(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.jsonl.gz", cut("a.jsonl.gz", 1000), "damaged or cut short"),
        ("a.jsonl.zst", cut("a.jsonl.zst", 1000), "cannot be read: Truncated"),
        ("a.csv.gz", put(b"no gzip at all"), "damaged or cut short"),
        ("a.parquet", cut("a.parquet", 10), "not a whole parquet file"),
        ("a.parquet", put(b""), "not a whole parquet file"),
        ("a.arrow", cut("data-00000-of-00001.arrow", 5000), "not a whole arrow file"),
        ("a.feather", cut("a.feather", 10), "not a whole arrow file"),
        ("a.parquet", lambda path: pq.write_table(pa.table({"x": [1]}), path), "no known column, found x"),
        ("a.json", put(json.dumps(ROWS)[:-1].encode()), "ends after row 3000"),
        ("a.json", put(json.dumps(ROWS)[:50_000].encode()), "left open"),
        ("a.json", put(json.dumps(ROWS).replace("}, {", "} {").encode()), "after row 1, expected ,"),
        ("a.json", put(b'[{"text": "a"}, 3, {"text": "b"}]'), "after row 1, expected ,"),
        ("a.json", put(b'[{"text": "a"}, ["b"]]'), "row 2 is a list"),
        ("a.json", put(b'[{"text": "a"}]]'), "closing bracket too many"),
        ("a.json", put(b'{"a": [{}],\n"b": [{}]}'), "more than one list"),
        ("a.json", put(b'{"a": {},\n"b": "["}'), "[unknown-format]"),
        ("a.json", put(b'[{"text": "' + b"x" * 12_000_000 + b'"}]'), "row 1 is past"),
        ("a.json", put(b" \n "), "the file is empty"),
        ("a.csv", put(b"text,text\na,b\n"), "'text' stands twice"),
        ("a.csv", put(b"prompt;completion\na;b;c\nd;e\n"), "the first line is one column"),
        ("a.xlsx", put(b"prompt"), "not a whole Excel workbook"),
        ("a.jsonl.bz2", put(b"no bzip2 at all"), "Invalid data stream"),
        ("a.jsonl.xz", cut("a.jsonl.xz", 1000), "damaged or cut short"),
        ("a.zip", put(b"no archive"), "damaged or cut short"),
        ("a.zip", archive("a.jsonl", "b.jsonl"), "2 files in the archive, expected one: a.jsonl, b.jsonl"),
        ("a.zip", archive("a.parquet"), "cannot tell the format"),
        ("a.json", put(b'{\n"text": "a"}\n{"text": "b"}\nc'), "'c' after row 2, expected nothing"),
        ("a.csv", put(b'text\n"' + b"x\n" * 5_000_000), "left open"),
        ("a.csv", put(b"hello,goodbye\na,b\n"), "found hello, goodbye"),
        ("a.csv", put(b"text\n"), "the file is empty"),
        ("a.jsonl", put(b""), "the file is empty"),
        ("a.jsonl.gz", put(gzip.compress(b"")), "the file is empty"),
        ("a.txt", put(b"x"), "cannot tell the format"),
        ("a.parquet.gz", put(b"x"), "cannot tell the format"),
    ],
)
def test_damaged_files(tmp_path, name, make, words):
    path = tmp_path / name
    make(path)
    with pytest.raises(DataError) as caught:
        read_rows(path, ReadOptions(on_bad_row="quarantine"))
    assert words in caught.value.message and str(path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("ragged-row", b"a,b,c\n"),
        ("ragged-row", b"a\n"),
        ("bad-csv", b'"a"b,c\n'),
        ("nul-byte", b"a,\0\n"),
        ("not-utf8", "é,".encode() + b"\xff\n"),
        ("missing-column", b"a,\n"),
        ("space-before-quote", b'"a", "c"\n'),
    ],
)
def test_bad_rows_of_csv(tmp_path, code, line):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,completion\na,b\n" + line + b"c,d\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert f"[{code}]" in caught.value.message and "line 3, $" in caught.value.message
    assert "1 bad rows, 2 good ones" in caught.value.message


def test_text_that_is_not_utf8_in_a_table(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    with pytest.raises(DataError, match=r"row 2.*not-utf8") as caught:
        read_rows(path)
    assert "1 bad rows, 2 good ones" in caught.value.message


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_json_is_cut_the_same_whatever_the_pieces(tmp_path, block):
    rows = [{"a": ']}\\"', "b": [{"c": "\\"}]}, {"é": '"', "n": []}, {}]
    for value in (rows, {"x": "[{", "y": rows, "z": {"k": 1}}):
        for text in (json.dumps(value), json.dumps(value, indent=1)):
            data = text.encode()
            unit, found = json_rows(iter([data[i : i + block] for i in range(0, len(data), block)]), tmp_path, {"text"}, [])
            assert unit == "row" and [json.loads(element) for element in found] == rows


def test_no_such_place(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for path, words in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "no file of rows"),
        ("some/rows.jsonl", "no such"),
        ("folder/rows", "no such file"),  # would read as a hub id, were there no such folder
    ]:
        with pytest.raises(DataError, match=words):
            Reader(path)
    assert Reader("folder/rows:train").source.hub and Reader("owner/rows").source.hub
    assert set(SUFFIXES) >= {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"}


FRENCH = ("Où est le café ?", "À côté de l’école, déjà fermé")


@pytest.mark.parametrize(
    ("encoding", "rows", "said"),
    [
        ("cp1252", [FRENCH, ("Größe", "München 5 €")], "x.csv: not UTF-8, read as cp1252 (Windows-1252)"),
        ("mac_roman", [FRENCH], "read as mac_roman (Mac OS Roman), in which its words are words"),
        ("cp850", [("où est le café ?", "déjà fermé")], "read as cp850 (DOS)"),
        (
            "cp1252",
            [("Größe", "für ihn")] * 4 + [("Ž", "cafŽ né")],
            "1 of 10 words with letters beyond ASCII look wrong in cp1252 (cafŽ)",
        ),
        ("cp1251", [("привет мир", "спасибо")], None),
        ("cp1250", [("Příliš žluťoučký", "úpěl ďábelské")], None),
    ],
)
def test_an_encoding_of_one_byte_a_letter_is_told_by_its_words_and_doubt_is_said(tmp_path, encoding, rows, said):
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\n" + "".join(f'"{q}","{a}"\n' for q, a in rows), encoding=encoding)
    if said is None:
        with pytest.raises(DataError, match="look wrong in") as refusal:
            read_rows(path)
        assert f"--encoding cp1250, {'cp1251' if encoding == 'cp1251' else ''}" in refusal.value.hint
    else:
        reader = Reader(path)
        assert [tuple(turn["content"] for turn in row.messages) for row in reader] == rows
        assert any(said in note for note in reader.summary().notes)
    assert len(read_rows(path, ReadOptions(encoding=encoding))) == len(rows)


def test_a_cell_of_another_encoding_beside_utf8_is_a_bad_row_and_no_encoding_is_proposed(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("prompt,completion\ncafé,ok\n".encode() + "thé,ok\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"line 3, \$\.prompt: the cell is not UTF-8") as refusal:
        read_rows(path)
    assert "--encoding" not in refusal.value.message + refusal.value.hint
