"""Every model type that transformers maps for a head, adapted: what holds, what does not, and why.

python benchmarks/coverage.py --workers 2 --output docs/coverage.md --json benchmarks/results/coverage.json

Each model is tiny and random (:mod:`shrunken`), all its linear layers are targets, and its head is trained as it is.
What is checked does not depend on what a model has learnt: an adapter changes nothing when it is attached, only its own
numbers and the head's have gradients, a file brings it back, merging keeps its outputs, detaching leaves the base as it
was. A model that does not run without an adapter either is listed and not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import capaft
from capaft.model.names import backbone_prefix, canonical_path
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
from shrunken import HEADS, Pair, Runnable, logits, loss, model_of, pairs, runnable

METHODS: dict[str, dict[str, Any]] = {
    "nola": {"k": 16, "rank": 4},
    "lora+nola+capaboost": {"k": 16, "rank": 2, "copies": 2},
}
PEFT = "peft lora"
LIMIT_SECONDS = 60
STEPS, LEARNING_RATE = 2, 1e-2


class CheckError(Exception):
    """A check does not hold."""


class TooSlow(BaseException):
    """The time of a pair is over. No `Exception`, so that no search for a variant that runs takes it for an answer."""


@dataclass
class Outcome:
    """What came of a pair.

    Attributes:
        head: the head.
        model_type: the model type.
        unbuilt: why there is no such model that runs without an adapter; None if there is.
        parameters: of the shrunken model.
        experts: it has weights of several experts in one 3-D parameter.
        failures: by method, why it failed; None where it passed.
        sites: its linear layers outside the head.
        silent: how many of them take no part in a forward.
    """

    head: str
    model_type: str
    unbuilt: str | None = None
    parameters: int = 0
    experts: bool = False
    failures: dict[str, str | None] = field(default_factory=dict)
    sites: int = 0
    silent: int = 0


def check(head: str, model_type: str, method: str, options: dict[str, Any] | None = None) -> str | None:
    """Check one method on one model.

    Args:
        head: one of `shrunken.HEADS`.
        model_type: as transformers calls it.
        method: a method stack, or `peft lora` for the same through PEFT.
        options: the method's numbers; by default those of `METHODS`.

    Returns:
        None if all holds, otherwise why not, in one line.
    """
    pair = _pairs()[head, model_type]
    try:
        return _check(pair, runnable(pair), method, options)[0]
    except Exception as error:
        return f"not built: {_line(error)}"


def outcome(head: str, model_type: str, methods: tuple[str, ...]) -> Outcome:
    """What comes of a pair, within the time limit."""
    pair = _pairs()[head, model_type]
    found = Outcome(head, model_type)
    try:
        with _time_limit():
            ready = runnable(pair)
    except (Exception, TooSlow) as error:
        found.unbuilt = _line(error)
        return found
    named = list(ready.model.named_parameters())
    found.parameters = sum(parameter.numel() for _, parameter in named)
    found.experts = any(parameter.ndim == 3 and "experts" in name for name, parameter in named)
    try:
        found.sites = len(find_weight_sites(ready.model, Targets(_targets(ready.model))))
    except UsageError:
        found.sites = 0
    for method in methods:
        try:
            with _time_limit():
                found.failures[method], silent = _check(pair, ready, method, None)
                found.silent = max(found.silent, silent)
        except TooSlow as error:
            found.failures[method] = _line(error)
    return found


def _check(pair: Pair, ready: Runnable, method: str, options: dict[str, Any] | None) -> tuple[str | None, int]:
    """Why a method fails on a model, if it does, and how many sites are silent."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if method == PEFT:
                _check_peft(pair, ready)
            else:
                _check_capaft(pair, ready, method, METHODS[method] if options is None else options)
            reason = None
        except Exception as error:
            reason = _line(error)
    return reason, max((_silent(str(each.message)) for each in caught), default=0)


def _check_capaft(pair: Pair, ready: Runnable, method: str, options: dict[str, Any]) -> None:
    model, inputs = model_of(pair, ready.rules), ready.inputs
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = _logits(model, inputs)
    inside = backbone_prefix(model)
    head = {canonical_path(model, n) for n, _ in model.named_parameters() if inside and not n.startswith(inside)}
    # PyTorch multiplies by a frozen weight in another order where an input is not contiguous: freeze to compare.
    fresh = model_of(pair, ready.rules)
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(canonical_path(fresh, name) in head)
    frozen = _logits(fresh, inputs)
    adapter = capaft.attach(model, method, targets=_targets(model), head=head, **options)
    _same("attaching changes the logits", _logits(model, inputs), frozen)

    trained = {id(parameter) for parameter in adapter.trained(model).values()}
    _train(model, ready, trained, {id(parameter) for parameter in adapter.role_parameters.values()})
    adapted = _logits(model, inputs)
    if torch.equal(adapted, frozen):
        raise CheckError("training changes nothing")

    fresh.load_state_dict(state)
    with tempfile.TemporaryDirectory() as directory:
        capaft.save(model, f"{directory}/adapter.safetensors")
        capaft.load(fresh, f"{directory}/adapter.safetensors")
    _same("loading changes the logits", _logits(fresh, inputs), adapted, 1e-6)
    capaft.merge(fresh)
    _same("merging changes the logits", _logits(fresh, inputs), adapted, 1e-4)

    capaft.detach(model)
    heads = {p.data_ptr() for name, p in model.named_parameters() if canonical_path(model, name) in head}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in heads and not torch.equal(tensor, state[name]):
            raise CheckError(f"detaching does not restore {name}")
    model.load_state_dict(state)
    _same("detaching changes the logits", _logits(model, inputs), plain)


def _targets(model: nn.Module) -> str:
    """All linear layers; of a model that has none but its head, all convolutions."""
    try:
        find_weight_sites(model, Targets("all-linear"))
    except UsageError:
        return "conv"
    return "all-linear"


def _check_peft(pair: Pair, ready: Runnable) -> None:
    import peft

    model, inputs = model_of(pair, ready.rules).requires_grad_(False), ready.inputs
    plain = _logits(model, inputs)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    _same("attaching changes the logits", _logits(adapted, inputs), plain)
    trained = {id(parameter) for name, parameter in adapted.named_parameters() if "lora_" in name}
    _train(adapted, ready, trained, trained)
    before = _logits(adapted, inputs)
    _same("merging changes the logits", _logits(adapted.merge_and_unload(), inputs), before, 1e-4)


def _train(model: nn.Module, ready: Runnable, trained: set[int], numbers: set[int]) -> None:
    """A few steps, after which nothing but `trained` has gradients, and some of `numbers` has one that is not zero."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    model.train(ready.training)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(logits(model(**ready.inputs))).backward()
        graded = {id(p): name for name, p in model.named_parameters() if p.grad is not None}
        if astray := [name for key, name in graded.items() if key not in trained]:
            raise CheckError(f"{len(astray)} frozen parameters have gradients: {astray[0]}")
        optimizer.step()
    model.eval()
    if not any(p.grad is not None and p.grad.any() for p in model.parameters() if id(p) in numbers):
        raise CheckError("the adapter has no gradient")


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return logits(model(**inputs)).clone()


def _same(what: str, found: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Compare logits, to a tolerance relative to the largest of them, or to 1.

    Raises:
        CheckError: they differ by more.
    """
    finite = expected.isfinite()
    if found.shape == expected.shape and torch.equal(found[~finite], expected[~finite]):
        if torch.equal(found, expected):
            return
        difference = (found - expected)[finite].abs().max().item()
        if difference <= tolerance * max(1.0, expected[finite].abs().max().item()):
            return
        what = f"{what} by {difference:.0e}"
    raise CheckError(what)


def _silent(warning: str) -> int:
    """How many sites a warning of capaft says were never called."""
    told = re.match(r"adapted but not called in the first forward: (.*?)(?: and (\d+) more)?$", warning)
    return len(told[1].split(", ")) + int(told[2] or 0) if told else 0


def _line(error: BaseException) -> str:
    """An error in one line, without what differs from run to run."""
    text = " ".join(str(error).split())
    text = re.sub(r"0x[0-9a-f]+", "0x…", text)
    kind = "" if isinstance(error, (CheckError, TooSlow)) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= 200 else text[:199] + "…")


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooSlow(f"takes more than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@cache
def _pairs() -> dict[tuple[str, str], Pair]:
    return {(pair.head, pair.model_type): pair for pair in pairs()}


# The sweep -----------------------------------------------------------------------------------------------------------


def sweep(wanted: Iterable[Pair], methods: tuple[str, ...], workers: int) -> list[Outcome]:
    """What comes of each pair, in processes of their own, of which any may crash."""
    os.environ["PYTHONHASHSEED"] = "0"  # Some messages print sets.
    own = threading.local()

    def one(pair: Pair) -> Outcome:
        if not hasattr(own, "process"):
            own.process = ProcessPoolExecutor(1, get_context("spawn"), _prepare)
        try:
            return own.process.submit(outcome, pair.head, pair.model_type, methods).result()
        except BrokenProcessPool:
            del own.process
            return Outcome(pair.head, pair.model_type, unbuilt="the process crashed")

    found = []
    with ThreadPoolExecutor(workers) as threads:
        for each in threads.map(one, wanted):
            found.append(each)
            _report(each)
    return found


def _prepare() -> None:
    """Make a worker process quiet and single-threaded."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


def _report(each: Outcome) -> None:
    told = {method: reason for method, reason in each.failures.items() if reason}
    print(f"{each.head}, {each.model_type}: {each.unbuilt or told or 'passed'}", flush=True)


def page(found: list[Outcome], methods: tuple[str, ...]) -> str:
    """The report; the same from the same outcomes."""
    built = [each for each in found if each.unbuilt is None]
    packages = ["transformers", "torch", "capaft", *(["peft"] if PEFT in methods else [])]
    lines = [
        "# Coverage",
        "",
        f"`benchmarks/coverage.py` made this page, with {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
        "Every model type that transformers maps for a head is built tiny and random, and adapted in all its linear",
        "layers: attached (the logits stay as they are, to the bit), trained for two steps (only the adapter and the",
        "head get gradients), saved and loaded into a fresh model, merged, detached (the base is as it was).",
        "Models that have no linear layer but their head (convolutional ones) are adapted in their convolutions.",
        "A pair counts as passed if all of it holds; percentages are of the pairs that run without an adapter. PEFT's",
        "LoRA, where it stands beside, is not asked to save, load or detach.",
        "",
        f"| head | mapped | run | {' | '.join(f'`{method}`' for method in methods)} |",
        "|---|---|---|" + "---|" * len(methods),
    ]
    for head in [*dict.fromkeys(each.head for each in found), ""]:
        mapped = [each for each in found if head in ("", each.head)]
        run = [each for each in mapped if each.unbuilt is None]
        cells = [_share(sum(each.failures[method] is None for each in run), len(run)) for method in methods]
        lines.append(f"| {head or 'all'} | {len(mapped)} | {_share(len(run), len(mapped))} | {' | '.join(cells)} |")
    experts = {each.model_type for each in built if each.experts}
    types = {each.model_type for each in built}
    lines += ["", f"{len(experts)} of {len(types)} model types that run keep their experts in packed 3-D parameters."]
    lines += ["", "## Not built", "", "Pairs that do not run without an adapter either.", ""]
    lines += _grouped((each.unbuilt, each) for each in found if each.unbuilt)
    for method in methods:
        failed = [(reason, each) for each in built if (reason := each.failures[method])]
        lines += ["", f"## Failed: `{method}`", ""]
        lines += [f"- {each.model_type}, {each.head}: {reason}" for reason, each in failed] or ["None."]
    lines += ["", "## Adapted but never called", "", "Sites that take no part in a forward of these inputs.", ""]
    silent = [f"- {each.model_type}, {each.head}: {each.silent} of {each.sites}" for each in built if each.silent]
    lines += silent or ["None."]
    return "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else "0"


def _grouped(reasons: Iterable[tuple[str | None, Outcome]]) -> list[str]:
    """One line a reason, with all that it holds for."""
    groups: dict[str, list[str]] = defaultdict(list)
    for reason, each in reasons:
        groups[str(reason)].append(f"{each.model_type} ({each.head})")
    return [f"- {reason}: {', '.join(members)}" for reason, members in groups.items()] or ["None."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--heads", help=f"of {', '.join(HEADS)}, separated by commas")
    parser.add_argument("--peft", action="store_true", help="check PEFT's LoRA beside")
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--json", type=Path, help="every outcome")
    options = parser.parse_args()
    heads, types = (value.split(",") if value else None for value in (options.heads, options.only))
    wanted = [p for p in pairs() if (not heads or p.head in heads) and (not types or p.model_type in types)]
    methods = (*METHODS, *([PEFT] if options.peft else []))
    found = sweep(wanted, methods, options.workers)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    text = page(found, methods)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
