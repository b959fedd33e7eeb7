"""Names in PEFT configurations, held to PEFT's own rules for what they mean."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from capaft.exchange.peft_names import excludes, saved_by, saved_names, target_names
from capaft.support.errors import UsageError

LAYERS = [f"enc.layer.{n}.{name}" for n in range(12) for name in ("att.q", "att.k", "att.out.dense", "out.dense")]
MODULES = ["enc", *LAYERS, "enc.norm", "enc.embed.words", "pre_classifier", "classifier"]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (LAYERS, ["dense", "k", "q"]),
        ([path for path in LAYERS if path.endswith("att.q")], ["q"]),
        ([path for path in LAYERS if "out.dense" in path], ["dense"]),
        (["enc.layer.7.att.q"], ["q"]),
        (["enc.layer.0.att.out.dense"], ["att.out.dense"]),
        # `out.dense` would mean the attention's as well.
        (["enc.layer.3.out.dense"], ["enc.layer.3.out.dense"]),
        (["enc.embed.words", "enc.layer.1.att.k"], ["k", "words"]),
    ],
)
def test_names_mean_the_targets_alone_in_every_layer(targets: list[str], names: list[str]) -> None:
    found = target_names(targets, LAYERS, MODULES)
    assert list(found.names) == names
    config = LoraConfig(target_modules=names)
    assert {path for path in MODULES if check_target_module_exists(config, path)} == found.modules
    assert set(targets) <= found.modules
    numbers = str.maketrans("", "", "0123456789")
    assert {path.translate(numbers) for path in found.modules} == {path.translate(numbers) for path in targets}


def test_a_path_that_is_the_end_of_another_is_refused() -> None:
    with pytest.raises(UsageError, match=r"PEFT would adapt enc\.words as well"):
        target_names(["words"], ["words"], ["words", "enc.words"])


def test_names_of_saved_modules() -> None:
    assert saved_names({"classifier", "pre_classifier"}, MODULES, LAYERS) == ("classifier", "pre_classifier")
    assert saved_names({"enc.norm"}, MODULES, LAYERS) == ("norm",)
    assert saved_by(["classifier"], MODULES) == {"classifier", "pre_classifier"}
    assert saved_by(["norm"], MODULES) == {"enc.norm"}
    # PEFT leaves out targets in whatever it saves.
    assert excludes("out", LAYERS) == [path for path in LAYERS if ".out." in path]
    config = LoraConfig(target_modules=["dense"], modules_to_save=["out"])
    assert not any(check_target_module_exists(config, path) is True for path in excludes("out", LAYERS))
