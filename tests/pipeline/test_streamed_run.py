"""A run whose layers are streamed is the run of a resident model, to the last byte of its adapter and of its answers."""

import pytest

from shared import write_recipe
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.training import Training


@pytest.mark.slow
def test_a_streamed_run_ends_with_the_files_of_a_resident_one(tmp_path, tiny_dir, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {}
    for resident in ("all", 0):
        folder = tmp_path / str(resident)
        folder.mkdir()
        keys = {"base": "nf4", "train.compute": "fp32", "train.resident_layers": resident, "train.recompute": "layer"}
        run = api.open_run(write_recipe(folder, tiny_dir, keys | {"export.gguf": ["Q8_0"]}), folder / "run")
        assert api.run(run) is not None
        files = [path for path in run.path.rglob("*") if path.suffix in (".safetensors", ".gguf") and "checkpoints" not in path.parts]
        assert len(files) >= 2
        found[resident] = {str(path.relative_to(run.path)): sha256_file(path) for path in files}, Training.read(run.training_file).dev_loss
    assert found[0] == found["all"]
    assert len([*(tmp_path / "cache" / "tunesmith" / "streams").glob("*/layers.bin")]) == 1
