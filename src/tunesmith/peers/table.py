"""The tools whose configurations are read, and how a file is told to be one's.

A tool is told from its keys: each has some that no other has. Where that leaves none or two, the file is refused with the
option that settles it; a guess would read one tool's keys with another's defaults.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

import yaml
from pydantic import JsonValue

from tunesmith.errors import RecipeError
from tunesmith.peers import axolotl, llama_factory, openai_job, swift, trl, unsloth
from tunesmith.peers.translation import Translation
from tunesmith.recipe.yaml_text import parse_yaml

Tool = Literal["axolotl", "llama-factory", "trl", "unsloth", "openai", "ms-swift"]
NAMES: dict[Tool, str] = {
    **{"axolotl": axolotl.NAME, "llama-factory": llama_factory.NAME, "trl": trl.NAME},
    **{"unsloth": unsloth.NAME, "openai": openai_job.NAME, "ms-swift": swift.NAME},
}
MARKS: dict[Tool, tuple[str, ...]] = {
    **{"axolotl": axolotl.MARKS, "llama-factory": llama_factory.MARKS, "trl": trl.MARKS},
    **{"openai": openai_job.MARKS, "ms-swift": swift.MARKS},
}
MODEL_KEYS: dict[str, tuple[Tool, ...]] = {
    "base_model": ("axolotl",),
    "model_name_or_path": ("llama-factory", "trl"),
    "model": ("ms-swift", "openai"),
}
# Keys of files that are no training of one of these tools, with what they are.
OTHERS = {
    "compute_environment": "Accelerate's description of machines, which is no training",
    "zero_optimization": "DeepSpeed's description of how a training is spread, which is no training",
    "train_dataset": "LLaMA-Factory's second form (v1: peft_config, train_dataset), which is not read; write the flat keys",
    "expert_model_parallel_size": "a training by Megatron, which spreads one model over several devices",
    "rlhf_type": "a training with preference data or a reward (swift rlhf), and tunesmith trains on answers",
    "sampler_type": "a sampling of answers, which is no training",
}
OPTION = f"--from names the tool: {', '.join(NAMES)}"


def read_values(path: Path, tool: Tool | None) -> tuple[Tool, dict[str, JsonValue], dict[str, str]]:
    """The tool, its keys, and the keys whose values are expressions.

    Args:
        tool: that is said to have written it; None to tell it from the keys.

    Raises:
        RecipeError: no such file, not of its format, or no tool or several that it could be of.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file", f"give the configuration of {', '.join(NAMES.values())}")
    if path.suffix in (".ipynb", ".py") and tool in (None, "unsloth"):
        return "unsloth", *unsloth.read(path)
    raw = _parsed(path)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise RecipeError(f"{path}: expected keys and values, found {found}", "give the configuration of a training")
    values = {str(key): value for key, value in cast("dict[JsonValue, JsonValue]", raw).items()}
    return tool or _told(path, values), values, {}


def _parsed(path: Path) -> JsonValue:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else parse_yaml(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: line {error.lineno}: cannot be read as JSON: {error.msg}", "mend that line") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}", "mend that line; indent with spaces") from error


def _told(path: Path, values: dict[str, JsonValue]) -> Tool:
    for key, what in OTHERS.items():
        if key in values:
            raise RecipeError(f"{path}: {key}: this is {what}", OPTION)
    could: set[Tool] = {tool for key, tools in MODEL_KEYS.items() if key in values for tool in tools} or set(MARKS)
    counts: dict[Tool, int] = {tool: sum(mark in values for mark in marks) for tool, marks in MARKS.items() if tool in could}
    most = max(counts.values())
    best: list[Tool] = [tool for tool, count in counts.items() if count == most]
    if most == 0 or len(best) > 1:
        keys = ", ".join([*values][:8])
        which = f"it could be of {' or '.join(NAMES[tool] for tool in best)}" if most else "no tool that is known has these"
        raise RecipeError(f"{path}: cannot tell which tool wrote it, {which}: {keys}", OPTION)
    return best[0]


def translated(
    path: Path,
    tool: Tool,
    values: dict[str, JsonValue],
    computed: dict[str, str],
    without: Iterable[str],
    shipped: tuple[str, ...],
    rows_given: bool = False,
) -> Translation:
    """What becomes of every key; nothing is read but the file, and what it names beside itself.

    Args:
        without: refused keys to leave out.
        shipped: names of the chat templates that tunesmith brings.
        rows_given: whether other rows are named than those of the configuration.
    """
    t = Translation(NAMES[tool], values, without, computed, rows_given)
    if tool == "llama-factory":
        llama_factory.translate(t, shipped, path.resolve().parent)
    elif tool == "openai":
        openai_job.translate(t)
    else:
        {"axolotl": axolotl, "trl": trl, "unsloth": unsloth, "ms-swift": swift}[tool].translate(t, shipped)
    return t
