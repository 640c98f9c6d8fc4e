"""Every file of the run directory as a typed record; ``docs/reference/files.md`` is generated from here.

base          what a record is
stages        stages.json: what was done, from what, and when
manifest      manifest.json: where a run comes from
data          data/: which row is in which part, which were left out, how long they are
events        events.jsonl: what happens, a line an event
training      training.json, metrics.jsonl, state.json of a checkpoint: what was trained, step by step
check         check --json, data/report.json, data/rejected.jsonl: what is known of the rows
quality       the quality report in them: what is in the rows
advice        advice.json: whether to tune at all
answers       evaluation/: answers and scores of every arm
evaluation    evaluation/: the choice of prompts, the verdict
choice        evaluation/choice.json: which of several tuned models is deployed
imported      import --json: what became of the keys of another tool
saving        a part of verdict.json: what a call of the tuned model saves
readings      readings/: what answered the test part
evidence      evaluation/: retrieval, judge, forgetting, seeds, curve
race          race/race.json: several base models on a few rows
export        export.json, merge.json, commands.json: what was written, and how it is served
provenance    verify --json: whether files are those that the verdict speaks of
push          push --json: what goes to the hub
parity        parity.json, sweep.json: whether forms are what was trained, and which type to deploy
"""

from tunesmith.rundir.records.base import FileRecord, Json, Record

__all__ = ["FileRecord", "Json", "Record"]
