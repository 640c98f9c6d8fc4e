"""The tables of ``docs/explanation/memory.md`` and of the README, which ``generate.py`` writes between its marks."""

from tunesmith.memory.techniques import TECHNIQUES, needed, sizes

BEGIN, END = "<!-- techniques -->\n", "<!-- end of techniques -->\n"
LENGTHS = (2048, 8192)


def with_techniques(text: str, lengths: tuple[int, ...] = LENGTHS) -> str:
    """The page with its table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{''.join(map(_table, lengths))}{END}{rest.split(END)[1]}"


def with_short_table(text: str) -> str:
    """The README with models in a row: what others publish, and ours."""
    names = {"QLoRA": "every layer recomputed", "and 8-bit head and moments": "head and moments in 8 bits"}
    names["and layers streamed"] = "and layers streamed from host memory"
    chosen = {technique.name: technique for technique in TECHNIQUES if technique.name in names}
    lines = [f"| QLoRA at 2,048 tokens, GB | {' | '.join(size.name for size in sizes())} |", "|---" * (len(sizes()) + 1) + "|"]
    lines.append(f"| as others publish it | {' | '.join(f'{size.published_gb:.0f}' for size in sizes())} |")
    for name, technique in chosen.items():
        lines.append(f"| {names[name]} | {' | '.join(f'{needed(size, technique, 2048) / 1e9:.1f}' for size in sizes())} |")
    before, rest = text.split(BEGIN)
    table = "\n".join(lines)
    return f"{before}{BEGIN}{table}\n{END}{rest.split(END)[1]}"


def _table(tokens: int) -> str:
    published = tokens == 2048
    names = [technique.name for technique in TECHNIQUES] + ["others publish for QLoRA"] * published
    lines = [f"| {tokens:,} tokens | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for size in sizes():
        figures = [f"{needed(size, technique, tokens) / 1e9:.1f}" for technique in TECHNIQUES]
        others = [f"{size.published_gb:.0f}"] * published
        lines.append(f"| {size.name} ({size.like}) | {' | '.join(figures + others)} |")
    return "\n".join(lines) + "\n\n"
