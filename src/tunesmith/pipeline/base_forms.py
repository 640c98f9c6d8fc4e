"""The stage ``base``: what each layer of a base in NF4 is kept in, under ``base_budget``.

One forward and one backward pass over some train rows score every linear layer (``train/sensitivity.py``), every form of it is
priced, and a knapsack spends the budget (``bits/choose.py``). The scores are the loss's view of each layer alone; the dearest
``CONFIRMED`` are measured, as the KL between the base in NF4 and the base with that layer in 16 bits, and what was measured
takes the place of what was foretold; the others are scaled by the median of what was measured over what was foretold.

The choice lies in ``data/`` with the sensitivities, which the search of the NF4 scales needs again whenever the base is loaded:
every stage, every process and every inner run reads it there, and nobody chooses twice.

Cost: about as much as training on the rows of the pass (``train/scored_rows.py``), every layer rounded to three forms, and
``CONFIRMED`` forward passes over ``CONFIRMED_TOKENS``.

Shape suffixes: T tokens, N rows (positions that predict), D hidden size.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from tunesmith.bits.choose import Option, choose
from tunesmith.bits.sensitivity import save_sensitivity
from tunesmith.checkpoints.hf import Checkpoint
from tunesmith.engines.base import BaseModel
from tunesmith.engines.score import Pair, Scorer
from tunesmith.formatting import gb
from tunesmith.models.mixed import frozen_bytes, in_16_bits, price, quantized_layers, refuse_nf4
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.dials import spare_bytes
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.recipe.budget import budget_bytes, too_small
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.base_forms import BaseForms, BaseModule
from tunesmith.tracking import progress
from tunesmith.train.documents import Documents, supervised_tokens
from tunesmith.train.scored_rows import packs_of, scored_rows
from tunesmith.train.sensitivity import measure_sensitivity

logger = logging.getLogger(__name__)

CONFIRMED, CONFIRMED_TOKENS = 20, 512
Options = Mapping[str, tuple[Option, ...]]


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Choose; writes ``data/base.json`` and ``data/base_sensitivity.safetensors``.

    Raises:
        RecipeError: a budget below what the base takes in NF4.
        ModelError: a base that lies in NF4 already, or that cannot be loaded.
        DataError: no train row to score the layers with.
    """
    assert recipe.base_budget is not None
    base = replace(base_of(run, recipe), budget=None)
    refuse_nf4(Checkpoint(base.directory))
    spare = spare_bytes(base, recipe) if recipe.base_budget == "auto" else 0  # of what is free before anything is loaded
    model = base.load().model
    nf4_bytes = frozen_bytes(model)
    allowed = budget_bytes(recipe.base_budget, nf4_bytes, spare)
    if allowed < nf4_bytes:
        raise too_small(recipe.base_budget, nf4_bytes)
    documents = Documents.open(run.tokens("train"))
    rows = scored_rows(documents, recipe.seed)
    packs = packs_of(documents, rows)
    predicted = supervised_tokens(packs)
    with progress("base: scoring", len(packs)) as bar:
        everything = measure_sensitivity(model, packs, recipe.seed, lambda _: bar.advance())
    weights = {name: layer.weight.numel() for name, layer in quantized_layers(model).items()}
    sensitivity = {name: each for name, each in everything.items() if name in weights}
    save_sensitivity(run.base_sensitivity_file, sensitivity)
    options = per_token(price(model, base.directory, sensitivity), predicted)
    measured = measured_kls(model, base, options, pairs_of(documents, rows))
    corrected, correlation = correct(options, measured)
    linear = sum(forms[0].bytes for forms in options.values())
    chosen = choose(corrected, linear + allowed - nf4_bytes)
    modules = tuple(
        BaseModule(
            module=name,
            form=option.form,
            weights=weights[name],
            bytes=option.bytes,
            kl=option.cost,
            nf4_kl=corrected[name][0].cost,
            measured=measured.get(name),
        )
        for name, option in chosen.items()
    )
    forms = BaseForms(
        budget=recipe.base_budget,
        budget_bytes=allowed,
        nf4_bytes=nf4_bytes,
        bytes=nf4_bytes - linear + sum(option.bytes for option in chosen.values()),
        rows=len(rows),
        tokens=sum(pack.ids_1T.shape[1] for pack in packs),
        rank_correlation=correlation,
        modules=modules,
    )
    forms.write(run.base_forms_file)
    manifest = run.manifest()
    replace(manifest, model={**manifest.model, "base_forms": forms.summary}).write(run.manifest_file)
    agreed = "" if correlation is None else f"; {len(measured)} layers measured, rank correlation {correlation:.2f}"
    logger.info(f"base: {forms.words}{agreed}; budget {recipe.base_budget}, {gb(allowed)}")


def correct(options: Options, measured: Mapping[str, float]) -> tuple[Options, float | None]:
    """Options with what was measured in the place of what was foretold, and Spearman's correlation of the two.

    Args:
        options: by module, the first one in NF4; costs as foretold.
        measured: of some modules, what the rounding to NF4 costs.
    """
    ratios = {name: value / options[name][0].cost for name, value in measured.items() if options[name][0].cost > 0}
    scale = statistics.median(ratios.values()) if ratios else 1.0
    corrected = {
        name: tuple(option._replace(cost=option.cost * ratios.get(name, scale)) for option in forms)
        for name, forms in options.items()
    }
    if len(ratios) < 3:
        return corrected, None
    costs = _first_costs(options)
    first, second = (np.argsort(np.argsort([value[name] for name in ratios])) for value in (measured, costs))
    return corrected, float(np.corrcoef(first, second)[0, 1])


def _first_costs(options: Options) -> dict[str, float]:
    return {name: forms[0].cost for name, forms in options.items()}


def per_token(options: Options, predicted: int) -> Options:
    """Half the cost, a supervised token: KL in nats.

    Args:
        options: by module, with the costs of a whole pass.
        predicted: supervised tokens of the pass.
    """
    return {
        name: tuple(option._replace(cost=0.5 * option.cost / predicted) for option in forms) for name, forms in options.items()
    }


def measured_kls(model: PreTrainedModel, base: BaseModel, options: Options, pairs: Sequence[Pair]) -> dict[str, float]:
    """KL of the dearest layers: each alone in 16 bits, against all in NF4.

    Args:
        model: in searched NF4; it is that again afterwards.
        base: that it was loaded from.
        options: by module, the first one in NF4.
        pairs: that KL is measured on.
    """
    costs = _first_costs(options)
    dearest = sorted((name for name in costs if costs[name] > 0), key=lambda name: (-costs[name], name))[:CONFIRMED]
    scorer = Scorer(model)
    found: dict[str, float] = {}
    with progress("base: measuring", len(dearest)) as bar:
        states_ND = scorer.last_states(pairs).clone()
        for name in dearest:
            with in_16_bits(model, name, base.directory):
                found[name] = max(0.0, float(scorer.kl_of_states(states_ND, scorer.last_states(pairs)).mean()))
            bar.advance()
    return found


def pairs_of(documents: Documents, rows: Sequence[int]) -> list[Pair]:
    """Supervised spans with what stands before them, of so many rows as the measurement takes; the last ones of the pass."""
    pairs: list[Pair] = []
    tokens = 0
    for document in reversed(rows):
        ids = documents.ids(document).tolist()
        tokens += len(ids)
        if pairs and tokens > CONFIRMED_TOKENS:
            break
        spans = [(max(first, 1), end) for first, end in documents.spans(document).tolist()]  # nothing predicts the first token
        pairs += [(ids[:first], ids[first:end]) for first, end in spans if first < end]
    return pairs
