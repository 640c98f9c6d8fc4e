"""Writes what the code knows of the documentation: the pages of ``docs/reference/``, the tree in CONTRIBUTING, ``llms.txt``.

    make reference            # or: python docs/generate.py

A page that a person keeps beside the code goes stale in silence; a page that is generated and compared by a test
(``tests/rules/test_reference.py``) cannot. So a key's meaning is written once, in its ``description``, a command's in its
docstring, a field's in the docstring of its record, and here is only layout.

Refused: a documentation generator with a theme (a dependency, and pages that cannot be read in the repository).
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.core import TyperArgument, TyperGroup, TyperOption

import tunesmith
from tunesmith import cli, errors
from tunesmith.advise import decide
from tunesmith.evaluate import gate
from tunesmith.recipe import Recipe
from tunesmith.rundir import records
from tunesmith.rundir.records.base import FileRecord, Record

sys.path.append(str(Path(__file__).parent))
from bits_tables import with_bits
from gpu_tables import with_predictions
from installs_table import with_installs
from llms import llms_text
from memory_tables import with_short_table, with_techniques
from scale_tables import with_scale

ROOT = Path(__file__).resolve().parents[1]
NOTE = "Made by `make reference` from {source}; change that, not this page.\n"


LONGEST_PHRASE = 94
# What a file without a docstring holds, by its path below src/tunesmith.
PHRASES = {
    "py.typed": "tells type checkers to read the annotations",
    "chat/templates": "for base models that have none",
    "chat/templates/chatml.jinja": "ChatML",
    "chat/templates/gemma3.jinja": "Gemma 3",
    "chat/templates/gemma4.jinja": "Gemma 4",
    "evaluate/probes/passages.jsonl": "English, code, German, Spanish",
    "evaluate/probes/prompts.jsonl": "what anybody might ask",
    "evaluate/probes/questions.jsonl": "short questions with four answers",
    "memory/sizes.json": "sizes of published models, for the table of techniques",
    "memory/cards.json": "data sheets, prices and what is assumed, each number with its source",
    "report/check.html.j2": "the page of a check",
    "report/layout.html.j2": "head and style of all pages",
    "report/page.html.j2": "the page of a run",
    "report/preview.html.j2": "the page of a preview",
    "report/runs.html.j2": "the page of a folder of runs",
    "web/static": "style and script, as they are sent",
    "web/static/icon.svg": "in the tab of a browser",
    "web/static/page.css": "light and dark, wide and narrow",
    "web/static/page.js": "keeps a page fresh; every page works without it",
    "web/templates": "a page each, and the parts of a run's page, which are fetched anew one by one",
    "web/templates/answers.html.j2": "rows with two arms' answers",
    "web/templates/chat.html.j2": "ask the models of a run",
    "web/templates/compare.html.j2": "two runs",
    "web/templates/enter.html.j2": "the key, please",
    "web/templates/layout.html.j2": "what is around every page",
    "web/templates/list.html.j2": "all runs",
    "web/templates/list_rows.html.j2": "the table of all runs, which is fetched anew",
    "web/templates/part_arms.html.j2": "arms as they finish",
    "web/templates/part_broken.html.j2": "a part whose file cannot be read",
    "web/templates/part_data.html.j2": "what the check found",
    "web/templates/part_now.html.j2": "how the run stands, and what to type",
    "web/templates/part_stages.html.j2": "stages with time and memory",
    "web/templates/part_training.html.j2": "losses and other figures",
    "web/templates/part_verdict.html.j2": "the verdict and why",
    "web/templates/part_warnings.html.j2": "the newest warnings",
    "web/templates/run.html.j2": "a run, made of its parts",
    "web/templates/wrong.html.j2": "what went wrong",
}


def pages() -> dict[str, str]:
    """Every generated text by its path."""
    return {
        "docs/reference/recipe.md": recipe_page(),
        "docs/reference/cli.md": cli_page(),
        "docs/reference/python.md": python_page(),
        "docs/reference/files.md": files_page(),
        "docs/reference/errors.md": errors_page(),
        "README.md": with_short_table((ROOT / "README.md").read_text()),
        "docs/explanation/memory.md": with_techniques((ROOT / "docs" / "explanation" / "memory.md").read_text()),
        "docs/explanation/gpu.md": with_predictions((ROOT / "docs" / "explanation" / "gpu.md").read_text()),
        "docs/how-to/several-gpus.md": with_scale((ROOT / "docs" / "how-to" / "several-gpus.md").read_text()),
        "docs/explanation/bits.md": with_bits((ROOT / "docs/explanation/bits.md").read_text(), ROOT / "benchmarks" / "results"),
        "docs/how-to/install.md": with_installs((ROOT / "docs/how-to/install.md").read_text(), ROOT / "benchmarks" / "results"),
        "docs/llms.txt": llms_text(ROOT / "docs"),
        "CONTRIBUTING.md": with_tree((ROOT / "CONTRIBUTING.md").read_text()),
    }


def with_tree(text: str) -> str:
    """CONTRIBUTING with the tree of the package as it is on the disk, a phrase a file: the first sentence of its docstring."""
    begin, end = "<!-- tree -->\n", "<!-- end of tree -->\n"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    lines = "\n".join(_tree(ROOT / "src" / "tunesmith", 0))
    return f"{before}{begin}```text\n{lines}\n```\n{end}{after}"


def _tree(folder: Path, depth: int) -> Iterator[str]:
    """Folders before files, both by name."""
    entries = [entry for entry in folder.iterdir() if entry.name not in {"__pycache__", "__init__.py"} and entry.name[0] != "."]
    for entry in sorted(entries, key=lambda entry: (entry.is_file(), entry.name)):
        name = f"{'  ' * depth}{entry.name}{'/' if entry.is_dir() else ''}"
        yield f"{name:<33} {_phrase(entry)}"
        if entry.is_dir():
            yield from _tree(entry, depth + 1)


def _phrase(entry: Path) -> str:
    phrase = PHRASES.get(str(entry.relative_to(ROOT / "src" / "tunesmith")))
    if phrase is not None:
        return phrase
    module = entry / "__init__.py" if entry.is_dir() else entry
    docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
    sentence = " ".join(re.split(r"[.;](?=\s|$)", docstring)[0].replace("``", "").split())
    if len(sentence) > LONGEST_PHRASE:
        head = sentence.split(": ")[0]
        sentence = head if len(head) > 24 else sentence[:LONGEST_PHRASE].rpartition(",")[0] or head
    return sentence


def _page(title: str, source: str, parts: list[str]) -> str:
    return "\n".join([f"# {title}", "", NOTE.format(source=source), *parts]).rstrip() + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return [f"| {line} |" for line in lines] + [""]


# The recipe.


def recipe_page() -> str:
    """Every key with its type, range, default and meaning."""
    schema = Recipe.model_json_schema()
    parts = [
        "A recipe is one YAML file. Three keys are needed: `model`, `data.path` and `task.metric`; the run directory's "
        "`recipe.yaml` shows every other one written out. Paths are relative to the recipe file. An unknown key is an error "
        "that names the nearest known one. `tunesmith schema` prints the JSON schema; in VS Code, point `yaml.schemas` at it.\n"
    ]
    parts += _section(Recipe, schema, "")
    return _page("The recipe", "the models in `src/tunesmith/recipe/`", parts)


def _section(model: type[BaseModel], schema: dict[str, Any], prefix: str) -> list[str]:
    """A section's table, then those of the sections inside it."""
    properties = (schema if model is Recipe else schema["$defs"][model.__name__])["properties"]
    rows, inner = [], []
    for name, field in model.model_fields.items():
        key, section = f"{prefix}{name}", _section_of(field.annotation)
        if section is not None and field.description is None:
            inner.append((key, section, field.default is None))
            continue
        rows.append((f"`{key}`", _type(properties[name], schema), _default(field), field.description or ""))
        if section is not None:
            named = "dict" in str(field.annotation)
            inner.append((f"{key}.{'NAME' if named else 'NUMBER'}", section, False))
    parts = _table(("key", "value", "default", "what it does"), rows) if rows else []
    for key, section, optional in inner:
        text = " ".join((section.__doc__ or "").split("\n\n")[0].split())
        parts += [f"{'#' * min(2 + key.count('.'), 4)} {key}", "", text + (" Absent by default." if optional else ""), ""]
        parts += _section(section, schema, f"{key}.")
    return parts


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone, optionally or by name."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for section in map(_section_of, typing.get_args(annotation)) if section is not None), None)


def _type(schema: dict[str, Any], whole: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return "a section"
    if "anyOf" in schema:
        return ", ".join(dict.fromkeys(_type(part, whole) for part in schema["anyOf"] if part.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema['items'], whole)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return "sections by name" if isinstance(values, dict) and "$ref" in values else "keys and values"
    if schema.get("format") == "path":
        return "path"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}[str(kind)]
    bounds = [("minimum", "from {}"), ("exclusiveMinimum", "above {}"), ("maximum", "to {}"), ("exclusiveMaximum", "below {}")]
    return " ".join([words, *(phrase.format(f"{schema[name]:,}") for name, phrase in bounds if name in schema)])


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    value = field.default
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, tuple) else f"`{value}`"


# The command line.


def cli_page() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    parts = [
        "TARGET is a recipe or a run directory. Data goes to stdout, talk to stderr. The exit code of a verdict or of an error "
        "stands in [Errors and exit codes](errors.md).\n"
    ]
    shared = _options(group)
    if shared:
        parts += ["Options of `tunesmith` itself, before the command:", "", *shared]
    panel = None
    for name, command in group.commands.items():
        if command.hidden:
            continue
        heading = typing.cast(str | None, vars(command).get("rich_help_panel"))
        if isinstance(heading, str) and heading != panel:
            panel = heading
            parts += [f"## {panel}", ""]
        arguments = " ".join(_metavar(parameter) for parameter in command.params if isinstance(parameter, TyperArgument))
        parts += [f"### {name}", "", f"`tunesmith {name} {arguments}`".replace(" `", "`"), ""]
        parts += [_sentences(command.help or ""), "", *_options(command)]
    return _page("Commands", "the functions in `src/tunesmith/cli/`", parts)


def _metavar(argument: TyperArgument) -> str:
    name = (argument.metavar or argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _options(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if isinstance(parameter, TyperOption):
            if parameter.hidden or parameter.name in {"help", "install_completion", "show_completion"}:
                continue
            value = "" if parameter.is_flag else f" {parameter.metavar or parameter.opts[0].lstrip('-').upper()}"
            names = ", ".join(f"`{name}{value}`" for name in parameter.opts)
            rows.append((names, _sentences(parameter.help or "")))
        elif isinstance(parameter, TyperArgument):
            rows.append((f"`{_metavar(parameter)}`", _sentences(vars(parameter).get("help") or "")))
    return _table(("argument or option", "what it does"), rows) if rows else []


def _sentences(text: str) -> str:
    return " ".join(text.replace("\b", "").split())


# Python.


def python_page() -> str:
    """Every public name of the package."""
    parts = [
        "```python\nimport tunesmith as ts\n```\n",
        "Nothing heavy is imported until it is needed. Errors are those of [Errors and exit codes](errors.md); paths are `str` "
        "or `Path`.\n",
    ]
    for name in sorted(tunesmith.__all__, key=lambda name: (name[:1].isupper(), name.lower())):
        value = getattr(tunesmith, name)
        if inspect.isclass(value) and issubclass(value, errors.TunesmithError):
            continue
        parts += _entry(name, value)
    return _page("Python", "`tunesmith.__all__` and the docstrings", parts)


def _entry(name: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [f"## ts.{name}", "", f"```python\n{_signature(name, value)}\n```", "", *_docstring(value)]
    parts = [f"## ts.{name}", "", *_docstring(value)]
    if issubclass(value, BaseModel):
        return [*parts, "Its keys are those of [the recipe](recipe.md).", ""]
    for method, function in vars(value).items():
        function = function.__func__ if isinstance(function, classmethod | staticmethod) else function
        if method == "__init__" or (not method.startswith("_") and inspect.isfunction(function)):
            shown = name if method == "__init__" else f".{method}"
            text = [] if method == "__init__" and not function.__doc__ else _docstring(function)
            parts += [f"### {shown}", "", f"```python\n{_signature(shown, function)}\n```", "", *text]
    return parts


class _Source(str):
    """A default as it is written in the source, where its value shows itself otherwise."""

    __slots__ = ()
    __repr__ = str.__str__


def _written_defaults(function: Any) -> dict[str, str]:
    """The defaults of a function's parameters that are names, as ``AS_FOUND``: a record that shows all its fields is no text
    for a signature."""
    definition = typing.cast(ast.FunctionDef, ast.parse(inspect.cleandoc("\n" + inspect.getsource(function))).body[0])
    given = definition.args
    positional = [*given.posonlyargs, *given.args]
    pairs = [*zip(positional[len(positional) - len(given.defaults) :], given.defaults, strict=True)]
    pairs += [(key, default) for key, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is not None]
    return {parameter.arg: ast.unparse(default) for parameter, default in pairs if not isinstance(default, ast.Constant)}


def _signature(name: str, function: Any) -> str:
    signature, written = inspect.signature(function), _written_defaults(function)
    parameters = [
        parameter.replace(default=_Source(written[key])) if key in written else parameter
        for key, parameter in signature.parameters.items()
        if key not in {"self", "cls"}
    ]
    text = name + str(signature.replace(parameters=parameters))
    text = re.sub(r"\b(?:tunesmith|pathlib|collections|typing)\.(?:\w+\.)*", "", text)
    text = re.sub(r"(?<!= )'([^']*)'", r"\1", text)  # annotations that wait for a name, but no default
    return text if len(text) <= 110 else re.sub(r"(, |\()(?=\w+: )", lambda m: m.group(1).rstrip() + "\n    ", text)


def _docstring(value: Any) -> list[str]:
    """A docstring as Markdown: its sections Args, Returns, Raises become lists."""
    text = inspect.getdoc(value) or ""
    lines, section = [], False
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes):", line)
        if heading:
            section = True
            lines += [f"*{heading.group(1)}*", ""]
        elif section and (entry := re.match(r"    (\S.*?): (.*)", line)):
            lines.append(f"- `{entry.group(1)}`: {entry.group(2)}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line
            lines.append(line)
    return ["\n".join(lines).replace("``", "`"), ""]


# Files of a run.


def files_page() -> str:
    """The tree of a run directory, and the fields of every file that is a record."""
    tree = inspect.getdoc(importlib.import_module("tunesmith.rundir")) or ""
    block = tree.split("\n\n")[1]
    modules = [importlib.import_module(f"{records.__name__}.{info.name}") for info in pkgutil.iter_modules(records.__path__)]
    parts = ["```text", inspect.cleandoc(block), "```", ""]
    parts += [
        "A JSON file is one record, a `.jsonl` file a record a line. Unknown keys, missing keys and values of another type are "
        "errors, and a file of another `version` is refused by name. `null` is a figure that was not measured. "
        "`RECORD.schema()` is the JSON schema.\n"
    ]
    for module in modules:
        entries = [value for value in vars(module).values() if _is_record(value) and value.__module__ == module.__name__]
        if not entries:
            continue
        files = [record for record in entries if issubclass(record, FileRecord)]
        parts += [f"## {_first_sentence(module)}", ""]
        for record in [*files, *(record for record in entries if record not in files)]:
            parts += [f"### {record.__name__}", "", *_record(record)]
    return _page("Files of a run", "the records in `src/tunesmith/rundir/records/`", parts)


def _first_sentence(value: Any) -> str:
    return re.split(r"\.(?=\s|$)", inspect.getdoc(value) or "")[0].replace("\n", " ").replace("``", "`")


def _is_record(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Record) and value not in (Record, FileRecord)


def _record(record: type[Record]) -> list[str]:
    """What a record is, and its fields with types and meanings."""
    text, _, _ = (inspect.getdoc(record) or "").partition("Attributes:\n")
    meanings = dict(_meanings(record))
    hints = typing.get_type_hints(record)
    fields = dataclasses.fields(typing.cast(Any, record))
    rows = [(f"`{field.name}`", _hint(hints[field.name]), meanings.get(field.name, "")) for field in fields]
    return [" ".join(text.split()).replace("``", "`"), "", *_table(("field", "type", "meaning"), rows)]


def _meanings(record: type[Record]) -> Iterator[tuple[str, str]]:
    """Names and meanings from the section Attributes, those of the bases first."""
    for owner in reversed(record.__mro__):
        _, _, described = inspect.cleandoc(owner.__doc__ or "").partition("Attributes:\n")
        entries = re.split(r"\n    (?=\S)", "\n" + described.split("\n\n")[0])
        for entry in entries[1:]:
            names, _, meaning = entry.partition(":")
            for name in names.split(","):
                yield name.strip(), " ".join(meaning.split()).replace("``", "`")


def _hint(hint: Any) -> str:
    text = hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"\b(?:tunesmith|typing|pathlib|collections|annotated_types|pydantic)\.(?:\w+\.)*", "", text)
    return f"`{text}`"


# Errors and exit codes.


def errors_page() -> str:
    """Exit codes of verdicts, advices and errors, with the classes."""
    deciding = "[Deciding](../explanation/deciding.md#after-training-the-gate)"
    parts = ["## Verdicts", "", f"What a verdict needs stands in {deciding}.", ""]
    parts += _table(("exit code", "verdict"), _by_code(gate.EXIT_CODES))
    parts += [
        "`tunesmith parity` ends with 14 when a form is not the model that was trained, with 12 when none fails and one could "
        "not be told.\n"
    ]
    parts += ["## Advices of `tunesmith advise`", ""]
    parts += _table(("exit code", "advice"), _by_code(decide.EXIT_CODES))
    parts += [
        f"{decide.ELSEWHERE} is `tune` on another machine: the smallest base does not fit this one.",
        "",
        "## Errors",
        "",
        "A message says what was found, what was expected, and where; the line `hint:` says what to do next. Python raises the "
        "class, the command line prints the message and ends with the code. 2 is a usage error, 130 an interrupt (Ctrl-C).",
        "",
    ]
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.TunesmithError)]
    rows = [(str(error.exit_code), f"`{error.__name__}`", (error.__doc__ or "").split("\n")[0]) for error in classes]
    parts += _table(("exit code", "class", "when"), rows)
    return _page("Errors and exit codes", "`errors.py`, `evaluate/gate.py` and `advise/decide.py`", parts)


def _by_code(codes: Mapping[Any, int]) -> list[tuple[str, str]]:
    """A row a code, in order; names that share one stand together."""
    return [(str(code), "; ".join(name for name in codes if codes[name] == code)) for code in sorted(set(codes.values()))]


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (ROOT / name).write_text(text)
        print(name)


if __name__ == "__main__":
    main()
