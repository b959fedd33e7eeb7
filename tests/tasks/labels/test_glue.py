from __future__ import annotations

from pathlib import Path

import pytest

from capaft.tasks.labels.glue import official_metric


@pytest.mark.parametrize(
    ("data", "metric"),
    [
        ("glue/cola", "matthews"),
        ("../data/glue/cola", "matthews"),
        ("nyu-mll/glue/cola", "matthews"),
        ("/data/glue/cola/train.jsonl", "matthews"),
        ("/data/glue/cola/train.jsonl[:100]", "matthews"),
        ("glue/cola.jsonl", "matthews"),
        ("glue/STS-B.TSV", "pearson_spearman"),
        ("glue/mrpc[:5%]", "f1"),
        ("glue/cola.parquet[10:]", "matthews"),
        ("glue_data/CoLA", "matthews"),
        ("glue/sst2/", "accuracy"),
        ("GLUE/SST-2", "accuracy"),
        (r"C:\glue\mrpc", "f1"),
        ("glue/qqp", "f1"),
        ("glue/stsb", "pearson_spearman"),
        ("glue/STS-B", "pearson_spearman"),
        ("glue/mnli", "accuracy"),
        ("glue/mnli_matched", "accuracy"),
        ("glue/qnli", "accuracy"),
        ("glue/rte", "accuracy"),
        ("glue/wnli", "accuracy"),
        ("cola", None),
        ("glue", None),
        ("glue/other", None),
        ("super_glue/rte", None),
        ("not-glue/cola", None),
        ("", None),
    ],
)
def test_official_metric(data: str, metric: str | None) -> None:
    assert official_metric(data) == metric


def test_brackets_of_a_directory_are_no_slice(tmp_path: Path) -> None:
    (tmp_path / "glue" / "cola[:5]").mkdir(parents=True)
    assert official_metric(str(tmp_path / "glue" / "cola[:5]")) is None
    assert official_metric(str(tmp_path / "glue" / "cola[:6]")) == "matthews"
