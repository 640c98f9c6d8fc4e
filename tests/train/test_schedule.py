import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from shared import train_settings
from tunesmith.train.schedule import learning_rate


@pytest.mark.parametrize(
    ("name", "stock"), [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)]
)
def test_equals_transformers_after_warm_up(name, stock):
    train, total, warmup = train_settings(schedule=name, warmup_ratio=0.1, learning_rate=1e-3), 50, 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = stock(optimizer, warmup, total)
    for step in range(total):
        if step >= warmup:
            assert learning_rate(train, step, total) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_warm_up_wastes_no_step_and_peaks_once():
    train = train_settings(schedule="constant", warmup_ratio=0.25, learning_rate=1.0)
    assert [learning_rate(train, step, 8) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate(train_settings(warmup_ratio=0.0, learning_rate=1.0), 0, 8) == 1.0
