"""The forgetting check: figures equal those of the stock model, and verdicts follow from them."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from ties import FP32, greedy_answers, next_logits
from tunesmith.chat.render import Renderer
from tunesmith.engines.engine import Answer
from tunesmith.errors import DataError, RunError
from tunesmith.evaluate import forgetting
from tunesmith.evaluate.probes import Passage, Probes, Question, load_probes, read_passages
from tunesmith.models.swap import add_lora
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Lora
from tunesmith.rundir.records.evidence import Forgetting

WORDS = ("red", "green", "blue", "black")
PROBES = Probes(
    tuple(Passage(f"p{i}", "own" if i % 3 else "code", f"A {WORDS[i % 4]} house, number {i}. Ä") for i in range(12)),
    (("r0", "Hello"), ("r1", "Name a colour"), ("r2", "What is a bird?")),
    tuple(
        Question(f"q{i}", "fact", f"Which is number {i}?", (WORDS[i % 4], *WORDS[: i % 4], *WORDS[i % 4 + 1 :]))
        for i in range(6)
    ),
)
LORA = Lora(r=4, alpha=8, dropout=0.0)


def _adapted(model, spread):
    layers = add_lora(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=spread, generator=generator)
    return layers


def _measured(model, layers, renderer):
    steps = []
    measured = forgetting.measure(model, layers, renderer, PROBES, 4, steps.append)
    assert sum(steps) == forgetting.STEPS
    return forgetting.compared(measured, PROBES, 0.02)


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer)


def _log_probs(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double(), -1)


def _logprob(model, context, continuation):
    log_TV = _log_probs(model, context + continuation)
    return sum(float(log_TV[len(context) + i - 1, token]) for i, token in enumerate(continuation))


def test_figures_equal_those_of_two_stock_models(tiny_model, renderer):
    stock = copy.deepcopy(tiny_model)
    layers = _adapted(tiny_model, 0.03)
    plain = copy.deepcopy(stock)
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data += layer.delta_OI()
    paired, (kl, *_) = _measured(tiny_model, layers, renderer)
    bits, answers = forgetting.conclude(paired, [], 0.02).probes
    encode = renderer.tokenizer.encode
    for side, model in (("base", stock), ("tuned", plain)):
        texts = [(encode(p.text), len(p.text.encode())) for p in PROBES.passages]
        expected = [-_logprob(model, ids[:1], ids[1:]) / np.log(2) / size for ids, size in texts]
        assert getattr(bits, side) == pytest.approx(np.mean(expected), abs=1e-5)
        right = []
        for q in PROBES.questions:
            context = encode(f"Question: {q.question}\nAnswer:")
            likely = np.exp([_logprob(model, context, encode(f" {answer}")) for answer in q.answers])
            right.append(likely[0] / likely.sum())
        assert getattr(answers, side) == pytest.approx(np.mean(right), abs=1e-5)
    assert bits.difference == pytest.approx((bits.base - bits.tuned) / bits.base)
    assert answers.difference == pytest.approx(answers.tuned - answers.base)

    kls = []
    for _, request in PROBES.prompts:
        prompt = renderer.prompt_ids([{"role": "user", "content": request}])
        answers = greedy_answers(next_logits(stock), prompt, 16, FP32, renderer.stop_ids)
        kls.append([_kl(stock, plain, prompt, new, renderer) for new in answers])
    written = [values for values in itertools.product(*kls) if kl.value == pytest.approx(np.mean(values), rel=1e-3)]
    assert kl.name == "kl" and kl.low <= kl.value <= kl.high
    assert kl.largest[0].id in [f"r{int(np.argmax(values))}" for values in written]


def _kl(stock, plain, prompt, new, renderer):
    """Mean over the tokens of what the base answers, in nats."""
    new = new[:-1] if new[-1] in renderer.stop_ids else new
    new = renderer.tokenizer.encode(renderer.tokenizer.decode(new), add_special_tokens=False)
    log_p, log_q = (_log_probs(model, prompt + new)[len(prompt) - 1 :] for model in (stock, plain))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_an_untrained_adapter_has_forgotten_nothing_and_a_damaged_model_much(tiny_model, renderer, monkeypatch):
    layers = _adapted(tiny_model, 0.0)
    same = forgetting.conclude(*_measured(tiny_model, layers, renderer), 0.02)
    assert same.verdict == "no regression"
    # Columns of zeros may change the order of additions.
    assert [probe.difference for probe in same.probes] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert same.figures[0].value < 1e-6 and not same.figures[0].alarmed
    for layer in layers.values():
        layer.lora_B.data.normal_(std=2.0)
    # A model of random weights cannot lose what it never knew, so every token becomes a tenth less likely, in nats.
    honest, factors = forgetting.Scorer.continuation_logprobs, iter((1.0, 1.1))

    def lowered(*args):
        factor = next(factors)
        return [dataclasses.replace(scored, logprob=factor * scored.logprob) for scored in honest(*args)]

    monkeypatch.setattr(forgetting.Scorer, "continuation_logprobs", lowered)
    worse = forgetting.conclude(*_measured(tiny_model, layers, renderer), 0.02)
    bits = worse.probes[0]
    assert worse.verdict == bits.verdict == "regression" and bits.tuned > bits.base
    assert bits.label in worse.reason
    assert worse.figures[0].alarmed and "KL" in worse.reason
    assert {part.name: part.n for part in bits.parts} == {"code": 4, "own": 8}


LOST = {
    "no regression": np.zeros(20),
    "too little data to tell": np.linspace(-0.5, 0.4, 20),
    "regression": np.linspace(-0.3, -0.1, 20),
}


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["no regression", "no regression"], "no regression"),
        (["no regression", "too little data to tell"], "too little data to tell"),
        (["too little data to tell", "regression"], "regression"),
    ],
)
def test_a_run_is_as_good_as_its_worst_probe(verdicts, whole):
    probes = [
        forgetting.Paired(
            name="x",
            label=f"probe {i}",
            base_N=np.ones(20),
            tuned_N=1.0 + LOST[verdict],
            differences_N=LOST[verdict],
            margin=0.05,
            unit="share",
        )
        for i, verdict in enumerate(verdicts)
    ]
    conclusion = forgetting.conclude(probes, [], 0.05)
    assert conclusion.verdict == whole and conclusion.margin == 0.05
    assert [probe.verdict for probe in conclusion.probes] == verdicts
    blamed = [probe.label for probe in conclusion.probes if probe.verdict == whole and whole != "no regression"]
    assert [probe.label for probe in conclusion.probes if probe.label in conclusion.reason] == blamed


def test_a_base_that_says_nothing_is_still_compared(tiny_model, renderer, monkeypatch):
    silent = lambda self, asked, *_: [Answer("", 1, 1, 0.0, True) for _ in asked]  # noqa: E731
    monkeypatch.setattr("tunesmith.engines.in_process.InProcessEngine.generate", silent)
    _, (kl, *_) = _measured(tiny_model, _adapted(tiny_model, 0.05), renderer)
    assert kl.value > 0.0


def test_shipped_probes_are_sound():
    probes = load_probes()
    assert (len(probes.passages), len(probes.prompts), len(probes.questions)) == (40, 40, 100)
    for named in (probes.passages, probes.questions):
        assert len({item.id for item in named}) == len(named)
    assert len({text for _, text in probes.prompts}) == 40
    assert len({q.question for q in probes.questions}) == 100
    assert {passage.kind for passage in probes.passages} == {"english", "code", "german", "spanish"}
    for question in probes.questions:
        assert len({answer.strip().casefold() for answer in question.answers}) == 4


def test_own_passages(tmp_path):
    text, rows = tmp_path / "own.txt", tmp_path / "own.jsonl"
    text.write_text("\n\n\n".join(f"one {i}\ntwo" for i in range(10)) + "\n")
    rows.write_text("".join(json.dumps({"text": f"one {i}\ntwo"}) + "\n" for i in range(10)))
    assert read_passages(text) == read_passages(rows)
    assert load_probes(text).passages[9].text == "one 9\ntwo"
    for content, found in (
        ("[1]\n" * 10, "passage 1 has no text"),
        ("{", "cannot be read"),
        ('{"text": "a"}\n' * 9, "holds 9"),
    ):
        rows.write_text(content)
        with pytest.raises(DataError, match=found):
            read_passages(rows)
    with pytest.raises(DataError, match="cannot be read"):
        read_passages(tmp_path / "none.txt")


def test_a_passage_longer_than_the_context_is_named(tiny_model, renderer):
    probes = Probes((Passage("own-001", "own", "a b " * 1024),), PROBES.prompts, PROBES.questions)
    with pytest.raises(DataError, match=r"own-001 is .* the model's context is 1024"):
        forgetting.measure(tiny_model, _adapted(tiny_model, 0.0), renderer, probes, 4, lambda _: None)


def test_a_run_is_checked_once(tmp_path, make_recipe, tiny_dir, monkeypatch):
    make_recipe()
    run = api.open_run(tmp_path / "toy.yaml", tmp_path / "run")
    with pytest.raises(RunError, match="train was not run"):
        api.forgetting(run)
    api.train(run)
    with pytest.raises(RunError, match="export was not run"):  # the recipe deploys a file
        api.forgetting(run)
    api.export(run)
    monkeypatch.setattr("tunesmith.pipeline.forgetting.load_probes", lambda texts: PROBES)
    first = api.forgetting(run)["tuned"]
    assert first == Forgetting.read(run.evaluation / "forgetting.json")
    assert [probe.name for probe in first.probes] == ["bits_per_byte", "answer_probability"]
    written = (run.evaluation / "forgetting.json").stat().st_mtime_ns
    monkeypatch.setattr("tunesmith.pipeline.forgetting.load_probes", lambda texts: 1 / 0)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("required: false", "required: true"))
    assert api.forgetting(run)["tuned"] == first and (run.evaluation / "forgetting.json").stat().st_mtime_ns == written
    run.recipe_file.write_text(run.recipe_file.read_text().replace("margin: 0.02", "margin: 0.03"))
    with pytest.raises(ZeroDivisionError):
        api.forgetting(run)
