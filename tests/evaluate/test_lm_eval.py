"""lm-evaluation-harness on the model in memory: its own numbers, paired by document, offline."""

import copy
import json

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from tunesmith.chat.render import Renderer
from tunesmith.errors import RecipeError
from tunesmith.evaluate import lm_eval as ours
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture
def folder(tmp_path):
    rows = tmp_path / "rows.jsonl"
    colours = ["red", "dark green", "blue", "black <|im_end|>"]
    rows.write_text(
        "".join(json.dumps({"question": f"Colour {i}? ", "choices": colours, "label": i % 4}) + "\n" for i in range(12))
    )
    (tmp_path / "colours.yaml").write_text(TASK.format(name="colours", rows=rows, kind="multiple_choice", metric="acc"))
    (tmp_path / "written.yaml").write_text(
        TASK.format(name="written", rows=rows, kind="generate_until", metric="exact_match").replace(
            'doc_to_choice: "{{choices}}"\n', ""
        )
    )
    return tmp_path


def _run(model, layers, tokenizer, tasks, folder, limit=None):
    return ours.run_tasks(model, layers, Renderer(tokenizer), tasks, folder, limit, 0.02)


def test_loglikelihoods_are_those_of_the_harness(tiny_model, tokenizer):
    theirs = HFLM(pretrained=copy.deepcopy(tiny_model), tokenizer=tokenizer, batch_size=1)
    mine = ours.ScoringLM(tiny_model, Renderer(tokenizer))
    pairs = [("A red house", " has a door"), ("", "Nothing before"), ("space at the end ", "moves"), ("A red house", " is\n")]

    class Request:
        def __init__(self, *args):
            self.args, self.task_name = args, "t"

    asked = [Request(*pair) for pair in pairs]
    for (a, greedy_a), (b, greedy_b) in zip(mine.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert a == pytest.approx(b, abs=1e-4) and greedy_a == greedy_b
    texts = [Request("A whole text of some words."), Request("Another one")]
    assert mine.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-4)
    with pytest.raises(RecipeError, match="does not fit the context of 1024"):
        mine.loglikelihood_rolling([Request("a b " * 600)])
    long = mine.loglikelihood([Request("a b " * 600, " c")])[0][0]
    assert long == pytest.approx(theirs.loglikelihood([Request("a b " * 600, " c")])[0][0], abs=1e-4)


def test_base_and_tuned_are_paired_by_document(tiny_model, tokenizer, folder):
    layers = add_lora(tiny_model, Lora(r=4, alpha=8, dropout=0.0), seed=0)
    (same,) = _run(tiny_model, layers, tokenizer, ("colours",), folder)
    assert (same["name"], same["n"], same["difference"]) == ("lm_eval:colours", 12, 0.0)
    assert same["verdict"] == "too little data to tell"  # twelve ties leave room for a loss of far more than two points
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    (other,) = _run(tiny_model, layers, tokenizer, ("colours",), folder, limit=8)
    assert other["n"] == 8
    assert other["difference"] == pytest.approx(other["tuned"] - other["base"])
    assert other["base"] == pytest.approx(_accuracy(tiny_model, layers, tokenizer, 8))


def _accuracy(model, layers, tokenizer, n):
    lm = ours.ScoringLM(model, Renderer(tokenizer))

    class Request:
        def __init__(self, *args):
            self.args = args

    right = 0
    with ours.without_adapters(layers):
        for i in range(n):
            found = lm.loglikelihood(
                [Request(f"Colour {i}? \nAnswer:", f" {c}") for c in ("red", "dark green", "blue", "black <|im_end|>")]
            )
            right += max(range(4), key=lambda k: found[k][0]) == i % 4
    return right / n


def test_what_cannot_run_is_named(tiny_model, tokenizer, folder):
    layers = add_lora(tiny_model, Lora(r=2, alpha=4, dropout=0.0), seed=0)
    with pytest.raises(RecipeError, match="written lets the model write"):
        _run(tiny_model, layers, tokenizer, ("written",), folder)
    with pytest.raises(RecipeError, match="none is no directory"):
        _run(tiny_model, layers, tokenizer, ("colours",), folder / "none")
