"""The worker with stubs for programs: ``python jobs_worker.py DIR``."""

import sys
from pathlib import Path

from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.programs import Programs
from tunesmith.serve.jobs.worker import work

STUB = str(Path(__file__).with_name("jobs_stub.py"))
PROGRAMS = Programs(
    check=lambda place, job: [sys.executable, "-S", STUB, "check", str(place.directory), job],
    run=lambda place, job: [sys.executable, "-S", STUB, "run", str(place.directory), job],
)

if __name__ == "__main__":
    sys.exit(work(Place(Path(sys.argv[1])), PROGRAMS))
