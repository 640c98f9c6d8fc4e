"""A run's figures in the tracker that a team looks at: TensorBoard, W&B, MLflow or trackio.

An exporter and no callback: it reads ``events.jsonl`` beside the training, so nothing of a tracker is imported there, nothing
can stop or slow it, and a run that was made before anybody thought of trackers is sent whole. A resumed training says its
steps again; here they are a table (``steps.py``) that is held against what the store has, and only what is new is sent
(``sender.py``). Measured with the callbacks of peers: MLflow and trackio keep a replayed step twice, W&B drops it, and none of
them forgets the steps of a training that was thrown away.

Names are those that transformers' callbacks give (``train/loss``, ``eval/loss``, ``train/learning_rate``), so a dashboard that
is there shows our runs beside others.

    steps         the table of steps, from events
    facts         what is known of a run beside its steps
    tracker       what every tracker can do
    sender        what is new in the table goes to the tracker, once
    tensorboard, wandb, mlflow, trackio

Refused: one abstraction over all features of the four (media, tables, alerts); Aim, whose last release is of May 2025.
"""
