"""The metrics of the GLUE benchmark (Wang et al. 2019, arXiv 1804.07461, table 1).

Of two metrics, MRPC and QQP are scored by F1; STS-B is scored by the mean of both correlations, as on the leaderboard.
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
    """The metric of the GLUE task that a path or hub id such as `glue/cola` names; None for other data.

    The task may be a directory or a file, and a slice may follow.
    """
    # As when the data is read, brackets in the name of an existing path are not a slice.
    source = data if os.path.exists(os.path.expanduser(data)) else split_off_slice(data)[0]
    parts = re.split(r"[/\\]", source.lower())
    for benchmark, task in pairwise(parts):
        if benchmark in ("glue", "glue_data"):
            suffix = next((suffix for suffix in TABLE_SUFFIXES if task.endswith(suffix)), "")
            return _METRICS.get(re.sub(r"[\W_]", "", task.removesuffix(suffix)))
    return None
