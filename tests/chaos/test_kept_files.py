"""What fuzzing has found stays an error of ours, in a second of the processor and 200 MB; some files more for each parser."""

import random

import fuzz
import pytest
from mutate import mutated
from parsers import PARSERS

MORE = 20  # files by chance, the same every time


@pytest.mark.parametrize("name", PARSERS)
def test_a_strangers_file_ends_with_a_result_or_an_error_of_ours(name, tmp_path):
    parser, findings, draw = PARSERS[name], fuzz.Findings(), random.Random(name)
    parser.prepare(tmp_path)
    seeds = parser.seeds(tmp_path)
    files = [*fuzz.kept_files(None, name), *(mutated(draw, seeds, parser.words) for _ in range(MORE))]
    fuzz.warm_up(parser, tmp_path, seeds[0])
    fuzz.try_files(parser, tmp_path, files, findings)
    assert not findings.found
    assert findings.tried == len(files)


def test_a_parser_that_fails_hangs_or_fills_the_memory_is_found(tmp_path):
    def parse(path):
        raw = path.read_bytes()
        if raw == b"fails":
            raise KeyError("a")
        if raw == b"hangs":
            while True:
                pass
        if raw == b"fills":
            return bytearray(2 * fuzz.MEMORY)

    findings = fuzz.Findings()
    fuzz.try_files(
        PARSERS["json"].__class__(name="a", seeds=lambda _: [], parse=parse),
        tmp_path,
        [b"fails", b"hangs", b"fills", b""],
        findings,
    )
    assert (findings.tried, findings.read) == (4, 1)
    kinds = sorted(findings.found)
    assert kinds[0].startswith("KeyError") and kinds[1].startswith("MemoryError") and kinds[2] == "more than 1 s"
