"""What the code knows of the documentation is what it writes today, the tree included; no key or field lacks its meaning."""

import importlib.util
import sys

import pytest

from shared import ROOT

GENERATOR = ROOT / "docs" / "generate.py"
FIELDS_WITHOUT_MEANING = 0


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("generate_reference", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.pages()


def test_pages_on_disk_are_the_generated_ones(pages):
    stale = [name for name, text in pages.items() if (ROOT / name).read_text() != text]
    assert not stale, f"{', '.join(stale)}: run make reference"


def test_every_key_and_field_says_what_it_is(pages):
    names = [f"docs/reference/{name}.md" for name in ("recipe", "cli", "files")]
    rows = [f"{name}: {line}" for name in names for line in pages[name].splitlines()]
    without = [row for row in rows if ": | `" in row and row.endswith("|  |") and "`Literal[" not in row]
    assert len(without) <= FIELDS_WITHOUT_MEANING, "\n".join(without)
