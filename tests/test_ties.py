"""The comparison that lets rounding decide near ties lets nothing else through."""

import pytest
import torch

from ties import FP32, greedy_answers, is_greedy, next_logits
from tiny_families import TINY, random_model

STEPS, VOCABULARY = 6, 40
PROMPT = [3, 7]


def _table(seed=0):
    """A model in which every text has logits of its own, drawn anew; no two within 1e-3 at the top."""

    def logits_of(ids):
        generator = torch.Generator().manual_seed(hash((seed, *ids)) % 2**40)
        logits_V = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
        logits_V[int(logits_V.argmax())] += 1e-3
        return logits_V

    return logits_of


def _near(logits_of, place, gap):
    """The same model with two tokens ``gap`` apart at one place of its own answer; the second one's id beside it."""
    (answer,) = greedy_answers(logits_of, PROMPT, STEPS, 0.0)
    before = PROMPT + answer[:place]
    second = int(logits_of(before).argsort()[-2])

    def other(ids):
        logits_V = logits_of(ids).clone()
        if ids == before:
            logits_V[second] = logits_V.max() - gap
        return logits_V

    return other, second


@pytest.mark.parametrize("place", [0, 3, STEPS - 1])
def test_a_tie_that_rounding_turns_over_is_accepted_and_a_wider_gap_is_not(place):
    oracle, second = _near(_table(), place, 4e-4)
    turned, _ = _near(_table(), place, -4e-4)
    (own,), (other,) = (greedy_answers(model, PROMPT, STEPS, 0.0) for model in (oracle, turned))
    assert own[:place] == other[:place] and other[place] == second != own[place]
    assert own[place + 1 :] != other[place + 1 :] or place == STEPS - 1  # what follows has nothing in common
    assert greedy_answers(oracle, PROMPT, STEPS, 5e-4) == [own, other]
    assert greedy_answers(oracle, PROMPT, STEPS, 3e-4) == [own]


def test_behind_a_tie_another_answer_is_still_refused():
    answers = greedy_answers(_near(_table(), 2, 4e-4)[0], PROMPT, STEPS, 5e-4)
    for answer in answers:
        for place in range(STEPS):
            wrong = [*answer[:place], (answer[place] + 1) % VOCABULARY, *answer[place + 1 :]]
            assert wrong not in answers


def test_answers_end_where_they_stop():
    oracle = _table()
    ((first, second, *_),) = greedy_answers(oracle, PROMPT, STEPS, 0.0)
    assert greedy_answers(oracle, PROMPT, STEPS, 0.0, [second]) == [[first, second]]


def test_another_model_is_refused():
    """Weights moved by an eighth of their spread: at least half of the answers are none of the oracle's."""
    model = random_model(TINY["smollm2"].config)
    prompts = [torch.randint(3, 290, (12,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(8)]
    allowed = [greedy_answers(next_logits(model), prompt, 12, FP32) for prompt in prompts]
    assert all(len(answers) < 4 for answers in allowed)
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    wrong = [greedy_answers(next_logits(model), prompt, 12, 0.0)[0] for prompt in prompts]
    assert sum(answer in answers for answer, answers in zip(wrong, allowed, strict=True)) <= 4


def test_too_wide_a_bound_is_an_error():
    with pytest.raises(AssertionError, match="the bound is too wide"):
        greedy_answers(_table(), PROMPT, STEPS, 10.0)


def test_whether_a_text_is_greedy_is_left_open_where_rounding_decides():
    logits_NV = torch.tensor([[1.0, 3.0, 2.0], [2.0, 1.0, 1.999]])
    assert is_greedy(logits_NV, [1, 0], 1e-4) is True
    assert is_greedy(logits_NV, [1, 2], 1e-4) is False and is_greedy(logits_NV, [2, 0], 1e-2) is False
    assert is_greedy(logits_NV, [1, 0], 1e-2) is None and is_greedy(logits_NV, [1, 2], 1e-2) is None
    assert is_greedy(logits_NV[:0], [], 1e-4) is True
