"""Check every adapter method on every model type that transformers maps for a head, and report the failures.

python benchmarks/coverage.py --workers 2 --peft --outcomes benchmarks/results/coverage.jsonl --output docs/coverage.md

Each model is tiny and random (see `shrunken`), and its head is trained directly. LoRA, DoRA, VeRA and the stacks adapt
all linear layers, the other hosts their own places. The checks do not depend on what a model has learnt: adapters stand
where attentions and feed-forward parts end (see `placement`), attaching one changes nothing, only the parameters of the
adapter and of the head have gradients, a file restores the adapter, merging keeps its outputs, and detaching restores
the base model. A model that does not run without an adapter either is listed but not counted. Outcomes are written as
they come; pairs that the file already has are not run again.
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
from capaft.methods.stack import parse_stack
from capaft.model.names import backbone_prefix, canonical_path
from capaft.model.targets import Targets
from capaft.model.weight_sites import find_weight_sites
from capaft.support.errors import UsageError

sys.path.insert(0, str(Path(__file__).parent))
from placement import PlacementError, check_placement
from shrunken import HEADS, Pair, Runnable, logits, loss, model_of, pairs, runnable

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "vera": {"rank": 4},
    "houlsby": {"bottleneck": 4},
    "pfeiffer": {"bottleneck": 4},
    "parallel": {"bottleneck": 4},
    "prefix": {"prefix_length": 2},
    "ia3": {},
    "bitfit": {},
    "nola": {"k": 16, "rank": 4},
    "lora+nola+capaboost": {"k": 16, "rank": 2, "copies": 2},
}
PLACED = ("houlsby", "pfeiffer", "parallel", "ia3")
REFUSED = "refused: "
PEFT = "peft lora"
LIMIT_SECONDS = 300
STEPS, LEARNING_RATE = 2, 1e-2
_PLACED: set[tuple[str, str, tuple[str, ...]]] = set()


class CheckError(Exception):
    """A check failed."""


class RefusedError(Exception):
    """A method refuses a model before it changes anything."""


class TooSlow(BaseException):
    """A pair took too long. Not an `Exception`, so that the search for a variant that runs does not catch it."""


@dataclass
class Outcome:
    """Result for a pair.

    Attributes:
        head: the head.
        model_type: the model type.
        unbuilt: why no such model runs without an adapter; None if one does.
        parameters: number of parameters of the shrunken model.
        experts: True if a 3-D parameter packs the weights of several experts.
        failures: reason for each method's failure, or for its refusal; None if it passed.
        sites: number of linear layers outside the head.
        silent: number of those that are not called in a forward.
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
        model_type: its name in transformers.
        method: a method stack, or `peft lora` for LoRA through PEFT.
        options: the method's options; by default those of `METHODS`.

    Returns:
        None if every check passes, otherwise the reason in one line.
    """
    pair = _pairs()[head, model_type]
    try:
        return _check(pair, runnable(pair), method, options)[0]
    except Exception as error:
        return f"not built: {_line(error)}"


def outcome(head: str, model_type: str, methods: tuple[str, ...]) -> Outcome:
    """Check all methods on a pair, within the time limit."""
    pair = _pairs()[head, model_type]
    result = Outcome(head, model_type)
    try:
        with _time_limit():
            ready = runnable(pair)
    except (Exception, TooSlow) as error:
        result.unbuilt = _line(error)
        return result
    named = list(ready.model.named_parameters())
    result.parameters = sum(parameter.numel() for _, parameter in named)
    result.experts = any(parameter.ndim == 3 and "experts" in name for name, parameter in named)
    try:
        result.sites = len(find_weight_sites(ready.model, Targets(_targets(ready.model))))
    except UsageError:
        result.sites = 0
    for method in methods:
        try:
            with _time_limit():
                result.failures[method], silent = _check(pair, ready, method, None)
                result.silent = max(result.silent, silent)
        except TooSlow as error:
            result.failures[method] = _line(error)
    return result


def _check(pair: Pair, ready: Runnable, method: str, options: dict[str, Any] | None) -> tuple[str | None, int]:
    """Reason for a method's failure on a model, if it fails or refuses, and number of silent sites."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if method == PEFT:
                _check_peft(pair, ready)
            else:
                _check_capaft(pair, ready, method, METHODS[method] if options is None else options)
            reason = None
        except RefusedError as error:
            reason = REFUSED + _line(error)
        except Exception as error:
            reason = _line(error)
    return reason, max((_silent(str(warning.message)) for warning in caught), default=0)


def _check_capaft(pair: Pair, ready: Runnable, method: str, options: dict[str, Any]) -> None:
    model, inputs = model_of(pair, ready.rules), ready.inputs
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = _logits(model, inputs)
    backbone = backbone_prefix(model)
    head = {canonical_path(model, n) for n, _ in model.named_parameters() if backbone and not n.startswith(backbone)}
    # With an input that is not contiguous, PyTorch multiplies by a frozen weight in another order: freeze to compare.
    fresh = model_of(pair, ready.rules)
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(canonical_path(fresh, name) in head)
    frozen = _logits(fresh, inputs)
    host = parse_stack(method).host
    assert host is not None
    targets = _targets(model) if host.default_targets else ""
    exclude = _too_narrow(model, targets, options.get("rank", 1)) if targets else ""
    modules = {name: module._forward_hooks.copy() for name, module in model.named_modules()}
    try:
        adapter = capaft.attach(model, method, targets=targets, exclude=exclude, head=head, **options)
    except UsageError as error:
        if modules != {name: dict(module._forward_hooks) for name, module in model.named_modules()}:
            raise CheckError("a refusal changes the model") from None
        raise RefusedError(str(error)) from None
    _same("attaching changes the logits", _logits(model, inputs), frozen)
    _check_places(pair, ready, method, tuple(site.path for site in adapter.plan.sites))

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
    if not host.unmergeable:
        capaft.merge(fresh)
        _same("merging changes the logits", _logits(fresh, inputs), adapted, 1e-4)

    capaft.detach(model)
    heads = {p.data_ptr() for name, p in model.named_parameters() if canonical_path(model, name) in head}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in heads and not torch.equal(tensor, state[name]):
            raise CheckError(f"detaching does not restore {name}")
    model.load_state_dict(state)
    _same("detaching changes the logits", _logits(model, inputs), plain)


def _check_places(pair: Pair, ready: Runnable, method: str, sites: tuple[str, ...]) -> None:
    """Check where an adapter stands, once for each model type and set of places."""
    if method not in PLACED or (pair.model_type, method, sites) in _PLACED:
        return
    model = model_of(pair, ready.rules).train(ready.training)
    check_placement(model, method, lambda: logits(model(**ready.inputs)))
    _PLACED.add((pair.model_type, method, sites))


def _too_narrow(model: nn.Module, targets: str, rank: int) -> str:
    """The layers that have no room for a rank, such as gates with one output, as names to leave out."""
    sites = find_weight_sites(model, Targets(targets))
    return ",".join(sorted({s.path.rsplit(".", 1)[-1] for s in sites if min(s.out_features, s.in_features) < rank}))


def _targets(model: nn.Module) -> str:
    """All linear layers; if the only ones are in the head, all convolutions."""
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


def _train(model: nn.Module, ready: Runnable, trained: set[int], adapter_parameters: set[int]) -> None:
    """Take a few steps in train mode, as users do.

    Only `trained` may have gradients, and one of `adapter_parameters` must have a nonzero one.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(logits(model(**ready.inputs))).backward()
        with_gradient = {id(p): name for name, p in model.named_parameters() if p.grad is not None}
        if frozen := [name for key, name in with_gradient.items() if key not in trained]:
            raise CheckError(f"{len(frozen)} frozen parameters have gradients: {frozen[0]}")
        optimizer.step()
    model.eval()
    if not any(p.grad is not None and p.grad.any() for p in model.parameters() if id(p) in adapter_parameters):
        raise CheckError("the adapter has no gradient")


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return logits(model(**inputs)).clone()


def _same(problem: str, actual: Tensor, expected: Tensor, tolerance: float = 0.0) -> None:
    """Compare logits, with a tolerance relative to the largest of them or to 1.

    Raises:
        CheckError: they differ by more; says `problem`.
    """
    finite = expected.isfinite()
    if actual.shape == expected.shape and torch.equal(actual[~finite], expected[~finite]):
        if torch.equal(actual, expected):
            return
        difference = (actual - expected)[finite].abs().max().item()
        if difference <= tolerance * max(1.0, expected[finite].abs().max().item()):
            return
        problem = f"{problem} by {difference:.0e}"
    raise CheckError(problem)


def _silent(warning: str) -> int:
    """Number of sites that a warning of capaft reports as never called."""
    match = re.match(r"adapted but not called in the first forward: (.*?)(?: and (\d+) more)?$", warning)
    return len(match[1].split(", ")) + int(match[2] or 0) if match else 0


def _line(error: BaseException) -> str:
    """An error in one line, without memory addresses, which differ from run to run."""
    text = " ".join(str(error).split())
    text = re.sub(r"0x[0-9a-f]+", "0x…", text)
    kind = "" if isinstance(error, (CheckError, PlacementError, RefusedError, TooSlow)) else f"{type(error).__name__}: "
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


def sweep(selection: Iterable[Pair], methods: tuple[str, ...], workers: int, file: Path | None) -> list[Outcome]:
    """Outcomes of the pairs, from worker processes, since any pair may crash its process; added to a file if given."""
    os.environ["PYTHONHASHSEED"] = "0"  # Some messages print sets.
    local = threading.local()

    def run(pair: Pair) -> Outcome:
        if not hasattr(local, "process"):
            local.process = ProcessPoolExecutor(1, get_context("spawn"), _prepare)
        try:
            return local.process.submit(outcome, pair.head, pair.model_type, methods).result()
        except BrokenProcessPool:
            del local.process
            return Outcome(pair.head, pair.model_type, unbuilt="the process crashed")

    outcomes = []
    with ThreadPoolExecutor(workers) as threads:
        for result in threads.map(run, selection):
            outcomes.append(result)
            _report(result)
            if file:
                with file.open("a") as lines:
                    lines.write(json.dumps(asdict(result)) + "\n")
    return outcomes


def _prepare() -> None:
    """Make a worker process quiet and single-threaded."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


def _report(result: Outcome) -> None:
    failures = {method: reason for method, reason in result.failures.items() if reason}
    print(f"{result.head}, {result.model_type}: {result.unbuilt or failures or 'passed'}", flush=True)


def page(outcomes: list[Outcome], methods: tuple[str, ...]) -> str:
    """The report; the same for the same outcomes."""
    built = [pair for pair in outcomes if pair.unbuilt is None]
    packages = ["transformers", "torch", "capaft", *(["peft"] if PEFT in methods else [])]
    lines = [
        "# Coverage",
        "",
        f"`benchmarks/coverage.py` made this page, with {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
        "Every model type that transformers maps for a head is built tiny and random, and adapted by every method:",
        "attached (the logits stay the same, to the bit), trained in train mode for two steps (only adapter and head",
        "get gradients), saved and loaded into a fresh model, merged if the method merges, and detached (the base is",
        "as before). `lora`, `dora`, `vera` and the stacks adapt all linear layers, or all convolutions where only the",
        "head has linear layers; the other methods adapt their own places.",
        "",
        "The places of `houlsby`, `pfeiffer`, `parallel` and `ia3` are checked by effect. Once the outputs of all",
        "places are zeroed, no weight of a block acts any more but those that a warning names as left out; zeroing one",
        "place of `houlsby` or `parallel` equals zeroing the weights of that attention or feed-forward part; and what",
        "`parallel` reads is all that the part depends on.",
        "",
        "A refusal is one line before anything is changed. Counts are of pairs of a head and a model type, percentages",
        f"of the {len(built)} of {len(outcomes)} that run without an adapter. PEFT's LoRA, if shown, is not asked to",
        "save, load or detach.",
        "",
        "| method | passes | refuses | fails |",
        "|---|---|---|---|",
    ]
    for method in methods:
        counts = [0, 0, 0]
        for pair in built:
            counts[_verdict(pair.failures[method])] += 1
        lines.append(f"| `{method}` | {' | '.join(_share(count, len(built)) for count in counts)} |")
    lines += ["", "What passes, by head:", ""]
    lines += [f"| head | mapped | run | {' | '.join(f'`{method}`' for method in methods)} |"]
    lines += ["|---|---|---|" + "---|" * len(methods)]
    for head in dict.fromkeys(pair.head for pair in outcomes):
        mapped = [pair for pair in outcomes if pair.head == head]
        run = [pair for pair in mapped if pair.unbuilt is None]
        cells = [str(sum(pair.failures[method] is None for pair in run)) for method in methods]
        lines.append(f"| {head} | {len(mapped)} | {len(run)} | {' | '.join(cells)} |")
    experts = {pair.model_type for pair in built if pair.experts}
    types = {pair.model_type for pair in built}
    lines += ["", f"{len(experts)} of {len(types)} model types that run keep their experts in packed 3-D parameters."]
    lines += ["", "## Not built", "", "Pairs that do not run even without an adapter.", ""]
    lines += _grouped((pair.unbuilt, f"{pair.model_type} ({pair.head})") for pair in outcomes if pair.unbuilt)
    for title, verdict in (("Refused", 1), ("Failed", 2)):
        for method in methods:
            pairs_ = [(reason, pair) for pair in built if _verdict(reason := pair.failures[method]) == verdict]
            lines += ["", f"## {title}: `{method}`", ""]
            lines += _grouped((_general(str(reason)), pair.model_type) for reason, pair in pairs_)
    lines += ["", "## Adapted but never called", "", "Sites that are not called in a forward of these inputs.", ""]
    silent = [f"- {pair.model_type}, {pair.head}: {pair.silent} of {pair.sites}" for pair in built if pair.silent]
    lines += silent or ["None."]
    return "\n".join(lines) + "\n"


def _verdict(reason: str | None) -> int:
    """0 if a method passes, 1 if it refuses, 2 if it fails."""
    return 0 if reason is None else 1 if reason.startswith(REFUSED) else 2


def _general(reason: str) -> str:
    """A reason without what differs between models that are alike: names of classes, paths and lists of layers."""
    reason = re.sub(r"\b[A-Z]\w*[a-z](For\w+|Model|LMHead\w*|Attention)\b", "the model", reason.removeprefix(REFUSED))
    reason = re.sub(r"\b\w+(\.\w+)*\.\d+(\.\w+)*", "*", reason)
    return re.sub(r"(which are|are) named: [^.]*\.", "are named otherwise.", reason)


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})" if whole else "0"


def _grouped(reasons: Iterable[tuple[str | None, str]]) -> list[str]:
    """One line per reason, with the models that it applies to."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for reason, model in reasons:
        groups[str(reason)][model] = None
    return [f"- {reason}: {', '.join(members)}" for reason, members in groups.items()] or ["None."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--heads", help=f"some of {', '.join(HEADS)}, separated by commas")
    parser.add_argument("--peft", action="store_true", help="check PEFT's LoRA as well")
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--outcomes", type=Path, help="every outcome, one JSON object a line")
    options = parser.parse_args()
    heads, types = (value.split(",") if value else None for value in (options.heads, options.only))
    selection = [p for p in pairs() if (not heads or p.head in heads) and (not types or p.model_type in types)]
    methods = (*METHODS, *([PEFT] if options.peft else []))
    file = options.outcomes
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    done = {(o.head, o.model_type): o for o in _outcomes(file)} if file and file.exists() else {}
    new = sweep([p for p in selection if (p.head, p.model_type) not in done], methods, options.workers, file)
    done |= {(outcome.head, outcome.model_type): outcome for outcome in new}
    text = page([done[pair.head, pair.model_type] for pair in selection], methods)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)


def _outcomes(file: Path) -> list[Outcome]:
    return [Outcome(**json.loads(line)) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    main()
