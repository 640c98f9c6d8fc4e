"""lm-evaluation-harness on the model in memory: its own numbers, paired by document, offline."""

import copy
import json

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM

from ties import FP32, greedy_answers, next_logits
from tunesmith.chat.render import Renderer
from tunesmith.errors import RecipeError
from tunesmith.evaluate import lm_eval as ours
from tunesmith.evaluate.forgetting import conclude
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
    sampled = (tmp_path / "written.yaml").read_text().replace("task: written", "task: sampled")
    (tmp_path / "sampled.yaml").write_text(f"{sampled}generation_kwargs: {{temperature: 0.7, until: []}}\n")
    return tmp_path


def _run(model, layers, tokenizer, tasks, folder, limit=None):
    return conclude(ours.run_tasks(model, layers, Renderer(tokenizer), tasks, folder, limit, 0.02), [], 0.02).probes


def test_loglikelihoods_are_those_of_the_harness(tiny_model, tokenizer):
    theirs = HFLM(pretrained=copy.deepcopy(tiny_model), tokenizer=tokenizer, batch_size=1)
    mine = ours.InMemoryLM(tiny_model, Renderer(tokenizer))
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
    assert (same.name, same.n, same.difference) == ("lm_eval:colours", 12, 0.0)
    assert same.verdict == "too little data to tell"  # twelve ties leave room for a loss of far more than two points
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    (other,) = _run(tiny_model, layers, tokenizer, ("colours",), folder, limit=8)
    assert other.n == 8
    assert other.difference == pytest.approx(other.tuned - other.base)
    assert other.base == pytest.approx(_accuracy(tiny_model, layers, tokenizer, 8))


def _accuracy(model, layers, tokenizer, n):
    lm = ours.InMemoryLM(model, Renderer(tokenizer))

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


class _Asked:
    task_name = "t"

    def __init__(self, context, **options):
        self.args = (context, options)


def test_writing_is_that_of_the_harness(tiny_model, tokenizer):
    """Stop texts that the model does write, of one and of several tokens, contexts that are cut, several budgets.

    Behind contexts where no two tokens are so near that rounding decides.
    """
    theirs = HFLM(pretrained=copy.deepcopy(tiny_model), tokenizer=tokenizer, batch_size=1)
    mine = ours.InMemoryLM(tiny_model, Renderer(tokenizer))
    logits_of = next_logits(tiny_model)

    def settled(texts):
        """Those behind which greedy decoding can only say one thing."""
        ids = {text: tokenizer.encode(text) for text in texts}
        answers = {t: [greedy_answers(logits_of, ids[t][n - 1024 :], n, FP32) for n in (20, 7)] for t in texts}
        return [text for text in texts if all(len(each) == 1 for each in answers[text])]

    contexts = settled(["A red house", "Colour 1? Answer:", "Once", "Two birds", "The door"])[:3]
    contexts += settled(["a b " * 600, "c d e " * 400])[:1]
    free = mine.generate_until([_Asked(text, until=[], max_gen_toks=20) for text in contexts])
    assert len(set(free)) == 4 and all(len(text) > 8 for text in free)
    inside = [free[0][5:7], free[1][6:12]]
    asked = [_Asked(text, until=inside, max_gen_toks=20) for text in contexts]
    asked += [_Asked(text, until=inside[0], max_new_tokens=7, do_sample=False) for text in contexts]
    expected = theirs.generate_until(asked, disable_tqdm=True)
    assert mine.generate_until(asked) == expected
    assert expected[0] != free[0] and expected[1] != free[1] and free[0].startswith(expected[0])


def test_a_row_stops_where_its_text_ends(tiny_model, tokenizer, monkeypatch):
    """What is behind the stop text is not decoded first and cut then."""
    lm = ours.InMemoryLM(tiny_model, Renderer(tokenizer))
    (free,) = lm.generate_until([_Asked("A red house", until=[], max_gen_toks=20)])
    decoded = []
    greedy = ours.greedy
    monkeypatch.setattr(ours, "greedy", lambda *given: [decoded.append(one) or one for one in greedy(*given)])
    (cut,) = lm.generate_until([_Asked("A red house", until=[free[4:6]], max_gen_toks=20)])
    assert cut == free[: free.index(free[4:6])] and len(decoded[0].ids) < 20


def test_a_task_that_lets_the_model_write_is_paired(tiny_model, tokenizer, folder):
    layers = add_lora(tiny_model, Lora(r=4, alpha=8, dropout=0.0), seed=0)
    (same,) = _run(tiny_model, layers, tokenizer, ("written",), folder, limit=3)
    assert (same.name, same.n, same.difference) == ("lm_eval:written", 3, 0.0)


def test_what_cannot_run_is_named(tiny_model, tokenizer, folder):
    layers = add_lora(tiny_model, Lora(r=2, alpha=4, dropout=0.0), seed=0)
    with pytest.raises(RecipeError, match=r"sampled samples \(do_sample None, temperature 0.7\); only greedy"):
        _run(tiny_model, layers, tokenizer, ("sampled",), folder)
    lm = ours.InMemoryLM(tiny_model, Renderer(tokenizer))
    for options, told in (
        ({"do_sample": True}, "t samples"),
        ({"num_beams": 4}, "num_beams, which is not known here"),
        ({"max_gen_toks": 1024}, "max_gen_toks 1024 fills the model's context of 1024"),
    ):
        with pytest.raises(RecipeError, match=told):
            lm.generate_until([_Asked("a", **options)])
    with pytest.raises(RecipeError, match="none is no directory"):
        _run(tiny_model, layers, tokenizer, ("colours",), folder / "none")
