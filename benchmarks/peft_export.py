"""Export adapters to PEFT on every model type that transformers maps for a head, and compare what PEFT makes of them.

python benchmarks/peft_export.py --outcomes benchmarks/results/peft_export.jsonl

Each model is tiny and random (see `shrunken`); its head is trained as it is, and parameters are drawn, not trained. An
export passes if PEFT loads it onto a fresh model without missing or unexpected keys and the logits are equal within
1e-5 of the largest. Refusals are counted apart, with their reasons. Pairs that the file already has are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from coverage import _line, _logits, _targets, _time_limit, _too_narrow
from shrunken import Pair, Runnable, model_of, pairs, runnable

import capaft
from capaft.model.names import backbone_prefix
from capaft.support.errors import UsageError

METHODS: dict[str, dict[str, Any]] = {
    "lora+capaboost": {"rank": 2, "copies": 2},
    "dora": {"rank": 2},
    "ia3": {},
}
TOLERANCE = 1e-5


def outcome(pair: Pair, ready: Runnable, method: str) -> str:
    """`passed`, or the reason why not."""
    from peft import PeftModel

    model, fresh = model_of(pair, ready.rules), model_of(pair, ready.rules)
    for plain in (model, fresh):
        _logits(plain, ready.inputs)  # Some models choose their attention in the first forward.
    backbone = backbone_prefix(model)
    head = [name for name, _ in model.named_parameters() if backbone and not name.startswith(backbone)]
    options = dict(METHODS[method])
    if method != "ia3":
        targets = _targets(model)
        options |= {"targets": targets, "exclude": _too_narrow(model, targets, 2)}
    try:
        adapter = capaft.attach(model, method, head=head, **options)
    except UsageError as error:
        return f"not attached: {_line(error)}"
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.trained(model).values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    expected = _logits(model, ready.inputs)
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|[Uu]nexpected|mismatch).*keys.*")
        try:
            capaft.export_peft(model, f"{directory}/peft")
        except UsageError as error:
            return f"refused: {_line(error)}"
        loaded = PeftModel.from_pretrained(fresh, f"{directory}/peft").eval()
        actual = _logits(loaded.base_model.model, ready.inputs)
    finite = expected.isfinite()
    difference = (actual - expected)[finite].abs().max().item()
    scale = max(1.0, expected[finite].abs().max().item())
    return "passed" if difference <= TOLERANCE * scale else f"differs by {difference:.0e} of {scale:.1e}"


def main() -> None:
    """Run the pairs, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=Path, required=True)
    parser.add_argument("--head", action="append", help="only pairs of this head; may be repeated")
    parser.add_argument("--part", default="0/1", help="of the pairs, every n-th from the i-th, as i/n")
    arguments = parser.parse_args()
    first, step = map(int, arguments.part.split("/"))
    warnings.simplefilter("ignore")
    known = arguments.outcomes.read_text().splitlines() if arguments.outcomes.exists() else []
    done = {(record["head"], record["model_type"]) for record in map(json.loads, known)}
    for pair in list(pairs())[first::step]:
        if (pair.head, pair.model_type) in done or (arguments.head and pair.head not in arguments.head):
            continue
        record: dict[str, Any] = {"head": pair.head, "model_type": pair.model_type}
        try:
            with _time_limit():
                ready = runnable(pair)
                for method in METHODS:
                    try:
                        record[method] = outcome(pair, ready, method)
                    except Exception as error:
                        record[method] = f"failed: {_line(error)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            record["unbuilt"] = _line(error)
        with arguments.outcomes.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
    records = [json.loads(line) for line in arguments.outcomes.read_text().splitlines()]
    for method in METHODS:
        counts = Counter(record.get(method, "unbuilt").partition(":")[0].split(" by ")[0] for record in records)
        sys.stdout.write(f"{method:16} {dict(counts)}\n")


if __name__ == "__main__":
    main()
