import json

from conftest import toy_rows
from tunesmith.evaluate import prompts
from tunesmith.evaluate.metrics import make_scorer
from tunesmith.evaluate.select import select_prompt
from tunesmith.infer.engine import Answer

ROWS = [{"id": str(i), "place": f"line {i}", **row} for i, row in enumerate(toy_rows())]


class Parrot:
    """Right only when ``k`` demonstrations were shown; remembers what it was asked."""

    def __init__(self, k):
        self.k, self.asked = k, []

    def generate(self, asked, max_new_tokens, advance):
        self.asked += asked
        advance(len(asked))
        by_question = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in ROWS}
        right = [sum(m["role"] == "assistant" for m in prompt) == self.k for prompt in asked]
        return [
            Answer(by_question[p[-1]["content"]] if ok else "{}", len(p), 1, 0.1, True)
            for p, ok in zip(asked, right, strict=True)
        ]


def test_prompt_arms_get_the_full_instruction_tuned_arms_the_short_one(make_recipe):
    recipe = make_recipe({"task.short_prompt": "Short."})
    asked = prompts.prompted(recipe, ROWS[0], ROWS[1:3])
    assert [m["role"] for m in asked] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert asked[0]["content"] == recipe.task.prompt and asked[-1] == ROWS[0]["messages"][0]
    assert prompts.tuned(recipe, ROWS[0]) == [{"role": "system", "content": "Short."}, ROWS[0]["messages"][0]]


def test_selection_takes_the_best_on_dev_and_shows_train_rows_alone(make_recipe, tmp_path):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 3], "draws": 2, "dev_rows": 5}})
    train, dev, test = ROWS[:40], ROWS[40:52], ROWS[52:]
    scorer = make_scorer("json", None)
    engine = Parrot(3)
    choice = select_prompt(recipe, engine, train, dev, scorer, 8, tmp_path / "selection.json")
    assert choice["best_prompt"] == "few_shot" and len(choice["few_shot"]) == 3
    assert len(choice["candidates"]) == 5 and all(c["n"] == 5 for c in choice["candidates"])
    assert choice == json.loads((tmp_path / "selection.json").read_text())
    sealed = {r["messages"][0]["content"] for r in test}
    shown = {m["content"] for asked in engine.asked for m in asked if m["role"] == "user"}
    assert not sealed & shown
    assert select_prompt(recipe, Parrot(0), train, dev, scorer, 8, tmp_path / "s.json")["best_prompt"] == "zero_shot"
