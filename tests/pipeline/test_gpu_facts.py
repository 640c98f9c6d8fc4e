"""The GPU of a training in what a run leaves behind."""

import dataclasses
import json

import torch

from shared import write_recipe
from tunesmith.models import device
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import read_json
from tunesmith.rundir.records.training import GpuUse, Training

GPU = GpuUse(
    name="NVIDIA X",
    driver="570.86.10",
    capability="9.0",
    total_bytes=80_000_000_000,
    torch="2.13.0",
    cuda="13.0",
    peak_allocated=7_240_000_000,
    peak_reserved=8_000_000_000,
)
WORDS = (
    "NVIDIA X (capability 9.0, driver 570.86.10, CUDA 13.0, torch 2.13.0): 7.2 GB allocated and 8.0 reserved at most, of 80.0"
)


def test_a_cpu_has_none_and_a_gpu_is_asked_for_its_own_figures(monkeypatch):
    assert device.gpu_use(torch.device("cpu")) is None
    answers = {
        "get_device_name": GPU.name,
        "get_device_capability": (9, 0),
        "max_memory_allocated": GPU.peak_allocated,
        "max_memory_reserved": GPU.peak_reserved,
        "get_device_properties": type("Properties", (), {"total_memory": GPU.total_bytes}),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer)
    monkeypatch.setattr(device.hardware, "gpu_driver", lambda: GPU.driver)
    found = device.gpu_use(torch.device("cuda", 0))
    assert found is not None and dataclasses.replace(found, torch=GPU.torch, cuda=GPU.cuda) == GPU
    assert GPU.words == WORDS


def test_training_and_manifest_name_it_and_an_older_record_is_read(tmp_path, tiny_dir, monkeypatch, talk):
    monkeypatch.setattr("tunesmith.pipeline.train.gpu_use", lambda _: GPU)
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"train.num_train_epochs": 1}), tmp_path / "run")
    api.data(run)
    training = api.train(run)
    assert training.gpu == GPU and training.recompute == "none" and WORDS in training._repr_html_()
    assert run.manifest().hardware["gpu"] == GPU.to_json() and run.manifest().hardware["cores"]
    assert f"train: {WORDS}" in talk()
    older = {key: value for key, value in read_json(run.training_file).items() if key not in ("gpu", "recompute")}
    run.training_file.write_text(json.dumps(older))
    assert Training.read(run.training_file) == dataclasses.replace(training, gpu=None)
