"""The card of a published model: that of the export, with the verdict, licences and hashes, and ``model-index`` for the hub.

The card in the run says what the files are. Whoever finds them on the hub also asks: was it worth it, by how much and how
surely, on which rows, under which licence, and are these the very files? So the verdict's tables stand here, its figures are in
the front matter in the hub's own form (``model-index``), and every file has its sha256.

A public page holds no row of the data: no question, no answer, no prompt. Rows are shown where the user asked for some. What is
not known has a line that says so: a licence that nobody stated is no permission.

``model-index`` has no field for an interval; it stands in ``args`` of the metric, where the hub keeps what a figure depends on.

Source: Hugging Face, ``modelcard.md`` (metadata), ``huggingface_hub.EvalResult``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tunesmith.report.verdict_markdown import arms_table, checks_table, plain, table, unknowns
from tunesmith.rundir.records.evaluation import Arm, Verdict
from tunesmith.rundir.records.push import PushFile, PushForm

PRIVATE = "private"  # what model-index calls rows that no hub id names


@dataclass(frozen=True, kw_only=True)
class HubFacts:
    """What a card for the hub is made of beside the card of the export.

    Attributes:
        name: of the run.
        to: the repository.
        form: what is published.
        types: GGUF types that are, the one to take last.
        base: hub id of the base; None where only a path is known.
        base_name: what to call it then.
        datasets: hub ids of the rows.
        data_sha256: of the files of rows, as they were read.
        base_license, data_license: None where nobody said.
        verdict: of the run.
        verdict_sha256: of its file.
        files: the others of the repository.
        has_modelfile: whether Ollama's is among them.
        examples: rows to show, question and answer.
    """

    name: str
    to: str
    form: PushForm
    types: tuple[str, ...]
    base: str | None
    base_name: str
    datasets: tuple[str, ...]
    data_sha256: tuple[str, ...]
    base_license: str | None
    data_license: str | None
    verdict: Verdict
    verdict_sha256: str
    files: tuple[PushFile, ...]
    has_modelfile: bool
    examples: tuple[tuple[str, str], ...] = ()


def hub_card(exported: str, facts: HubFacts) -> str:
    """The text of the card.

    Args:
        exported: the card that the export wrote for this form.
    """
    card = ModelCard(exported)
    known = ModelCardData(**card.data.to_dict())
    sections = [
        _without(card.text.strip(), "## Serve"),
        f"## Verdict: {facts.verdict.decision}",
        checks_table(facts.verdict),
        arms_table(facts.verdict),
        _listed("Not known:", unknowns(facts.verdict)),
        _use(facts),
        _licences(facts, known),
        _examples(facts),
        _provenance(facts),
    ]
    text = "\n\n".join(section for section in sections if section)
    return f"---\n{_front_matter(known, facts).to_yaml()}\n---\n\n{text}\n"


def shown_arm(verdict: Verdict, form: PushForm) -> Arm:
    """The arm whose figures are a form's: the one that was asked in it, else the candidate."""
    wanted = "deployed" if form == "gguf" else verdict.in_process
    names = [arm.name for arm in verdict.arms]
    return verdict.arm(wanted if wanted in names else verdict.candidate)


def _front_matter(known: ModelCardData, facts: HubFacts) -> ModelCardData:
    tags = [tag for tag in known.tags or [] if not tag.startswith("base_model:")]
    relation = {"adapter": "adapter", "merged": "merge", "gguf": "quantized"}[facts.form]
    library = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[facts.form]
    return ModelCardData(
        model_name=facts.name,
        base_model=facts.base,
        base_model_relation=None if facts.base is None else relation,
        library_name=library,
        pipeline_tag="text-generation",
        license=facts.base_license or known.license,
        datasets=list(facts.datasets) or None,
        tags=[*tags, *(["gguf"] if facts.form == "gguf" and "gguf" not in tags else [])],
        eval_results=_results(facts),
    )


def _results(facts: HubFacts) -> list[EvalResult]:
    """The score of the published form, and its gain over the best prompt."""
    verdict, arm = facts.verdict, shown_arm(facts.verdict, facts.form)
    metric = verdict.metric
    args = {"low": round(arm.low, 4), "high": round(arm.high, 4), "level": 0.95, "arm": arm.name}
    results = [_result(facts, metric, round(arm.score, 4), f"{metric} of {arm.name}", args)]
    if (gain := arm.against) is not None:
        args = {
            "low": round(gain.low, 4),
            "high": round(gain.high, 4),
            "level": round(1.0 - gain.alpha, 6),
            "p": gain.p,
            "verdict": verdict.decision,
        }
        results.append(_result(facts, f"{metric}_gain", round(gain.gain, 4), f"gain over {verdict.best_prompt}", args))
    return results


def _result(facts: HubFacts, kind: str, value: float, name: str, args: dict[str, float | str]) -> EvalResult:
    verdict = facts.verdict
    return EvalResult(
        task_type="text-generation",
        dataset_type=facts.datasets[0] if facts.datasets else PRIVATE,
        dataset_name=f"{verdict.n} sealed test rows of {facts.name}",
        dataset_split="test",
        dataset_args={"rows": verdict.n, "sha256": verdict.files["data/test.jsonl"]},
        metric_type=kind,
        metric_value=value,
        metric_name=name,
        metric_args=args,
    )


def _without(text: str, heading: str) -> str:
    """A card's text without a section; our own headings alone stand at the beginning of a line."""
    return re.sub(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE).rstrip()


def _use(facts: HubFacts) -> str:
    to, base = facts.to, facts.base or "BASE"
    if facts.form == "adapter":
        code = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{base}")',
            f'tuned = PeftModel.from_pretrained(base, "{to}")',
        ]
        note = "" if facts.base else f"`BASE` is {plain(facts.base_name)}, wherever it lies.\n\n"
        template = "Conversations are written with `chat_template.jinja` of this repository."
        return "## Use\n\n" + note + template + "\n\n```python\n" + "\n".join(code) + "\n```"
    if facts.form == "merged":
        return f"## Use\n\n```sh\nvllm serve {to}\n```"
    lines = [f"llama-server -hf {to}:{facts.types[-1]} --jinja"]
    if facts.has_modelfile:
        name = to.partition("/")[2]
        lines += [f"hf download {to} --local-dir {name}", f"ollama create {name} -f {name}/Modelfile"]
    return "## Use\n\n```sh\n" + "\n".join(lines) + "\n```"


def _licences(facts: HubFacts, known: ModelCardData) -> str:
    base = facts.base_license or known.license
    lines = [
        f"- Base ({plain(facts.base or facts.base_name)}): {plain(base) if base else 'not stated where it was read'}",
        f"- Data: {plain(facts.data_license) if facts.data_license else 'not stated'}",
    ]
    return "## Licences\n\n" + "\n".join(lines)


def _examples(facts: HubFacts) -> str:
    if not facts.examples:
        return ""
    rows = [(plain(question), plain(answer)) for question, answer in facts.examples]
    return "## Examples of the data\n\n" + table(("question", "answer"), rows)


def _provenance(facts: HubFacts) -> str:
    rows = [(plain(file.name), f"{file.bytes:,}", f"`{file.sha256}`") for file in facts.files]
    data = [f"- Rows: sha256 `{digest}`" for digest in facts.data_sha256]
    parts = [f"- {part} part: sha256 `{facts.verdict.files[f'data/{part}.jsonl']}`" for part in ("train", "dev", "test")]
    verdict = f"- `verdict.json`: sha256 `{facts.verdict_sha256}`"
    return "## Provenance\n\n" + table(("file", "bytes", "sha256"), rows) + "\n\n" + "\n".join([*data, *parts, verdict])


def _listed(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, "", *(f"- {line}" for line in lines)]) if lines else ""
