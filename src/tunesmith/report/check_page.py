"""The page of a check: what is wrong with the data first, then what is in them.

A person opens it with one question, "may I train on this?", so the findings stand on top, the worst first, each with
the rows to look at; pictures and tables follow for those who want to know their data. A section that has nothing to say
is left out: a table of zeros teaches the reader to skip tables.

Bad rows, rows too long, rows that the template refuses, contamination and near duplicates are findings too, and are
ranked with the others, so that nothing serious stands below the fold because another part of the program found it.

The page is filled from plain values (``template.py`` makes them harmless) and computes nothing but shares and order.
"""

from pathlib import Path
from typing import Any

from tunesmith.report.check_figures import count_figure, length_figure, share_figure
from tunesmith.report.template import render
from tunesmith.rundir import write_text

SEVERITIES = ("wrong", "suspect", "note")
VERDICTS = {
    "wrong": "Something in these rows is wrong",
    "suspect": "Look at some rows before you train",
    "note": "Nothing wrong was found",
}
SHOWN = 20  # examples of a finding that the page made
LONG = 40  # lines of a table that may be long
MANY = 200  # contaminated rows listed
_PERSONAL = "rows with what looks like: "  # how the text of every finding about secrets and personal data begins


def write_check_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a check: one file, no network, no script, readable on a phone and in print.

    Args:
        result: what ``api.check`` returns; ``near``, ``contamination`` and ``tokens`` may be None. ``headlines`` are for
            the terminal and not used here.
        path: file to write.
    """
    quality, reading, tokens = result["quality"], result["reading"], result["tokens"]
    findings = _findings(result)
    tally = [(word, sum(finding["severity"] == word for finding in findings)) for word in SEVERITIES]
    worst = next((word for word, count in tally if count), "note")
    page = render(
        "check.html.j2",
        source=result["source"],
        name=Path(result["source"]).name or result["source"],
        worst=worst,
        verdict=VERDICTS[worst],
        tally=[(word, count) for word, count in tally if count],
        findings=findings,
        quality=quality,
        reading=reading,
        files=_first(reading["files"]),
        ignored=_first(list(reading["ignored_columns"].items())),
        problems=bars(reading["problems_by_code"], reading["bad_rows"]),
        lengths=_lengths(quality, tokens),
        keeping=_keeping(tokens["too_long"]) if tokens and tokens["rows"] and not tokens["too_long"]["count"] else "",
        figures=_figures(quality, tokens),
        tokens=tokens,
        refused=bars(tokens["refused"]["by_reason"], tokens["rows"] + tokens["refused"]["count"]) if tokens else None,
        notes=bars(tokens["notes"], tokens["rows"]) if tokens else None,
        classes=bars(quality["classes"]["counts"], quality["classes"]["covered"]) if quality["classes"] else None,
        formats=bars(quality["formats"]["counts"], sum(quality["formats"]["counts"].values())),
        keys=_keys(quality["json"]) if quality["json"] else None,
        languages=_languages(quality["languages"]),
        personal=_personal(quality["findings"], quality["rows"]),
        repetition=_repetition(quality, result["near"]),
        near=result["near"],
        contamination=result["contamination"],
        contaminated=_first(result["contamination"]["rows"], MANY) if result["contamination"] else None,
        diversity=_diversity(quality["diversity"]),
    )
    write_text(path, page)


def bars(counts: dict[str, int], of: int) -> dict[str, Any]:
    """Lines of a table with bars, the longest first: ``lines`` of (label, count, share of ``of``), and how many are left."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    lines, left = _first([(label, count, count / of if of else 0.0) for label, count in ranked])
    return {"lines": lines, "left": left}


def _first(items: list[Any], limit: int = LONG) -> tuple[list[Any], int]:
    """The first items and the number of those left out."""
    return items[:limit], max(0, len(items) - limit)


def _findings(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The quality report's findings and those of the other parts, the worst first."""
    found = [*result["quality"]["findings"], *_reading_findings(result["reading"])]
    if result["tokens"] is not None:
        found += _token_findings(result["tokens"])
    if result["contamination"] is not None:
        found += _contamination_findings(result["contamination"])
    if result["near"] is not None:
        found += _near_findings(result["near"], result["quality"]["rows"])
    return sorted(found, key=lambda finding: (SEVERITIES.index(finding["severity"]), -finding["share"]))


def _finding(code: str, severity: str, text: str, count: int, of: int, hint: str, examples: list[Any]) -> dict[str, Any]:
    share = count / of if of else 0.0
    return {
        "code": code,
        "severity": severity,
        "text": text,
        "count": count,
        "of": of,
        "share": share,
        "hint": hint,
        "examples": examples[:SHOWN],
    }


def _reading_findings(reading: dict[str, Any]) -> list[dict[str, Any]]:
    if not reading["bad_rows"]:
        return []
    codes = ", ".join(f"{code} {count:,}" for code, count in list(reading["problems_by_code"].items())[:SHOWN])
    hint = f"By code: {codes}. Training refuses such a file, or sets these rows aside with data.on_bad_row: quarantine."
    of = reading["rows"] + reading["bad_rows"]
    return [_finding("bad-rows", "wrong", "rows that are not valid examples", reading["bad_rows"], of, hint, [])]


def _token_findings(tokens: dict[str, Any]) -> list[dict[str, Any]]:
    found, refused, too_long = [], tokens["refused"], tokens["too_long"]
    rows = tokens["rows"] + refused["count"]
    if refused["count"]:
        shown = [{"id": row["id"], "place": row["place"], "excerpt": row["reason"]} for row in refused["shown"]]
        hint = "The model's template cannot hold these rows as they are: mend them, or name another in chat.template."
        text = "rows that the chat template refuses"
        found.append(_finding("template-refuses", "wrong", text, refused["count"], rows, hint, shown))
    if too_long["count"]:
        shown = [{"id": row["id"], "place": row["place"], "excerpt": f"{row['tokens']:,} tokens"} for row in too_long["shown"]]
        hint = f"{_keeping(too_long)} Raise it, shorten these rows, or choose data.on_too_long: nothing is cut silently."
        text = f"rows longer than max_length ({tokens['max_length']:,} tokens)"
        found.append(_finding("too-long", "wrong", text, too_long["count"], tokens["rows"], hint, shown))
    return found


def _keeping(too_long: dict[str, Any]) -> str:
    return f"max_length {', '.join(f'{length:,} keeps {share} %' for share, length in too_long['keep'].items())} of the rows."


def _contamination_findings(contamination: dict[str, Any]) -> list[dict[str, Any]]:
    rows = contamination["rows"]
    if not rows:
        return []
    shown = [{"id": row["row"], "place": row["place"], "excerpt": row["excerpt"]} for row in rows[:SHOWN]]
    given = f"{contamination['items_found']:,} of the items of {contamination['benchmark']}"
    hint = f"The rows may give away {given}: a score on it would be void. Remove them before you measure with it."
    text = "rows that share a long passage with the benchmark"
    return [_finding("contamination", "wrong", text, len(rows), contamination["rows_read"], hint, shown)]


def _near_findings(near: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    if not near["clusters"]:
        return []
    shown = [
        {
            "id": cluster["ids"][0],
            "place": cluster["places"][0],
            "excerpt": f"{cluster['rows']:,} rows: {cluster['excerpts'][0]}",
        }
        for cluster in near["largest"]
    ]
    hint = f"{near['clusters']:,} clusters: one row of each would leave {near['rows_left']:,} rows. The split keeps each whole."
    if near["unlike_answers"]:
        hint += f" In {near['unlike_answers']:,} the answers differ: fine distinctions, or errors?"
    text = "rows whose question is nearly that of another row"
    return [_finding("near-duplicates", "suspect", text, near["rows"], rows, hint, shown)]


def _lengths(quality: dict[str, Any], tokens: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One line for each kind of length, and the longest rows under it."""
    lines = []
    if tokens and tokens["rows"]:
        longest = [{**row, "value": row["tokens"]} for row in tokens["longest"]]
        lines.append({"name": "row, tokens", **tokens["lengths"], "longest": longest})
    names = {
        "whole": "row, characters",
        "prompt": "prompt, characters",
        "answer": "answer, characters",
        "answer_words": "answer, words",
    }
    lines += [{"name": name, **quality["lengths"][key]} for key, name in names.items() if quality["lengths"][key]["count"]]
    return lines


def _figures(quality: dict[str, Any], tokens: dict[str, Any] | None) -> list[dict[str, str]]:
    """Pictures with their captions. One bar is no picture: what is the same in all rows stands in the tables."""
    lengths, found = quality["lengths"], []
    whole = lengths["whole"]
    if tokens and tokens["rows"]:
        over = tokens["too_long"]["count"]
        caption = f"Tokens of {tokens['rows']:,} rows under {tokens['model']}."
        if tokens["max_length"] is not None:
            caption += f" {over:,} are longer than max_length." if over else " None is longer than max_length."
        found.append((length_figure(tokens["lengths"], "tokens a row", tokens["max_length"]), caption))
    elif _spread(whole):
        found.append((length_figure(whole, "characters a row"), f"All turns together, {whole['count']:,} rows."))
    for key, text in (("prompt", "characters before the answer"), ("answer", "characters of the answer")):
        # A plain text has no prompt, and its answer is the whole.
        if _spread(lengths[key]) and lengths["prompt"]["count"]:
            found.append((length_figure(lengths[key], text), f"{text[0].upper()}{text[1:]}, {lengths[key]['count']:,} rows."))
    if tokens and len(tokens["supervised_histogram"]["counts"]) > 1:
        caption = f"{100 * tokens['supervised_share']:.1f} % of all tokens are trained on; the picture shows it row by row."
        found.append((share_figure(tokens["supervised_histogram"], "supervised tokens of a row"), caption))
    for key, text in (("turns", "turns a row, without system turns"), ("supervised_turns", "supervised turns a row")):
        if len(quality[key]) > 1:
            found.append(
                (count_figure(quality[key], text), f"{text[0].upper()}{text[1:]}, {sum(quality[key].values()):,} rows.")
            )
    return [{"svg": picture, "caption": caption} for picture, caption in found]


def _spread(lengths: dict[str, Any]) -> bool:
    return sum(count > 0 for count in lengths["histogram"]["counts"]) > 1


def _keys(shapes: dict[str, Any]) -> dict[str, Any]:
    lines = [(key, known["share"], known["types"]) for key, known in shapes["keys"].items()]
    return {**shapes, "lines": lines}


def _languages(spoken: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for part in ("prompts", "answers"):
        judged = spoken[f"judged_{part}"]
        counts = {language: round(share * judged) for language, share in spoken[part].items()}
        if counts:
            title = f"{part}: {judged:,} of {spoken['sampled']:,} sampled rows were long enough to judge"
            found.append({"title": title, **bars(counts, judged)})
    return found


def _personal(findings: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    seen = {found["text"].removeprefix(_PERSONAL): found["count"] for found in findings if found["text"].startswith(_PERSONAL)}
    return bars(seen, rows)


def _repetition(quality: dict[str, Any], near: dict[str, Any] | None) -> list[tuple[str, int, float]]:
    """Rows that say something new, against all; nothing where every row does."""
    rows, duplicates, prompts = quality["rows"], quality["duplicates"], quality["prompts"]
    near_left = near["rows_left"] if near and near["clusters"] else rows
    if not duplicates["rows"] and near_left == rows and prompts["distinct"] == prompts["rows"]:
        return []
    lines = [("rows", rows), ("distinct rows", duplicates["distinct"])]
    if prompts["rows"]:
        lines += [("distinct prompts", prompts["distinct"])]
    if near_left < rows:
        lines += [("rows left with one of each near-duplicate cluster", near_left)]
    if prompts["conflicting_rows"]:
        lines += [("rows whose prompt has more than one answer", prompts["conflicting_rows"])]
    return [(label, count, count / rows) for label, count in lines]


def _diversity(measured: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(part, distinct-4, compression ratio) where both could be measured."""
    return [
        (part, measured[part]["distinct_4"], measured[part]["compression_ratio"])
        for part in ("prompts", "answers")
        if measured[part]["distinct_4"] is not None and measured[part]["compression_ratio"] is not None
    ]
