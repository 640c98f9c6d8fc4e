"""A date in a template is written once: in transformers, in llama.cpp, at any hour, whatever an engine passes."""

import importlib.util
import re
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from tiny_gguf import write_tiny_gguf
from tunesmith.chat.frozen_date import FrozenTemplate, freeze_date
from tunesmith.chat.render import Renderer
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ModelError

TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
PUBLISHED = {file.stem: file.read_text() for file in sorted(TRL.glob("*.jinja"))}
CLOCKS = ("llama3_2", "gptoss", "muse_glimmer")  # write the day they run on; llama3_1 has a default that llama.cpp changes
WRITTEN = {
    "in a macro": "{% macro head() %}{{ 'Day ' + strftime_now('%d/%m/%y') }}{% endmacro %}{{ head() }}",
    "in a loop": "{% for m in messages %}{{ strftime_now('%-d %b') }} {{ m.content }}{% endfor %}",
    "format in a variable": "{% set f = '%Y' %}{{ strftime_now(f)|int + 1 if strftime_now is defined else 'no' }}",
    "format put together": "{% set parts = ['%A', '%B'] %}{{ strftime_now(parts|join(', ')) }}",
    "passed or nothing": "{% if date_string is defined %}Today {{ date_string }}{% endif %}{{ messages[0].content }}",
    "passed or default": "{% if not datetime is defined %}{% set datetime = 'long ago' %}{% endif %}{{ datetime }}",
}
TEMPLATES = {**{name: PUBLISHED[name] for name in (*CLOCKS, "llama3_1")}, **WRITTEN}
DAY, NEXT_YEAR = datetime(2026, 11, 28, 23, 59), datetime(2027, 3, 1, 0, 1)
TALK = [{"role": "user", "content": "a"}]


def _render(template, moment, monkeypatch, **passed):
    """Stock transformers with another clock."""
    clock = type("Clock", (datetime,), {"now": classmethod(lambda cls: moment)})
    monkeypatch.setattr(chat_template_utils, "datetime", clock)
    return chat_template_utils.render_jinja_template(
        conversations=[TALK], chat_template=template, add_generation_prompt=True, bos_token="<s>", **passed
    )[0][0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_frozen_text_is_that_days_at_any_clock(name, monkeypatch):
    template = TEMPLATES[name]
    frozen = freeze_date(template, DAY)
    that_day = _render(template, DAY, monkeypatch)
    assert (frozen.date == "2026-11-28") == (that_day != _render(template, NEXT_YEAR, monkeypatch))
    for moment in (DAY, NEXT_YEAR):
        for passed in ({}, {"date_string": "01 Jan 1999", "datetime": "Jan 01 1999"}):
            assert _render(frozen.text, moment, monkeypatch, **passed) == that_day
    assert freeze_date(frozen.text, NEXT_YEAR) is None


def test_other_templates_are_left_alone():
    frozen = {name for name, template in PUBLISHED.items() if freeze_date(template, DAY) is not None}
    assert frozen == {*CLOCKS, "llama3_1", "gptoss_training", "muse_glimmer_training"}
    assert freeze_date("{{ messages[0].date_string }}strftime_now{{ 'datetime' }}", DAY) is None  # no name of a variable
    assert freeze_date("{% macro strftime_now(f) %}x{% endmacro %}{{ strftime_now('%Y') }}", DAY) is None  # its own


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ModelError, match="'%%Y', which cannot be frozen"):
        freeze_date("{{ strftime_now('%%Y') }}", DAY)
    with pytest.raises(ModelError, match="is no Jinja"):
        freeze_date("{{ strftime_now('%Y) }}", DAY)


@given(
    st.lists(st.sampled_from([f"%{letter}" for letter in "aAbBdHIjmMpSUwWxXyYcDeFgGhnRtTuV"] + ["%-d", "%-m", " ", "/", ", "])),
    st.datetimes(datetime(1970, 1, 1), datetime(2099, 1, 1)),
)
def test_macro_is_strftime(parts, moment):
    template = "{{ strftime_now('" + "".join(parts) + "') }}"
    text = jinja2.Environment(trim_blocks=True).from_string(freeze_date(template, moment).text).render()
    assert text == moment.strftime("".join(parts))


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", *WRITTEN])
def test_llama_cpp_writes_the_same(name, tmp_path, monkeypatch):
    """Its own engine, its own clock, and the two variables that it passes to every template."""
    template = re.sub(r"\{\{-? ?bos_token ?\}\}", "", TEMPLATES[name])
    frozen = freeze_date(template, DAY)
    write_tiny_gguf(tmp_path / "x.gguf", frozen.text)
    with LlamaModel(tmp_path / "x.gguf", 512) as model:
        assert model.render(TALK) == "<s>" + _render(template, DAY, monkeypatch)


def test_renderer_keeps_the_day_it_was_made_on(tokenizer, monkeypatch):
    """Over midnight, and in another process on another day by the text that the first one keeps."""
    source = "{{ '<|im_start|>system\n' + strftime_now('%Y') + '<|im_end|>\n' }}" + tokenizer.chat_template
    first = Renderer(tokenizer, source)
    assert isinstance(first.frozen_template, FrozenTemplate) and first.frozen_template.date == f"{datetime.now():%Y-%m-%d}"
    ids = first.prompt_ids(TALK)
    monkeypatch.setattr("tunesmith.chat.render.datetime", type("Clock", (), {"now": lambda: NEXT_YEAR}))
    assert Renderer(tokenizer, source).prompt_ids(TALK) != ids
    again = Renderer(tokenizer, first.frozen_template.text)
    assert again.prompt_ids(TALK) == ids == first.prompt_ids(TALK)
    assert again.template == first.template and again.frozen_template is None
    assert Renderer(tokenizer).frozen_template is None
