"""Which files a verdict speaks of, and whether they are still those.

A verdict that names no file speaks of whatever lies in the directory today. So ``verdict.json`` holds the sha256 of every file
that it follows from or that is deployed under it: the parts of the data, the adapter, what was brought, what was exported, the
answers of all arms and the evidence around them. Its own hash then stands for all of them: quoted in a pull request or on a
model card, it proves a copy of the run on another machine.

Not named is what no verdict follows from and what may be made anew under it: the recipe's text (a key that changes a result
makes its stage stale), ``training.json`` (which holds times, so that the same training writes another), the adapter's card,
stores and caches, the sweep and the learning curve, pages.

Rows and base lie outside of the run. They are named as the manifest knows them, and looked at where they are still there.

Refused: a signature. It would prove who said it, which needs keys that somebody keeps; a hash in a reviewed commit does that
with what a team has already.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from tunesmith.errors import ProvenanceError, RunError
from tunesmith.rundir import RunDir, sha256_file
from tunesmith.rundir.hashes import file_state
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.provenance import Verification
from tunesmith.tracking.progress import progress

FOLDERS = ("data/", "adapter/", "brought/", "export/", "evaluation/")
NOT_NAMED = (
    *("adapter/README.md", "export/sweep.json", "export/sweep.svg"),
    *("evaluation/verdict.json", "evaluation/curve.json"),
)
STORES = (".sqlite", ".sqlite-wal", ".sqlite-shm", ".sqlite-journal")


def named_files(run: RunDir) -> list[str]:
    """The files that are there of which a verdict speaks, as paths below the run directory."""
    return [name for name in run.files_below(*FOLDERS) if name not in NOT_NAMED and not name.endswith(STORES)]


def files_of(run: RunDir) -> dict[str, str]:
    """sha256 of each of them; what a stage has recorded and nobody touched is not read again."""
    known = {name: state for record in run.stages().values() for name, state in record.outputs.items()}
    return {name: file_state(run.file(name), known.get(name)).sha256 for name in named_files(run)}


def sources_of(run: RunDir) -> dict[str, str]:
    """sha256 of the rows and of the base's files, as the manifest knows them."""
    manifest = run.manifest()
    base, files = manifest.model.get("id"), _hashes(manifest.model.get("files"))
    return {**_hashes(manifest.data.get("sha256")), **{f"{base}/{name}": digest for name, digest in files.items()}}


def _hashes(value: JsonValue) -> dict[str, str]:
    return {name: digest for name, digest in value.items() if isinstance(digest, str)} if isinstance(value, Mapping) else {}


def read_verdict(run: RunDir) -> Verdict:
    """The verdict of a run.

    Raises:
        RunError: there is none, or it is damaged.
        ProvenanceError: it names no file, being older than that, or names one outside of the run.
    """
    if not run.verdict_file.is_file():
        raise RunError(f"{run.path}: has no verdict yet", f"run: tunesmith run {run.path}")
    verdict = Verdict.read(run.verdict_file)
    if not verdict.files:
        raise ProvenanceError(
            f"{run.verdict_file}: names no file; it was written before verdicts did", f"run: tunesmith verdict {run.path}"
        )
    for name in verdict.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ProvenanceError(f"{run.verdict_file}: names {name}, which is no file of the run", "it was altered")
    return verdict


def verify(run: RunDir) -> Verification:
    """Hash every file that the verdict of a run speaks of, and compare; nothing is taken from a cache, nothing written.

    Raises:
        RunError: there is no verdict, or it is damaged.
        ProvenanceError: it names no file.
    """
    verdict = read_verdict(run)
    differs: list[str] = []
    gone: list[str] = []
    elsewhere: list[str] = []
    same, size = 0, 0
    with progress("verify", len(verdict.files) + len(verdict.sources)) as bar:
        for name, digest in verdict.files.items():
            file = run.file(name)
            if not file.is_file():
                gone.append(name)
            elif sha256_file(file) != digest:
                differs.append(name)
            else:
                same, size = same + 1, size + file.stat().st_size
            bar.advance()
        for name, digest in verdict.sources.items():
            file = Path(name)
            if not file.is_absolute() or not file.is_file():
                elsewhere.append(name)
            elif sha256_file(file) != digest:
                differs.append(name)
            bar.advance()
    return Verification(
        run=str(run.path),
        decision=verdict.decision,
        verdict_sha256=sha256_file(run.verdict_file),
        same=same,
        bytes=size,
        differs=tuple(differs),
        gone=tuple(gone),
        unnamed=tuple(name for name in named_files(run) if name not in verdict.files),
        elsewhere=tuple(elsewhere),
    )


def refuse_altered(found: Verification) -> None:
    """Refuse a run whose files are not those of its verdict.

    Raises:
        ProvenanceError: which, and what they are instead.
    """
    if found.is_whole:
        return
    words = [f"{name} is another one" for name in found.differs] + [f"{name} is gone" for name in found.gone]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    raise ProvenanceError(
        f"{found.run}: not what the verdict speaks of: {', '.join(words[:3])}{more}",
        f"copy the run again; or make what is stale, and a verdict on that: tunesmith run {found.run}",
    )
