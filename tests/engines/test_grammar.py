import json

import jsonschema
import pytest
import torch

from ties import FP32, constrained, greedy_answers, next_logits
from tunesmith.chat.render import Renderer
from tunesmith.engines.constraint import OPTIONS, as_text, fits
from tunesmith.engines.grammar import Grammar
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.errors import RecipeError

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,3}$"}, "maxItems": 2},
    },
    "required": ["colour", "count", "tags"],
    "additionalProperties": False,
}
PROMPTS = [[{"role": "user", "content": text}] for text in ["a", "a red car and a longer question?", "b c", "zz", "q", "7"]]


def test_random_weights_meet_the_schema(tiny_model, tokenizer):
    """A model that knows no JSON, rows that end at different times: all valid, and the likeliest of what fits, in any batch."""
    renderer = Renderer(tokenizer)
    engine = InProcessEngine(tiny_model, renderer, 4)
    answers = engine.generate(PROMPTS, 200, lambda _: None, SCHEMA)
    for answer in answers:
        assert answer.finished and not answer.free
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert fits(SCHEMA, answer.text) and not fits(SCHEMA, answer.text[:-1]) and not fits(SCHEMA, answer.text + " ")
    assert len({answer.new_tokens for answer in answers}) > 1
    free = engine.generate(PROMPTS, 12, lambda _: None)  # and nothing of it stays behind
    assert all("{" not in answer.text and answer.free and not fits(SCHEMA, answer.text) for answer in free)
    alone = InProcessEngine(tiny_model, renderer, 1).generate(PROMPTS[:2], 200, lambda _: None, SCHEMA)
    grammar = Grammar(SCHEMA, tokenizer, renderer.stop_ids, 8192)
    for prompt, *given in zip(PROMPTS, answers, alone, strict=False):
        ids = renderer.prompt_ids(prompt)
        logits_of = constrained(next_logits(tiny_model), grammar, len(ids))
        allowed = [tokenizer.decode(new[:-1]) for new in greedy_answers(logits_of, ids, 200, FP32, renderer.stop_ids)]
        assert {answer.text for answer in given} <= set(allowed)


def test_a_choice_that_fits_anyway_is_not_changed(tiny_model, tokenizer):
    """Greedy decoding under a schema takes the likeliest token of those that fit, no other."""
    renderer = Renderer(tokenizer)
    engine = InProcessEngine(tiny_model, renderer, 1)
    (answer,) = engine.generate(PROMPTS[:1], 200, lambda _: None, {"enum": ["red", "green", "blue"]})
    ids = renderer.prompt_ids(PROMPTS[0])
    quote, colours = tokenizer.encode('"'), {c: tokenizer.encode(f'"{c}"') for c in ("red", "green", "blue")}
    assert all(found[0] == quote[0] for found in colours.values()), "the vocabulary joins a quote with a colour"
    logits_V = tiny_model(torch.tensor([ids + quote])).logits[0, -1]
    firsts = {}  # every token that begins one of the three words
    for token in range(len(logits_V)):
        text = tokenizer.decode([token])
        if text and any(word.startswith(text) for word in colours):
            firsts[token] = float(logits_V[token])
    likeliest = [token for token, logit in firsts.items() if logit > max(firsts.values()) - FP32]
    assert answer.text.startswith(tuple('"' + tokenizer.decode([token]) for token in likeliest))


def test_grammar_ends_where_any_stop_token_may_stand(tokenizer):
    grammar = Grammar({"const": 1}, tokenizer, [0, 2], 8192)
    constraint = grammar.start(2)
    one = tokenizer.encode("1")[0]
    for expected in ({one}, {0, 2}):
        logits_BV = torch.zeros(2, 8192)
        logits_BV = constraint.change(logits_BV)
        fits = {n for n, x in enumerate(logits_BV[1].tolist()) if x == 0}
        assert expected <= fits and (one in fits) == (one in expected) and (2 in fits) == (2 in expected)
        constraint.accept([one, one] if one in expected else [2, 0])


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.com/other.json"}, "example.com"),
        ({"type": "string", "format": "no-such-format"}, "no-such-format"),
        ({"enum": []}, "Unsatisfiable"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(schema, named):
    with pytest.raises(RecipeError, match=f"cannot be enforced token by token: .*{named}"):
        as_text(schema)
    with pytest.raises(RecipeError):
        as_text({"type": "object", "properties": {"a": schema}, "required": ["a"]})


def test_the_text_for_llama_cpp_is_the_same_grammar():
    head, _, body = as_text(SCHEMA).partition("start: %json ")
    assert head == "%llguidance {}\n" and json.loads(body) == {**SCHEMA, "x-guidance": OPTIONS}


LABELS = ("ham", "spam", "ham and eggs", 'a "quoted" one', "naïve\\n", "日本", "two\nlines")


def test_random_weights_answer_with_a_label(tiny_model, tokenizer):
    """One label is another's beginning, others need escapes in the grammar."""
    renderer = Renderer(tokenizer)
    for labels in (LABELS, *((label,) for label in LABELS)):
        answers = InProcessEngine(tiny_model, renderer, 4).generate(PROMPTS, 40, lambda _: None, labels)
        assert all(answer.finished and answer.text in labels for answer in answers)


def test_labels_as_text_for_llama_cpp():
    assert as_text(("ham", 'a "b"')) == '%llguidance {}\nstart: "ham" | "a \\"b\\""\n'
