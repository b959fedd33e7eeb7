"""The results of a run that never was, to test how results are written, read and shown."""

from __future__ import annotations

from capaft.training.record.results import Results

RESULTS = Results(
    output="runs/one",
    model="tiny",
    data="reviews.csv",
    task="text-classification",
    method="lora+nola",
    metric="accuracy",
    value=0.8308,
    baseline=0.8154,
    trainable_parameters=14_092,
    adapter_parameters=9_472,
    head_parameters=4_620,
    scores={"loss": 0.25, "accuracy": 0.8308, "f1": 2 / 3},
    best_step=8,
    seconds=2.5,
    examples_per_second=51.2,
    adapter_bytes=57_824,
    peak_memory_bytes=3 * 2**20,
    epochs=2.0,
    steps=16,
    processes=1,
    bytes_per_step=0,
    seed=0,
    train_examples=58,
    validation_examples=6,
    labels=["bad", "good"],
    next=["capaft eval runs/one", "capaft merge runs/one --output runs/one/merged"],
)
