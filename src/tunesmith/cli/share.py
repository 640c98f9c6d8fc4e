"""Commands that prove a run to others and publish it."""

from typing import TYPE_CHECKING

from rich.filesize import decimal

from tunesmith.cli.application import SHARE, Lazy, app, show
from tunesmith.cli.options import AsJson, Target

if TYPE_CHECKING:
    from tunesmith.rundir.records.provenance import Verification

_verbs = Lazy("tunesmith.pipeline.verbs")
_provenance = Lazy("tunesmith.pipeline.provenance")


@app.command(rich_help_panel=SHARE)
def verify(target: Target, as_json: AsJson = False) -> None:
    """Hash every file that the verdict speaks of, and say which is another one, gone or not named. Writes nothing."""
    found = _provenance.verify(_verbs.look_at(target))
    show(found, as_json, lambda: _print_verification(found))
    _provenance.refuse_altered(found)


def _print_verification(found: "Verification") -> None:
    kinds = (
        ("another one", found.differs),
        ("gone", found.gone),
        ("not named", found.unnamed),
        ("not on this machine", found.elsewhere),
    )
    for kind, names in kinds:
        for name in names:
            print(f"{kind:<20} {name}")
    print(f"{found.same} files ({decimal(found.bytes)}) are what the verdict ({found.decision}) names")
    print(f"verdict.json: sha256 {found.verdict_sha256}")
