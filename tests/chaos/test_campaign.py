"""The short campaign: a few kills and one of each other disturbance, on a run of every stage but the longest.

The slow suite kills once in each stage; ``make chaos`` goes on for hours.
"""

import campaign
import pytest
from small_run import CANARY, Place

SHORTER = {"train.replay": 0.0, "evaluate.seeds": 1}
TRIALS = {
    **{"kill": range(1, 12, 3), "terminate": range(3, 4), "disk": range(5, 6), "readonly": range(4, 5), "slow": range(5, 6)},
    **{"clock": range(8, 9), "writers": range(1, 2), "memory": range(5, 6), "nan": range(1)},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_dir):
    return campaign.Undisturbed(Place(tmp_path_factory.mktemp("chaos"), SHORTER, tiny_dir))


EVERY_STAGE = pytest.param("kill", range(12), id="kill in every stage", marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "numbers"), [*(pytest.param(*one, id=one[0]) for one in TRIALS.items()), EVERY_STAGE])
def test_a_disturbed_run_ends_with_the_bytes_of_an_undisturbed_one(undisturbed, kind, numbers):
    done = campaign.trials(undisturbed, kind, 0, numbers)
    assert {trial.title: trial.problems for trial in done if trial.problems} == {}


@pytest.mark.parametrize("file", ["evaluation/few_shot/outputs.jsonl", "adapter/adapter_config.json", "stages.json"])
def test_a_bit_that_flipped_is_noticed_and_the_run_mended(undisturbed, file):
    trial = campaign.Trial(undisturbed, "bits", 0, 0)
    campaign.bits(trial, file)
    assert trial.problems == [] and "noticed" in trial.notes


def test_no_secret_is_in_any_file_and_a_private_umask_is_kept(undisturbed):
    """With umask 077 nobody but the owner reads a file with rows, in the run, in the cache and among the readings.

    Files of the base that are copied into a merged model keep the base's mode: no row is in them.
    """
    undisturbed.begin("looked at", None)
    home = undisturbed.place.home("looked at")
    files = [path for path in home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50 and (home / "cache").is_dir() and (home / "data").is_dir()
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == [] and CANARY not in undisturbed.said
    own = [path for path in home.rglob("*") if not path.is_symlink() and path.parent.name != "merged"]
    assert [path for path in own if path.stat().st_mode & 0o077] == []


def test_a_difference_and_a_leftover_are_seen(undisturbed):
    name = campaign.NAME
    undisturbed.begin(name, None)
    run = undisturbed.place.run(name)
    (run / "data" / ".train.jsonl.tmp").write_text("")
    (run / "export" / "more.gguf").write_text("")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"step"', '"step" '))
    (run / "adapter" / "adapter_config.json").unlink()
    wrong = undisturbed.compare(name, undisturbed.last)
    assert [line.partition(":")[0] for line in wrong] == [
        *("adapter/adapter_config.json", "data/.train.jsonl.tmp", "export/more.gguf"),
    ]
