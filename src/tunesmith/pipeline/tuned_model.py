"""The tuned model of a run: the adapter that it trained, or what was brought in the place of training.

Whoever asks, exports or compares the tuned model asks here which one it is and how it is opened. A brought adapter stands on
the run's base; a merged directory and a GGUF are models of their own, with a tokenizer of their own. Each is asked with the
template that it came with, settled as the run's is (``pipeline/base.py``): a model that is asked with another one than it was
trained with is not the model that somebody would deploy. Where several were brought, the tuned model of the run is the one that
was chosen (``pipeline/choose.py``), and each has an arm of its own beside it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.engines.base import BaseModel, open_base
from tunesmith.errors import RunError
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.dials import placed
from tunesmith.recipe import Recipe
from tunesmith.recipe.evaluate import External
from tunesmith.recipe.tuned import TUNED_OF, Tuned
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.brought import Brought
from tunesmith.rundir.records.choice import Choice


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """A tuned model that is not loaded yet.

    Attributes:
        key: what tells the candidate from all others, in whichever form it is.
        answering_key: fingerprint of all that its answers follow from, beside the questions.
        base: what is opened in this process, with the template that it is asked with; None behind an endpoint.
        adapter: PEFT directory on ``base``; None where ``base`` is the whole tuned model.
        gguf: the file as it is deployed, where one was brought.
        endpoint: where it answers, if not here.
    """

    key: str
    answering_key: str
    base: BaseModel | None = None
    adapter: Path | None = None
    gguf: Path | None = None
    endpoint: External | None = None

    @property
    def here(self) -> BaseModel:
        """``base``, of a model that is no endpoint."""
        assert self.base is not None, "an endpoint is not opened here"
        return self.base


def tuned_model(run: RunDir, recipe: Recipe, arm: str = "tuned") -> TunedModel:
    """The tuned model behind an arm.

    Args:
        arm: ``tuned:NAME`` is one of several, any other the one of the run.

    Raises:
        RunError: what was brought is not on record, or there are several and none is chosen.
    """
    if not recipe.tuned:
        weights = content_hash(run.adapter / WEIGHTS)
        return TunedModel(key=weights, answering_key=weights, base=base_of(run, recipe), adapter=run.adapter)
    one = candidate_of(run, recipe, arm)
    brought = Brought.read(run.brought_file).named(one.label)
    if one.endpoint is not None:
        endpoint = endpoint_of(one)
        return TunedModel(key=brought.key, answering_key=brought.key, endpoint=endpoint)
    template = run.brought_template(one.label).read_text(encoding="utf-8")
    if one.adapter is not None:
        base, adapter = replace(base_of(run, recipe), template=template), adapter_directory(run, recipe, one)
        facts = (brought.key, content_hash(adapter / CONFIG), template, base.answering_key)
        return TunedModel(key=brought.key, answering_key=fingerprint(*facts), base=base, adapter=adapter)
    base = placed(open_base(of_model(recipe, one), template), recipe)
    facts = (brought.key, template, recipe.base, recipe.train.compute, recipe.base_head, recipe.per_layer_embeddings)
    return TunedModel(key=brought.key, answering_key=fingerprint(*facts), base=base, gguf=one.gguf)


def candidate_of(run: RunDir, recipe: Recipe, arm: str) -> Tuned:
    """The candidate behind an arm of a recipe whose tuned model is brought.

    Raises:
        RunError: there are several, and none of them is chosen.
    """
    if len(recipe.tuned) == 1:
        return recipe.tuned[0]
    labels = ", ".join(one.label for one in recipe.tuned)
    if not arm.startswith(TUNED_OF):
        if not recipe.chooses:
            raise RunError(
                f"{run.path}: there is no one tuned model here, but several: {labels}",
                "gate one of them alone; or all of them with deployed in evaluate.arms, and the best is chosen and exported",
            )
        if not run.choice_file.is_file():
            raise RunError(
                f"{run.path}: which of {labels} is deployed is not chosen yet", f"run: tunesmith run {run.path} --until choose"
            )
        arm = Choice.read(run.choice_file).name
    for one in recipe.tuned:
        if one.label == arm.removeprefix(TUNED_OF):
            return one
    raise RunError(
        f"{run.path}: {arm} was chosen once and is in the recipe no more, which has {labels}", f"run: tunesmith run {run.path}"
    )


def of_model(recipe: Recipe, one: Tuned) -> Recipe:
    """The recipe as if a whole tuned model were its base."""
    return recipe.model_copy(update={"model": str(one.place), "revision": None, "model_sha256": None})


def endpoint_of(one: Tuned) -> External:
    """Where a candidate behind an endpoint answers."""
    return External(base_url=str(one.endpoint), model=str(one.model), api_key_env=one.api_key_env)


def adapter_directory(run: RunDir, recipe: Recipe, one: Tuned) -> Path:
    """Where a brought adapter lies: the run's own place, or a folder for each of several."""
    return run.adapter if len(recipe.tuned) == 1 else run.brought / one.label
