from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_media import SIZE, picture, resnet, vit
from transformers import AutoImageProcessor

from capaft.config.parts.model import ModelSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.image_classification import ImageClassification, _channels, augmented, converted

COLUMNS = Columns("image", None, "label")
LABELS = ("cat", "dog", "cow")
TASK = ImageClassification(LABELS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return TASK.load_model(ModelSettings(model=vit(tmp_path_factory.mktemp("vit"))), seed=0)


def file(image: Image.Image) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"path": None, "bytes": stream.getvalue()}


def prepare(base: BaseModel, images: list[Any], *, task: ImageClassification = TASK, training: bool = False) -> Any:
    """The pixel values of a batch of these images."""
    labels = [LABELS[index % 3] for index in range(len(images))]
    kind = Features({"image": ImageFeature(decode=False), "label": Value("string")})
    split = Dataset.from_dict({"image": [file(image) for image in images], "label": labels}, kind)
    batch = task.collate(
        base, task.features(base, split, COLUMNS, training=training), range(len(images)), training=training
    )
    assert batch.terms == len(images)
    assert batch.targets["labels"].tolist() == [index % 3 for index in range(len(images))]
    assert batch.inputs.keys() == {"pixel_values"}
    return batch.inputs["pixel_values"]


# Preparing


def test_images_are_prepared_as_the_checkpoint_says(base: BaseModel) -> None:
    images = [picture(40, 23), picture(SIZE, SIZE, seed=1), picture(7, 30, seed=2)]
    prepared = prepare(base, images)
    middle = np.array([0.3, 0.5, 0.6])
    for image, pixels in zip(images, prepared.numpy(), strict=True):
        small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255
        assert np.allclose(pixels.transpose(1, 2, 0), (small - middle) / middle, atol=1e-5)
    assert torch.equal(prepared, base.processor(images, return_tensors="pt")["pixel_values"])


def test_crops_and_other_sizes_are_the_processors(tmp_path: Path) -> None:
    name = resnet(tmp_path)
    base = TASK.load_model(ModelSettings(model=name), seed=0)
    images = [picture(40, 23), picture(24, 60)]
    pixels = AutoImageProcessor.from_pretrained(name, backend="pil")(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(prepare(base, images), pixels)
    assert pixels.shape == (2, 3, SIZE, SIZE)


def test_pixels_do_not_depend_on_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = AutoImageProcessor.from_pretrained
    monkeypatch.setattr(
        AutoImageProcessor,
        "from_pretrained",
        lambda *args, **options: asked.append(options) or original(*args, **options),
    )
    assert TASK.load_model(ModelSettings(model=vit(tmp_path)), seed=0).processor.backend == "pil"
    assert [options["backend"] for options in asked] == ["pil"]


def test_grey_images_become_colour_for_models_of_colour(base: BaseModel) -> None:
    grey = picture(20, 20).convert("L")
    colour = Image.merge("RGB", [grey] * 3)
    assert torch.equal(prepare(base, [grey]), prepare(base, [colour]))


def test_colour_images_become_grey_for_models_of_grey(tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=vit(tmp_path, channels=1)), seed=0)
    image = picture(SIZE, SIZE)
    # The luma of ITU-R BT.601.
    luma = np.asarray(image) @ [0.299, 0.587, 0.114]
    pixels = prepare(base, [image, image.convert("L")])
    assert pixels.shape == (2, 1, SIZE, SIZE)
    assert torch.equal(pixels[0], pixels[1])
    assert np.allclose((pixels[0, 0] * 0.3 + 0.3) * 255, luma, atol=1)
    base.model(pixel_values=pixels)


def test_transparent_images_show_on_white() -> None:
    colours = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    expected = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    image = Image.fromarray(colours)
    assert np.asarray(converted(image, 3)).tolist() == [expected]
    assert converted(image, 4).tobytes() == image.tobytes()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert np.asarray(converted(palette, 3)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    palette.info["transparency"] = 1
    assert np.asarray(converted(palette, 3)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    grey = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 51)])
    assert np.asarray(converted(grey, 1)).tolist() == [[204]]
    assert np.asarray(converted(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), 3)).tolist() == [[[255, 0, 0]]]


def test_arrays_are_images(base: BaseModel) -> None:
    grey = np.asarray(picture(5, 4).convert("L"))
    kind = Features({"image": Array2D((4, 5), "uint8"), "label": Value("string")})
    split = Dataset.from_dict({"image": [grey], "label": ["cat"]}, kind)
    batch = TASK.collate(base, TASK.features(base, split, COLUMNS, training=False), [0], training=False)
    assert torch.equal(batch.inputs["pixel_values"], prepare(base, [Image.fromarray(grey)]))


def test_channels_of_models() -> None:
    assert _channels(SimpleNamespace()) == 3
    assert _channels(SimpleNamespace(num_channels=1)) == 1
    assert _channels(SimpleNamespace(vision_config=SimpleNamespace(num_channels=4))) == 4
    with pytest.raises(UsageError, match="the model reads images of 2 channels"):
        _channels(SimpleNamespace(num_channels=2))


def test_images_that_cannot_stand_together(tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=vit(tmp_path, do_resize=False)), seed=0)
    with pytest.raises(UsageError, match=r"^rows 1, 2: the model's image processor cannot prepare these") as caught:
        prepare(base, [picture(16, 16), picture(17, 16)])
    assert "\n" not in str(caught.value)


# Augmentation


def test_augmentation_is_a_function_of_torchs_seed(base: BaseModel) -> None:
    images = [picture(30, 30, seed=seed) for seed in range(4)]

    def pixels(seed: int, **options: Any) -> Any:
        torch.manual_seed(seed)
        return prepare(base, images, **options)

    plain = pixels(0)
    assert torch.equal(pixels(0, training=True), pixels(0, training=True))
    assert not torch.equal(pixels(0, training=True), pixels(1, training=True))
    assert not any(torch.equal(*pair) for pair in zip(pixels(0, training=True), plain, strict=True))
    assert torch.equal(pixels(0, training=True, task=ImageClassification(LABELS, augment=False)), plain)


def test_evaluation_draws_no_random_numbers(base: BaseModel) -> None:
    before = torch.get_rng_state()
    prepare(base, [picture(30, 30)])
    prepare(base, [picture(30, 30)], training=True, task=ImageClassification(LABELS, augment=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_keeps_at_least_half_and_mirrors_half() -> None:
    width, height = 200, 120
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    # The colour of each pixel encodes its place.
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    torch.manual_seed(0)
    areas, stretches, mirrored, corners = [], [], 0, []
    for _ in range(400):
        part = np.asarray(augmented(image)).astype(int)
        rows, columns = part[:, 0, 1], part[0, :, 0]
        mirrored += columns[0] > columns[-1]
        columns = np.sort(columns)
        assert np.array_equal(part[..., 1], np.broadcast_to(rows[:, None], part.shape[:2]))
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        areas.append(len(rows) * len(columns) / (width * height))
        stretches.append(len(columns) / width / (len(rows) / height))
        corners.append((columns[0], rows[0], columns[-1], rows[-1]))
    assert 0.49 < min(areas) < 0.55
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(stretches) < 0.8
    assert 1.25 < max(stretches) < 1.35
    assert 150 < mirrored < 250
    low, high = np.min(corners, 0), np.max(corners, 0)
    assert (low[0], low[1], high[2], high[3]) == (0, 0, width - 1, height - 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 2)])
def test_augmentation_of_the_smallest_images(size: tuple[int, int]) -> None:
    for _ in range(20):
        assert min(augmented(picture(*size)).size) >= 1


# Learning


def colours(count: int, seed: int) -> Dataset:
    """Noise that is a little red, green or blue."""
    random = np.random.default_rng(seed)
    records, labels = [], random.integers(0, 3, count)
    for label in labels:
        pixels = random.integers(0, 200, (SIZE, SIZE, 3))
        pixels[..., label] += 55
        records.append(file(Image.fromarray(pixels.astype(np.uint8))))
    kind = Features({"image": ImageFeature(decode=False), "label": Value("string")})
    return Dataset.from_dict({"image": records, "label": [LABELS[label] for label in labels]}, kind)


@pytest.mark.parametrize("make", [vit, resnet])
def test_a_small_model_learns(make: Any, tmp_path: Path) -> None:
    base = TASK.load_model(ModelSettings(model=make(tmp_path)), seed=0)
    assert base.new_head
    assert base.model.config.id2label == dict(enumerate(LABELS))
    train = TASK.features(base, colours(256, 0), COLUMNS, training=True)
    validation = TASK.features(base, colours(64, 1), COLUMNS, training=False)
    model = base.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(24):
        torch.manual_seed(step)
        batch = TASK.collate(base, train, range(step % 8 * 32, step % 8 * 32 + 32), training=True)
        optimizer.zero_grad()
        (TASK.loss(model(**batch.inputs), batch.targets, 0.0) / batch.terms).backward()
        optimizer.step()
    model.eval()
    batch = TASK.collate(base, validation, range(64), training=False)
    with torch.inference_mode():
        outputs = model(**batch.inputs)
    predictions = TASK.predict(base, model, validation, range(64), batch, outputs)
    assert TASK.score(validation, predictions)["accuracy"] > 0.9
