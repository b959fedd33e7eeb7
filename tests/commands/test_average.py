"""`capaft average`: one adapter file of several."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import invoke


def test_the_average_of_a_run_with_itself_is_the_run(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "mean.safetensors"
    done = invoke("average", run, run, "--weights", "3,1", "--output", output, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == {"output": str(output), "adapters": 2, "bytes": output.stat().st_size}
    assert output.read_bytes() == (run / "adapter.safetensors").read_bytes()
    again = invoke("average", run, run, "--output", output)
    assert (again.code, "--overwrite" in again.err) == (2, True)


def test_one_run_alone_is_refused(run: Path, tmp_path: Path) -> None:
    done = invoke("average", run, "--output", tmp_path / "mean.safetensors")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "error: an average takes at least two adapters; name another RUN"


def test_factors_are_numbers_that_weights_can_be_multiplied_by(run: Path, tmp_path: Path) -> None:
    for command, output in (("average", tmp_path / "a.safetensors"), ("merge", tmp_path / "m")):
        done = invoke(command, run, run, "--weights", "1e308,1e308", "--output", output)
        assert (done.code, done.out) == (2, "")
        assert done.err.splitlines()[-1] == "error: --weights must be between -1e6 and 1e6 each, got 1e308,1e308"
