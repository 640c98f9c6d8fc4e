"""The worker with the real programs, as the tests run them: ``python jobs_real_worker.py DIR``."""

import sys
from pathlib import Path

from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.programs import Programs
from tunesmith.serve.jobs.worker import work

RUN = str(Path(__file__).with_name("jobs_real_run.py"))
PROGRAMS = Programs(
    check=lambda place, job: [sys.executable, RUN, "check", str(place.directory), job],
    run=lambda place, job: [sys.executable, RUN, "run", str(place.run(job).path)],
)

if __name__ == "__main__":
    sys.exit(work(Place(Path(sys.argv[1])), PROGRAMS))
