from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import IDS, bert, build
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from capaft.methods.prefix import with_virtual_tokens
from capaft.model.attention_routing import attention_modules, route
from capaft.support.errors import UsageError

TOKENS = 3
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0]])
ENCODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}


def llama(**options: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    tokens = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.3}
    return build(LlamaForCausalLM, LlamaConfig(**sizes, **heads, **tokens, **options))


def gpt2(**options: Any) -> Any:
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.3}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    return build(GPT2LMHeadModel, GPT2Config(**sizes, **dropout, **tokens, **options))


def t5() -> Any:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 6, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": None, "dropout_rate": 0.0}
    return build(T5ForConditionalGeneration, T5Config(**sizes, **tokens, initializer_factor=3.0))


def bart() -> Any:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 0}
    free = {"dropout": 0.0, "max_position_embeddings": 32, "forced_eos_token_id": None}
    return build(BartForConditionalGeneration, BartConfig(**layers, **sizes, **tokens, **free))


def vit() -> Any:
    sizes = {key: ENCODER[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    return build(ViTModel, ViTConfig(**sizes, intermediate_size=64, image_size=8, patch_size=4, initializer_range=0.3))


MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: build(BertModel, BertConfig(**ENCODER)),
    "roberta": lambda: build(RobertaModel, RobertaConfig(**ENCODER)),
    "llama": llama,
    "gpt2": gpt2,
    "t5": t5,
    "vit": vit,
    "bart": bart,
}
DECODERS = ("llama", "gpt2")
SEQ2SEQ = ("t5", "bart")
ALL = pytest.mark.parametrize("name", MODELS)
BOTH = pytest.mark.parametrize("implementation", ["sdpa", "eager"])
GENERATING = pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])


def inputs(name: str, padded: bool = True) -> dict[str, Tensor]:
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    mask = {"attention_mask": PADDED} if padded else {}
    return {"input_ids": IDS, **mask, **({"decoder_input_ids": IDS.flip(0)} if name in SEQ2SEQ else {})}


def output(model: nn.Module, name: str, padded: bool = True) -> Tensor:
    return model(**inputs(name, padded))[0]


class Virtual(nn.Module):
    """Virtual tokens that remember the call they took part in."""

    def __init__(self, widths: tuple[int, int], gate: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.keys, self.values = (nn.Parameter(torch.randn(TOKENS, w, generator=generator)) for w in widths)
        self.gate = nn.Parameter(torch.tensor(gate))
        self.seen: dict[str, Any] = {}
        self.calls = 0

    def attend(self, attention: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        self.calls += 1
        tokens = (self.keys, self.values, self.gate)
        result = with_virtual_tokens(attention, module, query, key, value, mask, *tokens, **kwargs)
        self.seen = {"query": query, "key": key, "value": value, "output": result[0], **kwargs}
        return result


def add(model: nn.Module, gate: float, child: str = "virtual", seed: int = 0) -> dict[str, Virtual]:
    added = {}
    for index, (path, widths) in enumerate(attention_modules(model).items()):
        added[path] = Virtual(widths, gate, 100 * seed + index)
        model.get_submodule(path).add_module(child, added[path])
    return added


def remove(model: nn.Module, child: str = "virtual") -> None:
    for path in attention_modules(model):
        delattr(model.get_submodule(path), child)


@contextmanager
def routed(model: nn.Module, gate: float) -> Iterator[dict[str, Virtual]]:
    undo = route(model)
    yield add(model, gate)
    undo()
    remove(model)


@ALL
@BOTH
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_a_gate_of_zero_and_a_route_without_participants_change_no_bit(
    name: str, implementation: str, padded: bool
) -> None:
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    before = output(model, name, padded)
    undo = route(model)
    assert torch.equal(output(model, name, padded), before)
    add(model, 0.0)
    assert torch.equal(output(model, name, padded), before)
    remove(model)
    add(model, 1.0)
    assert not torch.allclose(output(model, name, padded), before)
    undo()
    assert torch.equal(output(model, name, padded), before)


def visible(name: str, path: str, query: Tensor, key: Tensor, padded: bool) -> Tensor:
    """Mask of the keys that each query sees, `(batch, queries, T)`, made without looking at the model's own masks."""
    seen = torch.ones(len(query), query.shape[2], key.shape[2], dtype=torch.bool)
    cross = "EncDecAttention" in path or "encoder_attn" in path
    decoding = "decoder" in path.split(".") and not cross
    if name in DECODERS or decoding:
        seen &= torch.arange(key.shape[2]) <= torch.arange(query.shape[2])[:, None]
    if padded and name != "vit" and not decoding:
        seen &= PADDED.bool()[:, None, :]
    return seen


def naive(virtual: Virtual, seen: Tensor) -> Tensor:
    """One softmax over virtual and real tokens, by loops over the batch and the heads, in float64."""
    call = virtual.seen
    query, key, value = (call[name].double() for name in ("query", "key", "value"))
    batch, heads, queries, size = query.shape
    group, wide = heads // key.shape[1], value.shape[-1]
    bias = call.get("position_bias")
    attended = torch.empty(batch, queries, heads, wide, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            g = h // group
            keys = torch.cat([virtual.keys.double()[:, g * size : (g + 1) * size], key[b, g]])
            values = torch.cat([virtual.values.double()[:, g * wide : (g + 1) * wide], value[b, g]])
            scores = query[b, h] @ keys.T * call["scaling"]
            if bias is not None:
                scores[:, TOKENS:] += bias.expand(batch, heads, -1, -1)[b, h].double()
            scores[:, TOKENS:][~seen[b]] = -torch.inf
            attended[b, :, h] = scores.softmax(-1) @ values
    return attended


@ALL
@BOTH
@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_a_gate_of_one_is_one_softmax_over_virtual_and_real_tokens(
    name: str, implementation: str, padded: bool
) -> None:
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    with routed(model, 1.0) as added:
        output(model, name, padded)
    for path, virtual in added.items():
        call = virtual.seen
        seen = visible(name, path, call["query"], call["key"], padded)
        expected = naive(virtual, seen)
        torch.testing.assert_close(call["output"].double(), expected, rtol=1e-4, atol=1e-4, msg=path)


@torch.no_grad()
def test_a_gate_in_between_mixes_and_the_weights_of_real_tokens_lose_what_virtual_ones_gain() -> None:
    model = MODELS["bert"]()
    model.set_attn_implementation("eager")
    path = next(iter(attention_modules(model)))
    outputs, weights = {}, {}
    for gate in (0.0, 0.25, 1.0):
        with routed(model, gate) as added:
            weights[gate] = model(**inputs("bert"), output_attentions=True).attentions[0]
            outputs[gate] = added[path].seen["output"]
    torch.testing.assert_close(outputs[0.25], outputs[0.0] + 0.25 * (outputs[1.0] - outputs[0.0]))
    torch.testing.assert_close(weights[0.25], weights[0.0] + 0.25 * (weights[1.0] - weights[0.0]))
    torch.testing.assert_close(weights[0.0].sum(-1), torch.ones(2, 4, 8))
    assert (weights[1.0].sum(-1) < 1).all()


@GENERATING
@BOTH
@torch.no_grad()
def test_what_was_causal_stays_causal(name: str, implementation: str) -> None:
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    batch = inputs(name, padded=False)
    changed = "decoder_input_ids" if name in SEQ2SEQ else "input_ids"
    other = {**batch, changed: batch[changed].clone()}
    other[changed][:, 5] += 1
    with routed(model, 1.0):
        before, after = model(**batch).logits, model(**other).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@GENERATING
@BOTH
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [True, False])
def test_generation_with_a_cache_is_generation_without(
    name: str, implementation: str, cache: str, padded: bool
) -> None:
    model = MODELS[name]()
    model.set_attn_implementation(implementation)
    mask = PADDED.flip(1) if padded else torch.ones_like(PADDED)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    fixed = {"cache_implementation": "static", "disable_compile": True} if cache == "static" else {}
    with routed(model, 1.0):
        slow = model.generate(IDS, attention_mask=mask, use_cache=False, **options)
        fast = model.generate(IDS, attention_mask=mask, **fixed, **options)
        assert torch.equal(slow.sequences, fast.sequences)
        torch.testing.assert_close(torch.stack(slow.logits), torch.stack(fast.logits), rtol=1e-4, atol=1e-4)
    plain = model.generate(IDS, attention_mask=mask, **options)
    assert not torch.allclose(plain.logits[0], fast.logits[0])


@ALL
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    gradients, calls = [], []
    for checkpointed in (False, True):
        model = MODELS[name]().double().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with routed(model, 0.7) as added:
            output(model, name).square().sum().backward()
        gradients.append([p.grad for virtual in added.values() for p in virtual.parameters()])
        calls.append([virtual.calls for virtual in added.values()])
    assert calls[1] == [2 * count for count in calls[0]]
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, again)


def implementations(model: nn.Module) -> list[str]:
    return [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_routes_are_counted_and_participants_nest(reverse: bool) -> None:
    model = t5()
    model.encoder.set_attn_implementation("eager")
    names, before = implementations(model), output(model, "t5")
    assert {"eager", "sdpa"} == set(names)
    undos = [route(model)]
    add(model, 0.3)
    one = output(model, "t5")
    undos.append(route(model))
    add(model, 0.6, "second", seed=1)
    both = output(model, "t5")
    assert not torch.allclose(one, both)
    for virtual in (module.second for module in model.modules() if hasattr(module, "second")):
        virtual.gate.zero_()
    assert torch.equal(output(model, "t5"), one)
    remove(model, "second")
    first, last = reversed(undos) if reverse else undos
    first()
    first()
    assert torch.equal(output(model, "t5"), one)
    last()
    assert implementations(model) == names
    assert torch.equal(output(model, "t5"), before)


@torch.no_grad()
def test_two_prefixes_at_gate_one_are_one_longer_prefix() -> None:
    model, longer = t5(), t5()
    route(model)
    route(longer)
    first, second, long = add(model, 1.0), add(model, 1.0, "second", seed=1), add(longer, 1.0)
    for path, virtual in long.items():
        virtual.keys = nn.Parameter(torch.cat([first[path].keys, second[path].keys]))
        virtual.values = nn.Parameter(torch.cat([first[path].values, second[path].values]))
    torch.testing.assert_close(output(model, "t5"), output(longer, "t5"), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_copies_pickles_and_other_models_keep_their_own() -> None:
    model, other = gpt2(), gpt2()
    plain = output(model, "gpt2")
    undo = route(model)
    add(model, 1.0)
    expected = output(model, "gpt2")
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    undo()
    remove(model)
    assert torch.equal(output(model, "gpt2"), plain)
    assert torch.equal(output(other, "gpt2"), plain)
    assert torch.equal(output(copied, "gpt2"), expected)
    assert torch.equal(output(pickled, "gpt2"), expected)


@torch.no_grad()
def test_a_configuration_that_two_models_share_stays_routed_until_both_let_go() -> None:
    one, other = bert(), bert()
    for module in other.modules():
        if "config" in vars(module):
            module.config = one.config
    assert one.config is other.config
    before = one.config._attn_implementation
    undo_one, undo_other = route(one), route(other)
    add(other, 1.0)
    expected = other(IDS).logits
    undo_one()
    assert torch.equal(other(IDS).logits, expected)
    undo_other()
    assert one.config._attn_implementation == before


def test_a_saved_configuration_says_nothing_of_the_route() -> None:
    model = llama()
    before = model.config.to_json_string()
    route(model)
    assert model.config.to_json_string() == before


@torch.no_grad()
def test_half_precision_stays_half_precision() -> None:
    model = llama().to(torch.bfloat16)
    with routed(model, 1.0):
        assert output(model, "llama").dtype == torch.bfloat16


def test_widths_are_those_of_keys_and_values() -> None:
    assert set(attention_modules(llama()).values()) == {(24, 24)}
    assert set(attention_modules(gpt2()).values()) == {(32, 32)}
    assert set(attention_modules(gpt2(add_cross_attention=True)).values()) == {(32, 32)}
    assert set(attention_modules(t5()).values()) == {(24, 24)}
    assert len(attention_modules(t5())) == len(attention_modules(bart())) == 6


def deberta() -> Any:
    return build(DebertaV2Model, DebertaV2Config(**ENCODER))


def mamba() -> Any:
    return build(MambaModel, MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))


@pytest.mark.parametrize("ask", [attention_modules, route])
@pytest.mark.parametrize("kind", [deberta, mamba])
def test_attention_outside_the_interface_is_refused_in_one_line(kind: Any, ask: Any) -> None:
    with pytest.raises(UsageError, match="choose another method") as caught:
        ask(kind())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "paged|eager"])
def test_implementations_without_a_mask_of_numbers_are_refused(implementation: str) -> None:
    model = gpt2()
    model.config._attn_implementation = implementation
    with pytest.raises(UsageError, match='attn_implementation="sdpa"'):
        route(model)
    assert model.config._attn_implementation == implementation


def test_an_eager_attention_that_asks_for_its_own_name_is_refused() -> None:
    model = gpt2(reorder_and_upcast_attn=True)
    route(model)()
    model.set_attn_implementation("eager")
    with pytest.raises(UsageError, match='attn_implementation="sdpa"'):
        route(model)


def test_tokens_of_another_width_are_refused() -> None:
    model = llama()
    route(model)
    for virtual in add(model, 1.0).values():
        virtual.keys = nn.Parameter(torch.zeros(TOKENS, 32))
    with pytest.raises(UsageError, match="2 heads of size 12"):
        output(model, "llama")


@pytest.mark.parametrize("name", ["indices", "block_indices", "cache"])
def test_keys_that_are_picked_by_number_are_refused(name: str) -> None:
    tensor, virtual = torch.zeros(1, 2, 4, 3), torch.zeros(TOKENS, 6)
    given = (nn.Identity(), tensor, tensor, tensor, None, virtual, virtual, torch.ones(()))
    with pytest.raises(UsageError, match=f"Identity attends with {name}"):
        with_virtual_tokens(lambda *_, **__: (tensor, None), *given, **{name: tensor})


def test_a_fused_projection_of_unknown_sizes_is_refused_by_name() -> None:
    model = gpt2()
    model.transformer.h[1].attn.c_attn = Conv1D(7, model.config.hidden_size)
    with pytest.raises(UsageError, match=r"transformer\.h\.1\.attn"):
        attention_modules(model)
