import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tunesmith.recipe import dump_recipe
from tunesmith.report.page import write_report
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.evidence import (
    Calibration,
    Curve,
    Estimate,
    Forgetting,
    Judgement,
    JudgeReport,
    Probe,
    ProbeFigure,
    RetrievalRecall,
    SeedRun,
    Seeds,
)
from tunesmith.rundir.records.training import GpuUse, Training

HOSTILE = "<script>alert(1)</script>\u202e\"'</pre>"
PROBE = Probe(
    name="bits_per_byte",
    label="bits per byte",
    n=120,
    base=0.912,
    tuned=0.934,
    difference=-0.0241,
    bound=-0.0312,
    margin=0.02,
    unit="share",
    verdict="regression",
)
KL = ProbeFigure(name="kl", label="KL", n=40, value=0.61, low=0.4, high=0.8, unit="nats a token", alarm=0.5, alarmed=True)
FORGETTING = Forgetting(verdict="regression", reason="lost more than 2 %", margin=0.02, probes=(PROBE,), figures=(KL,))
RUNS = tuple(SeedRun(seed=seed, score=score, best_dev_loss=1.0) for seed, score in ((0, 0.25), (1, 0.5), (2, 0.75)))
SEEDS = Seeds(arm="tuned", n=16, runs=RUNS, mean=0.5, min=0.25, max=0.75, sd=0.25)
REPORT = JudgeReport(
    n=16,
    wins=4,
    ties=3,
    losses=9,
    unscored=1,
    by_checks=2,
    position_consistency=0.875,
    first_preferred=0.5,
    length_correlation=None,
)
JUDGE = Judgement(calibration=Calibration(calibrated=False, reason="no human labels", n=0), arms={"tuned": REPORT})
RETRIEVAL = RetrievalRecall(searched="documents", passages=1234, k=5, n=16, answer_recall=0.625, relevant="it stands there")
POINTS = tuple(Estimate(rows=rows, value=v, low=v - 0.05, high=v + 0.05) for rows, v in ((10, 0.3), (20, 0.4), (40, 0.5)))
CURVE = Curve(
    a=0.1,
    b=0.4,
    c=0.5,
    points=POINTS,
    line=(*POINTS, Estimate(rows=160, value=0.7, low=0.4, high=0.8)),
    gains=(Estimate(rows=80, value=0.123, low=0.01, high=0.2), Estimate(rows=160, value=0.2, low=0.02, high=0.3)),
    dev_rows=64,
    verdict="cannot tell",
    reason="80 rows would buy +12.3 points",
)


class _Page(HTMLParser):
    """Checks that elements nest, and gathers attributes and the text of table rows."""

    void = frozenset({"meta", "br", "path", "use", "rect", "circle", "line"})

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.rows, self.text = [], [], [], ""
        self.feed(page.replace("<!doctype html>", ""))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.void or self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run without its model files, to be written."""
    shutil.copytree(tiny_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "merged", "*.gguf"))
    return RunDir(tmp_path / "run")


def _with_all_parts(run):
    """Every section that a page can have, beside what was measured."""
    measured = {"forgetting": FORGETTING, "seeds": SEEDS, "seed_gains": (0.1, 0.2, 0.3), "retrieval": RETRIEVAL}
    verdict = replace(Verdict.read(run.verdict_file), judge=JUDGE, advice=("Look again",), **measured)
    verdict.write(run.verdict_file)
    CURVE.write(run.evaluation / "curve.json")
    recipe = run.recipe()
    evaluate = recipe.evaluate.model_copy(update={"learning_curve": (0.25, 0.5, 1.0)})
    run.recipe_file.write_text(dump_recipe(recipe.model_copy(update={"evaluate": evaluate})))
    return verdict


def _written(run):
    write_report(run)
    return run.report_file.read_text()


def _rewrite(file, change):
    Output.write_lines(file, [change(output) for output in Output.read_lines(file)])


def _squeezed(text):
    return re.sub(r"\s+", " ", text)


def test_the_gpu_of_a_training_and_its_peaks_are_on_the_page(run):
    gpu = GpuUse(
        name="NVIDIA <X>",
        driver=None,
        capability="9.0",
        total_bytes=80 * 10**9,
        torch="2.13.0",
        cuda="13.0",
        peak_allocated=7_240_000_000,
        peak_reserved=8_000_000_000,
    )
    assert "<td>GPU</td>" not in _written(run)
    replace(Training.read(run.training_file), gpu=gpu).write(run.training_file)
    assert ["GPU", gpu.words] in [[cell.strip() for cell in row] for row in _Page(_written(run)).rows]


def test_page_is_whole_self_contained_and_holds_the_numbers(run):
    verdict = _with_all_parts(run)
    page = _written(run)
    parsed = _Page(page)
    ids = {value for _, name, value in parsed.attributes if name == "id"}
    for tag, name, value in parsed.attributes:
        assert tag not in ("script", "img", "link", "iframe") and not name.startswith("on"), (tag, name)
        assert name.startswith("xmlns") or not re.search(r"https?:|//", value or ""), (tag, name, value)
        assert name not in ("href", "xlink:href", "src") or value.startswith("#"), (tag, value)
        assert tag != "a" or name != "href" or value[1:] in ids, value
    assert "@import" not in page and "default-src 'none'" in page and 'name="viewport"' in page
    text = _squeezed(parsed.text)
    assert f"Verdict: {verdict.decision}" in text
    rows = {row[0]: [_squeezed(cell).strip() for cell in row[1:]] for row in parsed.rows if row[0] != "arm"}
    quality = [row for row in parsed.rows if row and row[0] in {arm.name for arm in verdict.arms}]
    for arm, row in zip(verdict.arms, quality, strict=False):
        assert row[0] == arm.name
        assert _squeezed(row[1]).strip() == f"{100 * arm.score:.1f} ({100 * arm.low:.1f} to {100 * arm.high:.1f})"
        if c := arm.against:
            assert _squeezed(row[2]).strip() == f"{100 * c.gain:+.1f} ({100 * c.low:+.1f} to {100 * c.high:+.1f})"
            assert row[4] == f"{c.won} / {c.lost}"
        assert row[-1] == str(arm.cut)
    for rival in verdict.rivals:
        c = rival.comparison
        (row,) = (row for row in parsed.rows if row[0] == rival.way and row[-1] == f"{c.won} / {c.lost}" and len(row) == 5)
        assert _squeezed(row[2]).strip() == f"{100 * c.gain:+.1f} ({100 * c.low:+.1f} to {100 * c.high:+.1f})"
    loss = verdict.deployed_loss
    assert f"{100 * loss.gain:+.1f} points ({100 * loss.low:+.1f} to {100 * loss.high:+.1f}, n {loss.n})" in text
    assert rows["bits per byte"] == ["0.912", "0.934", "-2.41", "-3.12", "2.00", "120", "regression"]
    assert rows["80, predicted"] == ["+12.3 (+1.0 to +20.0)"] and rows["160, predicted"] == ["+20.0 (+2.0 to +30.0)"]
    assert rows["KL (alarm: at least 0.5)"][2] == "0.610 (0.400 to 0.800)"
    assert "25.0 to 75.0, standard deviation 25.0 points" in text and "+10.0, +20.0, +30.0 points" in text
    assert "for 62.5 of 100 rows (n 16; 1,234 passages of documents)" in text and "Judge uncalibrated: no human labels" in text
    assert "Look again." in text and page.count("<svg") == 2


def test_means_and_intervals_of_time_and_tokens_are_those_of_the_outputs(run):
    page = _Page(_written(run))
    for arm in Verdict.read(run.verdict_file).arms:
        tokens = [output.new_tokens for output in Output.read_lines(run.answers(arm.name) / "outputs.jsonl")]
        mean = sum(tokens) / len(tokens)
        reach = 1.96 * (sum((t - mean) ** 2 for t in tokens) / (len(tokens) - 1) / len(tokens)) ** 0.5
        (row,) = (row for row in page.rows if len(row) == 4 and row[0] == arm.name)
        assert _squeezed(row[2]).strip() == f"{mean:.0f} ({max(0.0, mean - reach):.0f} to {mean + reach:.0f})"


def test_what_was_not_measured_is_said_and_has_no_section(run):
    page = _written(run)
    verdict = Verdict.read(run.verdict_file)
    assert verdict.seeds is None
    for section in ("seeds", "curve"):
        assert f'id="{section}"' not in page and f'href="#{section}"' not in page
    if verdict.forgetting is None:
        assert "nobody looked whether other skills decayed" in page and 'id="forgetting"' not in page
    replace(verdict, deployed_loss=None).write(run.verdict_file)
    page = _written(run)
    assert 'id="deployed"' not in page and "needs the arms tuned and deployed" in page


def test_a_curve_that_the_recipe_does_not_ask_for_is_left_out(run):
    CURVE.write(run.evaluation / "curve.json")
    assert 'id="curve"' not in _written(run)


def test_rows_that_tuning_won_and_broke_are_counted_and_shown(run):
    verdict = Verdict.read(run.verdict_file)
    candidate, best = verdict.candidate, verdict.best_prompt
    ours = Output.read_lines(run.answers(candidate) / "outputs.jsonl")
    scores = [(1.0, 0.0)] * 5 + [(0.0, 1.0)] + [(0.25, 0.5)] + [(None, 1.0)] + [(0.0, 0.0)] * (len(ours) - 8)
    for arm, side in ((candidate, 0), (best, 1)):
        scores_of_arm = iter(pair[side] for pair in scores)
        _rewrite(run.answers(arm) / "outputs.jsonl", lambda output, s=scores_of_arm: replace(output, score=next(s)))
    page = _written(run)
    text = _squeezed(_Page(page).text)
    assert f"2 broken, 5 won, {len(ours) - 8} missed alike." in text
    shown = re.findall(r"<code>(\w+)</code></header>", page)
    ids = [output.id for output in ours]
    assert shown == [ids[5], ids[6], *ids[:5], *ids[8:11]]  # broken first, the largest difference before the smaller
    assert "2 more" in text and ids[7] not in shown


def test_what_models_and_data_say_is_escaped_and_cut(run):
    _with_all_parts(run)
    verdict = Verdict.read(run.verdict_file)
    text, reference = HOSTILE + "x" * 5000, json.dumps({HOSTILE: HOSTILE})
    prompt = [{"role": "user", "content": HOSTILE}]
    for arm in verdict.arms:
        _rewrite(
            run.answers(arm.name) / "outputs.jsonl",
            lambda output: replace(output, prompt=prompt, output=text, reference=reference),
        )
    forgetting = replace(FORGETTING, reason=HOSTILE, probes=(replace(PROBE, label=HOSTILE),))
    replace(verdict, forgetting=forgetting, advice=(HOSTILE,)).write(run.verdict_file)
    page = _written(run)
    _Page(page)
    assert "<script" not in page and "\u202e" not in page and "&lt;script&gt;" in page
    assert "characters more]" in page and "x" * 2001 not in page
