"""Evaluation from sampling to the command: what is sampled, what is written, what is refused."""

import json
import math
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import write_run

from crgan import PRESETS, checkpoint, data
from crgan.data import Dataset
from crgan.errors import InputError
from crgan.evaluate import main
from crgan.loading import LoadedModel
from crgan.metrics import METRICS, PROTOCOLS, Samples, applicable, evaluate, varying_factors

SMALL = dict(groups=60, group_size=20, scale_samples=500, points=600, dhsic_points=300)
FACTORS = {"one": 1, "shape": 3, "b": 6, "c": 8}  # of which the first never varies
NAMES, FACTOR_SIZES = tuple(FACTORS), tuple(FACTORS.values())


def paint(factors):
    """Images that are their factors, one a pixel."""
    return factors.float().view(-1, 1, 2, 2) / 8


GRID = Dataset("grid", (1, 2, 2), prod(FACTOR_SIZES), NAMES, FACTOR_SIZES, render=paint)
# The same without a grid: some cells hold many images, others none.
DRAW = torch.Generator().manual_seed(0)
CELLS = torch.randperm(len(GRID), generator=DRAW)[:100]
ROWS = GRID.factors(CELLS[torch.randint(100, (500,), generator=DRAW)])
TABLE = Dataset("table", (1, 2, 2), 500, NAMES, FACTOR_SIZES, read=lambda index: paint(ROWS[index]), table=ROWS)


def bare(**changes):
    """What `evaluate` asks of a data set, and no more."""
    asked = ("name", "factor_names", "factor_sizes", "num_images", "image_shape", "images", "factors")
    return SimpleNamespace(**{name: getattr(TABLE, name) for name in asked} | changes)


class Identity:
    """Codes that are the factors which vary; it counts the images that it encodes."""

    num_codes, image_shape = 3, (1, 2, 2)

    def __init__(self):
        self.batches = []

    def encode(self, images):
        self.batches.append(len(images))
        return images.flatten(1)[:, 1:]

    def generate(self, codes):
        return torch.nn.functional.pad(codes, (1, 0)).view(-1, 1, 2, 2)

    def sample(self, n, seed):
        return self.generate(torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)))


class Disc:
    """Reads angle and radius off the images of circular_dsprites, and draws a disc there."""

    num_codes, image_shape, prior = 2, (1, 64, 64), "uniform"

    axis = torch.arange(64, dtype=torch.float32) + 0.5 - 32

    def encode(self, images):
        mass = images[:, 0].sum((1, 2))
        x, y = (images[:, 0].sum(1) @ self.axis) / mass, (images[:, 0].sum(2) @ self.axis) / mass
        return torch.stack([torch.atan2(y, x) / math.pi, torch.hypot(x, y) / 13 - 1], 1)

    def generate(self, codes):
        angle, radius = codes[:, 0] * math.pi, (codes[:, 1] + 1) * 13
        x, y = (radius * angle.cos())[:, None, None], (radius * angle.sin())[:, None, None]
        return ((self.axis - x).square() + (self.axis[:, None] - y).square() < 30.5).float()[:, None]

    def sample(self, n, seed):
        assert seed < 2**32  # numpy's generators take no more
        return self.generate(torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def disc_and_blind():
    blind = Disc()
    blind.encode = lambda images: torch.full((len(images), 2), math.nan)
    return {"disc": Disc(), "blind": blind}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", [GRID, TABLE, bare(), bare(index=None)], ids=["grid", "table", "bare", "cells"])
def test_groups_share_one_factor_and_pairs_one_value_each(dataset, protocol):
    model, sizes = LoadedModel("identity", Identity(), "unhashed"), replace(PROTOCOLS[protocol], group_size=50)
    s = Samples(model, dataset, sizes, 0, 64, lambda *_: None)
    codes, factor = s.groups(30, 0)
    assert (factor.tolist() == [g % 3 for g in range(30)]) == (protocol == "paper")  # dlib draws it
    assert set(factor.tolist()) == {0, 1, 2}
    still = codes.var(1) == 0  # [30, 3]
    assert still.gather(1, factor[:, None]).all()
    assert still.sum() == 30
    pairs, factor = s.groups(30, 2, pairs=True)
    equal = (pairs[:, :, 0] == pairs[:, :, 1]).all(1)
    assert equal.gather(1, factor[:, None]).all()
    assert equal.sum() == 30
    assert (pairs[:, :, 0].var(1) > 0).all()  # the shared value differs from pair to pair


def test_scores_depend_on_the_seed_alone():
    def score(metrics, **settings):
        return evaluate(Identity(), GRID, metrics, **SMALL, **settings)["mig"]["score"]

    alone = score("mig")
    assert alone == score(("factor_vae", "dhsic", "mig"), batch_size=7)
    assert alone != score("mig", seed=1)
    torch.set_default_dtype(torch.float64)
    assert alone == score("mig")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_metrics_that_apply_of_codes_that_are_the_factors(protocol):
    model, dlib = Identity(), protocol == "dlib"
    sizes = SMALL | (dict(heldout_groups=30, test_points=300) if dlib else {})
    scores = evaluate(model, GRID, "all", protocol, **sizes)
    assert list(scores) == [n for n in METRICS if n != "reconstruction" and not n.startswith("dci_")]
    assert sum(model.batches) <= len(GRID)
    least = dict(factor_vae=1, beta_vae=0.99, mig=0.9, dci=0.9, modularity=0.95, irs=1, explicitness=0.8)
    assert {name: scores[name]["score"] for name, score in least.items() if scores[name]["score"] < score - 1e-9} == {}
    # `shape` is a category: an SVM on one number cannot set its middle value apart; b and c are numbers.
    assert (scores["sap"]["matrix"].max(0)[1:] == pytest.approx(1.0)) == (not dlib)


def test_models_that_only_encode_and_factors_that_are_fractions():
    model = Identity()
    encoder = SimpleNamespace(encode=model.encode)
    scores = evaluate(encoder, TABLE, ("factor_vae", "mig", "dci_lasso"), groups=60.0, scale_samples=500.0)
    assert scores["factor_vae"]["score"] == 1
    assert scores["factor_vae"]["votes"].sum() == 60
    assert max(model.batches) == 128  # by default, on a CPU
    assert "reconstruction" not in applicable(data.load("dsprites"), encoder)
    fractions = bare(factors=lambda index: TABLE.factors(index) + 0.5)
    assert evaluate(encoder, fractions, "mig")["mig"]["score"] == pytest.approx(scores["mig"]["score"])
    with pytest.raises(InputError, match="fractions"):
        evaluate(encoder, fractions, "factor_vae")


def test_reconstruction_of_images_that_a_model_can_rebuild():
    seeds, model, sizes = [], Disc(), dict(reconstructed=600, seed=2**31)
    model.generate, model.num_noise = lambda codes, seed: (seeds.append(seed), Disc().generate(codes))[1], 1
    found, again = (
        evaluate(model, data.load("circular_dsprites"), "reconstruction", batch_size=size, **sizes)["reconstruction"]
        for size in (64, 500)
    )
    assert found == again
    assert found["ssim"] > 0.9
    assert found["psnr"] > 25
    assert len(seeds) == 4
    assert len({*seeds}) == 2
    assert max(seeds) < 2**32


def test_a_factor_of_one_value_is_left_out_whatever_its_class():
    dataset = data.from_images(np.zeros((6, 16, 16)), np.c_[[0, 1, 2] * 2, [2] * 6, [1, 0, 0] * 2], ["a", "b", "c"])
    assert varying_factors(dataset) == [0, 2]
    one = data.from_images(np.zeros((6, 16, 16)), np.c_[[0, 1, 2] * 2, [2] * 6], ["a", "b"])
    assert {"mig", "sap"} < {*applicable(one)}
    assert not {"factor_vae", "dci", "dci_lasso"} & {*applicable(one)}


def test_arguments_that_make_no_sense_are_named():
    model, one_factor = Identity(), bare(factor_sizes=(6, 1, 1, 1))
    assert "mig" in applicable(one_factor)
    for arguments, settings, message in (
        ((model, "squares"), {}, "'squares'"),
        ((object(), GRID), {}, "encode"),
        ((model, GRID, "fid"), {}, "'fid'"),
        ((model, one_factor, "factor_vae"), {}, "'factor_vae'"),
        ((model, GRID, "mig"), {"protocol": "mine"}, "protocol 'mine'"),
        ((model, GRID, "mig"), {"group": 3}, "size 'group'; did you mean groups"),
        ((model, GRID, "mig"), {"batch_size": 0}, "batch_size is 0"),
        ((model, GRID, "mig"), {"points": 1.5}, "points is 1.5"),
        ((model, GRID, "mig"), {"points": math.inf}, "points is inf"),
        ((model, GRID, "mig"), {"test_points": -1}, "test_points is -1"),
        ((model, GRID, "mig"), {"seed": 2**32}, "seed is 4294967296"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(*arguments, **settings)


def run(*args):
    main([str(arg) for arg in args])


CFG = replace(PRESETS["quick"], width=4, hidden=8, data="circular_dsprites")


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run", CFG, (1, 64, 64))


def scores_in(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_scores_are_shown_kept_added_to_and_never_written_over(run_folder, capsys, refused):
    run(run_folder, "--metrics", "mig,dhsic", "factor_vae", "--seed", 3, "--device", "cpu")
    ((entry,),) = scores_in(run_folder).values()
    head = {"name": str(run_folder), "data": "circular_dsprites", "source": "rendered", "data_identity": "rendered"}
    head |= {"protocol": "paper", "seed": 3}
    assert entry == head | {"metrics": entry["metrics"]}
    assert list(entry["metrics"]) == ["mig", "dhsic", "factor_vae"]
    assert np.sum(entry["metrics"]["factor_vae"]["votes"]) == 500
    lines = [set(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any({"mig", "higher", f"{entry['metrics']['mig']['score']:.4f}"} <= line for line in lines)
    assert any({"dhsic", "lower"} <= line for line in lines)
    run(run_folder, "--metrics", "mig", "modularity", "--seed", 3)
    assert "mig from" in capsys.readouterr().out
    ((more,),) = scores_in(run_folder).values()
    assert more == head | {"metrics": entry["metrics"] | {"modularity": more["metrics"]["modularity"]}}
    run(run_folder, "--metrics", "mig", "--seed", 3, "--protocol", "dlib")
    (entries,) = scores_in(run_folder).values()
    assert [(e["protocol"], e["seed"]) for e in entries] == [("paper", 3), ("dlib", 3)]
    model = checkpoint.build_model(replace(CFG, seed=1), (1, 64, 64))
    checkpoint.save(run_folder, model, {}, {"step": CFG.steps + 1})  # the old scores are of an earlier checkpoint
    run(run_folder, "--metrics", "modularity")
    earlier, now = scores_in(run_folder).values()
    assert earlier == entries
    assert [list(e["metrics"]) for e in now] == [["modularity"]]
    for broken in ("[]", "null", "{", '{"data": "squares", "metrics": {}}', '{"a key": [{}]}'):
        (run_folder / "metrics.json").write_text(broken)
        assert "metrics.json" in refused(main, run_folder, "--metrics", "mig")
        assert (run_folder / "metrics.json").read_text() == broken


def test_images_that_have_changed_are_scored_anew(tmp_path):
    cfg = replace(CFG, data="folder", root=str(tmp_path / "pictures"))
    folder = write_run(tmp_path / "run", cfg, (3, 64, 64))
    (tmp_path / "pictures").mkdir()
    for shade in ("white", "black"):
        Image.effect_noise((64, 64), 50).save(tmp_path / "pictures" / f"{shade}.png")
        run(folder, "--metrics", "dhsic")
    (entries,) = scores_in(folder).values()
    assert len({entry["data_identity"] for entry in entries}) == 2


def test_models_of_any_kind_share_a_file_and_one_that_fails_does_not_cost_the_others(tmp_path, run_folder, refused):
    flags = ("--data", "circular_dsprites", "--metrics", "factor_vae", "--out", tmp_path / "scores")
    assert "values that are not finite" in refused(main, run_folder, "test_evaluate:disc_and_blind", *flags)
    (first,), (second,) = scores_in(tmp_path / "scores").values()
    assert (first["name"], second["name"]) == (str(run_folder), "disc")
    assert second["metrics"]["factor_vae"]["score"] > 0.95
    assert not (run_folder / "metrics.json").exists()


def test_mistakes_end_with_one_sentence_and_exit_code_2(run_folder, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "own", replace(CFG, data="images"), (1, 64, 64))  # of crgan.fit(data=from_images(...))
    for args, sentence in (
        ((), "no RUN is given"),
        (("nowhere",), "nowhere"),
        (("test_evaluate:Disc",), "give --out DIR"),
        (("test_evaluate:Disc", "--out", "scores"), "give --data NAME"),
        (("test_evaluate:Disc", "--out", "scores", "--data", "cats"), "'cats'"),
        (("run", "--data", "squares"), "takes images [1, 64, 64], those of squares are [3, 16, 16]"),
        (("run", "--data", "folder", "--root", ""), "got ''"),
        (("run", "--metrics", ","), "no metric is given"),
        (("own",), "give --data NAME"),
        (("run", "--metrics", "inception"), "'inception'"),
        (("run", "--device", "abacus"), "'abacus'"),
    ):
        assert sentence in refused(main, *args)
        assert not (run_folder / "metrics.json").exists()
