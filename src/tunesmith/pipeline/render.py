"""The stage ``render``: train and dev with the model's template into ``data/{train,dev}.arrow``.

Token ids of the same rows and the same model are kept in the cache, whatever run asks for them.
"""

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.chat.calls.probe import check_call_form
from tunesmith.chat.fit import fit
from tunesmith.chat.render import Conversation, with_system
from tunesmith.checkpoints.check_base import check_lengths
from tunesmith.checkpoints.facts import base_facts, model_hashes
from tunesmith.checkpoints.quantized.schemes import Scheme
from tunesmith.data.lengths import keep_shares
from tunesmith.engines.base import BaseModel
from tunesmith.errors import DataError
from tunesmith.formatting import limits
from tunesmith.pipeline.base import settle_template
from tunesmith.pipeline.lines import reading_lines
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.windows import Window
from tunesmith.recipe import Recipe
from tunesmith.rundir import Row, RunDir, fingerprint, sha256_file, stream_rows
from tunesmith.rundir.records.check import DataReport
from tunesmith.rundir.records.data import LeftOut, Rendered, RenderedPart
from tunesmith.tracking import progress
from tunesmith.train.documents import Documents, DocumentWriter, cached_tokens
from tunesmith.train.prefix import row_tokens

logger = logging.getLogger(__name__)

BATCH = 2048  # rows rendered together
RENDERING = 3  # in the key of cached tokens: raised when the same row is rendered otherwise than before


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Render train and dev with the model's template, once for the same rows and model.

    Raises:
        ModelError: no model there, or a template that cannot be used, or whose calls cannot be read where they are scored.
        DataError: rows that cannot be rendered or are too long, where the recipe refuses those.
    """
    base = settle_template(run, recipe)
    renderer = base.renderer
    if run.data_report_file.exists():
        logger.info(f"render: {reading_lines(DataReport.read(run.data_report_file).check.reading)[0]}")
    if recipe.task.metric == "tool_calls":
        asking = recipe.evaluate.asking
        form = check_call_form(renderer, shown=not {"few_shot", "optimized_prompt"}.isdisjoint(asking))
        logger.info(f"render: the template writes tool calls in the form {form.name}")
    policy = (recipe.data.on_too_long, recipe.data.on_bad_row)
    settings = (
        RENDERING,
        base.key,
        renderer.template,
        recipe.task.short_prompt,
        recipe.train.max_length,
        policy,
    )
    parts: dict[str, RenderedPart] = {}
    for part in ("train", "dev"):
        rows = run.data / f"{part}.jsonl"
        parts[part] = _rendered(recipe, base, rows, run.tokens(part), fingerprint(sha256_file(rows), *settings))
    left_out = [row for part in parts.values() for row in part.left_out]
    LeftOut.write_lines(run.data / "left_out.jsonl", left_out)
    _say_notes(parts)
    if not all(part.rows for part in parts.values()):
        raise DataError("no row is left to train or to choose on", "raise train.max_length, or mend the rows")
    documents = Documents.open(run.tokens("train"))
    longest_answer = parts["train"].longest_answer
    budget = recipe.task.max_new_tokens or longest_answer + longest_answer // 4
    tokens = int(row_tokens(documents).sum())
    longest = max(part.longest for part in parts.values())
    new_tokens = _count_new_tokens(base, documents)
    Rendered(
        train_tokens=tokens,
        supervised_tokens=documents.supervised_tokens,
        longest=longest,
        max_new_tokens=budget,
        left_out=len(left_out),
        new_tokens=new_tokens,
    ).write(run.rendered_file)
    model: dict[str, JsonValue] = {
        "id": recipe.model,
        "revision": recipe.revision,
        "sha256": recipe.model_sha256,
        "files": {**model_hashes(base.directory)},
        **({"dequantized_from": scheme.title} if isinstance(scheme := base_facts(base.directory).scheme, Scheme) else {}),
    }
    manifest = dataclasses.replace(run.manifest(), model=model, template_sha256=fingerprint(renderer.template))
    manifest.write(run.manifest_file)
    share = 100 * documents.supervised_tokens / tokens
    apart = f" ({documents.rows:,} rows as {len(documents):,} documents)" if documents.rows < len(documents) else ""
    logger.info(f"render: {tokens:,} train tokens{apart}, {share:.0f} % supervised, longest row {longest}")
    derived = "given" if recipe.task.max_new_tokens else f"longest train answer {longest_answer} + 25 %"
    logger.info(f"render: at most {budget} new tokens an answer ({derived})")


def _count_new_tokens(base: BaseModel, documents: Documents) -> dict[str, int]:
    """How often training predicts each new token; said, and a warning where it never does."""
    grown = base.grown
    if not grown.texts:
        return {}
    counts = dict(zip(grown.texts, documents.supervised_counts(grown.first, len(grown.texts)), strict=True))
    listed = ", ".join(f"{text} {count:,}" for text, count in counts.items())
    logger.info(f"render: new tokens from id {grown.first} on, with how often each is supervised in train: {listed}")
    text = {token.text for token in base.new_tokens if not token.special}
    for token in (token for token, count in counts.items() if not count):
        why = "no answer holds it" if token in text else "the template alone writes it, and never in an answer"
        hint = "" if token in text else "; if it stands in the text of answers, set special: false"
        logger.warning(f"render: {token} is supervised nowhere in train ({why}), so the model will not learn to write it{hint}")
    return counts


def _rendered(recipe: Recipe, base: BaseModel, rows: Path, target: Path, key: str) -> RenderedPart:
    """Put the tokens of one part into the run directory, from the cache where the same rows were rendered before."""
    facts = hardware.cache_dir() / "tokens" / f"{key}.json"

    def make(path: Path) -> None:
        _render_rows(recipe, base, rows, path).write(facts)

    if not facts.exists():
        facts.with_suffix(".arrow").unlink(missing_ok=True)  # tokens without their facts are half a cache entry
    if cached_tokens(key, target, make):
        logger.info(f"render: {rows.stem}: the tokens of these rows are in the cache")
    return RenderedPart.read(facts)


def _render_rows(recipe: Recipe, base: BaseModel, rows: Path, target: Path) -> RenderedPart:
    renderer, of_base, window = base.renderer, base_facts(base.directory), Window(base.directory)
    limit, policy = recipe.train.max_length, recipe.data.on_too_long
    lengths: list[int] = []
    beyond: dict[str, int] = {}  # tokens of rows that the model has no positions for
    left_out: list[LeftOut] = []
    notes: Counter[str] = Counter()
    longest = longest_answer = written = 0
    with DocumentWriter(target) as writer, progress(f"rendering {rows.stem}", rows.stat().st_size) as bar:
        for batch, size in _batched(rows):
            conversations = [Conversation.of(row) for row in batch]
            prompts = [
                dataclasses.replace(c, messages=with_system(c.messages, recipe.task.short_prompt)) for c in conversations
            ]
            for row, fitted in zip(batch, fit(renderer, prompts, limit, policy), strict=True):
                lengths.append(fitted.tokens)
                if fitted.rendered is None:
                    reason = fitted.refused.message if fitted.refused else f"{fitted.tokens} tokens"
                    hint = fitted.refused.hint if fitted.refused else ""
                    left_out.append(LeftOut(id=row.id, place=row.place, reason=reason, hint=hint, tokens=fitted.tokens))
                    continue
                for name in _copies(row):
                    writer.add((name, document.ids, document.supervised) for document in fitted.rendered.documents)
                written += row.repeats
                if of_base.max_positions is not None and fitted.rendered.longest > of_base.max_positions:
                    beyond[row.id] = fitted.rendered.longest
                notes.update([*fitted.rendered.notes, *window.note(fitted.rendered.longest)])
                notes.update(["the oldest turns were dropped to fit train.max_length"] if fitted.dropped_turns else [])
                longest = max(longest, fitted.rendered.longest)
                longest_answer = max(longest_answer, fitted.rendered.last_answer)
            bar.advance(size)
        _refuse_left_out(recipe, rows.stem, left_out, lengths)
        check_lengths(beyond, of_base)
    return RenderedPart(
        rows=written, longest=longest, longest_answer=longest_answer, notes=dict(notes), left_out=tuple(left_out)
    )


def _copies(row: Row) -> list[str]:
    """The name of each time that a row is trained on: documents that stand side by side under one name are one row."""
    return [row.id, *(f"{row.id}#{copy}" for copy in range(2, row.repeats + 1))]


def _refuse_left_out(recipe: Recipe, part: str, left_out: list[LeftOut], lengths: list[int]) -> None:
    """Rows that cannot be rendered or are too long refuse the data, unless the recipe says otherwise."""
    broken = [row for row in left_out if not row.tokens]
    if broken and recipe.data.on_bad_row == "refuse":
        examples = "\n".join(f"row {row.id}, {row.place}: {row.reason}\n    hint: {row.hint}" for row in broken[:20])
        more = f"\n... and {len(broken) - 20:,} more" if len(broken) > 20 else ""
        raise DataError(
            f"{len(broken):,} {part} rows cannot be rendered\n{examples}{more}", "mend them, or set data.on_bad_row: quarantine"
        )
    too_long = [row for row in left_out if row.tokens]
    if too_long and recipe.data.on_too_long == "refuse":
        rows = ", ".join(f"{row.id} ({row.tokens})" for row in too_long[:20])
        more = f" and {len(too_long) - 20:,} more" if len(too_long) > 20 else ""
        raise DataError(
            f"{len(too_long):,} {part} rows are longer than train.max_length {recipe.train.max_length} tokens: {rows}{more}",
            f"train.max_length: {limits(keep_shares(lengths))}; or set data.on_too_long: drop, or drop_oldest_turns",
        )


def _say_notes(parts: dict[str, RenderedPart]) -> None:
    for part, rendered in parts.items():
        for note, count in rendered.notes.items():
            logger.info(f"render: {part}: {count:,} rows: {note}")
        if rendered.left_out:
            logger.info(f"render: {part}: {len(rendered.left_out):,} rows are left out, see data/left_out.jsonl")


def _batched(rows: Path) -> Iterator[tuple[list[Row], int]]:
    """Batches of a JSONL file of our own, each with its share of the file's bytes."""
    with rows.open("rb") as lines:
        share = rows.stat().st_size // max(1, sum(1 for _ in lines))
    stream = stream_rows(rows)
    while batch := list(itertools.islice(stream, BATCH)):
        yield batch, share * len(batch)
