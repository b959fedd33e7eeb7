"""Every preset: its line in `capaft presets`, and a run of two steps on a tiny model of its architecture.

The data have the columns of the preset's own data set on the hub, as its card lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
import tiny_media
from command_line import invoke
from datasets import ClassLabel, Dataset, DatasetDict

from capaft.config.presets import preset_file, preset_names, preset_summaries
from capaft.config.sources import resolve_settings
from capaft.config.train_config import TrainConfig
from capaft.support.errors import UsageError

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
ROWS = 8


def read(name: str, file: Path | None = None, **flags: str) -> TrainConfig:
    return resolve_settings(TrainConfig, flags=flags, environ={}, file=file, preset=preset_file(name))[0]


def settings_of(name: str) -> dict[str, str]:
    """The settings of a preset as text, read here by hand, since all its lines are `name: value`."""
    lines = preset_file(name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    return {key: value.strip("'") for key, value in pairs}


# Their contents.


def test_there_is_a_preset_of_every_published_experiment() -> None:
    expected = {f"{method}-glue-{task}" for method in ("nola", "capaboost") for task in GLUE}
    expected |= {f"capaboost-{host}squad-v{n}" for host in ("", "pfeiffer-") for n in (1, 2)}
    expected |= {f"capaboost-t5-small-{data}" for data in ("xsum", "cnn-dailymail")}
    expected |= {f"nola-gpt2-{size}-{data}" for size in "ml" for data in ("e2e", "dart", "webnlg")}
    expected |= {f"nola-llama2-{size}-alpaca" for size in ("7b", "13b", "70b")}
    expected |= {f"nola-vit-{data}" for data in ("cifar10", "cifar10-10shot", "cifar100", "food101", "pets")}
    assert set(preset_names()) == expected


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_is_where_it_is_from_and_nothing_twice(name: str) -> None:
    first, *others = preset_file(name).read_text(encoding="utf-8").splitlines()
    assert first == f"# {preset_summaries()[name]}"
    assert first.endswith(".")
    assert others[0].startswith("# Source: ")
    assert "arXiv" in "".join(others[:2])
    config, sources = resolve_settings(TrainConfig, flags={}, environ={}, preset=preset_file(name))
    assert {key for key, source in sources.items() if source != "default"} == set(settings_of(name))
    assert not any(set(pair) <= set(settings_of(name)) for pair in TrainConfig.alternatives)
    # A budget in a preset would override the sizes that a user sets beside it.
    assert config.budget is None
    assert config.model is not None
    assert config.data is not None


def test_the_command_lists_them() -> None:
    assert json.loads(invoke("presets", "--json").out) == preset_summaries()
    lines = invoke("presets", environ={"COLUMNS": "200"}).out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names() == sorted(preset_names())
    assert "NOLA, LLaMA-2 7B on Alpaca, base in 4 bits." in lines[preset_names().index("nola-llama2-7b-alpaca")]


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        # alpha / rank, from the scripts: lora_alpha / lora_dim.
        ("nola-gpt2-m-e2e", 1.0),
        ("nola-gpt2-l-e2e", 0.25),
        ("nola-llama2-70b-alpaca", 0.25),
        ("nola-vit-cifar10", 1.0),
        ("capaboost-glue-rte", 1.5),
        ("capaboost-squad-v1", 16.0),
        ("capaboost-t5-small-xsum", 1.5),
    ],
)
def test_the_scale_is_that_of_the_official_script(name: str, scale: float) -> None:
    config = read(name)
    assert config.alpha is not None
    assert config.rank is not None
    assert config.alpha / config.rank == scale


# Their place among the sources.


def test_other_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("k: 7\nlr: 1e-5\n")
    config = read("nola-glue-rte", file, lr="2e-5")
    assert (config.k, config.lr, config.batch_size) == ((7,), 2e-5, 128)
    printed = invoke("train", "--preset", "nola-glue-rte", "--config", file, "--lr", "2e-5", "--print-config")
    (tmp_path / "printed.yaml").write_text(printed.out)
    assert resolve_settings(TrainConfig, flags={}, environ={}, file=tmp_path / "printed.yaml")[0] == config


def test_other_sources_replace_the_alternative_setting() -> None:
    assert read("nola-glue-rte", max_steps="5").epochs is None
    assert read("nola-llama2-7b-alpaca", epochs="3").max_steps is None
    assert read("nola-llama2-7b-alpaca", eval_epochs="1").eval_steps is None
    assert read("nola-gpt2-m-e2e", eval_steps="10").eval_epochs == 1
    assert read("nola-glue-rte", budget="50k").budget == 50_000
    with pytest.raises(UsageError, match=r"^--max-steps and --epochs cannot be used together; drop one$"):
        read("nola-glue-rte", max_steps="5", epochs="3")


def test_an_unknown_preset_is_one_line() -> None:
    done = invoke("train", "--preset", "nola-glue-rt")
    assert done.code == 2
    assert done.err == "error: --preset nola-glue-rt: no preset is called that; did you mean nola-glue-rte?\n"
    assert (
        invoke("train", "--preset", "x").err
        == "error: --preset x: no preset is called that; `capaft presets` lists them\n"
    )


# Two steps of each.


def glue(task: str) -> tuple[dict[str, list[Any]], ...]:
    names = {
        "mnli": ("premise", "hypothesis"),
        "qnli": ("question", "sentence"),
        "qqp": ("question1", "question2"),
        "cola": ("sentence",),
        "sst2": ("sentence",),
    }.get(task, ("sentence1", "sentence2"))
    labels = {"mnli": [0, 1, 2, 1] * 2, "stsb": [0.5, 3.8, 5.0, 2.25] * 2}.get(task, [0, 1] * 4)
    texts = {name: [f"{name} {row} is good" for row in range(ROWS)] for name in names}
    rows = texts | {"label": labels, "idx": list(range(ROWS))}
    return rows, rows


def squad(version: int) -> tuple[dict[str, list[Any]], ...]:
    answers = [{"text": ["blue"], "answer_start": [13]}] * ROWS
    if version == 2:
        answers[::2] = [{"text": [], "answer_start": []}] * (ROWS // 2)
    rows = {
        "id": [f"id{row}" for row in range(ROWS)],
        "title": ["Ships"] * ROWS,
        "context": ["The ship was blue and sank."] * ROWS,
        "question": [f"What colour was ship {row}?" for row in range(ROWS)],
        "answers": answers,
    }
    return rows, rows


def gem(source: str) -> tuple[dict[str, list[Any]], ...]:
    """Rows for training have one target each, the others all references."""
    sources = {
        "meaning_representation": ["name[Eagle], food[Fast]"] * ROWS,
        "tripleset": [[["Eagle", "food", "Fast"], ["Eagle", "near", "Bar"]]] * ROWS,
        "input": [["Eagle | food | Fast", "Eagle | near | Bar"]] * ROWS,
    }[source]
    common = {"gem_id": [f"id{row}" for row in range(ROWS)], source: sources, "target": ["Eagle is fast."] * ROWS}
    several = [["Eagle is fast.", "Eagle has fast food."]] * ROWS
    return common | {"references": [[]] * ROWS}, common | {"references": several}


def texts(**columns: str) -> tuple[dict[str, list[Any]], ...]:
    rows = {name: [f"{text} {row}" for row in range(ROWS)] for name, text in columns.items()}
    return rows, rows


def pictures(image: str, label: str, **others: list[Any]) -> tuple[dict[str, list[Any]], ...]:
    rows = {image: [tiny_media.picture(20, 16, seed=row) for row in range(ROWS)], label: [0, 1] * 4, **others}
    return rows, rows


def alpaca() -> tuple[dict[str, list[Any]], ...]:
    (rows, _) = texts(instruction="Name a colour.", output="Blue", text="Below is an instruction. Name one.")
    return (rows | {"input": ["", "of the sea"] * 4},)


DATA: dict[str, Callable[[], tuple[dict[str, list[Any]], ...]]] = {
    **{f"glue/{task}": lambda task=task: glue(task) for task in GLUE},  # type: ignore[misc]
    "squad": lambda: squad(1),
    "squad_v2": lambda: squad(2),
    "EdinburghNLP/xsum": lambda: texts(document="The ship sank at sea", summary="A ship sank", id="x"),
    "cnn_dailymail/3.0.0": lambda: texts(article="The ship sank at sea", highlights="A ship sank", id="x"),
    "GEM/e2e_nlg": lambda: gem("meaning_representation"),
    "GEM/dart": lambda: gem("tripleset"),
    "GEM/web_nlg/en": lambda: gem("input"),
    "tatsu-lab/alpaca": alpaca,
    "uoft-cs/cifar10": lambda: pictures("img", "label"),
    "uoft-cs/cifar100": lambda: pictures("img", "fine_label", coarse_label=[0, 1] * 4),
    "ethz/food101": lambda: pictures("image", "label"),
    "timm/oxford-iiit-pet": lambda: pictures("image", "label", image_id=["x"] * ROWS, label_cat_dog=[1, 0] * 4),
}
MODELS = {
    "roberta-base": "roberta",
    "microsoft/deberta-v3-base": "deberta",
    "t5-small": "t5",
    "gpt2-medium": "gpt2",
    "gpt2-large": "gpt2",
    "meta-llama/Llama-2-7b-hf": "llama",
    "meta-llama/Llama-2-13b-hf": "llama",
    "meta-llama/Llama-2-70b-hf": "llama",
    "google/vit-base-patch16-224-in21k": "vit",
}
OFFICIAL = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson_spearman"}
# Small enough for a second, and for a machine without bitsandbytes and bfloat16.
SMALL = {
    "max_steps": "2",
    "batch_size": "4",
    "micro_batch_size": "2",
    "max_length": "96",
    "stride": "8",
    "num_beams": "2",
    "max_new_tokens": "4",
    "base_dtype": "float32",
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def find(kind: str) -> str:
        if kind not in made:
            path = tmp_path_factory.mktemp(kind)
            made[kind] = tiny_media.vit(path) if kind == "vit" else str(tiny_checkpoints.save(kind, path))
        return made[kind]

    return find


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def find(name: str) -> str:
        if name not in made:
            path = tmp_path_factory.mktemp("data") / name
            splits = {}
            for split, rows in zip(("train", "validation"), DATA[name](), strict=False):
                splits[split] = Dataset.from_dict(rows)
                for column in rows:
                    if column.endswith("label") and isinstance(rows[column][0], int):
                        names = [f"c{label}" for label in sorted(set(rows[column]))]
                        splits[split] = splits[split].cast_column(column, ClassLabel(names=names))
            DatasetDict(splits).save_to_disk(path)
            made[name] = str(path)
        return made[name]

    return find


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_trains_and_scores(
    name: str, model: Callable[[str], str], data: Callable[[str], str], tmp_path: Path
) -> None:
    preset = settings_of(name)
    small = SMALL | {"model": model(MODELS[preset["model"]]), "data": data(preset["data"])}
    if MODELS[preset["model"]] == "vit":
        # 1,024 coefficients are for factors of 768 entries, not of 32.
        small["k"] = "128"
    flags = [word for key, value in small.items() for word in (f"--{key.replace('_', '-')}", value)]
    done = invoke("train", "--preset", name, *flags, "--output", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    results = json.loads(done.out)
    assert results["steps"] == 2
    task = preset["data"].removeprefix("glue/")
    if task in GLUE:
        assert results["metric"] == OFFICIAL.get(task, "accuracy")
    if preset["data"].startswith("GEM/"):
        report = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
        assert report[0]["references"] == ["Eagle is fast.", "Eagle has fast food."]
    # The run has the preset's settings, except for those changed here and those without effect.
    saved, _ = resolve_settings(TrainConfig, flags={}, environ={}, file=tmp_path / "run" / "run.yaml")
    expected = read(name)
    assert set(saved.k or ()) == ({128} if "k" in small else set(expected.k or ()))
    for key in preset.keys() - small.keys() - {"epochs", "method", "k"}:
        assert getattr(saved, key) == getattr(expected, key), key
