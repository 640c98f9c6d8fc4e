"""A chat template that computes for ever or without measure is an error of ours within a second or so, and little memory."""

import resource
import time

import pytest

from tunesmith.chat import template_limits
from tunesmith.chat.layout import Template
from tunesmith.chat.vocabulary import Vocabulary
from tunesmith.errors import DataError

GREEDY = {
    "a text": "{{ 'a' * 10**9 }}",
    "a text by a variable": "{% set n = 10**9 %}{{ messages[0].content * n }}",
    "a list": "{{ ([1] * 10**9) | length }}",
    "a number": "{{ 10 ** (10 ** 10) }}",
    "numbers of numbers": "{% set ns = namespace(x=3) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
    "a macro in itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros by two": "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by output": "{% macro f(x, n) %}{{ f(x + x, n - 1) if n else x }}{% endmacro %}{{ f('ab', 60) }}",
    "doubling by join": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "a column": "{{ 'a' | center(10**9) }}",
    "a column by a method": "{{ 'a'.ljust(10**9) }}",
    "a column by a format": "{{ '%1000000000d' | format(1) }}",
    "a column by an operator": "{{ '%1000000000d' % 1 }}",
    "a column by a star": "{{ '%*d' % (10**9, 1) }}",
    "a column by braces": "{{ '{:1000000000}'.format(1) }}",
    "a column by nested braces": "{{ '{:{}}'.format(1, 10**9) }}",
    "columns by map": "{{ (range(99999) | map('center', 9999) | list) | length }}",
    "replacing": "{% set x = 'a' * 9999 %}{{ x | replace('a', x) }}",
    "replacing by a method": "{% set x = 'a' * 9999 %}{{ x.replace('a', x) }}",
    "joining": "{% set x = 'a' * 9999 %}{{ x.join(x) }}",
    "indenting": "{{ ('\\n' * 9999) | indent(9999) }}",
    "JSON": "{{ [1, [2, [3]]] | tojson(indent=10**9) }}",
    "slices": "{{ [1] | slice(10**9) | list }}",
    "batches": "{{ [1] | batch(10**9, 'x') | list }}",
    "Latin": "{{ lipsum(n=10**6) }}",
    "Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.fixture
def run(tokenizer):
    def run(source: str) -> str:
        return Template(tokenizer, source, Vocabulary(tokenizer, source)).run([{"role": "user", "content": "x"}])

    return run


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_a_greedy_template_is_refused(source, run, monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.05)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(DataError, match="chat template refuses"):
        run(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert time.thread_time() - started < 2  # a bound that tells a limit from none, and no speed


def test_within_the_limits_it_writes_what_it_writes_without(run):
    source = """{%- macro m(x) %}<{{ x }}>{% endmacro -%}
{%- for a in [1, 2, 3] -%}
{{ loop.index }}/{{ loop.length }}{{ loop.last }} {{ loop.previtem }} {{ loop.nextitem }};
{%- endfor -%}
{%- for k, v in {'a': 1}.items() %}{{ k ~ v ~ none ~ 1.5 ~ [2] }}{% else %}never{% endfor -%}
{%- for c in missing %}{% else %}empty{% endfor %}{% for x in [1, 2, 3, 4] if x % 2 %}{{ x }}{% endfor -%}
{%- for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor -%}
{{- m('é' * 3) }} {{ [1, 'b'] | join('-') }}
{{ '%s|%5.1f' | format('x', 2) }} {{ '{:>4}{}'.format(1, 'y') }} {{ 'a-b'.split('-') | join }}
{{- {'k': ['é', 1, none, true]} | tojson }}
{{ {'k': [1]} | tojson(indent=2) }} {{ 'a\\nb' | indent(2) }} {{ 7 // 2 * 3 ** 2 % 5 }}
{{- 'aXbX' | replace('X', 'yy') }}
{{ 'aXbX'.replace('X', 'z', 1) }} {{ 'x' | center(5) }}| {{ '-'.join(['p', 'q']) }} {{ (1, 2) + (3,) }}
{{- [1, 2, 3, 4, 5] | batch(2, 0) | list }} {{ [1, 2, 3] | slice(2) | list }} {{ 'abc' * 2 }} {{ 2 * [0] }} {{ 'a' + 'b' }}"""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def environment(kind):
        return kind(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

    expected = environment(ImmutableSandboxedEnvironment).from_string(source).render()
    assert environment(template_limits.LimitedEnvironment).from_string(source).render() == expected
