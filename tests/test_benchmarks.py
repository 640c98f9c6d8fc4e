"""The benchmarks compute what they say: rows, floor, agreement, protocol, tables. No time is asserted anywhere."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from shared import ROOT, toy_rows
from tunesmith.chat.render import Renderer
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.models.load import load_tokenizer

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "peers")]

import floor
import gpu
import gpu_kernels
import gpu_step
import protocol
import quantize
import serve_front
import serve_soak
import train_data
import train_step

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "tie_word_embeddings": True,
}
MIN_DISCORDANT_UNITS = tuple(train_data.Function("m", f"def f{n}():\n    return 1", "Doc.", '{"name": "f"}') for n in range(3))


def test_chats_are_the_same_every_time_and_come_from_code(tmp_path, monkeypatch):
    monkeypatch.setattr(train_data, "functions", partial(train_data.functions, "email"))  # the whole takes 7 s
    first, second = train_data.chats(60), train_data.chats(60)
    assert train_data.write_rows(tmp_path / "a", first) == train_data.write_rows(tmp_path / "b", second)
    assert train_data.chats(20, seed=1) != first[:20]
    questions = [messages[0]["content"] for messages in first]
    assert len(set(questions)) == 60
    for question, answer in ((m[0]["content"], m[1]["content"]) for m in first):
        if question.startswith("Extract"):
            name = json.loads(answer)["name"]
            assert f"def {name}" in question
        else:
            assert answer not in question  # the docstring was taken out
    with pytest.raises(ValueError, match="standard library has functions for 3"):
        monkeypatch.setattr(train_data, "functions", lambda: MIN_DISCORDANT_UNITS)
        train_data.chats(10)


@pytest.mark.slow
def test_lengths_of_chats_and_prefix(real_dir):
    tokenizer = load_tokenizer(real_dir)

    def tokens(messages):
        return len(tokenizer.apply_chat_template(messages, return_dict=False))

    lengths = train_data.quantiles([tokens(messages) for messages in train_data.chats(200)])
    assert 230 < lengths["p50"] < 290 and 500 < lengths["p90"] < 720 and lengths["max"] < 2300, lengths
    rows = train_data.shared_prefix_chats(40)
    assert len({messages[0]["content"] for messages in rows}) == 1
    system = tokens(rows[0][:1])
    rest = train_data.quantiles([tokens(messages) - system for messages in rows])
    assert 460 < system < 540 and 45 < rest["p50"] < 75, (system, rest)


def test_signature_names_parameters_in_order_with_defaults():
    source = 'async def f(a, b=1, *, c, d=None):\n    """Doc."""\n    return a\n'
    (function,) = train_data._functions_of("m", source)
    assert json.loads(function.signature) == {
        "name": "f",
        "parameters": [{"name": "a"}, {"name": "b", "default": "1"}, {"name": "c"}, {"name": "d", "default": "None"}],
        "async": True,
    }
    assert function.docstring == "Doc." and "Doc." not in function.code


@pytest.mark.parametrize(("length", "window"), [(1, None), (9, None), (9, 4), (3, 4), (9, 1)])
def test_attention_pairs_are_those_of_the_mask(length, window):
    position = torch.arange(length)
    behind = position[:, None] - position
    mask = (behind >= 0) & (behind < (window or length))
    assert floor.attention_pairs(length, window) == int(mask.sum())


def test_flop_of_the_base_are_four_a_weight_and_token():
    facts = {"linears": [[8, 4], [4, 8]], "windows": [None, 2], "attention_width": 4, "vocabulary": 10, "hidden": 4, "r": 2}
    flops = floor.step_flops(facts, [3, 2], supervised=2)
    assert flops["base"] == 4 * 5 * 64 and flops["lora"] == 6 * 5 * 2 * 24 and flops["head"] == 4 * 2 * 10 * 4
    assert flops["attention"] == 12 * 4 * ((6 + 3) + (5 + 3))


def test_rates_are_measured_in_both_dtypes():
    rates = floor.measure_rates([[32, 16], [16, 32], [32, 16]], 8, 1, ("fp32", "bf16"))
    assert set(rates) == {"fp32", "bf16"} and min(rates.values()) > 0


def test_prepacked_product_is_the_product():
    x_TI, weight_OI = torch.randn(5, 16), torch.randn(32, 16)
    for way in floor._prepacked(x_TI, weight_OI):
        torch.testing.assert_close(way(), x_TI @ weight_OI.T)


def test_arms_that_disagree_are_refused():
    train_step.check_agreement({"trl_fp32": 2.0, "ours_fp32": 2.00001, "ours": 2.015})
    with pytest.raises(train_step.Refused, match=r"no ratios.*ours_fp32"):
        train_step.check_agreement({"trl_fp32": 2.0, "ours_fp32": 2.0001})
    with pytest.raises(train_step.Refused, match=r"ours 2\.03"):
        train_step.check_agreement({"trl_fp32": 2.0, "ours": 2.03})
    with pytest.raises(train_step.Refused, match="nan"):
        train_step.check_agreement({"trl_fp32": 2.0, "ours": float("nan")})


ECHO = """
import sys
sys.path.insert(0, {peers!r})
import protocol
answer = protocol.open_answers()
print("a library speaks")
answer({{"ready": "echo"}})
while True:
    protocol.next_command(answer, lambda: 1.5)
    clock = protocol.Clock()
    sum(range(20000))
    answer(clock.figures(2.0, 10, 3))
"""


def test_protocol_with_a_process(tmp_path):
    script = ECHO.format(peers=str(ROOT / "benchmarks" / "peers"))
    arm = train_step.Arm("echo", [sys.executable, "-c", script], 1, tmp_path / "log")
    try:
        assert arm.ready == {"ready": "echo"}
        assert arm.ask("evaluate")["loss"] == 1.5
        figures = arm.ask("step")
        assert (figures["loss"], figures["tokens"], figures["supervised"]) == (2.0, 10, 3)
        assert figures["seconds"] > 0 and figures["cpu_seconds"] > 0 and figures["peak_bytes"] > 1e6
        assert arm.ask("stop") == {"stopped": True}
        with pytest.raises(train_step.Refused, match="echo: the process ended"):
            arm.ask("step")
    finally:
        arm.stop()
    assert "a library speaks" in (tmp_path / "log").read_text()


def test_process_that_dies_leaves_its_last_words(tmp_path):
    with pytest.raises(train_step.Refused, match="no such model here"):
        train_step.Arm("dead", [sys.executable, "-c", "raise SystemExit('no such model here')"], 1, tmp_path / "log")


class _Raced:
    def __init__(self, name, seconds):
        self.name = name
        self.steps = [
            {"loss": 2.0, "seconds": s, "cpu_seconds": 2 * s, "tokens": 12, "supervised": 4, "peak_bytes": 10**9 * (1 + s)}
            for s in (9.0, *seconds)  # the first is warm-up
        ]


def test_ratios_are_of_rounds_and_the_table_prints_them():
    trl, ours = _Raced("trl_fp32", [2.0, 2.0, 6.0, 6.0]), _Raced("ours", [1.0, 1.0, 1.0, 1.0])
    compared = train_step.ratios([trl, ours], rounds=2, steps=2)
    assert compared["ours over trl_fp32"]["wall"] == {"median": 4.0, "min": 2.0, "max": 6.0}
    assert compared["ours over trl_fp32"]["memory"] == 2 / 7
    facts = {"linears": [[8, 4]], "windows": [None], "attention_width": 4, "vocabulary": 10, "hidden": 4, "r": 2}
    facts |= {"steps": [[0, 1]] * 5, "lengths": [5, 7]}
    summary = train_step.summarise([trl, ours], 2, 2, facts, {"fp32": 1e3, "bf16": 2e3})
    assert summary["ours"]["tokens_per_second"]["median"] == 12.0 and summary["trl_fp32"]["tokens_per_second"]["max"] == 6.0
    flops = sum(floor.step_flops(facts, [5, 7] * 4, 16).values())
    assert summary["ours"]["share_of_floor"] == pytest.approx(flops / 2e3 / 4.0)
    printed = train_step.table(summary, compared)
    assert "ours over trl_fp32" in printed and "4.00" in printed and "(2.00-6.00)" in printed


def test_peer_gets_every_row_once_with_labels_where_supervised():
    trl_step = pytest.importorskip("trl_step")
    rows = [{"ids": [1, 2, 3][: n + 1], "supervised": [0, 1, 1][: n + 1]} for n in range(3)] * 2
    job = {"rows": rows, "steps": [[0, 1, 2, 3], [4, 5]]}
    padded = trl_step.rows_as_trl_takes_them(job, 0)
    packed = trl_step.rows_as_trl_takes_them(job, 2)
    assert [e["input_ids"] for e in padded] == [rows[n]["ids"] for n in range(6)] and len(packed) == 4
    for entries in (padded, packed):
        labels = Counter(label for e in entries for label in e["labels"])
        assert labels == {-100: 6, 2: 4, 3: 2}
        assert all(sum(e["seq_lengths"]) == len(e["input_ids"]) == len(e["labels"]) for e in entries)
    with pytest.raises(ValueError, match="3 packs of 2 rows"):
        trl_step.balanced([1, 2], [5, 5], 3)


@pytest.mark.slow
def test_our_runner_agrees_with_the_peer_on_a_tiny_model(tiny_dir, tmp_path, monkeypatch):
    """The whole benchmark in its smallest form, both trainers for real."""
    rows = [row["messages"] for row in toy_rows()]
    monkeypatch.setattr(train_step, "chats", lambda count: rows[:count])
    arguments = f"--arms trl_fp32,ours_fp32 --model {tiny_dir} --rounds 1 --steps 1 --rows 4 --threads 1 --chats 16"
    monkeypatch.setattr(train_step, "python_of", lambda peer: Path(sys.executable))
    given = train_step.parse([*arguments.split(), "--pack-tokens", "64"])
    results = train_step.benchmark(tmp_path, given)
    losses = [results["agreement"][arm]["loss"] for arm in ("trl_fp32", "ours_fp32")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    steps = {arm: [step["loss"] for step in figures["steps"]] for arm, figures in results["arms"].items()}
    assert steps["trl_fp32"] == pytest.approx(steps["ours_fp32"], rel=1e-4)  # the second has seen one update
    assert [s["tokens"] for s in results["arms"]["trl_fp32"]["steps"]] == [
        s["tokens"] for s in results["arms"]["ours_fp32"]["steps"]
    ]
    json.dumps(results)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_every_kernel_case_is_right_on_the_cpu(tokens):
    for name, case in gpu_kernels.cases(64, 192, 500, 4, 2, 16).items():
        assert gpu_kernels.check(case, tokens, "cpu") <= case.tolerance, name


def test_wrong_element_and_nan_are_seen():
    true = torch.randn(1000, dtype=torch.float64)
    got = true.bfloat16()
    assert gpu_kernels.error(got, true, 1.0) <= gpu_kernels.ONCE
    got[17] += 0.1
    assert gpu_kernels.error(got, true, 1.0) > gpu_kernels.TWICE
    got[17] = float("nan")
    assert gpu_kernels.error(got, true, 1.0) == float("inf")


def test_kernel_table_has_time_and_floor():
    card = gpu_kernels.measure_card("cpu", 16)
    case = gpu_kernels.cases(64, 192, 500, 4, 2, 16)["rope"]
    figures = {"errors": {"1": 1e-4}, "right": True, "tolerance": case.tolerance}
    figures |= gpu_kernels.measure_case(case, 8, "cpu", card)
    assert "right" in gpu.kernel_line("rope", figures) and "FAILED" in gpu.kernel_line("rope", {"failed": "x"})
    assert gpu.succeeded({"kernels": {"cases": {"rope": figures}}})
    assert not gpu.succeeded({"kernels": {"cases": {"rope": {**figures, "right": False}}}})
    assert not gpu.succeeded({"step-1B": {"failed": "exit status 1"}})
    short = {"pack_tokens": 8192, "recompute": "none", "r": 16, "dropout": 0.0, "out_of_memory": "asked for 2 GiB"}
    assert gpu.succeeded({"step-1B": {"settings": [short]}}) and "asked for 2 GiB" in gpu.step_line("1B", short)


def test_random_documents_fill_the_pack_exactly():
    for tokens in (2048, 2049, 8192, 100):
        rows = gpu_step.random_documents(tokens, 300)
        assert sum(len(ids) for ids, _ in rows) == tokens
        assert all(1 <= len(ids) <= gpu_step.LONGEST and 0 < sum(flags) <= len(ids) for ids, flags in rows)


def test_step_and_drift_on_a_tiny_model():
    kept, again = (
        gpu_step.measure_step(SHAPE, "cpu", {"flop_per_second": 1e9}, 128, 2, policy, 2, quantized=False)
        for policy in ("none", "layer")
    )
    assert kept["losses"] == pytest.approx(again["losses"], rel=1e-5)
    assert kept["share_of_product"] == kept["useful_share_of_product"]
    assert again["share_of_product"] > again["useful_share_of_product"]
    assert "tokens/s" in gpu.step_line("1B", kept)
    found = gpu_step.measure_drift(SHAPE, "cpu", steps=3, tokens=128)
    assert found["fp32"]["mean_gain"] > 0
    assert found["bf16 accurate"]["losses"][0] == found["bf16 rounded apart"]["losses"][0]  # B is zero
    assert found["bf16 accurate"]["losses"] != found["bf16 rounded apart"]["losses"]
    assert "gain lost" in gpu.drift_lines(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_machine_without_cuda_is_told_so():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu.py")], capture_output=True, text=True, check=False)
    assert done.returncode == gpu.NO_CUDA and "no CUDA device" in done.stderr


def test_whatever_is_not_installed_is_noted_and_a_part_that_needs_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu, "PACKAGES", ("torch", "tunesmith_nobody_has_this"))
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "tunesmith_nobody_has_this"))
    assert gpu.machine()["packages"] == {"torch": torch.__version__, "tunesmith_nobody_has_this": None}
    assert gpu.lacking("step-8B") == ["tunesmith_nobody_has_this"] and not gpu.lacking("kernels")


def test_a_dry_run_is_not_written_among_the_results(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry-run"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "needs --out" in capsys.readouterr().err


def test_counts_are_of_rows():
    job = {"rows": [{"ids": [1, 2, 3], "supervised": [0, 1, 1]}, {"ids": [4], "supervised": [0]}]}
    assert protocol.counts(job, [0, 1, 0]) == (7, 4)


def test_quantisation_is_measured_on_the_rows_that_the_file_holds(tmp_path):
    """Both ways make the same blocks, or the comparison is of two things."""
    rows = quantize.write_matrix(tmp_path / "source.gguf", 2 * quantize.COLUMNS)
    figures = quantize.measure("IQ4_XS", tmp_path / "source.gguf", rows, 1)
    (tensor,) = GgufReader(tmp_path / "made.gguf").tensors
    assert tensor.tensor_type.name == "IQ4_XS"
    assert bytes(tensor.data) == bytes(quantize.ggml().quantize(rows, tensor.tensor_type, None))
    assert figures["ours_to_bare"] == figures["ours"] / figures["bare"] and "of bare" in quantize.line("IQ4_XS", figures)
    assert quantize.met({"ours": 46e6, "bare": 80e6}) and quantize.met({"ours": 19e6, "bare": 20e6})
    assert not quantize.met({"ours": 40e6, "bare": 80e6})


@pytest.mark.slow
def test_two_thousand_answers_of_eight_adapters_are_each_their_own(tiny_gguf, tokenizer):
    renderer = Renderer(tokenizer)
    counts = {"adapters": 8, "clients": 16, "requests": 2000, "slots": 4, "tokens": 4}
    found = asyncio.run(serve_soak.soak(tiny_gguf, renderer, size=0.25, **counts))
    assert found["wrong"] == 0 and found["same"] + found["tie"] == 2000


@pytest.mark.slow
def test_good_and_bad_requests_at_once_are_each_answered_as_they_deserve():
    found = asyncio.run(serve_front.soak(300))
    assert set(found["counts"]) == {"right", "refused", "gone"} and found["distinct_answers"] > 9
    assert (found["health"], found["exit_code"]) == (200, 0)
