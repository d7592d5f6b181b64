from __future__ import annotations

import pytest

from swirl_lightning.files.markdown import escaped, table, table_cell


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("![x](http://example.invalid/p.png)", r"!\[x](http://example.invalid/p.png)"),
        ("a|b\n`c`", r"a\|b \`c\`"),
        ("<script>", r"\<script>"),
        ("a\\|b", r"a\\\|b"),
        (0.5, "0.5"),
    ],
)
def test_a_foreign_text_has_no_effect(text, written):
    assert escaped(text) == written


def test_a_cell_is_one_line_and_cut():
    assert table([table_cell("a|b")], [[table_cell("c\n\nd")]]) == "| a&#124;b |\n| --- |\n| c d |"
    assert len(table_cell("x" * 1000)) == 300
