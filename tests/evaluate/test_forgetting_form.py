"""Forgetting on the form that ships: the same items through llama.cpp, and what is said where form and training differ."""

from dataclasses import replace

import pytest
from test_forgetting import PROBES

from tunesmith.chat.render import Renderer
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ExportError
from tunesmith.evaluate.forgetting import compared, measure
from tunesmith.evaluate.forgetting_form import FAULT, bits_added, bits_off, conclude_form, longest_of, measure_form, texts_of
from tunesmith.models.adapter import load_adapted
from tunesmith.rundir.records.evidence import Forgetting

MARGIN = 0.02


@pytest.fixture
def measured(tiny_model, tiny_lora, tokenizer):
    layers = load_adapted(tiny_model, tiny_lora)
    return measure(tiny_model, layers, Renderer(tokenizer), PROBES, 4, lambda _: None, keep=True)


def _through(path, lora, measured):
    done = []
    with LlamaModel(path, longest_of(measured), lora) as model:
        found = measure_form(model, measured, PROBES, done.append)
    assert sum(done) == texts_of(measured)
    return found


def test_a_form_with_the_trained_weights_has_forgotten_as_much(measured, tiny_gguf, tiny_lora):
    """Its figures are those of the model in process, to llama.cpp's rounding; without its adapter it is the base."""
    of_form, bare = (_through(tiny_gguf, lora, measured) for lora in (tiny_lora / "lora.gguf", None))
    (bits, answers), (kl, *_) = compared(measured, PROBES, MARGIN)
    (form_bits, form_answers), (form_kl, *_) = compared(of_form, PROBES, MARGIN)
    assert form_bits.tuned_N == pytest.approx(bits.tuned_N, rel=2e-3)
    assert form_answers.tuned_N == pytest.approx(answers.tuned_N, abs=5e-3)
    assert form_kl.value == pytest.approx(kl.value, rel=0.02) and kl.value > 0.1
    assert (form_bits.base_N == bits.base_N).all()
    assert abs(bits_added(measured, of_form)) <= bits_off(measured, of_form) < 1e-3
    assert compared(bare, PROBES, MARGIN)[1][0].value < 1e-3
    assert bare.tuned.bits_P == pytest.approx(measured.base.bits_P, rel=2e-3)
    assert bits_off(measured, bare) > FAULT


def test_numbers_that_are_none_are_no_forgetting(measured, tiny_gguf, monkeypatch):
    scored = LlamaModel.continuation_logprobs
    monkeypatch.setattr(
        LlamaModel, "continuation_logprobs", lambda *asked: [replace(one, logprob=float("nan")) for one in scored(*asked)]
    )
    with pytest.raises(ExportError, match="not finite"):
        _through(tiny_gguf, None, measured)


NO, LOST = "no regression", "regression"


@pytest.mark.parametrize(
    ("form", "process", "added", "off", "said", "unsaid"),
    [
        (NO, NO, 0.001, 0.002, "Q4_K_M: a reason", "in process"),
        (LOST, NO, 0.03, None, "the model in process: no regression (a reason); the file adds 3.0 %", "fault"),
        (LOST, LOST, 0.03, None, "Q4_K_M: a reason", "hardly any"),
        (LOST, NO, 0.03, 0.03, "a fault of parity: Q4_K_M has the weights that were trained", "hardly any"),
        (NO, NO, 0.0, 0.02, "are 2.0 % from those in process", "hardly any"),
    ],
)
def test_the_verdict_is_of_the_form_and_says_who_lost(form, process, added, off, said, unsaid):
    of_form, in_process = (
        Forgetting(verdict=verdict, reason="a reason", margin=MARGIN, probes=(), figures=()) for verdict in (form, process)
    )
    result = conclude_form(of_form, in_process, "Q4_K_M", added, off)
    assert (result.verdict, result.form, result.in_process.verdict) == (form, "Q4_K_M", process)
    assert said in result.reason and unsaid not in result.reason


def test_a_run_measures_the_form_that_it_deploys(tiny_run):
    """Beside the model in process; a record of a run that has none is read as before."""
    result = Forgetting.read(tiny_run.evaluation / "forgetting.json")
    assert result.form == "Q4_K_M" and result.reason.startswith("Q4_K_M: ")
    for probe, before in zip(result.probes, result.in_process.probes, strict=True):
        assert (probe.name, probe.n, probe.base) == (before.name, before.n, before.base) and probe.tuned != before.tuned
    bits = result.probes[0].tuned / result.in_process.probes[0].tuned
    assert result.bits_added == pytest.approx(bits - 1.0, abs=1e-6)
    page = (tiny_run.path / "report.html").read_text()
    assert "In process, before it was exported" in page
    assert "forgetting" in tiny_run.stages() and any("Q4_K_M" in name for name in tiny_run.stages()["forgetting"].inputs)
    old = {key: value for key, value in result.to_json().items() if key not in ("form", "bits_added", "in_process")}
    assert Forgetting.parse(old).in_process is None
