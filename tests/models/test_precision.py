import pytest

from tunesmith.errors import RecipeError
from tunesmith.models import precision as module
from tunesmith.models.precision import precision

FASTER = module._faster


@pytest.fixture(autouse=True)
def choice(monkeypatch):
    """The choice itself, which other tests go without."""
    monkeypatch.setattr(module, "_faster", FASTER)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base": "fp32"}, ("fp32", "fp32")),
        ({"base": "bf16"}, ("bf16", "bf16")),
        ({"base": "auto"}, ("fp32", "fp32")),
        ({"base": "nf4"}, ("nf4", "fp32")),
        ({"base": "auto", "train.compute": "bf16"}, ("bf16", "bf16")),
        ({"base": "nf4", "train.compute": "bf16"}, ("nf4", "bf16")),
        ({"base": "auto", "train.compute": "fp16"}, ("fp16", "fp16")),
        ({"base": "nf4", "train.compute": "fp16"}, ("nf4", "fp16")),
    ],
)
def test_what_the_recipe_says_holds_and_the_rest_is_timed(
    changes, expected, make_recipe, tiny_dir, monkeypatch, tmp_path, talk
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "probe", lambda *shape: {"fp32": 200.0, "bf16": 100.0})
    recipe = make_recipe(changes)
    assert precision(recipe.base, recipe.train.compute, tiny_dir) == expected
    timed = recipe.base in ("auto", "nf4") and recipe.train.compute == "auto"
    assert ("200 GFLOP/s in fp32" in talk()) == timed
    # Decided once: a run that is resumed computes as it began, whatever the machine is busy with.
    monkeypatch.setattr(module, "probe", lambda *shape: {"fp32": 100.0, "bf16": 200.0})
    assert precision(recipe.base, recipe.train.compute, tiny_dir) == expected


def test_a_contradiction_is_refused(make_recipe):
    with pytest.raises(RecipeError, match="base: fp32 computes in fp32"):
        make_recipe({"base": "fp32", "train.compute": "bf16"})
    with pytest.raises(RecipeError, match="base: bf16 computes in bf16"):
        make_recipe({"base": "bf16", "train.compute": "fp16"})


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_without_bf16_computes_in_fp16_and_says_so(capability, expected, tiny_dir, monkeypatch, talk):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    assert precision("auto", "auto", tiny_dir) == (expected, expected)
    assert precision("nf4", "auto", tiny_dir) == ("nf4", expected)
    assert precision("auto", "fp32", tiny_dir) == ("fp32", "fp32")
    said = talk()
    assert ("Tesla T4 (compute capability 7." in said and "computing in fp16" in said) == (expected == "fp16")


def test_the_probe_times_both():
    assert {name for name, rate in module.probe(64, 128).items() if rate > 0} == {"fp32", "bf16"}
