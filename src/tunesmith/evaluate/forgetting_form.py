"""What the form that ships has forgotten: the probes of ``forgetting.py``, asked of the file and the engine that will answer.

A quantised file is another model than the one in this process, and its engine computes otherwise. So base and form are
compared on the token ids that base and tuned model read: the base as it was trained on, in process, since that is what the
prompts ask that the form has to beat; the form by its own products. What training did and what the file type did are then told
apart, because the tuned model in process stands beside it: a loss that the form alone has is of the file type.

Benchmarks (``evaluate.forgetting.tasks``) are run in process, and count in both verdicts.

**On the same weights the two must agree.** Where nothing was quantised behind the training, a passage's bits per byte differ by
rounding: by 1e-4 of them in F16, by 3e-3 to 5e-3 where llama.cpp rounds the inputs of its products to 8 bits (135M weights; the
mean over passages by 1e-3). From ``FAULT`` on it is neither forgetting nor rounding; it is said, and parity is where to look.

Refused: the base as a GGUF of the same type as the other side, which would take the rounding out of both. Nobody who deploys
the file has that base; the loss is real to him.

Cost: passages, answers and 40 short continuations, 5,800 tokens in all, with one forward pass each: answers to one question
read it once. The base's distributions are kept meanwhile: 0.1 GB at 49 k tokens, 0.7 GB at 262 k.

Shape suffixes: N rows (positions of everyday requests), V vocabulary; here: P passages, Q questions, A answers of each.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tunesmith.engines.form import FormModel
from tunesmith.errors import ExportError
from tunesmith.evaluate.forgetting import Measured, kl_between, side_of
from tunesmith.evaluate.probes import Probes
from tunesmith.rundir.records.evidence import Forgetting, Forgotten

FAULT = 0.01  # share of a passage's bits per byte: half of the usual margin


def measure_form(form: FormModel, measured: Measured, probes: Probes, advance: Callable[[int], None]) -> Measured:
    """The base beside the form, on the ids that base and tuned model read.

    Args:
        measured: in process, with the base's distributions.
        advance: called with the number of texts done, of ``texts_of`` in all.

    Raises:
        ExportError: the form cannot compute them, or its numbers are not finite.
    """
    assert measured.log_p_NV is not None, "measured without keep"
    tuned = side_of(form.continuation_logprobs(measured.pairs, advance), probes)
    if not (np.isfinite(tuned.bits_P).all() and np.isfinite(tuned.logprob_QA).all()):
        raise ExportError("forgetting: what the deployed form computes is not finite", "run: tunesmith parity RUN")
    distances: list[Tensor] = []
    lengths = [len(continuation) for _, continuation in measured.rows]
    for (prompt, continuation), log_p_NV in zip(measured.rows, measured.log_p_NV.split(lengths), strict=True):
        logits_NV = torch.from_numpy(form.logits([*prompt, *continuation[:-1]], len(prompt) - 1))
        distances.append(kl_between(log_p_NV, torch.log_softmax(logits_NV, -1)))
        advance(1)
    return replace(measured, tuned=tuned, kl_N=torch.cat(distances), log_p_NV=None)


def texts_of(measured: Measured) -> int:
    """How many texts a form is asked."""
    return len(measured.pairs) + len(measured.rows)


def longest_of(measured: Measured) -> int:
    """Tokens of the longest of them."""
    return max(len(context) + len(continuation) for context, continuation in (*measured.pairs, *measured.rows))


def bits_added(in_process: Measured, of_form: Measured) -> float:
    """What the form adds to the tuned model's bits per byte in process, as a share of them."""
    return float(of_form.tuned.bits_P.mean() / in_process.tuned.bits_P.mean()) - 1.0


def bits_off(in_process: Measured, of_form: Measured) -> float:
    """How far a passage's bits per byte are from those in process, up or down, as a share of them."""
    tuned_P = in_process.tuned.bits_P
    return float(np.abs(of_form.tuned.bits_P - tuned_P).mean() / tuned_P.mean())


def conclude_form(of_form: Forgetting, in_process: Forgetting, name: str, added: float, off: float | None) -> Forgetting:
    """The verdict of the form, with that of the model in process beside it.

    Args:
        of_form, in_process: what ``conclude`` makes of both.
        name: of the form.
        added: what ``bits_added`` gave.
        off: what ``bits_off`` gave, of a form with the weights that were trained; None where they were quantised after that.
    """
    reason = f"{name}: {of_form.reason}"
    if of_form.verdict != in_process.verdict:
        reason += f"; the model in process: {in_process.verdict} ({in_process.reason})"
    if of_form.verdict == "regression" != in_process.verdict and off is None:
        reason += f"; the file adds {100 * added:.1f} % to its bits per byte, export.gguf: [Q8_0] adds hardly any"
    if off is not None and off >= FAULT:
        reason += (
            f"; a fault of parity: {name} has the weights that were trained, and its bits per byte are {100 * off:.1f} % "
            "from those in process; look at tunesmith parity"
        )
    beside = Forgotten(
        verdict=in_process.verdict, reason=in_process.reason, probes=in_process.probes, figures=in_process.figures
    )
    return replace(of_form, reason=reason, form=name, bits_added=added, in_process=beside)
