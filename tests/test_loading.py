"""Which models select, rank and evaluate open, and how they are known again."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from linear_models import Linear, Rotation, known_pool
from run_folders import CFG, write_run

from crgan import PRESETS, InputError, checkpoint, cross_scores, export, load, select
from crgan.__main__ import main
from crgan.loading import LoadedModel, open_models
from crgan.pictures import traversal_picture

SIZES = ["--groups", "10", "--group-size", "10", "--scale-samples", "100"]


@pytest.mark.parametrize("num_noise", [0, 2])
def test_an_exported_model_is_the_model(tmp_path, num_noise):
    """A run by the command, and a model of the user's own from Python; with and without noise."""
    run = write_run(tmp_path / "run", replace(CFG, num_noise=num_noise, spectral_norm="all"))
    main(["export", str(run), str(tmp_path / "a")])
    for name, seed in (("b", 0), ("c", 1)):
        export(Rotation(seed, 4, num_noise), tmp_path / name)
    models = load(run), Rotation(0, 4, num_noise).eval()
    found = open_models([str(tmp_path / name) for name in "abc"])
    for model, opened in zip(models, found):
        codes, noise = torch.rand(5, 4), torch.rand(5, num_noise)
        images = model.generate(codes, noise=noise)
        assert (opened.num_codes, opened.num_noise, opened.prior) == (4, num_noise, "uniform")
        assert opened.image_shape == images.shape[1:]
        assert torch.equal(opened.encode(images), model.encode(images))
        program = torch.export.load(Path(opened.name) / "generate.pt2").module()
        assert torch.equal(program(*[codes, noise][: 1 + (num_noise > 0)]), images)
        assert torch.equal(opened.generate(codes, 3), opened.generate(codes, 3))
        assert torch.equal(opened.generate(codes, 3), opened.generate(codes, 4)) == (num_noise == 0)
        assert opened.sample(9, 1).shape == (9, *opened.image_shape)
    pictures = [traversal_picture(model).tobytes() for model in (models[0], found[0].model)]
    assert pictures[0] == pictures[1]
    assert "[64, 3, 16, 16]" in (tmp_path / "a" / "README.md").read_text()
    B = cross_scores([opened.model for opened in found[1:]], groups=20, group_size=10, scale_samples=300)
    assert (B.diagonal() == 1).all()


def test_what_cannot_be_exported_or_opened_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    for model, folder, message in ((run, run, "run folder"), (object(), tmp_path, "object")):
        with pytest.raises(InputError, match=message):
            export(model, folder)
    for name in ("generate", "encode"):
        (tmp_path / f"{name}.pt2").write_bytes(b"damaged")
    for run, value in ((tmp_path, r"torch\.export\.load"), (tmp_path / "encode.pt2", r"encode\.pt2 is no model")):
        with pytest.raises(InputError, match=value):
            open_models([run])
    (tmp_path / "encode.pt2").unlink()
    with pytest.raises(InputError, match=r"has no encode\.pt2"):
        open_models([tmp_path])


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory):
    """Two untrained runs on circular dSprites in one folder, as a sweep leaves them."""
    sweep = tmp_path_factory.mktemp("sweep")
    (sweep / ".sweep").mkdir()
    cfg = replace(PRESETS["circular_dsprites"], width=4, hidden=16)
    return [str(write_run(sweep / f"seed={seed}", cfg, (1, 64, 64), seed, step=0)) for seed in range(2)]


def test_run_folders_with_labels(run_folders, tmp_path, capsys, refused):
    out = str(tmp_path / "out")
    (failed := tmp_path / "failed").mkdir()  # before its first checkpoint
    checkpoint.write_config(failed, *checkpoint.read_config(Path(run_folders[0])))
    assert "hold no model" in refused(select.main, failed, "--out", out)
    assert "is a run folder" in refused(select.main, *run_folders, "--out", run_folders[0])
    select.main([str(Path(run_folders[0]).parent), str(failed), "--out", out, *SIZES, "--with-labels"])
    error = capsys.readouterr().err
    assert f"{run_folders[0]} has trained 0 of its 288,000 steps" in error
    assert f"{failed} has no checkpoint" in error
    result = json.loads(Path(out, "ranking.json").read_text())
    assert {row["name"] for row in result["models"]} == set(run_folders)
    assert all(0.5 <= row["factor_vae"] <= 1 for row in result["models"])
    assert result["rank_correlation"] is None  # two models have the same score, to the bit
    select.main([*run_folders, "--out", out, *SIZES])
    assert "rank correlation" in capsys.readouterr().out
    again = json.loads(Path(out, "ranking.json").read_text())
    assert again | {"encodes": 0, "seconds": 0} == result | {"encodes": 0, "seconds": 0}  # the scores stay


def test_runs_are_known_by_their_weights(run_folders, tmp_path):
    a, b = open_models(run_folders)
    assert open_models(run_folders[:1])[0].cache_key == a.cache_key != b.cache_key
    cfg, shape = checkpoint.read_config(Path(run_folders[0]))
    twin = tmp_path / "twin"  # of other settings, but the same weights
    shutil.copytree(run_folders[0], twin)
    checkpoint.write_config(twin, replace(cfg, cr_weight=0.0), shape)
    with pytest.raises(InputError, match="behave the same"):
        open_models([run_folders[0], twin])


def test_other_models_are_known_by_their_fingerprint_or_by_what_they_do():
    def key(model):
        return LoadedModel("mine", model).cache_key

    first, same, other = Linear(torch.eye(2)), Linear(torch.eye(2)), Linear(torch.eye(2) * 0.5)
    assert key(first) == key(same) != key(other)
    assert len({key(model) for model in known_pool().values()}) == len(known_pool())
    first.fingerprint = "mine-1"
    assert key(first) == "mine-1"
    first.fingerprint = "a/b"
    with pytest.raises(InputError, match="'a/b'"):
        key(first)
    first.prior = "beta"
    with pytest.raises(InputError, match="prior 'beta'"):
        LoadedModel("m", first)


def test_models_of_the_users_own_with_labels(tmp_path, monkeypatch, refused):
    a, b, third, broken = (checkpoint.build_model(replace(CFG, seed=seed), (3, 16, 16)) for seed in range(4))
    broken.encode = lambda images: a.encode(images).masked_fill(images[:, :1, 0, 0] > images[:, :1].mean(), torch.nan)
    module = SimpleNamespace(
        models=lambda: {"a": a, "b": b, 3: third, "broken": broken},
        pair=lambda: SimpleNamespace(sample=a.sample, generate=a.generate, encode=lambda x: (a.encode(x), None)),
        divides=lambda: 1 / 0,
        twice=lambda: {"a": Linear(torch.eye(3))},
    )
    monkeypatch.setitem(sys.modules, "labelled", module)
    monkeypatch.chdir(tmp_path)
    select.main(["labelled:models", "--out", "out", *SIZES, "--with-labels", "--data", "squares"])
    rows = {row["name"]: row for row in json.loads(Path("out/ranking.json").read_text())["models"]}
    assert rows.keys() == {"a", "b", "3", "broken"}
    assert rows.pop("broken")["factor_vae"] is None
    assert all(0.25 <= row["factor_vae"] <= 1 for row in rows.values())
    for runs, value in (
        (["labelled:divides"], "labelled:divides gives no models (ZeroDivisionError"),
        (["labelled:pair"], "labelled:pair.encode gave a tuple"),
        (["labelled:models", "labelled:twice"], "two models are called a"),
    ):
        assert value in refused(select.main, *runs, "--out", "new")
