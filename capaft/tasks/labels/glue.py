"""The metrics that the GLUE benchmark scores its tasks by (Wang et al. 2019, arXiv 1804.07461, table 1).

Where it gives two, F1 stands for MRPC and QQP, and the mean of both correlations for STS-B, as in its leaderboard.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise

from capaft.data.slices import split_off_slice
from capaft.data.tables import TABLE_SUFFIXES

_METRICS = {
    "cola": "matthews",
    "sst2": "accuracy",
    "mrpc": "f1",
    "stsb": "pearson_spearman",
    "qqp": "f1",
    "mnli": "accuracy",
    "mnlimatched": "accuracy",
    "mnlimismatched": "accuracy",
    "qnli": "accuracy",
    "rte": "accuracy",
    "wnli": "accuracy",
}


def official_metric(data: str) -> str | None:
    """The metric of the GLUE task that a data set's path or hub id names, such as `glue/cola`; None for other data.

    The task may be a directory or a file, and a slice may follow.
    """
    # As where the data is read: what is there under that name has no slice.
    source = data if os.path.exists(os.path.expanduser(data)) else split_off_slice(data)[0]
    parts = re.split(r"[/\\]", source.lower())
    for benchmark, task in pairwise(parts):
        if benchmark in ("glue", "glue_data"):
            suffix = next((each for each in TABLE_SUFFIXES if task.endswith(each)), "")
            return _METRICS.get(re.sub(r"[\W_]", "", task.removesuffix(suffix)))
    return None
