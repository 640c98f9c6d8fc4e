"""Batches and packs are dealt out to processes, and no answer, no score depends on how many there are."""

import dataclasses
import os
import signal
import time

import pytest
import torch

from tunesmith import hardware
from tunesmith.chat.render import Renderer
from tunesmith.engines import deal, decode
from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.sampling import Sampling
from tunesmith.engines.score import Scorer
from tunesmith.errors import RunError
from tunesmith.messages import Message
from tunesmith.models import ranks
from tunesmith.processes import Team

PROMPTS: list[list[Message]] = [
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "a b " * (5 * number % 13 + 1)}]
    for number in range(13)
]
CAN_BE = {"free": None, "schema": {"type": "integer", "minimum": 1, "maximum": 999}}


class Machine:
    """Called with a number of cores, it has so many from then on; ``sizes`` are those of all teams."""

    def __init__(self, patch):
        self._patch, self.sizes = patch, []

    def __call__(self, cores):
        self._patch.setattr(hardware, "physical_cores", lambda: cores)


@pytest.fixture
def machine(monkeypatch):
    """Small work is dealt out too, in small pieces."""
    machine = Machine(monkeypatch)

    class Counted(Team):
        def __init__(self, size, *others):
            machine.sizes.append(size)
            super().__init__(size, *others)

    monkeypatch.setattr(deal, "Team", Counted)
    monkeypatch.setattr(ranks, "LIGHT", 0)
    monkeypatch.setattr("tunesmith.engines.score.CAPACITY", 60)
    monkeypatch.setattr("tunesmith.engines.score.CHUNK", 7)
    return machine


@pytest.mark.parametrize("kind", CAN_BE)
def test_answers_are_the_same_in_any_number_of_processes(tiny_model, tokenizer, machine, kind):
    """Also their batches, as progress counts them; together they took no longer than there was time."""
    engine = InProcessEngine(tiny_model, Renderer(tokenizer), 2)
    answers, batches = {}, {}
    for cores in (1, 2, 3):
        machine(cores)
        done, started = [], time.perf_counter()
        said = engine.generate(PROMPTS, 12, done.append, CAN_BE[kind])
        assert sum(answer.seconds for answer in said) <= time.perf_counter() - started
        answers[cores] = [dataclasses.replace(answer, seconds=0.0) for answer in said]
        batches[cores] = sorted(done)
    assert machine.sizes == [1, 2, 3]
    assert answers[1] == answers[2] == answers[3] and len({answer.text for answer in answers[1]}) > 1
    assert batches[1] == batches[2] == batches[3] == [1, 2, 2, 2, 2, 2, 2]


def test_samples_are_the_same_in_any_number_of_processes(tiny_model, tokenizer, machine):
    renderer = Renderer(tokenizer)
    prompts = [renderer.prompt_ids(prompt) for prompt in PROMPTS]
    texts = []
    for cores in (1, 2, 3):
        machine(cores)
        drawn = greedy(tiny_model, prompts, StopRule(8, renderer.stop_ids), 2, constrain=Sampling(4).start)
        texts.append([(answer.ids, answer.likeliest) for answer in drawn])
    assert texts[0] == texts[1] == texts[2] and machine.sizes == [1, 2, 3]


def test_scores_states_and_divergences_are_the_same_to_the_bit(tiny_model, machine):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 290, (count,), generator=generator).tolist() for count in (30, 9, 14, 25, 40, 3, 11, 17)]
    pairs = [(ids[0] + context, said) for context in ids[1:] for said in ids[5:7]]
    results, counts = [], []
    for cores in (1, 2, 3):
        machine(cores)
        scorer, done = Scorer(tiny_model), []
        scores = scorer.continuation_logprobs(pairs, done.append)
        states_ND = scorer.last_states(pairs)
        kl_N = scorer.kl_of_states(states_ND, states_ND.flip(0))
        results.append((scores, states_ND, kl_N))
        counts.append(sorted(done))
    assert machine.sizes == [1, 1, 1, 2, 2, 2, 3, 3, 3] and counts[0] == counts[1] == counts[2] and sum(counts[0]) == len(pairs)
    for scores, states_ND, kl_N in results[1:]:
        assert scores == results[0][0]
        assert torch.equal(states_ND, results[0][1]) and torch.equal(kl_N, results[0][2])
    assert (results[0][2] > 0).all()


def test_what_prompts_begin_with_is_computed_before_the_processes_are_forked(tiny_model, tokenizer, machine, monkeypatch):
    """Once, where all of them see it."""
    first, honest, calls = os.getpid(), decode.compute_prefix, []

    def counted(*arguments):
        assert os.getpid() == first
        calls.append(1)
        return honest(*arguments)

    monkeypatch.setattr(decode, "compute_prefix", counted)
    machine(3)
    InProcessEngine(tiny_model, Renderer(tokenizer), 2).generate(PROMPTS, 2, lambda _: None)
    assert len(calls) == 1 and machine.sizes == [3]


@pytest.mark.parametrize("fault", ["error", "death"])
def test_a_fault_in_a_process_is_named_and_ends_all(tiny_model, machine, fault):
    first = os.getpid()

    def faulty(numbers):
        if os.getpid() == first:
            time.sleep(0.2)  # the other one is sure to get a batch
        elif fault == "error":
            raise ValueError("odd")
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        return Sampling(0).start(numbers)

    machine(2)
    expected = {
        "error": (RuntimeError, "answering process 2 of 2: ValueError: odd"),
        "death": (RunError, r"answering process 2 of 2 \(process \d+\) was killed by signal 9"),
    }
    kind, words = expected[fault]
    with pytest.raises(kind, match=words):
        greedy(tiny_model, [[3, 4, 5]] * 8, StopRule(2, (300,)), 2, constrain=faulty)


@pytest.mark.parametrize(
    ("name", "needs", "size", "threads"),
    [
        ("available_memory", 2.5, 2, 1),
        ("available_memory", 1.5, 1, 1),
        ("total_memory", 1.5, 1, 3),  # never more than one: the same on every day
    ],
)
def test_memory_says_how_many(tiny_model, machine, monkeypatch, name, needs, size, threads):
    machine(3)
    loads, honest = [], deal.shape_of
    monkeypatch.setattr(deal, "shape_of", lambda *given: loads.append(given[1]) or honest(*given))
    assert _threads_of(tiny_model, 8) == {1}
    room = int(needs * loads[0].rank_bytes) + (loads[0].base_bytes if name == "total_memory" else 0)
    monkeypatch.setattr(hardware, name, lambda: room)
    assert _threads_of(tiny_model, 8) == {threads} and machine.sizes == [3, size]


@pytest.mark.parametrize(("rows", "has_gpu"), [(1, False), (8, True)])
def test_one_batch_or_a_gpu_in_sight_is_one_process_with_a_thread_a_core(tiny_model, machine, monkeypatch, rows, has_gpu):
    machine(3)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    before = torch.get_num_threads()
    assert _threads_of(tiny_model, rows) == {3} and machine.sizes == [1] and torch.get_num_threads() == before


def _threads_of(model, rows):
    """With how many threads so many short prompts are decoded, in whatever processes."""
    seen = deal.shared((8,), torch.int64, torch.device("cpu"))

    def noted(batch):
        seen[torch.get_num_threads()] = 1
        return Sampling(0).start(batch)

    greedy(model, [[3, 4, 5]] * rows, StopRule(2, (300,)), 2, constrain=noted)
    return set(seen.nonzero()[:, 0].tolist())
