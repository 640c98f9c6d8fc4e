"""Room on the disk, asked before the first byte: a run that ends with a full disk has cost its hours and left half a file.

Training and export are asked together before the first stage (``early.py``), since the checkpoints are still there when the
export is written; training asks once more when its layers are there and every tensor is known (``refuse_checkpoints``), export
for its own steps (``export/job.py``). What lies there already and is written over counts as room.

Refused: a share of the disk kept free (whoever has exactly enough has enough). Left out: rendered rows, answers and logs, which
are small beside any of these, and the trainings of ``evaluate.seeds`` and of a learning curve.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.formatting import gb
from tunesmith.memory.dials import Dials
from tunesmith.memory.disk import adapter_file_bytes, checkpoint_bytes, checkpoints_at_once
from tunesmith.memory.estimate import STATE
from tunesmith.memory.shape import Shape
from tunesmith.recipe import Recipe, TrainSettings
from tunesmith.recipe.tables import tables_of
from tunesmith.rundir import RunDir, free_bytes


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A way to write less.

    Attributes:
        setting: as a line of the recipe.
        nbytes: that it saves.
    """

    setting: str
    nbytes: int


def training_files(shape: Shape, dials: Dials, keep: int, saves: int | None = None) -> dict[str, int]:
    """Bytes that a training has on the disk at a time, by what they are.

    Args:
        keep: ``train.keep_checkpoints``.
        saves: checkpoints of the whole training; None where their number is not known.
    """
    count, each = checkpoints_at_once(keep, saves), checkpoint_bytes(shape, dials)
    return {f"{count} checkpoint{'' if count == 1 else 's'}": count * each, "adapter": adapter_file_bytes(shape, dials)}


def refuse_training(run: RunDir, recipe: Recipe, shape: Shape, exported: Mapping[str, int], savings: Iterable[Saving]) -> None:
    """Refuse a training, and the export that follows it, for which there is no room.

    Args:
        shape: of the model.
        exported: bytes that the export has there at a time, by what they are; empty where none is made.
        savings: ways to export less.

    Raises:
        RunError: there is less.
    """
    tables = tables_of(recipe.lora.modules_to_save)
    dials = Dials(r=recipe.lora.r, new_tokens=len(recipe.chat.new_tokens), tables=tables, optimizer=recipe.train.optimizer)
    keep = recipe.train.keep_checkpoints
    files = training_files(shape, dials, keep)
    found = list(savings)
    if keep > 1:
        found.append(Saving(setting="train.keep_checkpoints: 1", nbytes=(keep - 1) * checkpoint_bytes(shape, dials)))
    refuse_full_disk(run.path, {**files, **exported}, _lying(run.checkpoints, run.adapter), found)


def refuse_checkpoints(run: RunDir, trained: int, settings: TrainSettings, lying: int) -> None:
    """Refuse a training whose checkpoints have no room, by the number of weights that it trains.

    Args:
        trained: weights.
        lying: bytes of checkpoints of this very training that are there.

    Raises:
        RunError: there is less.
    """
    each = int(trained * (4 + STATE[settings.optimizer]))
    count = checkpoints_at_once(settings.keep_checkpoints, 1 + settings.evals_per_epoch * settings.num_train_epochs)
    savings: list[Saving] = []
    if settings.keep_checkpoints > 1:
        savings.append(Saving(setting="train.keep_checkpoints: 1", nbytes=(settings.keep_checkpoints - 1) * each))
    files = {f"{count} checkpoints": count * each, "adapter": 4 * trained}
    refuse_full_disk(run.path, files, lying, savings)


def refuse_full_disk(directory: Path, files: Mapping[str, int], lying: int, savings: Iterable[Saving]) -> None:
    """Refuse to begin where the file system has less room than the files take.

    Args:
        directory: that they lie below.
        files: bytes by what they are.
        lying: bytes of them that are there already.
        savings: ways to write less.

    Raises:
        RunError: there is less.
    """
    needed, free = sum(files.values()) - lying, free_bytes(directory)
    if needed <= free:
        return
    parts = ", ".join(f"{name} {gb(nbytes)}" for name, nbytes in sorted(files.items(), key=lambda item: -item[1]))
    there = f", of which {gb(lying)} are there" if lying else ""
    less = "; ".join(f"{saving.setting} saves {gb(saving.nbytes)}" for saving in sorted(savings, key=lambda s: -s.nbytes))
    raise RunError(
        f"{directory}: this writes {gb(sum(files.values()))} ({parts}){there}, and {gb(free)} are free; nothing was written",
        f"make room, or name a run directory on a larger disk (--out){f', or write less: {less}' if less else ''}",
    )


def _lying(*places: Path) -> int:
    """Bytes of all files below some places."""
    files = (file for place in places if place.is_dir() for file in place.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files)
