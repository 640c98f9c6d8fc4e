"""The stage ``report``: one page from what the run directory holds."""

from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.report.page import write_report
from tunesmith.rundir import RunDir


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``report.html``."""
    write_report(run)
