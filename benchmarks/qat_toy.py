"""Where training onto a grid helps and where it does not: one linear layer of 256 x 256, rank 8, deployed in Q4_0.

    python benchmarks/qat_toy.py     # half a minute on a core

A layer W is tuned towards W + D, D of rank 8 and some share of W's spread, on inputs whose columns do or do not correlate. The
figure is the mean squared error of the deployed layer's outputs (the base's grid kept by both): trained plainly and rounded at
the end, or trained rounded. Rounding to the nearest code is already best where columns do not correlate, since errors cannot
make up for each other; so there QAT has nothing to win, and what oscillates about a boundary costs a tenth. A base that lies
on the grid already (a QAT release, a GGUF) moves only by whole steps: an update of less than half a step is lost by plain
rounding, and makes QAT worse than no training at all where the update is small.
"""

import itertools
import statistics

import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor, nn

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.kernels.grid import grid_of, round_to_grid
from tunesmith.layers.grid import GridBase, GridLinear
from tunesmith.layers.lora import LoRALinear

WIDTH, RANK, STEPS, ROWS, RATE = 256, 8, 400, 64, 3e-3


def measure(correlated: bool, on_grid: bool, share: float, seed: int) -> dict[str, float]:
    """Errors of the deployed layer: untrained, trained plainly, trained onto the grid."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight_OI = normal(WIDTH, WIDTH) * WIDTH**-0.5
    raw = torch.from_numpy(ggml().quantize(weight_OI.numpy(), Type.Q4_0, None)).view(WIDTH, -1)
    like = Blocks(raw, "Q4_0", (WIDTH, WIDTH))
    if on_grid:
        weight_OI = dequantize_blocks(like, torch.float32)
    target_OI = weight_OI + normal(WIDTH, RANK) @ normal(RANK, WIDTH) * (share * (WIDTH * RANK) ** -0.5)
    mix_II = normal(WIDTH, WIDTH) * torch.logspace(0, -2, WIDTH) if correlated else torch.eye(WIDTH)
    mix_II *= (WIDTH / mix_II.square().sum()).sqrt()
    test_NI = normal(4096, WIDTH) @ mix_II.T

    def deployed(A_RI: Tensor | None, B_OR: Tensor | None) -> float:
        held_OI = round_to_grid(weight_OI, A_RI, B_OR, 2.0, grid_of(like), torch.empty(WIDTH, WIDTH))
        return float((test_NI @ (held_OI - target_OI).T).square().mean())

    found = {"untrained": deployed(None, None)}
    for method in ("plain", "qat"):
        torch.manual_seed(seed)
        base = nn.Linear(WIDTH, WIDTH, bias=False)
        base.weight.data = weight_OI.clone()
        layer = GridLinear(GridBase(base, like), RANK, 2.0, 0.0) if method == "qat" else LoRALinear(base, RANK, 2.0, 0.0)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
        generator.manual_seed(seed + 1)
        for _ in range(STEPS):
            x_NI = normal(ROWS, WIDTH) @ mix_II.T
            loss = (layer(x_NI) - x_NI @ target_OI.T).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
        found[method] = deployed(layer.lora_A.detach(), layer.lora_B.detach())
    return found


def main() -> None:
    """Print the table in Markdown."""
    print("| inputs | base | update, share of W | untrained | plain, then rounded | QAT | QAT over plain |")
    print("|---|---|---|---|---|---|---|")
    for correlated, on_grid, share in itertools.product((False, True), (False, True), (0.02, 0.1, 0.3)):
        seeds = [measure(correlated, on_grid, share, seed) for seed in range(2)]
        untrained, plain, qat = (statistics.fmean(one[name] for one in seeds) for name in ("untrained", "plain", "qat"))
        words = f"{'correlated' if correlated else 'isotropic'} | {'on the grid' if on_grid else 'off it'}"
        print(f"| {words} | {share:.0%} | {untrained:.5f} | {plain:.5f} | {qat:.5f} | {qat / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
