"""Learning-rate schedules: linear warm-up, then cosine, linear or constant. Pure functions of the step number."""

import math

from tunesmith.recipe import TrainSettings


def learning_rate(train: TrainSettings, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) out of ``total_steps``.

    Warm-up rises from ``1/warmup`` of the peak in the first step, so that no step is wasted at zero; the cosine ends at
    zero after the last step (as ``transformers.get_cosine_schedule_with_warmup``, shifted by one).
    """
    warmup = math.ceil(train.warmup_ratio * total_steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    if train.schedule == "linear":
        return train.learning_rate * (1.0 - done)
    return train.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
