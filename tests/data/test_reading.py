"""Files of records, read as far as they go; whatever is left out is said."""

from __future__ import annotations

import json

import pytest

from swirl_lightning.data.reading import DEEPEST, SkippedRecords, first, records, stays_inside

BOM = b"\xef\xbb\xbf"


def read(path, content: bytes | str):
    """(objects, skipped) of a file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    skipped = SkippedRecords(path)
    return [fields for _, fields in records(path, skipped)], skipped


@pytest.mark.parametrize(("name", "content"), [("x.json", b'[{"a": 1}, {"a": 2}]'), ("x.jsonl", b'{"a": 1}\n{"a": 2}')])
def test_a_byte_order_mark_costs_nothing(tmp_path, name, content):
    found, skipped = read(tmp_path / name, BOM + content)
    assert (found, skipped.messages) == ([{"a": 1}, {"a": 2}], [])


@pytest.mark.parametrize("rest", ['{"a": 2}', '[{"a": 2}]', "]", "more"])
def test_text_after_a_list_is_said(tmp_path, rest):
    found, skipped = read(tmp_path / "x.json", f'[{{"a": 1}}]\n{rest}\n')
    assert found == [{"a": 1}]
    assert f"x.json: text after the list, which is not read ({rest!r})" in first(skipped.messages)
    with pytest.raises(ValueError, match="text after the list"):
        skipped.report(1, strict=True)
    assert not read(tmp_path / "x.json", '[{"a": 1}]\n \n')[1]


DEEP = {
    "beyond the parser": "[" * 50_000 + "]" * 50_000,
    "with brackets in texts": '{"a": ["]}\\"]", ' + "[" * 5000 + "]" * 5000 + "]}",
    "beyond what can be copied": "[" * DEEPEST + "]" * DEEPEST,
}


@pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_deep_nesting_costs_its_record_alone(tmp_path, deep, suffix):
    lines = ['{"a": 1}', f'{{"b": {deep}}}', '{"a": 2}']
    content = "\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
    found, skipped = read(tmp_path / f"x.{suffix}", content)
    assert found == [{"a": 1}, {"a": 2}]
    assert dict(skipped.kinds) == {f"nested deeper than {DEEPEST} levels": 1}


@pytest.mark.parametrize(
    "broken", ['{"b": %s}' % ("1" * 5000), '{"b": 1,}', '{"b": [nope]}', '{"b": "x\ny"}', '{"b": "}", "c": 01}']
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_broken_record_costs_itself_alone(tmp_path, broken, suffix):
    lines = ['{"a": 1}', broken, '{"a": 2}', '{"a": 3}']
    content = "\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
    found, skipped = read(tmp_path / f"x.{suffix}", content)
    assert found == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert set(skipped.kinds) == {"not JSON"}


@pytest.mark.parametrize("broken", ["nonsense", '{"b": "x}', '{"b": "x"', "[", ""])
def test_where_a_broken_record_has_no_end_the_rest_is_said_to_be_lost(tmp_path, broken):
    found, skipped = read(tmp_path / "x.json", f'[{{"a": 1}},{broken},{{"a": 2}},{{"a": 3}}]')
    assert found == [{"a": 1}]
    assert dict(skipped.kinds) == {"not JSON, nothing is read from here on": 1}


def test_deep_nesting_without_end(tmp_path):
    found, skipped = read(tmp_path / "x.json", '[{"a": 1},' + "[" * 50_000)
    assert found == [{"a": 1}]
    assert len(skipped) == 1


@pytest.mark.parametrize("place", ['{"a": ["%s"]}', '{"a": {"b": "%s"}}', '{"%s": 1}', '{"a": {"%s": 1}}'])
def test_half_of_a_surrogate_pair_is_found_at_any_depth(tmp_path, place):
    lines = [place % half for half in ("\\ud83d", "\\uDE00")] + [place % "\\ud83d\\ude00"]
    found, skipped = read(tmp_path / "x.jsonl", "\n".join(lines))
    assert (len(found), dict(skipped.kinds).popitem()[1]) == (1, 2)
    json.dumps(found, ensure_ascii=False).encode()


def test_messages_steer_no_terminal_and_are_short():
    skipped = SkippedRecords("x")
    skipped.add("x:1", "\x1b[31mred\x07\nnext line " + "y" * 10_000)
    (message,) = skipped.messages
    assert message.isprintable()
    assert len(message) == 500


@pytest.mark.parametrize("name", ["a", "a/b.png", "a..b", "..a", "a b/ü.png"])
def test_names_inside_a_folder(name):
    assert stays_inside(name)


@pytest.mark.parametrize("name", ["", "/a", "..", "../a", "a/../../b", "a/..", "a\0"])
def test_names_outside_a_folder(name):
    assert not stays_inside(name)


def test_the_time_for_many_broken_records_of_a_list_grows_as_their_number(tmp_path, monkeypatch):
    """As a JSONDecodeError counts the lines before it, each took as long as the file is up to there."""
    path = tmp_path / "many.json"
    path.write_text("[" + ", ".join(f'{{"n": {n if n % 2 else "nope"}}}' for n in range(100)) + "]")
    before = []

    class Counting(json.JSONDecodeError):
        def __init__(self, msg, doc, pos):
            before.append(pos)
            super().__init__(msg, doc, pos)

    monkeypatch.setattr("json.decoder.JSONDecodeError", Counting)
    skipped = SkippedRecords(path)
    assert [fields["n"] for _, fields in records(path, skipped)] == list(range(1, 100, 2))
    assert len(skipped) == 50
    assert before
    assert max(before) < 20
