"""What a GPU does before and after training: weights on their way to it, and answers token by token.

*Load.* A checkpoint's weights are copied to the card and quantised there. The copy is timed from ordinary and from pinned
memory, the quantiser on one weight of the model; what a model takes is foretold from the two, the disk left out.

*Decode.* The same prompts are answered by the base and by the model with an adapter, at several batch sizes, every step
launched from Python and then with steps recorded as CUDA graphs, recording and proof included (``engines/step_graph.py``). The
answers have to be the same. A new token of a batch reads every weight once: bytes over the card's measured copy bandwidth are
the floor.
"""

import time
from typing import Any
from unittest.mock import patch

import torch
from gpu_kernels import seconds
from gpu_step import RANK, random_model

Figures = dict[str, Any]

PROMPT, NEW = 256, 64  # tokens; as many as a graph is replayed for at least where answers are long


def measure_load(shape: dict[str, Any], device: str, nbytes: int = 1 << 30) -> Figures:
    """Bytes a second to the card, weights a second through the quantiser, and the seconds that the two take for the model."""
    from tunesmith.kernels.nf4 import quantize_nf4

    host = torch.zeros(nbytes, dtype=torch.uint8)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    found: Figures = {"pageable_bytes_per_second": nbytes / seconds(lambda: target.copy_(host), device, 3)}
    pinned = host.pin_memory() if device == "cuda" else host
    found["pinned_bytes_per_second"] = nbytes / seconds(lambda: target.copy_(pinned, non_blocking=True), device, 3)
    weight = torch.empty(shape["intermediate_size"], shape["hidden_size"], dtype=torch.bfloat16, device=device).normal_()
    taken = seconds(lambda: quantize_nf4(weight), device, 3)
    found["weights_per_second"] = weight.numel() / taken
    weights = linear_weights(shape)
    foretold = 2 * weights / found["pageable_bytes_per_second"] + weights / found["weights_per_second"]
    return found | {"weights": weights, "foretold_seconds": foretold}


def linear_weights(shape: dict[str, Any]) -> int:
    """Weights of the linear layers that are quantised: attention and MLP."""
    hidden, width = shape["hidden_size"], shape["head_dim"]
    heads = 2 * shape["num_attention_heads"] + 2 * shape["num_key_value_heads"]
    return shape["num_hidden_layers"] * hidden * (heads * width + 3 * shape["intermediate_size"])


def measure_decode(
    shape: dict[str, Any],
    device: str,
    card: dict[str, float],
    rows: int,
    adapted: bool,
    graphs: bool,
    prompt: int = PROMPT,
    new: int = NEW,
) -> tuple[Figures, list[list[int]]]:
    """New tokens a second, and the share of the floor, of a model with its linear layers in NF4; and its answers.

    Args:
        graphs: whether steps are recorded.
    """
    from tunesmith.engines import decode, step_graph
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora

    model = random_model(shape, device, True)
    if adapted:
        add_lora(model, Lora(r=RANK, alpha=32, dropout=0.0), 0)
    model.eval()
    prompts = [[3 + number] * prompt for number in range(rows)]
    taken, answers, used = {}, [], []

    def recorder(of: Any) -> Any:
        used.append(step_graph.graphs_of(of) if graphs else None)
        return used[-1]

    for count in (1, new + 1, 1, new + 1):  # the first two make what is made once
        started = time.perf_counter()
        with patch.object(decode, "graphs_of", recorder):
            answers = [answer.ids for answer in decode.greedy(model, prompts, decode.StopRule(count, []), rows)]
        if device == "cuda":
            torch.cuda.synchronize()
        taken[count] = time.perf_counter() - started
    of_token = max((taken[new + 1] - taken[1]) / new, 1e-9)
    tensors = [*model.parameters(), *model.buffers()]
    table = model.get_input_embeddings().weight  # type: ignore[union-attr]
    is_tied = table is model.get_output_embeddings().weight  # type: ignore[union-attr]
    read = sum(t.nbytes for t in tensors) - (0 if is_tied else table.nbytes)
    floor = read / card["bytes_per_second"]
    figures = {"rows": rows, "adapter": adapted, "graphs": graphs}
    figures |= {"recorded": all(one is not None and one.is_on for one in used)}
    figures |= {"prefill_seconds": taken[1], "tokens_per_second": rows / of_token}
    return figures | {"floor_seconds": floor, "share_of_floor": floor / of_token}, answers
