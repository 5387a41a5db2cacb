"""Chat templates with what is peculiar to each well-known family, written for these tests."""

from dataclasses import dataclass, replace
from typing import Any

from tests.unit.datasets.template_shapes import CHATML, GEMMA, PHI3, ZEPHYR, Shape

CALL_ID = "abcdef123"  # Mistral's templates insist on nine characters
ARGUMENTS = {"parcel": "é 7"}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "track",
            "description": "Say where a parcel is.",
            "parameters": {"type": "object", "properties": {"parcel": {"type": "string"}}},
        },
    }
]


@dataclass(frozen=True)
class Family:
    """A shape, and how a conversation with it looks. `before` is what the model writes ahead of an answer's text."""

    shape: Shape
    before: str = ""
    trims: bool = False  # blanks around an answer are dropped
    system: bool = True  # system messages are taken
    alternates: bool = False  # user and assistant must take turns
    call: str | None = None  # how a call of `track` is written; None: the template knows no tools

    @property
    def name(self) -> str:
        return self.shape.name

    def answer(self, content: str) -> str:
        """What is trained of an answer."""
        return self.before + (content.strip() if self.trims else content) + self.shape.end_of_turn


# A system turn always opens, the first question is moved behind the tools, and one call is all a turn may make.
_LLAMA3 = """{%- macro open(role) %}<|start_header_id|>{{ role }}<|end_header_id|>{{ '\\n\\n' }}{% endmacro %}
{{- bos_token }}{{- open('system') }}
{%- set has_system = messages[0].role == 'system' %}
{{- 'Today Date: 26 Jul 2024\\n\\n' + (messages[0].content | trim if has_system else '') + '<|eot_id|>' }}
{%- set turns = messages[1:] if has_system else messages %}
{%- for m in turns %}
    {%- if loop.first and tools %}
        {{- open('user') + 'Tools, one call at a time:\\n' + (tools | tojson(indent=4)) + '\\n\\n' + m.content | trim + '<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- open('ipython') + m.content | tojson + '<|eot_id|>' }}
    {%- elif m.tool_calls %}
        {%- if m.tool_calls | length > 1 %}{{ raise_exception('one call a turn') }}{%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- open('assistant') + '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- open(m.role) + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- open('assistant') }}{%- endif %}
"""

LLAMA3 = Family(
    Shape(
        "llama-3",
        _LLAMA3,
        end_of_turn="<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        other_special=("<|start_header_id|>", "<|end_header_id|>"),
        stop_ids_in_generation_config=True,
    ),
    trims=True,
    call='{"name": "track", "parameters": {"parcel": "é 7"}}',
)

# Tools stand before the last question, so that a shorter conversation is no prefix of a longer one.
_MISTRAL = """{%- set has_system = messages[0].role == 'system' %}
{%- set turns = messages[1:] if has_system else messages %}
{%- set spoken = namespace(count=0, last=0) %}
{%- for m in turns %}
    {%- if m.role == 'user' %}{%- set spoken.last = loop.index0 %}{%- endif %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {%- if m.role != ['user', 'assistant'][spoken.count % 2] %}{{ raise_exception('roles must alternate') }}{%- endif %}
        {%- set spoken.count = spoken.count + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {%- if tools and loop.index0 == spoken.last %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
        {{- '[INST] ' + (messages[0].content + '\\n\\n' if has_system and loop.last else '') + m.content + '[/INST]' }}
    {%- elif m.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + {'content': m.content, 'call_id': m.tool_call_id} | tojson + '[/TOOL_RESULTS]' }}
    {%- elif m.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {%- endfor %}
    {%- else %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""

MISTRAL = Family(
    Shape(
        "mistral",
        _MISTRAL,
        end_of_turn="</s>",
        bos="<s>",
        other_special=(
            "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        sentencepiece=True,
    ),
    before=" ",
    trims=True,
    alternates=True,
    call='[TOOL_CALLS]  [{"name": "track", "arguments": {"parcel": "é 7"}, "id": "abcdef123"}]',  # a blank of the tokenizer's own
)  # fmt: skip

# What the two Qwens share: tools in the system turn, calls and results in tags, results in a user's turn.
_QWEN_PARTS = """{%- macro listed(tools) %}{{ '\\n\\n# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '\\n</tools>' }}{% endmacro %}
{%- macro called(calls, is_first) %}{% for call in calls %}{{ '' if is_first and loop.first else '\\n' }}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endmacro %}
{%- macro result(m, before, after) %}{{ '<|im_start|>user' if before != 'tool' }}
<tool_response>
{{ m.content }}
</tool_response>{{ '<|im_end|>\\n' if after != 'tool' }}{% endmacro %}
{%- set has_system = messages[0].role == 'system' %}
"""

# A system message of its own where there is none.
_QWEN25 = (
    _QWEN_PARTS
    + """{{- '<|im_start|>system\\n' + (messages[0].content if has_system else 'You are Qwen.') + (listed(tools) if tools else '') + '<|im_end|>\\n' }}
{%- for m in (messages[1:] if has_system else messages) %}
    {%- if m.role == 'tool' %}{{- result(m, loop.previtem.role, loop.nextitem.role if loop.nextitem is defined) }}
    {%- elif m.tool_calls %}
        {{- '<|im_start|>assistant' + ('\\n' + m.content if m.content else '') + called(m.tool_calls, false) + '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)

QWEN25 = Family(
    Shape(
        "qwen2.5",
        _QWEN25,
        end_of_turn="<|im_end|>",
        eos="<|im_end|>",
        other_special=("<|endoftext|>", "<|im_start|>", "<tool_call>", "</tool_call>"),
    ),
    call='<tool_call>\n{"name": "track", "arguments": {"parcel": "é 7"}}\n</tool_call>',
)

# Thinking is kept behind the last question only: earlier turns lose theirs, and an empty thought opens an answer that
# has none.
_QWEN3 = (
    _QWEN_PARTS
    + """{%- if has_system or tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content if has_system else '') + (listed(tools) if tools else '') + '<|im_end|>\\n' }}
{%- endif %}
{%- set asked = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set asked.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}{{- result(m, loop.previtem.role, loop.nextitem.role if loop.nextitem is defined) }}
    {%- elif m.role == 'assistant' %}
        {%- set said = m.content or '' %}{%- set thought = m.reasoning_content or '' %}
        {%- if not thought and '</think>' in said %}
            {%- set thought = said.partition('</think>')[0].rpartition('<think>')[2] %}
            {%- set said = said.rpartition('</think>')[2].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > asked.last and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- said + (called(m.tool_calls, not said) if m.tool_calls else '') + '<|im_end|>\\n' }}
    {%- elif not (m.role == 'system' and loop.first) %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
)

QWEN3 = Family(
    replace(QWEN25.shape, name="qwen3", source=_QWEN3),
    call='<tool_call>\n{"name": "track", "arguments": {"parcel": "é 7"}}\n</tool_call>',
)

_GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for m in messages %}
    {%- if m.role != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('roles must alternate') }}{% endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

GEMMA2 = Family(replace(GEMMA, name="gemma", source=_GEMMA), trims=True, system=False, alternates=True)

PHI_3 = Family(replace(PHI3, name="phi-3"))

PHI4 = Family(
    Shape(
        "phi-4",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        end_of_turn="<|im_end|>",
        eos="<|im_end|>",
        other_special=("<|endoftext|>", "<|im_start|>", "<|im_sep|>"),
    )
)

SMOLLM2 = Family(
    replace(
        CHATML,
        name="smollm2",
        source="{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}{% endif %}"
        + CHATML.source,
    )
)

ZEPHYR_BETA = Family(ZEPHYR)

PLAIN_CHATML = Family(CHATML)

COMMAND_R = Family(
    Shape(
        "command-r",
        """{{ bos_token }}{%- set has_system = messages[0].role == 'system' %}
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}
{%- for m in messages %}
    {%- set number = loop.index0 - (1 if has_system else 0) %}
    {%- if number >= 0 and m.role != ['user', 'assistant'][number % 2] %}{{ raise_exception('roles must alternate') }}{%- endif %}
    {{- '<|START_OF_TURN_TOKEN|><|' + names[m.role] + '_TOKEN|>' + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}""",
        end_of_turn="<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        other_special=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
    ),
    trims=True,
    alternates=True,
)

# The generation prompt opens a thought that no rendered answer has, so it is a prefix of no conversation.
_DEEPSEEK = """{{- bos_token }}
{%- for m in messages if m.role == 'system' %}{{- m.content }}{%- endfor %}
{%- for m in messages if m.role != 'system' %}
    {%- set is_behind_tool = loop.previtem is defined and loop.previtem.role == 'tool' %}
    {%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}
    {%- elif m.role == 'tool' %}
        {{- ('' if is_behind_tool else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
        {{- '<｜tool▁outputs▁end｜>' if loop.last or loop.nextitem.role != 'tool' }}
    {%- else %}
        {{- '' if is_behind_tool else '<｜Assistant｜>' }}{{- (m.content or '').rpartition('</think>')[2] }}
        {%- if m.tool_calls %}
            {{- '<｜tool▁calls▁begin｜>' }}
            {%- for call in m.tool_calls %}
                {{- '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' }}
                {{- (call.function.arguments | tojson) + '\\n```<｜tool▁call▁end｜>' }}
            {%- endfor %}
            {{- '<｜tool▁calls▁end｜>' }}
        {%- endif %}
        {{- '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}"""

DEEPSEEK_R1 = Family(
    Shape(
        "deepseek",
        _DEEPSEEK,
        end_of_turn="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        other_special=(
            "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
            "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
        ),
    ),
    call='<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>track\n```json\n{"parcel": "é 7"}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
)  # fmt: skip

GRANITE = Family(
    Shape(
        "granite",
        """{%- macro turn(role, text) %}<|start_of_role|>{{ role }}<|end_of_role|>{{ text }}<|end_of_text|>{{ '\\n' }}{% endmacro %}
{%- set has_system = messages[0].role == 'system' %}
{{- turn('system', messages[0].content if has_system else 'You are Granite.') }}
{%- if tools %}{{- turn('tools', tools | tojson(indent=4)) }}{%- endif %}
{%- for m in (messages[1:] if has_system else messages) %}
    {%- if m.tool_calls %}
        {%- set calls = namespace(text='') %}
        {%- for call in m.tool_calls %}{%- set calls.text = calls.text + (call.function | tojson) %}{%- endfor %}
        {{- turn('assistant', '<|tool_call|>[' + calls.text + ']') }}
    {%- else %}{{- turn('tool_response' if m.role == 'tool' else m.role, m.content) }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}""",
        end_of_turn="<|end_of_text|>",
        eos="<|end_of_text|>",
        other_special=("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
    ),
    call='<|tool_call|>[{"name": "track", "arguments": {"parcel": "é 7"}}]',
)

FAMILIES = (
    LLAMA3, MISTRAL, QWEN25, QWEN3, GEMMA2, PHI_3, PHI4, SMOLLM2, ZEPHYR_BETA, PLAIN_CHATML, COMMAND_R, DEEPSEEK_R1,
    GRANITE,
)  # fmt: skip
