"""GEdit-Bench from the hub's files, and its three scores against values computed by hand."""

from __future__ import annotations

import base64
import io
import json

import pytest
import yaml
from PIL import Image

from support.image_world import block_image, liquid_folder
from support.judge_server import KEY, serving
from swirl_lightning.__main__ import main
from swirl_lightning.benchmarks.gedit import GEdit
from swirl_lightning.benchmarks.gedit.metrics import TASK_TYPES, GEditScore
from swirl_lightning.judge import Judge
from swirl_lightning.judge.templates import read_template
from swirl_lightning.results.report import build
from swirl_lightning.results.table import read
from swirl_lightning.transition import Transition

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
from support.suites.gedit import row, write  # noqa: E402

ROWS = [
    row(0, "color_alter"),
    row(1, "color_alter"),
    row(2, "subject-add"),
    row(3, "subject-add", "cn"),
]


def test_records_by_language_and_type(tmp_path):
    folder = write(tmp_path, ROWS)
    data = GEdit(data_dir=folder)
    data.setup("test")
    rows = list(data.split("test"))
    assert [r.action for r in rows] == ["edit 0", "edit 1", "edit 2"]
    assert [r.id for r in rows] == ["color_alter/en/k0", "color_alter/en/k1", "subject-add/en/k2"]
    assert [r.meta["groups"] for r in rows[:2]] == [["color_alter", "intersection/color_alter"], ["color_alter"]]
    assert rows[1].before.tobytes() == block_image(1, (24, 12)).tobytes()  # input_image, not input_image_raw
    assert rows[1].after is None
    assert [r.action for r in GEdit(data_dir=folder, language="cn").split("test")] == ["修改 3"]
    assert len(GEdit(data_dir=folder, task_types=["subject-add"]).split("test")) == 1
    parquet.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "again.parquet")
    with pytest.warns(UserWarning, match="its id comes twice"):
        assert len(GEdit(data_dir=folder).split("test")) == 3


def test_what_cannot_be_used_is_named(tmp_path):
    cut = {"bytes": ROWS[0]["input_image"]["bytes"][:50], "path": None}
    rows = [*ROWS, row(4, "recolour"), row(5, "ps_human", "fr"), row(6, "ps_human", input_image=None)]
    rows += [row(10, "ps_human", Intersection_exist=None)]
    rows += [row(7, "ps_human", instruction=" "), row(8, "ps_human", input_image=cut), row(9, "ps_human", key=None)]
    folder = write(tmp_path / "train", rows).removesuffix("/train")
    (tmp_path / "train" / "b.arrow").write_bytes(b"ARROW")
    data = GEdit(data_dir=folder)
    with pytest.warns(UserWarning, match="8 of 11 records cannot be used") as caught:
        data.setup("test")
    told = next(str(w.message) for w in caught if "cannot be used" in str(w.message))
    for reason in (
        "unknown task_type ('recolour')",
        "unknown instruction_language ('fr')",
        "no input_image",
        "instruction must be a text that is not empty",
        "ps_human/en/k8 (before): not readable",
        "Intersection_exist is None, and not true or false",
        "key must be a text that is not empty",
        "b.arrow: cannot be read",
    ):
        assert reason in told
    with pytest.raises(ValueError, match="8 of 11 records cannot be used"):
        GEdit(data_dir=folder, strict=True).setup("test")


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"language": "de"}, ValueError, "language must be one of en, cn"),
        ({"task_types": ["paint"]}, ValueError, "unknown task types paint; choose from background_change"),
        ({}, FileNotFoundError, r"no \*\.arrow or \*\.parquet in .*stepfun-ai/GEdit-Bench"),
    ],
)
def test_options_and_files_that_cannot_be(options, error, told, tmp_path):
    with pytest.raises(error, match=told):
        GEdit(data_dir=str(tmp_path), **options).setup("test")


def test_it_has_no_training_data_and_needs_its_columns(tmp_path):
    with pytest.raises(ValueError, match="has a test split only: fit on another benchmark"):
        GEdit(data_dir=write(tmp_path / "a", ROWS)).setup("fit")
    bare = [{key: value for key, value in ROWS[0].items() if key != "Intersection_exist"}]
    with pytest.raises(ValueError, match="lacks the columns Intersection_exist; it has task_type, key"):
        GEdit(data_dir=write(tmp_path / "b", bare)).setup("test")


def transition(number, groups):
    return Transition(block_image(number, (24, 12)), None, f"edit {number}", f"r{number}", {"groups": groups})


SCORES = {  # of the row's number: semantics, quality
    0: ("[8, 2]", "[9, 8]"),  # 2 and 8, together 4
    1: ("[9, 9]", "[4, 6]"),  # 9 and 4, together 6
    2: ("[10, 10]", '"very good"'),  # the second is no score
}


def test_the_three_scores_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    edited = {n: block_image(100 + n) for n in SCORES}

    def answer(request):
        (message,) = request["messages"]
        _, *shown = message["content"]
        images = [Image.open(io.BytesIO(base64.b64decode(i["image_url"]["url"].split(",")[1]))) for i in shown]
        assert {image.size for image in images} == {(24, 12)}  # the edited one is as large as the source
        (number,) = [n for n, e in edited.items() if e.resize((24, 12)).tobytes() == images[-1].tobytes()]
        if len(images) == 2:
            assert images[0].tobytes() == block_image(number, (24, 12)).tobytes()
            assert f"edit {number}" in message["content"][0]["text"]
        return f'{{"score": {SCORES[number][2 - len(images)]}, "reasoning": "x"}}'

    groups = [["color_alter", "intersection/color_alter"], ["color_alter"], ["subject-add"], ["subject-add"]]
    rows = [transition(n, group) for n, group in enumerate(groups)]
    with serving() as server:
        server.answer = answer
        judge = Judge("any", server.url, api_key_env="JUDGE_KEY", cache_dir=str(tmp_path))
        data = GEdit(data_dir=".", judge=judge)
        metric = GEditScore(judge, data.categories, averages=data.averages)
        metric.update([*edited.values(), None], rows)
        metric.sync()
        found = {name: float(value) for name, value in metric.compute().items()}
    by_hand = {
        "semantics/color_alter": 5.5,
        "semantics/subject-add": 5.0,  # 10, and 0 of the missing image
        "semantics/mean over types": 5.25,
        "semantics/intersection/mean over types": 2.0,
        "quality/color_alter": 6.0,
        "quality/subject-add": 0.0,  # of the missing image alone: the other answer was none
        "quality/mean over types": 3.0,
        "overall/color_alter": 5.0,  # of 4 and 6, not of sqrt(5.5 * 6)
        "overall/mean over types": 2.5,
        "overall/intersection/color_alter": 4.0,
        "overall": 10 / 3,
    }
    assert {name: found[f"judge/{name}"] for name in by_hand} == pytest.approx(by_hand)
    assert (found["judge_asked"], found["judge_unparsable"], found["judge_failed"]) == (4, 1, 0)
    assert len(TASK_TYPES) == 11


CHECKOUT = 'CONTEXT = """Answer:\n{\n"score" : [...],\n}"""\nEDIT = """Rate.\nInstruction: <instruction>\n"""\n'


def test_the_official_wording_marks_the_instruction_otherwise(tmp_path):
    (tmp_path / "vie_prompts.py").write_text(CHECKOUT)
    text = (
        "text: [{file: vie_prompts.py, name: CONTEXT}, {file: vie_prompts.py, name: EDIT}]\n"
        "placeholder: <instruction>\nstates: [before, predicted]\nlow: 0\nhigh: 10\nseveral: min\n"
    )
    path = tmp_path / "sc.yaml"
    path.write_text(text)
    template = read_template(path)
    asked = template.fill(action="add {a} <b>", predicted="")
    assert asked == 'Answer:\n{\n"score" : [...],\n}\nRate.\nInstruction: add {a} <b>\n'
    path.write_text(text.replace("placeholder: <instruction>", "placeholder: <prompt>"))
    with pytest.raises(ValueError, match=r"sc\.yaml: the text has no placeholder '<prompt>'"):
        read_template(path)
    path.write_text(text.replace("placeholder: <instruction>\n", ""))
    assert read_template(path).digest != template.digest


def test_by_the_command(tmp_path, monkeypatch, capsys):
    """A run of ``swirl test`` with a judge; its row stands beside Table 5."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving() as server:
        server.answer = lambda request: f'{{"score": [{2 if len(request["messages"][0]["content"]) == 3 else 8}, 9]}}'
        judge = {"model": "gpt-4.1-2025-04-14", "base_url": server.url, "api_key_env": "JUDGE_KEY"}
        backbone = {"model_name_or_path": str(liquid_folder(tmp_path / "base")), "dtype": "float32"}
        data = {
            "data_dir": write(tmp_path / "data", ROWS),
            "eval_batch_size": 2,
            "judge": {
                "class_path": "swirl_lightning.judge.Judge",
                "init_args": judge | {"cache_dir": str(tmp_path / "cache")},
            },
        }
        config = {
            "trainer": {"accelerator": "cpu", "logger": False, "default_root_dir": str(tmp_path / "run")},
            "model": {
                "class_path": "swirl_lightning.SWIRL",
                "init_args": {
                    "backbone": {
                        "class_path": "swirl_lightning.backbones.Liquid",
                        "init_args": backbone | {"quantization": None, "max_action_tokens": 5},
                    },
                    "evaluation": {"modes": ["sampled"]},
                },
            },
            "data": {"class_path": "swirl_lightning.benchmarks.gedit.GEdit", "init_args": data},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        main(["test", "-c", str(tmp_path / "config.yaml")])
    path = tmp_path / "run" / "results.json"
    found = read(path)["test"]["base"]
    assert found["fwm/sampled/judge/overall/mean over types"] == pytest.approx(4.0)
    assert found["fwm/sampled/judge_asked"] == 3
    about = read(path)["about"]["test"]["base"]
    assert list(about["settings"]["judge"]["templates"]) == ["state", "quality"]
    assert about["missing"] == {}
    (report,) = build([path])
    assert report.heading == ["G_SC 0-10", "G_PQ 0-10", "G_O 0-10"]
    assert report.rows["base, Liquid (paper)"] == ["0.04†", "1.43†", "0.03†"]
    assert report.rows["SFT (paper)"] == ["4.04†", "3.04†", "3.06†"]
    assert report.rows["base"] == ["2.00", "8.00", "4.00"]
    told = [note for note in report.notes if "judged by gpt-4.1-2025-04-14" in note]
    assert [note.split(" (")[0] for note in told] == [
        "base: states judged by gpt-4.1-2025-04-14, template swirl-lightning/gedit",
        "base: quality judged by gpt-4.1-2025-04-14, template swirl-lightning/quality",
    ]
    results = json.loads(path.read_text())
    for kind, shown in (("state", "4.04"), ("quality", "3.06")):  # G_SC rests on one question, G_O on both
        results["about"]["test"]["base"]["settings"]["judge"]["templates"][kind]["paper"] = True
        path.write_text(json.dumps(results))
        (report,) = build([path])
        assert shown in report.rows["SFT (paper)"]
        assert ("3.06" in report.rows["SFT (paper)"]) == (kind == "quality")
    capsys.readouterr()
