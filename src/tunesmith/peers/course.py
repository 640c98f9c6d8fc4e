"""How a training walks over its rows, there and here: what follows from keys and rows together.

Other tools count rows a step, a recipe counts tokens; they end a run after steps, a recipe after epochs; they warm up for
steps, a recipe for a share. So steps, epochs, warm-up and held-out rows are worked out from the rows themselves, and both
walks are shown.

    rows a step       batch x accumulation x GPUs, or the tokens of as many packs by the tokens of a row
    tokens_per_step   rows a step x the mean tokens of a row
    num_train_epochs  the nearest whole number, 1 at least; a max_steps that ends within the first epoch is a limit on the rows
    warmup_ratio      warm-up steps by all steps, there

A sealed test part and dev rows are taken from the rows here and not there, so fewer rows are trained on; that is said, too.
"""

import math
from dataclasses import dataclass

from tunesmith.peers.translation import Translation, Walk
from tunesmith.recipe import Train
from tunesmith.recipe.derive import derive
from tunesmith.rundir.records.imported import Course

TEST, DEV = 0.15, 0.10  # the recipe's own shares
MOST_HELD_OUT = 0.5
STEP = 64  # max_length is a multiple of this
WIDTH = 2048  # of any model: the steps do not depend on it


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was counted of the rows.

    Attributes:
        rows: all of them.
        tokens: of them all.
        too_long: rows above the longest that is trained.
        longest: tokens of the longest row.
        how: tokens were counted.
        given: the parts of a split are there, so that none is drawn.
    """

    rows: int
    tokens: int
    too_long: int
    longest: int
    how: str
    given: bool = False


def walks(t: Translation, counted: Counted, gpus: int = 1) -> tuple[Course, Course]:
    """Both walks; the keys that follow from them are added.

    Args:
        gpus: devices that trained there, each on rows of its own.
    """
    walk, mean = t.walk, counted.tokens / counted.rows
    held = walk.held_out * counted.rows if walk.held_out < 1.0 else walk.held_out
    theirs = max(1, round(counted.rows - held))
    batch = walk.batch * walk.accumulation * gpus
    per_step = min(float(theirs), max(1.0, batch * walk.packed / mean) if walk.packed else float(batch))
    an_epoch = math.ceil(theirs / per_step)
    steps = walk.max_steps or math.ceil(walk.epochs * an_epoch)
    dev = _dev_fraction(t, walk, counted)
    share = 1.0 if counted.given else 1.0 - TEST - dev
    rows = _rows_and_epochs(t, walk, counted.rows, per_step, an_epoch, share)
    if walk.batch_keys:
        words = f"{per_step:.4g} rows a step{_on(gpus)}{' in packs' if walk.packed else ''} x {mean:.4g} tokens a row"
        t.map(walk.batch_keys, "train.tokens_per_step", max(1, round(per_step * mean)), words)
    warm = min(walk.warmup * steps if walk.warmup < 1.0 else walk.warmup, walk.warmup_most or math.inf)
    _warmup(t, walk, warm, steps)
    _evals(t, walk, an_epoch, steps)
    if not walk.max_length:
        room = counted.longest + STEP if "estimated" not in counted.how else 2 * counted.longest
        words = f"absent, and the model's own there; the longest row has {counted.longest:,} tokens"
        t.default("max_length", "train.max_length", math.ceil(room / STEP) * STEP, words)
    t.default("(none)", "train.replay", 0.0, f"{t.tool} mixes in no samples of the base model's own writing")
    trained = max(1, round(min(rows, counted.rows) * share))
    settings = {key: t.ours(f"train.{key}") for key in ("tokens_per_step", "num_train_epochs")}
    ours = derive(
        Train.model_validate({key: value for key, value in settings.items() if value is not None}),
        rows=trained,
        tokens=max(trained, trained * mean),
        hidden=WIDTH,
    )
    ratio = t.ours("train.warmup_ratio")
    after = Course(
        rows=trained,
        rows_per_step=ours.rows_per_step,
        epochs=float(ours.settings.num_train_epochs),
        steps=ours.steps,
        warmup_steps=round((ratio if isinstance(ratio, int | float) else 0.0) * ours.steps),
    )
    before = Course(rows=theirs, rows_per_step=per_step, epochs=steps / an_epoch, steps=steps, warmup_steps=round(warm))
    _differences(t, counted, before, after)
    return before, after


def _on(gpus: int) -> str:
    return f" on {gpus} GPUs" if gpus > 1 else ""


def _dev_fraction(t: Translation, walk: Walk, counted: Counted) -> float:
    """The share of the rows on which everything is chosen."""
    if not walk.held_out:
        words = "no rows are held out there; everything is chosen on these"
        t.default(walk.held_out_key or "(none)", "data.dev_fraction", DEV, words)
        return DEV
    share = walk.held_out if walk.held_out < 1.0 else walk.held_out / counted.rows
    share = min(MOST_HELD_OUT, max(1.0 / counted.rows, float(f"{share:.4g}")))
    t.map(walk.held_out_key, "data.dev_fraction", share, "" if walk.held_out < 1.0 else f"of {counted.rows:,} rows")
    return share


def _rows_and_epochs(t: Translation, walk: Walk, rows: int, per_step: float, an_epoch: int, share: float) -> int:
    """Epochs, and a limit on the rows where the training ends within the first; the rows that are left."""
    if walk.max_steps is None:
        if not walk.epochs_key:
            return rows
        epochs = max(1, round(walk.epochs))
        words = "" if epochs == walk.epochs else f"{walk.epochs:g} there, and whole epochs here"
        if walk.epochs_given:
            t.map(walk.epochs_key, "train.num_train_epochs", epochs, words)
        else:
            t.default(walk.epochs_key, "train.num_train_epochs", epochs)
        return rows
    reached = walk.max_steps / an_epoch
    epochs = max(1, round(reached))
    if walk.epochs_given:
        t.drop(walk.epochs_key, f"{walk.max_steps_key} ends the training")
    if reached >= 1.0:
        words = f"{walk.max_steps:,} steps of {per_step:.4g} rows are {reached:.3g} epochs"
        t.map(walk.max_steps_key, "train.num_train_epochs", epochs, words)
        return rows
    seen = round(walk.max_steps * per_step)
    limit = min(rows, math.ceil(seen / share))
    words = f"{walk.max_steps:,} steps see {seen:,} rows there; remove this to train on all {rows:,}"
    t.map(walk.max_steps_key, "data.limit", limit, words)
    t.map(walk.max_steps_key, "train.num_train_epochs", 1, "the first was not finished there")
    return limit


def _warmup(t: Translation, walk: Walk, warm: float, steps: int) -> None:
    if not walk.warmup_key:
        return
    ratio = min(0.99, float(f"{warm / steps:.3g}"))
    is_ratio = walk.warmup < 1.0 and walk.warmup_most is None
    if not walk.warmup_given:
        most = f", {walk.warmup_most} steps at most" if walk.warmup_most else ""
        t.default(walk.warmup_key, "train.warmup_ratio", ratio, f"absent, and its default in {t.tool} is {walk.warmup:g}{most}")
    else:
        t.map(walk.warmup_key, "train.warmup_ratio", ratio, "" if is_ratio else f"{warm:g} of {steps:,} steps")


def _evals(t: Translation, walk: Walk, an_epoch: int, steps: int) -> None:
    if walk.eval_steps is None:
        return
    every = walk.eval_steps if walk.eval_steps >= 1.0 else max(1.0, walk.eval_steps * steps)
    t.map(walk.eval_steps_key, "train.evals_per_epoch", max(1, round(an_epoch / every)), f"of {an_epoch:,} steps an epoch")


def _differences(t: Translation, counted: Counted, before: Course, after: Course) -> None:
    if counted.given:
        t.differ("the rows: the parts that are there are kept, and its test part is sealed for the verdict")
    elif after.rows < before.rows:
        t.differ(
            f"the rows: {before.rows:,} are trained on there and {after.rows:,} here, where a test part is sealed for the "
            "verdict and a dev part is chosen on (data.test_fraction, data.dev_fraction)"
        )
    if counted.too_long:
        about = "about " if "estimated" in counted.how else ""
        what = f"{about}{counted.too_long:,} rows are longer than {t.walk.max_length:,} tokens"
        if t.walk.cuts:
            t.differ(
                f"long rows: {what}; {t.tool} cuts them, tunesmith refuses them: raise train.max_length, or "
                "data.on_too_long: drop"
            )
        else:
            t.differ(f"long rows: {what}; they are left out there and here")
