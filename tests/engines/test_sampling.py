import numpy as np
import pytest
import torch

from tunesmith.chat.render import Renderer
from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.sampling import Sampling


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_tokens_are_drawn_from_the_softmax(softcap):
    logits_V = torch.tensor([0.0, 1.0, 2.5, -1.0, 3.0])
    rows = 4000
    state = Sampling(0, softcap).start(range(rows))
    drawn = torch.cat([state.change(logits_V.expand(rows, -1)).argmax(-1) for _ in range(5)])
    shares = np.bincount(drawn.numpy(), minlength=5) / len(drawn)
    capped = logits_V if softcap is None else softcap * torch.tanh(logits_V / softcap)
    expected = torch.softmax(capped.double(), -1).numpy()
    assert np.all(np.abs(shares - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(drawn)))


def test_an_answer_follows_from_seed_and_place_whatever_batch_it_is_in(tiny_model, tokenizer):
    renderer = Renderer(tokenizer)
    prompts = [renderer.prompt_ids([{"role": "user", "content": "a b " * count}]) for count in (3, 1, 2, 1, 5)]
    stop_rule = StopRule(6, renderer.stop_ids)

    def answers(seed, batch_size):
        return [answer.ids for answer in greedy(tiny_model, prompts, stop_rule, batch_size, constrain=Sampling(seed).start)]

    assert answers(1, 1) == answers(1, 3) == answers(1, 8) != answers(2, 8)
    assert answers(1, 8)[1] != answers(1, 8)[3]  # the same prompt, another place
    assert answers(1, 8) != [answer.ids for answer in greedy(tiny_model, prompts, stop_rule, 8)]
