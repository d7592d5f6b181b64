"""``swirl report``: runs beside the paper, as Markdown and HTML."""

from __future__ import annotations

import json
import os
import re
import runpy

import pytest
from PIL import Image

from support.image_world import clip_folder, liquid_folder, model, trainer, write_aurora
from swirl_lightning.__main__ import main as swirl
from swirl_lightning.benchmarks.aurora import Aurora
from swirl_lightning.callbacks import Results
from swirl_lightning.callbacks.predictions import Predictions
from swirl_lightning.results.paper import SUITES
from swirl_lightning.results.report import build, main, markdown, results_file
from swirl_lightning.results.table import read


def write(folder, suite="AURORA", row="SWIRL iteration 1", **values):
    folder.mkdir(parents=True, exist_ok=True)
    values = values or {"fwm/sampled/judge": 5.5, "fwm/sampled/clip_nearer_target": 0.25}
    facts = {
        "suite": suite,
        "counts": {
            "test": {"records": 400, "used": 398, "skipped": 2, "skipped: missing": 2},
            "all": {"records": 9, "used": 8, "skipped": 1},
        },
        "missing": {"bert_score": "set bert"},
        "settings": {"judge": {"model": "grader|1"}},
    }
    results = {"test": {row: values}, "about": {"test": {row: facts}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_run_beside_the_paper(tmp_path, capsys):
    run = write(tmp_path / "run")
    (run / "predictions").mkdir()
    Image.new("RGB", (4, 4)).save(run / "predictions" / "contact_sheet.png")
    swirl(["report", str(run)])
    text = (run / "report.md").read_text()
    assert (
        "| | judge 0-10 | IDM judge 0-10 | CLIP target | nearer target % | DiscEdit | IDM BERTScore, rescaled "
        "| IDM ROUGE-L, stems |" in text
    )
    assert "| SFT (paper) | 4.36† | 6.38 | 0.84 | – | 0.36 | 41.00 | 36.00 |" in text
    assert "| SWIRL iteration 1 | 5.50 | – | – | 25.00 | – |" in text
    assert "- SWIRL iteration 1: records 400, used 398, skipped 2, skipped: missing 2" in text
    assert "- SWIRL iteration 1 (all): records 9, used 8, skipped 1" in text
    assert "bert_score is missing (set bert)" in text
    assert "states judged by grader\\|1, template unknown" in text
    assert "(predictions/contact_sheet.png)" in text
    page = (run / "report.html").read_text()
    assert "<td>SWIRL iterative (paper)</td>\n<td>5.06†</td>" in page
    assert "SWIRL iteration 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "beside"),
    [
        ("IDM→FWM, shared weights", ["SFT, Chameleon", "SFT", "IDM→FWM"]),
        ("FWM→IDM", ["SFT, Chameleon", "SFT", "FWM→IDM"]),
        ("SWIRL iteration 2", ["SFT, Chameleon", "SFT", "SWIRL iterative", "SWIRL iterative, shared weights"]),
        ("SFT", ["SFT, Chameleon", "SFT"]),
        ("Bootstrap iteration 1", ["SFT, Chameleon", "Bootstrap, Chameleon", "SFT", "Bootstrap"]),
    ],
)
def test_the_paper_stands_beside_the_same_schedule_alone(tmp_path, row, beside):
    """IDM→FWM is Phase I alone: 4.83 is no bar for an iterative run, nor 5.06 for Phase I."""
    report, *_ = build([results_file(write(tmp_path, row=row))])
    assert list(report.rows) == [*(f"{name} (paper)" for name in beside), row]
    if row.startswith("IDM→FWM"):
        assert report.rows["IDM→FWM (paper)"] == ["4.83†", "–", "0.84", "–", "0.36", "–", "–"]


def test_rows_over_other_tasks_stand_apart_and_every_number_has_its_count(tmp_path):
    """CLIP source is over more records than what needs a result; the paper's rows are over five of eight tasks."""
    five = ["kubric", "whatsup", "something", "ag", "magicbrush"]
    files = []
    for name, tasks in (("eight", None), ("five", five), ("two", ["ag", "kubric"])):
        run = write(tmp_path / name, row="SFT", **{"fwm/sampled/clip_target": 0.5, "fwm/sampled/clip_source": 0.75})
        results = read(run / "results.json")
        facts = results["about"]["test"]["SFT"]
        facts["rows"] = {"fwm/sampled/clip_target": 248, "fwm/sampled/clip_source": 398}
        facts["settings"]["data"] = {"tasks": tasks}
        (run / "results.json").write_text(json.dumps(results))
        files.append(run / "results.json")
    tables = {report.title: report for report in build(files)}
    (paper,) = [report for report in tables.values() if "SFT (paper)" in report.rows]
    assert paper.title == "AURORA (test, tasks ag, kubric, magicbrush, something, whatsup)"
    assert [list(tables[f"AURORA (test, {of})"].rows) for of in ("all tasks", "tasks ag, kubric")] == [
        ["eight: SFT"],
        ["two: SFT"],
    ]
    eight = tables["AURORA (test, all tasks)"]
    assert (eight.heading, eight.rows["eight: SFT"]) == (["CLIP target", "CLIP source"], ["0.50 (248)", "0.75"])
    assert "eight: SFT: scores over 398 records, those with a number in brackets over so many" in eight.notes
    assert any(note.startswith("the paper's rows are over ag, kubric, ") for note in eight.notes)


def test_a_row_of_ones_own_name_is_known_by_its_schedule(tmp_path):
    run = write(tmp_path, row="mine")
    results = json.loads((run / "results.json").read_text())
    results["about"]["test"]["mine"]["label"] = "IDM→FWM"
    (run / "results.json").write_text(json.dumps(results))
    report, *_ = build([results_file(run)])
    assert list(report.rows) == ["SFT, Chameleon (paper)", "SFT (paper)", "IDM→FWM (paper)", "mine"]


def test_the_two_benchmarks_of_world_prediction_stand_apart(tmp_path):
    files = []
    for task in ("PP", "WM"):
        run = write(tmp_path / task, "WorldPrediction", row="SFT", **{"fwm/sampled/judge/mean over turns": 2.0})
        results = read(run / "results.json")
        results["about"]["test"]["SFT"]["settings"]["data"] = {"task": task}
        (run / "results.json").write_text(json.dumps(results))
        files.append(run / "results.json")
    shown = {report.title: list(report.rows) for report in build(files)}
    assert "SFT (paper)" in shown["WorldPrediction (test, tasks PP)"]
    assert shown["WorldPrediction (test, tasks WM)"] == ["WM: SFT"]


def test_world_prediction_is_compared_by_its_mean_over_turns(tmp_path):
    """The paper's figure; a mean over all steps would give the first turns more weight."""
    values = {"fwm/sampled/judge": 9.0, "fwm/sampled/judge/mean over turns": 2.0, "fwm/sampled/judge/turn 6": 1.0}
    main([str(write(tmp_path / "run", "WorldPrediction", **values))])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| | judge 0-10, mean over turns | turn 1 | turn 2 | turn 3 | turn 4 | turn 5 | turn 6 |" in text
    assert "| SFT (paper) | 1.63† | 3.09 | 2.09 | 1.40 | 1.17 | 1.07 | 0.97† |" in text
    assert "| SWIRL iteration 1 | 2.00 | – | – | – | – | – | 1.00 |" in text


def test_the_papers_other_tables(tmp_path):
    """By dataset, iteration and group size: where one's own rows have the metric, or the paper has such rows."""
    values = {"fwm/sampled/judge": 4.5, "fwm/sampled/judge/ag": 3.0, "fwm/sampled/clip_target/ag": 0.5}
    reports = {r.title: r for r in build([results_file(write(tmp_path / "a", **values))])}
    assert list(reports) == [
        "AURORA (test)",
        "AURORA (test), by dataset (Table 1)",
        "AURORA (test), by number of training samples (Table 7)",
        "AURORA (test), by iteration (Table 9)",
    ]
    by_dataset = reports["AURORA (test), by dataset (Table 1)"]
    assert by_dataset.heading == ["judge/ag", "judge", "clip_target/ag"]
    assert by_dataset.rows["SWIRL iterative (paper)"] == ["3.52†", "5.06†", "0.80"]
    assert by_dataset.rows["SWIRL iteration 1"] == ["3.00", "4.50", "0.50"]
    by_iteration = reports["AURORA (test), by iteration (Table 9)"]
    assert by_iteration.rows["SWIRL iteration 3, shared weights (paper)"] == ["3.18†", "4.97†"]
    assert "Bootstrap, SFT-Merge, 12.8k samples (paper)" not in markdown(list(reports.values()), tmp_path)
    one = {r.title: r for r in build([results_file(write(tmp_path / "one", row="IDM→FWM"))])}
    assert one["AURORA (test), by group size (Table 10)"].rows["IDM→FWM, group size 64 (paper)"] == ["4.90†"]
    bootstrap = markdown(build([results_file(write(tmp_path / "b", row="Bootstrap iteration 1"))]), tmp_path)
    assert "| Bootstrap, SFT-Merge, 12.8k samples (paper) | 4.01† |" in bootstrap
    assert "| Bootstrap (paper) | 4.11† |" in bootstrap


def test_verification_and_zero_shot_stand_beside_their_like(tmp_path):
    run = write(tmp_path / "run", row="SFT, best of 4")
    results = json.loads((run / "results.json").read_text())
    results["about"]["test"]["SFT, best of 4"] |= {"label": "SFT", "settings": {"evaluation": {"best_of": 4}}}
    (run / "results.json").write_text(json.dumps(results))
    (report,) = build([run / "results.json"])
    judged = {name: cells[0] for name, cells in report.rows.items()}
    best = {f"SFT, best of {n} (paper)": f"{score}†" for n, score in ((2, 4.53), (4, 4.66), (8, 4.77))}
    assert judged == {"SFT, Chameleon (paper)": "3.26†", "SFT (paper)": "4.36†", **best, "SFT, best of 4": "5.50"}
    values = {"fwm/sampled/bert_score": 0.9, "fwm/sampled/rouge_l": 0.5}
    (report,) = build([results_file(write(tmp_path / "zero", "ScienceWorld", row="base", **values))])
    assert report.rows["base, Qwen-2.5-3B-Instruct (paper)"] == ["82.87", "18.68"]
    assert report.rows["base"] == ["90.00", "50.00"]


def test_world_prediction_and_bytemorph_by_category(tmp_path):
    values = {f"fwm/sampled/judge{key}": 2.0 for key in ("/mean over turns", "/EgoExo4D/mean over turns")}
    *_, report = build([results_file(write(tmp_path / "w", "WorldPrediction", row="IDM→FWM", **values))])
    assert report.rows["IDM→FWM (paper)"] == ["1.84†", "1.89†"]
    values = {"fwm/sampled/judge": 50.0, "fwm/sampled/judge/interaction": 40.0}
    *_, report = build([results_file(write(tmp_path / "b", "ByteMorph", row="SFT", **values))])
    assert report.rows["SFT (paper)"] == ["40.70†", "43.38†"]


def test_several_runs_and_suites(tmp_path, monkeypatch):
    runs = [write(tmp_path / "a"), write(tmp_path / "b" / "version_0"), write(tmp_path / "c", "ByteMorph")]
    monkeypatch.chdir(tmp_path)
    main([str(run) for run in runs])
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n## ") == 4  # and two further tables of AURORA
    assert "| a: SWIRL iteration 1 |" in text
    assert "| b/version_0: SWIRL iteration 1 |" in text
    same = [write(tmp_path / f"seed{n}" / "recipe") for n in range(2)]
    main([str(run) for run in same])
    text = (tmp_path / "report.md").read_text()
    for n in range(2):
        assert f"| seed{n}/recipe: SWIRL iteration 1 |" in text
    main([str(tmp_path / "b"), "--out", str(tmp_path / "x" / "y")])
    assert (tmp_path / "x" / "y.html").is_file()


def test_images_are_found_from_a_folder_that_is_a_link(tmp_path):
    run = write(tmp_path / "run")
    (run / "predictions").mkdir()
    Image.new("RGB", (4, 4)).save(run / "predictions" / "contact_sheet.png")
    (tmp_path / "far" / "off").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "off")
    main([str(run), "--out", str(tmp_path / "link" / "report")])
    (image,) = re.findall(r"before, after, predicted\]\((.+?)\)", (tmp_path / "link" / "report.md").read_text())
    assert (tmp_path / "link" / image).is_file()


def test_the_quickstarts_table_has_no_paper_rows(tmp_path):
    run = tmp_path
    values = {"fwm/sampled/effect_accuracy": 0.5, "identifiability": -1.2}
    (run / "results.json").write_text(json.dumps({"validation": {"SFT": values}}))  # an older file
    (report,) = build([results_file(run)])
    assert report.title == "results (validation)"
    assert list(report.rows) == ["SFT"]
    assert report.rows["SFT"] == ["50.00", "-1.20"]
    assert "paper" not in markdown([report], tmp_path)


def test_a_suite_of_ones_own_has_the_columns_that_its_rows_have(tmp_path):
    """A benchmark is one file and one YAML: no table has to name its metrics first."""
    values = {"fwm/sampled/exact_match": 0.5, "fwm/sampled/cer": 3.25, "fwm/sampled/cer/night": 4.5}
    run = write(tmp_path / "run", "Weather", **values)
    results = json.loads((run / "results.json").read_text())
    results["test"]["SFT"] = {"fwm/sampled/cer": 5.0, "idm/sampled/map": 2.0}
    results["about"]["test"]["SFT"] = {"suite": "Weather"}
    (run / "results.json").write_text(json.dumps(results))
    (report,) = build([results_file(run)])
    assert report.heading == ["exact", "fwm/sampled/cer", "fwm/sampled/cer/night", "idm/sampled/map"]
    assert report.rows == {
        "SWIRL iteration 1": ["50.00", "3.25", "4.50", "–"],
        "SFT": ["–", "5.00", "–", "2.00"],
    }


def test_problems_are_in_the_report(tmp_path):
    with pytest.raises(SystemExit, match=r"error: no results\.json in .*none"):
        swirl(["report", str(tmp_path / "none")])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit, match="not valid JSON"):
        swirl(["report", str(tmp_path)])


WRONG = {
    "a list": [],
    "a number": 7,
    "a list of rows": {"test": []},
    "a row that is none": {"test": {"SFT": [1]}},
    "a text for a number": {"test": {"SFT": {"x": "1"}}},
    "a number beyond floats": {"test": {"SFT": {"x": 10**400}}},
    "facts that are none": {"test": {"SFT": {"x": 1}}, "about": {"test": {"SFT": []}}},
    "a label that is none": {"test": {"SFT": {"x": 1}}, "about": {"test": {"SFT": {"label": ["IDM"]}}}},
    "counts of another kind": {"test": {"SFT": {"x": 1}}, "about": {"test": {"SFT": {"counts": {"test": 3}}}}},
    "an evaluation of another kind": {
        "test": {"SFT": {"x": 1}},
        "about": {"test": {"SFT": {"settings": {"evaluation": 3}}}},
    },
    "templates of another kind": {
        "test": {"SFT": {"x": 1}},
        "about": {"test": {"SFT": {"settings": {"judge": {"model": "m", "templates": {"state": 3}}}}}},
    },
    "a judge of another kind": {"test": {"SFT": {"x": 1}}, "about": {"test": {"SFT": {"settings": {"judge": "x"}}}}},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_file_of_another_shape_is_told_in_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match=r"^error: .*results\.json is no table of results: .* move it away"):
        swirl(["report", str(tmp_path)])


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b""])
def test_a_file_that_is_no_json_is_told_in_one_line(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^error: .*results\.json is not valid JSON"):
        swirl(["report", str(tmp_path)])


def test_names_from_a_file_have_no_effect_in_any_report(tmp_path, capsys):
    """Somebody else's results.json: markup, links, cells, steering of the terminal."""
    evil = '<script>alert(1)</script>[/bold][red]x|y](http://evil) \x1b[31m\n## "quoted" `code`'
    values = {"fwm/sampled/exact_match": float("nan"), f"fwm/{evil}": 1.0, f"{evil}/judge_failed": 2.0}
    facts = {
        "suite": evil,
        "counts": {"test": {evil: evil}},
        "missing": {evil: evil},
        "settings": {"judge": {"model": evil}},
    }
    content = {"test": {evil: values}, "about": {"test": {evil: facts}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    text = (tmp_path / "report.md").read_text()
    assert text.count("\n#") == 1  # the suite's own heading
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    assert not re.search(r"(?<!\\)[<\[`]", text)
    told = capsys.readouterr().out
    assert "\x1b" not in page + text + told
    assert "[/bold][red]x" in told


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_in_a_runs_folder_hang_nothing(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    for ask in (lambda: main([str(tmp_path)]), lambda: read(tmp_path / "results.json")):
        with pytest.raises(OSError, match=r"no results.json in|is no file of results"):
            ask()
    run = write(tmp_path / "run")
    os.mkfifo(run / "events.out.tfevents.1")
    with pytest.raises(OSError, match="is no file that TensorBoard has written"):
        main([str(run)])
    (run / "events.out.tfevents.1").unlink()
    os.mkfifo(run / "report.md")
    main([str(run)])
    assert (run / "report.md").read_text().startswith("#")


def test_numbers_without_an_axis_and_long_names_cost_the_image_alone(tmp_path, capsys):
    values = {"a": {"fwm/sampled/judge": 1e308}, "b" * 500_000: {"fwm/sampled/judge": -1e308}}
    (tmp_path / "results.json").write_text(json.dumps({"test": values}))
    main([str(tmp_path)])
    assert "the curves cannot be drawn" in capsys.readouterr().out
    assert (tmp_path / "report.md").is_file()


def test_as_a_module(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", str(write(tmp_path / "run"))])
    runpy.run_module("swirl_lightning.results.report", run_name="__main__")
    assert "AURORA (test)" in capsys.readouterr().out


def test_every_paper_row_uses_the_tables_columns():
    assert sum(len(layout.parts) for layout in SUITES.values()) == 7
    for layout in [*SUITES.values(), *(part for suite in SUITES.values() for part in suite.parts.values())]:
        assert layout.paper
        assert set(layout.factors) <= set(layout.columns)
        assert all(set(row) <= set(layout.columns) for row in layout.paper.values())


def test_from_a_real_test_run(tmp_path):
    write_aurora(tmp_path / "data")
    data = Aurora(data_dir=str(tmp_path / "data"), clip=str(clip_folder(tmp_path / "clip")), eval_batch_size=6)
    module = model(liquid_folder(tmp_path / "base"))
    trainer(tmp_path / "run", Predictions(), Results(row="mine")).test(module, data, verbose=False)
    results = read(tmp_path / "run" / "results.json")
    facts = results["about"]["test"]["mine"]
    assert facts["label"] == "base"
    assert facts["counts"] == {"test": {"records": 6, "used": 6, "skipped": 0}}
    assert list(facts["missing"]) == ["bert_score", "judge"]
    assert facts["seed"] == {"data": 0, "model": 0, "evaluation": 0}
    assert facts["settings"]["evaluation"]["modes"] == ["sampled"]
    assert facts["settings"]["data"]["data_dir"] == str(tmp_path / "data")
    assert {"python", "torch", "transformers"} <= set(facts["versions"])
    main([str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.md").read_text()
    assert re.search(r"\| mine \| -?0\.\d\d \(4\) \| -?0\.\d\d \|", text)  # target and source: two have no result
    assert "CLIP target" in text
    assert "judge is missing" in text
