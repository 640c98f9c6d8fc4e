"""The verbs that look at examples: check, convert and preview need no recipe; data and render are stages of a run.

Rows stream through all of them: what is kept of a row is its hashes and lengths. A run reads its source once into a
file of rows, learns from it what the split needs, and hands the rows out to the parts in a second pass.
"""

import contextlib
import dataclasses
import gc
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import hardware
from tunesmith.errors import DataError
from tunesmith.pipeline.stage import find_base, load_renderer, model_key, renderer, stage
from tunesmith.recipe import Recipe
from tunesmith.rundir import (
    RunDir,
    fingerprint,
    git_state,
    package_versions,
    read_json,
    sha256_file,
    stream_rows,
    write_json,
    write_rows,
    writing_rows,
)
from tunesmith.tracking import progress

if TYPE_CHECKING:
    import numpy as np

    from tunesmith.chat.render import Piece, Renderer
    from tunesmith.data.near import NearDuplicates
    from tunesmith.data.quality import Quality
    from tunesmith.data.read import Reader, ReadOptions

logger = logging.getLogger(__name__)

BATCH = 2048  # rows rendered together


def check(
    source: str | Path,
    options: "ReadOptions | None" = None,
    *,
    model: str | None = None,
    template: Path | None = None,
    max_length: int | None = None,
    near: bool = True,
    benchmark: Path | None = None,
    benchmark_column: str | None = None,
    rejected: Path | None = None,
) -> dict[str, Any]:
    """Look at data without a recipe.

    Args:
        source: file, directory or hub id.
        options: how to read.
        model: hub id, directory or .gguf file whose tokenizer and template render every row; then lengths are tokens.
        template: Jinja file that takes the place of the model's template.
        max_length: tokens above which a row is too long; with ``model`` alone.
        near: search for near duplicates.
        benchmark: data whose passages must not stand in the rows.
        benchmark_column: its column that holds the questions, where it is not in a format of ours.
        rejected: file for bad rows, with ``on_bad_row: quarantine``.

    Returns:
        ``source``, ``reading`` (``Reader.summary``), ``quality`` (``Quality.report``), ``headlines``, and ``near``,
        ``contamination``, ``tokens`` where asked for, else None. ``report/check_page.py`` draws it.

    Raises:
        DataError: nothing to read, or bad rows that are not to be quarantined.
    """
    from tunesmith.data.contamination import Contamination
    from tunesmith.data.near import NearDuplicates
    from tunesmith.data.quality import Quality, headlines
    from tunesmith.data.read import AS_FOUND, Reader

    quality, duplicates = Quality(), NearDuplicates() if near else None
    contamination = None if benchmark is None else Contamination(_texts(benchmark, benchmark_column))
    tokens = None if model is None else _Tokens(load_renderer(find_base(model), template), max_length)
    reader = Reader(source, options or AS_FOUND, rejected)
    for batch in _with_bar(reader):
        quality.add(batch)
        if duplicates is not None:
            duplicates.add(batch)
        if contamination is not None:
            contamination.add(batch)
        if tokens is not None:
            tokens.add([row.as_dict() for row in batch])
    report = quality.report()
    return {
        "source": str(source),
        "reading": reader.summary(),
        "quality": report,
        "headlines": headlines(report),
        "near": None if duplicates is None else _near_report(duplicates, quality),
        "contamination": None
        if contamination is None
        else {"benchmark": str(benchmark), **dataclasses.asdict(contamination.report())},
        "tokens": None if tokens is None else {"model": model, **tokens.report(quality)},
    }


def check_page(result: dict[str, Any], path: Path) -> None:
    """Write what ``check`` returned as one self-contained HTML page."""
    from tunesmith.report.check_page import write_check_page

    write_check_page(result, path)


def convert(
    source: str | Path, target: Path, options: "ReadOptions | None" = None, rejected: Path | None = None
) -> dict[str, Any]:
    """Write data of any format as ``messages`` JSONL. Returns the reader's summary and the file written."""
    from tunesmith.data.convert import convert as write
    from tunesmith.data.read import AS_FOUND, Reader

    total = Reader(source, options or AS_FOUND).total_bytes
    with progress("converting", total) as bar:
        return write(source, target, options or AS_FOUND, rejected, bar.advance)


def preview(
    source: str | Path, model: str, options: "ReadOptions | None" = None, *, template: Path | None = None, rows: int = 3
) -> "Iterator[tuple[str, str, list[Piece] | DataError]]":
    """The first rows as a model's template writes them.

    Returns:
        For each row its id, its place, and its pieces in order or the error that keeps it from being rendered.
    """
    from tunesmith.chat.render import Conversation
    from tunesmith.data.read import AS_FOUND, Reader

    made = load_renderer(find_base(model), template)
    for row in itertools.islice(Reader(source, options or AS_FOUND), rows):
        try:
            conversation = Conversation.of(row.as_dict())
            yield row.id, row.place, made.pieces(conversation.messages, conversation.tools, conversation.kind)
        except DataError as error:
            yield row.id, row.place, error


def data(run: RunDir) -> None:
    """Read, check and split the rows into ``data/{train,dev,test}.jsonl``."""
    from tunesmith.data.read import Reader, ReadOptions
    from tunesmith.data.split import PARTS

    recipe = run.recipe()
    settings = recipe.data
    options = ReadOptions(settings.format, settings.columns, settings.group_by, settings.on_bad_row)
    reader = Reader(settings.path, options, run.data / "rejected.jsonl")
    digests = {str(file.path): sha256_file(file.path) for file in reader.source.files}
    earlier = None if settings.earlier_split is None else sha256_file(_split_named(settings.earlier_split))
    content = sorted(digests.values()) or settings.path
    # Where the rows lie does not matter, and what is too long is render's business.
    policy = settings.model_dump(exclude={"path", "earlier_split", "on_too_long"})
    key = fingerprint(content, policy, earlier, recipe.seed)
    with stage(run, "data", key) as needed:
        if not needed:
            return
        run.data.mkdir(parents=True, exist_ok=True)
        everything = run.data / ".rows.jsonl"
        parts, leaks, result = _read_and_split(run, recipe, reader, everything)
        counts = {part: int((parts == number).sum()) for number, part in enumerate(PARTS)}
        for number, part in enumerate(PARTS):
            with writing_rows(run.data / f"{part}.jsonl") as write:
                for index, row in enumerate(stream_rows(everything)):
                    if parts[index] == number:
                        write([row])
        everything.unlink()
        write_json(run.data / "report.json", {"rows": len(parts), **counts, "leaks": leaks, **result})
        run.add_to_manifest(
            data={"path": settings.path, "sha256": digests},
            seed=recipe.seed,
            packages=package_versions(),
            git=git_state(Path.cwd()),
            hardware=hardware.describe(),
        )
        logger.info(f"data: {len(parts)} rows, {counts['train']} train, {counts['dev']} dev, {counts['test']} test (sealed)")
        if result["repeated_prompts"]:
            logger.info(
                f"data: {result['repeated_prompts']} rows repeat an earlier prompt or group and stay on its side of the split"
            )
        if leaks:
            moved = {"move": "their groups changed sides", "report": "data.on_leak: move takes them out of the test part"}
            logger.warning(f"data: {leaks} test rows have a near duplicate in train; {moved[settings.on_leak]}")


def _read_and_split(
    run: RunDir, recipe: Recipe, reader: "Reader", everything: Path
) -> "tuple[np.ndarray, int, dict[str, Any]]":
    """Read all rows into one file; decide each row's part. Returns parts, leaking test rows, and the check's report."""
    from tunesmith.data.near import NearDuplicates
    from tunesmith.data.quality import Quality, headlines
    from tunesmith.data.split import SplitFacts, answer_key, group_key, read_split, settle_leaks, split, write_split

    facts, quality, near = SplitFacts(), Quality(), NearDuplicates()
    with writing_rows(everything) as write:
        for batch in _with_bar(reader):
            write([row.as_dict() for row in batch])
            quality.add(batch)
            near.add(batch)
            for row in batch:
                facts.add(row.id, group_key(row), answer_key(row))
    report = quality.report()
    for line in headlines(report):
        logger.info(f"data: {line}")
    facts.stratify = report["classes"] is not None
    settings = recipe.data
    named = settings.earlier_split or (run.split_file if run.split_file.exists() else None)
    earlier = None if named is None else read_split(named)
    if earlier is not None:
        logger.info(f"data: rows that {named} knows stay in their part; seed and fractions decide for new rows alone")
    parts = split(facts, settings.test_fraction, settings.dev_fraction, recipe.seed, earlier)
    parts, leaks = settle_leaks(facts, parts, near.groups(), settings.on_leak, earlier)
    write_split(run.split_file, facts, parts, settings.test_fraction, settings.dev_fraction, recipe.seed)
    checked = {"source": settings.path, "reading": reader.summary(), "quality": report, "headlines": headlines(report)}
    return parts, leaks, {"repeated_prompts": facts.repeats, "check": {**checked, "near": _near_report(near, quality)}}


def render(run: RunDir) -> None:
    """Render train and dev with the model's template into ``data/{train,dev}.arrow``; once for the same rows and model."""
    from tunesmith.checkpoints.resolve import model_hashes
    from tunesmith.train.documents import Documents

    recipe = run.recipe()
    directory, made = renderer(recipe)
    # What the template writes today is part of the key: some write the date.
    probe = made.text([{"role": "user", "content": "a"}], generate=True)
    policy = (recipe.data.on_too_long, recipe.data.on_bad_row)
    settings = (model_key(recipe), made.template, probe, recipe.task.short_prompt, recipe.train.max_length, policy)
    key = fingerprint(run.key_of("data"), recipe.task.max_new_tokens, *settings)
    with stage(run, "render", key) as needed:
        if not needed:
            return
        facts = {}
        for part in ("train", "dev"):
            rows = run.data / f"{part}.jsonl"
            facts[part] = _rendered(recipe, made, rows, run.tokens(part), fingerprint(sha256_file(rows), *settings))
        refused = [row for part in facts.values() for row in part["left_out"]]
        write_rows(run.data / "left_out.jsonl", refused)
        _say_notes(facts)
        if not all(part["rows"] for part in facts.values()):
            raise DataError("no row is left to train or to choose on", "raise train.max_length, or mend the rows")
        documents = Documents.open(run.tokens("train"))
        budget = recipe.task.max_new_tokens or facts["train"]["longest_answer"] + facts["train"]["longest_answer"] // 4
        tokens = int(documents.lengths.sum())
        longest = max(facts[part]["longest"] for part in facts)
        counts = {"train_tokens": tokens, "supervised": documents.supervised_tokens, "longest": longest}
        write_json(run.data / "rendered.json", {**counts, "max_new_tokens": budget, "left_out": len(refused)})
        model = {"id": recipe.model, "revision": recipe.revision, "sha256": recipe.model_sha256}
        run.add_to_manifest(model={**model, "files": model_hashes(directory)}, template_sha256=fingerprint(made.template))
        share = 100 * documents.supervised_tokens / tokens
        logger.info(f"render: {tokens:,} train tokens, {share:.0f} % supervised, longest row {longest}")
        derived = "given" if recipe.task.max_new_tokens else f"longest train answer {facts['train']['longest_answer']} + 25 %"
        logger.info(f"render: at most {budget} new tokens an answer ({derived})")


def _rendered(recipe: Recipe, made: "Renderer", rows: Path, target: Path, key: str) -> dict[str, Any]:
    """Put the tokens of one part into the run directory, from the cache where the same rows were rendered before.

    Returns:
        ``rows``, ``longest``, ``longest_answer``, ``notes`` (sentence to rows) and ``left_out`` (id, place, reason).
    """
    from tunesmith.train.documents import cached_tokens

    facts = hardware.cache_dir() / "tokens" / f"{key}.json"

    def make(path: Path) -> None:
        write_json(facts, _render_rows(recipe, made, rows, path))

    if not facts.exists():
        facts.with_suffix(".arrow").unlink(missing_ok=True)  # tokens without their facts are half a cache entry
    if cached_tokens(key, target, make):
        logger.info(f"render: {rows.stem}: the tokens of these rows are in the cache")
    return read_json(facts)


def _render_rows(recipe: Recipe, made: "Renderer", rows: Path, target: Path) -> dict[str, Any]:
    from tunesmith.chat.fit import fit
    from tunesmith.chat.render import Conversation, with_system
    from tunesmith.train.documents import DocumentWriter

    limit, policy = recipe.train.max_length, recipe.data.on_too_long
    lengths: list[int] = []
    left_out: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()
    longest = longest_answer = written = 0
    with DocumentWriter(target) as writer, progress(f"rendering {rows.stem}", rows.stat().st_size) as bar:
        for batch, size in _batched(rows):
            conversations = [Conversation.of(row) for row in batch]
            asked = [dataclasses.replace(c, messages=with_system(c.messages, recipe.task.short_prompt)) for c in conversations]
            for row, fitted in zip(batch, fit(made, asked, limit, policy), strict=True):
                lengths.append(fitted.tokens)
                if fitted.rendered is None:
                    reason = fitted.refused.message if fitted.refused else f"{fitted.tokens} tokens"
                    hint = fitted.refused.hint if fitted.refused else ""
                    left_out.append(
                        {"id": row["id"], "place": row["place"], "reason": reason, "hint": hint, "tokens": fitted.tokens}
                    )
                    continue
                writer.add([(row["id"], fitted.rendered.ids, fitted.rendered.supervised)])
                written += 1
                notes.update(fitted.rendered.notes)
                notes.update(["the oldest turns were dropped to fit train.max_length"] if fitted.dropped_turns else [])
                longest = max(longest, len(fitted.rendered.ids))
                longest_answer = max(longest_answer, fitted.rendered.last_answer)
            bar.advance(size)
        _refuse_left_out(recipe, rows.stem, left_out, lengths)
    return {"rows": written, "longest": longest, "longest_answer": longest_answer, "notes": dict(notes), "left_out": left_out}


def _refuse_left_out(recipe: Recipe, part: str, left_out: list[dict[str, Any]], lengths: list[int]) -> None:
    """Rows that cannot be rendered or are too long refuse the data, unless the recipe says otherwise."""
    broken = [row for row in left_out if not row["tokens"]]
    if broken and recipe.data.on_bad_row == "refuse":
        shown = "\n".join(f"row {row['id']}, {row['place']}: {row['reason']}\n    hint: {row['hint']}" for row in broken[:20])
        more = f"\n... and {len(broken) - 20:,} more" if len(broken) > 20 else ""
        raise DataError(
            f"{len(broken):,} {part} rows cannot be rendered\n{shown}{more}", "mend them, or set data.on_bad_row: quarantine"
        )
    too_long = [row for row in left_out if row["tokens"]]
    if too_long and recipe.data.on_too_long == "refuse":
        shown = ", ".join(f"{row['id']} ({row['tokens']})" for row in too_long[:20])
        more = f" and {len(too_long) - 20:,} more" if len(too_long) > 20 else ""
        raise DataError(
            f"{len(too_long):,} {part} rows are longer than train.max_length {recipe.train.max_length} tokens: {shown}{more}",
            "train.max_length: "
            + ", ".join(f"{value} keeps {share} %" for share, value in keeping(lengths).items())
            + "; or set data.on_too_long: drop, or drop_oldest_turns",
        )


def keeping(lengths: list[int]) -> dict[str, int]:
    """The ``max_length`` that keeps 95, 99 and 100 % of the rows."""
    import numpy as np

    found = np.percentile(np.array(lengths or [0]), [95, 99, 100], method="inverted_cdf").astype(int).tolist()
    return dict(zip(("95", "99", "100"), found, strict=True))


def _say_notes(facts: dict[str, dict[str, Any]]) -> None:
    for part, found in facts.items():
        for note, count in found["notes"].items():
            logger.info(f"render: {part}: {count:,} rows: {note}")
        if found["left_out"]:
            logger.warning(f"render: {part}: {len(found['left_out']):,} rows are left out, see data/left_out.jsonl")


def _batched(rows: Path) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Batches of a JSONL file of our own, each with its share of the file's bytes."""
    share = rows.stat().st_size // max(1, sum(1 for _ in stream_rows(rows)))
    stream = stream_rows(rows)
    while batch := list(itertools.islice(stream, BATCH)):
        yield batch, share * len(batch)


def _with_bar(reader: "Reader") -> Iterator[list[Any]]:
    """The reader's batches, with a bar over its bytes."""
    with progress("reading", reader.total_bytes) as bar, _no_cycles():
        reader.progress = bar.advance
        yield from reader.batches()


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """Without Python's search for cycles: rows are trees, and looking at millions of them is a tenth of a check."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _near_report(near: "NearDuplicates", quality: "Quality") -> dict[str, Any]:
    from tunesmith.data.quality import PlaceColumn

    rows = len(near.groups())
    return dataclasses.asdict(near.report(PlaceColumn(quality.places, "id", rows), PlaceColumn(quality.places, "place", rows)))


def _texts(benchmark: Path, column: str | None) -> Iterator[tuple[str, str]]:
    """Id and question of each item of a benchmark file."""
    from tunesmith.data.near import question
    from tunesmith.data.read import Reader, ReadOptions

    for row in Reader(benchmark, ReadOptions(columns=None if column is None else {"text": column})):
        yield row.id, question(row)


def _split_named(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no split there", "data.earlier_split names the data/split.json of an earlier run")
    return path


class _Tokens:
    """What rendering says of the rows of a check."""

    def __init__(self, made: "Renderer", max_length: int | None):
        self._made, self._max_length = made, max_length
        self._lengths: list[int] = []
        self._supervised: list[int] = []
        self._rows: list[int] = []
        self._seen = 0
        self._notes: Counter[str] = Counter()
        self._refused: list[tuple[int, str]] = []

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Render a batch and keep its figures."""
        from tunesmith.chat.render import Conversation

        for rendered in self._made.render_batch([Conversation.of(row) for row in rows]):
            if isinstance(rendered, DataError):
                self._refused.append((self._seen, rendered.message))
            else:
                self._rows.append(self._seen)
                self._lengths.append(len(rendered.ids))
                self._supervised.append(sum(rendered.supervised))
                self._notes.update(rendered.notes)
            self._seen += 1

    def report(self, quality: "Quality") -> dict[str, Any]:
        """The part ``tokens`` of a check's result."""
        import numpy as np

        from tunesmith.data.quality import histogram, summary

        lengths, supervised, rows = np.array(self._lengths), np.array(self._supervised), np.array(self._rows)
        found = summary(lengths, rows)
        limit = self._max_length
        over = [] if limit is None else np.flatnonzero(lengths > limit).tolist()
        shown = [(int(rows[i]), int(lengths[i])) for i in over[:20]]
        places = quality.places.find({row for row, _ in [*found["longest"], *shown, *self._refused[:20]]})

        def named(row: int, **facts: Any) -> dict[str, Any]:
            return {**places[row], **facts}

        return {
            "max_length": limit,
            "rows": len(lengths),
            "lengths": {key: value for key, value in found.items() if key != "longest"},
            "supervised_share": int(supervised.sum()) / max(1, int(lengths.sum())),
            "supervised_histogram": histogram(supervised / np.maximum(lengths, 1), log=False),
            "too_long": {
                "count": len(over),
                "shown": [named(row, tokens=tokens) for row, tokens in shown],
                "keep": keeping(self._lengths),
            },
            "notes": dict(self._notes),
            "refused": {
                "count": len(self._refused),
                "by_reason": dict(Counter(reason for _, reason in self._refused).most_common(20)),
                "shown": [named(row, reason=reason) for row, reason in self._refused[:20]],
            },
            "longest": [named(row, tokens=tokens) for row, tokens in found["longest"]],
        }
