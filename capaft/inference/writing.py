"""Texts written by a finished adapter, or by its base model alone."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from capaft.adapter.activation import disabled
from capaft.config.generate_options import PENALTIES, SAMPLING, GenerateOptions
from capaft.inference.prompts import UNLIMITED, in_template, prompt_features, takes_chats
from capaft.inference.streaming import PieceStreamer, ShowError, StopRequest
from capaft.model.load import BaseModel
from capaft.support.console import say_nothing
from capaft.support.errors import TrainingError, UsageError
from capaft.support.out_of_memory import is_out_of_memory
from capaft.tasks.base.features import Features
from capaft.tasks.language.generation import Generation, decoded, refusing_to_write
from capaft.tasks.language.messages import SYSTEM, Message
from capaft.training.accelerator import move_model
from capaft.training.placement import Placement
from capaft.training.record.saved_run import SavedRun

Finish = Literal["end", "length", "stopped"]
"""How a text ended: by itself, at the largest number of tokens, or because it was asked to."""


@dataclass(frozen=True)
class Answer:
    """A text that was written.

    Attributes:
        text: the text.
        tokens: number of its tokens, its end included.
        seconds: time that it took, the prompt's included.
        finish: how it ended.
    """

    text: str
    tokens: int
    seconds: float
    finish: Finish


class Writer:
    """A finished adapter that writes. Unless an option is given, it decodes as the run's evaluation does.

    Args:
        saved: the opened run.
        options: how to write.
        say: called with a line for each option that has no effect, and for each prompt that is cut.

    Attributes:
        task: the task, with the options.
        base: the base model.
        seed: of the draws; None if nothing is drawn.
        chats: True if prompts go into the chat template, with a system text and what was said before.

    Raises:
        UsageError: the run's task writes nothing, or an option does not go with it.
    """

    def __init__(
        self, saved: SavedRun, options: GenerateOptions | None = None, say: Callable[[str], None] = say_nothing
    ) -> None:
        options = options or GenerateOptions()
        if not isinstance(saved.task, Generation):
            raise UsageError(f"this run is for {saved.task.name}, which writes no texts; use capaft predict")
        kept = options.given("max_new_tokens", "num_beams", "length_penalty", "no_repeat_ngram_size")
        task = dataclasses.replace(saved.task, max_length=UNLIMITED, **kept)
        self.base: BaseModel = saved.base
        self.task: Generation = in_template(task, self.base, options.chat_template)
        self.chats = takes_chats(self.task, self.base)
        self.seed = (secrets.randbits(32) if options.seed is None else options.seed) if options.do_sample else None
        self._options, self._say = options, say
        self._placement = Placement.of(saved)
        self._model: Any = move_model(saved.model, self._placement.device)
        if options.system is not None and not self.chats:
            raise UsageError("--system needs the chat template; say --chat-template, or drop it")
        for line in options.idle(self.task.num_beams):
            say(line)
        if self.task.new_tokens(self.base) < (options.max_new_tokens or 0):
            most = self.task.new_tokens(self.base)
            say(f"--max-new-tokens {options.max_new_tokens} is more than the model has positions for; {most} are used")
        if (options.min_new_tokens or 0) > self.task.new_tokens(self.base):
            most = self.task.new_tokens(self.base)
            say(f"--min-new-tokens {options.min_new_tokens} is more than the {most} that are generated at most")

    @property
    def streams(self) -> bool:
        """True if words can be shown as they are written; a beam search knows none before its end."""
        return self.task.num_beams == 1

    def opening(self) -> list[Message]:
        """The messages that a chat begins with: the system text, if there is one."""
        return [] if self._options.system is None else [{"role": SYSTEM, "content": self._options.system}]

    def answer(
        self,
        messages: Sequence[Message],
        *,
        adapted: bool = True,
        draw: int = 0,
        show: Callable[[str], None] | None = None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Answer:
        """The answer to a chat, or what follows a prompt.

        Args:
            messages: what was said so far; the last is the prompt.
            adapted: leave the adapter on.
            draw: number of the draw: with one seed and one number, the same text is drawn.
            show: called with each piece of the text as soon as it is written, if the decoding allows that.
            is_stopped: asked after each token; if True, the text ends there.

        Raises:
            UsageError: the prompt cannot be used, or the checkpoint's settings do not let it write.
            TrainingError: memory ran out, or the model's probabilities are not finite.
        """
        if len(messages) > 1 and not self.chats:
            raise UsageError("this run takes single prompts; --chat-template has it take chats")
        features = prompt_features(self.task, self.base, messages)
        self._tell(features)
        inputs = self.task.prompt_inputs(self.base, features, [0])
        if not inputs["input_ids"].shape[1]:
            raise UsageError("the prompt has no token to begin from; give one that is not empty")
        inputs = {name: tensor.to(self._placement.device) for name, tensor in inputs.items()}
        arguments = self._arguments()
        if show and self.streams:
            arguments["streamer"] = PieceStreamer(self.base.processor, show)
        if is_stopped:
            arguments["stopping_criteria"] = [StopRequest(is_stopped)]
        began = time.perf_counter()
        with (
            _one_line_errors(self.base),
            nullcontext() if adapted else disabled(self._model),
            self._drawing(draw),
            torch.inference_mode(),
            self._placement.autocast(),
        ):
            tokens = self._model.generate(**inputs, **arguments)[0].tolist()
        seconds = time.perf_counter() - began
        # A decoder of its own starts with one token.
        new = tokens[1 if self._model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]
        finish: Finish = "length"
        if new and new[-1] in (arguments["eos_token_id"] or ()):
            finish = "end"
        elif is_stopped and is_stopped():
            finish = "stopped"
        text = decoded(self.base.processor, new)
        if show and not self.streams:
            show(text)
        return Answer(text, len(new), seconds, finish)

    def _arguments(self) -> dict[str, Any]:
        """Arguments of `generate`; what of the sampling is not given, the checkpoint decides."""
        options, task = self._options, self.task
        arguments = task.decoding(self.base, self._model, task.new_tokens(self.base), task.stops(self.base))
        arguments |= options.given(*PENALTIES)
        if options.min_new_tokens is not None:
            # transformers warns of two limits.
            arguments.pop("min_length")
            arguments["min_new_tokens"] = min(options.min_new_tokens, task.new_tokens(self.base))
        if options.do_sample:
            sampling = [name for name in SAMPLING if name != "seed"]
            arguments = {name: value for name, value in arguments.items() if name not in sampling}
            arguments |= {"do_sample": True, **options.given(*sampling)}
        return arguments

    def _tell(self, features: Features) -> None:
        """Say what of a prompt may surprise."""
        for note in features.notes:
            self._say(note)
        if features.truncated:
            self._say("the prompt is longer than the model allows; its beginning is left out")

    @contextmanager
    def _drawing(self, draw: int) -> Iterator[None]:
        """The state of the random generators from which a text is drawn; the caller's comes back afterwards."""
        if self.seed is None:
            yield
            return
        device = self._placement.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((self.seed + draw) % 2**63)
            yield


@contextmanager
def _one_line_errors(base: BaseModel) -> Iterator[None]:
    try:
        with refusing_to_write(base, "check its generation_config.json, or the options"):
            yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise TrainingError("out of memory; lower --max-new-tokens or --num-beams, or shorten the prompt") from None
        if "probability tensor" in str(error):
            advice = "raise --temperature, or drop --do-sample"
            raise TrainingError(f"the model's probabilities are not finite; {advice}") from None
        raise
    except ShowError as error:
        raise error.cause from None
    except OverflowError:
        raise UsageError("--length-penalty is too far from 0 for texts of that length; bring it nearer") from None
