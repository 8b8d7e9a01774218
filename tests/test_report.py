"""The page of a run and of a selection: all that was written is on it, and what is no run is named."""

import base64
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from crgan import PRESETS, checkpoint
from crgan.loading import run_key
from crgan.pictures import save_picture
from crgan.report import main

ROWS = [{"step": 100, "d": 1.25, "g": 0.5}, {"step": 100, "factor_vae": 0.75}, {"step": 200, "d": 1.5, "g": 0.25}]
MODEL = {"rank": 1, "name": "<b>", "score": 0.91234, "standard_error": None, "cache_key": "f0"}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"width": 4, "data": "squares"}}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "traversal.png")
    return tmp_path


def page(folder):
    main([str(folder)])
    return (folder / "report.html").read_text()


def refused(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(folder)])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_run_is_shown_whole(run):
    text = page(run)
    images = [base64.b64decode(image) for image in re.findall(r"base64,([^\"]+)\"", text)]
    assert len(images) == 2  # the curves and the traversal
    assert images[1] == (run / "traversal.png").read_bytes()
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert "<td>width</td><td>4</td>" in text
    assert "protocol" not in text


def test_scores_of_a_run_say_whether_they_are_of_this_checkpoint(tmp_path, capsys):
    cfg = replace(PRESETS["quick"], width=4, hidden=8)
    model = checkpoint.build_model(cfg, (3, 16, 16))
    checkpoint.write_config(tmp_path, cfg, (3, 16, 16))
    checkpoint.save(tmp_path, model, {}, {"step": 1})
    (tmp_path / "metrics.jsonl").touch()
    scores = {"mig": {"score": 0.123456}, "dci": {"score": 0.5, "disentanglement": 0.5, "completeness": 0.25}}
    result = {"data": "squares", "protocol": "paper", "seed": 0, "metrics": scores}
    (tmp_path / "metrics.json").write_text(json.dumps({run_key(tmp_path): [result]}))
    text = page(tmp_path)
    assert (
        "squares, paper protocol, seed 0</h2><table><tr><td>metric</td><td>better</td><td>score</td></tr><tr><td>mig"
        in text
    )
    assert "<td>0.1235</td>" in text
    assert "<td>dci completeness</td><td>higher</td><td>0.2500</td>" in text
    torch.nn.init.zeros_(model.discriminator.real[0].weight)
    checkpoint.save(tmp_path, model, {}, {"step": 2})
    assert "squares, paper protocol, seed 0, of an earlier checkpoint</h2>" in page(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint")
    assert "squares, paper protocol, seed 0, of an earlier checkpoint</h2>" in page(tmp_path)


def test_a_run_that_was_killed_while_it_wrote_a_line_is_shown_without_it(run):
    whole = page(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "d"')
    assert page(run) == whole


def test_a_selection_is_shown_whole(tmp_path):
    result = {
        "method": "centrality",
        "models": [MODEL, {**MODEL, "rank": 2, "name": "c"}],
        "sentences": ["warning: two clusters"],
    }
    (tmp_path / "ranking.json").write_text(json.dumps(result))
    text = page(tmp_path)
    assert "method: centrality" in text
    assert "warning: two clusters" in text
    assert "<tr><td>rank</td><td>name</td><td>score</td></tr><tr><td>1</td><td>&lt;b&gt;</td><td>0.9123</td>" in text


def test_what_cannot_be_shown_is_named(run, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    assert "holds neither config.json nor ranking.json" in refused(empty, capsys)
    (run / "metrics.jsonl").write_text("{\n{\n")
    assert "are damaged, or not of this library" in refused(run, capsys)
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl: No such file or directory" in refused(run, capsys)
    assert not (run / "report.html").exists()
