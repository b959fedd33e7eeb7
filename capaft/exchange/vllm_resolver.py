"""A LoRA resolver of vLLM: asked for a name, it expands the adapter file of that name and gives its PEFT directory.

vLLM calls `register` in each of its processes, by the entry point group `vllm.general_plugins`. Nothing here may stop
the server: whatever cannot be served is None, with the reason in one line of the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capaft.support.errors import UsageError, one_line
from capaft.support.printable import printable

if TYPE_CHECKING:
    from torch import nn

# The names of the settings, in the environment of the server.
ADAPTERS, CACHE, CACHE_GB, BASE = "CAPAFT_ADAPTERS", "CAPAFT_VLLM_CACHE", "CAPAFT_VLLM_CACHE_GB", "CAPAFT_VLLM_BASE"
DEFAULT_GB = 20.0
NAME, ADAPTER = "capaft", "adapter.safetensors"

# Part of the keys of the cache, for versions of capaft that expand otherwise.
_FORM = "1"

_log = logging.getLogger("vllm.capaft")


def register() -> None:
    """Register the resolver with vLLM if `CAPAFT_ADAPTERS` names a directory; may be called again."""
    if not (directory := os.environ.get(ADAPTERS)):
        return
    try:
        _register(Expander.from_environment(Path(directory).expanduser(), os.environ))
    # Any: vLLM would not start.
    except Exception as error:
        _log.warning("capaft serves no adapters: %s", printable(one_line(error)))


def _register(expander: Expander) -> None:
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return

    class CapaftResolver(LoRAResolver):
        """Adapter files of a directory."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """The request for a name, or None."""
            path = await asyncio.to_thread(expander.expand, base_model_name, lora_name)
            if path is None:
                return None
            return LoRARequest(lora_name=lora_name, lora_int_id=integer_id(lora_name, path), lora_path=str(path))

    LoRAResolverRegistry.register_resolver(NAME, CapaftResolver())


def integer_id(name: str, path: Path) -> int:
    """The number of an adapter, from 1 to 2**63 - 1: the same in every process, another one for other content."""
    digest = hashlib.blake2b(f"{name}\0{path.name}".encode(errors="backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1


class Expander:
    """Adapter files of a directory, expanded for one base model at a time.

    The base is there without its weights, which the server has already; the few that tell whether an adapter belongs to
    it are read from the checkpoint.

    Attributes:
        adapters: the directory with `NAME.safetensors` and run directories `NAME`.
        cache: the directories that were made.
        base: the checkpoint to expand on if it is not the one that the server loads, such as the unquantised one.
    """

    def __init__(self, adapters: Path, cache: Path, most_bytes: int, base: str | None = None) -> None:
        from capaft.exchange.directory_cache import DirectoryCache

        self.adapters = adapters
        self.cache = DirectoryCache(cache, most_bytes)
        self.base = base
        self._lock = threading.Lock()
        self._loaded: tuple[str, nn.Module] | None = None
        self._offloaded: tempfile.TemporaryDirectory[str] | None = None

    @staticmethod
    def from_environment(adapters: Path, environ: Any) -> Expander:
        """The expander that the settings describe.

        Raises:
            UsageError: a setting is wrong.
        """
        from huggingface_hub import cached_assets_path

        if not adapters.is_dir():
            raise UsageError(f"{ADAPTERS}={adapters} is no directory")
        text = environ.get(CACHE_GB) or str(DEFAULT_GB)
        try:
            limit = float(text)
        except ValueError:
            limit = -1.0
        if not 0 < limit < 1e9:
            raise UsageError(f"{CACHE_GB}={text} is not a number of gigabytes above 0")
        cache = environ.get(CACHE)
        root = Path(cache).expanduser() if cache else cached_assets_path("capaft", "vllm")
        return Expander(adapters, root, int(limit * 1e9), environ.get(BASE) or None)

    def expand(self, base_model_name: str, name: str) -> Path | None:
        """The PEFT directory of an adapter; None, with a line in the log, if there is none that vLLM could serve."""
        try:
            file = adapter_file(self.adapters, name)
            if file is None:
                return None
            base = self.base or base_model_name
            key = _key(file, base)
            return self.cache.get(key, lambda output: self._write(file, base, key, output))
        # Any: an exception would end the request with an error of the server.
        except Exception as error:
            _log.warning("adapter %s is not served: %s", printable(name[:100]), printable(one_line(error)))
            return None

    def _write(self, file: Path, base: str, key: str, output: Path) -> None:
        """Write an adapter as a PEFT directory.

        Raises:
            UsageError: it belongs to another base, or vLLM would not take it.
        """
        from capaft.adapter.file.adapter_file import read
        from capaft.adapter.file.other_head import HEAD, stored_parameters
        from capaft.adapter.file.save_load import load
        from capaft.adapter.install import detach
        from capaft.exchange.peft_export import export_peft
        from capaft.exchange.served import VLLM_RANKS, cautions
        from capaft.model.origin import Origin

        adapter = read(file)
        if _key(file, base) != key:
            raise UsageError(f"{file} changed while it was read; ask again")
        if others := sorted(
            key.removeprefix(HEAD) for key in stored_parameters(adapter.tensors) if key.startswith(HEAD)
        ):
            raise UsageError(f"vLLM takes only LoRA from it, and it also trains {others[0]}; serve the merged model")
        if adapter.header.method.host and adapter.header.method.host.name == "dora":
            # Its magnitudes start from the weights, which are not here.
            raise UsageError("vLLM does not serve DoRA; serve the merged model")
        with self._lock:
            model = self._model(base)
            load(model, adapter)
            try:
                config = export_peft(model, output, base=Origin(base)).config
            finally:
                detach(model)
        # A rank below the largest is the server's `--max-lora-rank` to take or to refuse.
        rank = config.get("r") or 0
        if refusals := list(cautions({**config, "r": rank if rank > VLLM_RANKS[-1] else VLLM_RANKS[0]})):
            raise UsageError(refusals[0])

    def _model(self, base: str) -> nn.Module:
        """The base model without its weights, loaded once."""
        from capaft.model.offloaded import load_offloaded_writer

        if self._loaded is None or self._loaded[0] != base:
            folder = tempfile.TemporaryDirectory(prefix="capaft-", ignore_cleanup_errors=True)
            # A base that cannot be loaded leaves the last one with its folder.
            self._loaded = (base, load_offloaded_writer(base, Path(folder.name)))
            self._offloaded = folder
        return self._loaded[1]


def _key(file: Path, base: str) -> str:
    """The key of an adapter file's content, expanded for a base."""
    start = hashlib.blake2b(f"{_FORM}\0{base}\0".encode(errors="backslashreplace"), digest_size=16)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: start).hexdigest()


def adapter_file(root: Path, name: str) -> Path | None:
    """The adapter file of a name: `NAME.safetensors`, or that of the run directory `NAME`; None if there is none.

    A name may lead into directories below `root`, and nowhere else: not up, not through links, not to hidden files.
    """
    pieces = name.split("/")
    if len(name) > 500 or "\0" in name or "\\" in name or any(piece == "" or piece[0] == "." for piece in pieces):
        return None
    home = os.path.realpath(root)
    for path in (root / f"{name}.safetensors", root / name / ADAPTER):
        with suppress(OSError):
            if path.is_file() and os.path.commonpath([home, os.path.realpath(path)]) == home:
                return path
    return None
