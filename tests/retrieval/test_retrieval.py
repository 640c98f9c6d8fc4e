"""Passages, the SQLite store, what is searched, and how finding is measured."""

import json
import math
import re
import sqlite3
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import toy_rows, write_recipe
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.recipe import load_recipe
from tunesmith.retrieval import measure
from tunesmith.retrieval.chunk import LONGEST, OVERLAP, WORDS, cut, document_of, read_passages
from tunesmith.retrieval.corpus import Corpus, check_sealed, find, open_store, read_corpus
from tunesmith.retrieval.store import Hit, SqliteStore, build_store, fuse, words_of
from tunesmith.rundir.rows import Row

TEXTS = [
    "Refunds are paid within ten days.",
    "The shop opens at nine; refunds are paid at the desk.",
    "Parking is free for an hour.",
    "A refund of a gift is paid as a voucher, paid once.",
    "Nothing here.",
]


@pytest.fixture
def make_recipe(tmp_path):
    """A resolved recipe whose model is never loaded."""
    return lambda changes=None: load_recipe(write_recipe(tmp_path, tmp_path / "no-model", changes))


class Vectors:
    """A deterministic embedder: letters counted. Keeps what it was asked."""

    def __init__(self, key="letters"):
        self.key = key
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        counts = np.array([[text.lower().count(letter) + 0.01 for letter in "abcdefghijklmnop"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def _store(texts=TEXTS, embed=None):
    store = SqliteStore(":memory:", embed)
    store.add(texts, [f"t{i}" for i in range(1, len(texts) + 1)])
    return store


def _row(number, question="a red car", answer="red", group=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row(f"r{number}", f"line {number}", turns, group=group)


@given(st.text(alphabet=st.sampled_from("ab漢 .\n"), max_size=60).map(lambda text: text * 40))
def test_every_word_lies_in_a_passage_of_allowed_length(text):
    spans = cut(text)
    covered = np.zeros(len(text), bool)
    counted = [m.start() for m in re.finditer(rf"\S{{1,{LONGEST}}}", text)]
    for start, end in spans:
        covered[start:end] = True
        assert 0 < sum(start <= word < end for word in counted) <= WORDS
    assert all(covered[i] for i, char in enumerate(text) if not char.isspace())
    for (_, end), (start, _) in pairwise(spans):
        assert sum(start <= word < end for word in counted) <= OVERLAP


def test_cuts_fall_between_paragraphs_then_sentences():
    sentence = "one two three four five six seven eight nine ten. "  # 10 words
    paragraphs = [sentence * 5, sentence * 8 + "\n\n", sentence * 20]
    text = "".join(paragraphs)
    spans = cut(text)
    assert spans[0] == (0, len((paragraphs[0] + paragraphs[1]).rstrip()))  # 130 words: the paragraph, not the 180th word
    assert all(text[:end].endswith("ten.") and text[start:].startswith("one two") for start, end in spans)


def test_documents_keep_id_and_place(tmp_path):
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden.md").write_text("no")
    (folder / "picture.png").write_bytes(b"\x89")
    (folder / "deep" / "long.md").write_text("# Title\n\n" + "word " * 150 + "\n\n" + "other " * 150, encoding="utf-8-sig")
    (folder / "faq.jsonl").write_text(json.dumps({"id": "hours", "text": "Nine to five."}) + "\n\n" + '{"text": "Free."}\n')
    (folder / "blank.txt").write_text(" \n")
    passages = read_passages(folder)
    assert [(p.id, p.place) for p in passages] == [
        ("deep/long.md#1", "deep/long.md line 1"),
        ("deep/long.md#2", "deep/long.md line 3"),
        ("hours#1", "faq.jsonl line 1"),
        ("faq.jsonl:3#1", "faq.jsonl line 3"),
    ]
    assert passages[2].text == "Nine to five." and passages[1].text.endswith("other")
    assert document_of("deep/long.md#2") == "deep/long.md" and document_of("0a1b2c") == "0a1b2c"
    assert [p.id for p in read_passages(folder / "deep" / "long.md")] == ["long.md#1", "long.md#2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pdf", b"%PDF", r"expected a folder or a file \(.txt, .md, .jsonl\), found a .pdf file"),
        ("x.txt", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("x.txt", b"  \n", "no word in 1 documents"),
        ("x.jsonl", b'{"text": "a"}\n{"text": 3}', "x.jsonl line 2: expected an object with a string under text"),
        ("x.jsonl", b'{"text": "a", "id": true}', "line 1: id is neither"),
        ("x.jsonl", b'{"text": "a"', "line 1: not JSON"),
        ("x.jsonl", b'{"text": "\\ud800"}', "half of a surrogate pair"),
        ("x.jsonl", b'{"text": "a", "id": "i"}\n{"text": "b", "id": "i"}', "line 2: the id i is also that of x.jsonl line 1"),
    ],
)
def test_bad_documents_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_passages(tmp_path / name)


def test_folders_without_texts_and_missing_places(tmp_path):
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match="none of its 1 files"):
        read_passages(tmp_path)
    with pytest.raises(DataError, match="found nothing"):
        read_passages(tmp_path / "none")


def test_words_are_ranked_by_bm25():
    """Oracle: the formula of Robertson and Zaragoza (k1 1.2, b 0.75) on tokens split by hand."""
    query = "When are refunds paid, at the desk?"
    documents = [Counter(re.findall(r"\w+", text.lower())) for text in TEXTS]
    mean = sum(d.total() for d in documents) / len(documents)
    scores = np.zeros(len(TEXTS))
    for term in set(re.findall(r"\w+", query.lower())):
        within = sum(term in d for d in documents)
        idf = max(math.log((len(documents) - within + 0.5) / (within + 0.5)), 1e-6)  # FTS5's floor
        for index, d in enumerate(documents):
            scores[index] += idf * d[term] * 2.2 / (d[term] + 1.2 * (0.25 + 0.75 * d.total() / mean))
    expected = [index + 1 for index in np.argsort(-scores, kind="stable") if scores[index] > 0]
    assert expected == [2, 1, 4]  # the last by a word that most documents have
    assert _store().by_words(query, 10) == expected


def test_meaning_is_brute_force_with_ties_in_order():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(300)]
    texts += texts[:20]  # equal vectors
    embed = Vectors()
    store = _store(texts, embed)
    for query in ("abc", "hhh", texts[3]):
        similarity = embed(texts).astype(np.float64) @ embed([query])[0].astype(np.float64)
        for k in (1, 7, 320, 400):
            found = store.by_meaning(query, k)
            assert len(found) == min(k, 320)
            np.testing.assert_allclose(similarity[np.array(found) - 1], np.sort(similarity)[::-1][:k], rtol=0, atol=2e-6)
    twins = store.by_meaning(texts[3], 320)
    assert twins.index(4) < twins.index(304)


def test_fusion_by_hand():
    fused = fuse([[7, 3, 9], [3, 5]])
    assert [number for number, _ in fused] == [3, 7, 5, 9]
    assert fused[0][1] == 1 / 62 + 1 / 61 and fused[1][1] == 1 / 61 and fused[2][1] == 1 / 62
    assert [number for number, _ in fuse([[2], [1]])] == [1, 2]  # equal scores


def test_search_fuses_words_and_meaning():
    store = _store(embed=Vectors())
    words, meaning = store.by_words("refund paid", 100), store.by_meaning("refund paid", 100)
    assert words != meaning[: len(words)]
    hits = store.search("refund paid", 3)
    assert [(hit.id, hit.score) for hit in hits] == [(f"t{n}", s) for n, s in fuse([words, meaning])[:3]]
    assert hits[0].text == TEXTS[int(hits[0].id[1:]) - 1]
    assert len(store.search("refund", 99)) == 5 and [h.id for h in _store().search("refund", 99)] == ["t4"]
    assert store.search("qqq", 9) and _store().search("?!", 9) == [] and SqliteStore(":memory:", Vectors()).search("a", 3) == []


SHARED = _store(["alpha beta", "gamma delta"])


@given(st.text())
def test_no_question_is_a_syntax_error(text):
    assert "t1" in [hit.id for hit in SHARED.search(f"{text} alpha", 5)]


@pytest.mark.parametrize(
    "query",
    ['text: "alpha', "alpha AND NOT beta OR NEAR(", "text:alpha*", "-alpha", "alpha^2 {", "al\0pha alpha", "alpha " * 3000],
)
def test_operators_are_words(query):
    assert "t1" in [hit.id for hit in SHARED.search(query, 5)]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Die Größe der Straße", "GRÖSSE straße"),
        ("le café fermé", "CAFE"),
        ("le cafe\u0301 ferme\u0301", "café"),
        ("退款将在十天内支付。", "什么时候支付？"),
        ("हिन्दी में उत्तर", "हिन्दी"),
        ("well-known", "known"),
        ("snake_case", "case"),
    ],
)
def test_words_of_many_scripts(text, query):
    assert [hit.id for hit in _store(["nothing", text]).search(query, 5)] == ["t2"]


def test_a_repeated_word_counts_once():
    assert words_of("Paid paid PAID_x") == '"PAID" OR "x"'


def test_a_store_is_built_once_for_the_same_passages(tmp_path):
    path, embed = tmp_path / "deep" / "store.sqlite", Vectors()
    build_store(path, TEXTS, list("abcde"), embed).close()
    assert embed.calls == [TEXTS]
    store = build_store(path, TEXTS, list("abcde"), embed)
    assert embed.calls == [TEXTS] and [hit.id for hit in store.search("Nothing here", 1)] == ["e"]
    store.close()
    build_store(path, TEXTS[:2], list("ab"), embed).close()  # other passages
    build_store(path, TEXTS[:2], list("ab"), Vectors("other")).close()  # another embedder
    with pytest.raises(RunError, match="another embedder"):
        SqliteStore(path, embed)
    with pytest.raises(RunError, match="cannot be opened"):
        SqliteStore(tmp_path / "none" / "store.sqlite")
    path.write_bytes(b"torn" * 500)
    with pytest.raises(RunError, match="not a store of passages"):
        SqliteStore(path)
    store = build_store(path, TEXTS, list("abcde"))
    assert [hit.id for hit in store.search("free parking", 2)] == ["c"]
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["store.sqlite"]


def test_add_takes_all_or_none():
    store = _store()
    with pytest.raises(DataError, match="in the store already"):
        store.add(["new one", "other"], ["t9", "t1"])
    with pytest.raises(DataError, match="already: x"):
        store.add(["new one", "other"], ["x", "x"])
    assert store.search("new", 5) == []
    store.add(["new one"], ["t9"])
    assert [hit.id for hit in store.search("new", 5)] == ["t9"]
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.search("new", 5)


def test_train_rows_are_searched_and_sealed_rows_are_not_among_them(make_recipe):
    train = [_row(i, row["messages"][0]["content"], row["messages"][1]["content"]) for i, row in enumerate(toy_rows())]
    corpus = read_corpus(make_recipe(), train)
    assert corpus.kind == "train rows" and corpus.ids[9] == "r9"
    assert corpus.texts[0] == 'a red car\n-> {"colour": "red", "thing": "car"}'
    assert check_sealed(corpus, [_row("x", "a violet car")]) == 0
    for leak in (_row(9, "another question"), _row("x", " A red  CAR")):
        with pytest.raises(RunError, match=f"test row {leak.id} can be found"):
            check_sealed(corpus, [leak])
    with pytest.raises(RunError, match="no train row asks anything"):
        read_corpus(make_recipe(), [Row("a", "line 1", [{"role": "assistant", "content": "text"}])])


def test_a_row_asks_with_its_last_user_turn():
    turns = [
        {"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c"), ("tool", "d")]
    ]
    assert Row("a", "line 1", [*turns, {"role": "assistant", "content": "e"}]).question == "c"


def test_documents_of_the_recipe(make_recipe, tmp_path, talk):
    (tmp_path / "faq.md").write_text("Q: a red car? It is red indeed.\n")
    recipe = make_recipe({"data.documents": "faq.md"})
    assert recipe.data.documents == tmp_path / "faq.md"
    corpus = read_corpus(recipe, [])
    assert (corpus.kind, corpus.ids) == ("documents", ["faq.md#1"])
    assert check_sealed(corpus, [_row(1), _row(2, answer="blue"), _row(3, question="a blue car")]) == 1
    assert "1 of 3 test rows stand in data.documents" in talk()
    store = open_store(recipe, tmp_path / "store.sqlite", corpus)
    found = find(store, [_row(1), _row(2, question="boat")], 5)
    assert [[hit.id for hit in hits] for hits in found] == [["faq.md#1"], []]
    store.close()


def test_a_server_needs_an_embedder(make_recipe):
    with pytest.raises(RecipeError, match="embedder is needed"):
        make_recipe({"evaluate.retrieval.qdrant": "http://localhost:6333"})


def _hits(*ids):
    return [Hit(name, f"text of {name}", 0.0) for name in ids]


def test_recall_and_ndcg_by_hand():
    hits = [_hits("a#2", "a#1", "b#1", "c#7"), _hits("x", "y"), []]
    wanted = [{"a", "b"}, {"y", "z"}, {"a"}]
    assert measure.recall(hits, wanted, 5) == pytest.approx((1 + 0.5 + 0) / 3)
    assert measure.recall(hits, wanted, 2) == pytest.approx((0.5 + 0.5 + 0) / 3)
    two = 1 + 1 / math.log2(3)
    assert measure.ndcg(hits, wanted, 5) == pytest.approx(((1 + 1 / math.log2(4)) / two + (1 / math.log2(3)) / two) / 3)


def test_answer_recall_wants_whole_words():
    hits = [_hits("no.md#1"), [Hit("k", "Who knows; It's (Red, car)!", 0.0)], [Hit("k", "a {} b", 0.0)]]
    assert measure.answer_recall(hits, ["md 1", "it's", "{}"], 5) == 1.0
    assert measure.answer_recall(hits[1:2], ["red CAR"], 5) == 1.0
    assert measure.answer_recall(hits[1:2], ["no"], 5) == 0.0  # not inside "knows"


def test_figures_say_how_a_right_passage_is_known():
    rows = [_row(1, group="a.md"), _row(2, group="customer 7"), _row(3)]
    hits = [_hits("b.md#1", "a.md#1"), _hits("a.md#1"), _hits("a.md#2")]
    corpus = Corpus("documents", ["x"] * 3, ["a.md#1", "a.md#2", "b.md#1"], [])
    named = measure.recall_of(hits, rows, corpus)
    assert named.named == 1 and named.recall == 1.0 and named.ndcg == pytest.approx(1 / math.log2(3))
    assert "group_by" in named.relevant and "recall@5 1.00, nDCG@5 0.63" in measure.recall_line(named)
    unnamed = measure.recall_of(hits, rows, Corpus("train rows", ["x"], ["a.md"], [""]))
    assert unnamed.recall is None and unnamed.answer_recall == 0.0 and "nDCG" not in measure.recall_line(unnamed)
