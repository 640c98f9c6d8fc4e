"""Commands for what was made, and the schema of a recipe."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.application import USE, Lazy, app
from tunesmith.cli.options import Target

if TYPE_CHECKING:
    from tunesmith.messages import Message

logger = logging.getLogger(__name__)
_verbs = Lazy("tunesmith.pipeline.verbs")
_recipe = Lazy("tunesmith.recipe")


@app.command(rich_help_panel=USE)
def chat(
    target: Target,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answer beside the tuned one's.")] = False,
) -> None:
    """Talk to the tuned model. An empty line starts over, end of input leaves."""
    answer = _verbs.chat(_verbs.look_at(target), compare)
    if sys.stdin.isatty():
        logger.info("type a message; an empty line starts a new conversation, Ctrl-D leaves")
    conversation: list[Message] = []
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            conversation = []
            continue
        conversation.append({"role": "user", "content": text})
        answers = answer(conversation)
        for name, text in answers.items():
            print(f"{name}: {text}" if compare else text, flush=True)
        conversation.append({"role": "assistant", "content": answers["tuned"]})


@app.command("accept-base", rich_help_panel=USE)
def accept_base(target: Target) -> None:
    """Say that the adapter is meant for the base that is there now, though its weights are not those it was trained on."""
    print(_verbs.accept_base(_verbs.open_run(target)))


@app.command(rich_help_panel=USE)
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(_recipe.json_schema())
