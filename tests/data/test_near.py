"""Near duplicates against brute force over exact Jaccard similarities, and what must not change the result."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import minhash, near
from tunesmith.data.kept_texts import KeptTexts
from tunesmith.data.minhash import band_shape, meeting, shingles
from tunesmith.data.near import NearDuplicates, question
from tunesmith.data.normalize import normalized
from tunesmith.rundir.records.quality import RowPlace
from tunesmith.rundir.rows import Row

RANDOM = random.Random(7)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz", k=RANDOM.randint(2, 9))) for _ in range(3000)]


def _text(rng, words=60):
    return " ".join(rng.choices(WORDS, k=words))


def _edited(rng, text, edits):
    words = text.split()
    for _ in range(edits):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def _row(asked, answer="yes", **more):
    return Row("id", "line", [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **more)


def _found(rows, threshold=0.8, borders=()):
    near_duplicates = NearDuplicates(threshold)
    for start, end in itertools.pairwise([0, *borders, len(rows)]):
        near_duplicates.add(rows[start:end])
    return near_duplicates


def _places(rows):
    return {row: RowPlace(id=f"id{row}", place=f"line {row}") for row in rows}


def _windows(text):
    padded = bytes(7) + "".join(text.split()).casefold().encode() + bytes(7)
    return {padded[i : i + 8] for i in range(len(padded) - 7)}


def _exact(a, b):
    """Jaccard similarity of 8-byte windows, the slow way."""
    a, b = _windows(a), _windows(b)
    return len(a & b) / len(a | b)


def _planted(seed, rows=240):
    rng = random.Random(seed)
    texts = [_text(rng, rng.choice([8, 30, 60, 90])) for _ in range(rows // 2)]
    while len(texts) < rows:
        texts.append(_edited(rng, rng.choice(texts), rng.randint(1, 3)))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("kept", [near.EXACT_BYTES, 0], ids=["exact", "estimated"])
@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_near_pairs_are_found_and_others_are_not(monkeypatch, kept, threshold):
    monkeypatch.setattr(near, "EXACT_BYTES", kept)
    texts = _planted(seed=1)
    found = _found([_row(text) for text in texts], threshold)
    groups = found.groups()
    assert found.report(_places).exact == bool(kept)
    # Exact judgement may only miss what never met in a band; an estimate errs by up to four standard errors.
    over, under = (0.04, 0) if kept else (0.1, 0.14)
    near_pairs, loose = 0, list(range(len(texts)))
    windows = [_windows(text) for text in texts]
    for a, b in itertools.combinations(range(len(texts)), 2):
        similarity = len(windows[a] & windows[b]) / len(windows[a] | windows[b])
        if similarity >= threshold + over:
            near_pairs += 1
            assert groups[a] == groups[b], similarity
        if similarity >= threshold - under:
            low, high = sorted([loose[a], loose[b]])
            loose = [low if label == high else label for label in loose]
    assert near_pairs > 25
    # Nothing is together that no chain of pairs over the lower bound would join.
    assert all(loose[a] == loose[int(groups[a])] for a in range(len(texts)))


def test_batch_borders_change_nothing(monkeypatch):
    monkeypatch.setattr(near, "TEMPLATE_SAMPLE", 150)
    rows = [_row("Name the thing in this text, please: " + text) for text in _planted(seed=2)]
    whole = _found(rows)
    expected = whole.report(_places)
    assert expected.clusters > 5 and expected.template_windows > 10
    for seed in range(6):
        borders = sorted(random.Random(seed).sample(range(len(rows)), 9))
        again = _found(rows, borders=borders)
        assert again.clusters() == whole.clusters() and again.report(_places) == expected
    assert _found(rows, borders=range(len(rows))).clusters() == whole.clusters()


def test_copies_are_no_cluster_but_stand_in_the_cluster_of_what_they_resemble():
    rng = random.Random(3)
    a, b = _text(rng), _text(rng)
    variant = _edited(rng, a, 1)
    rows = [_row(b), _row(a), _row(b.upper()), _row(variant, "no"), _row(a + " "), _row(variant)]
    found = _found(rows)
    assert found.clusters() == [[1, 3, 4, 5]]
    assert found.groups().tolist() == [0, 1, 0, 1, 1, 1]
    report = found.report(_places)
    assert (report.clusters, report.rows, report.rows_left, report.unlike_answers) == (1, 4, 3, 1)
    largest = report.largest[0]
    assert (largest.rows, largest.questions, largest.answers) == (4, 2, 2)
    assert [(row.id, row.excerpt) for row in largest.examples] == [("id1", a[:80] + "..."), ("id3", variant[:80] + "...")]


def test_a_shared_instruction_is_no_similarity():
    rng = random.Random(4)
    instruction = _text(rng, 50)
    texts = [_text(rng, 10) for _ in range(299)]
    texts.append(texts[10].replace(" ", "! ", 1))
    assert _exact(instruction + texts[0], instruction + texts[1]) > 0.65
    assert _found([_row(f"{instruction} {text}") for text in texts], 0.65).clusters() == [[10, 299]]


def test_a_giant_cluster_and_boilerplate_cost_linear_work(monkeypatch):
    rng = random.Random(5)
    original, boilerplate = _text(rng, 100), _text(rng, 60)
    variants = [_edited(rng, original, 1) for _ in range(1200)]
    # Alike to 0.6 or so: they meet in many bands and are near in none, and two of them are.
    alike = [f"{boilerplate} {_text(rng, 18)}" for _ in range(1200)]
    alike[1100] = _edited(rng, alike[3], 1)
    rows = [_row(text) for text in [*variants, *alike]]
    judged, agreement = [], near.agreement
    monkeypatch.setattr(near, "agreement", lambda matrix, a, b: judged.append(len(a)) or agreement(matrix, a, b))
    found = _found(rows)
    assert found.clusters() == [list(range(1200)), [1203, 2300]]
    bands, _ = band_shape(0.8)
    assert sum(judged) < len(rows) * bands * near.NEIGHBOURS / 4


def test_leaks_name_the_nearest_training_row():
    rng = random.Random(6)
    a, b, c = (_text(rng) for _ in range(3))
    texts = [a, _edited(rng, a, 4), _edited(rng, a, 1), b, b, c, _edited(rng, c, 1)]
    rows = [_row(text, "no" if i == 2 else "yes") for i, text in enumerate(texts)]
    found = _found(rows, threshold=0.6)
    leaks = found.leaks(["train", "train", "test", "test", "train", "test", "dev"])
    assert [(leak.test, leak.train, leak.same_answer) for leak in leaks] == [(2, 0, False), (3, 4, True)]
    assert leaks[0].similarity == pytest.approx(_exact(texts[2], texts[0]), abs=1e-4)
    assert leaks[1].similarity == 1
    assert found.leaks(["train"] * 7) == []


def test_what_is_compared():
    call = [{"type": "function", "function": {"name": "find", "arguments": {"q": "é"}}}]
    messages = [
        {"role": "system", "content": "secret"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "answer"},
    ]
    asked = question(Row("a", "line 1", messages))
    assert all(part in asked for part in ("one", "find", "é", "two"))
    assert "secret" not in asked and "answer" not in asked
    text = Row("a", "line 1", [{"role": "assistant", "content": "a plain text"}], kind="text")
    assert question(text) == "a plain text"


def test_rows_without_a_question_are_alone():
    unasked = Row("a", "line 1", [{"role": "assistant", "content": "hello"}])
    found = _found([unasked, unasked, _row("x"), _row(" X")])
    assert found.groups().tolist() == [0, 1, 2, 2] and found.clusters() == []
    assert _found([]).clusters() == [] and _found([_row("x")]).groups().tolist() == [0]


@given(st.lists(st.text(max_size=40), max_size=8))
def test_shingles_are_the_windows_of_each_text(texts):
    texts = [normalized(text) for text in texts]
    windows, offsets = shingles(texts, np.empty(0, np.uint64))
    seen = {}
    for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        padded = bytes(7) + text + bytes(7)
        plain = [padded[i : i + 8] for i in range(len(text) + 7)]
        assert len(plain) == end - start
        for window, number in zip(plain, windows[start:end].tolist(), strict=True):
            assert seen.setdefault(window, number) == number
    assert len(set(seen.values())) == len(seen)
    if len(windows):
        left_out = np.unique(windows[: int(offsets[1])])
        fewer, shifted = shingles(texts, left_out)
        kept = [windows[a:b][~np.isin(windows[a:b], left_out)].tolist() for a, b in itertools.pairwise(offsets.tolist())]
        assert [fewer[a:b].tolist() for a, b in itertools.pairwise(shifted.tolist())] == kept


def test_the_curve_in_the_essay_is_the_curve_of_the_bands():
    assert band_shape(0.8) == (21, 6)
    line = next(line for line in minhash.__doc__.splitlines() if line.strip().startswith("meets "))
    points = next(line for line in minhash.__doc__.splitlines() if line.strip().startswith("J  ")).split()[1:]
    for similarity, said in zip(points, line.split()[1:], strict=True):
        assert meeting(float(similarity), 21, 6) == pytest.approx(float(said), abs=0.006)
    for threshold in (0.1, 0.5, 0.9, 0.97, 1.0):
        assert meeting(threshold, *band_shape(threshold)) >= minhash.RECALL


def test_a_bit_more_than_chance_is_no_agreement():
    rng = random.Random(8)
    signatures = minhash.signatures([_text(rng).encode() for _ in range(200)], np.empty(0, np.uint64))
    assert signatures.nbytes == 200 * 256
    assert minhash.agreement(signatures, np.arange(199), np.arange(1, 200)).mean() < 0.01


@pytest.mark.parametrize("size", [1, 700, 5000])
def test_kept_texts_are_what_was_added(size):
    texts = [f"{'' if number % 3 else chr(0)}ÿ{chr(0xD800)}\n{number}" for number in range(5000)]
    kept = KeptTexts()
    for start in range(0, len(texts), size):
        kept.add(texts[start : start + size])
    wanted = {0, 2047, 2048, 4095, 4096, 4999}
    assert kept.get(wanted) == {number: texts[number] for number in wanted}
