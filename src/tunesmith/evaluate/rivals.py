"""What a candidate has to beat: every finalist, and what else the recipe holds against it that is ahead on the test part."""

from collections.abc import Sequence

from tunesmith.errors import RunError
from tunesmith.evaluate.candidates import is_tuned
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.stats import ALPHA
from tunesmith.evaluate.tries import widened
from tunesmith.recipe import PROMPT_DEPLOYED
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Rival, Selection


def rivals_of(
    outputs: dict[str, list[Output]],
    candidate: str,
    selection: Selection,
    metric: Metric,
    groups: list[str] | None,
    alpha: float = ALPHA,
) -> tuple[tuple[Rival, ...], tuple[str, ...]]:
    """What has to be beaten, the strongest on the test part first; and the other arms that are ahead.

    Those are arms that the recipe does not hold against the candidate; one that it does, and that is ahead, is a rival.

    Raises:
        RunError: not every finalist was scored, or no row can be compared.
    """
    if missing := [name for name in selection.finalists if name not in outputs]:
        raise RunError(f"{missing[0]}: a prompt that has to be beaten was not scored", "run: tunesmith evaluate RUN")
    prompts = [name for name in outputs if not is_tuned(name)]
    against = {name: widened(compare(outputs[candidate], outputs[name], metric, groups), alpha) for name in prompts}
    ahead = [name for name, c in against.items() if c.gain < 0.0 and name not in selection.finalists]
    hold_against = {*selection.rivals, PROMPT_DEPLOYED}
    names = [*selection.finalists, *(name for name in ahead if name in hold_against)]
    rivals = [
        Rival(
            name=name,
            way=selection.way_of(name),
            finalist=name in selection.finalists,
            score=figure_of(outputs[name], metric),
            comparison=against[name],
        )
        for name in names
    ]
    strongest_first = sorted(rivals, key=lambda rival: (rival.comparison.gain, rival.comparison.low))
    return tuple(strongest_first), tuple(name for name in ahead if name not in hold_against)


def figure_of(outputs: Sequence[Output], metric: Metric) -> float:
    """The headline figure of an arm that was compared, so that it has one."""
    figure = metric.headline(outputs)
    assert figure is not None  # compare refuses an arm without a score
    return figure
