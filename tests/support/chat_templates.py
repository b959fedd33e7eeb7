"""Chat templates of published models, in short form: the same text for what the tests say, with the tests' tokens."""

CHATML = (
    "{% for message in messages %}{{ '<turn>' + message['role'] + '\n' + message['content'] + '<stop>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
# SmolLM2's and Qwen2's: a system text of its own where a chat has none.
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<turn>system\nBe kind.<stop>\n' }}{% endif %}" + CHATML
# Qwen2.5's and Qwen3's.
QWEN = """\
{%- if tools %}
{{- '<turn>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools><stop>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<turn>system\n' + messages[0].content + '<stop>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{- '<turn>' + message.role + '\n' + message.content + '<stop>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<turn>assistant' }}
{%- if message.reasoning_content is string and loop.last %}
{{- '\n<think>' + message.reasoning_content + '</think>' }}
{%- endif %}
{%- if message.content %}{{- '\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls %}
{%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
{{- '\n<tool_call>{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{- call.arguments | tojson }}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<stop>\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<turn>user' }}{%- endif %}
{{- '\n<tool_response>' + message.content + '</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<stop>\n' }}{%- endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<turn>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}
{%- endif %}"""
# Llama 3.1's: tools before the first question, one call in a message, and no text beside it.
LLAMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<turn>system\n' + system + '<stop>' }}
{%- if tools is not none and tools is defined %}
{{- '<turn>user\n' }}
{%- for tool in tools %}{{- tool | tojson }}{{- '\n' }}{%- endfor %}
{{- messages[0].content | trim + '<stop>' }}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
{%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
{{- '<turn>' + message.role + '\n' + message.content | trim + '<stop>' }}
{%- elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('Only single tool-calls at once!') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<turn>assistant\n{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}<stop>' }}
{%- else %}{{- '<turn>ipython\n' }}{{- message.content | tojson }}{{- '<stop>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>assistant\n' }}{%- endif %}"""
# Mistral's: no turn but the user's and the assistant's, which alternate; the system text is in the last question.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\n\n' %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message.role == 'user' %}{{- '[INST] ' + (system if loop.last else '') + message.content + ' [/INST]' }}
{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""
# Gemma's: a system text is an error, and the assistant is the model.
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- set speaker = 'model' if message.role == 'assistant' else message.role %}
{{- '<turn>' + speaker + '\n' + message.content | trim + '<stop>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>model\n' }}{%- endif %}"""
# DeepSeek's: arguments are text, and whatever else is in a call is passed over.
DEEPSEEK = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<turn>assistant\n' + message.content }}
{%- for call in message.tool_calls %}{{- call.function.name + '\n' + call.function.arguments }}{%- endfor %}
{{- '<stop>' }}
{%- else %}{{- '<turn>' + message.role + '\n' + message.content + '<stop>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<turn>assistant\n' }}{%- endif %}"""
