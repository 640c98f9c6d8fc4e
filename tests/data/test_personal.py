import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.personal import PATTERNS, Personal, mask, masked
from tunesmith.rundir.rows import Row

# Written in two parts: scanners of repositories look for the whole.
FOUND = {
    "openai-key": ["sk-" + "a1B2" * 12, "sk-" + "proj-" + "a1_-" * 10],
    "anthropic-key": ["sk-" + "ant-api03-" + "a1B2" * 10],
    "aws-key": ["AKIA" + "IOSFODNN7EXAMPL3"],
    "github-token": ["ghp_" + "a1B2" * 9, "github" + "_pat_" + "A1" * 20],
    "slack-token": ["xoxb" + "-123456789012-abcdef"],
    "google-key": ["AIza" + "a1B2c" * 7],
    "hugging-face-token": ["hf_" + "aBcD" * 9],
    "stripe-key": ["sk_" + "live_" + "a1B2" * 6],
    "private-key": ["-----BEGIN RSA PRIVATE" + " KEY-----\nabc\n-----END RSA PRIVATE KEY-----"],
    "jwt": ["eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NO93 8601 1117 947"],
    "card": ["4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "3782 822463 10005", "4222222222222"],
    "us-ssn": ["123-45-6789"],
    "email": ["anna.b+c@firma.co.uk"],
    "phone": ["+49 30 9018 2012", "(212) 555-0187", "212-555-0187"],
    "ipv4": ["8.8.8.8"],
}
CLEAN = [
    "task-" + "a" * 30,
    "risk-based",
    "DE88 3704 0044 0532 0130 00",
    "4111 1111 1111 1112",
    "order 1234567890123456",
    "123-00-6789",
    "987-65-4321",
    "x@example.com",
    "a@b",
    "192.168.1.1",
    "127.0.0.1",
    "version v1.2.3.4",
    "1.2.3.4.5",
    "999.1.1.1",
    "2024-01-15",
    "555-0187",
    "3.14159265358979",
    "AKIA" + "short",
    "@handle and #tag",
    "0000 0000 0000 0000",
]


def found(text, role="user"):
    personal = Personal()
    rows = [Row("0", "line 1", [{"role": role, "content": text}])]
    personal.add(rows, pa.array([text.encode("utf-8", "surrogatepass")], pa.large_binary()), np.zeros(1, int), 0)
    return personal.by_code


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in FOUND.items() for text in texts])
@pytest.mark.parametrize("frame", ["{}", "Here: {}, and THIS 12 more.", "({})", "é\n{}\n"])
def test_each_kind_is_found_and_masked_wherever_it_stands(code, text, frame):
    seen = found(frame.format(text))
    assert set(seen) == {code}
    assert seen[code].rows == seen[code].matches == 1
    assert seen[code].examples == [(0, "user", mask(text))]
    assert text not in masked(frame.format(text)) and text[:4] in masked(frame.format(text))


def test_every_kind_has_a_test():
    assert set(FOUND) == {pattern.code for pattern in PATTERNS}


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_alike_is_left_alone(text):
    assert found(f"see {text} here") == {}
    assert masked(text) == text


secret = st.sampled_from([text for texts in FOUND.values() for text in texts])


@given(st.lists(st.one_of(secret, st.text(max_size=12)), max_size=6))
def test_the_first_pass_misses_nothing_that_the_forms_find(parts):
    text = " ".join(parts)
    shown = masked(text)
    # The quick pass over a batch must never be stricter than the forms it stands before.
    assert bool(found(text)) == (shown != text)


def test_a_card_is_found_before_its_security_code():
    assert found("4111 1111 1111 1111 123")["card"].examples == [(0, "user", mask("4111 1111 1111 1111"))]


def test_tool_calls_are_searched_too():
    key = FOUND["openai-key"][0]
    call = {"type": "function", "function": {"name": "f", "arguments": {"deep": [{"key": key}]}}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    personal = Personal()
    personal.add([Row("0", "line 1", [message])], pa.array([key.encode()], pa.large_binary()), np.zeros(1, int), 5)
    assert personal.by_code["openai-key"].examples == [(5, "assistant", mask(key))]


@pytest.mark.parametrize("unit", ["a", "1", "a.", "A1", "eyJ", "-----BEGIN PRIVATE KEY-----", "1 ", "+1", "a@", "sk-", "1."])
def test_time_is_linear(unit):
    # A backtracking form would take minutes on a text of one megabyte.
    import time

    start = time.process_time()
    masked(unit * (1_000_000 // len(unit)))
    assert time.process_time() - start < 20
