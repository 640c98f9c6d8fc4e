import pytest

from tunesmith.evaluate.metrics.code_blocks import extract_code

ADD = "def add(a, b):\n    return a + b"
SESSION = ">>> def add(a, b):\n...     return a + b\n...\n>>> add(2, 3)\n5"
ANSWERS = {  # answers whose program is ADD
    "bare": ADD,
    "python": f"```python\n{ADD}\n```",
    "python3": f"```python3\n{ADD}\n```",
    "Python": f"``` Python\n{ADD}\n```",
    "py, never closed": f"```py\n{ADD}",
    "attributes": f"```{{.python .numberLines}}\n{ADD}\n```",
    "tildes": f"~~~python\n{ADD}\n~~~",
    "four backticks": f"````python\n{ADD}\n````",
    "no language": f"Here:\n```\n{ADD}\n```\nDone.",
    "in a list": "1. So:\n   ```python\n   def add(a, b):\n       return a + b\n   ```",
    "a command before": f"```bash\npip install x\n```\n```python\n{ADD}\n```",
    "a command in sh after": f"```python\n{ADD}\n```\nRun:\n```sh\npython add.py\n```",
    "output without a language": f"```python\n{ADD}\n```\nIt prints:\n```\n5\n```\nor\n```\nHello there\n```",
    "an example session": f"```python\n{ADD}\n```\nUsage:\n```python\n>>> add(2, 3)\n5\n```",
    "an example in pycon": f"```python\n{ADD}\n```\n```pycon\n>>> add(2, 3)\n5\n```",
    "a session in the same block": f"```python\n{ADD}\n\n>>> add(2, 3)\n5\n```",
    "data in another language": f'```json\n{{"a": 2}}\n```\n```python\n{ADD}\n```',
    "words around it": f"Here is the code:\n\n{ADD}\n\nI hope this helps.",
    "words that begin like a program": f"from what you say:\n{ADD}\n\nimport it as you like!",
    "a command in a fence, the program in none": f"{ADD}\n\n```bash\npip install x\n```",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_program_is_taken_out_as_a_reader_would(answer):
    assert extract_code(answer).strip() == ADD


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("text\n```py\na = 1\n```\nmore\n```\nb = 2\n```", "a = 1\n\nb = 2"),
        (f"```python\n{SESSION}\n```", f"{ADD}\n\nadd(2, 3)"),
        (f"```pycon\n{SESSION}\n```", f"{ADD}\n\nadd(2, 3)"),
        ("```python\ndef add(:\n```", "def add(:"),
        ("```\ndef add(:\n```", "def add(:"),
        ("I do not know", "I do not know"),
        ("", ""),
        ('```python\ndef f():\n    """\n    >>> f()\n    """\n```', 'def f():\n    """\n    >>> f()\n    """'),
        ('"""\n>>> f()\n"""\nf = print', '"""\n>>> f()\n"""\nf = print'),
        ('p = "\\d"', 'p = "\\d"'),
    ],
)
def test_which_blocks_are_the_program(answer, program):
    assert extract_code(answer).strip() == program


@pytest.mark.parametrize("answer", ["(" * 20_000, "```py\n" * 5_000, "a = 1 b\n" * 3_000, "```\n" + "-" * 20_000, "\x00"])
def test_an_answer_that_is_no_program_ends_nothing(answer):
    assert isinstance(extract_code(answer), str)
