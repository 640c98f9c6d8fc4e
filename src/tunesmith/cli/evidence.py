"""Commands that a verdict can do without: more seeds, a curve over data."""

from tunesmith.cli.application import EVIDENCE, Lazy, app, show
from tunesmith.cli.options import AsJson, Target

_verbs = Lazy("tunesmith.pipeline.verbs")


@app.command(rich_help_panel=EVIDENCE)
def seeds(target: Target, as_json: AsJson = False) -> None:
    """Train and score the adapters of evaluate.seeds."""
    adapters = _verbs.seeds(_verbs.open_run(target))
    show(adapters, as_json)


@app.command("learning-curve", rich_help_panel=EVIDENCE)
def learning_curve(target: Target, as_json: AsJson = False) -> None:
    """Train on shares of the train part and say what more data would buy."""
    curve = _verbs.learning_curve(_verbs.open_run(target))
    show(curve, as_json)
