"""Write down that a run's adapter is meant for the base that the recipe names now."""

from tunesmith.models.identity import accept_base as accept
from tunesmith.models.identity import base_identity
from tunesmith.pipeline.base import base_of
from tunesmith.rundir import RunDir


def accept_base(run: RunDir) -> str:
    """Write down that the run's adapter is meant for the base that the recipe names now. Returns the base's sha256.

    Raises:
        RunError: nothing was trained yet.
    """
    base = base_of(run, run.recipe())
    identity = base_identity(base.directory, base.renderer.template)
    accept(run.adapter, identity)
    return str(identity["sha256"])
