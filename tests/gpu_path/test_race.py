"""``benchmarks/gpu_peers.py`` runs to its end without a card: ours on the device that is not there, its losses from a CPU."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT
from .test_benchmark import environment

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "peers")]

import gpu_peers
import wheels
from train_step import Refused


class Contestant:
    """A process that answers steps of these losses."""

    def __init__(self, name, *losses):
        self.name, self.steps, self.ended, self._losses = name, [], False, list(losses)

    def ask(self, word):
        if not self._losses:
            raise Refused(f"{self.name} ended")
        return {"loss": self._losses.pop(0), "seconds": 1.0, "tokens": 100}

    def stop(self):
        self.ended = True


@pytest.mark.slow
def test_ours_runs_to_its_end(tmp_path):
    pytest.importorskip("triton")
    out = tmp_path / "race.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_peers.py"), "--dry-run", "--out", str(out)]
    done = subprocess.run([*command, "--only", "ours", "--heats", "lean"], capture_output=True, text=True, env=environment())
    assert not done.returncode, done.stdout + done.stderr
    heat = json.loads(out.read_text())["heats"]["lean"]
    assert heat["rounds"] == 1 and set(heat["arms"]) == {"ours_cpu", "ours_fake"} and not heat["skipped"]
    assert heat["arms"]["ours_fake"]["reserved_bytes"]["min"] >= heat["arms"]["ours_fake"]["allocated_bytes"]["min"] > 1_000_000
    assert heat["first_steps"]["ours_cpu"]["fall"] > 0  # the same rows again, after one update


def test_who_computes_something_else_is_not_timed():
    ours, same, other, broken = (
        Contestant(*given)
        for given in (("ours_gpu_fast", 9.0, 8.9), ("a", 9.004, 8.9), ("b", 9.02, 8.9), ("c", float("nan"), 1.0))
    )
    dead, skipped = Contestant("d"), {}
    agreed, found = gpu_peers.first_steps([ours, same, other, broken, dead], skipped)
    assert [arm.name for arm in agreed] == ["ours_gpu_fast", "a"] and set(skipped) == {"b", "c", "d"}
    assert "first loss is 9.020000, ours 9.000000" in skipped["b"] and other.ended and broken.ended and not same.ended
    assert found["ours_gpu_fast"]["fall"] == pytest.approx(0.1)


def test_rounds_that_are_whole_are_kept_when_one_ends():
    ours, other = Contestant("ours_gpu_fast", *[9.0] * 9), Contestant("a", *[9.0] * 7)  # the second ends in the second round
    gpu_peers.first_steps([ours, other], {})
    assert gpu_peers.race([ours, other], 3, gpu_peers.Deadline(100.0)) == 1
    found = gpu_peers.summarise([ours, other], 1)
    assert (
        found["arms"]["a"]["tokens_per_second"]["median"] == 100
        and found["ratios"]["a over ours_gpu_fast"]["speed"]["max"] == 1
    )
    with pytest.raises(Refused, match="d ended"):
        gpu_peers.race([Contestant("d")], 3, gpu_peers.Deadline(100.0))
    late = Contestant("late", *[9.0] * 9)
    assert gpu_peers.race([late], 3, gpu_peers.Deadline(0.0)) == 1  # the first is always begun


def test_documents_fill_their_packs_and_the_first_step_comes_twice():
    sizes = gpu_peers.Sizes(gpu_peers.parse(["--dry-run", "--out", "x"]))
    job = gpu_peers.documents(sizes, 4)
    lengths = [len(row["ids"]) for row in job["rows"]]
    assert all(sum(lengths[row] for row in pack) == 1024 for step in job["packs"] for pack in step)
    assert job["steps"][0] == job["steps"][1] != job["steps"][2] and min(lengths) >= 16
    assert all(sum(row["supervised"]) >= 1 and not row["supervised"][0] for row in job["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only trl", "ours has to be"),
        ("--heats quick", "unknown: quick"),
        ("--packages none.xz", "not there"),
        ("--dry-run", "needs --out"),
    ],
)
def test_what_makes_no_race_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        gpu_peers.parse(arguments.split())
    assert message in capsys.readouterr().err


def test_one_library_of_bitsandbytes_is_carried_and_no_web_page():
    kept = [
        *(
            "bitsandbytes/libbitsandbytes_cuda130.so",
            "bitsandbytes/nn/modules.py",
            "unsloth/trainer.py",
            "torchao/quantization/api.py",
        ),
        *(
            "pyarrow/libarrow_substrait.so.2600",
            "pyarrow/libarrow_python.so.2600",
            "transformers/models/llama/modeling_llama.py",
        ),
    ]
    left = [
        *("bitsandbytes/libbitsandbytes_cuda128.so", "bitsandbytes/libbitsandbytes_rocm72.so", "studio/frontend/index.js"),
        *("pyarrow/libarrow_flight.so.2600", "pyarrow/libarrow_python.so", "pandas/tests/test_x.py"),
    ]
    assert [path for path in [*kept, *left] if wheels.is_read(path, "130")] == kept
    listed = wheels.sections(wheels.LIST.read_text())
    assert set(listed) == {wheels.COMMON, *wheels.PEERS}
    assert all(line.count("==") == 1 for lines in listed.values() for line in lines)
