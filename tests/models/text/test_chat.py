"""Chat templates render as Hugging Face renders them, and a hostile one ends soon with an error."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time

import pytest

from triptych.models.text.budget import RenderLimits
from triptych.models.text.chat import ChatTemplate, ChatTemplateError, ChatTemplateRefusal
from triptych.models.text.messages import InvalidMessageError
from triptych.models.text.toy import TOY_CHAT_TEMPLATE

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list | None = None, **options) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(messages or USER, **options)


def test_chatml_with_and_without_the_generation_prompt():
    messages = [{"role": "system", "content": "be brief"}, *USER]
    turns = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert render(TOY_CHAT_TEMPLATE, messages) == turns + "<|im_start|>assistant\n"
    assert render(TOY_CHAT_TEMPLATE, messages, add_generation_prompt=False) == turns


def test_blocks_leave_no_blank_lines_and_special_tokens_are_named():
    source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.content }}{{ eos_token }}\n  {% endfor %}\nend"
    assert render(source) == "<s>\nhi</s>\nend"


def test_the_names_that_published_templates_use():
    assert render("{{ messages | tojson }}", [{"role": "user", "content": "<é'>"}]) == (
        '[{"role": "user", "content": "<é\'>"}]'
    )
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}") == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'
    assert render("{% if tools is defined and tools is not none %}t{% else %}no tools{% endif %}") == "no tools"
    assert render("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}") == "hi"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert (
        render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "1"
    )
    assert render("{% macro w(x) %}[{{ x }}]{% endmacro %}{{ w('a') ~ w(messages|length) }}") == "[a][1]"
    assert render("{{ messages[0].content.split('i')[0].strip() | upper }}{{ messages[::-1][0].role }}") == "Huser"
    assert (
        render("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}") == "hi"
    )
    assert render("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}") == "role=user;content=hi;"
    assert render("{{ '%s|%d' % ('a', 3) }}{{ '{} {}'.format(1, 2) }}{{ 'abc'.replace('b', '-') }}") == "a|31 2a-c"
    assert render("{{ x }}", variables={"x": False}) == "False"


def test_the_clock_is_the_one_given():
    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}", now=lambda: datetime.datetime(2024, 7, 26))
    assert template.render(USER) == "26 July 2024"


def test_a_template_may_refuse_messages():
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    with pytest.raises(ChatTemplateRefusal, match="system first"):
        render(source)


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "a\nb"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ("hi", "list of messages"),
        (["hi"], "message 0 must be an object"),
        ([{"role": "robot", "content": "x"}], "role 'robot'; expected one of system"),
        ([{"role": "user", "content": ""}], "empty content"),
        ([{"role": "user"}], "must have content"),
        ([{"role": "user", "content": []}], "must have content"),
        ([*USER, {"role": "user", "content": [{"type": "image_url"}]}], "message 1 has a part of type 'image_url'"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "unsupported fields tool_calls"),
    ],
)
def test_malformed_messages_are_refused_before_rendering(messages, message: str):
    with pytest.raises(InvalidMessageError, match=message):
        ChatTemplate("x").render(messages)


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ raise_exception.__globals__['x'] }}",
    "{{ strftime_now.__self__.x }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
NEVER_ENDING = [
    "{% for a in range(100000) %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(99) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
]
HUGE = [
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 999999999) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ ('\n' * 100000) | indent(10**9) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set a %}{% for i in range(9999) %}{% for j in range(9999) %}0123456789{% endfor %}{% endfor %}{% endset %}",
    "{% set a = 'a' * 3000000 %}{% set b %}{% for i in range(9999) %}{{ a }}{% endfor %}{% endset %}",
    "{% filter upper %}{% for i in range(9999) %}{{ 'a' * 3000000 }}{% endfor %}{% endfilter %}",
    "{{ lipsum(n=10**6) }}",
    "{{ '" + "a" * 300_000 + "' }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "1+" * 20000 + "1 }}",
]


@pytest.mark.parametrize("source", ESCAPES + NEVER_ENDING + HUGE, ids=lambda source: source[:60])
def test_a_hostile_template_ends_soon_with_an_error(source: str):
    started = time.process_time()  # a busy machine takes time, but none of this process's
    limits = RenderLimits(max_seconds=0.5)
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, limits=limits).render(USER)
    # One operation on values of the largest size may follow the last look at the clock.
    assert time.process_time() - started < 5.0


@pytest.mark.limit(400)
def test_hostile_templates_stay_small():
    """All of them together, in a process that may not use more than 1.5 GB of address space."""
    program = (
        "import resource, tests.models.text.test_chat as t\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1500 << 20,) * 2)\n"
        "for source in t.ESCAPES + t.NEVER_ENDING + t.HUGE:\n"
        "    try: t.ChatTemplate(source, limits=t.RenderLimits(max_seconds=0.5)).render(t.USER)\n"
        "    except t.ChatTemplateError as error: assert 'MemoryError' not in str(error), source[:80]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=360)


def test_a_long_conversation_is_well_inside_the_limits():
    messages = [{"role": role, "content": "word " * 200} for _ in range(500) for role in ("user", "assistant")]
    assert len(render(TOY_CHAT_TEMPLATE, messages)) > 1_000_000


def test_a_template_that_does_not_parse_is_an_error_at_once():
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate("{% if %}")


def test_renderings_do_not_share_a_budget():
    template = ChatTemplate("{% for i in range(100) %}x{% endfor %}", limits=RenderLimits(max_work=1000))
    assert {template.render(USER) for _ in range(30)} == {"x" * 100}
