import pytest
import torch

from tunesmith.chat.render import Renderer
from tunesmith.errors import RunError
from tunesmith.infer.in_process import InProcessEngine, _common_prefix


def _prompts(system):
    turns = [{"role": "system", "content": system}] if system else []
    return [
        [*turns, {"role": "user", "content": text}] for text in ["a", "a red car and a much longer question?", "b c", "zz top"]
    ]


@pytest.mark.parametrize(
    ("system", "batch_size"), [("Answer in one word. " * 20, 3), ("Answer in one word. " * 20, 1), (None, 4)]
)
def test_equals_generate_one_by_one(tiny_model, tokenizer, system, batch_size):
    """The oracle: stock attention, stock generate, no batch, no padding, nothing shared."""
    renderer = Renderer(tokenizer)
    # A random model never says the end-of-turn token by itself; let it stop on one that it does say.
    prompts = _prompts(system)
    ids = [torch.tensor([renderer.prompt_ids(p)]) for p in prompts]
    free = [tiny_model.generate(i, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0) for i in ids]
    renderer.stop_ids = sorted({2, int(free[0][0, ids[0].shape[1] + 4])})
    oracle = [
        tiny_model.generate(i, max_new_tokens=12, do_sample=False, eos_token_id=renderer.stop_ids, pad_token_id=0)[
            0, i.shape[1] :
        ]
        for i in ids
    ]
    done = []
    answers = InProcessEngine(tiny_model, renderer, batch_size).generate(prompts, 12, done.append)
    assert sum(done) == 4
    for answer, expected, prompt_ids in zip(answers, oracle, ids, strict=True):
        stopped = int(expected[-1]) in renderer.stop_ids
        said = expected[:-1] if stopped else expected
        assert answer.text == tokenizer.decode(said) and answer.new_tokens == len(expected)
        assert answer.finished == stopped and answer.prompt_tokens == prompt_ids.shape[1]
    assert answers[0].finished and not all(a.finished for a in answers)  # rows left the batch at different times


def test_prompt_that_exceeds_the_context(tiny_model, tokenizer):
    with pytest.raises(RunError, match="exceed the model's context of 1024"):
        InProcessEngine(tiny_model, Renderer(tokenizer), 2).generate(_prompts("word " * 1100), 4, lambda _: None)


def test_common_prefix_leaves_a_token_of_each():
    assert _common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert _common_prefix([[1, 2], [1, 2, 3], [1, 4]]) == 1
    assert _common_prefix([[1], [2]]) == 0
