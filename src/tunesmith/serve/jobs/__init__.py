"""Fine-tuning by OpenAI's API: files are uploaded, jobs are made of them, and a job ends with a verdict.

A job is an ordinary run: its recipe lies in ``runs/<job>/`` below the directory of the jobs, ``tunesmith run`` carries it out,
and every other verb works on it. What is new here is the life around a run:

    DIR/jobs.yaml          what may be tuned, and within which limits (settings.py)
    DIR/jobs.sqlite3       files, jobs, events, webhooks (store.py, queue.py)
    DIR/files/             what was uploaded, and results
    DIR/rows/<job>/        the rows of a job, linked there so that a deleted file takes no job's data away
    DIR/runs/<job>/        the run
    DIR/logs/<job>.log     what its processes said

The server answers and supervises; one worker process (worker.py) claims jobs and starts the programs that do the work, each
in its own process group. Whoever of the three is killed, the job goes on: a run that is started again resumes.
"""
