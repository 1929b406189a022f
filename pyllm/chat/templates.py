"""The chat templates of a Llama: that of its model, and those that are given."""

from __future__ import annotations

import os
from pathlib import Path

from pyllm.chat.named_templates import named_template, template_names
from pyllm.core.chat import ChatTemplates
from pyllm.core.model import Model
from pyllm.errors import InvalidArgumentError, PyllmError

Template = str | os.PathLike[str]

_MOST_KNOWN = 32


class TemplateStore:
    """Templates by their text; the last ones that were used are kept.

    Args:
        model: Whose template is used where none is given.
        default: A template to use instead of the model's; see :meth:`get`.
    """

    def __init__(self, model: Model, default: Template | None = None) -> None:
        self.model = model
        self.default = None if default is None else _text(default)
        self._known: dict[str | None, ChatTemplates] = {}
        self._tells_all: dict[tuple[ChatTemplates, tuple[str, ...]], bool] = {}

    def get(self, template: Template | None = None) -> ChatTemplates:
        """The template to use.

        Args:
            template: Jinja source, the path of a file with it, or a name that llama.cpp knows, such as "llama3"; None
                for the default.

        Raises:
            InvalidArgumentError: It is none of these.
            ChatTemplateError: It cannot be read.
        """
        text = self.default if template is None else _text(template)
        found = self._known.get(text)
        if found is None:
            found = ChatTemplates(self.model, template=text)
            # Templates may come with each call, and from anybody.
            for old in list(self._known)[: 1 - _MOST_KNOWN]:
                self._known.pop(old, None)
            self._known[text] = found
        return found

    def tells_all(self, templates: ChatTemplates, roles: tuple[str, ...]) -> bool:
        """Whether a template writes the contents of messages with these roles: some refuse or drop a few of them."""
        key = (templates, roles)
        found = self._tells_all.get(key)
        if found is None:
            contents = [f"({i})" for i in range(len(roles))]
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
            try:
                prompt = templates.apply(messages).prompt
            except PyllmError:
                prompt = ""
            found = all(text in prompt for text in contents)
            for old in list(self._tells_all)[: 1 - _MOST_KNOWN]:
                self._tells_all.pop(old, None)
            self._tells_all[key] = found
        return found


def _text(template: Template) -> str:
    if isinstance(template, os.PathLike):
        try:
            return Path(template).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"the chat template {os.fspath(template)} is no UTF-8 text: {error}") from None
    if not isinstance(template, str):
        raise InvalidArgumentError(f"a chat template must be text or a path, not {template!r}")
    if template == "chatml" or "{{" in template or "{%" in template:
        return template
    # llama.cpp would take any other word for a template without variables: a prompt that never changes.
    source = named_template(template)
    if source is None:
        raise InvalidArgumentError(
            "a chat template must be Jinja source, pathlib.Path of a file with it, or a name out of "
            f"{', '.join(template_names())}, not {template[:80]!r}"
        )
    return source


def check_template(template: Template) -> None:
    """Refuse what is no template, before there is a model.

    Raises:
        InvalidArgumentError: It is neither Jinja nor a path nor a name.
        ChatTemplateError: It cannot be read.
    """
    ChatTemplates(template=_text(template))
