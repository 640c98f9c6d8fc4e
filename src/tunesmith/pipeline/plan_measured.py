"""What a plan measures of the machine: of a GPU its free memory, a process's context and two rates; of a CPU its products.

The context is what the card has lost and the allocator does not hold, read behind the first kernel: it depends on the card, the
driver and what is loaded, so no table has it. The rates are those of one product of a common shape and of one pinned copy.
A second or two in all.
"""

import time
from collections.abc import Callable

import torch

from tunesmith import hardware
from tunesmith.memory.cards import find_card
from tunesmith.memory.plan import Rates
from tunesmith.models.device import best_device, context_bytes, device_memory, device_name, usable_memory
from tunesmith.models.precision import probe
from tunesmith.pipeline.plan import Measured

SIDE, ROUNDS = 4096, 8  # of a product's square matrices
COPY = 256 * 2**20  # bytes


def gpu() -> Measured | None:
    """The GPU that training would use; None where there is none."""
    if not torch.cuda.is_available():
        return None
    device = best_device()
    dtype = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    square = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    product = 2 * SIDE**3 * ROUNDS / _seconds(lambda: [square @ square for _ in range(ROUNDS)])
    context = context_bytes(device)
    staged = torch.empty(COPY, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(COPY, dtype=torch.uint8, device=device)
    link = COPY / _seconds(lambda: there.copy_(staged, non_blocking=True))
    card = find_card(device_name(device))
    rates = None if card is None else Rates(card=card, product=product, link=link, measured=True)
    return Measured(
        name=device_name(device),
        memory=min(usable_memory(device) + context, device_memory(device)),
        context=context,
        compute="bf16" if dtype == torch.bfloat16 else "fp16",
        rates=rates,
    )


def cpu(hidden: int, intermediate: int) -> dict[str, float]:
    """FLOP a second of the products of such a layer, by dtype, one thread a physical core."""
    torch.set_num_threads(hardware.physical_cores())
    return {name: 1e9 * rate for name, rate in probe(hidden, intermediate).items()}


def _seconds(work: Callable[[], object]) -> float:
    work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun
