"""Instructions that another model writes, by the real gepa, with a base model that obeys one word."""

from dataclasses import replace

import pytest

from chat_server import Server, completion
from outputs import OUTPUT
from shared import toy_rows
from tunesmith.engines.open import open_writer
from tunesmith.errors import RunError
from tunesmith.evaluate.gepa import write_instruction
from tunesmith.evaluate.search import instructions, space
from tunesmith.rundir.rows import Row

ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]
TRAIN, DEV = ROWS[:40], ROWS[40:46]


def answers_of(instruction, rows):
    """A base model that is right where the instruction says MAGIC."""
    scored = replace(OUTPUT, output="x", score=float("MAGIC" in instruction))
    return [replace(scored, prompt=row.messages[:1], reference=row.messages[1]["content"]) for row in rows]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def recipe_of(make_recipe, server, answers=60):
    writer = {"base_url": server.url, "model": "strong", "answers": answers}
    return make_recipe({"evaluate.optimized_prompt": {"writer": writer}})


def test_what_does_better_on_dev_is_kept_and_the_budget_holds(make_recipe, server):
    texts = ["Write it down.", "Be MAGIC."]
    server.reply = lambda number, asked: (200, completion(f"```\n{texts[min(number, 2) - 1]}\n```"), {})
    recipe, spent = recipe_of(make_recipe, server), []

    def counted(instruction, rows):
        spent.extend(rows)
        return answers_of(instruction, rows)

    writer, close = open_writer(recipe.evaluate.optimized_prompt.writer)
    written = write_instruction(recipe, TRAIN, DEV, counted, writer)
    close()
    assert written.instruction == "Be MAGIC." and written.rewritings == len(server.requests) >= 2
    assert written.answers == len(spent) <= 60
    shown = server.requests[0][1]["messages"][-1]["content"]
    assert recipe.task.prompt in shown  # the writer sees the instruction, train rows and their references
    references = [row.messages[1]["content"] for row in TRAIN if row.messages[1]["content"] in shown]
    assert len(references) == 3 and not any(row.messages[1]["content"] in shown for row in DEV)


def test_without_a_better_one_the_first_stays(make_recipe, server):
    server.reply = lambda number, asked: (200, completion("```\nNo better.\n```"), {})
    recipe = recipe_of(make_recipe, server, answers=40)
    writer, close = open_writer(recipe.evaluate.optimized_prompt.writer)
    written = write_instruction(recipe, TRAIN, DEV, answers_of, writer)
    close()
    assert written.instruction == recipe.task.prompt and written.answers <= 40


def test_a_budget_that_pays_for_no_rewriting_is_an_error(make_recipe, server):
    recipe = recipe_of(make_recipe, server, answers=17)
    with pytest.raises(RunError, match="do not pay for one rewriting on 6 dev rows"):
        write_instruction(recipe, TRAIN, DEV, answers_of, lambda _: "")


def test_it_joins_the_search_before_what_rules_made(make_recipe):
    recipe = make_recipe()
    options = space(recipe, TRAIN, [], "Be MAGIC.")
    assert (options[0].instruction, options[0].k, options[0].variant) == ("Be MAGIC.", 0, "written")
    assert any(candidate.instruction == "Be MAGIC." and candidate.k for candidate in options)
    assert "written" not in instructions(recipe)
