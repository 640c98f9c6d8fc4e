"""Headers that somebody else wrote: honest ones pass, forged ones are an error within bounds of time and memory."""

import struct
import subprocess
import sys
import time
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from prescan_files import (
    Q8_0,
    array,
    changes,
    gguf_bytes,
    gguf_holds,
    honest_gguf,
    key,
    place,
    safetensors_bytes,
    safetensors_holds,
    tensor,
    text,
)
from safetensors.torch import save_file

from shared import GGUF, ROOT
from tunesmith.checkpoints.prescan import ADAPTER, ELEMENTS_OF_ONE, MODEL, check_gguf, check_safetensors
from tunesmith.errors import ModelError

LONG = 2**50  # elements; a parser that believes it never comes back


def honest_safetensors(path):
    state = {
        "a": torch.ones(3, 5),
        "b": torch.ones(2, 2, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.0, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "bool": torch.tensor([True]),
        "eight": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    save_file(state, path, metadata={"format": "pt"})
    return path


def test_honest_files_pass(tmp_path):
    assert gguf_holds(honest_gguf(tmp_path / "a.gguf"))
    check_gguf(GGUF)
    assert safetensors_holds(honest_safetensors(tmp_path / "a.safetensors"))
    (tmp_path / "none.gguf").write_bytes(gguf_bytes([], []))
    assert gguf_holds(tmp_path / "none.gguf")
    save_file({}, tmp_path / "none.safetensors")
    assert safetensors_holds(tmp_path / "none.safetensors")


def test_strings_longer_than_the_window_and_across_its_edge(tmp_path):
    strings = [b"x" * n for n in (0, 1, 2**20 - 9, 2**20, 2**21 + 3, 5)] * 3
    path = tmp_path / "a.gguf"
    keys = [
        key(b"before", 8, text("ü".encode() * (2**20 + 1))),
        array(b"a", 8, len(strings), b"".join(map(text, strings))),
        array(b"numbers", 6, 2**12, bytes(2**14)),
        key(b"after", 4, bytes(4)),
    ]
    path.write_bytes(gguf_bytes(keys, [tensor(b"t", (8,))]))
    assert gguf_holds(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the magic takes 4 bytes, 0 are left"),
        (b"GGML" + bytes(100), "begins with b'GGML'"),
        (gguf_bytes([], [], version=1), "version 1"),
        (gguf_bytes([], [], version=3 << 24), "big-endian"),
        (gguf_bytes([], [], counts=(0, LONG)), "1,125,899,906,842,624 keys"),
        (gguf_bytes([], [], counts=(LONG, 0)), "1,125,899,906,842,624 tensors"),
        (gguf_bytes([array(b"a", 4, LONG)], []), "'a' is an array of 1,125,899,906,842,624"),
        (gguf_bytes([array(b"a", 4, 10**6)], []), "'a' takes 4,000,000 bytes, "),
        (gguf_bytes([array(b"a", 8, 10**6)], []), "'a' has 1,000,000 strings, "),
        (gguf_bytes([array(b"a", 8, 2, text(b"x") + struct.pack("<Q", LONG))], []), "a string of 'a' takes 1,125,"),
        (gguf_bytes([array(b"a", 9, 1) + struct.pack("<IQ", 9, 1) * 5000], []), "'a' is an array of arrays"),
        (gguf_bytes([array(b"a", 13, 1)], []), "unknown value type 13"),
        (gguf_bytes([key(b"a", 99, b"")], []), "'a' has the unknown value type 99"),
        (gguf_bytes([key(b"a", 8, struct.pack("<Q", LONG))], []), "'a' has 1,125,899,906,842,624 bytes"),
        (gguf_bytes([key(b"a", 8, text(b"\xff"))], []), "'a' is not UTF-8"),
        (gguf_bytes([key(b"\xff", 4, bytes(4))], []), "the name of key 0 is not UTF-8"),
        (gguf_bytes([key(b"", 4, bytes(4))], []), "the name of key 0 has 0 bytes"),
        (gguf_bytes([key(b"k" * 257, 4, bytes(4))], []), "the name of key 0 has 257 bytes"),
        (gguf_bytes([key(b"a", 4, bytes(4))] * 2, []), "'a' is there twice"),
        (gguf_bytes([key(b"general.architecture", 4, bytes(4))], []), "general.architecture has value type 4"),
        (gguf_bytes([key(b"general.alignment", 10, bytes(8))], []), "general.alignment has value type 10"),
        *[
            (gguf_bytes([key(b"general.alignment", 4, struct.pack("<I", n))], []), f"an alignment of {n:,}, not a power")
            for n in (0, 4, 48, 2**17)
        ],
        (gguf_bytes([], [tensor(b"t" * 65, (8,))]), "the name of tensor 0 has 65 bytes"),
        (gguf_bytes([], [tensor(b"t", (8,)), tensor(b"t", (8,), offset=32)]), "'t' is there twice"),
        (gguf_bytes([], [tensor(b"t", ())]), "'t' has 0 dimensions"),
        (gguf_bytes([], [tensor(b"t", (1,) * 5)]), "'t' has 5 dimensions"),
        (gguf_bytes([], [tensor(b"t", (0, 8))]), "'t' has the shape (0, 8)"),
        (gguf_bytes([], [tensor(b"t", (2**32, 2**32, 2**32))]), "'t' ends at byte"),  # 2^96 is 0 in 64 bits
        (gguf_bytes([], [tensor(b"t", (8,), kind=5)]), "unknown tensor type 5"),
        (gguf_bytes([], [tensor(b"t", (33,), kind=Q8_0)]), "'t' has rows of 33, Q8_0 has blocks of 32"),
        (gguf_bytes([], [tensor(b"t", (8,), offset=4)]), "not a multiple of 32"),
        (gguf_bytes([], [tensor(b"t", (8,), offset=64)]), "'t' ends at byte"),
        (gguf_bytes([], [tensor(b"t", (9,)), tensor(b"u", (8,), offset=32)]), "'u' and 't' overlap"),
    ],
)
def test_forged_gguf(tmp_path, raw, words):
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError) as caught:
        check_gguf(path)
    assert str(path) in caught.value.message and words in caught.value.message and "(byte " in caught.value.message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "0 bytes"),
        (struct.pack("<Q", LONG), "8 bytes, 1,125,899,906,842,632 for the header alone"),
        (safetensors_bytes(b"[" * 5000), "recursion limit"),
        (safetensors_bytes(b"[]", 0), "a list, not an object"),
        (safetensors_bytes(b'{"a":1,"a":2}'), "duplicate key"),
        (safetensors_bytes(b'{"a":NaN}'), "no JSON"),
        (safetensors_bytes({"__metadata__": {"a": 1}}, 0), "__metadata__"),
        (safetensors_bytes({"a": 1}), "other keys than dtype"),
        (safetensors_bytes({"a": {**place(), "more": 1}}), "other keys than dtype"),
        (safetensors_bytes({"a": place("F31")}), "unknown dtype 'F31'"),
        (safetensors_bytes({"a": place(["F32"])}), "unknown dtype ['F32']"),
        *[(safetensors_bytes({"a": place(shape=s)}), "has the shape") for s in (2, [-2], [2.0], [True], [1] * 9, [10**30])],
        *[(safetensors_bytes({"a": place(ends=e)}), "has data_offsets") for e in (8, [8], [8, 0], [-8, 0], [0, 4, 8])],
        (safetensors_bytes({"a": place(shape=[3])}), "'a' has 8 bytes, F32 of shape [3] takes 12"),
        (safetensors_bytes({"a": place("F4", [3], [0, 1])}, 1), "F4 of shape [3] takes 1.5"),
        (safetensors_bytes({"a": place(shape=[2**62, 2**62, 0, 2**62])}), "'a' has 8 bytes, F32 of shape"),
        (safetensors_bytes({"a": place(), "b": place()}), "'b' begins at byte 0 of the data and overlaps"),
        (safetensors_bytes({"a": place(ends=[8, 16])}, 16), "leaves a hole"),
        (safetensors_bytes({"a": place()}, 7), "end at byte 8 of the data, the file at 7"),
        (safetensors_bytes({"a": place()}, 9), "end at byte 8 of the data, the file at 9"),
    ],
)
def test_forged_safetensors(tmp_path, raw, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelError) as caught:
        check_safetensors(path)
    assert str(path) in caught.value.message and words in caught.value.message


def test_an_adapter_has_a_smaller_header_than_a_model(tmp_path):
    path = tmp_path / "a.safetensors"
    for count, padding, words in [(ADAPTER.tensors + 1, 0, "20,001 tensors"), (1, ADAPTER.header_bytes, "a header of")]:
        save_file({f"{n}": torch.zeros(0) for n in range(count)}, path, metadata={"note": "x" * padding})
        check_safetensors(path)
        with pytest.raises(ModelError, match=words):
            check_safetensors(path, ADAPTER)


def _worst():
    """The dearest headers that the limits let through or count."""
    half = ELEMENTS_OF_ONE
    strings = [array(b"a%d" % n, 8, half, bytes(8 * half)) for n in range(3)]
    objects = b",".join([b'{"%06d":1}' % n for n in range(190_000)] + [b"1234567"] * 850_000)
    empty = {f"{n:060}": place(shape=[0], ends=[0, 0]) for n in range(MODEL.tensors)}
    return [
        ("3 million strings and one.gguf", gguf_bytes([*strings, array(b"b", 8, 1, bytes(8))], [])),
        ("65,536 tensors.gguf", gguf_bytes([], [tensor(b"%d" % n, (8,), offset=32 * n) for n in range(65_536)], 2**21)),
        ("objects and numbers.safetensors", safetensors_bytes(b"[" + objects + b"]")),
        ("brackets.safetensors", safetensors_bytes(b"[]," * 5_000_000)),
        ("empty tensors.safetensors", safetensors_bytes(empty, 0)),
    ]


@pytest.mark.slow
def test_the_worst_takes_less_than_a_second_and_200_mb(tmp_path):
    for name, raw in _worst():
        path = tmp_path / name
        path.write_bytes(raw)
        check = check_gguf if name.endswith("gguf") else check_safetensors
        started = time.process_time()
        _refused(check, path)
        assert time.process_time() - started < 1.0, name
        if name.startswith(("objects", "brackets")):  # the others hold a window and names; tracing them takes a minute
            tracemalloc.start()
            _refused(check, path)
            assert tracemalloc.get_traced_memory()[1] < 200e6, name
            tracemalloc.stop()
        path.unlink()


def _refused(check, path):
    try:
        check(path)
    except ModelError as error:
        assert "limit" in error.message or "not an object" in error.message, path


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prescan")
    made = honest_gguf(directory / "a.gguf").read_bytes(), honest_safetensors(directory / "a.safetensors").read_bytes()
    return directory, *made


MUTATED = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def _hold(honest, change):
    directory, gguf_raw, safetensors_raw = honest
    for name, raw, holds in [("m.gguf", gguf_raw, gguf_holds), ("m.safetensors", safetensors_raw, safetensors_holds)]:
        (directory / name).write_bytes(change(raw))
        holds(directory / name)


@MUTATED
@given(change=changes())
def test_what_passes_is_read_and_the_rest_is_an_error(honest, change):
    _hold(honest, change)


@pytest.mark.slow
def test_half_a_minute_of_changed_files(honest):
    ends, rounds = time.monotonic() + 30, 0
    while time.monotonic() < ends:
        rounds += 1

        @seed(rounds)
        @settings(MUTATED, max_examples=1000, derandomize=False, database=None)
        @given(change=changes())
        def hold(change):
            _hold(honest, change)

        hold()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_half_a_minute_of_coverage_guided_files(form, honest, tmp_path):
    pytest.importorskip("atheris")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "honest").write_bytes(honest[1] if form == "gguf" else honest[2])
    script = ROOT / "tests" / "models" / "fuzz_prescan.py"
    limits = ["-max_total_time=30", "-rss_limit_mb=512", "-timeout=2", "-max_len=8192", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, script, form, tmp_path / "corpus", *limits], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
