"""Writes docs/reference/families.md from the records of ``families.py`` and the results of ``test_families.py``.

``make families`` runs the matrix with ``--junitxml`` and this file turns the results into the page. pytest's own report was
enough: a test id names its cell, so no plugin writes anything. A cell that did not pass is printed as failed; the
committed page is held by a test to be the one of a whole pass, so neither the records nor the table can go stale.
"""

import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from tiny_families import TINY
from tunesmith.families import FAMILIES, SUPPORTED, WRAPPERS, Family, Support

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "families.md"

# Feature -> head of its column, and what its cell shows.
FEATURES = {
    "logits": ("logits", "every position of a pack has the logits of its document alone"),
    "gradients": ("gradients", "loss and every adapter gradient, a document at a time"),
    "packed": ("packed", "the same with all documents in one row"),
    "prefixes": ("common beginnings", "the same with tokens that documents begin with computed once"),
    "fused": ("ours", "which modules are replaced by ours"),
    "recompute": ("recompute", "the same gradients under every policy of `train.recompute`, to 1e-6"),
    "nf4": ("NF4", "loss and gradients over weights that bitsandbytes quantised and dequantised"),
    "fp16": ("fp16", "products in fp16: loss to 2e-3, cosine of the gradient at least 0.999"),
    "peft": ("PEFT", "PEFT reads the adapter, and what it writes is read back to the bit"),
    "merge": ("merge", "the merged directory in stock transformers has the adapter's logits"),
    "gguf": (
        "GGUF",
        "llama.cpp computes the logits of stock transformers with PEFT from the exported F16 file, within its rounding; "
        "every weight gets its type of Q4_K_M",
    ),
}


def support(name: str, feature: str) -> Support:
    """How far a feature holds for a variant, as its record says."""
    family = FAMILIES.get(TINY[name].config.model_type)
    if family is None:
        return SUPPORTED
    return family.features.get(feature, SUPPORTED)


def page(cells: Mapping[tuple[str, str], str]) -> str:
    """The whole page, from the outcome of each cell that was run: ``passed``, or anything else."""
    parts = [OPENING, _table(cells), _columns(), _limits(), "## What is known of each"]
    parts += [_section(model_type, family) for model_type, family in FAMILIES.items()]
    return "\n\n".join([*parts, _unknown(), _wrappers()]) + "\n"


OPENING = """# Model families

Made by `make families` from the records in `src/tunesmith/families.py` and the results of
`tests/models/test_families.py`; change those, not this page.

A row stands for the models of one build, a cell for a test. The model is tiny and random and has every trait of the family:
windows shorter than the documents, soft-caps that bend, layers that share keys, experts. It goes the way of a run, from a
checkpoint on disk to a merged directory, with adapters on everything that `all-linear` adapts; the oracle is stock
transformers with PEFT, which sees a document at a time. Numbers are fp32 and agree to a few times the rounding of the
stock model itself, unless the column says otherwise. What no tiny model shows is how a full-sized one learns: the runs on
real weights are in docs/LOG.md."""


def _table(cells: Mapping[tuple[str, str], str]) -> str:
    heads = [head for head, _ in FEATURES.values()]
    rows = [["models", *heads], ["---"] * (1 + len(heads))]
    rows += [[tiny.title, *(_cell(name, feature, cells) for feature in FEATURES)] for name, tiny in TINY.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(name: str, feature: str, cells: Mapping[tuple[str, str], str]) -> str:
    outcome = cells.get((name, feature), "not run")
    if outcome != "passed":
        return f"**{outcome}**"
    if feature == "fused":
        return ", ".join(TINY[name].ours) or "none"
    return {"supported": "yes", "experimental": "partly", "unsupported": "no"}[support(name, feature).level]


def _columns() -> str:
    return "\n".join(f"- **{head}**: {meaning}" for head, meaning in FEATURES.values())


def _limits() -> str:
    """Why a cell is not a plain yes."""
    found: dict[str, list[str]] = {}
    for name, tiny in TINY.items():
        for feature, (head, _) in FEATURES.items():
            if support(name, feature).level != "supported":
                found.setdefault(f"{head}, {support(name, feature).why}", []).append(tiny.title)
        for reason in tiny.stock:
            found.setdefault(f"stays stock: {reason}", []).append(tiny.title)
    lines = [f"- {'; '.join(titles)}: {reason}" for reason, titles in found.items()]
    return "Where a cell is not a plain yes:\n\n" + "\n".join(lines)


def _section(model_type: str, family: Family) -> str:
    variants = [tiny.title for tiny in TINY.values() if tiny.config.model_type == model_type]
    tested = [f"Tested as {'; '.join(variants)}."] if len(variants) > 1 else []
    text = textwrap.fill(
        " ".join([*tested, *_build(family), *_use(family)]), 124, break_long_words=False, break_on_hyphens=False
    )
    return f"### {family.title} (`{model_type}`)\n\n{text}"


def _build(family: Family) -> Iterator[str]:
    """How its layers differ from the plain ones."""
    windows = {"config": "All layers see a sliding window.", "layer": "A layer says itself whether it sees a sliding window."}
    if family.window in windows:
        yield windows[family.window]
    if family.rotary == "layer":
        yield "Some layers do not turn q and k by their positions."
    if family.norm_offset:
        yield f"Norms multiply by {family.norm_offset:g} + weight."
    if family.post_norms:
        yield "Attention and MLP have a norm behind them too."
    if family.qk_norm:
        yield "q, k and v are normed a head." if family.v_norm else "q and k are normed a head."
    if family.score_softcap:
        yield f"Attention scores have a soft-cap (`{family.score_softcap}`)."
    if family.sinks:
        yield "Each head has a score of its own beside those of the keys (an attention sink), which is frozen."
    if family.fused_qkv and family.fused_gate_up:
        yield f"q, k and v are one layer (`{family.fused_qkv}`), gate and up another (`{family.fused_gate_up}`); the"
        yield "adapters sit on these, as in PEFT."
    if family.shared_kv:
        yield "The last layers may read keys and values of earlier ones; they have no k_proj and v_proj, so no adapter there,"
        yield "and what they read gets its gradient at the layer that made it."
    if family.keys_are_values:
        yield "Layers without v_proj take what k_proj makes for their values."
    if family.per_layer_embeddings:
        yield f"A table of one vector a token and layer (`{family.per_layer_embeddings}`) is frozen; on a GPU it stays in host"
        yield "memory (`per_layer_embeddings`)."
    if family.experts:
        yield f"Mixtures hold their experts in `{family.experts.module}`, each with an adapter on both products, and"
        yield f"`base: nf4` quantises them; the router (`{family.experts.router}`) is neither adapted nor quantised."


def _use(family: Family) -> Iterator[str]:
    """What to heed when it is adapted, quantised, prompted, computed in fp16 and exported."""
    if family.peft_default_targets:
        yield f"`peft-default` adapts {_names(family.peft_default_targets)}."
    else:
        yield "PEFT has no default targets for it; `all-linear` is ours."
    if family.never_adapted:
        yield f"Not adapted unless named: {_names(family.never_adapted)}."
    if family.never_quantized:
        yield f"Never quantised: {_names(family.never_quantized)}."
    if family.turn_ends:
        yield f"A turn ends with {_names(family.turn_ends, ' or ')}."
    if not family.system_role:
        yield "Its template has no system turn."
    if family.half_hazard:
        yield f"Plain fp16 fails: {family.half_hazard}; `train.compute: fp16` scales each row instead."
    yield from (f"Export: {text}." for text in family.export)
    for feature, held in family.features.items():
        if feature not in FEATURES:
            yield f"{feature[0].upper()}{feature[1:]}, {held.level}: {held.why}."


def _names(names: tuple[str, ...], last: str = ", ") -> str:
    return last.join(f"`{name}`" for name in names)


def _unknown() -> str:
    return """### Any other type

Trains with its stock modules, our attention over packs and adapters on its linear layers; the run says that nothing was
fused. Before the first step the loss is compared with the stock model's, and a model that our path computes differently
is refused."""


def _wrappers() -> str:
    rows = [["multimodal type", "text model", "left out"], ["---"] * 3]
    for model_type, wrapper in WRAPPERS.items():
        towers = tuple(tower.removesuffix(".") for tower in wrapper.towers)
        rows.append([f"`{model_type}`", f"`{wrapper.family}`", _names(towers)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""## Multimodal checkpoints

The text model is trained; towers are never loaded. `towers: keep` copies them into the merged directory, under the names
and with the configuration of the checkpoint; `drop` leaves a text model. A weight that is missing is an error with its name.

{table}"""


def read_cells(report: Path) -> dict[tuple[str, str], str]:
    """Outcome of each cell in pytest's ``--junitxml``."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        title = case.attrib["name"]
        if title.startswith("test_cell["):
            name, feature = title.removeprefix("test_cell[").removesuffix("]").rsplit("-", 1)
            failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
            found[name, feature] = "failed" if failed else "passed"
    return found


if __name__ == "__main__":
    cells = read_cells(Path(sys.argv[1]))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(cells), encoding="utf-8")
    bad = sorted("-".join(cell) for cell, outcome in cells.items() if outcome != "passed")
    sys.exit(f"{PAGE}: {len(bad)} of {len(cells)} cells failed: {' '.join(bad)}" if bad else None)
