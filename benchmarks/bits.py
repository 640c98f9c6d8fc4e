"""What bits buy: KL to the 16-bit base of one in NF4, with searched scales, and with more bytes for some layers.

    python benchmarks/bits.py base                                   # three models, two tasks; about half an hour on a core
    python benchmarks/bits.py base --models smollm2 --rows us_addresses

Layers are scored on rows that are then left alone, and everything is measured on others, at the tokens that training
supervises: mean KL(base in 16 bits || base so), in nats a token. An arm with a share of bytes more is chosen as the stage
``base`` of a run chooses (``tunesmith.pipeline.base_forms``): by the scores of one pass, of which the dearest twenty are
measured. The share is of the whole frozen base with its tables in 16 bits, as on a GPU, and what that is of the linear layers
alone stands beside it.

Both models come as files that are quantised to 4 bits already, and their 16-bit base is what those amount to: weights that lie
on a grid, which NF4 then rounds to another one. ``smollm2-off-grid`` is the first with noise of 8 % of a row's spread on every
weight, so that nothing lies on a grid any more.

``--single`` raises some layers alone as well, and says whether the scores rank them as the KL does, and whether KLs add up.

A table goes to stdout, and the figures as JSON to ``benchmarks/results/bits-base-DATE.json`` (or ``--out``).
"""

import argparse
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.bits.choose import choose
from tunesmith.bits.mixed import NF4_FORM, MixedBase
from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.hf import Checkpoint
from tunesmith.engines.base import BaseModel, open_base
from tunesmith.engines.score import Pair, Scorer
from tunesmith.kernels.nf4 import NF4, quantize_nf4
from tunesmith.layers.blocks import BlockWeight
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear, QuantizedWeight
from tunesmith.models.mixed import in_16_bits, price, quantized_layers
from tunesmith.pipeline import base_forms as stage
from tunesmith.train.documents import Documents, make_documents, supervised_tokens
from tunesmith.train.scored_rows import packs_of
from tunesmith.train.sensitivity import measure_sensitivity

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = {
    "smollm2": SMOLLM2,
    "smollm2-off-grid": SMOLLM2,
    "gemma3": ROOT / "assets" / "gemma-3-270m-Q4_K_M.gguf",
}
TEMPLATES = {"gemma3": ROOT / "src" / "tunesmith" / "chat" / "templates" / "gemma3.jinja"}
ROWS = {
    "question_types": ROOT / "assets" / "question_types.jsonl",
    "us_addresses": ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl",
}
SHARES = (0.04, 0.08, 0.16)
NOISE = 0.08  # of a row's spread
SCORED, HELD_OUT, ALONE = 4096, 1024, 384  # tokens of the pass, of the measurement, and of one of single layers
SINGLE = 40  # layers that are raised alone, drawn from all

Figures = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model and a task.

    Attributes:
        base: in fp32, as it is measured against.
        documents: rendered rows in a drawn order.
        pairs: supervised spans of held-out rows.
    """

    base: BaseModel
    documents: Documents
    scored: list[int]
    pairs: list[Pair]


def case(model: str, rows: str, folder: Path) -> Case:
    """The case of two names; ``folder`` holds a model that is made here."""
    template = TEMPLATES[model].read_text(encoding="utf-8") if model in TEMPLATES else None
    base = open_base(MODELS[model], template, base="fp32")
    if model.endswith("off-grid"):
        base = open_base(off_grid(base.directory, folder / model), base="fp32")
    data = [json.loads(line) for line in ROWS[rows].read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(data)
    rendered = base.render([{"messages": row["messages"]} for row in data[:1000]])
    documents = make_documents([(each.ids, [int(flag) for flag in each.supervised]) for each in rendered])
    scored = up_to(documents, range(len(documents)), SCORED)
    held_out = up_to(documents, range(scored[-1] + 1, len(documents)), HELD_OUT)
    return Case(base, documents, scored, pairs_of(documents, held_out))


def off_grid(directory: Path, target: Path) -> Path:
    """The model with noise on every linear weight."""
    if not target.exists():
        target.mkdir(parents=True)
        for file in directory.iterdir():
            if file.suffix != ".safetensors":
                (target / file.name).write_bytes(file.read_bytes())
        drawn = torch.Generator().manual_seed(0)
        tensors = load_file(directory / "model.safetensors")
        for name, weight in tensors.items():
            if name.endswith("_proj.weight"):
                spread = weight.std(1, keepdim=True)
                tensors[name] = weight + NOISE * spread * torch.randn(weight.shape, generator=drawn)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def up_to(documents: Documents, order: range, tokens: int) -> list[int]:
    """So many documents as have these tokens."""
    chosen: list[int] = []
    for document in order:
        if chosen and tokens <= 0:
            break
        chosen.append(document)
        tokens -= int(documents.lengths[document])
    return chosen


def pairs_of(documents: Documents, chosen: list[int]) -> list[Pair]:
    """Supervised spans with what stands before them."""
    return [
        (documents.ids(each)[:first].tolist(), documents.ids(each)[first:end].tolist())
        for each in chosen
        for first, end in documents.spans(each).tolist()
    ]


class Bench:
    """A model in NF4 whose layers are put into other forms, and the states of its 16-bit base."""

    def __init__(self, of: Case):
        self.case = of
        self.reference = Scorer(of.base.load().model).last_states(of.pairs).clone()
        self.model: PreTrainedModel = replace(of.base, base="nf4", arithmetic="fp32").load().model
        self.layers = quantized_layers(self.model)
        self.scorer = Scorer(self.model)
        self._checkpoint = Checkpoint(of.base.directory)
        self._kept: dict[tuple[str, str] | None, QuantizedWeight] = {}

    def kl(self) -> float:
        """Of the model as it is now."""
        return float(self.scorer.kl_of_states(self.reference, self.scorer.last_states(self.case.pairs)).mean())

    def put(self, mixed: MixedBase | None) -> None:
        """Every layer into its form; None for NF4 as bitsandbytes has it. Forms with sensitivities stay at hand."""
        for name, layer in self.layers.items():
            key = None if mixed is None or not mixed.sensitivity else (name, mixed.forms.get(name, NF4_FORM))
            layer.weight = self._kept[key] if key in self._kept else self._made(name, layer, mixed)
            if key is not None:
                self._kept[key] = layer.weight

    def _made(self, name: str, layer: QuantizedLinear, mixed: MixedBase | None) -> QuantizedWeight:
        shape = torch.Size((layer.out_features, layer.in_features))
        parts = [part for _, part in self._checkpoint.read_parts(f"{name}.weight", shape)]
        whole = torch.cat([part.reshape(-1) for part in parts]).view(shape)
        q = quantize_nf4(whole) if mixed is None else mixed.quantize(name, [whole], shape, "cpu")
        return NF4Weight(q, whole.dtype) if isinstance(q, NF4) else BlockWeight(q, whole.dtype)

    def keep(self) -> None:
        """What the layers hold now is NF4 searched by the sensitivities."""
        self._kept |= {(name, NF4_FORM): layer.weight for name, layer in self.layers.items()}


def measure(of: Case, single: bool) -> Figures:
    """All arms of a case."""
    bench = Bench(of)
    found: Figures = {"nf4": bench.kl()}
    packs = packs_of(of.documents, of.scored)
    predicted = supervised_tokens(packs)
    began = time.perf_counter()
    sensitivity = measure_sensitivity(bench.model, packs)
    found["pass_seconds"] = round(time.perf_counter() - began, 1)
    found |= {"pass_tokens": sum(pack.ids_1T.shape[1] for pack in packs), "pass_supervised": predicted}
    found["positions"] = len(bench.reference)
    sensitivity = {name: each for name, each in sensitivity.items() if name in bench.layers}
    sizes = {name: (layer.out_features, layer.in_features) for name, layer in bench.layers.items()}
    alike = {name: Sensitivity(torch.ones(outputs), torch.ones(inputs), 1) for name, (outputs, inputs) in sizes.items()}
    bench.put(MixedBase({}, alike))
    found["searched, plain squares"] = bench.kl()
    options = stage.per_token(price(bench.model, of.base.directory, sensitivity), predicted)
    bench.keep()
    found["searched, weighted"] = bench.kl()
    print(f"  {found}", flush=True)
    measured = stage.measured_kls(bench.model, of.base, options, of_pass := stage.pairs_of(of.documents, of.scored))
    corrected, found["rank_correlation_of_20"] = stage.correct(options, measured)
    linear = sum(forms[0].bytes for forms in options.values())
    weights = sum(layer.weight.numel() for layer in bench.layers.values())
    rest = 2 * sum(parameter.numel() for parameter in bench.model.parameters())
    found |= {"linear_bytes": linear, "whole_bytes": linear + rest, "linear_weights": weights}
    for share in SHARES:
        budget = int(linear + share * (linear + rest))
        for words, priced in (("", corrected), (", scores alone", options))[: 2 if share == SHARES[1] else 1]:
            chosen = choose(priced, budget)
            forms = {name: option.form for name, option in chosen.items()}
            bench.put(MixedBase(forms, sensitivity))
            kept = sum(option.bytes for option in chosen.values())
            found[f"+{share:.0%}{words}"] = {
                "kl": bench.kl(),
                "of_linear": round(kept / linear - 1.0, 4),
                "layers": {form: list(forms.values()).count(form) for form in ("nf4", "Q8_0", "BF16")},
                "foretold": sum(option.cost for option in chosen.values()),
            }
            print(f"  +{share:.0%}{words}: {found[f'+{share:.0%}{words}']}", flush=True)
    if single:
        bench.put(MixedBase({}, sensitivity))
        found |= alone(bench, of, {name: forms[0].cost for name, forms in options.items()}, of_pass)
    return found


def alone(bench: Bench, of: Case, costs: Mapping[str, float], pairs: list[Pair]) -> Figures:
    """Some layers raised to 16 bits, each alone and all together: do scores rank like KL, and do KLs add up?"""
    few, tokens = [], 0
    for pair in pairs:
        if tokens >= ALONE:
            break
        few.append(pair)
        tokens += len(pair[0]) + len(pair[1])
    states_ND = bench.scorer.last_states(few).clone()
    kls: dict[str, float] = {}
    names = random.Random(1).sample(list(costs), min(SINGLE, len(costs)))
    for name in names:
        with in_16_bits(bench.model, name, of.base.directory):
            kls[name] = float(bench.scorer.kl_of_states(states_ND, bench.scorer.last_states(few)).mean())
    with contextlib.ExitStack() as raised:
        for name in names:
            raised.enter_context(in_16_bits(bench.model, name, of.base.directory))
        together = float(bench.scorer.kl_of_states(states_ND, bench.scorer.last_states(few)).mean())
    return {
        "spearman_of_single": float(spearmanr([costs[n] for n in names], [kls[n] for n in names])[0]),
        "sum_of_single_kls": sum(kls.values()),
        "kl_together": together,
        "foretold": sum(costs[name] for name in names),
        "single": {name: [costs[name], kls[name]] for name in names},
    }


def table(results: Mapping[str, Figures]) -> str:
    """A line a case."""
    arms = ["nf4", "searched, plain squares", "searched, weighted", *(f"+{share:.0%}" for share in SHARES)]
    lines = ["| case | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for name, figures in results.items():
        kls = [value if isinstance(value := figures[arm], float) else value["kl"] for arm in arms]
        cells = [f"{kl:.4f} ({kl / kls[0] - 1:+.0%})" for kl in kls]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--single", action="store_true", help="measure single layers of the first case too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Figures] = {}
    out = arguments.out or ROOT / "benchmarks" / "results" / f"bits-base-{datetime.now(UTC):%Y-%m-%d}.json"
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            for rows in arguments.rows:
                name = f"{model}, {rows}"
                print(name, flush=True)
                results[name] = measure(case(model, rows, Path(folder)), arguments.single and not results)
                machine = hardware.describe()
                figures = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine.cpu, "cases": results}
                out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
