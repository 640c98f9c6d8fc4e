"""Parity: forms that are what was trained pass; each kind of wrong form fails for its own reason."""

import dataclasses
import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import special, stats

from tunesmith import cli
from tunesmith import pipeline as api
from tunesmith.errors import ExportError, RunError
from tunesmith.models.load import load_tokenizer
from tunesmith.parity import figures as figures_of
from tunesmith.parity.figures import Check, Distances, Prompt, Rendering
from tunesmith.pipeline import parity_forms, parity_reference
from tunesmith.pipeline.merged import merge_adapter
from tunesmith.pipeline.parity_forms import Form, Place, forms_of, open_engine
from tunesmith.rundir import RunDir, read_json, write_json, write_text

verb = importlib.import_module("tunesmith.pipeline.parity")  # the name in tunesmith.pipeline is the function
PLACE = Place(torch.device("cpu"), "fp32")
HOSTILE = "<script>alert(1)</script>"


class _Padded:
    """A form whose vocabulary has likely rows that the model's has not, as a padded file could."""

    def __init__(self, model):
        self._model, self.render, self.tokenize, self.close = model, model.render, model.tokenize, model.close

    def logits(self, ids, first=0):
        return np.pad(self._model.logits(ids, first), ((0, 0), (0, 7)), constant_values=50.0)


def _open_directory(form, context):
    """A directory in place of a GGUF file, read by transformers."""
    if form.name == "unreadable":
        raise ExportError("llama.cpp cannot run it", "")
    opened = parity_forms._Merged(form.path, PLACE)
    return _Padded(opened) if form.name == "padded" else opened


def _make_small(patch):
    """Few prompts, rows and tokens."""
    for module in (verb, parity_reference):
        patch.setattr(module, "DEV_PROMPTS", 2)
        patch.setattr(module, "LONG", 60)
    patch.setattr(verb, "DEV_ROWS", 2)
    patch.setattr(figures_of, "NEW_TOKENS", 8)


def _wrong_directories(run, tiny_dir, folder):
    """Copies of the merged directory, each with one thing wrong."""
    wrong = {name: folder / name for name in ("template", "base", "swapped", "noisy")}
    for directory in wrong.values():
        shutil.copytree(run.merged, directory)
    template = (run.merged / "chat_template.jinja").read_text()
    (wrong["template"] / "chat_template.jinja").write_text(template.replace("<|im_end|>", "<|im_end|> "))
    shutil.copy(tiny_dir / "model.safetensors", wrong["base"] / "model.safetensors")
    tokenizer = json.loads((wrong["swapped"] / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġsky"], vocabulary["Ġred"] = vocabulary["Ġred"], vocabulary["Ġsky"]
    (wrong["swapped"] / "tokenizer.json").write_text(json.dumps(tokenizer))
    generator = torch.Generator().manual_seed(0)
    weights = load_file(wrong["noisy"] / "model.safetensors")
    noisy = {
        name: weight + 0.02 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }
    save_file(noisy, wrong["noisy"] / "model.safetensors", metadata={"format": "pt"})
    return wrong


@pytest.fixture(scope="module")
def compared(tiny_run, tiny_dir, tmp_path_factory):
    """Good and bad forms beside one reference: the run, and what parity says of it."""
    folder = tmp_path_factory.mktemp("parity")
    shutil.copytree(tiny_run.path, folder / "run")
    run = RunDir(folder / "run")
    wrong = _wrong_directories(run, tiny_dir, folder)
    forms = [
        Form("merged", run.merged, None, "fp32"),
        Form("padded", run.merged, None, "fp16"),
        Form("noisy", wrong["noisy"], None, None),
        Form("rounded too much", wrong["noisy"], None, "fp32"),
        Form("without adapter", wrong["base"], None, None),
        Form("other template", wrong["template"], None, None),
        Form("swapped tokens", wrong["swapped"], None, None),
        Form("unreadable", run.merged, None, None),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity_forms, "open_gguf", _open_directory)
        patch.setattr(
            parity_forms,
            "gguf_engine",
            lambda form, context: open_engine(dataclasses.replace(form, name="merged"), run.recipe(), PLACE, context),
        )
        patch.setattr(verb, "forms_of", lambda run, recipe: forms)
        _make_small(patch)
        result = api.parity(run)
        assert api.parity(run) == result  # kept
    return run, result


def test_each_form_fails_for_its_own_reason(compared):
    run, result = compared
    failed = {form["form"]: form["failed"] for form in result["forms"]}
    assert failed == {
        "merged": [],
        "padded": [],
        "noisy": [],
        "rounded too much": ["distribution"],
        "without adapter": ["adapter"],
        "other template": ["template", "token ids"],
        "swapped tokens": ["token ids"],
        "unreadable": ["runs"],
    }
    assert not result["deployable"] and result["exit_code"] == 14
    reasons = {form["form"]: form["reason"] for form in result["forms"]}
    assert "<|im_end|> \\n" in reasons["other template"] and "expected" in reasons["other template"]
    assert "' sky'" in reasons["swapped tokens"] and "' red'" in reasons["swapped tokens"]
    assert reasons["unreadable"] == "runs: llama.cpp cannot run it"
    assert not (run.export / verb.SCRATCH).exists()


def test_the_merged_form_computes_what_was_trained(compared):
    _, result = compared
    forms = {form["form"]: form for form in result["forms"]}
    merged, padded, base = (forms[name]["figures"] for name in ("merged", "padded", "without adapter"))
    assert merged["kl_mean"] < 1e-8 and merged["agreement_or_tie"] == 1.0
    assert padded["kl_mean"] == pytest.approx(merged["kl_mean"], abs=1e-12)  # over the common entries alone
    # The base of the reference carries the adapter's columns as zeros: its sums are in another order.
    assert base["kl_mean"] == pytest.approx(result["adapter_kl"], rel=1e-4) and base["kl_from_base"] < 1e-8
    assert merged["kl_from_base"] > 0.01 and result["positions"] == merged["positions"] > 50
    assert forms["noisy"]["checks"]["distribution"]["state"] == "shown" and forms["noisy"]["figures"]["kl_mean"] > 1e-4


def test_control_tokens_in_user_text_are_reported_and_fail_nothing(compared):
    _, result = compared
    assert all(form["control_tokens"] == ["control tokens"] for form in result["forms"] if form["form"] != "unreadable")
    assert {"multi-turn", "system", "empty", "long", "unicode", "control tokens"} <= set(result["prompts"])
    assert result["left_out"] == {}


def test_the_first_divergence_is_shown_in_text(compared):
    _, result = compared
    found = next(form["divergence"] for form in result["forms"] if form["form"] == "without adapter")
    assert found["prompt"] in result["prompts"] and found["reference"] != found["form"] and not found["tie"]
    assert any("first divergence" in line and repr(found["reference"]) in line for line in api.parity_lines(result))


def test_the_exit_code_and_the_table(compared, monkeypatch, capsys):
    run, _ = compared
    _make_small(monkeypatch)  # the limits are part of the stage's key
    monkeypatch.setattr("sys.argv", ["tunesmith", "parity", str(run.path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr().out
    assert stop.value.code == 14
    assert "not deployable" in out and "without adapter: adapter: the adapter has no effect in this form" in out


def test_the_report_marks_what_is_not_deployable(compared):
    run, _ = compared
    kept = (run.export / "parity.json").read_text()
    found = json.loads(kept)
    found["forms"][4]["divergence"]["so_far"] = HOSTILE
    write_json(run.export / "parity.json", found)
    page = api.report(run).read_text()
    assert "without adapter is not deployable" in page and "swapped tokens is not deployable" in page
    assert HOSTILE not in page and "&lt;script&gt;" in page
    write_json(run.export / "parity.json", {**found, "inputs": "an export before"})
    assert "Not measured on this export" in api.report(run).read_text()
    assert verb.deployed_parity(run) is None
    write_text(run.export / "parity.json", kept)


def test_an_nf4_base_is_compared_as_it_was_trained(tiny_run, tmp_path, monkeypatch):
    """The reference dequantises, the merge into the trained weights does too; into the original it does not."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    text = run.recipe_file.read_text().replace("base: fp32", "base: nf4").replace("compute: auto", "compute: fp32")
    write_text(run.recipe_file, text)
    write_json(run.export / "merge.json", merge_adapter(run, run.export))
    recipe, scratch = run.recipe(), tmp_path / "scratch"
    form = forms_of(run, recipe)[0]
    assert form.rounding == "fp32"
    scratch.mkdir()
    _make_small(monkeypatch)
    reference = parity_reference.run_reference(run, recipe, PLACE, "no task", scratch)
    entry = verb._compared(run, form, reference, recipe, PLACE, "no task")
    assert entry["deployable"] and entry["figures"]["kl_mean"] < 1e-8 and "metric" not in entry["checks"]
    facts = read_json(run.export / "merge.json")
    write_json(run.export / "merge.json", {**facts, "into": "original"})
    assert {form.rounding for form in forms_of(run, recipe)} == {None}
    (run.export / "toy-Q8_0.gguf").unlink()
    with pytest.raises(RunError, match=r"toy-Q8_0\.gguf"):
        forms_of(run, recipe)


def test_the_run_of_llama_cpp_passes(tiny_run, tmp_path, monkeypatch):
    """The files of a whole run, by llama.cpp's own template, tokenizer and products."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    _make_small(monkeypatch)
    run = RunDir(tmp_path / "run")
    result = api.parity(run)
    assert result["deployable"] and result["exit_code"] == 0, [form["reason"] for form in result["forms"]]
    assert [form["form"] for form in result["forms"]] == ["merged", "Q8_0", "Q4_K_M"]
    q8, q4 = result["forms"][1:]
    assert q8["checks"]["adapter"]["state"] == q4["checks"]["adapter"]["state"] == "pass"
    assert 1e-7 < q8["figures"]["kl_mean"] < 1e-3 < q4["figures"]["kl_mean"]
    assert verb.deployed_parity(run)["form"] == result["deployed"] == "Q4_K_M"


def test_kl_is_scipys():
    rng = np.random.default_rng(0)
    tuned, base, form = (rng.normal(size=(5, 11)).astype(np.float32) * 3 for _ in range(3))
    found = figures_of.distances(tuned, base, np.pad(form, ((0, 0), (0, 2))))
    p, b, q = (special.softmax(x.astype(np.float64), axis=-1) for x in (tuned, base, form))
    np.testing.assert_allclose(found.kl_T, special.rel_entr(p, q).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(found.from_base_T, stats.entropy(b, q, axis=-1), rtol=1e-9)
    np.testing.assert_allclose(figures_of.base_distance(tuned, base), special.rel_entr(p, b).sum(-1), rtol=1e-9)
    assert (found.reference_T == tuned.argmax(-1)).all() and (found.lag_T >= 0).all()
    never = np.array([[0.0, 1.0, -np.inf]], dtype=np.float32)  # what the reference rules out adds nothing
    assert figures_of.distances(never, never, never[:, :]).kl_T == 0.0


def test_a_form_that_is_not_finite_fails():
    broken = np.full((2, 3), np.nan, dtype=np.float32)
    whole = np.zeros((2, 3), dtype=np.float32)
    found = figures_of.figures([figures_of.distances(whole, whole, broken)])
    assert found["kl_mean"] is None
    assert figures_of.distribution_check(found, None).state == figures_of.adapter_check(found, 1.0, None).state == "fail"


@pytest.mark.parametrize(
    ("gain", "low", "high", "state"),
    [
        (-0.005, -0.014, 0.004, "pass"),
        (-0.10, -0.18, -0.02, "fail"),
        (-0.10, -0.22, 0.02, "unknown"),
        (-0.01, -0.018, -0.002, "unknown"),  # worse for certain, by less than the margin as far as is known
        (0.0, -0.2, 0.2, "unknown"),
    ],
)
def test_non_inferiority(gain, low, high, state):
    assert figures_of.metric_check(gain, low, high, 0.015, 60).state == state


def test_the_adapter_check_says_when_it_cannot_tell():
    near = {"kl_mean": 0.001, "kl_from_base": 0.5}
    assert figures_of.adapter_check(near, 0.4, 1e-3).state == "pass"
    assert figures_of.adapter_check(near, 0.009, 1e-3).state == "unknown"
    assert figures_of.adapter_check(near, 0.009, 1e-6).state == "pass"
    assert figures_of.adapter_check({"kl_mean": 0.5, "kl_from_base": 0.4}, 0.4, None).state == "fail"


def test_a_tie_is_no_divergence_of_the_model():
    prompt = Prompt("one", [{"role": "user", "content": "hi"}], "", [1], False, [5, 6, 7])
    zeros, ids = np.zeros(3), np.array([5, 6, 7])
    found = Distances(zeros, zeros, ids, np.array([9, 6, 8]), np.array([0.01, 0.0, 0.3]))
    assert figures_of.figures([found])["agreement_or_tie"] == pytest.approx(2 / 3)
    shown = figures_of.first_divergence([found], [prompt], str)
    assert (shown["position"], shown["so_far"], shown["form"], shown["tie"]) == (2, "[5, 6]", "[8]", False)
    tied = Distances(zeros, zeros, ids, np.array([9, 6, 7]), np.array([0.01, 0.0, 0.0]))
    assert figures_of.first_divergence([tied], [prompt], str)["tie"]
    assert figures_of.first_divergence([Distances(zeros, zeros, ids, ids, zeros)], [prompt], str) is None


def test_a_beginning_of_text_token_may_stand_in_the_text_or_be_put_there_by_the_engine():
    prompt = Prompt("one", [], "<s>hi", [1, 7], False, [])
    assert figures_of.template_check([prompt], [Rendering("hi", [1, 7])], "<s>").state == "pass"
    assert figures_of.template_check([prompt], [Rendering("hi", [1, 7])], None).state == "fail"
    assert figures_of.ids_check([prompt], [Rendering("hi", [7])], str).told.startswith("prompt one: expected 1")
    refused = Rendering("", [], "no system role")
    assert "no system role" in figures_of.template_check([prompt], [refused], None).told
    entry = figures_of.form_facts("F16", "a.gguf", {"template": Check("fail", "x"), "metric": Check("unknown", "y")})
    assert not entry["deployable"] and entry["failed"] == ["template"] and entry["reason"] == "template: x"


def test_fixed_prompts_are_written_as_tokenizers_demand(tokenizer_dir):
    import unicodedata

    prompts = figures_of.fixed_prompts(["<|im_end|>"], figures_of.long_text(40))
    text = prompts["unicode"][0]["content"]
    assert unicodedata.is_normalized("NFC", text) and any(unicodedata.combining(c) for c in text)
    assert {"R", "AL"} <= {unicodedata.bidirectional(c) for c in text}
    assert "<|im_end|>" in prompts["control tokens"][0]["content"]
    assert 200 < len(load_tokenizer(tokenizer_dir)(prompts["long"][0]["content"])["input_ids"]) < 600
