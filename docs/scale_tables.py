"""The predictions of ``docs/how-to/several-gpus.md``, which ``generate.py`` writes between its marks."""

from typing import NamedTuple

from tunesmith.memory.cards import find_card
from tunesmith.memory.speed import Sizes, step_time
from tunesmith.memory.techniques import sizes

BEGIN, END = "<!-- scale -->\n", "<!-- end of scale -->\n"
NUMBERS = (2, 4, 8, 16, 64)
A_MACHINE = 8  # cards
TOKENS, SUPERVISED, RANK = 8192, 0.14, 16
NF4_BITS = 4.127


class Links(NamedTuple):
    """Bytes a second and direction that a card gets, within a machine and between machines; assumed."""

    name: str
    card: str
    within: float
    between: float


LINKS = (
    Links("H100, NVLink, 400 Gb/s between machines", "H100 SXM", 300e9, 40e9),
    Links("L40S, PCIe 4, 100 Gb/s between machines", "L40S", 20e9, 10e9),
    Links("RTX 4090, PCIe 4 through the host, 25 Gb/s between machines", "RTX 4090", 12e9, 2.5e9),
)


def with_scale(text: str) -> str:
    """The page with its tables."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{_tables()}{END}{rest.split(END)[1]}"


def _tables() -> str:
    models = {size.name: Sizes.of(size.shape) for size in sizes() if size.name in ("8B", "70B")}
    head = " | ".join(f"{number} cards" for number in NUMBERS)
    lines = [f"| 8B, the base in every card | ms a pack | sent a step | {head} |", "|---" * (len(NUMBERS) + 3) + "|"]
    for links in LINKS:
        pack, adapter = _pack(models["8B"], links), RANK * models["8B"].adapter_per_rank * 4
        cells = [f"{pack / (pack + 2 * adapter / _link(links, number)):.1%}" for number in NUMBERS]
        lines.append(f"| {links.name} | {1e3 * pack:,.0f} | 2 x {adapter / 1e6:.0f} MB | {' | '.join(cells)} |")
    lines += ["", f"| 70B, `train.shard` | ms a pack | put together a pack | {head} |", "|---" * (len(NUMBERS) + 3) + "|"]
    for links in LINKS:
        whole, cells = models["70B"].layers * models["70B"].linear * NF4_BITS / 8, []
        pack = _pack(models["70B"], links)
        for number in NUMBERS:
            gathered = 2 * whole * (number - 1) / number / _link(links, number)
            cells.append(f"{pack / max(pack, gathered):.0%}, {whole / number / 1e9:.1f} GB")
        lines.append(f"| {links.name} | {1e3 * pack:,.0f} | 2 x {whole / 1e9:.1f} GB | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _pack(model: Sizes, links: Links) -> float:
    card = find_card(links.card)
    assert card is not None
    return step_time(model, TOKENS, round(SUPERVISED * TOKENS), card, "layer").seconds


def _link(links: Links, number: int) -> float:
    return links.within if number <= A_MACHINE else links.between
