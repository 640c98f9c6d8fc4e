"""tunesmith's side of ``train_step.py``: prepare the rows for every arm, or train on them a step at a time.

    python benchmarks/peers/tunesmith_step.py prepare JOB ROWS MODEL [TEMPLATE]
    python benchmarks/peers/tunesmith_step.py step JOB ARM THREADS

``prepare`` renders the chats once and draws the adapter once; every arm, a peer's too, starts from these very ids, masks
and weights. Rendering is outside of what is measured (``data.py`` measures it). A step is that of a run, in all its processes;
their time counts, and the memory that each shares with none.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import torch
from numpy.typing import NDArray

# base of each arm (None: the recipe's default), whether rows of a step share their common beginnings, dropout
ARMS: dict[str, tuple[str | None, bool, float]] = {
    "ours_qat_Q4_0": (None, True, 0.0),
    "ours_qat_Q4_K_M": (None, True, 0.0),
    "ours": (None, True, 0.0),
    "ours_fp32": ("fp32", True, 0.0),
    "ours_bf16": ("bf16", True, 0.0),
    "ours_nf4": ("nf4", True, 0.0),
    "ours_unshared": (None, False, 0.0),
    "ours_dropout": (None, True, 0.05),
}
# of gpu_peers.py, all in four bits: what is recomputed. The first runs on a device that is not there, the second on a CPU.
GPU_ARMS = {"ours_fake": "layer", "ours_cpu": "none", "ours_gpu_fast": "none", "ours_gpu_lean": "layer"}
QAT = "ours_qat_"  # and the type of the file whose grid is trained onto
OnRows = Callable[[list[int]], float]
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}


def prepare(job_file: Path, rows_file: Path, model_dir: Path, template: str | None) -> dict[str, Any]:
    """Render the rows and draw the adapter into the job; returns what the floor is computed from."""
    from tunesmith.chat.render import Conversation, Rendered, Renderer
    from tunesmith.models.adapter import save_adapter
    from tunesmith.models.load import load_model, load_tokenizer
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora

    lines = rows_file.read_text(encoding="utf-8").splitlines()
    conversations = [Conversation(json.loads(line)["messages"]) for line in lines]
    rendered = Renderer(load_tokenizer(model_dir), template).render_batch(conversations)
    rows = []
    for conversation, row in zip(conversations, rendered, strict=True):
        assert isinstance(row, Rendered), f"a row cannot be rendered: {row}"
        rows.append({"messages": conversation.messages, "ids": row.ids, "supervised": row.supervised})
    model = load_model(model_dir, "fp32")
    lora = Lora(**LORA)
    layers = add_lora(model, lora, 0)
    adapter = job_file.parent / "adapter"
    adapter.mkdir()
    save_adapter(adapter, layers, lora, str(model_dir))
    config = model.config.get_text_config()
    kinds = config.to_dict().get("layer_types") or ["full_attention"] * config.num_hidden_layers
    window = config.to_dict().get("sliding_window")
    head = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    facts = {
        "linears": [[layer.out_features, layer.in_features] for layer in layers.values()],
        "windows": [window if kind == "sliding_attention" else None for kind in kinds],
        "attention_width": config.num_attention_heads * head,
        "vocabulary": config.vocab_size,
        "hidden": config.hidden_size,
        "r": lora.r,
    }
    job = {"model": str(model_dir), "template": template, "adapter": str(adapter), "lora": LORA, "rows": rows}
    job_file.write_text(json.dumps(job))
    return {
        "facts": facts,
        "lengths": [len(row["ids"]) for row in rows],
        "supervised": sum(sum(row["supervised"]) for row in rows),
    }


class Given:
    """The job's steps in the place of a plan: the rows of each, in packs of so many tokens."""

    def __init__(self, job: protocol.Job, lengths: NDArray[np.int64]):
        self._packs = [list(map(tuple, step)) for step in job.get("packs", [])]
        self._packs = self._packs or [self._packed(rows, lengths, job["pack_tokens"]) for rows in job["steps"]]
        self.epoch_ends = [len(self._packs)]

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, step: int) -> tuple[int, list[tuple[int, ...]]]:
        return 0, self._packs[step]

    @staticmethod
    def _packed(rows: list[int], lengths: NDArray[np.int64], capacity: int) -> list[tuple[int, ...]]:
        from tunesmith.data.pack import best_fit

        numbers, count = best_fit(lengths[rows].tolist(), max(capacity, int(lengths[rows].max())))
        return [tuple(row for row, own in zip(rows, numbers, strict=True) if own == pack) for pack in range(count)]


@contextmanager
def training(
    job: protocol.Job, base: str | None, share: bool, dropout: float, recompute: str = "auto", grid: str | None = None
) -> Iterator[tuple[OnRows, Iterator[float]]]:
    """A model under training, by the steps of ``train/loop.py`` as a run takes them, in as many processes.

    Yields:
        The mean loss of some rows; and the steps of the job, each of which gives its mean loss. All that depends on how
        tunesmith trains is in this function.
    """
    from tunesmith.checkpoints.gguf_write.base import grid_gguf
    from tunesmith.models.adapter import load_adapter_state, read_adapter
    from tunesmith.models.attention import PACKED
    from tunesmith.models.device import best_device
    from tunesmith.models.fuse import fuse
    from tunesmith.models.grids import lay_grids
    from tunesmith.models.load import attention, load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora, Recipe, TrainSettings
    from tunesmith.train import distributed
    from tunesmith.train.documents import make_documents, make_pack
    from tunesmith.train.loop import train_steps
    from tunesmith.train.step import mean_loss

    directory = Path(job["model"])
    stored, compute = precision(base or Recipe.model_fields["base"].default, "auto", directory)
    model = load_model(directory, compute, stored, best_device())
    if grid is not None:
        lay_grids(model, grid_gguf(directory, grid))
    layers = add_lora(model, Lora(**{**job["lora"], "dropout": dropout}), 0)
    load_adapter_state(layers, read_adapter(Path(job["adapter"])))
    print(fuse(model).summary(), file=sys.stderr)
    documents = make_documents([(row["ids"], row["supervised"]) for row in job["rows"]])
    steps = Given(job, documents.lengths)
    settings = TrainSettings(
        learning_rate=job["learning_rate"],
        max_grad_norm=job["max_grad_norm"],
        schedule="constant",
        warmup_ratio=0.0,
        tokens_per_step=sum(int(documents.lengths[rows].sum()) for rows in job["steps"]) // len(steps),
        max_length=job["pack_tokens"],
        num_train_epochs=1,
        recompute=recompute,  # type: ignore[arg-type]
    )
    if not share:
        apart: Any = lambda documents, chosen, *_: [make_pack(documents, pack) for pack in chosen]  # noqa: E731
        distributed.step_packs = apart

    def evaluate(rows: list[int]) -> float:
        with attention(model, PACKED), torch.no_grad():
            return mean_loss(model, [make_pack(documents, tuple(rows))])

    yield evaluate, (record.loss for record in train_steps(model, layers, documents, steps, settings, 0))


def processes() -> list[int]:
    """The others of this process's world."""
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Processor time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(job: protocol.Job, arm: str, threads: int) -> None:
    """Answer commands until told to stop."""
    from tunesmith import hardware

    answer = protocol.open_answers()
    torch.set_num_threads(threads)
    given = ("nf4", True, 0.0, GPU_ARMS[arm]) if arm in GPU_ARMS else ARMS[arm]
    grid = arm.removeprefix(QAT) if arm.startswith(QAT) else None
    with training(job, *given, grid=grid) as (evaluate, losses):
        protocol.reset_peak()
        answer({"ready": arm, "torch": torch.__version__})
        others = 0
        for rows in job["steps"]:
            protocol.next_command(answer, lambda: evaluate(job["evaluate"]))
            clock, before = protocol.Clock(), {pid: cpu_seconds(pid) for pid in processes()}
            loss = next(losses)
            figures = clock.figures(loss, *protocol.counts(job, rows))
            others = max(others, sum(map(hardware.private_memory, processes())))
            figures["cpu_seconds"] += sum(cpu_seconds(pid) - before.get(pid, 0.0) for pid in processes())
            figures["peak_bytes"] += others
            answer(figures)
        protocol.next_command(answer, lambda: evaluate(job["evaluate"]))
        raise SystemExit("no more steps in the job")


def main() -> None:
    """Prepare or serve."""
    mode, job_file, *rest = sys.argv[1:]
    if mode == "prepare":
        answer = protocol.open_answers()
        template = Path(rest[2]).read_text(encoding="utf-8") if len(rest) > 2 else None
        answer(prepare(Path(job_file), Path(rest[0]), Path(rest[1]), template))
        return
    with no_device() if rest[0] == "ours_fake" else contextlib.nullcontext():
        serve(protocol.read_job(Path(job_file)), rest[0], int(rest[1]))


def no_device() -> contextlib.AbstractContextManager[Any]:
    """The device of the tests that is not there."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from fake_cuda import cuda

    return cuda()


if __name__ == "__main__":
    main()
