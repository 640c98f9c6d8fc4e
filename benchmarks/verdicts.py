"""Keep the evidence of a verdict, and reach the verdict again from it.

Kept is the part of a run directory that the stage ``verdict`` reads: the answers of every arm with their scores, the test
rows, what was chosen on dev, parity, forgetting, seeds. No weights, and no ledger: how often the test part had been read, and
which files there were, is taken from the verdict. ``verdict.json`` lies beside the archive, to be read. Paths below the
checkout are written as ``{root}``.

    python benchmarks/verdicts.py runs/us_addresses benchmarks/results/verdicts/us_addresses-2026-11-28
"""

import contextlib
import io
import sys
import tarfile
from pathlib import Path
from unittest import mock

from tunesmith.pipeline import verdict as stage
from tunesmith.pipeline.stage import Session
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.evaluation import Verdict

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "run.tar.xz"
READ = (
    *("recipe.yaml", "stages.json", "training.json", "manifest.json", "data/test.jsonl", "export/parity.json"),
    *("evaluation/*.json", "evaluation/**/outputs.jsonl", "evaluation/**/scores.json"),
)


def keep(run: RunDir, target: Path) -> None:
    """Write ``verdict.json`` and the archive of what it was made from into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "verdict.json").write_text(_anywhere(run.verdict_file), encoding="utf-8")
    files = sorted({file for pattern in READ for file in run.path.glob(pattern)})
    with tarfile.open(target / ARCHIVE, "w:xz") as archive:
        for file in files:
            content = _anywhere(file).encode()
            entry = tarfile.TarInfo(str(file.relative_to(run.path)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _anywhere(file: Path) -> str:
    """The text of a file without the place of this checkout."""
    return file.read_text(encoding="utf-8").replace(str(ROOT), "{root}")


def reach(kept: Path, place: Path) -> Verdict:
    """The verdict of what was kept in a directory, made anew by the stage of a run, in ``place``."""
    with tarfile.open(kept / ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    for file in place.rglob("*.*"):
        if file.is_file():
            file.write_text(file.read_text(encoding="utf-8").replace("{root}", str(ROOT)), encoding="utf-8")
    run = RunDir(place)
    known = Verdict.read(kept / "verdict.json")
    run.verdict_file.unlink()
    with contextlib.ExitStack() as patches:
        for name, value in (("tries_at", known.tries), ("files_of", known.files), ("sources_of", known.sources)):
            patches.enter_context(mock.patch.object(stage, name, mock.Mock(return_value=value)))
        stage.execute(run, run.recipe(), Session(), "")
    return Verdict.read(run.verdict_file)


if __name__ == "__main__":
    keep(RunDir(Path(sys.argv[1])), Path(sys.argv[2]))
