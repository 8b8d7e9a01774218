"""Evaluation from sampling to the command: what is sampled, what is written, what is refused."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import plain_metrics as plain
import pytest
import torch
from grid_data import Encoder, Grid, Table

from crgan import PRESETS, checkpoint, cli, data
from crgan.errors import InputError
from crgan.evaluate import evaluate as command
from crgan.loading import LoadedModel
from crgan.metrics import METRICS, PROTOCOLS, applicable, evaluate
from crgan.metrics.sampling import Samples

SMALL = dict(groups=60, heldout_groups=30, pair_groups=60, heldout_pair_groups=30, group_size=20, scale_samples=500)
SMALL |= dict(points=600, test_points=300, dci="lasso", dhsic_points=300)
EYE = np.eye(3).tolist()


class Disc:
    """Reads angle and radius off the images of circular_dsprites, and draws a disc there."""

    num_codes, image_shape, prior = 2, (1, 64, 64), "uniform"

    def encode(self, images):
        axis = torch.arange(64) + 0.5 - 32
        mass = images[:, 0].sum((1, 2))
        x, y = (images[:, 0].sum(1) @ axis) / mass, (images[:, 0].sum(2) @ axis) / mass
        return torch.stack([torch.atan2(y, x) / math.pi, torch.hypot(x, y) / 13 - 1], 1)

    def generate(self, codes):
        angle, radius = codes[:, 0] * math.pi, (codes[:, 1] + 1) * 13
        axis = torch.arange(64) + 0.5 - 32
        x, y = (radius * angle.cos())[:, None, None], (radius * angle.sin())[:, None, None]
        return ((axis - x).square() + (axis[:, None] - y).square() < 30.5).float()[:, None]  # the data's own disc

    def sample(self, n, seed):
        return self.generate(torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


class Blind(Disc):
    def encode(self, images):
        return torch.full((len(images), 2), math.nan)


def disc():
    return Disc()


def disc_and_blind():
    return {"disc": Disc(), "blind": Blind()}


def samples(dataset, protocol="paper", **sizes):
    model = LoadedModel("identity", Encoder(EYE), "unhashed")
    return Samples(model, dataset, replace(PROTOCOLS[protocol], **sizes), 0, 64, lambda *_: None)


# ---------------------------------------------------------------- sampling


def test_the_sizes_of_the_protocols():
    paper, dlib = PROTOCOLS["paper"], PROTOCOLS["dlib"]
    assert (paper.groups, paper.group_size, paper.scale_samples, paper.points) == (500, 100, 73_728, 73_728)
    assert (paper.heldout_groups, paper.test_points, paper.min_std, paper.ddof) == (0, 0, 0, 0)
    assert (dlib.groups, dlib.heldout_groups, dlib.group_size, dlib.scale_samples) == (10_000, 5_000, 64, 10_000)
    assert (dlib.pair_groups, dlib.heldout_pair_groups) == (10_000, 5_000)
    assert (dlib.points, dlib.test_points, dlib.min_std, dlib.ddof) == (10_000, 5_000, 0.05, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dataset", [Grid(), Table()], ids=["grid", "table"])
def test_groups_share_one_factor_and_pairs_one_value_each(dataset, protocol):
    s = samples(dataset, protocol, group_size=50)
    codes, factor = s.groups(30, 0)
    assert codes.shape == (30, 50, 3)
    assert (factor.tolist() == [g % 3 for g in range(30)]) == (protocol == "paper")  # dlib draws it
    assert set(factor.tolist()) == {0, 1, 2}
    still = codes.var(1) == 0  # [30, 3]
    assert still.gather(1, factor[:, None]).all()
    assert still.sum() == 30
    pairs, factor = s.groups(30, 2, pairs=True)
    assert pairs.shape == (30, 50, 2, 3)
    equal = pairs[:, :, 0] == pairs[:, :, 1]
    assert equal.all(1).gather(1, factor[:, None]).all()
    assert equal.all(1).sum() == 30
    assert (pairs[:, :, 0].var(1) > 0).all()  # the shared value differs from pair to pair


def test_scores_depend_on_the_seed_alone():
    def score(metrics, seed=0, **settings):
        return evaluate(Encoder(EYE), Grid(), metrics, seed=seed, **SMALL, **settings)["mig"]["score"]

    alone = score("mig")
    assert alone == score(("factor_vae", "dhsic", "mig"), batch_size=7)
    assert alone != score(("mig",), seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        assert alone == score("mig")
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_metrics_that_apply_of_codes_that_are_the_factors(protocol):
    grid = Grid()
    scores = evaluate(Encoder(EYE), grid, ("all",), protocol, **SMALL)
    assert list(scores) == [n for n in METRICS if n not in ("inception", "reconstruction") and not n.startswith("dci_")]
    assert grid.made <= grid.num_images
    for name, least in dict(factor_vae=1.0, beta_vae=0.99, mig=0.9, dci=0.9, modularity=0.95, irs=1.0).items():
        assert scores[name]["score"] >= least - 1e-9, name
    # The penalty of the regression holds codes of width 1/8 back, more so where they are not standardised.
    drawn = samples(Grid(), protocol, **SMALL)
    fit, test = ([part.double().numpy() for part in pair] if pair else None for pair in (drawn.fit, drawn.test))
    expected = plain.explicitness(*fit, test, PROTOCOLS[protocol].standardise)
    assert scores["explicitness"]["score"] == pytest.approx(expected, abs=1e-3)
    # `shape` is a category: an SVM on one number cannot set its middle value apart; b and c are numbers.
    gaps = np.sort(scores["sap"]["matrix"], 0)
    assert (gaps[-1, 1:] == pytest.approx(1.0)) == (protocol == "paper")


def test_models_that_only_encode_and_data_of_any_class():
    class Encode:
        def encode(self, images):
            return Encoder(EYE).encode(images)

    class Data:
        factor_names, factor_sizes, num_images, image_shape = ("shape", "b", "c"), (3, 6, 8), 500, (1, 2, 2)
        table = Table()

        def images(self, index):
            return self.table.images(index)

        def factors(self, index):
            return self.table.factors(index)[:, 1:]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = evaluate(Encode(), Data(), ("factor_vae", "mig", "dci_lasso"), groups=60.0, scale_samples=500.0)
    assert scores["factor_vae"]["score"] == 1
    assert scores["factor_vae"]["votes"].sum() == 60
    dsprites = data.load("dsprites")
    assert not {"inception", "reconstruction"} & set(applicable(dsprites, Encode()))
    with pytest.raises(InputError, match="'reconstruction' does not apply"):
        evaluate(Encode(), dsprites, "reconstruction")

    class Fractions(Data):
        def factors(self, index):
            return super().factors(index) + 0.5

    with pytest.raises(InputError, match="fractions"):
        evaluate(Encode(), Fractions(), "factor_vae")


def test_generated_images_are_drawn_alike_in_any_batches_and_held_to_their_range(monkeypatch):
    seen, seeds = [], []

    def classify(images):
        seen.append(images)
        return torch.full((len(images), 3), 1 / 3)

    class Tanh(Disc):
        def sample(self, n, seed):
            seeds.append(seed)
            return super().sample(n, seed)

        def generate(self, codes):
            return (super().generate(codes) * 2 - 1).double()

    monkeypatch.setattr("crgan.metrics.evaluation.shape_classifier", lambda device: (classify, 1.0))
    drawn = []
    for batch_size in (64, 500):
        seen.clear()
        evaluate(Tanh(), data.load("dsprites"), ("inception",), seed=2**31, generated=700, batch_size=batch_size)
        drawn.append(torch.cat(seen))
        assert drawn[-1].dtype == torch.float32
        assert drawn[-1].aminmax() == (0, 1)
    assert torch.equal(*drawn)
    assert len(set(seeds)) == 2
    assert max(seeds) < 2**32  # numpy's generators take no more

    class Broken(Disc):
        def generate(self, codes):
            return super().generate(codes) * math.nan

    with pytest.raises(InputError, match="a sample holds values that are not finite"):
        evaluate(Broken(), data.load("dsprites"), ("inception",), generated=10)


def test_reconstruction_of_images_that_a_model_can_rebuild():
    found = evaluate(Disc(), data.load("circular_dsprites"), "reconstruction", reconstructed=100)["reconstruction"]
    assert found["ssim"] > 0.9
    assert found["psnr"] > 25


def test_arguments_that_make_no_sense_are_named():
    class Nothing:
        image_shape, num_codes = (1, 2, 2), 3

    one_factor = Grid()
    one_factor.factor_sizes = (6, 1, 1)
    assert "mig" in applicable(one_factor)
    for model, dataset, metrics, settings, message in (
        (Encoder(EYE), "squares", "mig", {}, r"'squares'.*crgan\.data\.load"),
        (Nothing(), Grid(), "mig", {}, r"has no \w+\(\)"),
        (Encoder(EYE), Grid(), "fid", {}, "unknown metric 'fid'"),
        (Encoder(EYE), one_factor, "factor_vae", {}, "'factor_vae' does not apply"),
        (Encoder(EYE), Grid(), "mig", {"protocol": "mine"}, "unknown protocol 'mine'"),
        (Encoder(EYE), Grid(), "mig", {"group": 3}, "unknown size 'group'"),
        (Encoder(EYE), Grid(), "mig", {"batch_size": -1}, "batch_size is -1.*at least 1"),
        (Encoder(EYE), Grid(), "mig", {"points": 1.5}, "points is 1.5"),
        (Encoder(EYE), Grid(), "mig", {"points": math.inf}, "points is inf"),
        (Encoder(EYE), Grid(), "mig", {"test_points": -1}, "test_points is -1.*at least 0"),
        (Encoder(EYE), Grid(), "mig", {"seed": 2**32}, "seed is 4294967296"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(model, dataset, metrics, **settings)


# ---------------------------------------------------------------- the command


def run(*args):
    cli.run("crgan.test", command, [str(arg) for arg in args])


@pytest.fixture
def run_folder(tmp_path):
    """A run of the first step's weights, as training leaves it."""
    cfg = replace(PRESETS["quick"], width=4, hidden=8, data="circular_dsprites")
    folder = tmp_path / "run"
    folder.mkdir()
    model = checkpoint.build_model(cfg, (1, 64, 64))
    checkpoint.write_config(folder, cfg, (1, 64, 64))
    checkpoint.save(folder, model, {}, {"step": 1})
    return folder


def scores_in(folder):
    return json.loads((folder / "metrics.json").read_text())


def refused(capsys, *args):
    """The one sentence on stderr with which the command refuses its arguments."""
    with pytest.raises(SystemExit) as exit:
        run(*args)
    assert exit.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    return error


def test_a_run_is_scored_on_its_own_data_and_keeps_its_scores(run_folder, capsys):
    run(run_folder, "--metrics", "mig,dhsic", "factor_vae", "--seed", 3, "--device", "cpu")
    ((entry,),) = scores_in(run_folder).values()
    head = {"name": str(run_folder), "data": "circular_dsprites", "protocol": "paper", "seed": 3}
    assert head.items() <= entry.items()
    assert list(entry["metrics"]) == ["mig", "dhsic", "factor_vae"]
    assert np.sum(entry["metrics"]["factor_vae"]["votes"]) == 500
    lines = capsys.readouterr().out.splitlines()
    assert any({"mig", "higher", f"{entry['metrics']['mig']['score']:.4f}"} <= set(line.split()) for line in lines)
    assert any({"dhsic", "lower"} <= set(line.split()) for line in lines)
    assert [p.name for p in run_folder.iterdir() if p.name.startswith(".")] == []  # no temporary file left


def test_scores_are_added_to_and_never_written_over(run_folder, capsys, monkeypatch):
    run(run_folder, "--metrics", "mig")
    (first,) = scores_in(run_folder).values()
    run(run_folder, "--metrics", "mig", "modularity")
    assert "mig from" in capsys.readouterr().out
    ((entry,),) = scores_in(run_folder).values()
    assert list(entry["metrics"]) == ["mig", "modularity"]
    assert entry["metrics"]["mig"] == first[0]["metrics"]["mig"]
    run(run_folder, "--metrics", "mig", "--protocol", "dlib")
    run(run_folder, "--metrics", "mig", "--seed", 1)
    (entries,) = scores_in(run_folder).values()
    assert [(e["protocol"], e["seed"]) for e in entries] == [("paper", 0), ("dlib", 0), ("paper", 1)]
    assert entries[0] == entry
    model = checkpoint.build_model(replace(PRESETS["quick"], width=4, hidden=8, seed=1), (1, 64, 64))
    checkpoint.save(run_folder, model, {}, {"step": 2})  # trained on: the old scores are of an earlier checkpoint
    run(run_folder, "--metrics", "modularity")
    earlier, now = scores_in(run_folder).values()
    assert earlier == entries
    assert [list(e["metrics"]) for e in now] == [["modularity"]]
    for broken in ("[]", "null", "{", '{"data": "squares", "metrics": {}}'):
        (run_folder / "metrics.json").write_text(broken)
        assert "metrics.json is damaged, or of another version" in refused(capsys, run_folder, "--metrics", "mig")
        assert (run_folder / "metrics.json").read_text() == broken


def test_models_of_any_kind_share_one_file(tmp_path, run_folder, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    known = "test_evaluate:disc"
    flags = ("--data", "circular_dsprites", "--metrics", "factor_vae", "--out", tmp_path / "scores")
    run(run_folder, known, *flags)
    (first,), (second,) = scores_in(tmp_path / "scores").values()
    assert (first["name"], second["name"]) == (str(run_folder), known)
    assert second["metrics"]["factor_vae"]["score"] > 0.95
    assert not (run_folder / "metrics.json").exists()


def test_a_model_that_cannot_be_scored_does_not_cost_the_scores_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    flags = ("--data", "circular_dsprites", "--metrics", "factor_vae", "--out", tmp_path)
    assert "values that are not finite" in refused(capsys, "test_evaluate:disc_and_blind", *flags)
    ((entry,),) = scores_in(tmp_path).values()
    assert entry["name"] == "disc"
    assert entry["metrics"]["factor_vae"]["score"] > 0.95


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "no RUN is given"),
        (("nowhere",), "there is no nowhere"),
        (("test_evaluate:disc",), "is no folder to write metrics.json into; give --out DIR"),
        (("test_evaluate:disc", "--out", "scores"), "give --data NAME"),
        (("test_evaluate:disc", "--out", "scores", "--data", "cats"), "unknown data set 'cats'"),
        (("RUN", "--data", "squares"), "takes images [1, 64, 64], those of squares are [3, 16, 16]"),
        (("RUN", "--metrics", "fid"), "unknown metric 'fid'"),
        (("RUN", "--metrics", ","), "--metrics names none"),
        (("RUN", "--seed", "-1"), "seed is -1"),
        (("RUN", "--metrics", "inception"), "'inception' does not apply to the data set 'circular_dsprites'"),
        (("RUN", "--device", "abacus"), "no device 'abacus'"),
        (("RUN", "--batch-size", "0"), "batch_size is 0"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(args, sentence, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, *(run_folder if arg == "RUN" else arg for arg in args))
    assert not (run_folder / "metrics.json").exists()
