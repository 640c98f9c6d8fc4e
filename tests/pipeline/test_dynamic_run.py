"""A run that deploys a GGUF with a type chosen for each tensor."""

import shutil

import pytest

from shared import write_recipe
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import quantize
from tunesmith.checkpoints.gguf_write.types import Source, Type
from tunesmith.errors import ExportError
from tunesmith.export.forms.dynamic import pricing_steps
from tunesmith.export.forms.form import Facts
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.export import dry_run
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.export import Export, RoundingCosts, TypeChoice
from tunesmith.rundir.records.parity import Parity

KIND = "dynamic-Q4_K_M"


def _exported(recipe, folder, stage, weights):
    """A run up to a stage, of which the choice is held against its file and the foretold sizes.

    Args:
        weights: what the costs are weighed with, and the ending of the file of them.
    """
    run = api.open_run(recipe, folder)
    api.make(run, [stage], all_needed=True)
    files = Export.read(run.export / "export.json").files
    assert list(files) == ["Q4_K_M", KIND] and files[KIND].bytes <= files["Q4_K_M"].bytes
    assert all(0.75 < file.training_kept < 1.25 for file in files.values()), "the base lies on no grid"
    assert not (run.export / "toy-F16.gguf").exists()
    foretold = {step.target: step.nbytes for step in dry_run(run)}
    for name in (f"toy-{KIND}.gguf", f"toy-{KIND}.types.json", "toy.scores.safetensors", "toy.rounding.json"):
        size = (run.export / name).stat().st_size
        assert size <= 1.02 * foretold[name], name
    choice, costs = TypeChoice.read(run.export / f"toy-{KIND}.types.json"), RoundingCosts.read(run.export / "toy.rounding.json")
    assert choice.cost <= choice.plain_cost and costs.weights == weights[0]
    file = GgufReader(run.export / f"toy-{KIND}.gguf")
    assert file.value("quantize.imatrix.file") == f"toy.{'.'.join(weights)}"
    types = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert {name: tensor.type for name, tensor in choice.tensors.items()}.items() <= types.items()
    assert set(choice.tensors) == {name for name in types if not name.endswith("_norm.weight")}
    return run, files


CHANGES = {"export.gguf": ["Q4_K_M", KIND], "train.learning_rate": 0.02}


def test_an_importance_matrix_takes_the_place_of_the_scores(tiny_dir, tmp_path):
    recipe = write_recipe(tmp_path, tiny_dir, {**CHANGES, "export.imatrix": True})
    _exported(recipe, tmp_path / "run", "export", ("imatrix", "gguf"))


def test_it_is_exported_deployed_and_swept_like_any_type(tiny_dir, tmp_path):
    recipe = write_recipe(tmp_path, tiny_dir, {**CHANGES, "export.imatrix": False})
    run, files = _exported(recipe, tmp_path / "run", "parity", ("scores", "safetensors"))
    parity = Parity.read(run.export / "parity.json")
    deployed = next(form for form in parity.forms if form.form == parity.deployed == KIND)
    assert deployed.checks["adapter"].state == "pass"
    before = (run.export / "toy.rounding.json").stat().st_mtime_ns
    swept = api.sweep(run, (KIND, "dynamic-Q3_K_M"))
    assert {entry.type: entry.bytes for entry in swept.types}[KIND] == files[KIND].bytes
    assert (run.export / "toy.rounding.json").stat().st_mtime_ns == before, "an export that is done is not made again"


def test_a_file_on_the_grid_of_its_base_is_warned_of_and_no_choice_takes_it(tiny_dir, tiny_gguf, tmp_path, talk):
    """A base that lies in Q4_0: its own type keeps nothing of the training, and that is foretold before it."""
    quantize(tiny_gguf, tmp_path / "base.gguf", "Q4_0")
    kinds = ["Q4_0", "dynamic-Q4_K_M", "Q8_0"]
    changes = {"export.gguf": kinds, "evaluate.arms": ["zero_shot", "tuned"], "lora.alpha": 4}
    run = api.open_run(write_recipe(tmp_path, tmp_path / "base.gguf", changes), tmp_path / "run")
    talk()
    api.make(run, ["data"], all_needed=True)
    assert "Q4_0" not in talk(), "where no export is made, none is asked"
    api.make(run, ["export"], all_needed=True)
    said = talk()
    before, _, after = said.partition("step ")
    assert "export.gguf: Q4_0 takes back most of what is going to be trained" in before and "Q8_0 takes" not in before
    assert "export: toy-Q4_0.gguf takes back most of what was trained" in after
    kept = {kind: file.training_kept for kind, file in Export.read(run.export / "export.json").files.items()}
    assert kept["Q4_0"] < 0.2 and 0.9 < kept["Q8_0"] < 1.1 and kept["dynamic-Q4_K_M"] > 0.5
    lost = RoundingCosts.read(run.export / "toy.rounding.json").lost
    assert lost and all("Q4_0" in of for of in lost.values())
    choice = TypeChoice.read(run.export / "toy-dynamic-Q4_K_M.types.json")
    assert not [name for name, tensor in choice.tensors.items() if tensor.type in lost.get(name, {})]


def test_a_sweep_scores_what_the_export_did_not(tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    swept = api.sweep(run, (KIND,))
    assert swept.types[0].bytes <= Export.read(run.export / "export.json").files["Q4_K_M"].bytes
    assert not list(run.export.glob("*dynamic*")) and not list(run.export.glob("*scores*"))


def test_a_stack_of_experts_is_refused_before_anything_is_trained():
    stack = Source("blk.0.ffn_up_exps.weight", (4, 8, 32), Type.F16)
    facts = Facts(
        name="toy",
        merged=0,
        tensors=(stack,),
        metadata={},
        header=0,
        lora=None,
        adapted={},
        modeled=(),
        renamed=False,
        is_4bit=False,
    )
    with pytest.raises(
        ExportError, match=r"blk\.0\.ffn_up_exps\.weight is a stack of experts\nhint: name the plain type: Q4_K_M"
    ):
        pricing_steps(facts, "half.gguf", None)
