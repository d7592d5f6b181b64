"""Chat templates of foreign bases, which are programs."""

from __future__ import annotations

import pytest

from support.tiny_families import FAMILIES, backbone_of
from swirl_lightning.backbones import chat_template
from swirl_lightning.backbones.chat_template import around_prompt

TURN = "{{ messages[0]['content'] }}"


@pytest.fixture
def backbone(tmp_path):
    return backbone_of("chat", FAMILIES["chat"].write(tmp_path))


def given(backbone, template):
    backbone.tokenizer.chat_template = template
    return around_prompt(backbone, backbone.tokenizer)


def test_what_stands_around_the_users_message(backbone):
    assert given(backbone, f"<user>{TURN}</user>{{% if add_generation_prompt %}}<bot>{{% endif %}}") == (
        "<user>",
        "</user><bot>",
    )


def test_a_date_is_the_same_on_every_day(backbone, recwarn):
    llama = (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    )
    assert given(backbone, f"{llama}Today: {{{{ date_string }}}}. {TURN}") == ("Today: 26 Jul 2024. ", "")
    assert not [warning for warning in recwarn if "today" in str(warning.message)]
    with pytest.warns(UserWarning, match="shows today's date, so prompts of another day differ"):
        given(backbone, "{{ strftime_now('%Y') }} " + TURN)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("hello", "does not show the user's message exactly once"),
        (TURN + TURN, "does not show the user's message exactly once"),
        ("{{ raise_exception('not with me') }}", r"fails \(TemplateError: not with me\)"),
        ("{% if %}", r"fails \(TemplateSyntaxError"),
        ("{{ 1 // 0 }}", r"fails \(ZeroDivisionError"),
        ("{{ nobody.knows.it }}", r"fails \(UndefinedError"),
        ("{% include '/etc/passwd' %}", r"fails \(TypeError"),
        ("{{ ''.__class__.__mro__ }}", r"fails \(SecurityError"),
        (TURN + "{{ 'a' * 200000 }}", "gives 200,001 characters"),
    ],
)
def test_a_template_that_cannot_be_used_is_told(backbone, template, told):
    with pytest.raises(ValueError, match=rf"cannot serve as TextLLM: its chat template {told}.*mend chat_template"):
        given(backbone, template)


def test_a_template_that_does_not_end_is_told(backbone, monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 0.05)
    endless = "{% for a in range(1500) %}{% for b in range(1500) %}{% endfor %}{% endfor %}"  # ends after the test
    with pytest.raises(ValueError, match=r"its chat template has not ended after 0\.05 s"):
        given(backbone, endless + TURN)
