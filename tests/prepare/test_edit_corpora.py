"""AURORA's training sets and Pico-Banana as JSON lines."""

import json

import pytest

from support.image_world import block_image, save, write_aurora
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.data import JSONLTransitions
from swirl_lightning.prepare.edit_corpora import main, write


def manifest(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n")
    return path


@pytest.fixture
def pico(tmp_path):
    folder = tmp_path / "pico"
    for n in range(6):
        save(folder / "images" / f"{n}.png", n)
    save(folder / "openimage_source_images" / "abc_o.jpg", 30)
    single = {"text": "add a hat", "summarized_text": "hat", "edit_type": "Add a new object"}
    manifest(
        folder / "sft.jsonl",
        single | {"open_image_input_url": "https://farm5.example.com/1/abc_o.jpg", "output_image": "images/1.png"},
        single | {"local_input_image": "images/0.png", "open_image_input_url": "x", "output_image": "images/2.png"},
        single | {"open_image_input_url": "https://farm5.example.com/1/none.jpg", "output_image": "images/1.png"},
        {"open_image_input_url": "images/0.png", "output_image": "images/1.png"},
        '{"text": "cut sh',
    )
    files = [{"id": f"turn{n}", "url": f"images/{n + 2}.png"} for n in range(3)]
    manifest(
        folder / "multi_turn.jsonl",
        {"files": files, "metadata_edit_turn_prompts": ["first this", "then that"]},
        {"files": files, "metadata_edit_turn_prompts": ["too few"]},
    )
    return folder


def test_records_are_read_as_the_suite_reads_them(tmp_path):
    """An older key of the instruction was read by the suite alone, and an image outside the folder by this alone."""
    write_aurora(tmp_path)
    path = tmp_path / "data" / "kubric" / "train.json"
    entry = json.loads(path.read_text())[0]
    older = {"prompt": entry["instruction"], "input": entry["input"], "output": entry["output"]}
    path.write_text(json.dumps([older, entry | {"input": "../secret.png"}, entry]))
    with pytest.warns(UserWarning, match=r"aurora/kubric/1: an image outside AURORA's folder \(\.\./secret\.png\)"):
        counts = write(tmp_path / "out.jsonl", [tmp_path])
    assert counts["skipped: an image outside AURORA's folder"] == 1
    assert counts["used"] == counts["records"] - 1
    data = Aurora(data_dir=str(tmp_path), validation_size=1)
    with pytest.warns(UserWarning, match="an image outside AURORA's folder"):
        rows = [*data.load_split("warmup"), *data.load_split("validation")]
    assert len(rows) == counts["used"]


def test_both_corpora_in_one_file(tmp_path, pico):
    write_aurora(tmp_path / "aurora")
    out = tmp_path / "edits" / "warmup.jsonl"
    with pytest.warns(UserWarning, match="4 of 16 records cannot be used"):
        counts = write(out, [tmp_path / "aurora"], [pico / "sft.jsonl", pico / "multi_turn.jsonl"])
    assert counts["used"] == 12
    assert counts["skipped: not in the official layout"] == 3
    data = JSONLTransitions(warmup=str(out), strict=True)
    rows = {row.id: row for row in data.split("warmup")}
    assert len(rows) == 12
    first = rows["pico-banana/sft/1"]
    assert (first.action, first.meta["edit_type"]) == ("hat", "Add a new object")
    assert first.after.tobytes() == block_image(1).tobytes()
    assert rows["pico-banana/sft/2"].before.tobytes() == block_image(0).tobytes()
    second = rows["pico-banana/multi_turn/1/turn 2"]
    assert second.action == "then that"
    assert (second.before.tobytes(), second.after.tobytes()) == (block_image(3).tobytes(), block_image(4).tobytes())
    assert rows["aurora/kubric/2"].action == "turn 2"


def test_a_broken_train_file_is_named_with_the_record(tmp_path):
    write_aurora(tmp_path)
    path = tmp_path / "data" / "kubric" / "train.json"
    whole, records = path.read_text(), json.loads(path.read_text())
    path.write_text(whole[: whole.index(json.dumps(records[2]["output"]))])
    with pytest.warns(UserWarning, match=r"kubric/train\.json\[2\]: not JSON, nothing is read from here on"):
        counts = write(tmp_path / "x.jsonl", [tmp_path])
    assert (counts["used"], counts["skipped"]) == (6, 1)  # of 4 + 4, two are behind the cut
    path.write_text(json.dumps([records[0], None, records[1]]))
    with pytest.warns(UserWarning, match=r"train\.json\[1\]: an object is needed, got NoneType"):
        write(tmp_path / "x.jsonl", [tmp_path])
    ids = [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [name for name in ids if "kubric" in name] == ["aurora/kubric/0", "aurora/kubric/2"]
    path.write_text("{")
    with pytest.warns(UserWarning, match=r"train\.json: a JSON list is needed"):
        write(tmp_path / "x.jsonl", [tmp_path])


def test_an_address_with_a_name_that_cannot_be_costs_its_line(tmp_path, pico):
    path, long = pico / "multi_turn.jsonl", {"text": "go", "output_image": "x.png"}
    with path.open("a") as file:
        file.write(json.dumps(long | {"open_image_input_url": f"https://example.org/{'x' * 5000}.jpg"}) + "\n")
    with pytest.warns(UserWarning, match="cannot be used"):
        counts = write(tmp_path / "x.jsonl", pico_banana_files=[path])
    assert counts["used"] == 2
    assert counts["skipped: missing"]


def test_a_part_is_held_out_for_validation(tmp_path, pico):
    write_aurora(tmp_path / "aurora")
    out = tmp_path / "edits" / "warmup.jsonl"
    with pytest.warns(UserWarning, match="cannot be used"):
        write(out, [tmp_path / "aurora"], [pico / "multi_turn.jsonl"], validation=4)
    data = JSONLTransitions(warmup=str(out), validation=str(out.with_name("validation.jsonl")), strict=True)
    trained, held_out = ([row.id for row in data.split(name)] for name in ("warmup", "validation"))
    assert len(held_out) == 4
    assert not set(trained) & set(held_out)
    first = out.with_name("validation.jsonl").read_text()
    with pytest.warns(UserWarning, match="cannot be used"):
        write(out, [tmp_path / "aurora"], [pico / "multi_turn.jsonl"], validation=4)
    assert out.with_name("validation.jsonl").read_text() == first
    assert len({"pico-banana/multi_turn/1/turn 1", "pico-banana/multi_turn/1/turn 2"} & set(held_out)) != 1
    with pytest.raises(ValueError, match="would leave none"), pytest.warns(UserWarning, match="cannot be used"):
        write(out, pico_banana_files=[pico / "multi_turn.jsonl"], validation=2)


def test_records_that_are_held_out_are_not_trained_on_by_a_later_call(tmp_path):
    write_aurora(tmp_path / "aurora")
    out, beside = tmp_path / "warmup.jsonl", tmp_path / "validation.jsonl"
    write(out, [tmp_path / "aurora"], validation=1)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"validation\.jsonl of an earlier call has 1 of these records: hold some out"):
        write(out, [tmp_path / "aurora"])
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match=r"validation\.jsonl would hold what is trained on and what is held out"):
        write(beside, [tmp_path / "aurora"], validation=1)
    beside.write_text('{"id": "of another"}\n{"id": []}\n')
    assert write(out, [tmp_path / "aurora"])["used"] == len(before.splitlines()) + 1


def test_command_line_and_errors(tmp_path, pico, capsys):
    out = tmp_path / "x.jsonl"
    main([str(out), "--pico_banana", str(pico / "multi_turn.jsonl")])
    assert "used: 2" in capsys.readouterr().out
    assert json.loads(out.read_text().splitlines()[0])["before_image"] == "pico/images/2.png"
    with pytest.raises(ValueError, match="images for 1 edits"):
        main([str(out), "--strict", "--pico_banana", str(pico / "multi_turn.jsonl")])
    with pytest.raises(FileNotFoundError, match="apple/pico-banana-400k"):
        write(out, pico_banana_files=[tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="McGill-NLP/AURORA"):
        write(out, aurora=[tmp_path])
    with pytest.raises(SystemExit):
        main([str(out)])


def test_nothing_of_the_users_is_written_over(tmp_path, pico):
    manifests = [pico / "sft.jsonl", pico / "multi_turn.jsonl"]
    before = {path: path.read_bytes() for path in manifests}
    with pytest.raises(ValueError, match=r"multi_turn\.jsonl is one of the corpora"):
        write(pico / "multi_turn.jsonl", (), manifests)
    write_aurora(tmp_path / "aurora")
    train = tmp_path / "aurora" / "data" / "kubric" / "train.json"
    before[train] = train.read_bytes()
    with pytest.raises(ValueError, match=r"train\.json is one of the corpora"):
        write(train, [tmp_path / "aurora"])
    own = tmp_path / "edits" / "validation.jsonl"
    manifest(own, {"before": "a", "after": "b", "action": "c", "id": "mine"})
    kept = own.read_bytes()
    with (
        pytest.warns(UserWarning, match="cannot be used"),
        pytest.raises(ValueError, match=r"validation\.jsonl has other records"),
    ):
        write(tmp_path / "edits" / "warmup.jsonl", (), manifests, validation=1)
    assert own.read_bytes() == kept
    assert {path: path.read_bytes() for path in before} == before
