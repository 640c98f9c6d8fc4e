"""``docs/llms.txt``: what the documentation has, for a program that reads it, a line a page.

The form is that of llmstxt.org: a title, a sentence, links in sections, what can be left out last. The lines are those of the
table in ``docs/README.md``, so a page is described once; a test holds the file to it (``tests/rules/test_reference.py``).
"""

import re
from pathlib import Path

SECTIONS = {"tutorial": "Start", "how-to": "How to", "explanation": "Why", "reference": "Look up", "": "Optional"}


def llms_text(docs: Path) -> str:
    """The file from the table of the documentation's first page and from the first sentence of the README.

    Args:
        docs: the folder of the documentation.
    """
    readme = (docs.parent / "README.md").read_text(encoding="utf-8")
    title, sentence = re.findall(r"^(?:# )?(.+?)(?:\n\n|\n!\[)", readme, re.DOTALL | re.MULTILINE)[:2]
    lines: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for wish, pages in re.findall(r"^\| (.+?) \| (\[.+) \|$", (docs / "README.md").read_text(encoding="utf-8"), re.MULTILINE):
        for name, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", pages):
            folder = target.partition("/")[0] if "/" in target else ""
            lines[folder].append(f"- [{name}]({target})" + ("" if wish == "look something up" else f": to {wish}"))
    parts = [f"# {title}", "", f"> {' '.join(sentence.split())}", ""]
    parts += [
        "Data goes to stdout, talk to stderr; many commands print a record with `--json`; an exit code is the verdict.",
        "",
    ]
    for section, heading in SECTIONS.items():
        parts += [f"## {heading}", "", *lines[section], ""]
    return "\n".join(parts).rstrip() + "\n"
