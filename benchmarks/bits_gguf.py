"""What a GGUF file loses of its model, type by type: a type for each tensor and the importance matrix against the plain types.

    python benchmarks/bits_gguf.py --off-grid             # both models, both tasks
    python benchmarks/bits_gguf.py --model smollm --task questions
    python benchmarks/bits_gguf.py --merged runs/X/export/merged --task questions   # a tuned model

For each model and task: tensors are scored, and the importance matrix is collected, on the first rows of the task; every type
is written from the model's 16-bit GGUF, the quantiser weighing no columns (``plain``), by the importance matrix, or by the
inputs as the scores have them; and the values of the file take the place of the model's weights, which then answers other rows
of the task. Printed are the bytes, and the mean KL of the model to the model with the file's values, nats a supervised token;
``less`` is how much less KL a dynamic type has than the plain type of its size, with a 95 % interval over rows (bootstrap).
``expected`` is the KL that the rounding costs foretold.

Computed in fp32 (the scores in bf16) by the same stack on both sides, so that the file's values differ and nothing else. A
table goes to stdout and, with the weights in each type, into ``benchmarks/results/bits-gguf-DATE.json`` (or ``--out``), which
is added to, cell by cell.

Both models' own files are 4-bit already, and the 16-bit model here is their values. Such weights lie on a grid, and the type
that has this grid rounds nothing: SmolLM2's layers are Q4_1, which no plain type brings back and a choice of types does.
``--off-grid`` adds noise as large as that file's own rounding, so that weights are spread as those of a 16-bit checkpoint are.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.checkpoints.gguf_write.quantize import Importance, quantize
from tunesmith.checkpoints.gguf_write.rounding import Rounding, rounding_costs
from tunesmith.checkpoints.gguf_write.types import DENSE
from tunesmith.checkpoints.gguf_write.unpack import values_of
from tunesmith.checkpoints.resolve import find_model
from tunesmith.engines.base import open_base
from tunesmith.export.gguf.imatrix import choose, collect
from tunesmith.export.gguf.lora import gguf_names
from tunesmith.export.gguf.scores import choose_types, chosen_types, column_weights, read_scores, row_order, write_scores
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, decoder, head_weight, load_model
from tunesmith.pipeline.own_loop import render
from tunesmith.recipe.run import plain_type
from tunesmith.train.documents import Documents, make_documents, make_pack, supervised_tokens
from tunesmith.train.sensitivity import measure_sensitivity
from tunesmith.train.step import step_packs

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "smollm": (ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf", None),
    "gemma": (ROOT / "assets" / "gemma-3-270m-Q4_K_M.gguf", "gemma3"),
}
TASKS = {
    "questions": (ROOT / "assets" / "question_types.jsonl", "Kind of answer?"),
    "addresses": (ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl", "Address to JSON."),
}
TYPES = ("Q3_K_M", "dynamic-Q3_K_M", "Q4_K_M", "dynamic-Q4_K_M", "Q5_K_M")
PACK = 1024  # tokens of a pass
NOISE, NOISE_OF_TABLE = 0.09, 0.007  # of a block's root mean square: what rounding to Q4_1 and to Q8_0 leaves
DRAWS = 2000


class Held(NamedTuple):
    """Held-out rows as the unquantised model answers them.

    Attributes:
        packs: of the rows.
        row_N: number of the row of each supervised token.
        logprob_NV: of the model, fp32.
    """

    packs: list[Any]
    row_N: np.ndarray
    logprob_NV: Tensor


def rows_of(model: str | Path, template: str | None, task: str) -> tuple[Any, Documents]:
    """The open model and the rendered rows of a task, the short prompt in front."""
    path, prompt = TASKS[task]
    text = None
    if template is not None:
        text = (ROOT / "src" / "tunesmith" / "chat" / "templates" / f"{template}.jinja").read_text(encoding="utf-8")
    base = open_base(model, text)
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    rendered = render([{"messages": [{"role": "system", "content": prompt}, *messages]} for messages in rows], base)
    return base, make_documents([(row.ids, row.supervised) for row in rendered])


def off_grid(source: Path, target: Path) -> Path:
    """A model directory whose weights lie on no grid: noise as large as 4-bit rounding, block by block, one draw."""
    target.mkdir()
    draw = torch.Generator().manual_seed(0)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).symlink_to(file.resolve())
            continue
        state = load_file(file)
        for name, weight in state.items():
            if weight.ndim == 2:
                share = NOISE if ".layers." in name else NOISE_OF_TABLE
                block = weight.float().reshape(-1, 32)
                noise = (2 * torch.rand(block.shape, generator=draw) - 1) * 3**0.5 * block.square().mean(1, keepdim=True).sqrt()
                state[name] = (block + share * noise).reshape(weight.shape).to(weight.dtype)
        save_file(state, target / file.name, {"format": "pt"})
    return target


def part(documents: Documents, first: int, last: int) -> Documents:
    """Some rows."""
    pairs = []
    for number in range(first, min(last, len(documents))):
        marks = np.zeros(documents.lengths[number], np.int64)
        for begin, end in documents.spans(number).tolist():
            marks[begin:end] = 1
        pairs.append((documents.ids(number), marks))
    return make_documents(pairs)


@torch.no_grad()
def logprobs(model: PreTrainedModel, packs: Sequence[Any]) -> Iterator[Tensor]:
    """Log-probabilities at the positions that predict, shape (N, V), a pack at a time."""
    with attention(model, PACKED):
        for pack in packs:
            hidden_TD = decoder(model)(
                input_ids=pack.ids_1T, position_ids=pack.position_1T, spans=pack.spans, use_cache=False
            ).last_hidden_state[0]
            logits_NV = torch.nn.functional.linear(hidden_TD[pack.predict_N], head_weight(model)).float()
            yield torch.log_softmax(logits_NV, -1)


def held_out(model: PreTrainedModel, documents: Documents, rows: int, tokens: int) -> Held:
    """What the model says of the first rows, as many as do not have more supervised tokens than these."""
    counts = [int(np.diff(documents.spans(row)).sum()) for row in range(len(documents))]
    rows = min(rows, int(np.searchsorted(np.cumsum(counts), tokens)))
    packs: list[list[int]] = [[]]
    for row in range(rows):
        if sum(int(documents.lengths[each]) for each in [*packs[-1], row]) > PACK:
            packs.append([])
        packs[-1].append(row)
    made = [make_pack(documents, rows) for rows in packs if rows]
    return Held(made, np.repeat(np.arange(rows), counts[:rows]), torch.cat(list(logprobs(model, made))))


def kl_of(model: PreTrainedModel, held: Held) -> tuple[np.ndarray, float]:
    """KL a supervised token to another model's answers, and the share of tokens with the same first guess."""
    found, same, at = [], 0, 0
    for other_NV in logprobs(model, held.packs):
        ours_NV = held.logprob_NV[at : at + len(other_NV)]
        found.append((ours_NV.exp() * (ours_NV - other_NV)).sum(-1).double().numpy())
        same += int((ours_NV.argmax(-1) == other_NV.argmax(-1)).sum())
        at += len(other_NV)
    return np.concatenate(found), same / at


def matrices(model: PreTrainedModel, source: Path) -> dict[str, tuple[Tensor, np.ndarray]]:
    """The model's matrix of each tensor of the 16-bit file, and the order of its rows there."""
    reader = GgufReader(source)
    names = gguf_names(reader.value("general.architecture"), model.config.get_text_config().num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name, weight in model.named_parameters():
        tensor = names.get_name(name.removesuffix(".weight") + ".weight", try_suffixes=(".weight",))
        if weight.ndim == 2 and tensor in tensors:
            order = row_order(tensors[tensor].data, weight.data.half().numpy())
            assert order is not None, f"{name}: other rows than {tensor}"
            found[tensor] = (weight.data, order)
    return found


def put(file: Path, into: dict[str, tuple[Tensor, np.ndarray]]) -> None:
    """The values of a file in the place of the model's weights."""
    for tensor in GgufReader(file).tensors:
        if tensor.name in into:
            weight, order = into[tensor.name]
            kind = tensor.tensor_type
            raw = np.array(tensor.data)  # a copy: the file is mapped to be read
            values = torch.from_numpy(raw).float() if kind in DENSE else values_of(raw.reshape(-1), kind, weight.shape[1])
            weight[torch.from_numpy(order)] = values.reshape(weight.shape)


class Measured(NamedTuple):
    """What was found on the first rows.

    Attributes:
        scores: by tensor.
        weights: importance matrices by name: ``imatrix`` has the mean squares of the inputs, ``scores`` those that tensors are
            scored with, in which a token counts by its gradient.
        predicted: supervised tokens of the pass.
    """

    scores: dict[str, list[Sensitivity]]
    weights: dict[str, Importance | None]
    predicted: int


def measured(documents: Documents, tokens: int, source: Path, merged: Path) -> Measured:
    """Scores and importance matrices over the first rows, in bf16."""
    rows, model = choose(documents.lengths, tokens), load_model(merged, "bf16")
    packs = step_packs(documents, [tuple(rows)], max(PACK, int(documents.lengths.max())))
    path = source.with_suffix(".scores.safetensors")
    write_scores(path, measure_sensitivity(model, packs), source, merged)
    scores = read_scores(path)
    collected = collect(model, (documents.ids(row).tolist() for row in rows), GgufReader(source).value("general.architecture"))
    weights = {"plain": None, "imatrix": collected.values, "scores": column_weights(scores)}
    return Measured(scores, weights, supervised_tokens(packs))


def less(plain_N: np.ndarray, dynamic_N: np.ndarray, row_N: np.ndarray) -> tuple[float, float, float]:
    """How much less KL, as a share, with its interval over rows."""
    rows = int(row_N.max()) + 1
    sums = np.stack([np.bincount(row_N, kl_N, rows) for kl_N in (plain_N, dynamic_N)])
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    drawn = counts @ sums.T
    low, high = np.quantile(1 - drawn[:, 1] / drawn[:, 0], [0.025, 0.975])
    return 1 - dynamic_N.sum() / plain_N.sum(), float(low), float(high)


def cell(model_name: str, task: str, given: argparse.Namespace, folder: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """All types of one model on one task; what there is is saved after each way to weigh columns."""
    path, template = MODELS[model_name]
    base, documents = rows_of(given.merged or path, None if given.merged else template, task)
    merged = base.directory if given.merged else find_model(str(path))
    train, test = part(documents, 0, given.train_rows), part(documents, given.train_rows, len(documents))
    if given.off_grid:
        merged = off_grid(merged, folder / "model")
    source = folder / "half.gguf"
    convert(merged, source, "F16")
    started = time.monotonic()
    on_train = measured(train, given.tokens, source, merged)
    seconds = {"scores": time.monotonic() - started}
    model = load_model(merged, "fp32")
    held = held_out(model, test, given.rows, given.supervised)
    into = matrices(model, source)
    results: dict[str, Any] = {}
    for weights in given.weights:
        imatrix = on_train.weights[weights]
        started = time.monotonic()
        rounding = rounding_costs(source, on_train.scores, imatrix)
        seconds[f"rounding, {weights}"] = time.monotonic() - started
        found: dict[str, np.ndarray] = {}
        for kind in given.types:
            entry = one_type(kind, source, folder, rounding, imatrix, on_train, held, model, into, found)
            results[f"{kind}, {weights}"] = entry
            print(line(kind, weights, entry), flush=True)
        save(
            {
                "rows": len(train),
                "scored_tokens": max(score.tokens for parts in on_train.scores.values() for score in parts),
                "held_out_tokens": len(held.row_N),
                "held_out_rows": int(held.row_N.max()) + 1,
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
                "types": results,
            }
        )


def one_type(
    kind: str,
    source: Path,
    folder: Path,
    rounding: Rounding,
    imatrix: Importance | None,
    on_train: Measured,
    held: Held,
    model: PreTrainedModel,
    into: dict[str, tuple[Tensor, np.ndarray]],
    found: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Write a type, and what the model is with its values."""
    plain, file = plain_type(kind), folder / "type.gguf"
    choice = choose_types(source, rounding, kind, imatrix is not None)
    chosen = chosen_types(choice) if plain != kind else None
    written = quantize(source, file, plain, imatrix, chosen=chosen)
    put(file, into)
    found[kind], same = kl_of(model, held)
    cost = choice.cost if chosen else choice.plain_cost
    entry: dict[str, Any] = {
        "bytes": written.bytes,
        "bits_per_weight": written.bits_per_weight,
        "kl": float(found[kind].mean()),
        "expected": cost / 2 / on_train.predicted,
        "same_guess": same,
        "types": written.types,
    }
    if chosen:
        entry["less"] = less(found[plain], found[kind], held.row_N)
    return entry


def line(kind: str, weights: str, entry: dict[str, Any]) -> str:
    """A row of the table."""
    told = ""
    if "less" in entry:
        told = "  less {:+.1%} ({:+.1%} to {:+.1%})".format(*(-value for value in entry["less"]))
    return (
        f"{kind:15} {weights:8} {entry['bytes'] / 1e6:8.2f} MB {entry['bits_per_weight']:6.3f} bits  "
        f"KL {entry['kl']:.5f} (expected {entry['expected']:.5f})  same guess {entry['same_guess']:.1%}{told}"
    )


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--merged", type=Path, help="directory of a tuned model, in the place of --model's")
    parser.add_argument("--off-grid", action="store_true", help="move the weights off the grid of the 4-bit file they are from")
    parser.add_argument("--types", nargs="+", default=TYPES, help="a plain type before its dynamic one")
    parser.add_argument("--weights", nargs="+", default=("plain", "imatrix", "scores"), help="of columns in the quantiser")
    parser.add_argument("--train-rows", type=int, default=1000, help="the first, by which tensors are scored")
    parser.add_argument("--tokens", type=int, default=16_384, help="of them, by which tensors are scored")
    parser.add_argument("--rows", type=int, default=200, help="held out, at most")
    parser.add_argument("--supervised", type=int, default=800, help="tokens of their answers, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"bits-gguf-{date.today()}.json")
    given = parser.parse_args()
    for name in given.model or MODELS:
        for task in given.task or TASKS:
            label = (
                f"{given.merged.parent.parent.name if given.merged else name}, {task}{', off grid' if given.off_grid else ''}"
            )
            print(label, flush=True)

            def save(result: dict[str, Any], label: str = label) -> None:
                record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
                given.out.write_text(json.dumps(record | {label: result}, indent=1) + "\n", encoding="utf-8")

            with tempfile.TemporaryDirectory(prefix="tunesmith-bits-") as folder:
                cell(name, task, given, Path(folder), save)


if __name__ == "__main__":
    main()
