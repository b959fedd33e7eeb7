"""Sample weights of a base model, and the comparison of two sets of them.

Rounding to another floating-point dtype moves each weight by a known part of itself, and no weight more. Training moves
all of them, and the small ones by a large part. Unpacking a quantised copy moves them as far as training does, but such
a copy shows what it is: few levels, evenly spaced, for all weights of a run.
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Mapping
from enum import Enum

import numpy as np
import torch
from accelerate.utils import align_module_device
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.factors import rng
from capaft.model.site import Site

SAMPLES = 192
# Of the head, which has few parameters; these choose each sample's parameter freely.
FEW_SAMPLES = 64
# In front of samples of a model that was unpacked from codes.
COARSE = "~"

# Rounding to float16 and then to bfloat16 moves a weight by 4.4e-3 of itself at most, and storing both by 5e-4 each.
RELATIVE_TOLERANCE = 6e-3
# Below this, float16 has fewer bits than the relative tolerance asks for.
ABSOLUTE_TOLERANCE = 2e-7
# Roundings go to both sides, so the mean of the relative changes, which moves the norm, stays far below any one of
# them; and they are uniform, so the root of their mean square, which turns the direction, stays below 2.3e-3.
NORM_TOLERANCE = 1.5e-3
DIRECTION_TOLERANCE = 2.5e-3
# Smaller weights are rounded more coarsely in float16.
SMALLEST = 2.0**-14
# Codes of 3 bits move the weights by 0.23 of their norm; another model's are at 1.
COARSE_TOLERANCE = 0.35

# Weights that lie side by side in one row and share the scale of their codes in common layouts; in some, half as many.
RUN = 32
# Weights other than 0 that a run needs to show levels, and the share of runs that have to.
LEAST_IN_RUN = 8
COARSE_SHARE = 0.8
LEVELS = 256


class Agreement(Enum):
    """The result of comparing two sets of samples."""

    SAME = "same"
    COARSE = "coarse"
    OTHER = "other"


def samples_of(
    model: nn.Module,
    sites: tuple[Site, ...],
    seed: int,
    what: str,
    count: int,
    replaced: Mapping[str, Tensor] | None = None,
) -> str | None:
    """Seeded sample weights of sites, base64 of float16; `~` in front if the weights were unpacked from codes.

    Args:
        model: the model.
        sites: sorted by path.
        seed: of the adapter.
        what: names the stream that chooses the samples.
        count: number of samples; but for `FEW_SAMPLES`, every site has its share of them.
        replaced: parameters by canonical name that an adapter has in place of the model's.

    Returns:
        None where a weight is quantised.
    """
    if not sites or any(site.is_quantised(model) for site in sites):
        return None
    drawn = rng.words(rng.fold_in(seed, "", what, "fingerprint"), 2 * count) >> np.uint64(32)
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, (first, second) in enumerate(zip(drawn[0::2].tolist(), drawn[1::2].tolist(), strict=True)):
        if count == FEW_SAMPLES:
            number = first * len(sites) >> 32
        else:
            number = (first + (index << 32)) * len(sites) // count >> 32
        places[number].append((index, second))
    samples, coarse = np.zeros(count), []
    for number, chosen in places.items():
        site = sites[number]
        # Fetches a weight that accelerate has offloaded.
        with align_module_device(model.get_submodule(site.module)), torch.no_grad():
            substitute = (replaced or {}).get(f"{site.path}.{site.parameter}".removeprefix("."))
            weight = site.weight(model) if substitute is None else site.matrix(substitute)
            for index, second in chosen:
                row, column = divmod(second * weight.numel() >> 32, weight.shape[1])
                start = column // RUN * RUN
                run = weight[row, start : start + RUN].double().cpu()
                samples[index] = float(run[column - start])
                half = (column - start) // (RUN // 2) * (RUN // 2)
                coarse.append(_is_coarse(run) or _is_coarse(run[half : half + RUN // 2]))
    known = [is_coarse for is_coarse in coarse if is_coarse is not None]
    mark = COARSE if known and sum(known) >= COARSE_SHARE * len(known) else ""
    return mark + base64.b64encode(samples.astype("<f2").tobytes()).decode()


def compare_samples(stored: str, sampled: str) -> Agreement:
    """Compare two sets of samples.

    `SAME` is a copy in another floating-point dtype. `COARSE` is as near as a quantised copy is, and one of the two was
    unpacked from codes.

    Raises:
        ValueError: one of them is not base64 of float16 values.
    """
    old, new = _decoded(stored), _decoded(sampled)
    if old.shape != new.shape:
        return Agreement.OTHER
    if _is_rounded(old, new):
        return Agreement.SAME
    if not (stored.startswith(COARSE) or sampled.startswith(COARSE)):
        return Agreement.OTHER
    distance = np.linalg.norm(new - old) / max(float(np.linalg.norm(old)), ABSOLUTE_TOLERANCE)
    return Agreement.COARSE if distance <= COARSE_TOLERANCE else Agreement.OTHER


def _is_rounded(old: NDArray[np.float64], new: NDArray[np.float64]) -> bool:
    """True if samples differ by no more than roundings to floating-point dtypes."""
    if not np.allclose(new, old, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE):
        return False
    large = np.isfinite(old) & (abs(old) >= SMALLEST)
    changes = (new[large] - old[large]) / old[large]
    if not len(changes):
        return True
    return abs(changes.mean()) <= NORM_TOLERANCE and np.sqrt((changes**2).mean()) <= DIRECTION_TOLERANCE


def _decoded(text: str) -> NDArray[np.float64]:
    try:
        data = base64.b64decode(text.removeprefix(COARSE), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    return np.frombuffer(data, dtype="<f2").astype(np.float64)


def _is_coarse(run: Tensor) -> bool | None:
    """True if weights that share a scale have no more levels than codes of 8 bits; None if too few can tell."""
    values = run[run != 0]
    if len(values) < LEAST_IN_RUN:
        return None
    levels = values.unique()
    if len(levels) <= len(values) // 2:
        return True
    gaps = levels.diff()
    steps = (levels - levels[0]) / gaps.min()
    return bool(steps[-1] <= LEVELS) and float((steps - steps.round()).abs().mean()) < 0.05
