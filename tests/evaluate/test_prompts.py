import pytest

from shared import toy_rows
from tunesmith.errors import RunError
from tunesmith.evaluate import prompts
from tunesmith.evaluate.prompts import PromptBook
from tunesmith.retrieval.store import build_store
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]
SEALED = ROWS[40:]
RANDOM = {"arm": "few_shot", "instruction": None, "selection": "random", "k": 2}
RETRIEVAL = {"arm": "retrieval", "instruction": None, "documents": 1}


def book(recipe, tmp_path, pool=ROWS[:40], sealed=SEALED):
    texts, ids = [row.messages[0]["content"] for row in pool], [row.id for row in pool]
    return PromptBook(
        recipe,
        pool,
        sealed,
        lambda selection: build_store(tmp_path / f"{selection}.sqlite", texts, ids),
        lambda: build_store(tmp_path / "documents.sqlite", [f"fact about {t}" for t in texts], ids),
    )


def test_prompt_arms_get_the_full_instruction_zero_shot_and_tuned_the_short_one(make_recipe, tmp_path):
    recipe = make_recipe({"task.short_prompt": "Short."})
    prompt_book = book(recipe, tmp_path)
    (zero,), (full,) = (prompts.candidates(recipe, prompt_book.pool, arm) for arm in ("zero_shot", "instruction"))
    short = [{"role": "system", "content": "Short."}, ROWS[50].messages[0]]
    assert prompt_book.messages(zero, ROWS[50]) == prompt_book.tuned(ROWS[50]) == prompts.tuned(recipe, ROWS[50]) == short
    assert prompt_book.messages(full, ROWS[50]) == [{"role": "system", "content": recipe.task.prompt}, ROWS[50].messages[0]]
    shown = Candidate(arm="few_shot", instruction="Full.", selection="random", k=2, demonstrations=("1", "2"))
    asked = prompt_book.messages(shown, ROWS[50])
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked[1:5] == ROWS[1].messages + ROWS[2].messages
    assert Candidate.parse(shown.to_json()) == shown


def test_nearest_rows_share_words_and_stand_nearest_last(make_recipe, tmp_path):
    prompt_book = book(make_recipe(), tmp_path)
    question = Row("q", "line 1", [{"role": "user", "content": "a white stone"}, {"role": "assistant", "content": "x"}])
    asked = prompt_book.messages(Candidate(arm="few_shot", instruction=None, selection="bm25", k=3), question)
    shown = [m["content"] for m in asked[:-1] if m["role"] == "user"]
    assert shown[-1] == "a white stone" and len(shown) == 3 and all("white" in t or "stone" in t for t in shown)


def test_documents_stand_before_the_question_alike_for_base_and_tuned(make_recipe, tmp_path):
    prompt_book = book(make_recipe({"task.short_prompt": "Short."}), tmp_path, sealed=[])
    candidate = Candidate(arm="retrieval", instruction="Full.", documents=2)
    base, tuned = prompt_book.messages(candidate, ROWS[50]), prompt_book.tuned(ROWS[50], 2)
    assert base[-1] == tuned[-1] and (base[0]["content"], tuned[0]["content"]) == ("Full.", "Short.")
    text = base[-1]["content"]
    assert text.endswith("\n\n" + ROWS[50].messages[0]["content"]) and "[1] fact about" in text and "[2] fact" in text
    assert prompts.framed([], "Why?") == "Why?"


def test_what_is_sealed_is_never_shown(make_recipe, tmp_path):
    spelled_otherwise = Row("t", "line 1", [{"role": "user", "content": "A  RED car"}, {"role": "assistant", "content": "x"}])
    assert ROWS[0].messages[0]["content"] == "a red car"
    pool = prompts.shown_pool(ROWS[:40], [*SEALED, spelled_otherwise])
    assert [row.id for row in pool] == [str(i) for i in range(1, 40)]
    for sealed in ([ROWS[3]], [spelled_otherwise]):
        prompt_book = book(make_recipe(), tmp_path, sealed=sealed)
        with pytest.raises(AssertionError, match="also sealed"):
            prompt_book.messages(Candidate(**RANDOM, demonstrations=("0", "3")), ROWS[50])
    with pytest.raises(AssertionError, match="among the documents"):
        book(make_recipe(), tmp_path, sealed=ROWS[:40]).messages(Candidate(**RETRIEVAL), ROWS[0])


def test_candidates_are_the_same_for_a_seed_and_fit_the_pool(make_recipe):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 3], "draws": 2, "selection": ["random", "bm25"]}})
    found = prompts.candidates(recipe, ROWS[:40], "few_shot")
    names = ["k=1 draw=0", "k=1 draw=1", "k=1 bm25", "k=3 draw=0", "k=3 draw=1", "k=3 bm25"]
    assert [c.name for c in found] == names and found == prompts.candidates(recipe, ROWS[:40], "few_shot")
    assert found != prompts.candidates(make_recipe({"seed": 1}), ROWS[:40], "few_shot")
    with pytest.raises(RunError, match="3 examples wanted, train has 2 rows"):
        prompts.candidates(recipe, ROWS[:2], "few_shot")
