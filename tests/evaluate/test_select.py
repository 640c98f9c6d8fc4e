"""The choice on dev, with an engine whose right answers are known."""

import json
from dataclasses import replace

import pytest

from shared import toy_rows
from tunesmith.engines.engine import Answer
from tunesmith.errors import RunError
from tunesmith.evaluate import select
from tunesmith.evaluate.cross_fit import cross_fit
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.prompts import PromptBook, question_key
from tunesmith.evaluate.search import PROMPTS
from tunesmith.evaluate.select import PromptTask, select_prompt, way_to_ask
from tunesmith.retrieval.store import build_store
from tunesmith.rundir.records.evaluation import Candidate, Selection
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]
ANSWERS = {row.messages[0]["content"]: row.messages[1]["content"] for row in ROWS}


class Parrot:
    """Right where ``knows`` says so of a prompt; remembers what it was asked."""

    def __init__(self, knows):
        self.knows, self.asked, self.schemas = knows, [], set()

    def generate(self, asked, max_new_tokens, advance, allowed=None, tools=None):
        self.asked += asked
        self.schemas.add(json.dumps(allowed))
        advance(len(asked))
        texts = [ANSWERS[p[-1]["content"].split("\n")[-1]] if self.knows(p) else "{}" for p in asked]
        return [Answer(text, sum(len(m["content"]) for m in p), 1, 0.1, True) for text, p in zip(texts, asked, strict=True)]

    def close(self):
        pass


def shows(k):
    return lambda prompt: sum(m["role"] == "assistant" for m in prompt) == k


def prompt_task(recipe, book, dev, engines, **more):
    metric = make_metric(recipe.task)
    settings = {"max_new_tokens": 8, "test_rows": 12, "engine_of": engines.__getitem__, **more}
    return PromptTask(recipe=recipe, book=book, dev=dev, metric=metric, **settings)


def choose(recipe, tmp_path, engines, dev=ROWS[40:52], **more):
    pool = ROWS[:40]
    texts, ids = [row.messages[0]["content"] for row in pool], [row.id for row in pool]
    store = build_store(tmp_path / "store.sqlite", texts, ids)
    book = PromptBook(recipe, pool, ROWS[40:], lambda _: store, lambda: store)
    return select_prompt(prompt_task(recipe, book, dev, engines, **more))


def test_the_best_on_dev_wins_and_only_train_rows_are_shown(make_recipe, tmp_path):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 3], "draws": 2}})
    engine = Parrot(shows(3))
    choice = choose(recipe, tmp_path, {"base": engine})
    assert choice.leader == "few_shot" and choice.arms["few_shot"].k == 3
    assert choice.finalists == ("few_shot", "few_shot:2", "few_shot:3") and choice.rivals == ("instruction", "few_shot")
    assert {choice.arms[name].k for name in choice.finalists} == {3} and len({*map(choice.arms.get, choice.finalists)}) == 3
    assert choice.scored(["instruction", "few_shot", "tuned"]) == (
        *("instruction", "few_shot", "few_shot:2", "few_shot:3", "tuned"),
    )
    assert sorted(c.arm for c in choice.candidates) == ["few_shot"] * 6 + ["instruction"]
    assert all(c.n == 12 for c in choice.candidates) and len(engine.asked) == 7 * 12
    choice.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == choice
    sealed = {question_key(row) for row in ROWS[40:]}
    for prompt in engine.asked:
        assert not sealed & {"".join(m["content"].split()) for m in prompt[:-1]}
    assert choose(recipe, tmp_path, {"base": Parrot(shows(0))}).leader == "instruction"


def test_among_equals_the_shorter_prompt(make_recipe, tmp_path):
    choice = choose(make_recipe(), tmp_path, {"base": Parrot(lambda _: True)})
    assert choice.leader == "instruction" and choice.arms["few_shot"].k == 2


def test_the_same_prompt_is_a_finalist_once_and_asked_once(make_recipe, tmp_path):
    """The optimized prompt begins with the instruction and the best examples; its own finds are finalists after those."""
    arms = ["zero_shot", "instruction", "few_shot", "optimized_prompt"]
    recipe = make_recipe({"evaluate.arms": arms, "task.short_prompt": "Colour and thing.", "task.prompt": "Colour and thing."})
    engine = Parrot(shows(2))
    choice = choose(recipe, tmp_path, {"base": engine})
    ways = [way_to_ask(choice.arms[name]) for name in choice.finalists]
    assert len(ways) == len(set(ways)) == 3 and choice.leader == "few_shot"
    bare = [json.dumps(prompt) for prompt in engine.asked if len(prompt) == 2]
    assert len(bare) == len(set(bare)) > 12  # zero_shot, instruction and the search's own start are one prompt
    assert len([c for c in choice.candidates if c.arm == "optimized_prompt"]) == choice.search.tried == PROMPTS


SEARCHED = {"evaluate.arms": ["instruction", "few_shot", "optimized_prompt"]}


@pytest.mark.parametrize(
    ("settings", "test_rows", "ways", "count"),
    [
        ({}, 12, ("",), 3),
        ({}, 150, ("",), 5),  # 13 prompts on 12 rows of dev
        ({}, 150, ("", "schema"), 7),
        (SEARCHED | {"evaluate.optimized_prompt.calls": 60}, 150, ("",), 6),  # 5 prompts more at most
        ({"evaluate.finalists": 2}, 150, ("",), 2),
    ],
)
def test_more_test_rows_and_more_prompts_need_more_finalists(make_recipe, tmp_path, settings, test_rows, ways, count):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 2, 3], "draws": 4}, **settings})
    engine = Parrot(lambda prompt: len(prompt) % 4 == 0)
    choice = choose(recipe, tmp_path, {"base": engine}, test_rows=test_rows, held_to=ways)
    assert len(choice.finalists) == count


def test_who_drops_out_early_is_written_down_with_the_rows_it_answered(make_recipe, tmp_path):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 2], "draws": 3}, "evaluate.finalists": 2})
    dev = [replace(ROWS[40 + i % 20], id=str(i)) for i in range(70)]
    choice = choose(recipe, tmp_path, {"base": Parrot(shows(1))}, dev=dev)
    few_shot = [c for c in choice.candidates if c.arm == "few_shot"]
    assert sorted(c.n for c in few_shot) == [35] * 4 + [70] * 4 and choice.dev_rows == 70
    assert all(c.candidate.k == 1 for c in few_shot if c.n == 70)


def test_the_figure_of_the_best_prompt_is_of_all_rows_and_of_prompts_in_no_order_of_merit(make_recipe, tmp_path, monkeypatch):
    """Ties go to the earlier: listed by rank, the lucky would be first where the rows that are left call it a tie."""
    listed = []

    def spy(ways, *more):
        listed.append([(len(way), sum(m["role"] == "assistant" for m in way[0].prompt)) for way in ways])
        return cross_fit(ways, *more)

    monkeypatch.setattr(select, "cross_fit", spy)
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 2], "draws": 3}, "evaluate.finalists": 2})
    dev = [replace(ROWS[40 + i % 20], id=str(i)) for i in range(70)]
    choice = choose(recipe, tmp_path, {"base": Parrot(shows(2))}, dev=dev)
    assert listed == [[(70, 0), *[(35, 1)] * 4, *[(70, 2)] * 4], []]
    assert choice.prompt.score == 1.0 and choice.prompt.n == 70 and choice.retrieval is None
    groups = [str(i % 20) for i in range(70)]
    by_group = choose(recipe, tmp_path, {"base": Parrot(shows(2))}, dev=dev, groups=groups)
    assert by_group.prompt.score == 1.0 and by_group.prompt.bound < choice.prompt.bound  # 20 units are less to go by than 70


def test_an_endpoint_gets_the_chosen_prompts_and_can_be_the_one_to_beat(make_recipe, tmp_path):
    endpoint = {"base_url": "http://x/v1", "model": "m"}
    arms = ["instruction", "external:big:few_shot"]
    recipe = make_recipe({"evaluate.arms": arms, "evaluate.external": {"big": endpoint}})
    base, big = Parrot(lambda _: False), Parrot(lambda _: True)
    choice = choose(recipe, tmp_path, {"base": base, "external:big:few_shot": big})
    assert choice.leader == "external:big:few_shot" and len(big.asked) == 12  # one prompt
    assert choice.finalists == ("external:big:few_shot", "instruction")
    assert all(sum(m["role"] == "assistant" for m in prompt) == 2 for prompt in big.asked)
    assert set(choice.arms) == {"instruction", "few_shot"}  # the latter for the endpoint, and no rival itself
    aside = make_recipe({"evaluate.arms": arms, "evaluate.external": {"big": {**endpoint, "rival": False}}})
    assert choose(aside, tmp_path, {"base": base}).finalists == ("instruction",)


def test_the_search_finds_the_instruction_that_helps_within_its_budget(make_recipe, tmp_path):
    own = "Say colour and thing as JSON!"
    settings = {"calls": 240, "instructions": [own]}
    arms = ["instruction", "optimized_prompt", "few_shot"]
    recipe = make_recipe({"evaluate.arms": arms, "evaluate.optimized_prompt": settings, "evaluate.few_shot.k": [1]})
    engine = Parrot(lambda prompt: prompt[0]["content"].strip() == own)
    choice = choose(recipe, tmp_path, {"base": engine})
    best = choice.arms["optimized_prompt"]
    assert choice.leader == "optimized_prompt" and best.instruction == own and best.variant == "own 1"
    others = sum(c.n for c in choice.candidates if c.arm != "optimized_prompt")
    assert choice.search.calls == len(engine.asked) - others <= 240


def test_constrained_answers_are_asked_of_all_alike_and_a_judge_compares_with_the_first(make_recipe, tmp_path):
    engine, seen = Parrot(lambda _: True), []

    def judge(outputs, baseline):
        seen.append([row.prompt for row in baseline])
        shown = sum(m["role"] == "assistant" for m in outputs[0].prompt)
        return [replace(row, score=None if shown == 2 else 0.5) for row in outputs]

    choice = choose(make_recipe(), tmp_path, {"base": engine}, allowed={"type": "object"}, held_to=("schema",), judge=judge)
    assert engine.schemas == {'{"type": "object"}'}
    assert len({json.dumps(prompts) for prompts in seen}) == 1 and len(seen[0][0]) == 2  # the instruction arm's
    assert choice.leader == "instruction"
    few_shot = next(c for c in choice.candidates if c.arm == "few_shot")
    assert few_shot.score is None and few_shot.unscored == few_shot.n == 12 and choice.prompt is None


class OnlyConstrained(Parrot):
    """Right where its answers are held to something and ``knows`` says so; chatters where they are not."""

    def generate(self, asked, max_new_tokens, advance, allowed=None, tools=None):
        answers = super().generate(asked, max_new_tokens, advance, allowed, tools)
        return [replace(a, text="Sure!") for a in answers] if allowed is None else answers


def test_a_prompt_that_is_right_only_when_constrained_is_found_and_is_a_finalist(make_recipe, tmp_path):
    recipe = make_recipe({"evaluate.arms": ["instruction", "few_shot", "optimized_prompt"]})
    assert recipe.task.held_to == ("", "schema")
    both = {"allowed": {"type": "object"}, "held_to": recipe.task.held_to}
    choice = choose(recipe, tmp_path, {"base": OnlyConstrained(shows(2))}, **both)
    best = choice.arms[choice.leader]
    assert best.held_to == "schema" and best.k == 2
    assert choice.way_of(choice.leader).endswith("answers held to the schema)")
    assert {trial.score for trial in choice.candidates if not trial.candidate.held_to} == {0.0}
    assert choice.search.tried == PROMPTS  # the search is as wide as before
    choice.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json").arms[choice.leader] == best
    free = choose(recipe, tmp_path, {"base": OnlyConstrained(shows(2))}, allowed={"type": "object"})
    assert not any(trial.score for trial in free.candidates)


class HalfChatters(Parrot):
    """Says every other answer in prose where nothing constrains it, and knows that."""

    def generate(self, asked, max_new_tokens, advance, allowed=None, tools=None):
        answers = super().generate(asked, max_new_tokens, advance, allowed, tools)
        prose = [list(ANSWERS).index(prompt[-1]["content"]) % 2 == 0 for prompt in asked]
        return [
            replace(answer, text="Sure!" if chats and allowed is None else answer.text, free=not chats)
            for answer, chats in zip(answers, prose, strict=True)
        ]


@pytest.mark.parametrize("order", [("", "schema"), ("schema", "")])
def test_only_what_a_prompt_answers_otherwise_when_constrained_is_asked_twice(make_recipe, order):
    dev, engine = ROWS[40:50], HalfChatters(lambda _: True)
    book = PromptBook(make_recipe(), ROWS[:40], dev, lambda _: None, lambda: None)
    both = {"allowed": {"type": "object"}, "held_to": ("", "schema")}
    trials = select.Trials(prompt_task(make_recipe(), book, dev, {"base": engine}, **both))
    outputs = {held_to: trials.outputs(Candidate(arm="zero_shot", instruction=None, held_to=held_to), 10) for held_to in order}
    assert trials.asked == len(engine.asked) == 15
    assert [row.output for row in outputs["schema"]] == [ANSWERS[row.question] for row in dev]
    assert [row.output == "Sure!" for row in outputs[""]] == [True, False] * 5
    assert [row.id for row in outputs[""]] == [row.id for row in dev]


def test_a_constrained_twin_that_answers_alike_takes_no_seat(make_recipe, tmp_path):
    recipe = make_recipe({"evaluate.few_shot": {"k": [1, 3], "draws": 1}})
    both = {"allowed": {"type": "object"}, "held_to": ("", "schema")}
    choice = choose(recipe, tmp_path, {"base": Parrot(lambda _: True)}, **both)
    assert [choice.arms[name].held_to for name in choice.finalists] == [""] * 3
    assert len({(choice.arms[name].k, choice.arms[name].selection) for name in choice.finalists}) == 3


def test_no_dev_row_is_refused(make_recipe):
    recipe = make_recipe()
    book = PromptBook(recipe, ROWS[:40], [], lambda _: None, lambda: None)
    with pytest.raises(RunError, match="no rows to choose"):
        select_prompt(prompt_task(recipe, book, [], {}))
