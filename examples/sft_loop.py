"""LoRA fine-tuning in one file, without the library: the whole idea, to read top to bottom.

    python examples/sft_loop.py MODEL_DIRECTORY ROWS.jsonl

1. A frozen linear layer gets a low-rank update that starts at zero.
2. A conversation is rendered with the model's own template; the assistant's words and its end-of-turn token are learnt.
3. Documents are packed without padding and attend to themselves alone.
4. The head sees the supervised positions only, and the loss is divided by the tokens of the whole step.
5. AdamW on the adapter, warm-up, cosine, clipping.
6. The adapter is saved where PEFT finds it.

What the library adds: checks of every row, sealed test part, exact resume, honest evaluation, export, speed.
"""

import json
import math
import random
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

R, ALPHA, LEARNING_RATE, EPOCHS, TOKENS_PER_STEP, SEED = 16, 32, 2e-4, 1, 2048, 0


class LoRALinear(nn.Module):
    """y = x W^T + (alpha / r) x A^T B^T, with W frozen and B zero at the start."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(R, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, R))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + (ALPHA / R) * (x @ self.lora_A.T) @ self.lora_B.T


def add_lora(model: nn.Module, head: nn.Module) -> dict[str, LoRALinear]:
    """Put a LoRALinear in the place of every linear layer but the head."""
    model.requires_grad_(False)
    targets = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    layers = {name: LoRALinear(linear) for name, linear in targets.items()}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent).register_module(child, layer)
    return layers


def render(tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Token ids, and which are supervised: the last answer up to its end-of-turn token."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith(prompt), "the template rewrites earlier turns"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    stop = max(i for i, token in enumerate(ids) if token == tokenizer.eos_token_id)
    return ids, [len(prompt) <= start and i <= stop for i, (start, _) in enumerate(encoded["offset_mapping"])]


def packed_mask(lengths: list[int]) -> torch.Tensor:
    """Block-diagonal causal mask, True where a token may look. (The library splits the sequence instead.)"""
    blocks = [torch.ones(n, n, dtype=torch.bool).tril() for n in lengths]
    return torch.block_diag(*blocks).bool()[None, None]


def step_loss(model: nn.Module, head: nn.Linear, documents: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
    """Mean cross-entropy over the supervised tokens of packed documents."""
    lengths = [len(ids) for ids, _ in documents]
    ids = torch.tensor([token for ids, _ in documents for token in ids])
    position = torch.cat([torch.arange(n) for n in lengths])
    # Position t predicts token t+1; the first token of a document is predicted by nobody.
    learnt = torch.tensor([flag and t > 0 for _, flags in documents for t, flag in enumerate(flags)])
    predict = learnt.nonzero()[:, 0] - 1
    hidden = model(
        input_ids=ids[None], position_ids=position[None], attention_mask=packed_mask(lengths), use_cache=False
    ).last_hidden_state[0]
    return F.cross_entropy(F.linear(hidden[predict], head.weight).float(), ids[predict + 1])


def rate(step: int, steps: int) -> float:
    """Warm-up over 5 % of the steps, then a cosine to zero."""
    warmup = max(1, math.ceil(0.05 * steps))
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def plan(documents: list[tuple[list[int], list[bool]]]) -> list[list[int]]:
    """Documents of every optimizer step: a shuffle per epoch, cut at TOKENS_PER_STEP."""
    steps: list[list[int]] = []
    for epoch in range(EPOCHS):
        order = random.Random(f"{SEED}/{epoch}").sample(range(len(documents)), len(documents))
        current: list[int] = []
        for document in order:
            current.append(document)
            if sum(len(documents[d][0]) for d in current) >= TOKENS_PER_STEP:
                steps.append(current)
                current = []
        if current:
            steps.append(current)
    return steps


def save(directory: Path, layers: dict[str, LoRALinear], base: str) -> None:
    """Write a PEFT adapter."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": R,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))


def main(model_directory: str, rows: str, out: str = "adapter") -> list[float]:
    """Train and save; returns the loss of every step."""
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32, attn_implementation="sdpa")
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    layers = add_lora(model, head)
    documents = [render(tokenizer, json.loads(line)["messages"]) for line in Path(rows).read_text().splitlines()]
    parameters = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    steps, losses = plan(documents), []
    for number, chosen in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(number, len(steps))
        loss = step_loss(model.base_model, head, [documents[d] for d in chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {number + 1}/{len(steps)}  loss {losses[-1]:.4f}", flush=True)
    save(Path(out), layers, model_directory)
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
