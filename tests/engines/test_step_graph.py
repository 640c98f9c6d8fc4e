"""Decoding in shapes that stay: what a GPU records and replays, computed on a CPU, where nothing is recorded.

What a recording on a device must not do, and what becomes of one that fails, is in ``tests/gpu_path``.
"""

import pytest
import torch

from tiny_families import TINY, adapted, random_model
from tunesmith.engines import decode
from tunesmith.engines.decode import StopRule, greedy

NEW = 14


class Unrecorded:
    """In the place of ``StepGraphs``: a step's first tokens are tried, as a recording would, and then it is the step itself."""

    def __init__(self, pays_from=4):
        self.pays_from, self.shapes = pays_from, []

    def pays(self, tokens):
        return tokens >= self.pays_from

    def recorded(self, step, tokens):
        if not self.pays(tokens):
            return None
        self.shapes.append(step.rows)
        start, seen = step.state(), []
        for _ in range(2):
            for _ in range(2):
                step()
                seen.append(step.logits_BV)
            step.restore(start)
        assert all(torch.equal(seen[number], seen[number + 2]) for number in range(2)), "a step that is tried leaves a trace"
        return step


class Seen:
    """Has no say, and keeps the logits of every row."""

    def __init__(self, rows):
        self.rows, self.logits = list(rows), {row: [] for row in rows}

    def change(self, logits_BV):
        for row, logits_V in zip(self.rows, logits_BV, strict=True):
            self.logits[row].append(logits_V)
        return logits_BV

    def accept(self, tokens):
        assert len(tokens) == len(self.rows)

    def keep_rows(self, keep):
        self.rows = [self.rows[row] for row in keep]


def _prompts(shared):
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(3, 290, (shared,), generator=generator).tolist()
    return [prefix + torch.randint(3, 290, (n,), generator=generator).tolist() for n in (3, 17, 40, 5)]


def _seen(model, prompts, rule):
    """Ids, and the logits of every row."""
    states = []

    def constrain(numbers):
        states.append(Seen(numbers))
        return states[-1]

    answers = greedy(model, prompts, rule, 4, constrain=constrain)
    return [answer.ids for answer in answers], {row: logits for state in states for row, logits in state.logits.items()}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("is_adapted", [False, True], ids=["base", "adapter"])
def test_every_family_answers_the_same_in_shapes_that_stay(name, is_adapted, monkeypatch):
    """Shared beginnings and none, bins that are full on the way, windows, shared keys, mixtures; rows that end apart."""
    monkeypatch.setattr("tunesmith.engines.row_cache.BIN_COST", 0)
    monkeypatch.setattr("tunesmith.engines.row_cache._capacity", lambda length, room: length + min(room, 7))
    model = random_model(TINY[name].config)
    if is_adapted:
        adapted(model)
    prompts = _prompts(22 if is_adapted else 0)
    whole, logits = _seen(model, prompts, StopRule(NEW, [300]))
    stops = {ids[at] for ids, at in zip(whole, (2, 7, NEW, 10), strict=True) if at < NEW}
    expected = [ids[: next((at for at, token in enumerate(ids, 1) if token in stops), NEW)] for ids in whole]
    graphs = Unrecorded()
    monkeypatch.setattr(decode, "graphs_of", lambda _: graphs)
    assert [answer.ids for answer in greedy(model, prompts, StopRule(NEW, sorted(stops)), 4)] == expected  # read eight at once
    assert graphs.shapes and len({len(ids) for ids in expected}) > 1
    found, fixed = _seen(model, prompts, StopRule(NEW, sorted(stops)))
    assert found == expected
    for row, of_row in fixed.items():
        torch.testing.assert_close(torch.stack(of_row), torch.stack(logits[row][: len(of_row)]), rtol=2e-4, atol=2e-5)


def test_rows_stay_until_half_have_ended_and_few_tokens_are_not_worth_a_shape(monkeypatch):
    model, prompts = random_model(TINY["llama"].config), _prompts(0)
    ids = [answer.ids for answer in greedy(model, prompts, StopRule(NEW, [300]), 4)]

    class Ends:
        """Ends each answer where it is told, by nothing that its tokens say."""

        at = (3, 6, 9, NEW)

        def __call__(self, new):
            row = next(row for row, of_row in enumerate(ids) if of_row[: len(new)] == new)
            return len(new) >= self.at[row]

    graphs = Unrecorded(pays_from=5)
    monkeypatch.setattr(decode, "graphs_of", lambda _: graphs)
    found = greedy(model, prompts, StopRule(NEW, [300], Ends()), 4)
    assert [answer.ids for answer in found] == [of_row[:at] for of_row, at in zip(ids, Ends.at, strict=True)]
    assert graphs.shapes == [4, 2, 1]
    graphs = Unrecorded(pays_from=NEW)
    assert [answer.ids for answer in greedy(model, prompts, StopRule(NEW, [300]), 4)] == ids and graphs.shapes == []
