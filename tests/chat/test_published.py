"""Masks over every published template at hand: each supervised turn is what deployment asks for, and nothing else is taught."""

import mask_properties
import published
import pytest
import templates_table
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError

REFUSED = templates_table.PAGE.read_text().partition("## Refused")[2]  # to find out takes seconds, of every worker
NAMES = [name for name in published.texts() if f"- `{name}`:" not in REFUSED]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(data=st.data())
def test_every_supervised_turn_is_what_deployment_asks_for(name, data):
    mask_properties.turns_are_as_asked(published.renderer(name), published.facts(name), data)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(data=st.data())
def test_no_text_becomes_a_control_token(name, data):
    mask_properties.no_text_forges(published.renderer(name), published.facts(name), data)


def test_two_calls_of_one_id_are_named_where_the_template_looks_results_up():
    with pytest.raises(DataError) as raised:
        published.renderer("muse_glimmer").render(published.CALLED * 2, published.TOOLS)
    assert "an id of its own" in raised.value.hint


def test_the_page_of_templates_is_what_the_renderer_does():
    assert templates_table.PAGE.read_text() == templates_table.page(), "run: make templates"
