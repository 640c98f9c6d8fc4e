"""Writes docs/reference/templates.md from what our renderer makes of every template at hand (``published.py``).

``make templates`` runs it; a test holds the committed page to be what it writes, so a new version of a template, or of the
renderer, shows in the page's difference.
"""

from pathlib import Path

import published

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "templates.md"
DOCUMENTS = {0: "no", 1: "one document"}

OPENING = """# Chat templates

Made by `make templates` from what the renderer makes of each template (`tests/chat/published.py`); nothing here is typed. The
templates are those that travel in TRL's package, on a small tokenizer with the control tokens that they write, Mistral's as it
was published, and the three that tunesmith brings. The names are TRL's. What is asked of their masks is asked in the slow suite
of the templates that Axolotl and Unsloth carry, too (`tests/chat/mask_properties.py`); LLaMA-Factory and ms-swift carry none,
theirs are code.

- **system**, **tools**: whether rows with a system turn, with declared tools, a call and its result can be trained. *no*: such
  rows are refused by name, because the template refuses them or leaves something out.
- **thinking**: whether `reasoning_content` of a taught turn is trained. *on*, *off*: what the template does when it is not
  told, where it can be switched (`chat.enable_thinking`). *opens `<think>`*: every prompt ends in an open tag. An answer then
  begins with its reasoning and the closing tag, and one without reasoning closes the tag at once.
- **chat**, **with reasoning**, **with tools**: how a row with two supervised turns is trained. *one document*: every turn in it
  stands exactly as it is asked in deployment. *one a turn*: the template writes a turn otherwise once it is history (it drops
  reasoning, moves tools, ends it with another token), so each supervised turn is a document of its own, as it is asked; what
  they have in common is computed once, so a conversation costs its tokens once and every answer once more. A supervised turn
  never loses its own reasoning; turns of weight 0 are history.
- **date**: *written*: the template writes the day. A run keeps the day of its first rendering, and so does what it exports.
  *default*: it writes a date of its own unless an engine passes one; the template's own is fixed.
"""


def page() -> str:
    """The whole page."""
    heads = ("template", "system", "tools", "thinking", "chat", "with reasoning", "with tools", "date")
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    refused = []
    for name in published.texts():
        facts = published.facts(name)
        if facts.refused:
            refused.append(f"- `{name}`: {facts.refused}.")
            continue
        several = [DOCUMENTS.get(count, "one a turn") for count in (facts.chat, facts.reasoned, facts.called)]
        date = {"": "", "default": "default"}.get(facts.date, "written")
        cells = (f"`{name}`", _yes(facts.system), _yes(facts.tools), _thinking(facts), *several, date)
        rows.append(f"| {' | '.join(cells)} |")
    closing = ["## Refused", "", "Templates that cannot be used, and why:", "", *refused]
    return "\n".join([OPENING, *rows, "", *closing]) + "\n"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _thinking(facts: published.Facts) -> str:
    parts = [_yes(facts.reasoning)]
    if facts.thinks is not None:
        parts.append("on" if facts.thinks else "off")
    if facts.opened:
        parts.append(f"opens `{facts.opened}`")
    return ", ".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
