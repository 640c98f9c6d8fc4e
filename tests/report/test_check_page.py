import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ROOT
from tunesmith.data.lengths import histogram, summary
from tunesmith.data.quality import Quality, headlines
from tunesmith.data.read import Reader, ReadOptions
from tunesmith.report.check_page import write_check_page
from tunesmith.report.template import visible
from tunesmith.rundir.records.check import (
    CheckReport,
    ContaminationReport,
    NearCluster,
    NearReport,
    Refusals,
    SharedPassage,
    TokenReport,
    TooLong,
)
from tunesmith.rundir.records.quality import RowExcerpt, RowLength, RowPlace

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT}\x1b[31m\u202ereversed\ufeff\U000e0041 ]]> --> </style></title> &amp; $x_1$ \"'"


class _Page(HTMLParser):
    """Checks that elements nest, and gathers the text of every section and all attributes."""

    void = frozenset({"meta", "br"})

    def __init__(self, page):
        super().__init__()
        self.open, self.sections, self.attributes, self.text = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "section":
            self.sections.append("")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.void or self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.text.append(data)
        if "section" in self.open and "h2" not in self.open and "style" not in self.open:
            self.sections[-1] += data.strip()


def _checked(source):
    reader, quality = Reader(source, ReadOptions(on_bad_row="quarantine")), Quality()
    for batch in reader.batches():
        quality.add(batch)
    report = quality.report()
    return CheckReport(source=str(source), reading=reader.summary(), quality=report, headlines=headlines(report))


def _lengths(values, text):
    return summary(np.array(values), np.arange(len(values)), lambda rows: {row: RowPlace(id=text, place=text) for row in rows})


def _with_all_parts(result, text=HOSTILE, max_length=2048):
    """``result`` with near duplicates, contamination and tokens, whose texts are all ``text``."""
    rows = result.quality.rows
    values = np.random.default_rng(0).integers(20, 3000, rows)
    row, over = RowExcerpt(id=text, place=text, excerpt=text), int((values > (max_length or 3000)).sum())
    near = NearReport(
        threshold=0.8,
        recall=0.998,
        exact=True,
        template_windows=3,
        clusters=12,
        rows=30,
        rows_left=rows - 18,
        unlike_answers=4,
        largest=(NearCluster(rows=9, questions=2, answers=3, examples=(row, row)),),
    )
    passage = SharedPassage(row=text, place=text, item=text, items=2, characters=75, excerpt=text)
    contamination = ContaminationReport(
        benchmark=text, items=500, too_short=7, items_found=1, rows_read=rows, rows=(passage,) * 230
    )
    longest = RowLength(id=text, place=text, length=2999)
    tokens = TokenReport(
        model=text,
        max_length=max_length,
        rows=rows,
        lengths=_lengths(values, text),
        supervised_share=0.421,
        supervised_histogram=histogram(values / 3000, log=False),
        too_long=TooLong(count=over, examples=(longest,) * bool(over), keep={"95": 2850, "99": 2970, "100": 2999}),
        notes={text: 3},
        refusals=Refusals(count=2, by_reason={text: 2}, examples=(row,)),
    )
    return replace(result, near=near, contamination=contamination, tokens=tokens)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Rows whose texts, labels, JSON keys, columns and file name attack the page, with bad rows among them."""
    source = tmp_path_factory.mktemp("hostile") / "rows <script> & 'quote'.jsonl"
    written = []
    for number in range(120):
        answer = (HOSTILE[:50], json.dumps({SCRIPT: number}), "yes")[number % 3]
        turns = [
            {"role": "user", "content": f"{number // 2} {HOSTILE} me{number}@mail.org"},
            {"role": "assistant", "content": answer},
        ]
        written.append({"messages": turns * (1 + number % 2), SCRIPT: "ignored", "metadata\x1b": 1})
    written += [{"messages": [{"role": SCRIPT, "content": "x"}]}, {"messages": []}]
    source.write_text("".join(json.dumps(row) + "\n" for row in written))
    return _checked(source)


def _page(result, path):
    write_check_page(result, path)
    return path.read_text(encoding="utf-8")


def _bars(svg):
    """Heights of the bars of a picture, in points, from left to right."""
    paths = re.findall(r'<path d="([^"]*z\s*)" clip-path="[^"]*" style="fill: #(?:0072b2|d55e00)', svg)
    points = [[float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)] for path in paths]
    return [max(heights) - min(heights) for heights in points]


def test_page_is_whole_self_contained_and_no_section_is_empty(hostile, tmp_path):
    for result in (hostile, _with_all_parts(hostile)):
        page = _page(result, tmp_path / "check.html")
        parsed = _Page(page)
        assert parsed.sections and all(len(text) > 20 for text in parsed.sections)
        for tag, name, value in parsed.attributes:
            assert tag != "script" and not name.startswith("on"), (tag, name)
            assert name.startswith("xmlns") or not re.search(r"https?:|//", value or ""), (tag, name, value)
            assert name not in ("href", "xlink:href", "src") or value.startswith("#"), (tag, value)
        assert "@import" not in page and "default-src 'none'" in page
        targets = set(re.findall(r'id="([^"]+)"', page))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= targets


def test_text_of_others_is_escaped_and_made_visible(hostile, tmp_path):
    page = _page(_with_all_parts(hostile), tmp_path / "check.html")
    text = "".join(_Page(page).text)
    assert "<script" not in page and page.count("</style>") == page.count("<style")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff\U000e0000-\U000e007f]", page)
    assert (
        "<script>alert(1)</script>\\x1b[31m\\u202ereversed\\ufeff\\U000e0041 ]]> --> </style></title> &amp; $x_1$ \"'" in text
    )
    assert f"in 100.0 %: {SCRIPT}" in text and f"{SCRIPT} (122 rows)" not in text and "metadata\\x1b" in text


@given(st.text(st.characters(), max_size=40))
def test_visible_text_can_be_written_and_plain_text_is_left(text):
    shown = visible(text)
    assert shown.encode("utf-8").decode() == visible(shown) == shown
    if text.isascii() and all(character.isprintable() or character in "\n\t" for character in text):
        assert shown == text


def test_findings_of_all_parts_stand_worst_first_with_their_rows(hostile, tmp_path):
    result = _with_all_parts(hostile)
    page = _page(result, tmp_path / "check.html")
    articles = re.findall(r'<article class="finding (\w+)">(.*?)</article>', page, re.DOTALL)
    ranks = [("wrong", "suspect", "note").index(severity) for severity, _ in articles]
    codes = [re.search(r"<code>\[(.*?)\]</code>", body)[1] for _, body in articles]
    added = {"bad-rows", "template-refuses", "too-long", "contamination", "near-duplicates"}
    assert ranks == sorted(ranks)
    assert sorted(codes) == sorted([finding.code for finding in result.quality.findings] + list(added))
    for finding in result.quality.findings:
        body = next(body for code, (_, body) in zip(codes, articles, strict=True) if code == finding.code)
        assert f"{finding.count:,} of {finding.of:,}" in body
        assert all(f"{example.place} <code>{example.id}</code>" in body for example in finding.examples)
    assert "2 of 122 (1.64 %): rows that are not valid examples" in page
    assert f"{result.tokens.too_long.count} of 120" in page and "and 30 more" in page


@pytest.mark.parametrize("max_length", [2048, 100_000, None])
def test_every_row_is_in_the_picture_of_lengths_and_max_length_is_drawn(hostile, tmp_path, max_length):
    result = _with_all_parts(hostile, max_length=max_length)
    drawn = re.findall(r"<svg.*?</svg>", _page(result, tmp_path / "check.html"), re.DOTALL)
    spread = result.tokens.lengths.histogram
    heights = _bars(drawn[0])
    assert np.allclose(np.array(heights) / max(heights), np.array(spread.counts) / max(spread.counts), atol=1e-4)
    assert sum(spread.counts) == result.quality.rows
    line = re.search(r'<path d="M (\S+) \S+\s+L (\S+) \S+\s*" clip-path="[^"]*" style="fill: none; stroke: #d55e00', drawn[0])
    assert (line is not None) == (max_length is not None) == (f"max_length {max_length:,}" in drawn[0] if max_length else False)
    if max_length == 2048:
        beyond = sum(start > max_length for start in spread.edges[:-1])
        assert drawn[0].count('" style="fill: #d55e00') == beyond > 0


def test_what_is_the_same_in_all_rows_is_said_and_not_drawn(tmp_path):
    source = tmp_path / "same.jsonl"
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A colour."}]
    source.write_text(json.dumps({"messages": turns}) + "\n")
    page = _page(_checked(source), tmp_path / "check.html")
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == ["findings", "advice", "lengths", "answers"]
    assert "<svg" not in page and "<td>answer, characters</td><td>9</td>" in page


def test_page_of_the_demo_data_holds_its_numbers(tmp_path):
    result = _checked(ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl")
    page = _page(result, tmp_path / "check.html")
    _Page(page)
    lengths = result.quality.lengths
    for length in (lengths.prompt, lengths.answer, lengths.whole):
        figures = (length.min, length.median, length.p95, length.p99, length.max)
        assert "".join(f"<td>{figure:,}</td>" for figure in figures) in page
    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) == 3  # two turns in every row: no picture of turns
    for picture, length in zip(drawn, (lengths.whole, lengths.prompt, lengths.answer), strict=True):
        heights, counts = _bars(picture), length.histogram.counts
        assert np.allclose(np.array(heights) / max(heights), np.array(counts) / max(counts), atol=1e-4)
    for key, known in result.quality.json.keys.items():
        assert re.search(f'<td class="name" dir="auto">{key}</td><td>{100 * known.share:.1f} %</td>', page)
    assert '<th scope="row" dir="auto">distinct rows</th><td>1,488</td><td>98.3 %</td>' in page
