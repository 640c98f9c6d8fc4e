"""The same of the templates of two peers' packages, which people's models and configs name. Slow; ``make test-all``."""

import json

import mask_properties
import published
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from shared import ROOT
from tunesmith.errors import ModelError

pytestmark = pytest.mark.slow
FILE = ROOT / "assets" / "peer_templates.json"


@pytest.fixture(scope="module", params=["axolotl", "unsloth"])
def templates(request):
    """Renderer and facts of each template of a package that can be used, and why the others cannot."""
    usable, refused = {}, {}
    for name, text in json.loads(FILE.read_text())[request.param].items():
        try:
            renderer = published.renderer_of(text)
        except ModelError as error:
            refused[name] = error.message
        else:
            usable[name] = renderer, published.facts_of(renderer)
    return usable, refused


def test_few_are_refused_and_all_by_name(templates):
    usable, refused = templates
    assert len(usable) > 20 and len(refused) <= 3
    assert all("ends an answer without a special token" in why for why in refused.values()), refused


@pytest.mark.parametrize("property_", [mask_properties.turns_are_as_asked, mask_properties.no_text_forges])
def test_masks_of_every_template(templates, property_):
    for name, (renderer, facts) in templates[0].items():
        _many_times(property_, name, renderer, facts)


def _many_times(property_, name, renderer, facts):
    @settings(max_examples=10)
    @given(data=st.data())
    def holds(data):
        note(f"template {name}")  # shown with the example that fails
        property_(renderer, facts, data)

    holds()
