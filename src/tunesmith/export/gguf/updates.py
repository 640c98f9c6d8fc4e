"""What training added to the tensors of a merged GGUF, and how much of it a quantised file keeps, said aloud.

The factors of a LoRA on linear layers are brought to the file's names and order of rows. DoRA's update is no product of two
factors, and stacks of experts lie otherwise in the file: of these nothing is said, nor of whole tables that were trained.

Shape suffixes: O out_features, R rank, I in_features.
"""

import logging
from dataclasses import replace
from pathlib import Path

from tunesmith.checkpoints.gguf_write.kept import Added, Kept, Updates, kept_in_file
from tunesmith.export.forms.form import Job
from tunesmith.export.gguf.scores import places_of
from tunesmith.export.merge import read_updates
from tunesmith.rundir.records.export import GgufFile

logger = logging.getLogger(__name__)

OTHERS = "A dynamic type and Q8_0 keep it; base: gguf, with the adapter beside the file, rounds nothing"


def updates_of(job: Job, merged: Path, source: Path) -> Updates:
    """What the adapter of an export added, by tensor; nothing where a whole model was brought.

    Args:
        merged: directory that the adapter was merged into.
        source: the 16-bit GGUF of that.

    Raises:
        ExportError: the installed ``gguf`` does not know the architecture.
        ModelError: the adapter cannot be read.
    """
    if job.lora is None:
        return {}
    if source not in job.updates:
        job.updates[source] = _placed(job.adapter, merged, source)
    return job.updates[source]


def _placed(adapter: Path, merged: Path, source: Path) -> Updates:
    """Factors under the names and in the order of the file, for which whole matrices are compared."""
    updates = {
        name.removesuffix(".weight"): parts[0]
        for name, parts in read_updates(adapter).items()
        if name.endswith(".weight") and len(parts) == 1 and parts[0].length_O is None
    }
    placed, _ = places_of(updates, source, merged)
    return {
        place.tensor: Added(updates[module].left_OR[place.order], updates[module].right_RI) for module, place in placed.items()
    }


def told(written: GgufFile, source: Path, file: Path, updates: Updates) -> GgufFile:
    """The record of a quantised file with the share of the training that it keeps; a warning where that is another model.

    Args:
        source: the 16-bit GGUF that it was quantised from.

    Raises:
        ExportError: a weight that is not finite.
    """
    kept = kept_in_file(source, file, updates)
    if not kept.added:
        return written
    warn_if_lost(f"export: {file.name}", "was", kept)
    return replace(written, training_kept=round(kept.share, 4))


def warn_if_lost(of: str, when: str, kept: Kept) -> None:
    """Say that rounding leads back to the base, or away from both.

    Args:
        of: which file, as the beginning of a sentence.
        when: "was" trained, or "is going to be".
    """
    if not kept.is_lost:
        return
    what = "takes back most of" if kept.share < 0.5 else "takes back a part of" if kept.share < 1 else "enlarges"
    logger.warning(
        f"{of} {what} what {when} trained, and keeps {kept.share:.0%} of it: the base's weights were rounded before, and "
        f"rounding them to these blocks moves the training with them. {OTHERS}"
    )
