"""The selection command and crgan.rank: what is written, kept, continued and refused, and which models they open."""

import errno
import fcntl
import json
import os
import random
import re
import resource
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from linear_models import Linear, known_pool
from processes import finish, start, wait_for
from run_folders import CFG, pairs_in, write_run

import crgan
from crgan import InputError, select
from crgan.files import lock
from crgan.selection import scores
from crgan.selection.centrality import cross_scores, vote_score, vote_tables
from crgan.selection.ranking import gap_sentence

SIZES = {"groups": 40, "group_size": 20, "scale_samples": 500}
FLAGS = [part for name, size in SIZES.items() for part in (f"--{name.replace('_', '-')}", str(size))]
SELECT = ["pool:models", "--out", "out", *FLAGS]
FULL = 40 * 20 + 500  # encodes of an ordered pair
KNOWN = known_pool()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A module `pool` whose function `models` returns those that were named last, in an empty folder."""
    module = ModuleType("pool")
    monkeypatch.setitem(sys.modules, "pool", module)
    monkeypatch.chdir(tmp_path)

    def choose(*names, **models):
        chosen = {name: KNOWN[name] for name in names} | models
        module.models = lambda: chosen

    choose("identity", "rotated", "collapsed", "permuted")
    return choose


def run(*args, out="out"):
    select.main(["pool:models", "--out", out, *FLAGS, *args])
    return json.loads(Path(out, "ranking.json").read_text())


def said(result):
    return " ".join(result["sentences"])


def test_writes_the_exact_selection(pool, capsys):
    result = run()
    names = ["identity", "rotated", "collapsed", "permuted"]
    B = cross_scores([KNOWN[name] for name in names], **SIZES)
    _, found_names, keys, num_codes, known = scores.read("out/scores.h5")
    assert (found_names, num_codes) == (names, [5] * 4)
    assert known.keys() == set(product(keys, keys))
    for (encoder, generator), pair in known.items():
        assert (pair.votes.dtype, pair.exact) == (np.int16, True)
        assert vote_score(vote_tables(pair.votes[None], 5, 5))[0] == B[keys.index(encoder), keys.index(generator)]
    with h5py.File("out/scores.h5") as file:  # the layout of docs/select.md
        np.testing.assert_array_equal(file["B"], B)
        assert {name: int(file.attrs[name]) for name in SIZES} == SIZES
        assert file[f"pairs/{keys[1]}/votes"].shape == (4, 40)
    s = crgan.model_centrality(crgan.similarity(B))
    order = np.argsort(-s, kind="stable")
    rows = result["models"]
    assert [row["score"] for row in rows] == pytest.approx(s[order])
    assert [(row["name"], row["cache_key"]) for row in rows] == [(names[i], keys[i]) for i in order]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert result["winner"] == rows[0]["name"] in ("identity", "permuted")
    assert [row["own_score"] for row in rows if row["name"] == "collapsed"] == [0.2]
    assert all(0 <= row["standard_error"] < 0.1 for row in rows)
    assert result["encodes"] == 16 * FULL
    assert Path("out/similarity.png").read_bytes()[:4] == b"\x89PNG"
    assert "no code of collapsed varies" in said(result)
    assert "over the images" not in said(result)
    assert "within sampling error" in said(result)  # the first two are as good
    text = capsys.readouterr().out
    assert all(sentence in text for sentence in result["sentences"])
    assert result["winner"] in text.split("std. error")[1].splitlines()[1]


def test_the_gap_claims_no_more_than_was_measured():
    gap = {"winner": "a", "runner_up": "b", "gap": 0.2, "standard_error": 0.05}
    for p, claim in ((0.99995, "beyond.*p > 0.99"), (0.96, "beyond.*p = 0.96"), (0.90, "within.*p = 0.90")):
        assert re.search(claim, gap_sentence({**gap, "confidence": p}))


def test_generators_whose_scores_are_chance_are_named(pool):
    pool(*KNOWN, **{"a $x_^$ [bold]b": Linear(torch.zeros(5, 5), torch.eye(5))})
    result = run(out="out [red]x")
    assert "over the images of a $x_^$ [bold]b" in said(result)  # names may hold any characters
    assert "no code of collapsed, broken varies" in said(result)


def test_only_new_and_changed_models_cost_anything(pool, capsys):
    first = run()
    assert run()["encodes"] == 0
    pool("permuted", "identity", "rescaled", "rotated", "collapsed")  # one more, another order
    more = run()
    assert more["encodes"] == 9 * FULL
    Path("out/scores.h5").unlink()
    assert {r["name"]: r for r in run()["models"]} == {r["name"]: r for r in more["models"]}  # as if computed at once
    capsys.readouterr()
    pool("identity", "rotated", "collapsed", "rescaled", permuted=KNOWN["constant code"])
    assert run()["encodes"] == 9 * FULL
    assert "permuted has changed" in capsys.readouterr().out
    pool("identity", "rotated", "collapsed", "permuted")
    again = run()
    assert again["encodes"] == 0
    assert again["models"] == first["models"]


def test_budget_spends_its_share_and_leaves_the_good_ones(pool):
    pool("identity", "permuted", "rescaled", "rotated", "collapsed", "broken", "constant code")
    result = run("--budget", "0.4")
    assert 0 < result["encodes"] <= 0.4 * 49 * FULL
    assert {row["name"] for row in result["models"][:2]} <= {"identity", "permuted", "rescaled"}
    assert result["gap"]["winner"] == result["winner"]
    again = run("--budget", "0.4")
    assert again["encodes"] == 0
    assert again["models"] == result["models"]
    exact = run()  # what was voted on in a race does not enter the exact scores
    assert exact["encodes"] == 49 * FULL
    after = [run("--budget", "0.3"), run()]  # what is exact costs nothing again, and stays so
    assert [result["encodes"] for result in after] == [0, 0]
    assert [result["models"] for result in after] == [exact["models"]] * 2
    Path("out/scores.h5").unlink()
    assert run()["models"] == exact["models"]


def test_a_full_disk_ends_in_one_sentence_and_keeps_the_scores(pool, refused):
    run()
    path, found = Path("out/scores.h5"), Path("out/scores.h5").read_bytes()
    pool("permuted", "identity", "rescaled", "rotated", "collapsed")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        assert "error: out/scores.h5: File too large" in refused(select.main, *SELECT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == found


def test_damage_locks_and_permissions_are_told_apart(pool, refused, monkeypatch):
    run()
    path, whole = Path("out/scores.h5"), Path("out/scores.h5").read_bytes()
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a notebook that has it open for writing
        assert run()["encodes"] == 0
    path.write_bytes(whole[:1000])
    assert "scores.h5 is not readable" in refused(select.main, *SELECT)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["format"] = 1
    assert "format 1 of another version" in refused(select.main, *SELECT)
    path.write_bytes(whole)
    for number in (errno.EACCES, errno.EAGAIN, errno.ENOLCK):  # the last two: locked, and no locks
        monkeypatch.setattr(Path, "open", Mock(side_effect=OSError(number, os.strerror(number))))
        error = refused(select.main, *SELECT)
        assert os.strerror(number) in error
        assert "readable" not in error


def test_mistakes_end_with_one_sentence_and_code_2(pool, refused):
    Path("out").mkdir()
    Path("pool.py").touch()
    Path("out/ranking.json").write_text('{"method": "centrality", "models": []}')
    with h5py.File("out/scores.h5", "w") as file:
        file.attrs.update({"format": scores.FORMAT, "seed": 0, **SIZES})
        file["models/name"], file["models/cache_key"], file["models/num_codes"] = ["a"], ["k"], [5]
    before = Path("out/scores.h5").read_bytes()
    for args, value in (
        (["--seed", "1", *FLAGS, "--out", "out"], "seed 0, not 1"),
        (["--out", "out"], "groups 40, not 500"),
        (["--method", "guess"], "guess"),
        (["--budget", "1.5"], "budget is 1.5"),
        (["--budget", "0.01", *FLAGS], "too small for 4 models"),
        (["--method", "udr-lasso", "--budget", "0.5"], "--budget and --ray serve ModelCentrality"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--with-labels"], "--data NAME"),
        (["--device", "gpu7"], "gpu7"),
        (["."], "is no run folder"),
        (["--out", "pool.py/out"], "pool.py"),
        (["--seed", str(2**70)], "2^31"),
    ):
        assert value in refused(select.main, "pool:models", *args, *(() if "--out" in args else ("--out", "new")))
        assert Path("out/scores.h5").read_bytes() == before
    assert "at least 2 models, got 0" in refused(select.main, "--out", "new")
    with lock(Path("out")):
        assert "another process selects into out" in refused(select.main, *SELECT)


@pytest.mark.parametrize("method", ["udr-lasso", "udr-spearman"])
def test_udr_behind_the_same_command(pool, method):
    pool("identity", "permuted", "rescaled", "rotated", "collapsed")
    result = run("--method", method, "--samples", "600")
    assert result["samples"] == 600
    assert result["winner"] in ("identity", "permuted", "rescaled")
    found = {row["name"]: row["score"] for row in result["models"]}
    assert found["collapsed"] == 0
    assert not Path("out/scores.h5").exists()
    pool("collapsed", "rotated", "identity", "rescaled", "permuted")
    assert {row["name"]: row["score"] for row in run("--method", method, "--samples", "600")["models"]} == found


def test_runs_on_images_of_their_own_are_ranked_by_udr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        write_run(tmp_path / f"run{seed}", replace(CFG, data="images"), seed=seed)
    select.main(["run0", "run1", "--out", "out", "--method", "udr-spearman", "--samples", "64"])
    assert len(json.loads(Path("out/ranking.json").read_text())["models"]) == 2


class Slow(Linear):
    def encode(self, images):
        time.sleep(0.005)
        return super().encode(images)


def slow_models():
    names = ("identity", "constant code", "rotated", "collapsed")
    return {name: Slow(KNOWN[name].mix, KNOWN[name].unmix) for name in names}


def test_killed_at_any_moment_it_loses_at_most_the_generator_in_progress(tmp_path, monkeypatch):
    """SIGKILL in the middle of encoding or of writing: what the file holds is whole, and is not computed again."""
    monkeypatch.chdir(Path(__file__).parent)
    path, draw, saved = tmp_path / "scores.h5", random.Random(0), [0]
    command = ["select", "test_select:slow_models", "--out", tmp_path, *FLAGS, "--batch-size", "100"]
    while saved[-1] < 12:
        process = start(*command)
        wait_for(lambda: pairs_in(path) > saved[-1])
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.communicate()
        saved.append(pairs_in(path))
    assert saved[1] < 16
    assert set(saved) <= {0, 4, 8, 12, 16}  # one generator after another
    finish(start(*command))
    assert json.loads((tmp_path / "ranking.json").read_text())["encodes"] == (16 - saved[-1]) * FULL
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["B"], cross_scores(slow_models(), **SIZES))
    left = {path.name for path in tmp_path.iterdir() if path.name[0] != "."}  # half files are hidden
    assert left == {"ranking.json", "scores.h5", "similarity.png"}


def test_rank_from_python_is_the_command(pool, tmp_path):
    expected, names = run(), ["identity", "rotated", "collapsed", "permuted"]
    models = {name: KNOWN[name] for name in names}
    ranking = crgan.rank(models, **SIZES)
    assert ranking.winner == expected["winner"] == ranking.names[ranking.order[0]]
    assert ranking.rows() == expected["models"]
    assert ranking.sentences == expected["sentences"]
    np.testing.assert_array_equal(ranking.similarity, crgan.similarity(cross_scores(models, **SIZES)))
    assert ranking.table().splitlines()[1].split()[-1] == ranking.winner
    kept = crgan.rank("pool:models", out="out", **SIZES)
    assert kept.details["encodes"] == 0
    np.testing.assert_array_equal(kept.scores, ranking.scores)
    assert crgan.rank(list(models.values()), budget=0.5, **SIZES).winner in ("models[0]", "models[3]")
    with pytest.raises(InputError, match="budget is 0"):
        crgan.rank(models, budget=0)
