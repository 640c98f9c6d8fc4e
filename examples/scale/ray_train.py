"""A run on the workers of Ray Train, which starts the processes, restarts them and says where they are.

    python examples/scale/ray_train.py recipe.yaml /shared/runs/mine --workers 2 --gpu

Ray sets what torchrun sets, and a process group that is there is taken. The run directory must lie on a disk that all workers
share: a worker that dies costs the steps since the newest checkpoint, whatever number of workers comes back.
"""

import argparse
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig  # pyright: ignore[reportMissingImports]
from ray.train.torch import TorchTrainer  # pyright: ignore[reportMissingImports]

import tunesmith as ts
from tunesmith.pipeline.follow import run_together


def work(config: dict[str, str]) -> None:
    """What every worker does: the first makes the run, the others follow it."""

    def lead() -> None:
        run = ts.Run.of_recipe(config["recipe"], config["out"])
        print(run.train() if config["until"] == "train" else run.verdict(), flush=True)

    run_together(lead)


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out", help="the run directory, on a disk that all workers share")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="a GPU a worker")
    parser.add_argument("--until", choices=("train", "verdict"), default="verdict")
    parser.add_argument("--max-failures", type=int, default=3)
    arguments = parser.parse_args()
    trainer = TorchTrainer(
        work,
        train_loop_config={
            "recipe": str(Path(arguments.recipe).resolve()),
            "out": str(Path(arguments.out).resolve()),
            "until": arguments.until,
        },
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=arguments.max_failures)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
