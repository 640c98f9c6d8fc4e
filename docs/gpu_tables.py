"""The predictions of ``docs/explanation/gpu.md``, which ``generate.py`` writes between its marks."""

import sys
from pathlib import Path

from tunesmith.memory.cards import Card, as_of, cards, find_card
from tunesmith.memory.speed import Recompute, Sizes, fits, step_time
from tunesmith.memory.techniques import sizes

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from gpu_path.budgets import STAGES

BEGIN, END = "<!-- predictions -->\n", "<!-- end of predictions -->\n"
TOKENS_BEGIN, TOKENS_END = "<!-- tokens -->\n", "<!-- end of tokens -->\n"
MIXTURE = Sizes(
    hidden=2048,
    intermediate=0,
    layers=48,
    query=4096,
    key_value=512,
    vocab=151936,
    tied=False,
    experts=128,
    chosen=8,
    expert=768,
)
MODELS = {size.name: Sizes.of(size.shape) for size in sizes() if size.name in ("1B", "8B", "27B")} | {"30B mixture": MIXTURE}
RECOMPUTE: dict[str, Recompute] = {"1B": "none", "8B": "layer", "27B": "layer", "30B mixture": "layer"}
STEP, SUPERVISED = 8192, 0.14
# What benchmarks/gpu.py measures, without dropout and at rank 16.
MEASURED: list[tuple[str, int, Recompute]] = [
    ("1B", 2048, "none"),
    ("1B", 8192, "none"),
    ("1B", 8192, "layer"),
    ("8B", 2048, "none"),
    ("8B", 2048, "layer"),
    ("8B", 8192, "layer"),
    ("27B", 2048, "layer"),
]
TERMS = ("products", "attention", "unpacking", "between", "loss", "optimizer")


def with_predictions(text: str) -> str:
    """The page with its tables."""
    before, rest = text.split(BEGIN)
    filled = f"{before}{BEGIN}{_tables()}{END}{rest.split(END)[1]}"
    before, rest = filled.split(TOKENS_BEGIN)
    return f"{before}{TOKENS_BEGIN}{_tokens()}{TOKENS_END}{rest.split(TOKENS_END)[1]}"


def _tokens() -> str:
    """What the host launches for a token of a batch, and how often it waits, by the budgets of the walk."""
    lines = ["| walked | launches a token | with a graph | waits a token | with a graph | MB touched |", "|---" * 6 + "|"]
    for name, stage in STAGES:
        if stage == "decode":
            eager, graph = STAGES[name, "decode"], STAGES.get((name, "graph"))
            cells = ("not recorded", "-") if graph is None else (f"{graph.launches:g}", f"{graph.waits:g}")
            launches, touched = f"{eager.launches:,.0f} | {cells[0]}", f"{eager.touched:,.0f}"
            lines.append(f"| {name} | {launches} | {eager.waits:g} | {cells[1]} | {touched} |")
    return "\n".join(lines) + "\n"


def _tables() -> str:
    columns = [(name, tokens) for name in MODELS for tokens in (2048, 8192)]
    lines = [
        f"ms a pack and share, cards as of {as_of()}; nothing recomputed for 1B, every layer for the others:\n",
        f"| card | {' | '.join(f'{name}, {tokens:,}' for name, tokens in columns)} | USD a million tokens, 8B |",
        "|---" * (len(columns) + 2) + "|",
    ]
    lines += [
        f"| {card.name} | {' | '.join(_cell(card, name, tokens) for name, tokens in columns)} | {_price(card)} |"
        for card in cards()
    ]
    lines += [
        "\nThe settings of `benchmarks/gpu.py` on an H100 SXM, in ms a pack; the host launches meanwhile:\n",
        f"| model, tokens, recomputed | {' | '.join(TERMS)} | all | launches | tokens/s | share |",
        "|---" * (len(TERMS) + 5) + "|",
        *(_row(*setting) for setting in MEASURED),
    ]
    return "\n".join(lines) + "\n"


def _cell(card: Card, name: str, tokens: int) -> str:
    if not fits(MODELS[name], card):
        return "-"
    time = step_time(MODELS[name], tokens, round(SUPERVISED * tokens), card, RECOMPUTE[name], packs=STEP // tokens)
    return f"{1e3 * time.seconds:,.0f}, {time.share:.0%}"


def _price(card: Card) -> str:
    if card.rent is None:
        return "no price at hand"
    time = step_time(MODELS["8B"], 2048, round(SUPERVISED * 2048), card, "layer", packs=STEP // 2048)
    return f"{card.rent.value / 3600 / time.tokens_per_second * 1e6:.3f}"


def _row(name: str, tokens: int, recompute: Recompute) -> str:
    card = find_card("H100 SXM")
    assert card is not None
    time = step_time(MODELS[name], tokens, round(SUPERVISED * tokens), card, recompute, packs=STEP // tokens)
    terms = " | ".join(f"{1e3 * vars(time)[term]:.1f}" for term in TERMS)
    both = f"{1e3 * time.seconds:.0f} | {1e3 * time.launches:.0f} | {time.tokens_per_second:,.0f} | {time.share:.0%}"
    return f"| {name}, {tokens:,}, {recompute} | {terms} | {both} |"
