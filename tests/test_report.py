"""The page of a run, a selection and a sweep: what it shows, that it needs nothing else, and that it is harmless."""

import base64
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import CFG, write_run, write_selection

from crgan import checkpoint, pictures
from crgan.figures import curves, schedule_marks
from crgan.loading import open_models
from crgan.report import main, number
from crgan.selection.scores import read, read_tables


def page(folder):
    main([str(folder)])
    return (folder / "report.html").read_text()


def data_of(text):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])


@pytest.fixture(scope="module")
def model():
    return checkpoint.build_model(CFG, (3, 16, 16)).for_use()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def run_text(run):
    return page(run)


@pytest.mark.parametrize("prior", ["uniform", "normal"])
def test_every_row_of_a_traversal_holds_the_base_image(model, prior, monkeypatch):
    monkeypatch.setattr(model, "prior", prior, raising=False)
    for columns, images in pictures.traversals(model, 3, num_values=5):
        assert images.shape == (4, 5, 3, 16, 16)
        base = images[torch.arange(4), torch.tensor(columns)]
        torch.testing.assert_close(base, base[:1].expand_as(base))
    assert columns == [2, 2, 2, 2]  # the last one is that of codes 0


def test_a_row_names_a_factor_only_where_the_votes_exceed_chance():
    votes = np.array([[90, 10, 0], [34, 33, 33], [0, 0, 0], [48, 26, 26]])
    assert pictures.followed_factors(votes, ["x", "y", "z"]) == ["x 90 %", "–", "–", "x 48 %"]


def test_a_label_without_a_factor_is_a_dash():
    dash, missing = (pictures.image_grid(torch.ones(1, 1, 1, 8, 8), [label]) for label in ("–", "\uffff"))
    dark = [(np.asarray(picture).min(2) < 128).any(1).sum() for picture in (dash, missing)]
    assert dark[0] <= 3 < dark[1]  # a line, not the box of a character that the font does not have


def test_sprite_sheets_have_a_row_for_each_code_and_stay_within_their_size(model):
    found = pictures.sprite_sheets(model, 3)
    assert len(found["sheets"]) == 6
    assert all(len(columns) == 3 for columns in found["columns"])
    with Image.open(io.BytesIO(base64.b64decode(found["sheets"][0].partition(",")[2]))) as sheet:
        assert sheet.size == (15 * 16, 3 * 16)


def test_curves_share_a_panel_only_where_they_share_a_scale():
    panels = curves([{"step": 100, "discriminator": 1.0, "generator": 2.0, "info": -3.0}], [("A", 50, "x")])
    assert [title for title, _, _ in panels] == ["Adversarial losses", "Information loss"]
    assert "generator ends at 2" in panels[0][2]


def test_marks_are_the_steps_where_the_schedule_changes():
    cfg = vars(CFG) | {"gap_switch": 250, "gap_after": 0.5, "code_warmup_steps": 10}
    marks = schedule_marks(cfg, last=240)
    assert [(letter, step) for letter, step, _ in marks] == [("A", 30), ("B", 100), ("C", 200)]
    assert schedule_marks(cfg | {"cr_weight": 0.0, "blur": 0.0, "code_warmup_steps": 0}, 300) == []


def test_numbers_read_as_a_reader_expects():
    values = 0.12345, -1.0, 12345, 0, np.int64(0), None, "x"
    assert [number(x) for x in values] == ["0.123", "−1.000", "12,345", "0", "0", "–", "x"]


def test_a_run_is_shown_whole(run_text):
    for fact in ("0.750", "of 300", "2 min", "a CPU", "torch 2.13", "rendered, 3×16×16", "FactorVAE votes"):
        assert fact in run_text
    found = data_of(run_text)
    assert len(found["values"]) == 15
    assert found["values"][0] == -1
    assert len(found["columns"]) == run_text.count('class="sheet"') == 6
    assert len(found["columns"][0]) == run_text.count('type="range"') == 4
    assert run_text.count('<svg role="img"') == 4
    assert "step 200: the contrastive regularizer starts" in run_text
    assert re.search(r"cr_start</th><td><b>200</b>", run_text)  # differs from the paper's


def test_the_page_needs_no_other_file_and_lets_no_other_script_run(run_text):
    assert not re.search(r'(src|href)="(?!data:|#)', run_text)
    assert len(run_text) < 1_000_000
    script = re.findall(r"<script>(.*?)</script>", run_text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in run_text


def test_names_are_escaped(tmp_path):
    evil = '<script>alert("1")<img src=x onerror=alert(1)>'
    selection = write_selection(tmp_path / "selection", [evil, "b"], groups=10)
    for text in (page(write_run(tmp_path / evil)), page(tmp_path), page(selection)):
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert" in text


def test_scores_say_of_which_checkpoint_and_protocol_they_are(run):
    key = open_models([str(run)])[0].cache_key
    entry = {"name": "run", "data": "squares", "source": "rendered", "seed": 3}
    first = entry | {"protocol": "paper", "metrics": {"mig": {"score": 0.123456, "gaps": [0.1]}}}
    second = entry | {"protocol": "dlib", "metrics": {"dci": {"completeness": 0.25}}}
    (run / "metrics.json").write_text(json.dumps({key: [first, second], "older": [first]}))
    text = page(run)
    (run / "metrics.json").unlink()
    assert text.count("paper protocol, seed 3") == 2
    assert text.count("paper protocol, seed 3, earlier checkpoint") == 1
    assert re.search(r"mig</th><td class=\"n\">0.123</td><td class=\"n\">–</td><td class=\"n\">0.123", text)
    assert "dci completeness" in text


def test_what_a_run_lacks_is_said(tmp_path, run_text):
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\0\n{"step": 300, "d"')  # a damaged line, and half of one, which a kill left
    assert page(run) == run_text
    text = page(write_run(tmp_path / "no data", replace(CFG, data="cars3d", root=str(tmp_path / "gone"))))
    assert 'type="range"' in text
    assert "cannot be compared with the factors" in text
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "checkpoint")
    text = page(run)
    assert text.count('<img src="data:image/') == 2
    assert "cannot be opened" in text
    assert "No losses have been written yet" in text


def test_what_cannot_be_shown_is_named(tmp_path, refused):
    assert "neither config.json nor ranking.json" in refused(main, tmp_path)
    broken = (".sweep/sweep.json", "{", "damaged"), ("ranking.json", "{}", "damaged")
    (tmp_path / ".sweep").mkdir()
    for file, content, problem in (*broken, ("config.json", "{", "cannot be read")):
        (tmp_path / file).write_text(content)
        assert problem in refused(main, tmp_path)


def test_votes_are_read_by_cache_key(tmp_path):
    file = write_selection(tmp_path, ["a", "b", "c"]) / "scores.h5"
    a, b, _ = read(file).keys
    tables, swapped = read_tables(file, [a, b]), read_tables(file, ["another", b, a])
    assert {pair: table.shape for pair, table in tables.items()} == dict.fromkeys(product([0, 1], [0, 1]), (5, 4))
    assert all((swapped[2 - i, 2 - j] == tables[i, j]).all() for i, j in tables)


def test_a_selection_is_shown_whole(tmp_path, run):
    folder = write_selection(tmp_path / "choice", [str(run), "gone/b", "gone/c"])
    text = page(folder)
    for part in ("is ahead of", "is no model", "Against the labels", "0.93", 'alt="Traversal of c1"'):
        assert part in text
    assert text.count("<td tabindex=") == 9
    found = data_of(text)
    assert found["names"][1:] == ["gone,b", "gone,c"]
    assert found["pairs"]["0,1"]["score"] == np.max(found["pairs"]["0,1"]["votes"], 1).sum() / 40
    assert "It has changed since the selection" in text  # its key is not that of the ranking


def test_a_selection_without_votes_shows_its_picture(tmp_path):
    models = [{"rank": 1, "name": "a", "score": 0.5}, {"rank": 2, "name": "b", "score": 0.25}]
    (tmp_path / "ranking.json").write_text(json.dumps({"method": "udr-lasso", "models": models}))
    pictures.save(tmp_path / "similarity.png", Image.new("RGB", (8, 8)))
    text = page(tmp_path)
    assert "by udr-lasso" in text
    assert 'alt="Similarity of all models, by rank"' in text


def test_a_sweep_is_a_table_of_its_runs(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"seed={seed}", seed=seed)
    (tmp_path / "seed=0" / "report.html").touch()
    (tmp_path / ".sweep").mkdir()
    (tmp_path / ".sweep" / "sweep.json").write_text(json.dumps([{"name": "seed=2", "state": "failed"}]))
    text = page(tmp_path)
    assert re.findall(r"<td>(?:<a[^>]*>)?(seed=\d)", text) == ["seed=0", "seed=1", "seed=2"]
    assert text.count("data:image/") == 2
    for part in ('href="seed%3D0/report.html"', '<th scope="col">seed</th>', "<td>failed</td>"):
        assert part in text
