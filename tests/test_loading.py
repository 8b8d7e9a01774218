"""Which models select, rank and evaluate open, and how they are known again."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from linear_models import Linear, known_pool, rotation
from test_select import fails
from torch import nn

from crgan import InputError, checkpoint, cross_scores, select
from crgan.config import PRESETS
from crgan.loading import LoadedModel, open_models

KNOWN = known_pool()


class Verb(nn.Module):
    """One method of a model as a module of its own, which torch.export takes."""

    def __init__(self, model, verb):
        super().__init__()
        self.model, self.verb = model, verb

    def forward(self, *inputs):
        return getattr(self.model, self.verb)(*inputs)


def export(model, folder, **inputs):
    """Write generate.pt2 and encode.pt2 of a model, given example inputs of each."""
    folder.mkdir(exist_ok=True)
    n = torch.export.Dim("n")
    for verb, given in inputs.items():
        program = torch.export.export(Verb(model, verb), given, dynamic_shapes=(({0: n},) * len(given),))
        torch.export.save(program, folder / f"{verb}.pt2", extra_files={"prior": "uniform"})


class Noisy(nn.Module):
    def __init__(self, num_noise: int):
        super().__init__()
        self.mix = nn.Parameter(rotation(4 + num_noise, 5))

    def generate(self, codes, *noise):
        return (torch.cat([codes, *noise], 1) @ self.mix.T)[:, None, None]

    def encode(self, images):
        return (images[:, 0, 0] @ self.mix)[:, :4]


@pytest.mark.parametrize("num_noise", [0, 2])
def test_exported_programs_give_the_scores_of_their_models(tmp_path, num_noise):
    noise = (torch.zeros(3, num_noise),) if num_noise else ()
    for seed in range(2):
        model = Noisy(num_noise)
        with torch.no_grad():
            model.mix[:] = rotation(4 + num_noise, seed)
        images = torch.zeros(3, 1, 1, 4 + num_noise)
        export(model, tmp_path / str(seed), generate=(torch.zeros(3, 4), *noise), encode=(images,))
    found = open_models([str(tmp_path / "0"), tmp_path / "1"])
    for loaded in found:
        assert (loaded.num_codes, loaded.num_noise, loaded.prior) == (4, num_noise, "uniform")
        assert loaded.image_shape == (1, 1, 4 + num_noise)
        codes = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            images = loaded.generate(codes, 3)
            torch.testing.assert_close(loaded.encode(images), codes, atol=1e-5, rtol=0)
            assert torch.equal(images, loaded.generate(codes, 3))
            assert loaded.sample(9, 1).shape == (9, 1, 1, 4 + num_noise)
            if num_noise:
                assert not torch.equal(images, loaded.generate(codes, 4))
    B = cross_scores([loaded.model for loaded in found], groups=20, group_size=10, scale_samples=300)
    assert (B.diagonal() == 1).all()


def test_exports_that_cannot_serve_are_refused(tmp_path):
    folder, model = tmp_path / "model", Noisy(0)
    export(model, folder, generate=(torch.zeros(3, 4),))
    with pytest.raises(InputError, match=r"has no encode\.pt2"):
        open_models([folder])
    (folder / "encode.pt2").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"torch\.export\.load"):
        open_models([folder])
    with pytest.raises(InputError, match=r"encode\.pt2 is no model"):
        open_models([folder / "encode.pt2"])


def test_a_trained_model_can_be_exported(tmp_path):
    model = checkpoint.build_model(replace(PRESETS["quick"], width=4, hidden=8), (3, 16, 16)).eval()
    images = model.generate(torch.rand(4, 4) * 2 - 1)
    export(model, tmp_path, generate=(torch.zeros(4, 4),), encode=(images,))
    (found,) = open_models([tmp_path])
    codes = torch.rand(7, 4) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(found.generate(codes, 0), model.generate(codes))
        torch.testing.assert_close(found.encode(images), model.encode(images))


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory):
    """Two untrained runs on circular dSprites in one folder, as a sweep leaves them."""
    sweep = tmp_path_factory.mktemp("sweep")
    (sweep / ".sweep").mkdir()
    for seed in range(2):
        folder = sweep / f"seed={seed}"
        folder.mkdir()
        cfg = replace(PRESETS["circular"], seed=seed, width=4, hidden=16)
        checkpoint.write_config(folder, cfg, (1, 64, 64))
        checkpoint.save(folder, checkpoint.build_model(cfg, (1, 64, 64)), {}, {"step": 0})
    return [str(sweep / "seed=0"), str(sweep / "seed=1")]


def test_run_folders_with_labels(run_folders, tmp_path, capsys):
    out = str(tmp_path / "out")
    sizes = ["--groups", "10", "--group-size", "10", "--scale-samples", "100"]
    failed = tmp_path / "failed"  # before its first checkpoint
    failed.mkdir()
    checkpoint.write_config(failed, *checkpoint.read_config(Path(run_folders[0])))
    fails(capsys, str(failed), "--out", out, match="hold no model")
    fails(capsys, *run_folders, "--out", run_folders[0], match="is a run folder")
    select.main([str(Path(run_folders[0]).parent), str(failed), "--out", out, *sizes, "--with-labels"])
    error = capsys.readouterr().err
    assert f"{run_folders[0]} has trained 0 of its 288,000 steps" in error
    assert f"{failed} has no checkpoint" in error
    result = json.loads(Path(out, "ranking.json").read_text())
    assert {row["name"] for row in result["models"]} == set(run_folders)
    assert all(0.5 <= row["factor_vae"] <= 1 for row in result["models"])
    assert result["rank_correlation"] is None  # two models have the same score, to the bit
    select.main([*run_folders, "--out", out, *sizes])
    assert "rank correlation" in capsys.readouterr().out
    again = json.loads(Path(out, "ranking.json").read_text())
    assert again | {"encodes": 0, "seconds": 0} == result | {"encodes": 0, "seconds": 0}  # the scores stay


def test_runs_are_known_by_their_weights(run_folders, tmp_path):
    a, b = open_models(run_folders)
    assert a.cache_key != b.cache_key
    assert a.cache_key == open_models(run_folders[:1])[0].cache_key
    cfg, shape = checkpoint.read_config(Path(run_folders[0]))
    twin = tmp_path / "twin"  # of other settings, but the same weights
    shutil.copytree(run_folders[0], twin)
    checkpoint.write_config(twin, replace(cfg, cr_weight=0.0), shape)
    with pytest.raises(InputError, match="are the same model"):
        open_models([run_folders[0], twin])


def test_other_models_are_known_by_their_fingerprint_or_by_what_they_do():
    def key(model):
        return LoadedModel("mine", model).cache_key

    first, same, other = Linear(torch.eye(2)), Linear(torch.eye(2)), Linear(torch.eye(2) * 0.5)
    assert key(first) == key(same) != key(other)
    assert len({key(model) for model in KNOWN.values()}) == len(KNOWN)
    first.fingerprint = "mine-1"
    assert key(first) == "mine-1"
    first.fingerprint = "a/b"
    with pytest.raises(InputError, match="'a/b'"):
        key(first)
    first.prior = "beta"
    with pytest.raises(InputError, match="prior 'beta'"):
        LoadedModel("m", first)


LABELLED = """
import torch
from torch import nn
from linear_models import Linear

class Pixels(nn.Module):
    image_shape, num_codes = (3, 16, 16), 4

    def __init__(self, seed, broken=False):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 768, generator=draw))  # asks for gradients, as trained weights do
        self.broken = broken
    def generate(self, codes):
        return torch.sigmoid(codes @ self.weight).view(-1, 3, 16, 16)
    def sample(self, n, seed):
        return self.generate(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)))
    def encode(self, images):
        codes = images.flatten(1) @ self.weight.T
        return torch.where(codes > codes.median(), codes, torch.nan) if self.broken else codes

def models():
    return {"a": Pixels(1), "b": Pixels(2), 3: Pixels(3), "broken": Pixels(4, True)}

def takes(argument):
    return Pixels(1)

class Pair(Pixels):
    def encode(self, images):
        return super().encode(images), None

class Numpy(Pixels):
    def encode(self, images):
        return super().encode(images).detach().numpy()

def divides():
    return 1 / 0

def pair():
    model = Pair(1)
    model.num_codes = None
    return model

def arrays():
    return Numpy(1)

def twice():
    return {"a": Linear(torch.eye(3))}
"""


def test_models_of_the_users_own_with_labels(tmp_path, monkeypatch, capsys):
    (tmp_path / "labelled.py").write_text(LABELLED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("labelled", None)
    sizes = ["--groups", "10", "--group-size", "10", "--scale-samples", "100"]
    select.main(["labelled:models", "--out", "out", *sizes, "--with-labels", "--data", "squares"])
    rows = {row["name"]: row for row in json.loads(Path("out/ranking.json").read_text())["models"]}
    assert rows.keys() == {"a", "b", "3", "broken"}
    assert rows.pop("broken")["factor_vae"] is None
    assert all(0.25 <= row["factor_vae"] <= 1 for row in rows.values())
    for runs, value in (
        (["labelled:takes"], "labelled:takes gives no models (TypeError"),
        (["labelled:LABEL"], "labelled:LABEL gives no models (AttributeError"),
        (["labelled:divides"], "labelled:divides gives no models (ZeroDivisionError"),
        ([":models"], ":models gives no models"),
        (["labelled:pair"], "labelled:pair.encode gave a tuple"),
        (["labelled:models", "labelled:arrays"], "labelled:arrays.encode gave a ndarray"),
        (["labelled:models", "labelled:twice"], "two models are called a"),
    ):
        fails(capsys, *runs, "--out", "new", match=value)
