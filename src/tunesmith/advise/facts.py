"""What the checklist looks at: numbers that somebody measured, as frozen records.

The rules (``checklist.py``, ``decide.py``) see these records and nothing else: no file, no model, no clock. That makes an
advice a function of its evidence, so it can be written down, tested row by row and made again. Who measures is
``api/advise.py``. What was not measured is None, never a guess: a rule answers ``unknown`` to it.

Refused: rules that look things up themselves. They would import the stages that measure, and a rule that failed to
measure would have to decide something all the same.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowFacts:
    """The examples, as the quality report counts them.

    Attributes:
        rows: all of them; ``distinct``: without exact copies.
        prompts: distinct prompts, None for plain text.
        conflicting: rows whose prompt is answered differently elsewhere.
        distinct_4: share of distinct word 4-grams in the sampled prompts, 0 to 1; None where they are too short to have any.
        compression: bytes of the sampled prompts by their compressed bytes.
        sampled: rows in that sample.
        train, dev, test: rows of each part; ``split``: whether the split is made (False: by the recipe's fractions).
        tokens, supervised: tokens of the train part, and those among them that are answers; counted by the model's
            tokenizer where ``counted``, else a quarter of the characters.
    """

    rows: int
    distinct: int
    prompts: int | None
    conflicting: int
    distinct_4: float | None
    compression: float | None
    sampled: int
    train: int
    dev: int
    test: int
    split: bool
    tokens: float
    supervised: float
    counted: bool

    @property
    def effective(self) -> int:
        """Distinct rows, or distinct prompts where there are fewer of them."""
        return self.distinct if self.prompts is None else min(self.distinct, self.prompts)


@dataclass(frozen=True)
class MetricFacts:
    """The metric and what this many rows can tell with it.

    Attributes:
        name: ``task.metric``.
        tried: references that were scored against themselves; all of them scored 1.
        calibrated: False for a judge that nobody compared with people; None for a deterministic metric.
        min_gain: ``task.min_gain``, a fraction.
        detectable: smallest gain that the test part finds with 80 % power, a fraction.
        test_needed: test rows that would find ``min_gain``.
        discordance: share of rows that are planned to change between right and wrong.
    """

    name: str
    tried: int
    calibrated: bool | None
    min_gain: float
    detectable: float
    test_needed: int
    discordance: float


@dataclass(frozen=True)
class Arm:
    """A way to ask the untuned model, as dev measured it.

    Attributes:
        name: of the arm; ``detail``: which demonstrations, for people.
        score: headline, 0 to 1, of ``n`` dev rows; ``low``, ``high``: its 95 % Wilson interval.
        prompt_tokens, new_tokens: means a row.
        retrieves: whether passages or examples were searched for each row.
    """

    name: str
    detail: str
    score: float
    low: float
    high: float
    n: int
    prompt_tokens: float
    new_tokens: float
    retrieves: bool


@dataclass(frozen=True)
class PriceFacts:
    """What calls cost. None: the recipe does not say.

    Attributes:
        calls_per_month: calls.
        per_million: price of a million prompt tokens, in the reader's money.
        per_hour: price of an hour of the machine that trains, in the same money.
        tokens_saved: prompt tokens of a call that a tuned model does without.
        counted: whether the model's tokenizer counted them (False: four characters a token).
    """

    calls_per_month: float | None
    per_million: float | None
    per_hour: float | None
    tokens_saved: float
    counted: bool


@dataclass(frozen=True)
class MachineFacts:
    """The machine that trains.

    Attributes:
        name: product name of the GPU, or ``the CPU``.
        kind: ``gpu``, ``cpu``, or ``unknown`` where a GPU is there but was not asked.
        cores: CPU cores.
        memory: bytes of the GPU, or of the machine; None where unknown.
    """

    name: str
    kind: str
    cores: int
    memory: int | None


@dataclass(frozen=True)
class MemoryFacts:
    """Bytes that training takes by what the base is kept in, roughly; see ``memory.py``.

    Attributes:
        asked: the recipe's ``base``, or what ``auto`` comes to on this machine.
        by_base: base to bytes; empty where the model's configuration is not at hand.
        why_not: the reason for an empty one.
        parameters: weights of the model, 0 where unknown.
        adapter_per_rank: trained weights of a rank-1 adapter on all linear layers.
    """

    asked: str
    by_base: dict[str, int]
    why_not: str
    parameters: int
    adapter_per_rank: int


@dataclass(frozen=True)
class Facts:
    """All of it. ``arms`` is empty before anything was asked; ``documents`` says whether the recipe brings documents."""

    rows: RowFacts
    metric: MetricFacts
    arms: tuple[Arm, ...]
    documents: bool
    price: PriceFacts
    machine: MachineFacts
    memory: MemoryFacts

    def best_prompt(self) -> Arm | None:
        """The measured arm that searches nothing and scores best; of equals the one that asks with fewer tokens."""
        return _best([arm for arm in self.arms if not arm.retrieves])

    def best_retrieval(self) -> Arm | None:
        """The same among arms that search."""
        return _best([arm for arm in self.arms if arm.retrieves])


def _best(arms: list[Arm]) -> Arm | None:
    return max(arms, key=lambda arm: (arm.score, -arm.prompt_tokens), default=None)
