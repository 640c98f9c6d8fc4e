"""Which directory a model is, and what is said where there is none."""

import pytest
from huggingface_hub import DryRunFileInfo

from shared import GGUF
from tunesmith.checkpoints.resolve import find_model
from tunesmith.errors import ModelError


def test_places_that_hold_no_model(tmp_path):
    for model, words in [
        (str(tmp_path / "none"), "no such model"),
        (str(tmp_path), "no config.json"),
        (str(tmp_path / "none.gguf"), "no such model file"),
    ]:
        with pytest.raises(ModelError, match=words):
            find_model(model)


def test_gguf_cut_in_half_and_gguf_with_another_hash(tmp_path):
    half = tmp_path / "half.gguf"
    with GGUF.open("rb") as file:
        half.write_bytes(file.read(GGUF.stat().st_size // 2))
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        find_model(str(half))
    with pytest.raises(ModelError, match="the recipe expects 0000"):
        find_model(str(half), sha256="0" * 64)
    half.write_bytes(b"not a gguf")
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        find_model(str(half))


def test_unknown_hub_id_is_an_error_not_another_model(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("tunesmith.checkpoints.resolve.snapshot_download", offline)
    with pytest.raises(ModelError, match="nobody/nothing: no such file or directory, and the hub"):
        find_model("nobody/nothing")


def test_a_model_that_has_no_room_is_not_fetched(monkeypatch):
    def listed(*_, dry_run=False, **__):
        assert dry_run, "nothing is fetched"
        sizes = {"model.safetensors": 16 * 10**9, "config.json": 700}
        return [DryRunFileInfo("abc", size, name, "", False, True) for name, size in sizes.items()]

    monkeypatch.setattr("tunesmith.checkpoints.resolve.snapshot_download", listed)
    monkeypatch.setattr("tunesmith.checkpoints.resolve.free_bytes", lambda _: 10**9)
    with pytest.raises(ModelError, match=r"16\.00 GB are to be fetched, and 1\.00 GB are free in .*; nothing was fetched"):
        find_model("org/large")
