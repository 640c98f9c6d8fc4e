"""The picture of a base under a budget of bytes: bits a weight by layer, and what rounding is expected to cost there."""

import re
from collections import defaultdict

from matplotlib.figure import Figure

from tunesmith.report.figures import DEV, QUIET, SIZE, svg
from tunesmith.rundir.records.base_forms import BaseForms, BaseModule

PARTS = {"attention": "#0072b2", "MLP": "#d55e00"}


def base_figure(forms: BaseForms) -> str:
    """Bits a weight of each decoder layer, its attention and its MLP, above the expected KL of the layer, in NF4 and as chosen.

    Linear layers outside of the decoder layers are left out.
    """
    layers: defaultdict[int, list[BaseModule]] = defaultdict(list)
    for module in forms.modules:
        if (number := re.search(r"\.(\d+)\.", module.module)) is not None:
            layers[int(number[1])].append(module)
    numbers = sorted(layers)
    figure = Figure(figsize=(SIZE[0], 4.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for place, (part, colour) in enumerate(PARTS.items()):
        heights = [_bits([each for each in layers[number] if _part(each) == part]) for number in numbers]
        places = [number + 0.4 * place - 0.2 for number in numbers]
        above.bar(places, heights, width=0.38, color=colour, label=part, linewidth=0)
    above.set_ylabel("bits a weight")
    above.axhline(4.127, color=QUIET, linewidth=1, linestyle="--")
    above.legend(frameon=False, fontsize=9.5, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    before, after = ([sum(kl(each) for each in layers[number]) for number in numbers] for kl in (_in_nf4, _chosen))
    below.bar(numbers, before, width=0.8, color=QUIET, alpha=0.5, label="all in NF4", linewidth=0)
    below.bar(numbers, after, width=0.8, color=DEV, label="as chosen", linewidth=0)
    below.set_ylabel("expected KL (nats)")
    below.set_xlabel("decoder layer")
    below.legend(frameon=False, fontsize=9.5, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)
    for side in ("top", "right"):
        above.spines[side].set_visible(False)
    return svg(figure, below, grid="y")


def _part(module: BaseModule) -> str:
    return "attention" if "att" in module.module else "MLP"


def _bits(modules: list[BaseModule]) -> float:
    return 8.0 * sum(each.bytes for each in modules) / max(1, sum(each.weights for each in modules))


def _in_nf4(module: BaseModule) -> float:
    return module.nf4_kl


def _chosen(module: BaseModule) -> float:
    return module.kl
