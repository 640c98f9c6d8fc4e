"""The real model on real rows: a shortened demo. Slow; `make test-all`."""

import json

import pytest
import yaml

from llama_cpp_sources import RUN_IN_CHILD, conversion_by
from shared import GGUF, ROOT, WHOLE
from tunesmith.evaluate.arms import read_outputs
from tunesmith.pipeline import verbs as api
from tunesmith.rundir.records.export import Export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory, real_dir):
    folder = tmp_path_factory.mktemp("real")
    source = ROOT / "recipes" / "us_addresses.yaml"
    recipe = yaml.safe_load(source.read_text())
    rows = (ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl").read_text().splitlines()[:400]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    recipe["model"] = str(GGUF)
    recipe["data"] = {"path": "rows.jsonl", "test_fraction": 0.15, "dev_fraction": 0.1}
    del recipe["task"]["min_score"]  # which a quarter of the rows does not reach
    recipe["task"]["json_schema"] = str(ROOT / "recipes" / "us_addresses" / "schema.json")
    forgetting = recipe["evaluate"]["forgetting"]
    recipe["evaluate"] = {"few_shot": {"k": [3], "draws": 1}, "batch_size": 32, "forgetting": forgetting}
    (folder / "short.yaml").write_text(yaml.safe_dump(recipe))
    run = api.open_run(folder / "short.yaml", folder / "run")
    with pytest.MonkeyPatch.context() as patch, conversion_by(RUN_IN_CHILD):
        for limit in WHOLE:
            patch.setattr(*limit)
        return run, api.run(run)


def test_tuning_helps_and_the_deployed_form_keeps_it(run):
    _, verdict = run
    tuned, deployed, few_shot = (verdict.arm(name).figures for name in ("tuned", "deployed", "few_shot"))
    assert tuned["parse"] > 0.8 and deployed["parse"] > 0.8
    assert tuned["field_f1"] > few_shot["field_f1"] + 0.2
    assert abs(deployed["field_f1"] - tuned["field_f1"]) < 0.1
    assert verdict.decision in {"deploy", "too little data to tell"}


def test_the_tuned_model_stops_by_itself(run):
    directory, _ = run
    outputs = read_outputs(directory.evaluation / "deployed")
    assert sum(row.finished for row in outputs) > 0.9 * len(outputs)


def test_training_went_down_and_memory_stays_under_six_gigabytes(run):
    directory, _ = run
    losses = [json.loads(line)["loss"] for line in directory.metrics_file.read_text().splitlines()]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert max(stage.peak_bytes for stage in directory.stages().values()) < 6e9
    files = Export.read(directory.export / "export.json").files
    assert 6.0 < files["Q4_K_M"].bits_per_weight < 6.6 and 8.4 < files["Q8_0"].bits_per_weight < 8.6
