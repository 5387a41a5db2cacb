"""Chat templates of the shapes in use, written for these tests, with the tokens each needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    name: str
    source: str
    end_of_turn: str
    bos: str | None = None
    eos: str = "</s>"
    other_special: tuple[str, ...] = ()
    sentencepiece: bool = False
    stop_ids_in_generation_config: bool = False

    @property
    def special(self) -> tuple[str, ...]:
        tokens = (self.bos, self.eos, *self.other_special, self.end_of_turn)
        return tuple(dict.fromkeys(token for token in tokens if token))


CHATML = Shape(
    "chatml",
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    end_of_turn="<|im_end|>",
    eos="<|im_end|>",
    other_special=("<|im_start|>",),
)

LLAMA3 = Shape(
    "llama3",
    """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    end_of_turn="<|eot_id|>",
    bos="<|begin_of_text|>",
    eos="<|end_of_text|>",
    other_special=("<|start_header_id|>", "<|end_header_id|>"),
    stop_ids_in_generation_config=True,
)

MISTRAL = Shape(
    "mistral",
    """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {%- if loop.last and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + m.content + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + m.content | trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    end_of_turn="</s>",
    bos="<s>",
    other_special=("[INST]", "[/INST]"),
    sentencepiece=True,
)

GEMMA = Shape(
    "gemma",
    """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{% for m in messages %}
{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    end_of_turn="<end_of_turn>",
    bos="<bos>",
    eos="<eos>",
    other_special=("<start_of_turn>",),
    sentencepiece=True,
)

ZEPHYR = Shape(
    "zephyr",
    """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{{ '<|assistant|>\\n' + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    end_of_turn="</s>",
)

MARKED = Shape(
    "marked",
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
    end_of_turn="<|im_end|>",
    eos="<|im_end|>",
    other_special=("<|im_start|>",),
)

# The marks leave the end of turn out, as some published templates do.
MARKED_WITHOUT_END = Shape(
    "marked_without_end",
    MARKED.source.replace(
        "{{ m['content'] }}{{ '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}<|im_end|>"
    ),
    end_of_turn="<|im_end|>",
    eos="<|im_end|>",
    other_special=("<|im_start|>",),
)

# The end of the whole conversation gets another token than the end of a turn, so a shorter rendering is no prefix.
PHI3 = Shape(
    "phi3",
    "{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
    end_of_turn="<|end|>",
    eos="<|endoftext|>",
    other_special=("<|system|>", "<|user|>", "<|assistant|>"),
)

# Reasoning models: thinking is shown for the last turn only, and an empty block stands where there was none.
THINKING = Shape(
    "thinking",
    """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}{%- set content = m.content %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    end_of_turn="<|im_end|>",
    eos="<|im_end|>",
    other_special=("<|im_start|>",),
)

# No generation prompt: the template cannot open a turn.
OLD = Shape(
    "old",
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + eos_token }}{% endfor %}",
    end_of_turn="</s>",
)

# Plain words, no token of any kind at the end of a turn.
WORDS = Shape(
    "words",
    "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    end_of_turn="</s>",
)

SHAPES = (CHATML, LLAMA3, MISTRAL, GEMMA, ZEPHYR, MARKED, MARKED_WITHOUT_END, PHI3, OLD)
