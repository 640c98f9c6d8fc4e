"""The tuned model to talk to, and its base beside it."""

from collections.abc import Callable

from tunesmith.chat.render import with_system
from tunesmith.engines.open import open_in_process
from tunesmith.errors import RunError
from tunesmith.messages import Message
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.data import Rendered


def chat(run: RunDir, compare: bool = False) -> Callable[[list[Message]], dict[str, str]]:
    """The tuned model (and with ``compare`` the base) to talk to.

    Returns:
        A function from a conversation to ``{"tuned": answer}``, or with the base's answer beside it.

    Raises:
        RunError: the tuned model is behind an endpoint, or there are several and none is chosen.
    """
    recipe = run.recipe()
    base, at_a_time = base_of(run, recipe), recipe.evaluate.batch_size
    engines = {"base": open_in_process(base, None, at_a_time)} if compare else {}
    tuned = tuned_model(run, recipe)
    if tuned.endpoint is not None:
        raise RunError(
            f"{run.path}: the tuned model is behind an endpoint, not here to talk to",
            "gate one with --adapter, --merged or --gguf",
        )
    engines["tuned"] = open_in_process(tuned.here, tuned.adapter, at_a_time)
    budget = Rendered.read(run.rendered_file).max_new_tokens
    system = {"base": recipe.task.prompt, "tuned": recipe.task.short_prompt}

    def answer(conversation: list[Message]) -> dict[str, str]:
        return {
            name: engine.generate([with_system(conversation, system[name])], budget, lambda _: None)[0].text
            for name, engine in engines.items()
        }

    return answer
