"""What a tracker is told of a run beside its steps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

Value = str | int | float | bool
Outcome = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run as it stands.

    Attributes:
        directory: of the run.
        name: that people see.
        id: of this training: one that is begun anew from other keys or rows has another.
        project: where the tracker files it (MLflow: experiment).
        recipe: the resolved recipe, as text.
        config: its keys, dotted, with their values.
        tags: hashes, versions, places.
        summary: figures and words of the whole run: arms and verdict, once they are there.
        last_step: of the training so far.
        outcome: how the last stage ended.
    """

    directory: Path
    name: str
    id: str
    project: str
    recipe: str
    config: Mapping[str, Value]
    tags: Mapping[str, str]
    summary: Mapping[str, Value]
    last_step: int
    outcome: Outcome

    @property
    def label(self) -> str:
        """Name and id, where a store knows runs by their names alone."""
        return f"{self.name}-{self.id[:6]}"

    @property
    def numbers(self) -> dict[str, float]:
        """The figures of the summary."""
        return {name: float(value) for name, value in self.summary.items() if not isinstance(value, str)}

    @property
    def words(self) -> dict[str, str]:
        """The texts of the summary."""
        return {name: value for name, value in self.summary.items() if isinstance(value, str)}


def flattened(settings: Mapping[str, JsonValue], prefix: str = "") -> dict[str, Value]:
    """Nested keys as dotted ones; lists as JSON, keys without a value left out."""
    flat: dict[str, Value] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat[f"{prefix}{name}"] = json.dumps(value, ensure_ascii=False)
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat
