"""What a server says when it is ready: where it is, which models, how far they were proven, and a line to try it with."""

import shlex
from collections.abc import Sequence

from tunesmith.serve.asking import Sampling, Served


def welcome(url: str, models: Sequence[Served], key_variable: str | None, notes: Sequence[str] = ()) -> str:
    """The text.

    Args:
        url: without ``/v1``.
        models: that are served.
        key_variable: environment variable with the keys; None: no key is asked for.
        notes: what else there is to say.
    """
    lines = [f"serving at {url}/v1"]
    width = max([len(model.name) for model in models], default=0)
    for model in models:
        verdict = f", verdict {model.verdict}" if model.verdict else ""
        system = ", with its system turn" if model.system else ""
        lines.append(
            f"  {model.name:<{width}}  {model.form}{verdict}; {_drawn(model.sampling)}, "
            f"{model.max_new_tokens} of {model.context} tokens{system}"
        )
        lines += [f"  {'':<{width}}  warning: {warning}" for warning in model.warnings]
    lines += notes
    if models:
        lines += ["try it:", *_examples(url, models[-1].name, key_variable)]
    return "\n".join(lines)


def _drawn(sampling: Sampling) -> str:
    """How tokens are drawn where a request does not say."""
    return "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"


def _examples(url: str, name: str, key_variable: str | None) -> list[str]:
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    header = f' -H "Authorization: Bearer ${key_variable}"' if key_variable else ""
    key = f'os.environ["{key_variable}"]' if key_variable else '"none"'
    return [
        f"  curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f'  client = openai.OpenAI(base_url="{url}/v1", api_key={key})',
        f'  client.chat.completions.create(model="{name}", messages=[{{"role": "user", "content": "Hello"}}])',
    ]
