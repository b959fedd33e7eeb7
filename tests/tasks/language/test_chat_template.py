"""What templates like the published ones make of tools, calls and reasoning, as written out by hand, or refuse."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import CHATML, DEEPSEEK, DEFAULT_SYSTEM, GEMMA, LLAMA, MISTRAL, QWEN
from datasets import Dataset
from tiny_text import START, table, tokenizer

from capaft.support.errors import UsageError
from capaft.tasks.causal_lm import CausalLM
from capaft.tasks.language.chat import chat_rows_examples
from capaft.tasks.language.token_loss import IGNORED, mark_tokens

TOOL = {"type": "function", "function": {"name": "add"}}
ASKED, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def call(**arguments: Any) -> dict[str, Any]:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


RESULT = {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
TOOL_CHAT = [ASKED, call(a=1), RESULT, SAID]


def read(template: str, rows: Dataset) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """The texts of the examples with ⟦brackets⟧ around what counts, the lines about them, and the references."""
    model = tokenizer(template)
    model.bos_token = START
    examples, notes = chat_rows_examples(model, rows, CausalLM.recognise(rows, {}))
    texts = [mark_tokens(model, e.ids, (label != IGNORED for label in e.labels)) for e in examples]
    return texts, notes, [example.references for example in examples]


@pytest.mark.parametrize(
    ("template", "text", "reference"),
    [
        (
            QWEN,
            '<turn>system\n<tools>\n{"type": "function", "function": {"name": "add"}}\n</tools><stop>\n'
            "<turn>user\nhi<stop>\n"
            '<turn>assistant\n⟦<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><stop>⟧\n'
            "<turn>user\n<tool_response>2</tool_response><stop>\n<turn>assistant\n⟦yo<stop>⟧",
            '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        ),
        (
            LLAMA,
            '<start><turn>system\n<stop><turn>user\n{"type": "function", "function": {"name": "add"}}\nhi<stop>'
            '<turn>assistant\n⟦{"name": "add", "parameters": {"a": 1}}<stop>⟧'
            '<turn>ipython\n"2"<stop><turn>assistant\n⟦yo<stop>⟧',
            '{"name": "add", "parameters": {"a": 1}}',
        ),
    ],
)
def test_calls_are_learnt_and_results_are_not(template: str, text: str, reference: str) -> None:
    texts, notes, references = read(template, table(messages=[TOOL_CHAT], tools=[[TOOL]]))
    assert (texts, notes, references) == ([text], ["each chat with its 'tools'"], [("yo",)])
    # A last answer that is a call is compared as its text.
    texts, _, references = read(template, table(messages=[TOOL_CHAT[:2]], tools=[[TOOL]]))
    assert texts == [text[: text.index("⟧") + 1]]
    assert references == [(reference,)]


def test_arguments_are_text_where_a_template_takes_only_that() -> None:
    texts, _, _ = read(DEEPSEEK, table(messages=[TOOL_CHAT]))
    assert texts == [
        '<turn>user\nhi<stop><turn>assistant\n⟦add\n{"a": 1}<stop>⟧<turn>tool\n2<stop><turn>assistant\n⟦yo<stop>⟧'
    ]


def test_sharegpt_with_functions() -> None:
    chat = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
        {"from": "gpt", "value": "yo"},
    ]
    texts, _, _ = read(QWEN, table(conversations=[chat], tools=['[{"name": "add"}]']))
    assert texts == read(QWEN, table(messages=[TOOL_CHAT], tools=[[TOOL]]))[0]


@pytest.mark.parametrize(
    ("template", "columns", "refused"),
    [
        (CHATML, {"messages": [TOOL_CHAT]}, "does not render 'tool_calls'; drop it from the data, or choose a model"),
        (DEFAULT_SYSTEM, {"messages": [TOOL_CHAT]}, "does not render 'tool_calls'"),
        (CHATML, {"messages": [[ASKED, SAID]], "tools": [[TOOL]]}, "does not render 'tools'"),
        (CHATML, {"messages": [[ASKED, SAID]], "documents": [[{"text": "a"}]]}, "does not render 'documents'"),
        (
            CHATML,
            {"messages": [[ASKED, SAID]], "chat_template_kwargs": [{"custom_instructions": "be brief"}]},
            "does not render 'custom_instructions'",
        ),
        (
            CHATML,
            {"messages": [[ASKED, {**SAID, "reasoning_content": "hm"}]]},
            "does not render the field 'reasoning_content' of a message",
        ),
        (CHATML, {"messages": [[ASKED, {**SAID, "thinking": "hm"}]]}, "does not render the field 'thinking'"),
        (LLAMA, {"messages": [[ASKED, {**call(), "tool_calls": call()["tool_calls"] * 2}]]}, "rejects this chat: Only"),
        (GEMMA, {"messages": [[ASKED, SAID]], "system": ["be brief"]}, "rejects this chat: System role not supported"),
        (MISTRAL, {"messages": [[ASKED, ASKED, SAID]]}, "rejects this chat: roles must alternate"),
        (QWEN, {"messages": [[ASKED, {"role": "ipython", "content": "2"}, SAID]]}, "messages of the role 'ipython'"),
    ],
)
def test_what_a_template_does_not_render(template: str, columns: dict[str, Any], refused: str) -> None:
    with pytest.raises(UsageError, match=rf"^row 1: the model's chat template .*{refused}"):
        read(template, table(**columns))


def test_reasoning_is_learnt_where_it_is_rendered() -> None:
    thought = {**SAID, "reasoning_content": "hm"}
    texts, notes, references = read(QWEN, table(messages=[[ASKED, thought]]))
    assert (texts, notes) == (["<turn>user\nhi<stop>\n<turn>assistant\n⟦<think>hm</think>\nyo<stop>⟧"], [])
    assert references == [("<think>hm</think>\nyo",)]


def test_variables_of_the_template() -> None:
    rows = table(messages=[[ASKED, SAID]], chat_template_kwargs=[{"enable_thinking": False, "tidy": True}])
    with pytest.raises(UsageError, match="does not put an answer after the prompt"):
        read(QWEN, rows)
    texts, notes, _ = read(CHATML, rows)
    assert texts == ["<turn>user\nhi<stop>\n<turn>assistant\n⟦yo<stop>⟧"]
    assert notes[1:] == ["the model's chat template does not read the variable 'enable_thinking', the variable 'tidy'"]


def test_what_is_no_content_is_named() -> None:
    named = {**ASKED, "name": "Ada", "id": "7"}
    texts, notes, _ = read(CHATML, table(messages=[[named, {**SAID, "weight": 1, "score": 3}]]))
    assert texts == ["<turn>user\nhi<stop>\n<turn>assistant\n⟦yo<stop>⟧"]
    assert notes == [
        "the model's chat template does not read 'name' of the role 'user', 'score' of the role 'assistant'"
    ]
    texts, notes, _ = read(LLAMA, table(messages=[[ASKED, {**call(a=1), "content": "let me see"}]]))
    assert notes == ["the model's chat template does not read the text of an answer that has tool_calls"]


def test_the_developer_is_the_system_where_a_template_does_not_know_it() -> None:
    rows = table(messages=[[{"role": "developer", "content": "be brief"}, ASKED, SAID]])
    assert read(QWEN, rows)[0] == ["<turn>system\nbe brief<stop>\n<turn>user\nhi<stop>\n<turn>assistant\n⟦yo<stop>⟧"]
    assert read("{# 'developer' #}" + CHATML, rows)[0][0].startswith("<turn>developer\nbe brief<stop>")


def test_context_is_not_learnt() -> None:
    chat = [ASKED, {**SAID, "weight": 0}, ASKED, SAID]
    assert read(CHATML, table(messages=[chat]))[0] == [
        "<turn>user\nhi<stop>\n<turn>assistant\nyo<stop>\n<turn>user\nhi<stop>\n<turn>assistant\n⟦yo<stop>⟧"
    ]


def test_markers_that_leave_out_a_call_are_not_followed() -> None:
    marked = (
        "{% for m in messages %}<turn>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}"
        "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}<stop>{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    ).replace(
        "{% generation %}{{ m.content }}{% endgeneration %}",
        (
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}"
        ),
    )
    assert read(marked, table(messages=[TOOL_CHAT]))[0] == [
        '<turn>user\nhi<stop><turn>assistant\n⟦{"name": "add", "arguments": {"a": 1}}<stop>⟧'
        "<turn>tool\n2<stop><turn>assistant\n⟦yo<stop>⟧"
    ]


def test_chats_that_wait_for_an_answer_have_their_tools() -> None:
    model, rows = tokenizer(QWEN), table(messages=[TOOL_CHAT[:3]], tools=[[TOOL]])
    (example,), _ = chat_rows_examples(model, rows, CausalLM.recognise(rows, {}), waiting=True)
    whole = tokenizer(QWEN).decode(example.prompt)
    assert whole.startswith("<turn>system\n<tools>")
    assert whole.endswith("<tool_response>2</tool_response><stop>\n<turn>assistant\n")


def test_a_template_for_tools_of_its_own() -> None:
    model = tokenizer()
    model.chat_template = {"default": CHATML, "tool_use": QWEN}
    rows = table(messages=[TOOL_CHAT], tools=[[TOOL]])
    (example,), _ = chat_rows_examples(model, rows, CausalLM.recognise(rows, {}))
    assert model.decode(example.ids).startswith("<turn>system\n<tools>")
    model.chat_template = {"tool_use": QWEN}
    with pytest.raises(UsageError, match=r"the model's chat templates cannot be used: .* choose another model"):
        chat_rows_examples(model, rows, CausalLM.recognise(rows, {}))
