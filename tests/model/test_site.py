"""The rows of a fused projection."""

from __future__ import annotations

import torch

from capaft.model.site import Rows


def test_rows_in_groups() -> None:
    rows = Rows(start=1, block=2, stride=4, groups=3)
    values = torch.arange(24).view(2, 12)
    assert rows.count == 6
    assert rows.take(values, 1).tolist() == [[1, 2, 5, 6, 9, 10], [13, 14, 17, 18, 21, 22]]
    assert rows.take(values.T, -2).tolist() == rows.take(values, -1).T.tolist()
