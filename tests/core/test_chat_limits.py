"""Templates that loop, recurse, grow or are nonsense: an error, and the process goes on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.isolation import survive

from pyllm import errors
from pyllm.core.chat import ChatTemplates

HI = [{"role": "user", "content": "go"}]
RECURSION = "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}"

HOSTILE = {
    "recursion": (RECURSION + "{{ f(1) }}", "too deeply"),
    "recursion when asked": (RECURSION + "{% if messages[0].content == 'go' %}{{ f(1) }}{% endif %}", "too deeply"),
    "a long range": ("{{ range(1000000000000) }}", "range of more than"),
    "a long range backwards": ("{{ range(0, -1000000000000, -1) }}", "range of more than"),
    "doubling": (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "text",
    ),
    "repetition": ("{{ 'a' * 1000000000000 }}", "repeats a text"),
    "repetition of repetition": ("{{ 'a' * 16384 * 16384 }}", "repeats a text"),
    "a range past all numbers": ("{{ range(4611686018427387904, 9223372036854775807, 4611686018427387904) }}", "range"),
    "replacements": ("{{ ('x' * 16384) | replace('x', 'y' * 16384) }}", "builds a text"),
    "a long delimiter": ("{{ range(16384) | join('x' * 16384) }}", "builds a text"),
    "a long separator": ("{{ range(16384) | tojson(separators=['x' * 16384, ':']) }}", "builds a text"),
    "many indents": ("{{ (('a\n' * 9) | replace('a', 'a\n' * 9000)) | indent(1024) }}", "builds a text"),
    "an indent that wraps around": ("{{ messages | tojson(indent=-3294967296) }}", "indent of more than"),
    "doubled lists": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "list of more than",
    ),
    "a list twice in a list": (
        "{% set ns = namespace(x=['a']) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
        "builds a value",
    ),
    "a tuple twice in a tuple": ("{% for i in range(64) %}{% set a = (a, a) %}{% endfor %}", "builds a value"),
    "an object twice in an object": (
        "{% for i in range(64) %}{% set a = dict(a=a, b=a) %}{% endfor %}",
        "builds a value",
    ),
    "a deep list": ("{% for i in range(16384) %}{% set a = [a] %}{% endfor %}", "nests values deeper"),
    "a long chain": (
        "{% set ns = namespace(x=[]) %}{% for j in range(20) %}{% for i in range(16384) %}{% set new = [] %}"
        "{% set _ = ns.x.append(new) %}{% set ns.x = new %}{% endfor %}{% endfor %}",
        "values or 4096 functions into others",
    ),
    "long output": (
        "{% set s = ('x' * 8192) | replace('x', 'y' * 8000) %}{% for i in range(16384) %}{{ s }}{% endfor %}",
        "bytes of texts and values",
    ),
    "many long texts": (
        "{% set s = ('x' * 8192) | replace('x', 'y' * 8000) %}{{ [" + "s ~ 'x', " * 200 + "0] | length }}",
        "bytes of texts and values|builds a value",
    ),
    "an order that is none": ("{{ [2, 10, '1a', none] | sort }}", "values of one kind"),
    "a search": (
        "{% set s = ('x' * 1000) | replace('x', 'a' * 1000) %}{{ (s ~ 'b') in (s ~ s) }}",
        "searches for too much",
    ),
    "splitting": ("{{ (('x' * 1000) | replace('x', 'a ' * 900)).split(' ') }}", "searches for too much"),
    "many variables": ("".join(f"{{% set x{i} = 1 %}}" for i in range(300)), "more than 256 variables"),
    "many line ends": ("\r\n" * 1_000_000, "too many lines"),
    "indent": ("{{ 'a\nb' | indent(1000000000000) }}", "indent of more than"),
    "indented JSON": ("{{ messages | tojson(indent=2000000000) }}", "indent of more than"),
    "division by zero": ("{{ 1 is divisibleby(0) }}", "neither 0 nor -1"),
    "a list in itself": ("{% set a = [] %}{% set b = a.append(a) %}{{ a | tojson }}", "into itself"),
    "an object in itself": ("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns | tojson }}", "into itself"),
    "an object in itself, further": ("{% set n = namespace() %}{% set n.me = [[n]] %}{{ n | string }}", "into itself"),
    "brackets": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "more than 4096 parts"),
    "negations": ("{{ " + "not " * 100_000 + "1 }}", "more than 4096 parts"),
    "a sum": ("{{ " + "1+" * 100_000 + "1 }}", "more than 4096 parts"),
    "conditions in conditions": ("{% if 1 %}" * 50_000 + "{% endif %}" * 50_000, "more than 4096 blocks"),
    "elif after elif": ("{% if 0 %}" + "{% elif 0 %}" * 50_000 + "{% endif %}", "more than 4096 blocks"),
    "a huge source": ("x" * (5 << 20), "4194304 are read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name):
    source, match = HOSTILE[name]
    with pytest.raises(errors.ChatTemplateError, match=match):
        ChatTemplates(template=source).apply(HI)


def test_deep_but_allowed():
    for source in ("{{ " + "(" * 1900 + "1" + ")" * 1900 + " }}", "{% if 1 %}" * 1000 + "1" + "{% endif %}" * 1000):
        assert ChatTemplates(template=source).apply(HI).prompt == "1"


def test_recursion_that_ends():
    macro = "{% macro count(n) %}{% if n > 0 %}{{ n }}{{ count(n - 1) }}{% endif %}{% endmacro %}"
    source = macro + "{{ count(messages|length) }}"
    assert ChatTemplates(template=source).apply(HI * 20).prompt.startswith("20191817")


SMALL_STACK = """
import threading
from pyllm.core.chat import ChatTemplates

def work():
    made = ChatTemplates(template="{{ messages[0].content }}{{ x | tojson }}")
    x = []
    for _ in range(500):
        x = [x]
    prompt = made.apply([{"role": "user", "content": "[" * 50_000 + "]" * 50_000}], chat_template_kwargs={"x": x})
    assert prompt.prompt.endswith("]" * 501), prompt.prompt[-600:]
    prompt.parse("[" * 50_000, partial=True)

threading.stack_size(256 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.process
def test_small_stacks():
    """Threads with 256 KiB of stack render and read what is nested."""
    survive(SMALL_STACK)


def test_sorting():
    """What has an order is sorted, by an attribute and by values too."""
    source = (
        "{{ [3, 1.5, 2] | sort | join(' ') }} {{ ['b', 'a'] | sort(reverse=true) | join(' ') }} "
        "{{ x | sort(attribute='n') | join(' ', attribute='n') }} "
        "{% for k in {'b': 1, 'a': 2} | dictsort %}{{ k }}{% endfor %} "
        "{% for k in {'b': 1, 'a': 2} | dictsort(by='value') %}{{ k }}{% endfor %} {{ [] | sort | length }}"
    )
    prompt = ChatTemplates(template=source).apply([], chat_template_kwargs={"x": [{"n": 2}, {"n": 1}]})
    assert prompt.prompt == "1.5 2 3 b a 1 2 ab ba 0"


def test_a_long_text_in_lines():
    """What a template cuts in pieces takes as long as it is, and its pieces are marked where they stand."""
    source = "{% for line in ('own\\n' ~ messages[0].content).split('\\n') %}{{ line }};{% endfor %}"
    text = "\n".join(f"line {i}" for i in range(15_000))
    prompt = ChatTemplates(template=source).apply([{"role": "user", "content": text}])
    assert prompt.prompt == "own;" + text.replace("\n", ";") + ";"
    assert prompt.parts[:3] == (("own;", False), ("line 0", True), (";", False))


def test_nested_arguments_of_calls():
    deep = "[" * 5000 + "]" * 5000
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": ' + deep + "}"}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    made = ChatTemplates(
        template="{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    )
    assert made.apply([message]).prompt.count("[") == 5000


@pytest.mark.slow
def test_loops_end():
    source = "{% for i in range(16000) %}{% for j in range(16000) %}x{% endfor %}{% endfor %}"
    with pytest.raises(errors.ChatTemplateError, match="rounds of loops"):
        ChatTemplates(template=source)


BRACKETS_IN_TEXTS = r"""
from pyllm import errors
from pyllm.core.chat import ChatTemplates

made = ChatTemplates(template="{{ (messages[0].tool_calls or []) | tojson }}")
n = 60_000
arguments = '{"a": ' + '["]", ' * n + "1" + "]" * n + "}"
call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
# A quotation mark before them, so that what is inside of texts and what is not cannot be told by counting.
message = {"role": "assistant", "content": '"', "tool_calls": [call]}
made.apply([message])
made.apply([message], tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
prompt = made.apply([{"role": "user", "content": "x"}], tools=[call])
for text in ('"' + arguments, arguments, '<tool_call>{"name": "f", "arguments": ' + arguments):
    prompt.parse(text, partial=True)
    try:
        prompt.parse(text)
    except errors.ChatParseError:
        pass
"""


@pytest.mark.process
def test_brackets_in_texts():
    """A closing bracket in a text closes nothing: what is nested deeply is known to be."""
    survive(BRACKETS_IN_TEXTS)


# ---- anything at all

PIECES = st.lists(
    st.sampled_from(
        [
            *("{{", "}}", "{%", "%}", "{#", "#}", "{%-", "-%}", " ", "\n", "'", '"', "(", ")", "[", "]", "{", "}"),
            *("if", "else", "elif", "endif", "for", "in", "endfor", "set", "endset", "macro", "endmacro", "call"),
            *("endcall", "filter", "endfilter", "not", "and", "or", "is", "defined", "loop", "messages", "m", ".role"),
            *(
                ".content",
                "[0]",
                "[::-1]",
                "|",
                "tojson",
                "trim",
                "length",
                "join",
                "items",
                "1",
                "-",
                "+",
                "~",
                "=",
                ",",
            ),
            *("namespace", "range", "raise_exception", "x", "break", "continue", "generation", "\\", "é", "\0"[:0]),
        ]
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(source=st.one_of(PIECES.map("".join), PIECES.map(" ".join), st.text(max_size=60)))
def test_any_source_is_a_template_or_refused(source):
    try:
        assert isinstance(ChatTemplates(template=source).apply(HI).prompt, str)
    except (errors.ChatTemplateError, errors.InvalidArgumentError):
        pass


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(source=st.one_of(st.binary(max_size=200), PIECES.map(lambda pieces: ("{{" + " ".join(pieces) + "}}").encode())))
def test_any_bytes_are_a_template_or_refused(source):
    try:
        prompt = ChatTemplates(template=source).apply(HI).prompt
    except (errors.ChatTemplateError, errors.InvalidArgumentError) as error:
        assert str(error)
    else:
        assert isinstance(prompt, str)


ANYTHING = ChatTemplates(
    template="{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls | tojson }}{% endfor %}"
    "{{ tools | tojson }}"
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["role", "content", "tool_calls", "name", "reasoning_content", "tool_call_id", "type", "function"]
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", ""])


@settings(max_examples=60, deadline=None)
@given(
    messages=st.lists(
        st.builds(lambda role, rest: {**rest, "role": role}, ROLES, st.dictionaries(KEYS, VALUES, max_size=4)),
        max_size=3,
    ),
    tools=st.lists(st.dictionaries(KEYS, VALUES, max_size=3), max_size=2),
)
def test_any_json_is_messages_or_refused(messages, tools):
    try:
        prompt = ANYTHING.apply(messages, tools=tools).prompt
    except (errors.InvalidArgumentError, errors.ChatTemplateError) as error:
        assert str(error)
    else:
        assert isinstance(prompt, str)
