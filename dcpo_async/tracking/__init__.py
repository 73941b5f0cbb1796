"""Trackers of experiments: what metrics.jsonl gains is passed on to W&B, MLflow, trackio and TensorBoard, by a process
for each, which reads the run folder and which the training waits for in nothing."""
