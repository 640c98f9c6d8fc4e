"""The page of a folder of runs: the gains as a picture, then every run with what was changed and what came of it.

A person opens it to see what was tried. So runs stand in the order in which they were made, each beside the keys that differ
from the one before, and the ones that led nowhere are as large as the others.
"""

from pathlib import Path

from markupsafe import Markup

from tunesmith.formatting import duration
from tunesmith.notebook import forest
from tunesmith.report.template import render
from tunesmith.rundir import write_text
from tunesmith.rundir.records.runs import Runs

UNIT = "points over the strongest prompt of the run"


def write_runs_page(found: Runs, path: Path) -> None:
    """Write the page: one file, no network, no script.

    Args:
        found: in the order in which they are shown.
        path: file to write.
    """
    gains = found.gains()
    arms = list(dict.fromkeys(arm.name for entry in found.runs if entry.outcome for arm in entry.outcome.arms))
    page = render(
        "runs.html.j2",
        folder=found.folder,
        runs=found.runs,
        others=found.others,
        arms=arms,
        picture=Markup(forest(gains, 0.0, UNIT)) if gains else "",  # ours; names in it are escaped
        deployed=sum(entry.outcome is not None and entry.outcome.decision == "deploy" for entry in found.runs),
        decided=len(gains),
        times=[duration(entry.seconds) for entry in found.runs],
    )
    write_text(path, page)
