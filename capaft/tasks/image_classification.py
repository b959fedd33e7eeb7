"""Image classification: an image to one of several classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import torch
from PIL import Image

from capaft.config.choices import AUGMENT
from capaft.config.parts.model import ModelSettings
from capaft.data.media.decode import open_image
from capaft.model.load import BaseModel, load_base_model
from capaft.support.errors import UsageError, one_line
from capaft.tasks.base.columns import Columns, is_text, plain_name
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.media.classification import MediaClassification
from capaft.tasks.media.files import open_media

if TYPE_CHECKING:
    from datasets import Dataset

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# The least share of an image that a random part keeps, and how far its sides may depart from the image's ratio.
_LEAST_AREA, _MOST_STRETCH = 0.5, 4 / 3

_CAPTIONS = frozenset({"caption", "captions", "text", "description", "alttext", "prompt"})


@dataclass(frozen=True)
class ImageClassification(MediaClassification):
    """Images are read when a batch is made, and prepared by the checkpoint's own processor.

    Attributes:
        augment: show a random part of each image in training, mirrored half of the time.
    """

    name: ClassVar[str] = "image-classification"
    summary: ClassVar[str] = "An image to one of several classes."
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    processor: ClassVar[str] = "AutoImageProcessor"
    medium: ClassVar[str] = "image"
    input_names: ClassVar[tuple[str, ...]] = (medium,)
    usual_names: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("image", "img"),
        ("picture", "photo", "imagepath", "imagefile", "imagefilename", "filename", "filepath", "file", "path"),
    )
    feature_type: ClassVar[type] = datasets.Image
    precedence: ClassVar[int] = 10

    augment: bool = AUGMENT

    @classmethod
    def fits(cls, feature: Any) -> bool:
        """Images, files or their paths, and arrays of pixels."""
        if isinstance(feature, datasets.Value):
            return feature.dtype.endswith(("string", "binary"))
        if isinstance(feature, dict):
            return bool(feature.keys() & {"bytes", "path"})
        if isinstance(feature, datasets.List | datasets.LargeList):
            return isinstance(feature.feature, datasets.List | datasets.LargeList)
        return isinstance(feature, datasets.Image | datasets.Array2D | datasets.Array3D)

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `MediaClassification.recognise`.

        Raises:
            UsageError: also if the images have captions and no classes.
        """
        try:
            return super().recognise(rows, named)
        except UsageError:
            has_images = any(isinstance(feature, cls.feature_type) for feature in rows.features.values())
            texts = [name for name, feature in rows.features.items() if is_text(feature)]
            captions = [name for name in texts if plain_name(name) in _CAPTIONS]
            if has_images and captions and not named.get("label"):
                raise UsageError(
                    f"column {captions[0]!r} holds captions, and capaft has no task that writes texts about images; "
                    "choose a column of classes with --label-column"
                ) from None
            raise

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """See `Task.load_model`."""
        from transformers import AutoModelForImageClassification

        return load_base_model(
            AutoModelForImageClassification,
            settings,
            seed=seed,
            processor_class=_ProcessorOfPillow,
            own_head=self.own_head,
            **self.model_config(),
        )

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Inputs as the processor makes them, mostly `pixel_values` `(batch, channels, height, width)`.

        The target is `labels`, `(batch,)`.

        Raises:
            UsageError: an image cannot be read or prepared; names the row and, if it has one, the file.
        """
        channels = _channels(base.model.config)
        images = [converted(image, channels) for image in open_media(features, self.medium, indices, open_image)]
        if training and self.augment:
            images = [augmented(image) for image in images]
        try:
            inputs = base.processor(images, return_tensors="pt")
        except ValueError as error:
            rows = ", ".join(str(index + 1) for index in indices[:10])
            raise UsageError(
                f"rows {rows}: the model's image processor cannot prepare these images ({one_line(error)})"
            ) from None
        return Batch(dict(inputs), features.targets(indices), len(indices))


class _ProcessorOfPillow:
    """Loads a checkpoint's image processor, always the one that resizes with Pillow.

    Where torchvision is installed, transformers prefers it, and its pixels differ by up to 1 of 255. A seed should mean
    the same adapter whatever packages are installed.
    """

    @staticmethod
    def from_pretrained(source: str, **options: Any) -> Any:
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(source, backend="pil", **options)


def _channels(config: Any) -> int:
    """Number of channels that a model reads; CLIP and its kin have it in the configuration of their vision part."""
    vision = getattr(config, "vision_config", config)
    channels = getattr(config, "num_channels", None) or getattr(vision, "num_channels", 3)
    if channels not in _MODES:
        raise UsageError(f"the model reads images of {channels} channels; choose one that reads 1, 3 or 4")
    return int(channels)


def converted(image: Image.Image, channels: int) -> Image.Image:
    """An image with this many channels; without an alpha channel it shows on white, as in transformers."""
    if image.has_transparency_data and channels < 4:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(_MODES[channels])


def augmented(image: Image.Image) -> Image.Image:
    """A random part of an image, which the processor stretches to its own ratio, mirrored half of the time.

    Szegedy et al. (2015, "Going deeper with convolutions", section 6) take from 8 % to 100 % of the area, for training
    from scratch on a million images. In small data a part without the object is a wrong label that is seen often, so
    at least half remains here.

    The random numbers are torch's.
    """
    area, stretch, left, top, mirror = torch.rand(5, dtype=torch.float32, device="cpu").tolist()
    area = _LEAST_AREA + (1 - _LEAST_AREA) * area
    stretch = _MOST_STRETCH ** (2 * stretch - 1)
    width = min(image.width, max(1, round(image.width * math.sqrt(area * stretch))))
    height = min(image.height, max(1, round(image.height * math.sqrt(area / stretch))))
    x, y = int(left * (image.width - width + 1)), int(top * (image.height - height + 1))
    part = image.crop((x, y, x + width, y + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else part
