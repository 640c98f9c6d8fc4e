"""The measured tables of ``docs/explanation/bits.md``, which ``generate.py`` writes between its marks from what is stored."""

import json
from pathlib import Path
from typing import Any

BASE, FILES = ("<!-- base -->\n", "<!-- end of base -->\n"), ("<!-- files -->\n", "<!-- end of files -->\n")
FORMS = ("nf4", "searched, weighted", "+4%", "+8%", "+8%, scores alone", "+16%")
WEIGHED = ("plain", "imatrix", "scores")
Figures = dict[str, Any]


def with_bits(text: str, results: Path) -> str:
    """The page with its tables.

    Args:
        text: of the page.
        results: the folder of the kept outputs, ``bits-base-DATE.json`` and ``bits-gguf-DATE.json``.
    """
    base, files = (sorted(results.glob(f"bits-{kind}-*.json"))[-1] for kind in ("base", "gguf"))
    tables = ((BASE, _base, base), (FILES, _files, files))
    for (begin, end), table, source in tables:
        before, rest = text.split(begin)
        lines = table(json.loads(source.read_text(encoding="utf-8")))
        lines += ["", f"Source: `benchmarks/results/{source.name}`.", ""]
        text = f"{before}{begin}" + "\n".join(lines) + f"{end}{rest.split(end)[1]}"
    return text


def _base(stored: Figures) -> list[str]:
    """A line a model and task: KL by what the linear layers are kept in."""
    heads = ("NF4", "searched scales, 0 %", "+4 %", "+8 %", "+8 %, nothing measured", "+16 %")
    lines = [f"| | positions | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for name, figures in stored["cases"].items():
        kls = [found if isinstance(found := figures[form], float) else found["kl"] for form in FORMS]
        cells = [f"{kls[0]:.3f}", *(f"{kl:.3f} ({100 * (kl / kls[0] - 1):+.0f} %)" for kl in kls[1:])]
        lines.append(f"| {name.replace(', ', ': ')} | {figures['positions']:,} | {' | '.join(cells)} |")
    return lines


def _files(stored: Figures) -> list[str]:
    """A line a model, task and way to weigh columns: KL of plain types, and how much less their dynamic ones have."""
    heads = ("columns weighed by", "Q3_K_M", "dynamic", "less", "Q4_K_M", "dynamic", "less", "Q5_K_M")
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, figures in stored.items():
        if not name.endswith(", off grid"):
            continue
        for weighed in WEIGHED:
            types = figures["types"]
            cells = []
            for kind in ("Q3_K_M", "Q4_K_M"):
                dynamic = types[f"dynamic-{kind}, {weighed}"]
                less = "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * share for share in dynamic["less"]))
                cells += [f"{types[f'{kind}, {weighed}']['kl']:.3f}", f"{dynamic['kl']:.3f}", less]
            cells.append(f"{types[f'Q5_K_M, {weighed}']['kl']:.3f}")
            words = {"plain": "none", "imatrix": "importance matrix", "scores": "scores"}[weighed]
            lines.append(f"| {name.removesuffix(', off grid').replace(', ', ': ')} | {words} | {' | '.join(cells)} |")
    return lines
