"""tunesmith's side of ``train_step.py``: prepare the rows for every arm, or train on them a step at a time.

    python benchmarks/peers/tunesmith_step.py prepare JOB ROWS MODEL [TEMPLATE]
    python benchmarks/peers/tunesmith_step.py step JOB ARM THREADS

``prepare`` renders the chats once and draws the adapter once; every arm, a peer's too, starts from these very ids, masks
and weights. Rendering is outside of what is measured (``data.py`` measures it).
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import protocol
import torch

# base of each arm (None: the recipe's default), and whether rows of a step share their common beginnings
ARMS: dict[str, tuple[str | None, bool]] = {
    "ours": (None, True),
    "ours_fp32": ("fp32", True),
    "ours_bf16": ("bf16", True),
    "ours_nf4": ("nf4", True),
    "ours_unshared": (None, False),
}
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


@contextmanager
def training(job: protocol.Job, base: str | None, share: bool) -> Iterator[tuple[OnRows, OnRows]]:
    """A model under training, as ``fit`` in ``train/loop.py`` has it.

    Yields:
        The mean loss of some rows, and an optimizer step on some rows (which returns its mean loss). All that depends
        on how tunesmith trains is in this function.
    """
    from tunesmith import hardware
    from tunesmith.data.pack import best_fit
    from tunesmith.layers.context import StepContext
    from tunesmith.models.adapter import load_adapter_state, read_adapter
    from tunesmith.models.attention import PACKED
    from tunesmith.models.fuse import fuse
    from tunesmith.models.load import attention, load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora
    from tunesmith.recipe import Lora, Recipe, TrainSettings
    from tunesmith.train.documents import make_documents, make_pack
    from tunesmith.train.optim import make_optimizer
    from tunesmith.train.step import step_gradients, step_packs

    hardware.keep_freed_memory()
    directory = Path(job["model"])
    stored, compute = precision(base or Recipe.model_fields["base"].default, "auto", directory)
    model = load_model(directory, compute, stored)
    layers = add_lora(model, Lora(**job["lora"]), 0)
    load_adapter_state(layers, read_adapter(Path(job["adapter"])))
    print(fuse(model).summary(), file=sys.stderr)
    optimizer = make_optimizer(layers, TrainSettings(learning_rate=job["learning_rate"], tokens_per_step=1, num_train_epochs=1))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    documents = make_documents([(row["ids"], row["supervised"]) for row in job["rows"]])
    steps = itertools.count()

    def gradients(rows: list[int]) -> float:
        optimizer.zero_grad(set_to_none=True)
        capacity = max(job["pack_tokens"], int(documents.lengths[rows].max()))
        numbers, count = best_fit(documents.lengths[rows].tolist(), capacity)
        chosen = [tuple(row for row, own in zip(rows, numbers, strict=True) if own == pack) for pack in range(count)]
        packs = step_packs(documents, chosen, capacity) if share else [make_pack(documents, pack) for pack in chosen]
        return step_gradients(model, packs, StepContext(seed=0, step=next(steps)))[0]

    def step(rows: list[int]) -> float:
        loss = gradients(rows)
        torch.nn.utils.clip_grad_norm_(parameters, job["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    with attention(model, PACKED):
        yield gradients, step


def serve(job: protocol.Job, arm: str, threads: int) -> None:
    """Answer commands until told to stop."""
    answer = protocol.open_answers()
    torch.set_num_threads(threads)
    with training(job, *ARMS[arm]) as (evaluate, step):
        protocol.reset_peak()
        answer({"ready": arm, "torch": torch.__version__})
        for rows in job["steps"]:
            protocol.next_command(answer, lambda: evaluate(job["evaluate"]))
            clock = protocol.Clock()
            loss = step(rows)
            answer(clock.figures(loss, *protocol.counts(job, rows)))
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
    serve(protocol.read_job(Path(job_file)), rest[0], int(rest[1]))


if __name__ == "__main__":
    main()
