"""Runs that can be served, made of the tiny run in a moment: its records, and a base and a drawn adapter as GGUF files."""

import json
import shutil

import yaml

import lora_gguf
from tunesmith.rundir import RunDir, sha256_file


def write_lora(base, target, seed):
    """A drawn adapter that is large enough for answers other than the base's."""
    lora_gguf.write_lora(base, target, seed, layers=("attn_q", "attn_v"), rank=4, alpha=8.0, size=0.25)


def servable(tiny_run, directory, base, *, seed=1, decision="deploy", lora="deployable", merged="deployable", **task):
    """A run with an adapter GGUF on a base GGUF, and the base's file as the merged one.

    Args:
        directory: its name is the run's.
        lora, merged: what parity calls the forms; None where it has not looked.
    """
    shutil.copytree(tiny_run.path, directory)
    run, name = RunDir(directory), directory.name
    recipe = yaml.safe_load(run.recipe_file.read_text())
    recipe |= {"name": name, "export": {**recipe["export"], "gguf": ["F16"], "lora_gguf": lora is not None}}
    recipe["task"] |= task
    run.recipe_file.write_text(yaml.safe_dump(recipe))
    for file in run.export.glob("*.gguf"):
        file.unlink()
    shutil.copy(base, run.export / f"{name}-F16.gguf")
    if lora is not None:
        shutil.copy(base, run.export / f"{name}-base-F16.gguf")
        write_lora(base, run.export / f"{name}-lora.gguf", seed)
    _edit(run.export / "parity.json", lambda parity: _forms(parity, LoRA=lora, F16=merged))
    _edit(run.verdict_file, lambda verdict: verdict.update(decision=decision))
    name_files(run)
    return run


def name_files(run):
    """Let the verdict speak of the export as it lies there now."""
    loaded = [*run.export.glob("*.gguf"), run.adapter / "adapter_model.safetensors"]
    files = {file.relative_to(run.path).as_posix(): sha256_file(file) for file in loaded}
    _edit(run.verdict_file, lambda verdict: verdict.update(files=files))


def _forms(parity, **states):
    shape = parity["forms"][0]
    known = {form: state for form, state in states.items() if state is not None}
    parity["deployed"] = "F16"
    parity["forms"] = [{**shape, "form": form, "state": state, "reason": "a reason"} for form, state in known.items()]


def _edit(file, change):
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
