"""What a check says on the terminal: a line for each thing worth one, the numbers first."""

from typing import Any


def check_lines(result: dict[str, Any]) -> list[str]:
    """The result of ``check`` in short."""
    lines = [*reading_lines(result["reading"]), *result["headlines"]]
    near = result["near"]
    if near is not None:
        of = f"threshold {near['threshold']}, {'exact' if near['exact'] else 'estimated'} Jaccard similarity"
        if near["clusters"]:
            lines.append(
                f"suspect: {near['rows']:,} rows in {near['clusters']:,} clusters of near-duplicate prompts ({of}); "
                f"{near['rows_left']:,} rows would be left, {near['unlike_answers']:,} clusters have unlike answers"
            )
            first = near["largest"][0]
            lines.append(
                f"  largest: {first['rows']:,} rows, first {first['places'][0]} ({first['ids'][0]}): {first['excerpts'][0]}"
            )
        else:
            lines.append(f"no near-duplicate prompts ({of})")
    contamination = result["contamination"]
    if contamination is not None:
        rows = contamination["rows"]
        lines.append(
            f"{'wrong' if rows else 'note'}: {len(rows):,} rows share a passage with {contamination['benchmark']} "
            f"({contamination['items']:,} items, {contamination['too_short']:,} too short to judge)"
        )
        lines += [f"  {row['place']} ~ {row['item']}: {row['excerpt']}" for row in rows[:3]]
    return lines + (_token_lines(result["tokens"]) if result["tokens"] is not None else [])


def reading_lines(reading: dict[str, Any]) -> list[str]:
    """What the reader found out about a source: its format, what it passed over, bad rows by code."""
    lines = [f"{', '.join(reading['files'][:3])}{' ...' if len(reading['files']) > 3 else ''}: format {reading['format']}"]
    lines += reading["notes"]
    for name, found in reading["ignored_columns"].items():
        near = f"; did you mean {found['nearest']}?" if found["nearest"] else ""
        lines.append(f"column {name or 'without a name'} is ignored ({found['rows']:,} rows){near}")
    if reading["bad_rows"]:
        codes = ", ".join(f"{code} {count:,}" for code, count in reading["problems_by_code"].items())
        lines.append(f"wrong: {reading['bad_rows']:,} bad rows set aside ({codes})")
    return lines


def _token_lines(tokens: dict[str, Any]) -> list[str]:
    lines = []
    if tokens["rows"]:
        found, keep = tokens["lengths"], tokens["too_long"]["keep"]
        lines.append(
            f"tokens a row: {found['min']:,} to {found['max']:,} (median {found['median']:,}), "
            f"{100 * tokens['supervised_share']:.0f} % supervised; max_length "
            + ", ".join(f"{value:,} keeps {share} %" for share, value in keep.items())
        )
    if tokens["too_long"]["count"]:
        shown = ", ".join(f"{row['place']} ({row['id']}): {row['tokens']:,}" for row in tokens["too_long"]["shown"][:5])
        lines.append(f"wrong: {tokens['too_long']['count']:,} rows are longer than {tokens['max_length']:,} tokens: {shown}")
    if tokens["refused"]["count"]:
        lines.append(f"wrong: {tokens['refused']['count']:,} rows cannot be rendered")
        lines += [f"  {row['place']} ({row['id']}): {row['reason']}" for row in tokens["refused"]["shown"][:5]]
    return lines + [f"note: {count:,} rows: {note}" for note, count in tokens["notes"].items()]
