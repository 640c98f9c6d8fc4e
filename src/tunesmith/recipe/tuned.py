"""Keys of a tuned model that somebody else trained, or an earlier run did: what is brought takes the place of training.

One of four forms each: an adapter directory, a whole model's directory, a GGUF file, or a model behind an endpoint. A list of
them are candidates that are scored at once; the arm ``tuned`` is then one arm for each, ``tuned:NAME``, and ``deployed`` the
file of the one that is chosen by their answers.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.recipe.section import ENTRY, Section

Kind = Literal["adapter", "merged", "gguf", "endpoint"]
TUNED_OF = "tuned:"  # and the candidate's name: its arm, where there are several
ONE_ALONE: tuple[str, ...] = ("tuned_retrieval", "prompt_deployed")  # arms of a run with one tuned model


class Tuned(Section):
    """A tuned model that is brought: one of adapter, merged, gguf and endpoint."""

    name: Annotated[str, Field(pattern=ENTRY)] | None = Field(
        default=None,
        description="what the candidate is called; the name of its file, directory or endpoint's model when not given",
    )
    adapter: Path | None = Field(
        default=None, description="directory of a LoRA adapter: of PEFT (Unsloth, TRL, Axolotl, LLaMA-Factory ...) or of mlx-lm"
    )
    merged: Path | None = Field(default=None, description="directory of a whole tuned model with its tokenizer")
    gguf: Path | None = Field(default=None, description="GGUF file of a whole tuned model, as it is deployed")
    endpoint: str | None = Field(default=None, description="address of an OpenAI-compatible endpoint, up to and with /v1")
    model: str | None = Field(default=None, description="the model's name at the endpoint")
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the endpoint's key")

    @property
    def kind(self) -> Kind:
        """Which of the four forms it has."""
        if self.endpoint is not None:
            return "endpoint"
        return "adapter" if self.adapter is not None else "merged" if self.merged is not None else "gguf"

    @property
    def place(self) -> Path:
        """Where its files are; of all forms but an endpoint."""
        place = self.adapter or self.merged or self.gguf
        assert place is not None, "an endpoint has no files"
        return place

    @property
    def label(self) -> str:
        """Its name, given or derived."""
        if self.name is not None:
            return self.name
        stem = str(self.model) if self.endpoint is not None else self.place.stem if self.gguf else self.place.name
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "candidate"

    def resolved(self, absolute: Callable[[Path], Path]) -> "Tuned":
        """The same with paths that mean the same everywhere."""
        places = {key: self.__dict__[key] for key in ("adapter", "merged", "gguf")}
        return self.model_copy(update={key: place and absolute(place) for key, place in places.items()})

    @model_validator(mode="after")
    def _one_form(self) -> "Tuned":
        named = [key for key in ("adapter", "merged", "gguf", "endpoint") if self.__dict__[key] is not None]
        if len(named) != 1:
            what = " and ".join(named) if named else "none of them"
            raise ValueError(f"one of adapter, merged, gguf and endpoint names the tuned model, found {what}")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("endpoint and model go together: the address, and the model's name there")
        if self.api_key_env is not None and self.endpoint is None:
            raise ValueError("api_key_env is for an endpoint")
        return self


def never_with(candidates: tuple[Tuned, ...], metric: str) -> dict[str, str]:
    """The arms that a recipe with these tuned models cannot have, and why.

    Args:
        metric: of the task.
    """
    count, form = len(candidates), f"the tuned model is of the form {candidates[0].kind}"
    if count == 1:
        never = {} if candidates[0].kind == "adapter" else {"prompt_deployed": form}  # the base is exported beside it alone
        return never | ({"deployed": form} if candidates[0].kind == "endpoint" else {})
    never: dict[str, str] = dict.fromkeys(ONE_ALONE, f"there are {count} tuned models; gate one of them alone for it")
    if away := [one.label for one in candidates if one.kind == "endpoint"]:
        never["deployed"] = f"{away[0]} is behind an endpoint, where nothing is exported; gate the others without it"
    elif metric == "judge":
        never["deployed"] = (
            "the judge scores all arms at once, and the one whose file is asked would be chosen by its scores; "
            "gate one tuned model alone for its deployed form"
        )
    return never


def arms_with(candidates: tuple[Tuned, ...], arms: tuple[str, ...], given: bool, metric: str) -> tuple[str, ...]:
    """The arms of a recipe whose tuned model is brought: ``tuned`` is each candidate, and what cannot be is left out.

    Args:
        arms: as the recipe or its default has them.
        given: whether the recipe names them, so that nothing is left out in silence.
        metric: of the task.

    Raises:
        ValueError: an arm that such candidates cannot have.
    """
    several, never = len(candidates) > 1, never_with(candidates, metric)
    if given and (wrong := [arm for arm in arms if arm in never]):
        raise ValueError(f"evaluate.arms: {wrong[0]}: {never[wrong[0]]}")
    own = tuple(f"{TUNED_OF}{one.label}" for one in candidates)
    found = [arm for arm in arms if arm.startswith(TUNED_OF) and arm not in own]
    if found:
        raise ValueError(f"evaluate.arms: {found[0]}: no such tuned model; there are {', '.join(own) if several else 'tuned'}")
    expanded: list[str] = []
    for arm in arms:
        if arm not in never:
            expanded += own if arm == "tuned" and several else [arm]
    if not any(arm == "deployed" or arm.startswith("tuned") for arm in expanded):
        raise ValueError("evaluate.arms: none of them is the tuned model that is brought; add tuned")
    if several and not any(arm in own for arm in expanded):
        raise ValueError("evaluate.arms: deployed: it is chosen by answers of the tuned models, and none is an arm; add tuned")
    return tuple(dict.fromkeys(expanded))
