"""The library as people meet it in Python: `import capaft`, and what completes after the dot."""

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
import subprocess
import sys
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn

import capaft
from capaft.adapter import attach as undecorated
from capaft.support.errors import with_keywords

FUNCTIONS = (
    "adapters",
    "attach",
    "average",
    "detach",
    "disabled",
    "export_gguf",
    "export_peft",
    "import_peft",
    "load",
    "merge",
    "open",
    "push",
    "read",
    "save",
    "switch",
    "train",
)
CLASSES = (
    "Adapter",
    "AdapterFile",
    "Bank",
    "Opened",
    "Pushed",
    "Stack",
    "Trained",
)
ERRORS = ("AdapterFileError", "CapaftError", "Interrupted", "TrainingError", "UsageError")


def test_the_face() -> None:
    assert sorted(capaft.__all__) == sorted([*FUNCTIONS, *CLASSES, *ERRORS, "__version__"])
    assert dir(capaft) == sorted(capaft.__all__)
    assert all(hasattr(capaft, name) for name in capaft.__all__)
    for name in ("atach", "parse_stack", "torch"):
        with pytest.raises(AttributeError, match=f"module 'capaft' has no attribute '{name}'"):
            getattr(capaft, name)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *ERRORS])
def test_every_public_name_is_documented(name: str) -> None:
    public = getattr(capaft, name)
    assert public.__doc__
    assert public.__doc__[0].isupper()
    for key, member in vars(public).items() if isinstance(public, type) else ():
        if not key.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(getattr(public, key)), f"{name}.{key}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_those_of_the_functions(name: str) -> None:
    public = getattr(capaft, name)
    function = inspect.unwrap(public)
    assert inspect.signature(public) == inspect.signature(function)
    assert typing.get_type_hints(public)
    assert pickle.loads(pickle.dumps(public)) is public
    # Every parameter is said in words, where there is more to say than the model, the path and the name.
    parameters = [key for key in inspect.signature(public).parameters if key not in ("model", "path", "name", "names")]
    assert all(f"        {key}: " in public.__doc__ for key in parameters)


def test_an_editor_completes_the_options_of_attach() -> None:
    parameters = inspect.signature(capaft.attach).parameters.values()
    assert not [parameter for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
    assert [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY] == [
        "model",
        "method",
    ]
    # Every option of every method, and every keyword that is a parameter of the plan.
    names = {parameter.name for parameter in parameters}
    from capaft.methods.registry import BUILT_IN, OF_ATTACH, OF_STACKS

    assert names - {"model", "method_options"} == OF_STACKS - {"version"} | OF_ATTACH | {
        option.name for host in BUILT_IN for option in host.options()
    }


def test_the_example_of_a_stack() -> None:
    tests = [test for test in doctest.DocTestFinder().find(capaft.Stack, "Stack") if test.examples]
    assert [test.name for test in tests] == ["Stack.parse"]
    output: list[str] = []
    for test in tests:
        doctest.DocTestRunner().run(test, out=output.append)
    assert output == []


IMPORT = """
import sys, time
start = time.perf_counter()
import capaft
print(time.perf_counter() - start)
assert not {"torch", "numpy", "transformers", "safetensors"} & sys.modules.keys()
dir(capaft), capaft.UsageError
assert not {"torch", "numpy", "transformers", "safetensors"} & sys.modules.keys()
"""


def test_importing_is_quick() -> None:
    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
        return float(done.stdout)

    assert min(seconds() for _ in range(5)) < 0.1


# Errors name keywords.


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--k must be 1, or 2 as in 512,256", "k must be 1, or 2 as in 512,256"),
        ("lower --prefix-length or --copies (or --head-k)", "lower prefix_length or copies (or head_k)"),
        ("narrow --target-modules, --exclude-modules", "narrow targets, exclude"),
        ("--head frozen leaves --method head nothing", "head_mode frozen leaves method head nothing"),
        ("--save-dtype must be", "dtype must be"),
        ("or --rename old=new, if", 'or rename={"old": "new"}, if'),
        ("pass the --model it was trained on", "pass the model it was trained on"),
        ("or --allow-base-mismatch to use it", "or allow_base_mismatch=True to use it"),
        ("a/--k/b, a--k, --k--, --K and -k are names", "a/--k/b, a--k, --k--, --K and -k are names"),
    ],
)
def test_flags_become_keywords(message: str, expected: str) -> None:
    assert with_keywords(message) == expected
    assert with_keywords(expected) == expected


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": "nolla"}, "method nolla: there is no method nolla; did you mean nola?"),
    ({"method": "nola", "k": 0}, "k must be a whole number of at least 1, or two as in 512,256, got 0"),
    ({"method": "nola", "basis": "fourier"}, "basis must be one of hadamard, uniform, group, got fourier"),
    ({"method": "capaboost", "density": 2}, "density must be in (0, 1], got 2"),
    ({"method": "capaboost", "mask_rescale": "mean"}, "mask_rescale must be one of none, variance, got mean"),
    ({"method": "lora", "rank": 0}, "rank must be a whole number of at least 1, got 0"),
    ({"method": "lora", "rank_pattern": ("query",)}, "rank_pattern query is not NAME=RANK or re:PATTERN=RANK"),
    ({"method": "lora", "dropout": 2}, "dropout must be in [0, 1), got 2"),
    ({"method": "lora", "seed": -1}, "seed must be in [0, 2**64), got -1"),
    ({"method": "lora", "head_mode": "half"}, "head_mode must be one of full, nola, frozen, got half"),
    ({"method": "lora", "targets": ","}, "targets , names nothing"),
    ({"method": "lora", "exclude": "nothing"}, "exclude nothing matches none of the layers"),
    ({"method": "lora", "layers": "9"}, "layers 9: the model has no block 9"),
    ({"method": "lora", "modules_to_save": "nothing"}, "modules_to_save nothing: the model has no module"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_errors_of_attach_name_its_keywords(options: dict[str, Any], message: str) -> None:
    with pytest.raises(capaft.UsageError) as error:
        capaft.attach(tiny.bert(), **options)
    assert str(error.value).startswith(message)
    # The command line calls the function itself.
    with pytest.raises(capaft.UsageError) as other:
        undecorated.attach(tiny.bert(), **options)
    assert str(other.value).startswith("--")
    assert with_keywords(str(other.value)) == str(error.value)


def test_errors_of_a_stack_name_keywords() -> None:
    with pytest.raises(capaft.UsageError, match=r"^k must be a whole number"):
        capaft.Stack.parse("nola", k=0)
    with pytest.raises(capaft.UsageError, match=r"^no method has an option rnak; did you mean rank\?$"):
        capaft.Stack.parse("nola", rnak=4)


def test_errors_of_files_name_keywords(tmp_path: Path) -> None:
    model, path = tiny.bert(), tmp_path / "adapter.safetensors"
    capaft.attach(model, "nola", rank=2, k=4)
    with pytest.raises(capaft.UsageError, match=r"^dtype must be one of float32"):
        capaft.save(model, path, dtype="int2")  # type: ignore[arg-type]
    capaft.save(model, path)
    other = tiny.bert()
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    with pytest.raises(capaft.AdapterFileError) as error:
        capaft.load(other, path)
    assert str(error.value).endswith("; pass the model it was trained on, or allow_base_mismatch=True to use it anyway")
    with pytest.raises(capaft.AdapterFileError, match=r"pass the model it was trained on"):
        capaft.load(nn.ModuleDict({"query": nn.Linear(3, 3)}), path)


def test_disabled_is_still_a_context() -> None:
    model = tiny.bert()
    adapter = tiny.scramble(capaft.attach(model, "lora", rank=2))
    with capaft.disabled(model):
        assert not adapter.enabled
    assert adapter.enabled
    with pytest.raises(capaft.UsageError, match="--k of my own"), capaft.disabled(model):
        raise capaft.UsageError("--k of my own")


def test_warnings_point_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        capaft.attach(tiny.bert(), "lora", targets="word_embeddings,query", dropout=0.1)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


# What an interpreter shows.


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (
            "nola",
            {"k": (9, 5), "rank": 2, "seed": 7},
            "Adapter(lora+nola, rank 2, k 9,5, 4 sites, 56 trainable parameters, seed 7)",
        ),
        (
            "capaboost",
            {"rank": 4, "masks": "partition", "targets": "all-linear", "layers": "0"},
            "Adapter(lora+capaboost, rank 4, 2 copies, 6 sites, 1,792 trainable parameters, seed 0)",
        ),
        (
            "prefix",
            {"prefix_length": 3, "head": ["classifier.weight"], "layers": "0"},
            "Adapter(prefix, prefix length 3, 1 site, 193 trainable parameters, 1 trainable tensor of the model, "
            "seed 0)",
        ),
        ("ia3", {}, "Adapter(ia3, 6 sites, 256 trainable parameters, seed 0)"),
        (
            "head",
            {"head": ["classifier.weight", "classifier.bias"]},
            "Adapter(head, 2 trainable tensors of the model, seed 0)",
        ),
    ],
)
def test_an_adapter_in_one_line(method: str, options: dict[str, Any], expected: str) -> None:
    model = tiny.bert()
    adapter = capaft.attach(model, method, **options)
    assert repr(adapter) == str(adapter) == expected
    assert f"(capaft_default): {expected}\n" in repr(model)
    assert "encoder" in repr(copy.deepcopy(model))


def test_a_file_and_a_stack_in_one_line(tmp_path: Path) -> None:
    model = tiny.bert()
    model.name_or_path = "tiny/bert"
    capaft.attach(model, "nola", rank=2, k=4)
    size = capaft.save(model, tmp_path / "adapter.safetensors")
    expected = f"AdapterFile('{tmp_path}/adapter.safetensors', lora+nola for tiny/bert, {size:,} bytes)"
    assert repr(capaft.read(tmp_path / "adapter.safetensors")) == expected
    assert repr(capaft.Stack.parse("nola", k=4)).startswith("Stack(method='lora+nola', host=Lora(rank=8, ")
