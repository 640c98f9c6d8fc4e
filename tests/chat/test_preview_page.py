"""The page of a preview: all of the rows' text, escaped, with its roles."""

import re
from html import unescape

import families
import pytest

from tunesmith.chat.render import Conversation, Renderer
from tunesmith.chat.shown import shown
from tunesmith.report.preview_page import write_preview_page

SCRIPT = "<script>alert(1)</script>\u202e"
ASKED = {"role": "user", "content": f"q {SCRIPT}"}
SAID = {"role": "assistant", "content": f"a {SCRIPT}", "reasoning_content": "why"}


@pytest.fixture(scope="module")
def page(tokenizer_dir, tmp_path_factory):
    renderer = Renderer(families.make("qwen3", tokenizer_dir))
    talks = [[ASKED, SAID, ASKED, SAID], [ASKED, {**SAID, "content": "\ud800"}]]
    rows = [shown(renderer, Conversation(turns), f"id{n}", f"line {n}") for n, turns in enumerate(talks)]
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_preview_page(rows, f"rows {SCRIPT}.jsonl", "org/model", "2026-11-28", path)
    return path.read_text(encoding="utf-8"), rows


def test_every_piece_is_there_in_its_role(page):
    text, rows = page
    spans = re.findall(r'<span class="( ?taught)?( control)?">([^<]*)</span>', text[text.index("<section") :])
    found = [(bool(taught), bool(control), unescape(piece)) for taught, control, piece in spans]
    pieces = [piece for document in rows[0].documents for piece in document.pieces]
    assert len(rows[0].documents) == 2
    assert found == [(p.supervised, p.control, p.text.replace("\u202e", "\\u202e")) for p in pieces]
    assert text.count("left out: $.messages[1].reasoning_content <s>why</s>") == 1
    assert "document 2 of 2" in text and "cannot be rendered" in text and "half a surrogate pair" in text
    assert all(word in text for word in ("id0", "line 1", "org/model", "here 2026-11-28", *rows[0].notes[:1]))


def test_nothing_in_a_row_is_markup(page):
    text, _ = page
    assert "<script" not in text and "\u202e" not in text and text.count("<pre>") == text.count("</pre>") == 2
    assert "default-src 'none'" in text and "http" not in text.split("</head>")[0].replace("http-equiv", "")
