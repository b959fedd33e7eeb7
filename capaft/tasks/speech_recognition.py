"""Speech recognition: a recording to the words spoken in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import datasets
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from capaft.config.choices import MAX_NEW_TOKENS, MAX_SPEECH_SECONDS, NUM_BEAMS
from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel
from capaft.support.counting import agreeing
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import (
    Columns,
    ask_for_column,
    column_values,
    find_column,
    is_id,
    is_text,
    plain_name,
    row_numbers,
)
from capaft.tasks.base.features import Batch, Features
from capaft.tasks.base.task import Task
from capaft.tasks.base.task_answers import Record
from capaft.tasks.language.token_limit import vocabulary_size
from capaft.tasks.language.token_loss import IGNORED, pad_rows
from capaft.tasks.language.words import check_language
from capaft.tasks.media.classification import CLASS_NAMES
from capaft.tasks.media.files import media_column, media_names, refuse_pair
from capaft.tasks.media.recordings import (
    AUDIO,
    AUDIO_NAMES,
    extracted,
    holds_recordings,
    recording_seconds,
    without_random_masks,
)
from capaft.tasks.speech.decoder import DecoderTranscriber
from capaft.tasks.speech.error_rates import ERROR_RATES, error_rates, usual_error_rate
from capaft.tasks.speech.frames import FrameTranscriber
from capaft.tasks.speech.transcriber import Transcriber

if TYPE_CHECKING:
    from datasets import Dataset

    from capaft.tasks.base.evidence import Evidence

_TRANSCRIPTS = (
    ("transcription", "transcript"),
    ("text", "sentence", "normalizedtext", "rawtranscription", "rawtext", "words", "utterance"),
)


@dataclass(frozen=True)
class SpeechRecognition(Task):
    """The task, for models that write one token a frame (wav2vec 2.0) and those with a decoder (Whisper).

    The default metric is the word error rate, or that of characters where no spaces part words. A recording longer than
    the maximum is left out of the training: the end of its transcript would be learnt without its sound.

    Attributes:
        max_seconds: the longest recording; in evaluation longer ones are cut.
        language: of the speech, a code such as `en`; Whisper's models for several languages need it.
        max_new_tokens: maximum number of tokens that a decoder writes.
        num_beams: beams of a decoder's search; 1 is greedy.
    """

    name: ClassVar[str] = "speech-recognition"
    pipeline_tag: ClassVar[str] = "automatic-speech-recognition"
    summary: ClassVar[str] = "a recording in, the words spoken in it out"
    auto_class: ClassVar[str] = DecoderTranscriber.auto_class
    processor: ClassVar[str] = "AutoProcessor"
    metrics: ClassVar[tuple[str, ...]] = (*ERROR_RATES, "loss")
    cut_by: ClassVar[str] = "--max-seconds"
    own_head: ClassVar[bool] = False
    precedence: ClassVar[int] = 15
    medium: ClassVar[str] = AUDIO
    input_names: ClassVar[tuple[str, ...]] = (AUDIO,)

    max_seconds: float = MAX_SPEECH_SECONDS
    language: str = ""
    max_new_tokens: int = MAX_NEW_TOKENS
    num_beams: int = NUM_BEAMS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_language(self.language)

    @classmethod
    def is_certain(cls, rows: Dataset, evidence: Evidence) -> bool:
        """True for recordings with transcripts; where they have classes as well, for a model that writes speech."""
        if not any(isinstance(feature, datasets.Audio) for feature in rows.features.values()):
            return False
        if not cls.has_columns(rows, evidence):
            return False
        transcripts = str(cls.recognise(rows, evidence.named).label)
        if _has_classes(rows) or _repeats(rows, transcripts):
            return _transcriber_class(evidence.config) is not None and _made_for_speech(evidence.config)
        return True

    @classmethod
    def check_model(cls, config: Any) -> None:
        """Make sure that a model writes speech.

        Raises:
            UsageError: it does not.
        """
        if _transcriber_class(config) is None:
            raise UsageError(
                f"speech-recognition needs a model with a decoder, such as Whisper, or one with CTC, such as wav2vec "
                f"2.0, and {config.model_type} is neither; choose another --model, or --task audio-classification for "
                "recordings with classes"
            )

    @classmethod
    def recognise(cls, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """Find the recordings and their transcripts: by name, else each as the only column of its type.

        Raises:
            UsageError: a named column is missing or not usable, or another one cannot be determined.
        """
        refuse_pair(cls.name, "recording", named)
        text = media_column(rows, named, AUDIO, AUDIO_NAMES, holds_recordings, datasets.Audio)
        label = find_column(rows, "label", named.get("label"), _TRANSCRIPTS, is_text, "text", (text,))
        if label is None:
            texts = [
                name
                for name, feature in rows.features.items()
                if is_text(feature) and name != text and not is_id(name) and not _names_classes(name)
            ]
            if len(texts) != 1:
                ask_for_column(rows, "label", "several columns could be" if texts else "there is no column of text")
            label = texts[0]
        return Columns(text, None, label)

    @classmethod
    def decide(cls, rows: Dataset, columns: Columns, settings: TaskSettings, data: str = "") -> Self:
        """See `Task.decide`; the default metric is the one that suits the language."""
        metric = settings.metric or usual_error_rate(settings.language or "", _transcripts(rows, columns))
        return super().decide(rows, columns, dataclasses.replace(settings, metric=metric), data)

    def auto_class_for(self, config: Any) -> str:
        """See `Task.auto_class_for`."""
        return self._transcriber(config).auto_class

    def load_model(self, settings: ModelSettings, *, seed: int) -> BaseModel:
        """See `Task.load_model`.

        Raises:
            UsageError: the model cannot be loaded, has no vocabulary, or needs a language.
        """
        loaded = super().load_model(settings, seed=seed)
        if not all(hasattr(loaded.processor, part) for part in ("tokenizer", "feature_extractor")):
            raise UsageError(
                f"--model {settings.model} has no tokenizer for transcripts; choose a model that was trained to write "
                "speech"
            )
        self._transcriber(loaded.model.config).adjust(loaded)
        return without_random_masks(loaded)

    def idle_options(self, base: BaseModel) -> dict[str, str]:
        """See `Task.idle_options`."""
        decodes = _transcriber_class(base.model.config) is DecoderTranscriber
        idle = ("max_new_tokens", "num_beams", "label_smoothing")
        return {} if decodes else dict.fromkeys(idle, "a model that writes by frames")

    @property
    def generates(self) -> bool:
        """See `Task.generates`; the loss needs no texts."""
        return self.metric in ERROR_RATES

    @property
    def reports(self) -> bool:
        """See `Task.reports`; only texts are reported."""
        return self.generates

    def features(self, base: BaseModel, rows: Dataset, columns: Columns, *, training: bool) -> Features:
        """Recordings, read once for their lengths, with the tokens of their transcripts as `labels`.

        Raises:
            UsageError: a recording cannot be read, no recording is short enough to train on, or the model's vocabulary
                is of another script.
        """
        rows = _undecoded(rows, columns)
        transcripts = self._transcriber(base.model.config).transcripts(base, _transcripts(rows, columns))
        seconds = recording_seconds(_recordings(rows, columns))
        is_long, can_write = seconds > self.max_seconds, np.array([bool(ids) for ids in transcripts.ids])
        kept = np.flatnonzero(can_write & ~is_long if training else can_write).tolist()
        if not can_write.any():
            raise UsageError(
                f"the model can write none of the transcripts: {transcripts.note or 'they are empty'}; choose another "
                "model"
            )
        if not kept:
            raise UsageError(
                f"no recording is of {self.max_seconds:g} seconds or less and has a transcript that the model can "
                "write; raise --max-seconds or choose other recordings"
            )
        note = _left_out(len(rows) - len(kept))
        features = _recordings(rows.select(kept), columns)
        rate = base.processor.feature_extractor.sampling_rate
        return dataclasses.replace(
            features,
            inputs={**features.inputs, "labels": [transcripts.ids[at] for at in kept]},
            lengths=(np.minimum(seconds[kept], self.max_seconds) * rate).astype(np.int64),
            references=[transcripts.texts[at] for at in kept],
            truncated=transcripts.truncated + int(is_long[kept].sum()),
            left_out="; ".join(filter(None, [transcripts.note, note])),
        )

    def collate(self, base: BaseModel, features: Features, indices: Sequence[int], *, training: bool) -> Batch:
        """Recordings as the feature extractor makes them, and `labels`, `(batch, tokens)`.

        Raises:
            UsageError: a recording cannot be read; names the row and, if it has one, the file.
        """
        recordings = extracted(base.processor.feature_extractor, features, indices, self.max_seconds)
        if "labels" not in features.inputs:
            return Batch(recordings, {}, len(indices))
        labels = pad_rows((features.inputs["labels"][at] for at in indices), IGNORED)
        return self._transcriber(base.model.config).batch(recordings, labels, int((labels != IGNORED).sum()))

    def loss(self, outputs: Any, targets: Mapping[str, Tensor], smoothing: float) -> Tensor:
        """The sum over the tokens: CTC, which such a model computes itself, or the cross-entropy."""
        way = DecoderTranscriber if targets else FrameTranscriber
        return way(self.language, self.max_new_tokens, self.num_beams).loss(outputs, targets, smoothing)

    def logits(self, base: BaseModel, features: Features) -> NDArray[np.int64] | None:
        """See `Task.logits`."""
        if "labels" in features.inputs:
            tokens = np.array([len(ids) for ids in features.inputs["labels"]], dtype=np.int64)
        else:
            # A decoder writes one token after the other.
            tokens = np.ones(len(features), dtype=np.int64)
        return self._transcriber(base.model.config).positions(base, features.lengths, tokens) * vocabulary_size(base)

    def evaluate_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> tuple[Tensor, list[str]]:
        """See `Task.evaluate_batch`; a decoder's logits are gone before it writes."""
        if not batch.targets:
            return super().evaluate_batch(base, model, features, indices, batch)
        loss = self.loss(model(**batch.inputs), batch.targets, 0.0)
        return loss, self.predict(base, model, features, indices, batch, None)

    def predict(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch, outputs: Any
    ) -> list[str]:
        """The model's texts; empty if the metric needs none."""
        if not self.reports:
            return [""] * len(indices)
        return self._transcriber(base.model.config).written(base, model, batch, outputs)

    def score(self, features: Features, predictions: Sequence[Any]) -> dict[str, float]:
        """The error rates, if the metric is one; the loop adds the loss."""
        return error_rates(predictions, features.references) if self.reports else {}

    def report(self, features: Features, predictions: Sequence[Any]) -> list[dict[str, Any]]:
        """The file or number of each row, the model's text and the transcript."""
        if not self.reports:
            return []
        return [
            {AUDIO: source, "prediction": text, "reference": reference}
            for source, text, reference in zip(features.sources, predictions, features.references, strict=True)
        ]

    def find_inputs(self, rows: Dataset, named: Mapping[str, str | None]) -> Columns:
        """See `TaskAnswers.find_inputs`: the column of the recordings, as `recognise` finds it."""
        refuse_pair(self.name, "recording", named)
        return Columns(media_column(rows, named, AUDIO, AUDIO_NAMES, holds_recordings, datasets.Audio))

    def answer_fields(self, top: int | None = None) -> tuple[str, ...]:
        """The words spoken."""
        return ("text",)

    def answer_features(self, base: BaseModel, rows: Dataset, columns: Columns) -> Features:
        """See `TaskAnswers.answer_features`; recordings are read once for their lengths."""
        features = _recordings(_undecoded(rows, columns), columns)
        seconds = recording_seconds(features)
        rate = base.processor.feature_extractor.sampling_rate
        lengths = (np.minimum(seconds, self.max_seconds) * rate).astype(np.int64)
        return dataclasses.replace(features, lengths=lengths, truncated=int((seconds > self.max_seconds).sum()))

    def answer_batch(
        self, base: BaseModel, model: nn.Module, features: Features, indices: Sequence[int], batch: Batch
    ) -> list[str]:
        """The model's texts; a decoder needs no forward of its own."""
        writes = _transcriber_class(base.model.config) is DecoderTranscriber
        outputs = None if writes else model(**batch.inputs)
        return self._transcriber(base.model.config).written(base, model, batch, outputs)

    def answer(self, features: Features, predictions: Sequence[Any], top: int | None = None) -> list[Record]:
        """The text of each recording."""
        return [{"text": text} for text in predictions]

    def show(self, base: BaseModel, features: Features, index: int) -> str:
        """The file or number, and the transcript as the model writes it."""
        return f"{features.sources[index]} -> {features.references[index]}"

    def _transcriber(self, config: Any) -> Transcriber:
        way = _transcriber_class(config)
        assert way is not None
        return way(self.language, self.max_new_tokens, self.num_beams)


def _left_out(lost: int) -> str:
    """The line about recordings that nothing can be learnt from; empty if there are none."""
    if not lost:
        return ""
    recordings, have, are = (
        agreeing(lost, one, several)
        for one, several in (("recording is", "recordings are"), ("has", "have"), ("is", "are"))
    )
    return f"{lost} {recordings} too long, or {have} nothing to write, and {are} left out"


def _recordings(rows: Dataset, columns: Columns) -> Features:
    """The recordings of rows, still in their files."""
    inputs: dict[str, Sequence[Any]] = {AUDIO: rows[columns.text], "row": row_numbers(rows)}
    return Features(inputs, np.ones(len(rows), dtype=np.int64), sources=media_names(rows, columns.text))


def _undecoded(rows: Dataset, columns: Columns) -> Dataset:
    """The rows with recordings still in their files."""
    rows = rows.with_format(None)
    if isinstance(rows.features[columns.text], datasets.Audio):
        return rows.cast_column(columns.text, datasets.Audio(decode=False))
    return rows


def _transcripts(rows: Dataset, columns: Columns) -> list[str]:
    return [str(text) for text in column_values(rows, str(columns.label))]


def _names_classes(name: str) -> bool:
    return any(plain_name(name) in names for names in CLASS_NAMES)


def _has_classes(rows: Dataset) -> bool:
    """True if a column holds classes, or is called so."""
    return any(
        isinstance(feature, datasets.ClassLabel) or _names_classes(name) for name, feature in rows.features.items()
    )


def _repeats(rows: Dataset, name: str) -> bool:
    """True if a column has so few values that they may be classes, such as spoken commands."""
    return len(rows.unique(name)) <= len(rows) // 2


def _transcriber_class(config: Any) -> type[FrameTranscriber] | type[DecoderTranscriber] | None:
    """The way in which a model writes speech; None if it does not."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CTC_MAPPING_NAMES,
        MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    )

    kind = getattr(config, "model_type", "")
    if kind in MODEL_FOR_CTC_MAPPING_NAMES:
        return FrameTranscriber
    writes = kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES and getattr(config, "is_encoder_decoder", False)
    return DecoderTranscriber if writes else None


def _made_for_speech(config: Any) -> bool:
    """True if a checkpoint was saved with a head that writes."""
    made_for = " ".join(getattr(config, "architectures", None) or ())
    return "CTC" in made_for or "ConditionalGeneration" in made_for or "SpeechToText" in made_for
