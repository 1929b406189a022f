"""The chat templates that llama.cpp knows without an interpreter (wraps ``llama_chat_*``).

It recognizes a template of its list by its text and writes the prompt in C++. Other templates are refused.
"""

from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from pyllm import errors
from pyllm.core cimport guard
from pyllm.core.arguments cimport c_text
from pyllm.includes cimport llama as lib


def builtin_templates():
    """Names of the templates that :func:`apply_template` knows, e.g. "chatml" (list of str).

    Wraps ``llama_chat_builtin_templates``.
    """
    cdef int32_t n, i
    cdef const char ** names
    guard.enter()
    n = lib.llama_chat_builtin_templates(NULL, 0)
    names = <const char **> calloc(n + 1, sizeof(char *))
    if names == NULL:
        raise MemoryError()
    try:
        lib.llama_chat_builtin_templates(names, n)
        return [(<bytes> names[i]).decode() for i in range(n)]
    finally:
        free(names)


def apply_template(template, messages, *, add_assistant=True):
    """Write messages as a prompt.

    Args:
        template: A name out of :func:`builtin_templates`, or the Jinja source of a template
            (:meth:`pyllm.core.model.Model.chat_template`), which is recognized and not run.
        messages: Dicts with "role" and "content", both str; or pairs of these.
        add_assistant: End with what starts an answer.

    Returns:
        str: The prompt.

    Raises:
        InvalidArgumentError: llama.cpp does not know the template, or a message has no role or content.

    Wraps ``llama_chat_apply_template``.

    Example:
        >>> apply_template("chatml", [{"role": "user", "content": "Hi"}])
        '<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n'
    """
    cdef size_t n = 0
    cdef bint add = add_assistant
    cdef int32_t size, capacity
    cdef char * buffer
    cdef lib.llama_chat_message * c_messages
    encoded = c_text(template, "the template")
    if not encoded:
        raise errors.InvalidArgumentError("the template is empty")
    pairs = []
    for message in messages:
        try:
            role, content = (message["role"], message["content"]) if hasattr(message, "keys") else message
        except (KeyError, TypeError, ValueError):
            raise errors.InvalidArgumentError(f"a message has a role and a content, not {message!r}") from None
        pairs.append((c_text(role, "a role"), c_text(content, "a content")))
    n = len(pairs)
    if sum([len(role) + len(content) for role, content in pairs]) > 1 << 29:
        raise errors.InvalidArgumentError("the messages are longer than 512 MiB")
    c_messages = <lib.llama_chat_message *> calloc(n + 1, sizeof(lib.llama_chat_message))
    if c_messages == NULL:
        raise MemoryError()
    try:
        for i, (role, content) in enumerate(pairs):
            c_messages[i].role = <const char *> <bytes> role
            c_messages[i].content = <const char *> <bytes> content
        guard.enter()
        size = lib.llama_chat_apply_template(encoded, c_messages, n, add, NULL, 0)
        if size < 0:
            raise errors.InvalidArgumentError(
                "llama.cpp does not recognize this template; it knows " + ", ".join(builtin_templates())
            )
        capacity = size + 1
        target = bytearray(capacity)
        buffer = target
        lib.llama_chat_apply_template(encoded, c_messages, n, add, buffer, capacity)
        return bytes(target[:size]).decode("utf-8", "replace")
    finally:
        free(c_messages)
