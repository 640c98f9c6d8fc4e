"""``manifest.json``: where a run comes from, for whoever wants to make it again."""

from dataclasses import dataclass, field

from pydantic import JsonValue

from tunesmith.rundir.records.base import FileRecord, Record


@dataclass(frozen=True, kw_only=True)
class GitState(Record):
    """The repository that a run was started in.

    Attributes:
        commit: hexadecimal.
        dirty: whether files differ from it.
    """

    commit: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class Manifest(FileRecord):
    """Facts of a run that no stage depends on.

    Attributes:
        recipe_source: the recipe file; None for a recipe made in Python.
        model: hub id or path, revision and sha256 as the recipe names them, the sha256 of each file, and of a base that comes
            quantised ``dequantized_from``.
        data: the path as the recipe names it, and the sha256 of each file.
        template_sha256: of the chat template's text.
        moment: when the rows were first rendered; what a template that writes a date writes in this run, for good.
        seed: the recipe's.
        packages, git, hardware: versions, commit and machine at the time the data were read.
    """

    recipe_source: str | None = None
    model: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    data: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    template_sha256: str | None = None
    moment: str | None = None
    seed: int | None = None
    packages: dict[str, str] = field(default_factory=dict[str, str])
    git: GitState | None = None
    hardware: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
