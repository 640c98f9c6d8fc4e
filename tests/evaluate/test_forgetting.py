"""The forgetting check: figures equal those of the stock model, and verdicts follow from them."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from ties import FP32, greedy_answers, next_logits
from tunesmith import pipeline as api
from tunesmith.chat.render import Renderer
from tunesmith.engines.engine import Answer
from tunesmith.errors import DataError, RunError
from tunesmith.evaluate import forgetting
from tunesmith.evaluate.probes import Passage, Probes, Question, load_probes, read_passages
from tunesmith.models.adapter import save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

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
    found = forgetting.measure(model, layers, renderer, PROBES, 0.02, 4, steps.append)
    assert sum(steps) == forgetting.STEPS
    return found


@pytest.fixture
def renderer(tokenizer):
    return Renderer(tokenizer)


def _log_probs(model, ids):
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double(), -1)


def _logprob(model, context, said):
    log_TV = _log_probs(model, context + said)
    return sum(float(log_TV[len(context) + i - 1, token]) for i, token in enumerate(said))


def test_figures_equal_those_of_two_stock_models(tiny_model, renderer):
    stock = copy.deepcopy(tiny_model)
    layers = _adapted(tiny_model, 0.03)
    plain = copy.deepcopy(stock)
    for name, layer in layers.items():
        plain.get_submodule(name).weight.data += layer.delta_OI()
    found = _measured(tiny_model, layers, renderer)
    bits, answers = found["probes"]
    encode = renderer.tokenizer.encode
    for side, model in (("base", stock), ("tuned", plain)):
        texts = [(encode(p.text), len(p.text.encode())) for p in PROBES.passages]
        expected = [-_logprob(model, ids[:1], ids[1:]) / np.log(2) / size for ids, size in texts]
        assert bits[side] == pytest.approx(np.mean(expected), abs=1e-5)
        right = []
        for q in PROBES.questions:
            context = encode(f"Question: {q.question}\nAnswer:")
            likely = np.exp([_logprob(model, context, encode(f" {answer}")) for answer in q.answers])
            right.append(likely[0] / likely.sum())
        assert answers[side] == pytest.approx(np.mean(right), abs=1e-5)
    assert bits["difference"] == pytest.approx((bits["base"] - bits["tuned"]) / bits["base"])
    assert answers["difference"] == pytest.approx(answers["tuned"] - answers["base"])

    kls = []
    for _, request in PROBES.prompts:
        prompt = renderer.prompt_ids([{"role": "user", "content": request}])
        answers = greedy_answers(next_logits(stock), prompt, 16, FP32, renderer.stop_ids)
        kls.append([_kl(stock, plain, prompt, new, renderer) for new in answers])
    kl = found["figures"][0]
    written = [values for values in itertools.product(*kls) if kl["value"] == pytest.approx(np.mean(values), rel=1e-3)]
    assert kl["name"] == "kl" and kl["low"] <= kl["value"] <= kl["high"]
    assert kl["largest"][0]["id"] in [f"r{int(np.argmax(values))}" for values in written]


def _kl(stock, plain, prompt, new, renderer):
    """Mean over the tokens of what the base answers, in nats."""
    new = new[:-1] if new[-1] in renderer.stop_ids else new
    new = renderer.tokenizer.encode(renderer.tokenizer.decode(new), add_special_tokens=False)
    log_p, log_q = (_log_probs(model, prompt + new)[len(prompt) - 1 :] for model in (stock, plain))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_an_untrained_adapter_has_forgotten_nothing_and_a_damaged_model_much(tiny_model, renderer, monkeypatch):
    layers = _adapted(tiny_model, 0.0)
    same = forgetting.conclude(_measured(tiny_model, layers, renderer), 0.02)
    assert same["verdict"] == "no regression"
    # Columns of zeros may change the order of additions.
    assert [probe["difference"] for probe in same["probes"]] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert same["figures"][0]["value"] < 1e-6 and not same["figures"][0]["alarmed"]
    for layer in layers.values():
        layer.lora_B.data.normal_(std=2.0)
    # A model of random weights cannot lose what it never knew, so every token becomes a tenth less likely, in nats.
    honest, factors = forgetting.Scorer.continuation_logprobs, iter((1.0, 1.1))

    def lowered(*args):
        factor = next(factors)
        return [dataclasses.replace(scored, logprob=factor * scored.logprob) for scored in honest(*args)]

    monkeypatch.setattr(forgetting.Scorer, "continuation_logprobs", lowered)
    worse = forgetting.conclude(_measured(tiny_model, layers, renderer), 0.02)
    bits = worse["probes"][0]
    assert worse["verdict"] == bits["verdict"] == "regression" and bits["tuned"] > bits["base"]
    assert bits["label"] in worse["reason"]
    assert worse["figures"][0]["alarmed"] and "KL" in worse["reason"]
    assert {part["name"]: part["n"] for part in bits["parts"]} == {"code": 4, "own": 8}


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["no regression", "no regression"], "no regression"),
        (["no regression", "too little data to tell"], "too little data to tell"),
        (["too little data to tell", "regression"], "regression"),
    ],
)
def test_a_run_is_as_good_as_its_worst_probe(verdicts, whole):
    probes = [{"label": f"probe {i}", "verdict": verdict} for i, verdict in enumerate(verdicts)]
    told = forgetting.conclude({"probes": probes, "figures": []}, 0.05)
    assert told["verdict"] == whole and told["margin"] == 0.05
    blamed = [probe["label"] for probe in probes if probe["verdict"] == whole and whole != "no regression"]
    assert [probe["label"] for probe in probes if probe["label"] in told["reason"]] == blamed


def test_a_base_that_says_nothing_is_still_compared(tiny_model, renderer, monkeypatch):
    silent = lambda self, asked, *_: [Answer("", 1, 1, 0.0, True) for _ in asked]  # noqa: E731
    monkeypatch.setattr("tunesmith.engines.in_process.InProcessEngine.generate", silent)
    found = _measured(tiny_model, _adapted(tiny_model, 0.05), renderer)
    assert found["figures"][0]["value"] > 0.0


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
        forgetting.measure(tiny_model, _adapted(tiny_model, 0.0), renderer, probes, 0.02, 4, lambda _: None)


def test_a_run_is_checked_once(tmp_path, make_recipe, tiny_dir, monkeypatch):
    make_recipe()
    run = api.open_run(tmp_path / "toy.yaml", tmp_path / "run")
    with pytest.raises(RunError, match="stage train"):
        api.forgetting(run)
    model = load_model(tiny_dir, "fp32")
    run.adapter.mkdir()
    save_adapter(run.adapter, _adapted(model, 0.02), LORA, str(tiny_dir))
    run.mark_done("train", "trained", 0.0, 0)
    monkeypatch.setattr("tunesmith.evaluate.probes.load_probes", lambda texts: PROBES)
    first = api.forgetting(run)
    assert first == json.loads((run.evaluation / "forgetting.json").read_text())
    assert [probe["name"] for probe in first["probes"]] == ["bits_per_byte", "answer_probability"]
    assert not first["required"]
    monkeypatch.setattr("tunesmith.evaluate.probes.load_probes", lambda texts: 1 / 0)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("required: false", "required: true"))
    assert api.forgetting(run) == {**first, "required": True}
    assert json.loads((run.evaluation / "forgetting.json").read_text())["required"]
    run.mark_done("train", "trained again", 0.0, 0)
    with pytest.raises(ZeroDivisionError):
        api.forgetting(run)
