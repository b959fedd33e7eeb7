"""`capaft generate`: prompts as they were in the training, decoded as transformers does, and a chat on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from rich.console import Console
from tiny_checkpoints import save
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

import capaft
from capaft.commands.app import app
from capaft.commands.chat import Chat
from capaft.config.generate_options import GenerateOptions
from capaft.inference.writing import Writer
from capaft.support.errors import UsageError
from capaft.training.record.saved_run import open_run

CHAT = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(6)
]
PAIRS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(6)]
TEXTS = [{"text": f"a text {i}"} for i in range(6)]
KINDS: dict[str, tuple[str, bool, list[Any], tuple[str, ...]]] = {
    "chat": ("llama", True, CHAT, ()),
    "templated": ("llama", True, PAIRS, ("--source-prefix", "say: ")),
    "pairs": ("gpt2", False, PAIRS, ("--source-prefix", "say: ", "--separator", " =>")),
    "text": ("gpt2", False, TEXTS, ("--task", "causal-lm", "--max-length", "16")),
    "seq2seq": ("t5", False, PAIRS, ("--source-prefix", "say: ", "--metric", "loss")),
}
START = ("--max-steps", "1", "--lr", "0.3", "--no-baseline", "--rank", "4", "--method", "lora", "--max-new-tokens", "9")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs by kind, trained when a test asks for one; tests must not write into them."""
    directory = tmp_path_factory.mktemp("generate")

    def run(kind: str) -> Path:
        checkpoint, chats, rows, flags = KINDS[kind]
        output, model = directory / kind, directory / f"model-{kind}"
        if not output.exists():
            save(checkpoint, model, chats=chats)
            data = directory / f"{kind}.jsonl"
            data.write_text("\n".join(map(json.dumps, rows)))
            done = invoke("train", "--model", model, "--data", data, "--output", output, *START, *flags)
            assert done.code == 0, done.err
        return output

    return run


def merged(run: Path) -> tuple[Any, Any]:
    """The merged model and its tokenizer, without anything of capaft."""
    target = run.parent / f"merged-{run.name}"
    if not target.exists():
        assert invoke("merge", run, "--output", target).code == 0
    kind = AutoModelForSeq2SeqLM if "seq2seq" in run.name else AutoModelForCausalLM
    return kind.from_pretrained(target).eval(), AutoTokenizer.from_pretrained(target)


def record(run: Path, *arguments: Any, text: str | None = None) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["generate", str(run), "--json", *map(str, arguments)], input=text)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def greedy(model: Any, ids: torch.Tensor, ends: set[int], new: int) -> list[int]:
    """The likeliest token, one after the other, without a cache."""
    tokens: list[int] = []
    for _ in range(new):
        if model.config.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id, *tokens]])
            logits = model(input_ids=ids, decoder_input_ids=start).logits
        else:
            logits = model(torch.cat([ids, torch.tensor([tokens], dtype=torch.int64)], dim=1)).logits
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens


def expected_prompt(kind: str, tokenizer: Any, text: str) -> list[int]:
    """The tokens of a prompt, as the documentation says that each kind of run puts it."""
    if kind in ("chat", "templated"):
        said = text if kind == "chat" else f"say: {text}"
        template = [{"role": "user", "content": said}]
        return tokenizer.apply_chat_template(template, add_generation_prompt=True, return_dict=False)
    before, after = {"pairs": ("say: ", " =>"), "text": ("", ""), "seq2seq": ("say: ", "")}[kind]
    return tokenizer(before + text + after)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_put_as_in_the_training_and_continued_greedily(kind: str, runs: Any) -> None:
    model, tokenizer = merged(runs(kind))
    ends = {tokenizer.eos_token_id}
    if kind in ("chat", "templated"):
        ends.add(tokenizer.convert_tokens_to_ids("<stop>"))
    for text in ("hello", "a longer prompt, of more tokens"):
        ids = torch.tensor([expected_prompt(kind, tokenizer, text)])
        tokens = greedy(model, ids, ends, 9)
        written = record(runs(kind), text)
        assert written["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert written["tokens"] == len(tokens)
        assert written["finish"] == ("end" if tokens[-1] in ends else "length")


def test_the_text_is_that_of_the_evaluation(runs: Any, tmp_path: Path) -> None:
    data, output = tmp_path / "some.jsonl", tmp_path / "predictions.jsonl"
    data.write_text(json.dumps({"prompt": "what is it?", "completion": "a"}))
    done = invoke("eval", runs("pairs"), "--data", data, "--metric", "bleu", "--predictions", output)
    assert done.code == 0, done.err
    assert json.loads(output.read_text())["prediction"] == record(runs("pairs"), "what is it?")["text"]


def test_plain_text_may_begin_with_nothing(runs: Any) -> None:
    model, tokenizer = merged(runs("text"))
    end = tokenizer.eos_token_id
    tokens = greedy(model, torch.tensor([[end]]), {end}, 9)
    assert record(runs("text"), "")["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_base_is_the_model_without_the_adapter(runs: Any) -> None:
    run = runs("pairs")
    model = AutoModelForCausalLM.from_pretrained(run.parent / "model-pairs").eval()
    tokenizer = AutoTokenizer.from_pretrained(run.parent / "model-pairs")
    tokens = greedy(model, torch.tensor([expected_prompt("pairs", tokenizer, "hi")]), {tokenizer.eos_token_id}, 9)
    alone, both = record(run, "hi", "--base"), record(run, "hi", "--compare")
    assert alone["text"] == both["base_text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert both["text"] == record(run, "hi")["text"] != alone["text"]
    shown = invoke("generate", run, "hi", "--compare").out
    assert shown.startswith("base:\n")
    assert "\n\nadapter:\n" in shown


SAMPLED = ("--do-sample", "--seed", 5, "--temperature", 0.7, "--top-k", 20, "--top-p", 0.9)


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (SAMPLED, {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}),
        (("--do-sample", "--seed", 5, "--min-p", 0.1), {"do_sample": True, "min_p": 0.1}),
        (("--num-beams", 3, "--length-penalty", 2), {"num_beams": 3, "length_penalty": 2.0}),
        (("--repetition-penalty", 1.5, "--min-new-tokens", 4), {"repetition_penalty": 1.5, "min_new_tokens": 4}),
        (("--no-repeat-ngram-size", 1), {"no_repeat_ngram_size": 1}),
    ],
)
def test_options_mean_what_they_mean_to_transformers(flags: Any, arguments: dict[str, Any], runs: Any) -> None:
    model, tokenizer = merged(runs("pairs"))
    ids = torch.tensor([expected_prompt("pairs", tokenizer, "hi")])
    torch.manual_seed(5)
    with torch.inference_mode():
        tokens = model.generate(ids, max_new_tokens=7, pad_token_id=0, **arguments)[0, ids.shape[1] :]
    expected = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    state = torch.get_rng_state()
    written = record(runs("pairs"), "hi", "--max-new-tokens", 7, *flags)
    assert written["text"] == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert written.get("seed") == (5 if "do_sample" in arguments else None)


def test_a_draw_without_a_seed_can_be_repeated(runs: Any) -> None:
    drawn = record(runs("pairs"), "hi", "--do-sample")
    assert record(runs("pairs"), "hi", "--do-sample", "--seed", drawn["seed"])["text"] == drawn["text"]


def test_a_prompt_comes_from_stdin(runs: Any) -> None:
    expected = record(runs("pairs"), "two\nlines")["text"]
    assert record(runs("pairs"), "-", text="two\nlines\n")["text"] == expected
    assert record(runs("pairs"), text="two\nlines\r\n")["text"] == expected


def test_system_text_goes_into_the_template(runs: Any) -> None:
    model, tokenizer = merged(runs("chat"))
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<stop>")}
    tokens = greedy(model, torch.tensor([ids]), ends, 9)
    text = record(runs("chat"), "hi", "--system", "be kind")["text"]
    assert text == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_the_template_can_be_had_and_left_out_whatever_the_run(runs: Any) -> None:
    model, tokenizer = merged(runs("chat"))
    tokens = greedy(model, torch.tensor([tokenizer("hi")["input_ids"]]), {tokenizer.eos_token_id}, 9)
    plain = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert record(runs("chat"), "hi", "--no-chat-template")["text"] == plain
    assert record(runs("chat"), "hi", "--chat-template")["text"] == record(runs("chat"), "hi")["text"]
    model, tokenizer = merged(runs("templated"))
    tokens = greedy(model, torch.tensor([tokenizer("say: hi\n")["input_ids"]]), {tokenizer.eos_token_id, 5}, 9)
    plain = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert record(runs("templated"), "hi", "--no-chat-template")["text"] == plain
    done = invoke("generate", runs("pairs"), "hi", "--chat-template")
    assert done.code == 2
    assert "--chat-template needs a causal language model whose tokenizer has a chat template" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hi", "--base", "--compare"), "--base and --compare cannot be used together; drop one"),
        (
            ("hi", "--min-new-tokens", "9", "--max-new-tokens", "2"),
            "--min-new-tokens 9 is more than --max-new-tokens 2; lower it",
        ),
        (("hi", "--temperature", "0"), "--temperature must be greater than 0, got 0"),
        (("hi", "--top-p", "1.5"), "--top-p must be in (0, 1], got 1.5"),
        (("-",), 'there is no prompt: give one, or pipe it in; for a text without one, give ""'),
        (
            ("hi", "--system", "be kind"),
            "--system needs the chat template; say --chat-template, or drop it",
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], message: str, runs: Any) -> None:
    done = invoke("generate", runs("pairs"), *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"error: {message}"


def test_options_without_an_effect_are_named(runs: Any) -> None:
    flags = ("--temperature", "0.5", "--seed", "1", "--length-penalty", "2", "--max-new-tokens", "1000")
    done = invoke("generate", runs("pairs"), "hi", *flags)
    assert done.code == 0
    assert done.err.splitlines()[1:5] == [
        "--temperature has no effect without --do-sample and is ignored",
        "--seed has no effect without --do-sample and is ignored",
        "--length-penalty has no effect with --num-beams 1 and is ignored",
        "--max-new-tokens 1000 is more than the model has positions for; 128 are used",
    ]


def test_other_tasks_predict(run: Path) -> None:
    done = invoke("generate", run, "hi")
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        "error: this run is for text-classification, which writes no texts; use capaft predict",
    )


@pytest.mark.parametrize("kind", ["chat", "pairs", "seq2seq"])
def test_rows_and_prompts_in_python_get_the_texts_of_the_command(kind: str, runs: Any, tmp_path: Path) -> None:
    prompts = ["hi", "a longer prompt, of more tokens"]
    expected = [record(runs(kind), prompt)["text"] for prompt in prompts]
    opened = capaft.open(runs(kind))
    assert [opened.generate(prompt) for prompt in prompts] == expected
    assert opened.predict(prompts) == [{"text": text} for text in expected]
    output = tmp_path / "texts.jsonl"
    done = invoke("predict", runs(kind), "--text", prompts[0], "--text", prompts[1], "--output", output)
    assert done.code == 0, done.err
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == expected


def test_options_in_python_are_checked_too(runs: Any) -> None:
    opened = capaft.open(runs("pairs"))
    pieces: list[str] = []
    drawn = record(runs("pairs"), "hi", "--do-sample", "--seed", 4, "--top-k", 9)["text"]
    assert opened.generate("hi", do_sample=True, seed=4, top_k=9, show=pieces.append) == drawn == "".join(pieces)
    assert opened.generate("hi", adapted=False) == record(runs("pairs"), "hi", "--base")["text"]
    # The adapter's parameters are of another dtype than the base's, and the prompt's forwards meet both.
    assert isinstance(capaft.open(runs("pairs"), base_dtype="bfloat16").generate("hi"), str)
    for options, message in (
        ({"temprature": 1.0}, r"temprature: there is no such option; did you mean temperature\?"),
        ({"top_p": 2.0}, r"top_p must be in \(0, 1\], got 2.0"),
        ({"num_beams": "4"}, "num_beams must be of type int, got '4'"),
    ):
        with pytest.raises(UsageError, match=message):
            opened.generate("hi", **options)


class Terminal:
    """`capaft generate` on a terminal of its own, in a process of its own."""

    def __init__(self, *arguments: Any) -> None:
        self.number, child = pty.openpty()
        command = [sys.executable, "-m", "capaft", "generate", *map(str, arguments)]
        environment = os.environ | {"TERM": "dumb", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
        )
        os.close(child)
        self.shown = ""

    def until(self, text: str, seconds: float = 120.0) -> str:
        """All that was shown up to a text and not yet asked for."""
        end = time.monotonic() + seconds
        while text not in self.shown and time.monotonic() < end:
            if not select.select([self.number], [], [], 1.0)[0]:
                continue
            try:
                self.shown += os.read(self.number, 4096).decode(errors="replace")
            except OSError:
                break
        before, sign, self.shown = self.shown.partition(text)
        assert sign, f"{text!r} was not shown, but {before!r}"
        return before

    def type(self, text: str) -> None:
        os.write(self.number, text.encode())

    def press_ctrl_c(self) -> None:
        """What the terminal sends for it; its session has no other process."""
        os.kill(self.process.pid, signal.SIGINT)


# On a busy machine the answer may be whole before Ctrl-C reaches it.
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no terminals of this kind")
def test_a_chat_remembers_resets_stops_and_ends(runs: Any) -> None:
    terminal = Terminal(runs("chat"), "--max-new-tokens", "250", "--min-new-tokens", "250")
    try:
        converse(terminal)
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.number)


def converse(terminal: Terminal) -> None:
    """Try everything that a chat offers; a prompt is seen twice, as typed and as forgotten."""
    terminal.until("Ctrl-D leaves")
    answers = []
    for line in ("hello", "hello", "/reset", "hello"):
        terminal.until("> ")
        terminal.type(f"{line}\n")
        if line == "/reset":
            terminal.until("what was said is forgotten")
        else:
            terminal.until("hello\r\n")
            answers.append(terminal.until("the answer was cut at 250 tokens"))
    assert answers[0] == answers[2] != answers[1]

    terminal.until("> ")
    terminal.type("hello\n")
    terminal.until("hello\r\n")
    terminal.until(answers[1][:1])
    terminal.press_ctrl_c()
    terminal.until("the answer was stopped")
    terminal.until("> ")
    terminal.press_ctrl_c()
    terminal.until("Ctrl-D leaves")
    terminal.until("> ")
    terminal.type("/nothing\n")
    terminal.until("there is no command /nothing; /help lists them")
    terminal.until("> ")
    terminal.type("/help\n")
    terminal.until("/reset   forget what was said")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_each_line_is_a_prompt_of_its_own_without_chats(
    runs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["hi", "//hi", "/reset", "hi", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    options = GenerateOptions(no_repeat_ngram_size=1)
    Chat(Writer(open_run(str(runs("pairs"))), options), Console(stderr=True), {"adapter": True}).hold()
    shown = capsys.readouterr()
    first, other, again = shown.out.split("\n\n") if "\n\n" in shown.out else shown.out.rstrip("\n").split("\n")
    assert first == again != other
    assert "each line is a prompt of its own" in shown.err


def test_halves_of_characters_and_marks_are_no_part_of_a_prompt(runs: Any) -> None:
    opened = capaft.open(runs("text"))
    assert opened.generate("a \udcff") == opened.generate("a \ufffd")
    result = CliRunner().invoke(app, ["generate", str(runs("text")), "--json", "-"], input=b"\xef\xbb\xbfa text\n")
    assert json.loads(result.stdout)["prompt"] == "a text"


def test_what_shows_the_pieces_raises_its_own_errors(runs: Any) -> None:
    def fail(piece: str) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        capaft.open(runs("chat")).generate("Who are you?", show=fail)
    assert type(caught.value) is ValueError


def test_prompts_and_options_in_python_that_mean_nothing_are_refused(runs: Any) -> None:
    opened = capaft.open(runs("chat"))
    for prompt in (5, None, [], ["a"], b"a", [{"role": "user"}]):
        with pytest.raises(UsageError, match="prompt must be a text, or a list of messages"):
            opened.generate(prompt)  # type: ignore[arg-type]
    for name in ("base", "compare", "model", "base_dtype"):
        with pytest.raises(UsageError, match=f"{name}: this is not for generate"):
            opened.generate("a", **{name: None})


def test_the_largest_numbers_are_one_line(runs: Any) -> None:
    done = invoke("generate", runs("text"), "a", "--num-beams", "2", "--length-penalty", "1e308")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("error: --length-penalty is too far from 0")
    done = invoke("generate", runs("text"), "a", "--min-new-tokens", "5000000")
    assert done.code == 0
    assert "--min-new-tokens 5000000 is more than the 9 that are generated at most" in done.err


def test_an_encoder_needs_a_token(runs: Any) -> None:
    saved = open_run(str(runs("seq2seq")))
    saved.base.processor.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    bare = dataclasses.replace(saved, task=dataclasses.replace(saved.task, source_prefix=""))
    with pytest.raises(UsageError, match="the prompt has no token to begin from"):
        Writer(bare).answer([{"role": "user", "content": ""}])
