"""Where the text of a chat template comes from, and how thinking is switched in it.

A model brings its own template; a recipe can name a file instead, or one of those that lie beside this module, for base
models that have none. A name without a suffix is one of ours, everything else is a file.

Thinking is a variable of the template, ``enable_thinking``, which whoever renders passes in. Trained one way and served
another, a model is asked what it was never taught; and engines pass a default of their own (llama.cpp: on). So the
choice, or else what the template does when it is not told, is written into the text as its first line: the renderer, the
exported model and every engine then agree without knowing of it. Refused: passing the variable along, which each of them
would have to be told.
"""

from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.recipe import is_shipped_name

SHIPPED = Path(__file__).parent / "templates"
SWITCH = "enable_thinking"  # the variable's name in every published template that has one
# Jinja drops the line break after a block, so nothing is written (trim_blocks, as every engine sets it).
_SWITCHED = {value: f"{{% set {SWITCH} = {str(value).lower()} %}}\n" for value in (True, False)}


def shipped_names() -> list[str]:
    """Names of the templates that tunesmith brings, in the order of the alphabet."""
    return sorted(file.stem for file in SHIPPED.glob("*.jinja"))


def template_text(template: Path) -> str:
    """The Jinja text of a file, or of one of ours by its name.

    Raises:
        ModelError: no template of that name, or the file cannot be read.
    """
    known = ", ".join(shipped_names())
    if is_shipped_name(template) and template.name not in shipped_names():
        raise ModelError(f"{template}: tunesmith has no chat template of that name", f"name one of {known}, or a .jinja file")
    file = SHIPPED / f"{template.name}.jinja" if is_shipped_name(template) else template
    try:
        # The last line break belongs to the file: not every engine drops it as Jinja does.
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{template}: the chat template cannot be read: {error}", f"chat.template names a file, or one of {known}"
        ) from error


def with_thinking(source: str, enable_thinking: bool) -> str:
    """A template with thinking switched on or off, whatever the caller passes in; one that is switched is switched anew.

    Raises:
        ModelError: the template does not ask for the switch.
    """
    if SWITCH not in source:
        raise ModelError(f"the chat template has no {SWITCH}", f"leave chat.{SWITCH} out, or name another chat.template")
    present = thinking_of(source)
    return _SWITCHED[enable_thinking] + (source if present is None else source.removeprefix(_SWITCHED[present]))


def thinking_of(source: str) -> bool | None:
    """How ``with_thinking`` has switched a template; None where it has not."""
    return next((value for value, line in _SWITCHED.items() if source.startswith(line)), None)
