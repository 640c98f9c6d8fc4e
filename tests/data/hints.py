"""What an error offers, typed: its commands and options are parsed as the shell hands them over, its keys as a recipe's."""

import re
import shlex

import typer.main
import yaml
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from tunesmith import cli
from tunesmith.data.read import AS_FOUND, ReadOptions
from tunesmith.recipe.data import Data

_WORD = r"'[^']*'|[^\s,;()]+"
_COMMAND = re.compile(rf"(?:^|: )tunesmith ([a-z][a-z-]*)((?: (?:{_WORD}))*)", re.MULTILINE)
_OPTIONS = re.compile(rf"(?:--[a-z][a-z-]*(?: (?!--)(?:{_WORD}))?\s?)+")
_KEYS = re.compile(r"\bdata\.([a-z_]+)(?:: (\{[^}]*\}|[a-z]\w*))?")
_APP = typer.main.get_command(cli.app)
assert isinstance(_APP, TyperGroup)
_VERBS = _APP.commands


def typed(words, verb="check"):
    """The parameters of a verb; None where its parser does not know the words."""
    command = _VERBS.get(verb)
    try:
        return None if command is None else command.make_context(verb, words).params
    except TyperException:
        return None


def is_known(word):
    """Whether an option of any verb that reads data, or a key of the section data, is called so."""
    if word.startswith("data."):
        return word.removeprefix("data.") in Data.model_fields
    readers = [_VERBS[verb] for verb in ("check", "convert", "init", "preview", "advise")]
    return any(word in parameter.opts for command in readers for parameter in command.params)


def options_in(text):
    """Every run of options that a text offers, as words; a word behind a flag is none of it."""
    parameters = _VERBS["convert"].params
    flags = {name for parameter in parameters if getattr(parameter, "is_flag", False) for name in parameter.opts}
    runs = []
    for match in _OPTIONS.finditer(text):
        words = []
        for word in shlex.split(match[0]):
            if word.startswith("--") or (words[-1].startswith("--") and words[-1] not in flags):
                words.append(word)
        runs.append(words)
    return runs


def faults_of(text):
    """What a hint offers and nobody could type."""
    faults = [match[0] for match in _COMMAND.finditer(text) if typed(shlex.split(match[2]), match[1]) is None]
    rest = _COMMAND.sub("", text)
    for words in options_in(rest):
        if not (is_known(words[0]) if len(words) == 1 else typed(["DATA", *words])):  # alone it is named in passing
            faults.append(" ".join(words))
    for key, value in _KEYS.findall(rest):
        try:
            if key not in Data.model_fields:
                faults.append(f"data.{key}")
            elif value:
                Data.model_validate({"path": "rows.jsonl", key: yaml.safe_load(value)})
        except ValidationError:
            faults.append(f"data.{key}: {value}")
    return faults


def read_as_typed(text):
    """The options of reading that the runs of a text come to, each by itself; a second step, or rows set aside, are none."""
    given = (typed(["DATA", *words]) for words in options_in(_COMMAND.sub("", text.split("; then ")[0])) if len(words) > 1)
    names = {"format": "format", "encoding": "encoding", "delimiter": "delimiter", "turns": "turns", "take": "take"}
    for parameters in filter(None, given):
        columns = dict(column.split("=", 1) for column in parameters["column"] or ())
        options = ReadOptions(**{ours: parameters[theirs] for ours, theirs in names.items()}, columns=columns or None)
        if options != AS_FOUND:
            yield options
