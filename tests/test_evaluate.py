"""Evaluation from sampling to the command: what is sampled, what is written, what is refused."""

import json
import math
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
from crgan.metrics import METRICS, PROTOCOLS, applicable, evaluate, sap
from crgan.metrics.protocol import Samples

SMALL = dict(
    groups=60,
    heldout_groups=30,
    pair_groups=60,
    heldout_pair_groups=30,
    group_size=20,
    scale_samples=500,
    points=600,
    test_points=300,
    dci=("lasso",),
    dhsic_points=300,
    reconstructed=100,
)
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


def disc():
    return Disc()


class Blind(Disc):
    def encode(self, images):
        return torch.full((len(images), 2), math.nan)


def disc_and_blind():
    return {"disc": Disc(), "blind": Blind()}


def samples(dataset, **sizes):
    model = LoadedModel("identity", Encoder(EYE), "unhashed")
    return Samples(model, dataset, replace(PROTOCOLS["paper"], **sizes), 0, 64, lambda *_: None)


# ---------------------------------------------------------------- sampling


def test_the_sizes_of_the_protocols():
    paper, dlib = PROTOCOLS["paper"], PROTOCOLS["dlib"]
    assert (paper.groups, paper.group_size, paper.scale_samples, paper.points) == (500, 100, 73_728, 73_728)
    assert (paper.heldout_groups, paper.test_points, paper.min_std, paper.ddof) == (0, 0, 0, 0)
    assert (dlib.groups, dlib.heldout_groups, dlib.group_size, dlib.scale_samples) == (10_000, 5_000, 64, 10_000)
    assert (dlib.pair_groups, dlib.heldout_pair_groups) == (10_000, 5_000)
    assert (dlib.points, dlib.test_points, dlib.min_std, dlib.ddof) == (10_000, 5_000, 0.05, 1)


@pytest.mark.parametrize("dataset", [Grid(), Table()], ids=["grid", "table"])
def test_groups_share_one_factor_and_pairs_one_value_each(dataset):
    s = samples(dataset, group_size=50)
    codes, factor = s.groups(30, 0)
    assert codes.shape == (30, 50, 3)
    assert factor.tolist() == [g % 3 for g in range(30)]
    still = codes.var(1) == 0  # [30, 3]
    assert still.gather(1, factor[:, None]).all()
    assert still.sum() == 30
    pairs, factor = s.groups(30, 2, pairs=True)
    assert pairs.shape == (30, 50, 2, 3)
    equal = pairs[:, :, 0] == pairs[:, :, 1]
    assert equal.all(1).gather(1, factor[:, None]).all()
    assert equal.all(1).sum() == 30
    assert (pairs[:, :, 0].var(1) > 0).all()  # the shared value differs from pair to pair


def test_groups_are_uniform_over_the_other_factors():
    codes, factor = samples(Grid(), group_size=400).groups(90, 0)
    others = (codes[factor == 1][..., 0] * 8).long()  # the 3 values of another factor, 12,000 images
    share = others.flatten().bincount(minlength=3) / others.numel()
    assert (share - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / others.numel())


def test_ready_made_groups_are_used_where_the_data_has_them():
    grid, ready = Grid(), Grid()
    index = torch.arange(144).view(3, 6, 8)
    rows = [index[i % 3].flatten().repeat(3)[:100] for i in range(9)]  # groups that share the first factor
    table = torch.cat(rows)
    ready.num_images, ready.images = len(table), lambda i: grid.images(table[i])
    ready.factors = lambda i: torch.zeros(len(i), 1, dtype=torch.int64)
    grid.factor_names, grid.factor_sizes, grid.groups = (), (), ready
    grid.factors, images = None, Grid()
    grid.images = lambda i: images.images(i)
    assert applicable(grid) == ["factor_vae", "beta_vae", "dhsic"]
    result = evaluate(Encoder(EYE), grid, scale_samples=300)["factor_vae"]
    assert result["votes"].tolist() == [[9], [0], [0]]


def test_one_factor_gives_no_scores_that_any_code_would_reach():
    grid = Grid()
    grid.factor_sizes = (6, 1, 1)
    fitting = applicable(grid)
    assert "mig" in fitting
    assert not {"factor_vae", "beta_vae", "modularity"} & set(fitting)


def test_one_metric_needs_no_tuple():
    assert list(evaluate(Encoder(EYE), Grid(), "mig", **SMALL)) == ["mig"]


def test_the_score_of_a_metric_does_not_depend_on_the_others_asked_for():
    alone = evaluate(Encoder(EYE), Grid(), ("mig",), **SMALL)["mig"]
    beside = evaluate(Encoder(EYE), Grid(), ("factor_vae", "dhsic", "mig"), **SMALL)["mig"]
    assert alone["score"] == beside["score"]
    assert alone["score"] != evaluate(Encoder(EYE), Grid(), ("mig",), seed=1, **SMALL)["mig"]["score"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_metrics_that_apply_of_codes_that_are_the_factors(protocol):
    grid = Grid()
    scores = evaluate(Encoder(EYE), grid, ("all",), protocol, **SMALL)
    assert list(scores) == [name for name in METRICS if name not in ("inception", "reconstruction")]
    assert grid.made <= grid.num_images
    for name, least in dict(factor_vae=1.0, beta_vae=0.99, mig=0.9, dci=0.9, modularity=0.95, irs=1.0).items():
        assert scores[name]["score"] >= least - 1e-9, name
    # The penalty of the regression holds codes of width 1/8 back, more so where they are not standardised.
    member = LoadedModel("identity", Encoder(EYE), "unhashed")
    drawn = Samples(member, Grid(), replace(PROTOCOLS[protocol], **SMALL), 0, 500, lambda *_: None)
    fit, test = ([part.double().numpy() for part in pair] if pair else None for pair in (drawn.fit, drawn.test))
    expected = plain.explicitness(*fit, test, PROTOCOLS[protocol].standardise)
    assert scores["explicitness"]["score"] == pytest.approx(expected, abs=1e-3)
    # `shape` is a category: an SVM on one number cannot set its middle value apart; b and c are numbers.
    gaps = np.sort(scores["sap"]["matrix"], 0)
    assert (gaps[-1, 1:] == pytest.approx(1.0)) == (protocol == "paper")


def test_generated_images_are_drawn_alike_in_any_batches_and_held_to_their_range(monkeypatch):
    seen = []

    def classify(images):
        seen.append(images)
        return torch.full((len(images), 3), 1 / 3)

    class Tanh(Disc):
        def generate(self, codes):
            return (super().generate(codes) * 2 - 1).double()

    monkeypatch.setattr("crgan.metrics.protocol.shape_classifier", lambda device: (classify, 1.0))
    drawn = []
    for batch_size in (64, 500):
        seen.clear()
        evaluate(Tanh(), data.load("dsprites"), ("inception",), generated=700, batch_size=batch_size)
        drawn.append(torch.cat(seen))
        assert drawn[-1].dtype == torch.float32
        assert drawn[-1].aminmax() == (0, 1)
    assert torch.equal(*drawn)

    class Broken(Disc):
        def generate(self, codes):
            return super().generate(codes) * math.nan

    with pytest.raises(InputError, match="a sample holds values that are not finite"):
        evaluate(Broken(), data.load("dsprites"), ("inception",), generated=10)


def test_reconstruction_of_images_that_a_model_knows_to_rebuild():
    dataset = data.load("circular_dsprites")
    scores = evaluate(Disc(), dataset, ("reconstruction", "factor_vae"), **SMALL)
    assert scores["reconstruction"]["ssim"] > 0.9
    assert scores["reconstruction"]["psnr"] > 25


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


def test_a_run_is_scored_on_its_own_data_and_keeps_its_scores(run_folder, capsys):
    run(run_folder, "--metrics", "mig", "factor_vae", "--seed", 3, "--device", "cpu")
    written = json.loads((run_folder / "metrics.json").read_text())
    assert (written["data"], written["protocol"], written["seed"]) == ("circular_dsprites", "paper", 3)
    assert list(written["metrics"]) == ["mig", "factor_vae"]
    votes = np.array(written["metrics"]["factor_vae"]["votes"])
    assert votes.sum() == 500
    shown = capsys.readouterr().out
    assert f"{written['metrics']['mig']['score']:.4f}" in shown
    assert "metrics.json" in shown
    assert [p.name for p in run_folder.iterdir() if p.name.startswith(".")] == []  # no temporary file left


def test_scores_are_added_to_and_never_written_over(run_folder, capsys):
    run(run_folder, "--metrics", "mig")
    first = json.loads((run_folder / "metrics.json").read_text())
    run(run_folder, "--metrics", "modularity")
    both = json.loads((run_folder / "metrics.json").read_text())
    assert list(both["metrics"]) == ["mig", "modularity"]
    assert both["metrics"]["mig"] == first["metrics"]["mig"]
    capsys.readouterr()
    run(run_folder, "--metrics", "mig", "modularity")
    assert f"mig, modularity as {run_folder}/metrics.json has it" in capsys.readouterr().out.replace("\n", "")
    assert json.loads((run_folder / "metrics.json").read_text()) == both
    with pytest.raises(SystemExit):
        run(run_folder, "--metrics", "mig", "--protocol", "dlib")
    assert "with protocol paper, now it is dlib; give --out DIR" in " ".join(capsys.readouterr().err.split())
    assert json.loads((run_folder / "metrics.json").read_text()) == both
    for broken in ("[]", "null", "{"):
        (run_folder / "metrics.json").write_text(broken)
        with pytest.raises(SystemExit):
            run(run_folder, "--metrics", "mig")
        assert "is no JSON object any more" in " ".join(capsys.readouterr().err.split())
    (run_folder / "metrics.json").write_text(json.dumps(both))
    model = checkpoint.build_model(replace(PRESETS["quick"], width=4, hidden=8, seed=1), (1, 64, 64))
    checkpoint.save(run_folder, model, {}, {"step": 2})  # trained on: the old scores are another model's
    run(run_folder, "--metrics", "modularity", "--seed", 1)
    assert list(json.loads((run_folder / "metrics.json").read_text())["metrics"]) == ["modularity"]


def test_models_of_any_kind_share_one_file(tmp_path, run_folder, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    known = "test_evaluate:disc"
    flags = ("--data", "circular_dsprites", "--metrics", "factor_vae", "--out", tmp_path / "scores")
    run(run_folder, known, *flags)
    written = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert list(written) == [str(run_folder), known]
    assert written[known]["metrics"]["factor_vae"]["score"] > 0.95
    assert not (run_folder / "metrics.json").exists()


def test_a_model_that_cannot_be_scored_does_not_cost_the_scores_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    flags = ("--data", "circular_dsprites", "--metrics", "factor_vae", "--out", tmp_path)
    with pytest.raises(SystemExit) as exit:
        run("test_evaluate:disc_and_blind", *flags)
    assert exit.value.code == 2
    assert "values that are not finite" in capsys.readouterr().err
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert list(written) == ["disc"]
    assert written["disc"]["metrics"]["factor_vae"]["score"] > 0.95


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
        (("RUN", "--metrics", "inception"), "'inception' does not apply to the data set 'circular_dsprites'"),
        (("RUN", "--device", "abacus"), "--device is 'abacus'"),
        (("RUN", "--batch-size", "0"), "--batch-size is 0"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(args, sentence, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(__file__.rsplit("/", 1)[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        run(*(run_folder if arg == "RUN" else arg for arg in args))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not (run_folder / "metrics.json").exists()


def test_arguments_that_make_no_sense_are_named():
    model, grid = Encoder(EYE), Grid()
    for given, sizes, message in (
        ("squares", {}, r"the data set is a name, 'squares'; expected crgan\.data\.load\('squares'\)"),
        (grid, {"batch_size": -1}, "batch_size is -1; expected a whole number of at least 1"),
        (grid, {"points": 1.5}, r"points is 1\.5; expected a whole number of at least 1"),
        (grid, {"test_points": -1}, "test_points is -1; expected a whole number of at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(model, given, ("mig",), **sizes)
    with pytest.raises(InputError, match="continuous holds 7; expected indices of factors, 0 to 2"):
        sap(np.random.rand(9, 3), np.arange(27).reshape(9, 3) % 2, continuous=(7,))
