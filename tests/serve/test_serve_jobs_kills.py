"""Worker and server are killed at random times: every job is done once, and what it made is what an undisturbed run makes."""

import asyncio
import collections
import json
import random
import time
from pathlib import Path

import openai
import pytest
from jobs_server import STUBS, Killable, messages, upload, wait, write_settings
from test_serve_jobs_real import RECIPE, WORKER

from shared import toy_rows
from tunesmith.errors import RunError
from tunesmith.serve.jobs.service import Service

QUOTAS = {"attempts": 1000}


def disturb(server, is_over, kills, generator, longest):
    """Kill until it is over or so many kills were made; how many were made of each."""
    made = collections.Counter()
    while made.total() < kills and not is_over():
        time.sleep(generator.uniform(0.0, longest))
        victim = generator.choice(["worker", "server"])
        made[victim] += 1
        if victim == "worker":
            server.kill_worker()
        else:
            server.kill()
            server.start()
    return made


async def serve_too(directory):
    async with Service(directory).running():
        pass


def said_once(client, job_id):
    """What is said but once, whatever was killed."""
    said = collections.Counter(messages(client, job_id))
    steps = {line: count for line, count in said.items() if line.startswith("Step ")}
    assert set(steps.values()) == {1}, steps
    for line in ("The job has successfully completed", f"Created fine-tuning job: {job_id}"):
        assert said[line] == 1, line
    return steps


def test_kills_lose_nothing_and_double_nothing(tmp_path):
    server, enough = Killable(write_settings(tmp_path / "jobs", quotas=QUOTAS), STUBS), tmp_path / "enough"
    try:
        with server.client() as client:
            file = upload(client, pause=0.05, until=str(enough))
            jobs = [client.fine_tuning.jobs.create(model="tiny", training_file=file).id for _ in range(2)]
            with pytest.raises(RunError, match="is served by another"):
                asyncio.run(serve_too(server.place.directory))
            wait(client, jobs[0], "running")
            worker = server.worker()
            server.kill()
            server.start()
            assert server.worker() == worker is not None, "the new server finds the worker of the old one"
            made = disturb(server, lambda: False, 4, random.Random(3), 0.5)
            assert made["worker"] and made["server"], "both were killed"
            enough.touch()
            for job in jobs:
                done = wait(client, job)
                assert done.status == "succeeded" and len(done.result_files) == 2, messages(client, job)
                counted = (server.place.run(job).path / "counted.txt").read_text().split()
                assert counted == [str(number) for number in range(1, len(counted) + 1)]
                assert len(said_once(client, job)) == len(counted) >= 3
        worker = server.worker()
    finally:
        server.close()
    assert worker is not None and not worker.is_alive(), "the worker ends with its server"


@pytest.mark.slow
def test_fifty_kills_of_real_runs_end_with_the_bytes_of_undisturbed_ones(tmp_path, tiny_dir):
    settings = {"models": {"tiny": str(tiny_dir)}, "recipe": RECIPE, "quotas": QUOTAS, "serve_anyway": True}
    text = "".join(json.dumps(row) + "\n" for row in toy_rows()).encode()
    quiet, loud = (Killable(write_settings(tmp_path / name, **settings), WORKER) for name in ("quiet", "loud"))
    generator, made, jobs = random.Random(0), collections.Counter(), []
    try:
        with quiet.client() as client:
            expected = _undisturbed(quiet, client, text)
        quiet.close()
        with loud.client() as client:

            def is_over():
                return client.fine_tuning.jobs.retrieve(jobs[-1]).status in ("succeeded", "failed")

            while made.total() < 50:
                file = client.files.create(file=("rows.jsonl", text), purpose="fine-tune").id
                jobs.append(client.fine_tuning.jobs.create(model="tiny", training_file=file, seed=5).id)
                made += disturb(loud, is_over, 50 - made.total(), generator, 20.0)
                assert wait(client, jobs[-1], seconds=1200).status == "succeeded", messages(client, jobs[-1])
            for job in jobs:
                said_once(client, job)
                adapter = loud.place.run(job).adapter / "adapter_model.safetensors"
                assert adapter.read_bytes() == expected, job
    finally:
        for server in (quiet, loud):
            server.close()
    print(f"{made} in {len(jobs)} jobs")


def _undisturbed(server: Killable, client: openai.OpenAI, text: bytes) -> bytes:
    file = client.files.create(file=("rows.jsonl", text), purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file, seed=5)
    assert wait(client, job.id, seconds=600).status == "succeeded"
    return Path(server.place.run(job.id).adapter / "adapter_model.safetensors").read_bytes()
