"""``tunesmith`` as the tests run it, in a process of its own: the small vocabulary is known to the converter, checks are few.

``python jobs_real_run.py run DIR`` is the command line; ``python jobs_real_run.py check DIR JOB`` is the task of that name.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llama_cpp_sources import conversion_by, run_here
from shared import PARITY, forgetting, hardware, precision, probes
from tunesmith import cli
from tunesmith.serve.jobs import tasks


def few_probes(texts):
    whole = WHOLE(texts)
    return probes.Probes(whole.passages[::16], whole.prompts[::16], whole.questions[::16])


WHOLE = probes.load_probes

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, conversion_by(run_here):
        for limit in [*PARITY, (forgetting, "load_probes", few_probes), (precision, "_faster", lambda directory: "fp32")]:
            patch.setattr(*limit)
        patch.setattr(hardware, "cpu_count", lambda: 1)
        patch.setattr(hardware, "physical_cores", lambda: 1)
        if sys.argv[1] == "check":
            sys.exit(tasks.main(sys.argv[1:]))
        cli.main()
