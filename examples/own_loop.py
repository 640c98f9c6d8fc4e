"""Your own loop: the parts of tunesmith without its run directory.

The same path as ``tunesmith train``, a step at a turn; what happens in between is yours. Here: every tenth row is held out, the
adapter is saved whenever the loss over those is the lowest so far, and training ends when it has risen twice in a row.

    python examples/own_loop.py HuggingFaceTB/SmolLM2-135M-Instruct rows.jsonl adapter
"""

import sys

import tunesmith as ts

PATIENCE = 2
SETTINGS = {"learning_rate": 5e-4, "num_train_epochs": 3, "evals_per_epoch": 2}


def main(model: str, rows: str, out: str = "adapter") -> list[float]:
    """Train and save; returns the dev losses."""
    base = ts.open_base(model).add_lora(r=16)
    rendered = ts.render(rows, base)
    dev = rendered[::10]
    train = [row for number, row in enumerate(rendered) if number % 10]
    losses: list[float] = []
    for step in ts.train_steps(base, train, dev=dev, **SETTINGS):
        print(f"step {step.step}  loss {step.loss:.4f}  {step.tokens} tokens", flush=True)
        if step.dev_loss is None:
            continue
        if step.dev_loss < min(losses, default=float("inf")):
            base.save_adapter(out)
        losses.append(step.dev_loss)
        if len(losses) - losses.index(min(losses)) > PATIENCE:
            break
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
