"""What a run says while it runs: events for those who watch, log lines for those who read, a table of metrics.

The code that works emits events and logs under the name ``tunesmith``; it prints nothing and draws nothing. Who listens is
decided around it: the pipeline attaches a run's ``events.jsonl``, the command line its terminal (``terminal.py``), and warnings
that are logged within become events as well. A library that nobody asked to speak is silent.

    sinks      emit, attached, stage: where events go
    progress   bars, as events
    metrics    metrics.jsonl and metrics.csv
    terminal   lines and bars on stderr, for the command line alone
    text       unseen characters written out
"""

import logging

from tunesmith.tracking.metrics import MetricsLog, read_metrics, write_csv
from tunesmith.tracking.progress import Bar, progress
from tunesmith.tracking.sinks import LOGGER, Sink, WarningEvents, attached, emit, stage
from tunesmith.tracking.text import visible

__all__ = ["Bar", "MetricsLog", "Sink", "attached", "emit", "progress", "read_metrics", "stage", "visible", "write_csv"]

# A handler of ours also keeps Python from printing warnings by itself where the user has set up no logging.
logging.getLogger(LOGGER).addHandler(WarningEvents())
