"""The jobs of a directory as a program that may be killed: ``python jobs_program.py DIR PORT WORKER``.

It is started again and again, so it imports no client.
"""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from tunesmith.serve.api_error import HANDLERS
from tunesmith.serve.jobs.routes import routes
from tunesmith.serve.jobs.service import Service


def application(service: Service, models=None) -> Starlette:
    @asynccontextmanager
    async def lifespan(_):
        async with service.running(models):
            yield

    return Starlette(routes=routes(service), exception_handlers=HANDLERS, lifespan=lifespan)


if __name__ == "__main__":
    directory, port, worker = sys.argv[1:]
    served = Service(Path(directory), worker=[sys.executable, worker, directory])
    uvicorn.run(application(served), port=int(port), log_level="error")
