"""What ``auto`` comes to in the section ``train``: rate, tokens a step and epochs, from the rows and the model.

No number is right for every model and data set. 2e-4, which most guides name, loses 2.3 % of test loss on a model of a billion
weights and 0.5 to 1.1 % on one of eight; 8,192 tokens a step are 14 steps an epoch for a thousand short rows, which teach
nothing. So the three settings that matter follow from what is known before the first step:

    epochs          4 to 1, fewer the more rows: the second pass over 10,000 rows is known to hurt (``BANDS``)
    tokens a step   32 rows, fewer where that would leave fewer than 150 steps, never less than one row
    rate            5e-4 (2000 / hidden)^0.781                      the width of the model
                    x clamp(sqrt(rows a step / 128),                noise of the gradient, which few rows have less of
                            or sqrt(answer tokens a step / 128),    where their answers are long,
                            0.5, 1)                                 the larger of the two
                    x 1.5 below 100 steps                           short runs bear and want more
                    x 32 / (scale r)                                alpha 32 is what the first line was measured with
                    within 5e-5 .. 2e-3

``scale r`` is alpha under LoRA and DoRA, and alpha sqrt(r) under rsLoRA. The rate has two digits, so that what is printed is
what is used.

Sources: the first line is Tinker's rule (``tinker_cookbook/hyperparam_utils.py``). Over its authors' stored sweeps of
20 models of all families it ends 0.22 % above the best rate's test loss (0.84 % at worst; a fixed 2e-4: 0.69 % and 2.3 %).
The other factors: their guide (the square root, 128 rows), Schulman et al. 2025, "LoRA Without Regret" (short runs; few rows a
step), Chen, Villar and Hayou 2026, PMLR 306 (the best rate does not depend on rank while alpha is fixed). The lower clamp is
ours: 16 rows a step are known to want more than 0.35 of the rate. So is the root of answer tokens, of 48 trainings
(``benchmarks/rates.py``): 4 such tokens a step, words for classes, want 0.5; 46, names as JSON, take anything from 0.5 to 1.5;
172, addresses as JSON, want 1 at least. Below a width of 2,000 it extrapolates.

Refused: a search (Optuna over hours ends where the rule and ``train.race`` end); a table by model, which knows no new one.
Cost: none. A pure function of six numbers, without torch.
"""

import math
from dataclasses import dataclass

from tunesmith.recipe.train import Lora, Train, TrainSettings

BANDS: tuple[tuple[float, int, int], ...] = (  # rows below, r, epochs
    (200, 8, 4),
    (500, 8, 3),
    (1000, 16, 3),
    (5000, 16, 2),
    (10000, 32, 2),
    (math.inf, 32, 1),
)
ALPHA = 32
MIN_STEPS, MAX_ROWS = 150, 32
BASE_RATE, WIDTH, POWER = 5e-4, 2000, 0.781
REFERENCE_ROWS, REFERENCE_TOKENS, LEAST_SHARE = 128, 128, 0.5
SHORT_RUN, SHORT_FACTOR = 100, 1.5
LOWEST, HIGHEST = 5e-5, 2e-3


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A section ``train`` with a number in every place.

    Attributes:
        settings: what training runs by.
        rows_per_step: rows of an optimizer step, on average.
        steps: of the whole run, about.
        why: of each of the three keys that are derived here, by its name; of ``recompute`` where a GPU's memory decided.
    """

    settings: TrainSettings
    rows_per_step: float
    steps: int
    why: dict[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        """Each key with its value and why."""
        settings = self.settings
        shown = {
            "num_train_epochs": str(settings.num_train_epochs),
            "tokens_per_step": f"{settings.tokens_per_step:,}",
            "learning_rate": f"{settings.learning_rate:.1e}",
            "recompute": str(settings.recompute),
        }
        return tuple(f"{key} {shown[key]} {why}" for key, why in self.why.items())


def band(rows: int) -> tuple[int, int]:
    """Rank and epochs that suit a number of rows."""
    return next((r, epochs) for below, r, epochs in BANDS if rows < below)


def width_of_update(lora: Lora) -> float:
    """``scale r``: how far a step of a given rate moves the weight, next to an adapter with scale 1 and rank 1."""
    return lora.scale * lora.r


def derive(
    train: Train, *, rows: int, tokens: float, hidden: int, update: float = ALPHA, supervised: float | None = None
) -> Derived:
    """The settings that a section ``train`` comes to; numbers in it stand as they are.

    Args:
        rows: documents that are trained on, at least one.
        tokens: of them all.
        hidden: width of the model.
        update: ``width_of_update`` of the adapter.
        supervised: those of the tokens that are answers; None where nobody knows, and the rate follows from rows alone.
    """
    assert rows >= 1 and tokens >= rows and hidden >= 1 and update > 0.0, "nothing to derive from"
    why: dict[str, str] = {}
    mean = tokens / rows
    epochs = train.num_train_epochs
    why["num_train_epochs"] = "as the recipe says"
    if epochs == "auto":
        epochs = band(rows)[1]
        why["num_train_epochs"] = f"by the size of the data, {rows:,} train rows"
    step_tokens = train.tokens_per_step
    why["tokens_per_step"] = "as the recipe says"
    if step_tokens == "auto":
        step_tokens, why["tokens_per_step"] = _tokens_per_step(rows, mean, epochs)
    rows_per_step = min(float(rows), max(1.0, step_tokens / mean))
    steps = epochs * math.ceil(rows / rows_per_step)
    answers = rows_per_step * (supervised or 0.0) / rows
    rate = train.learning_rate
    why["learning_rate"] = "as the recipe says"
    if rate == "auto":
        rate, why["learning_rate"] = _learning_rate(hidden, rows_per_step, answers, steps, update)
    numbers = {"learning_rate": rate, "tokens_per_step": step_tokens, "num_train_epochs": epochs}
    settings = TrainSettings.model_validate({**train.model_dump(), **numbers})
    return Derived(settings=settings, rows_per_step=rows_per_step, steps=steps, why=why)


def _tokens_per_step(rows: int, mean: float, epochs: int) -> tuple[int, str]:
    """Tokens of ``MAX_ROWS`` rows, or of as many as leave ``MIN_STEPS`` steps, and why."""
    wanted = rows * epochs // MIN_STEPS
    count = max(1, min(MAX_ROWS, wanted))
    tokens = max(1, int(count * mean))
    unit = "1 row" if count == 1 else f"{count} rows"
    why = f"= {unit} of {mean:,.0f} tokens"
    if wanted < 1:
        return tokens, f"{why}: {rows:,} rows and {epochs} epochs make fewer than {MIN_STEPS} steps"
    if count < MAX_ROWS:
        steps = math.ceil(rows / MAX_ROWS) * epochs
        return tokens, f"{why}: {MAX_ROWS} rows a step would leave {steps} steps, of at least {MIN_STEPS}"
    return tokens, why


def _learning_rate(hidden: int, rows_per_step: float, answers: float, steps: int, update: float) -> tuple[float, str]:
    """The rule at the top, and its factors in words; those that are 1 are left out.

    Args:
        answers: supervised tokens of a step.
    """
    rate = BASE_RATE * (WIDTH / hidden) ** POWER
    words = f"= 5e-4 ({WIDTH}/{hidden})^{POWER}"
    by_rows, by_answers = math.sqrt(rows_per_step / REFERENCE_ROWS), math.sqrt(answers / REFERENCE_TOKENS)
    step = f"{rows_per_step:.3g} row{'' if rows_per_step == 1 else 's'} a step"
    if by_answers > max(by_rows, LEAST_SHARE):
        step = f"{answers:.3g} answer tokens a step"
    factors = [(min(1.0, max(LEAST_SHARE, by_rows, by_answers)), step)]
    factors.append((SHORT_FACTOR if steps < SHORT_RUN else 1.0, f"{steps} steps"))
    factors.append((ALPHA / update, f"{ALPHA} over scale r {update:.4g}"))
    for factor, name in factors:
        rate *= factor
        if factor != 1.0:
            words += f" x {factor:.3g} ({name})"
    bounded = min(HIGHEST, max(LOWEST, rate))
    if bounded != rate:
        words += f" = {rate:.1e}, kept within {LOWEST:.0e} to {HIGHEST:.0e}"
    return float(f"{bounded:.1e}"), words
