"""A tokenizer's tokens and the rows of the model's embedding, of which there may be too few."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capaft.factors import rng
from capaft.model.names import canonical_path, input_embeddings
from capaft.model.skeleton import NeedsWeights
from capaft.support.errors import UsageError, one_line
from capaft.support.printable import printable


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Make sure that a tokenizer can tokenise.

    Args:
        tokenizer: the tokenizer.
        name: the user's name for the model.

    Raises:
        UsageError: it cannot, or what its configuration says makes no sense.
    """
    limit, names = tokenizer.model_max_length, tokenizer.model_input_names
    if not isinstance(limit, int | float) or limit < 1 or limit % 1 != 0:
        raise UsageError(
            f"--model {name}: its tokenizer_config.json gives model_max_length as {printable(str(limit))[:40]}, which "
            "is no number of tokens; correct it"
        )
    if "input_ids" not in names:
        raise UsageError(
            f"--model {name}: its tokenizer_config.json does not have input_ids among model_input_names; correct it"
        )
    try:
        tokenizer("a text with a sign that few know: \N{SNOWMAN}")
    except Exception as error:  # Tokenizers raise nothing more special.
        raise UsageError(f"--model {name}: its tokenizer fails ({one_line(error)}); get its files again") from None


def embedding_rows(model: nn.Module) -> int:
    """Number of tokens for which a model has an embedding; unlimited if it does not name its embedding."""
    weight = getattr(input_embeddings(model), "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else sys.maxsize


def rows_needed(tokenizer: Any) -> int:
    """The number of rows that an embedding needs for all tokens of a tokenizer."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def resize_embeddings(model: Any, size: int, seed: int) -> None:
    """Add rows to a model's embedding, and outputs to its head for tokens, if it has one, up to a size.

    A new row is drawn from the seed around the mean of the rows, as far from it as these are: so it is like that of
    any token, differs from that of any other new one, and need not be stored.

    Args:
        model: the model, changed in place.
        size: number of rows; a larger embedding is left as it is.
        seed: of the new rows.

    Raises:
        NeedsWeights: rows are missing, and the model is one without weights.
    """
    before = embedding_rows(model)
    if before >= size:
        return
    if model.get_input_embeddings().weight.is_meta:
        raise NeedsWeights("rows are added to its embedding")
    # Its own new rows come from the global generator, and are replaced.
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(size, mean_resizing=False)
    drawn: set[Tensor] = set()
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is None:
                continue
            path = next(path for path, inner in model.named_modules() if inner is module)
            for leaf, values in module.named_parameters(recurse=False):
                if values not in drawn and values.shape[0] == size:
                    drawn.add(values)
                    values[before:] = _rows(values[:before], size - before, canonical_path(model, path), leaf, seed)


def _rows(known: Tensor, count: int, site: str, leaf: str, seed: int) -> Tensor:
    """New rows of a parameter, `(count, ...)`, from those it has; a bias gets their mean."""
    mean = known.double().mean(0)
    if known.ndim == 1:
        return mean.expand(count).to(known.dtype)
    spread = known.double().std(0, correction=0)
    words = rng.uniform(rng.fold_in(seed, site, leaf, "new rows"), count * mean.numel())
    noise = torch.from_numpy(words.astype(np.float64)).view(count, -1) * math.sqrt(3)
    return (mean + spread * noise).to(known.dtype)
