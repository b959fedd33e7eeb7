"""Speech recognition: what is read, learnt, written and scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_speech
import torch
from datasets import Dataset
from tiny_media import NO_COLUMNS, ast
from tiny_speech import LETTERS, WORDS, spoken

from capaft.config.parts.model import ModelSettings
from capaft.config.parts.task import TaskSettings
from capaft.model.load import BaseModel
from capaft.support.errors import UsageError
from capaft.tasks.base.columns import Columns
from capaft.tasks.speech_recognition import SpeechRecognition

COLUMNS = Columns("audio", None, "transcription")
TASK = SpeechRecognition(language="en", max_new_tokens=8)
# Of the tiny Whisper: English, transcribe, no time stamps; the end.
BEGIN, END = [258, 262, 263], 256


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    return {name: load(getattr(tiny_speech, name)(tmp_path_factory.mktemp(name))) for name in ("ctc", "whisper")}


def load(model: str, task: SpeechRecognition = TASK) -> BaseModel:
    return task.load_model(ModelSettings(model=model), seed=0)


def byte_ids(text: str) -> list[int]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    return [letters.index("Ġ" if letter == " " else letter) for letter in text]


def letter_ids(text: str) -> list[int]:
    return [4 if letter == " " else 5 + LETTERS.index(letter) for letter in text]


def test_a_whisper_learns_the_tokens_that_generation_starts_from(bases: dict[str, BaseModel]) -> None:
    features = TASK.features(bases["whisper"], spoken(" low  high"), COLUMNS, training=True)
    assert features.inputs["labels"] == [[*BEGIN, *byte_ids("low  high"), END]]
    assert features.references == ["low  high"]
    batch = TASK.collate(bases["whisper"], features, [0], training=True)
    assert batch.terms == len(BEGIN) + 10
    logits = bases["whisper"].model(**batch.inputs).logits
    expected = -torch.log_softmax(logits[0], -1)[range(batch.terms), batch.targets["labels"][0]].sum()
    outputs = bases["whisper"].model(**batch.inputs)
    torch.testing.assert_close(TASK.loss(outputs, batch.targets, 0.0), expected)


def test_a_ctc_model_learns_letters_of_its_own_case(bases: dict[str, BaseModel]) -> None:
    features = TASK.features(bases["ctc"], spoken("Low, é High?", "low"), COLUMNS, training=True)
    assert features.references == ["LOW HIGH", "LOW"]
    assert features.inputs["labels"] == [letter_ids("LOW HIGH"), letter_ids("LOW")]
    assert features.left_out == "the model's vocabulary lacks , ? É, which transcripts are written without"


def test_lower_case_vocabularies_and_those_of_both_cases(tmp_path: Path) -> None:
    lower, both = (
        load(tiny_speech.ctc(tmp_path / "lower", "abcdefghilow")),
        load(tiny_speech.ctc(tmp_path / "b", "LOWlow")),
    )
    assert TASK.features(lower, spoken("LoW"), COLUMNS, training=True).references == ["low"]
    assert TASK.features(both, spoken("LoW"), COLUMNS, training=True).references == ["LoW"]


def test_the_loss_of_ctc_is_a_sum_over_recordings(bases: dict[str, BaseModel]) -> None:
    base = bases["ctc"]
    features = TASK.features(base, spoken("low high", "high high low low"), COLUMNS, training=True)
    losses = []
    for indices in ([0], [1], [0, 1]):
        batch = TASK.collate(base, features, indices, training=True)
        assert batch.terms == sum(len(features.inputs["labels"][at]) for at in indices)
        losses.append(TASK.loss(base.model(**batch.inputs), batch.targets, 0.0).item())
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-4)
    batch = TASK.collate(base, features, [0], training=True)
    logits = base.model(**batch.inputs).logits[0].double()
    assert losses[0] == pytest.approx(ctc_by_hand(torch.log_softmax(logits, -1), letter_ids("LOW HIGH")), rel=1e-4)


def ctc_by_hand(log_probabilities: torch.Tensor, target: list[int]) -> float:
    """The forward algorithm of Graves et al. 2006, equations 6 and 7, with 0 as the blank."""
    states = [0, *(token for letter in target for token in (letter, 0))]
    alpha = [log_probabilities[0, states[0]], log_probabilities[0, states[1]]]
    alpha += [torch.tensor(-torch.inf, dtype=torch.float64)] * (len(states) - 2)
    for frame in log_probabilities[1:]:
        alpha = [
            torch.logsumexp(
                torch.stack(
                    [
                        alpha[at],
                        *(alpha[at - 1 : at] if at else []),
                        *([alpha[at - 2]] if at > 1 and token not in (0, states[at - 2]) else []),
                    ]
                ),
                0,
            )
            + frame[token]
            for at, token in enumerate(states)
        ]
    return -torch.logaddexp(alpha[-1], alpha[-2]).item()


def test_transcripts_of_another_script_are_refused(bases: dict[str, BaseModel]) -> None:
    with pytest.raises(UsageError, match=r"^the model's vocabulary lacks letters of the transcripts \(В Е И П Р Т\)"):
        TASK.features(bases["ctc"], spoken("привет"), COLUMNS, training=True)


@pytest.mark.parametrize("name", ["ctc", "whisper"])
def test_what_is_written_does_not_depend_on_the_batch(name: str, bases: dict[str, BaseModel]) -> None:
    base = bases[name]
    features = TASK.features(base, spoken("low", "high low high high low"), COLUMNS, training=False)

    def written(indices: list[int]) -> list[str]:
        batch = TASK.collate(base, features, indices, training=False)
        with torch.inference_mode():
            return TASK.predict(base, base.model, features, indices, batch, base.model(**batch.inputs))

    assert written([0, 1]) == [*written([0]), *written([1])]


def test_long_recordings_are_left_out_of_training_and_cut_in_evaluation(bases: dict[str, BaseModel]) -> None:
    task = SpeechRecognition(max_seconds=0.5)
    rows = spoken("low", "low high low")
    training = task.features(bases["ctc"], rows, COLUMNS, training=True)
    assert training.references == ["LOW"]
    assert training.left_out == "1 recording is too long, or has nothing to write, and is left out"
    evaluation = task.features(bases["ctc"], rows, COLUMNS, training=False)
    assert (evaluation.references, evaluation.truncated) == (["LOW", "LOW HIGH LOW"], 1)
    assert evaluation.lengths.tolist() == [800, 2000]
    with pytest.raises(UsageError, match=r"^no recording is of 0\.1 seconds or less"):
        SpeechRecognition(max_seconds=0.1).features(bases["ctc"], rows, COLUMNS, training=True)


def test_error_rates_by_hand(bases: dict[str, BaseModel]) -> None:
    features = TASK.features(bases["whisper"], spoken("low high low", "high"), COLUMNS, training=False)
    # One word of four is wrong and one is too many; of 16 letters and spaces, one is wrong, and four are too many.
    scores = TASK.score(features, ["lot high low", "high low"])
    assert scores == pytest.approx({"wer": 2 / 4, "cer": 5 / 16})
    assert TASK.score(features, features.references) == {"wer": 0, "cer": 0}
    assert not TASK.more_is_better


@pytest.mark.parametrize(
    ("texts", "language", "metric"),
    [(("low high", "low"), "", "wer"), (("今天北京", "天气"), "", "cer"), (("konnichiwa", "a"), "ja", "cer")],
)
def test_characters_are_scored_where_no_spaces_part_words(texts: tuple[str, ...], language: str, metric: str) -> None:
    settings = TaskSettings(language=language or None)
    assert SpeechRecognition.decide(spoken(*texts), COLUMNS, settings).metric == metric


def test_a_model_of_many_languages_needs_one(tmp_path: Path) -> None:
    model = tiny_speech.whisper(tmp_path / "many")
    for language, message in (("", "set the one of the recordings"), ("fr", "does not know this language")):
        with pytest.raises(UsageError, match=message):
            load(model, SpeechRecognition(language=language))
    assert load(model, SpeechRecognition(language="de-AT")).processor.tokenizer.prefix_tokens[1] == 260
    load(tiny_speech.whisper(tmp_path / "one", languages=()), SpeechRecognition())


def test_another_language_is_learnt_and_written_in_evaluation(tmp_path: Path) -> None:
    base, german = load(tiny_speech.whisper(tmp_path)), replace(TASK, language="de")
    features = german.features(base, spoken("low"), COLUMNS, training=False)
    assert features.inputs["labels"][0][:3] == [BEGIN[0] + 2, *BEGIN[1:]]
    with pytest.raises(UsageError, match="--language xx: the model does not know this language"):
        replace(TASK, language="xx").features(base, spoken("low"), COLUMNS, training=False)


def test_the_loss_of_frames_is_not_smoothed(bases: dict[str, BaseModel]) -> None:
    assert "label_smoothing" in TASK.idle_options(bases["ctc"])
    assert "label_smoothing" not in TASK.idle_options(bases["whisper"])


def test_models_that_write_no_speech_are_refused(tmp_path: Path) -> None:
    from transformers import AutoConfig

    with pytest.raises(UsageError, match=r"and audio-spectrogram-transformer is neither; choose another --model"):
        SpeechRecognition.check_model(AutoConfig.from_pretrained(ast(tmp_path / "ast")))


@pytest.mark.parametrize(
    ("columns", "label"),
    [({}, "transcription"), ({"sentence": ["a"]}, "transcription"), ({"speaker_id": ["b"]}, "transcription")],
)
def test_the_transcript_is_recognised(columns: dict[str, Any], label: str) -> None:
    assert SpeechRecognition.recognise(spoken("low", **columns), NO_COLUMNS) == Columns("audio", None, label)


def test_the_transcript_is_asked_for_where_two_columns_could_be_it() -> None:
    rows = spoken("low", saying=["a"], speech_text=["b"]).remove_columns("transcription")
    with pytest.raises(UsageError, match=r"^cannot tell which column is the label \(several columns could be\)"):
        SpeechRecognition.recognise(rows, NO_COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "rate"), [("ctc", 300, 3e-3), ("whisper", 200, 3e-3)])
def test_a_small_model_learns_to_write_tones(name: str, steps: int, rate: float, tmp_path: Path) -> None:
    base = load(getattr(tiny_speech, name)(tmp_path))
    task = replace(TASK, max_new_tokens=32)
    random = np.random.default_rng(0)

    def split(count: int) -> Dataset:
        return spoken(*(" ".join(random.choice(list(WORDS), random.integers(1, 4))) for _ in range(count)))

    train = TASK.features(base, split(96), COLUMNS, training=True)
    validation = TASK.features(base, split(24), COLUMNS, training=False)
    model = base.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        torch.manual_seed(step)
        batch = TASK.collate(base, train, [(16 * step + at) % len(train) for at in range(16)], training=True)
        (TASK.loss(model(**batch.inputs), batch.targets, 0.0) / batch.terms).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    indices = range(len(validation))
    batch = TASK.collate(base, validation, indices, training=False)
    with torch.inference_mode():
        texts = task.predict(base, model, validation, indices, batch, model(**batch.inputs))

    assert TASK.score(validation, texts)["cer"] < 0.5
