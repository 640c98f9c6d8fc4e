"""A run whose layers are streamed is the run of a resident model, to the last byte of its adapter and of what is deployed."""

import pytest

from shared import write_recipe
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import sha256_file

MODELS = (".safetensors", ".gguf")


@pytest.mark.slow
def test_a_streamed_run_ends_with_the_files_of_a_resident_one(tmp_path, tiny_dir, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keys = {"base": "nf4", "train.compute": "fp32", "train.recompute": "layer", "export.gguf": ["Q8_0"]}
    files = {}
    for resident in ("all", 0):
        folder = tmp_path / str(resident)
        folder.mkdir()
        run = api.open_run(write_recipe(folder, tiny_dir, keys | {"train.resident_layers": resident}), folder / "run")
        assert api.run(run) is not None
        made = [path for path in run.path.rglob("*") if path.suffix in MODELS and "checkpoints" not in path.parts]
        files[resident] = {str(path.relative_to(run.path)): sha256_file(path) for path in (*made, run.path / "metrics.jsonl")}
    assert len(files[0]) >= 3 and files[0] == files["all"]
    assert len([*(tmp_path / "cache" / "tunesmith" / "streams").glob("*/layers.bin")]) == 1
