import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import linear_models
import numpy as np
import pytest
import torch
from linear_models import Linear, known_pool, rotation
from torch import nn

from crgan import checkpoint, cli, select
from crgan.config import PRESETS
from crgan.errors import InputError
from crgan.files import lock
from crgan.fingerprint import fingerprint_of
from crgan.loading import Member, open_models
from crgan.selection.centrality import Sizes, cross_scores

FLAGS = ["--groups", "40", "--group-size", "20", "--scale-samples", "500"]
SIZES = {"groups": 40, "group_size": 20, "scale_samples": 500}
FULL = 40 * 20 + 500  # encodes of an ordered pair
TESTS = str(Path(__file__).parent)
KNOWN = known_pool()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A module `pool` in the folder tmp_path whose function `models` reads which models to return from a file."""
    (tmp_path / "pool.py").write_text(
        "import json\n"
        "from pathlib import Path\n"
        "from linear_models import known_pool\n"
        "def models():\n"
        "    names = json.loads((Path(__file__).parent / 'names.json').read_text())\n"
        "    known = known_pool()\n"
        "    return {name: known[kind] for name, kind in names.items()}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("pool", None)

    def write(*names, **kinds):
        content = {name: name for name in names} | {key.replace("_", " "): kind for key, kind in kinds.items()}
        (tmp_path / "names.json").write_text(json.dumps(content))

    write("identity", "rotated", "collapsed", "permuted")
    return write


def run(*args, out="out"):
    select.main(["pool:models", "--out", out, *FLAGS, *args])
    return json.loads(Path(out, "ranking.json").read_text())


def test_writes_the_exact_selection(pool, capsys):
    result = run()
    names = ["identity", "rotated", "collapsed", "permuted"]
    B = cross_scores([known_pool()[name] for name in names], **SIZES)
    with h5py.File("out/scores.h5") as file:
        np.testing.assert_array_equal(file["B"], B)
        assert file["models/name"].asstr()[:].tolist() == names
        assert {k: int(file.attrs[k]) for k in ("groups", "group_size", "scale_samples", "seed")} == {
            **SIZES,
            "seed": 0,
        }
        prints = file["models/fingerprint"].asstr()[:]
        pair = file["pairs"][prints[1]][prints[0]]  # encoder identity on generator rotated
        votes, factor = pair[:], np.arange(40) % 5
        table = np.array([[((votes == k) & (factor == f)).sum() for f in range(5)] for k in range(5)])
        assert table.sum() == 40
        assert table.max(1).sum() / 40 == B[0, 1]
    A = (B + B.T) / 2
    expected = {name: np.delete(A[i], i).mean() for i, name in enumerate(names)}
    found = {row["name"]: row for row in result["models"]}
    assert {name: row["score"] for name, row in found.items()} == pytest.approx(expected)
    scores = [row["score"] for row in result["models"]]
    assert scores == sorted(scores, reverse=True)
    assert [row["rank"] for row in result["models"]] == [1, 2, 3, 4]
    assert result["winner"] in ("identity", "permuted")
    assert found["collapsed"]["own_score"] == 0.2
    assert all(0 <= row["standard_error"] < 0.1 for row in result["models"])
    assert result["encodes"] == 16 * FULL
    assert Path("out/similarity.png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert "wrote ranking.json" in text
    assert "no code of collapsed varies" in " ".join(text.split())
    assert "no code of collapsed varies" in result["warning"]
    assert "on such a generator" not in result["warning"]


def test_a_generator_of_one_image_does_not_speak_against_the_encoders(pool, monkeypatch):
    monkeypatch.setattr(linear_models, "known_pool", lambda: KNOWN | {"still": Linear(torch.zeros(5, 5), torch.eye(5))})
    pool("identity", "permuted", "rescaled", "still")
    warning = run()["warning"]
    assert "over the images of still: what is scored on such a generator is chance" in warning
    assert "no code of" not in warning


def test_a_pool_in_which_no_encoder_votes_is_named(pool, monkeypatch):
    blind = {name: Linear(rotation(5, seed), torch.zeros(5, 5)) for seed, name in enumerate(("a", "b"))}
    monkeypatch.setattr(linear_models, "known_pool", lambda: blind)
    pool("a", "b")
    warning = run()["warning"]
    assert "no code of a, b varies" in warning
    assert "on such a generator" not in warning


def test_many_codes_fit_into_the_file_and_the_memory(pool, monkeypatch):
    large = {name: Linear(matrix) for name, matrix in (("a", torch.eye(500)), ("b", -torch.eye(500)))}
    monkeypatch.setattr(linear_models, "known_pool", lambda: large)
    pool("a", "b")
    assert run("--groups", "10")["models"][0]["score"] > 0.9


def test_only_new_and_changed_models_cost_anything(pool, capsys):
    first = run()
    assert run()["encodes"] == 0
    pool("permuted", "identity", "rescaled", "rotated", "collapsed")  # one more, another order
    more = run()
    assert more["encodes"] == 9 * FULL
    fresh = {row["name"]: row for row in more["models"]}
    Path("out/scores.h5").unlink()
    assert {row["name"]: row for row in run()["models"]} == fresh  # as if computed at once
    capsys.readouterr()
    pool("identity", "rotated", "collapsed", "rescaled", permuted="constant code")
    changed = run()
    assert changed["encodes"] == 9 * FULL
    assert "permuted has changed" in capsys.readouterr().out
    pool("identity", "rotated", "collapsed", "permuted")
    again = run()
    assert again["encodes"] == 0
    assert again["models"] == first["models"]


def test_a_full_disk_ends_in_one_sentence_and_keeps_the_scores(pool):
    run()
    scores, found = Path("out/scores.h5"), Path("out/scores.h5").read_bytes()
    pool("permuted", "identity", "rescaled", "rotated", "collapsed")
    code = (
        "import resource, sys; from crgan import select\n"
        f"sys.path.insert(0, {TESTS!r}); resource.setrlimit(resource.RLIMIT_FSIZE, (4096,) * 2)\n"
        "select.main(['pool:models', '--out', 'out', *sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", code, *FLAGS], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: out/scores.h5: File too large" in done.stderr
    assert scores.read_bytes() == found


def fails(capsys, *args, match):
    with pytest.raises(SystemExit) as stop:
        select.main(list(args))
    assert stop.value.code == 2
    text = " ".join(capsys.readouterr().err.split())
    assert match in text
    return text


def test_ctrl_c_ends_a_command_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop, cli.command_process():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err.startswith("stopped; what was saved stays")


def test_labels_leave_out_what_all_names_share():
    assert select._short_names(["pool/a=1,s=2,seed=0", "pool/a=3,s=2,seed=0"]) == ["a=1", "a=3"]
    assert select._short_names(["one"]) == ["one"]


def test_mistakes_end_with_one_sentence_and_code_2(pool, capsys, tmp_path):
    run()
    before = Path("out/scores.h5").read_bytes()
    fails(capsys, "pool:models", "--out", "out", *FLAGS, "--seed", "1", match="was made with seed 0, not 1")
    fails(capsys, "pool:models", "--out", "out", match="was made with groups 40, not 500")
    fails(capsys, "pool:models", "--out", "new", "--method", "guess", match="guess")
    fails(capsys, "pool:models", "--out", "new", "--budget", "1.5", match="--budget is 1.5")
    fails(capsys, "pool:models", "--out", "new", "--budget", "0.01", *FLAGS, match="too small for 4 models")
    fails(capsys, "pool:models", "pool:models", "--out", "new", match="are the same model")
    fails(capsys, "pool:models", "--out", "new", "--method", "udr-lasso", "--budget", "0.5", match="leave it out")
    fails(
        capsys, "pool:models", "--out", "new", "--method", "udr-lasso", "--ray", "auto", match="on this machine; leave"
    )
    fails(capsys, "pool:models", "--out", "new", "--batch-size", "0", match="--batch-size is 0")
    fails(capsys, "pool:models", "--out", "new", "--with-labels", match="--data NAME")
    fails(capsys, "pool:models", "--out", "new", "--device", "gpu7", match="--device is 'gpu7'")
    fails(capsys, "pool:models", "--out", "new", "--data", "squares", match="--data and --root serve --with-labels")
    fails(capsys, "--out", "new", match="at least 2 models, got 0")
    fails(capsys, "nowhere", "--out", "new", match="there is no nowhere")
    fails(
        capsys,
        "pool:nothing",
        "--out",
        "new",
        match="pool:nothing gives no models (AttributeError: module 'pool' has no attribute",
    )
    fails(capsys, "pool.py", "--out", "new", match="pool.py is no TorchScript archive")
    fails(capsys, str(tmp_path), "--out", "new", match="is no run folder")
    fails(capsys, "pool:models", "--out", "pool.py/out", match="pool.py")
    assert Path("out/scores.h5").read_bytes() == before
    Path("out/scores.h5").write_bytes(before[:1000])
    fails(capsys, "pool:models", "--out", "out", *FLAGS, match="scores.h5 is not readable")


@pytest.mark.parametrize("method", ["udr-lasso", "udr-spearman"])
def test_udr_behind_the_same_command(pool, method):
    pool("identity", "permuted", "rescaled", "rotated", "collapsed")
    result = run("--method", method, "--samples", "600")
    assert result["samples"] == 600
    assert result["winner"] in ("identity", "permuted", "rescaled")
    scores = {row["name"]: row["score"] for row in result["models"]}
    assert scores["collapsed"] == 0
    assert not Path("out/scores.h5").exists()
    pool("collapsed", "rotated", "identity", "rescaled", "permuted")
    assert {row["name"]: row["score"] for row in run("--method", method, "--samples", "600")["models"]} == scores


def test_one_process_and_one_method_in_a_folder(pool, capsys):
    run()
    fails(capsys, "pool:models", "--out", "out", "--method", "udr-lasso", match="out holds the ranking by centrality")
    with lock(Path("out")) as mine:
        assert mine
        fails(capsys, "pool:models", "--out", "out", *FLAGS, match="another process selects into out")


def test_names_may_hold_any_characters(pool, capsys):
    pool("identity", "rotated", **{"a $x_^$ [bold]b": "collapsed"})
    result = run(out="out [red]x")
    assert "a $x ^$ [bold]b" in {row["name"] for row in result["models"]}


def test_budget_spends_its_share_and_leaves_the_good_ones(pool):
    pool(
        "identity", "permuted", "rescaled", "rotated", "collapsed", "broken", "constant code"
    )  # the first three agree fully
    result = run("--budget", "0.6")
    assert result["encodes"] <= 0.6 * 49 * FULL
    assert {row["name"] for row in result["models"][:2]} <= {"identity", "permuted", "rescaled"}
    assert result["gap"]["winner"] == result["winner"]
    again = run("--budget", "0.6")
    assert again["encodes"] == 0
    assert again["models"] == result["models"]
    exact = run()  # what was voted on a part of the scale sample does not enter the exact scores
    after = [run("--budget", "0.3"), run()]  # what is exact costs nothing again, and stays so
    assert [result["encodes"] for result in after] == [0, 0]
    assert [result["models"] for result in after] == [exact["models"]] * 2
    Path("out/scores.h5").unlink()
    assert run()["models"] == exact["models"]


DRIVER = """
import os, random, signal, sys, time
from linear_models import known_pool
from crgan import select
from crgan.selection import scores
from crgan.fingerprint import fingerprint_of

class Slow:
    def __init__(self, model):
        self.model, self.prior = model, model.prior
        self.num_codes, self.image_shape = model.num_codes, model.image_shape
        self.fingerprint = fingerprint_of(model)  # it keys the draws
    def generate(self, codes): return self.model.generate(codes)
    def sample(self, n, seed): return self.model.sample(n, seed)
    def encode(self, images):
        time.sleep(0.005)
        with open("log", "a") as log:
            log.write(f"{len(images)} ")
        return self.model.encode(images)

names = ("identity", "rotated", "collapsed", "constant code")
def models():
    return {name: Slow(model) for name, model in known_pool().items() if name in names}

def batches():
    return len(open("log").read().split())

scores.SAVE_EVERY, scores.SAVE_SHARE = 0.0, 1e9  # after every batch
kills = 0
open("log", "w").close()
while True:
    draw = random.Random(kills)
    enough = batches() + draw.randint(5, 40)  # of the 160 that a run without kills takes
    child = os.fork()
    if not child:
        try:
            select.main(sys.argv[1:])
        except BaseException:
            os._exit(1)
        os._exit(0)
    while batches() < enough and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02))
    if kills < 8:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(kills)
        sys.exit(os.WEXITSTATUS(status))
    kills += 1
"""


def test_killed_at_any_moment_it_goes_on_without_loss(tmp_path):
    """SIGKILL in the middle of encoding or of writing; each batch that a model encodes leaves its size in a log."""
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "driver.py", "__main__:models", "--out", "out", *FLAGS, "--batch-size", "100"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, str(tmp_path)]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    kills = int(ended.stdout.split()[-1])
    assert kills == 8
    names = ("identity", "rotated", "collapsed", "constant code")
    models = [model for name, model in known_pool().items() if name in names]
    lost = sum(map(int, (tmp_path / "log").read_text().split())) - 16 * FULL
    assert 0 <= lost <= kills * 256 * len(names)  # a chunk that all encode is all that a kill can take
    with h5py.File(tmp_path / "out/scores.h5") as file:
        np.testing.assert_array_equal(file["B"], cross_scores(models, **SIZES))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"ranking.json", "scores.h5", "similarity.png"}


# ---------------------------------------------------------------- kinds of models


def test_codes_made_elsewhere(pool, tmp_path):
    """A file filled by hand from the same draws gives the same ranking as the models do."""
    from crgan.selection.centrality import Pool

    result = run()
    models = known_pool()
    names = ["identity", "rotated", "collapsed", "permuted"]
    drawn = Pool([Member(name, models[name]) for name in names], Sizes(**SIZES))
    with h5py.File("codes.h5", "w") as file:
        for j, name in enumerate(names):
            groups = torch.stack([drawn._group(j, m) for m in range(40)])
            blocks = [models[name].sample(256, drawn._seed(j, "points", b)) for b in (0, 256)]
            points = torch.cat(blocks)[:500]
            file[f"factor/{name}"] = np.arange(40) % 5
            file[f"sample/{name}"] = models[name].encode(models["identity"].sample(300, 0))
            for encoder in names:
                file[f"codes/{encoder}/{name}"] = models[encoder].encode(groups.flatten(0, 1)).unflatten(0, (40, 20))
                file[f"scale/{encoder}/{name}"] = models[encoder].encode(points).double().std(0, correction=0)
    select.main(["codes.h5", "--out", "from_codes"])
    found = json.loads(Path("from_codes/ranking.json").read_text())
    scores = {row["name"]: row["score"] for row in result["models"]}
    assert {row["name"]: row["score"] for row in found["models"]} == pytest.approx(scores, abs=1e-9)
    select.main(["codes.h5", "--out", "by_udr", "--method", "udr-spearman"])
    assert json.loads(Path("by_udr/ranking.json").read_text())["winner"] in ("identity", "permuted")


def test_broken_code_files(tmp_path, capsys):
    path = tmp_path / "codes.h5"
    out = ["--out", str(tmp_path / "out")]
    path.write_text("not HDF5")
    fails(capsys, str(path), *out, match="cannot be read as HDF5")
    with h5py.File(path, "w") as file:
        file["images"] = [1]
    fails(capsys, str(path), *out, match="holds no group 'codes'")
    with h5py.File(path, "w") as file:
        for i in "ab":
            file[f"factor/{i}"] = np.arange(6) % 3
            for j in "ab":
                file[f"codes/{i}/{j}"] = np.zeros((6, 4, 3))
                file[f"scale/{i}/{j}"] = np.ones(2 if i + j == "ba" else 3)
    fails(capsys, str(path), *out, match="scale/b/a has shape [2], expected [3]")
    with h5py.File(path, "a") as file:
        del file["factor/a"]
        file["factor/a"] = np.arange(6)
    fails(capsys, str(path), *out, match="factor/a must hold integers from 0 to 2")
    fails(capsys, str(path), "pool:models", *out, match="give it to crgan.select alone")


class Scripted(nn.Module):
    def __init__(self, num_noise: int):
        super().__init__()
        self.num_codes, self.num_noise, self.prior = 4, num_noise, "uniform"
        self.mix = nn.Parameter(rotation(4 + num_noise, 5))

    @torch.jit.export
    def generate(self, codes: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        if noise is not None:
            codes = torch.cat([codes, noise], 1)
        return (codes @ self.mix.T)[:, None, None]

    @torch.jit.export
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, 0] @ self.mix)[:, :4]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(images)


class Verb(nn.Module):
    """One method of a model as a module of its own, which torch.export takes."""

    def __init__(self, model, verb):
        super().__init__()
        self.model, self.verb = model, verb

    def forward(self, *inputs):
        return getattr(self.model, self.verb)(*inputs)


@pytest.mark.parametrize("num_noise", [0, 2])
def test_archives_give_the_scores_of_their_models(tmp_path, num_noise):
    model = Scripted(num_noise).eval()
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    folder = tmp_path / "exported"
    folder.mkdir()
    n = torch.export.Dim("n")
    inputs = (torch.zeros(3, 4), *([torch.zeros(3, num_noise)] if num_noise else []))
    program = torch.export.export(Verb(model, "generate"), inputs, dynamic_shapes={"inputs": ({0: n},) * len(inputs)})
    torch.export.save(program, folder / "generate.pt2", extra_files={"prior": "uniform"})
    images = (torch.zeros(3, 1, 1, 4 + num_noise),)
    program = torch.export.export(Verb(model, "encode"), images, dynamic_shapes={"inputs": ({0: n},)})
    torch.export.save(program, folder / "encode.pt2")
    script, exported = open_models([str(tmp_path / "model.pt"), str(folder)])
    for member in (script, exported):
        assert (member.num_codes, member.num_noise, member.prior) == (4, num_noise, "uniform")
        assert member.image_shape == (1, 1, 4 + num_noise)
        codes = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            images = member.generate(codes, 3)
            torch.testing.assert_close(member.encode(images), codes, atol=1e-5, rtol=0)
            assert torch.equal(images, member.generate(codes, 3))
            assert member.sample(9, 1).shape == (9, 1, 1, 4 + num_noise)
            if num_noise:
                assert not torch.equal(images, member.generate(codes, 4))
    assert script.fingerprint != exported.fingerprint
    B = cross_scores([script.model, exported.model], groups=20, group_size=10, scale_samples=300)
    assert (B == 1).all()


def test_a_trained_model_can_be_exported_as_the_documentation_says(tmp_path):
    model = checkpoint.build_model(replace(PRESETS["quick"], width=4, hidden=8), (3, 16, 16)).eval()
    codes, batch = torch.rand(4, 4) * 2 - 1, torch.export.Dim("batch")
    images = model.generate(codes)
    for verb, given in (("generate", codes), ("encode", images)):
        program = torch.export.export(Verb(model, verb), (given,), dynamic_shapes=(({0: batch},),))
        torch.export.save(program, tmp_path / f"{verb}.pt2", extra_files={"prior": "uniform"})
    (found,) = open_models([str(tmp_path)])
    more = torch.rand(7, 4) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(found.generate(more, 0), model.generate(more))
        torch.testing.assert_close(found.encode(images), model.encode(images))
    with pytest.raises(InputError, match=f"encode.pt2 is one half of an exported model; give its folder, {tmp_path}"):
        open_models([str(tmp_path / "encode.pt2")])


def test_an_export_for_one_size_of_batch_is_refused(tmp_path):
    model = Scripted(0).eval()
    for verb, inputs in (("generate", torch.zeros(4, 4)), ("encode", torch.zeros(4, 1, 1, 4))):
        with pytest.raises(
            InputError, match=f"{tmp_path} has no {verb}.pt2" if verb == "encode" else "is no run folder"
        ):
            open_models([str(tmp_path)])
        torch.export.save(torch.export.export(Verb(model, verb), (inputs,)), tmp_path / f"{verb}.pt2")
    with pytest.raises(InputError, match="takes batches of 4 alone; export it with a dynamic batch"):
        open_models([str(tmp_path)])


def test_a_model_that_speaks_numpy_is_told_what_is_expected():
    known = known_pool()["identity"]
    known.encode = lambda images: images[:, 0, 0].numpy()
    with pytest.raises(InputError, match=r"encode gave a ndarray, expected a torch.Tensor \[2, 5\]"):
        Member("mine", known).encode(known.sample(2, 0))


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory):
    """Two untrained runs on circular dSprites, as the training command leaves them."""
    folders = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("run")
        cfg = PRESETS["circular"]
        cfg = cfg.__class__(**{**vars(cfg), "seed": seed, "width": 4, "hidden": 16})
        checkpoint.write_config(folder, cfg, (1, 64, 64))
        checkpoint.save(folder, checkpoint.build_model(cfg, (1, 64, 64)), {}, {"step": 0})
        folders.append(str(folder))
    return folders


def test_run_folders_with_labels(run_folders, tmp_path, capsys):
    out = str(tmp_path / "out")
    sizes = ["--groups", "10", "--group-size", "10", "--scale-samples", "100"]
    failed = tmp_path / "failed"  # before its first checkpoint
    failed.mkdir()
    checkpoint.write_config(failed, *checkpoint.read_config(Path(run_folders[0])))
    fails(capsys, str(failed), "--out", out, match="hold no model; expected runs that have trained")
    fails(capsys, *run_folders, "--out", run_folders[0], match="is a run folder; give another --out")
    select.main([*run_folders, str(failed), "--out", out, *sizes, "--with-labels"])
    error = capsys.readouterr().err.splitlines()
    assert f"warning: {run_folders[0]} has trained 0 of its 288,000 steps" in error
    assert f"warning: {failed} has no checkpoint, as a run that failed; it is left out" in error
    result = json.loads(Path(out, "ranking.json").read_text())
    assert {row["name"] for row in result["models"]} == set(run_folders)
    assert all(0.5 <= row["factor_vae"] <= 1 for row in result["models"])
    assert result["rank_correlation"] is None  # two models have the same score, to the bit
    select.main([*run_folders, "--out", out, *sizes])
    assert "rank correlation" in capsys.readouterr().out
    again = json.loads(Path(out, "ranking.json").read_text())
    assert again | {"encodes": 0, "seconds": 0} == result | {"encodes": 0, "seconds": 0}  # the scores stay
    a, b = open_models(run_folders)
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == open_models(run_folders[:1])[0].fingerprint
    cfg, shape = checkpoint.read_config(Path(run_folders[0]))
    twin = tmp_path / "twin"  # of other settings, but the same weights
    twin.mkdir()
    checkpoint.write_config(twin, replace(cfg, cr_weight=0.0), shape)
    checkpoint.save(twin, a.model, {}, {"step": 0})
    with pytest.raises(InputError, match="are the same model"):
        open_models([run_folders[0], str(twin)])


LABELLED = """
import torch
from torch import nn

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

def divides():
    return 1 / 0

def pair():
    model = Pair(1)
    model.num_codes = None
    return model
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
    for runs, message in (
        (["labelled:takes"], "labelled:takes gives no models (TypeError: takes() missing 1 required"),
        (["labelled:LABEL"], "labelled:LABEL gives no models (AttributeError: module 'labelled' has no attribute"),
        (["labelled:divides"], "labelled:divides gives no models (ZeroDivisionError: division by zero)"),
        ([":models"], ":models gives no models"),
        (["labelled:pair"], "labelled:pair.encode gave a tuple, expected a torch.Tensor [2, 'any']"),
    ):
        fails(capsys, *runs, "--out", "new", match=message)
    first = {"x": Linear(torch.eye(2))}
    monkeypatch.setattr("labelled.models", lambda: first, raising=True)
    monkeypatch.setattr("labelled.takes", lambda: {"x": Linear(torch.eye(3))})
    fails(capsys, "labelled:models", "labelled:takes", "--out", "new", match="two models are called x")
    fails(capsys, "labelled:models", "--seed", str(2**70), "--out", "new", match="expected a number below 2^31")


def test_fingerprint_sees_what_is_held_in_other_ways():
    class Slots:
        __slots__ = ("gain",)

        def __init__(self, gain):
            self.gain = gain

    def closure(gain):
        return lambda x: x * gain

    def module(gain, private):
        made = nn.Linear(2, 2)
        nn.init.ones_(made.weight), nn.init.ones_(made.bias)
        made.register_buffer("gain", torch.tensor(1.0 if private else gain), persistent=False)
        made._gain = gain if private else 1.0
        return made

    makers = [Slots, closure, lambda g: partial(max, g), np.float32, lambda g: {g, 7.0}, lambda g: frozenset({g})]
    makers += [lambda g: module(g, private=False), lambda g: module(g, private=True)]
    makers += [lambda g: nn.Sequential(nn.Sequential(nn.LeakyReLU(g))), lambda g: [nn.Tanh, nn.Sigmoid][g == 2]()]
    makers += [lambda g: SimpleNamespace(parts=nn.Sequential(module(g, private=True)))]
    for make in makers:
        assert fingerprint_of(make(1.0)) == fingerprint_of(make(1.0))
        assert fingerprint_of(make(1.0)) != fingerprint_of(make(2.0))


CODE = """
class Model:
    gain = 1.0
    def encode(self, x, *, more=2.0): return [v * self.gain for v in x]
model = Model()
method = Model().encode
plain = lambda x: helper(x)
"""


@pytest.mark.parametrize("what", ["model", "method", "plain"])
def test_fingerprint_sees_what_a_model_does(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(code):
        Path("edited.py").write_text(code)
        exec(compile(code, "edited.py", "exec"), vars(module := ModuleType("edited")))
        module.__file__ = str(tmp_path / "edited.py")
        monkeypatch.setitem(sys.modules, "edited", module)
        return fingerprint_of(getattr(module, what))

    edits = [("gain = 1.0", "gain = 2.0"), ("more=2.0", "more=3.0"), ("v * self", "v / self")]
    if what == "plain":
        edits = [("helper(x)", "helper(-x)"), ("helper", "other")]
    assert of(CODE) == of("# the same\n" + CODE)
    assert len({of(CODE), *(of(CODE.replace(*edit)) for edit in edits)}) == 1 + len(edits)


def test_fingerprint_tells_repeated_nested_and_odd_parts_apart():
    tanh, sigmoid, line, relu = nn.Tanh(), nn.Sigmoid(), nn.Linear(2, 2), torch.nn.functional.relu
    for one, other in (
        (nn.Sequential(line, tanh, line, sigmoid, line, tanh), nn.Sequential(line, tanh, line, sigmoid, line, sigmoid)),
        (nn.Sequential(line, tanh, line, tanh), nn.Sequential(line, tanh, line)),
        ([relu, torch.tanh, relu], [relu, torch.tanh, torch.tanh]),
        ({"b": {}, "c": 1}, {"b": {"c": 1}}),
        ([(1,), ()], [(1, ())]),
        (range(3), range(4)),
        (torch.float32, torch.bfloat16),
        (np.array(["x", "y"]), np.array(["x", "z"])),
        (np.array([{}, 1], object), np.array([{}, 2], object)),
        (np.arange(3)[::-1], np.arange(3)),
        (torch.eye(2).to_sparse(), torch.eye(2)[[1, 0]].to_sparse()),
        (torch.tensor([1j]).conj(), torch.tensor([1j])),
    ):
        assert fingerprint_of(one) != fingerprint_of(other)


def test_fingerprint_is_the_same_in_another_process_and_after_use(tmp_path):
    (tmp_path / "used.py").write_text(
        "import functools, logging, pathlib, torch\n"
        "from torch import nn\n"
        "class Model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.names, self.log = {'a', 'b', 'c'}, logging.getLogger('used')\n"
        "        self.path = pathlib.Path('x')\n"
        "        self.places = {self.path: 1, relu: 2}\n"
        "        self.part = torch.compile(nn.Linear(2, 2), backend='eager')\n"
        "        nn.init.ones_(self.part._orig_mod.weight), nn.init.ones_(self.part._orig_mod.bias)\n"
        "    @functools.cached_property\n"
        "    def size(self): return 2\n"
        "    @torch.autocast('cpu')\n"
        "    def encode(self, x): return self.part(x) + self.size\n"
        "relu = torch.compile(torch.relu, backend='eager')\n"
        "from crgan.fingerprint import fingerprint_of\n"
        "model = Model()\n"
        "print(fingerprint_of(model))\n"
        "hash(model.path), model.encode(torch.zeros(3, 2)), relu(torch.zeros(2)), model.log.info('')\n"
        "print(fingerprint_of(model))\n"
    )
    lines = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "used.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        lines += done.stdout.splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 1


def test_a_model_that_cannot_be_read_is_asked_for_a_fingerprint():
    with pytest.raises(InputError, match=r"a Linear cannot be told from others .*; give it an attribute 'fingerprint'"):
        fingerprint_of(nn.Linear(2, 2, device="meta"))
    chain = None
    for _ in range(2_000):
        chain = [chain]
    with pytest.raises(InputError, match="RecursionError"):
        fingerprint_of(SimpleNamespace(chain=chain))


def test_fingerprint_of_a_model_does_not_depend_on_the_others():
    def plain(seed):
        draw = torch.Generator().manual_seed(seed)
        parts = [nn.Linear(3, 3) for _ in range(4)]
        for part in parts:
            nn.init.normal_(part.weight, generator=draw), nn.init.zeros_(part.bias)
        return SimpleNamespace(parts=parts)

    first, again = ([fingerprint_of(model) for model in map(plain, range(n))] for n in (12, 13))
    assert first == again[:12]
    assert len(set(again)) == 13


def test_fingerprint_sees_weights_and_settings():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    class Wrapper:
        def __init__(self):
            self.parts, self.temperature = [module], 1.0

    model = Wrapper()
    seen = {fingerprint_of(model)}
    module.train()
    assert fingerprint_of(model) in seen
    with torch.no_grad():
        module[0].weight[0, 0] += 1e-6
    seen.add(fingerprint_of(model))
    module[1].running_mean += 1
    seen.add(fingerprint_of(model))
    model.temperature = 2.0
    seen.add(fingerprint_of(model))
    model.parts.append(torch.zeros(2, dtype=torch.bfloat16))
    seen.add(fingerprint_of(model))
    assert len(seen) == 5
    model.fingerprint = "mine"
    assert fingerprint_of(model) == "mine"
    model.fingerprint = "a/b"
    with pytest.raises(InputError, match="fingerprint 'a/b'; expected letters"):
        fingerprint_of(model)
    broken = Linear(torch.eye(2))
    broken.prior = "beta"
    with pytest.raises(InputError, match="prior 'beta'"):
        Member("m", broken)
