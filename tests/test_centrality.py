"""ModelCentrality: the matrix against its definition, known answers, what no value depends on, and how sure it is."""

import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from linear_models import Linear, Rotation, known_pool, rotation

from crgan import InputError, cross_scores, model_centrality, similarity
from crgan.loading import LoadedModel
from crgan.selection import centrality
from crgan.selection.budget import sequential_halving
from crgan.selection.centrality import Pool, Sizes, vote_score, vote_tables
from crgan.selection.uncertainty import bootstrap, confidence_gap, split

SMALL = {"groups": 40, "group_size": 50, "scale_samples": 1000}


class Recorder:
    """Passes on a model's images and keeps them."""

    def __init__(self, model):
        self.model, self.points, self.groups = model, [], []
        self.fingerprint, self.num_noise = f"recorder-{id(model)}", 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def sample(self, n, seed):
        assert 0 <= seed < 2**32  # as numpy and others need it
        self.points.append(self.model.sample(n, seed))
        return self.points[-1]

    def generate(self, codes, seed=0):
        assert 0 <= seed < 2**32
        self.groups.append(codes)
        return self.model.generate(codes)


def plain_score(encoder, generator, points, groups):
    """The definition, group by group."""
    scale = encoder.encode(torch.cat(points)).double().numpy().std(0)
    table = np.zeros((len(scale), generator.num_codes))
    for m, codes in enumerate(groups):
        held = encoder.encode(generator.generate(codes)).double().numpy()
        table[(held.std(0) / scale).argmin(), m % generator.num_codes] += 1
    return table.max(1).sum() / table.sum()


def test_agrees_with_the_definition():
    """Each image of the scale sample and of the groups is made once, for all encoders."""
    noisy = torch.eye(4) + 0.4 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    models = [Linear(torch.eye(4), pixels=6), Linear(rotation(6, 0)), Linear(noisy, pixels=6)]
    recorders = [Recorder(model) for model in models]
    B = cross_scores(recorders, **SMALL)
    for j, seen in enumerate(recorders):
        assert sum(map(len, seen.points)) == SMALL["scale_samples"]
        assert len(seen.groups) == SMALL["groups"]
        for i, encoder in enumerate(models):
            assert B[i, j] == pytest.approx(plain_score(encoder, models[j], seen.points, seen.groups), abs=1e-12)


def test_scores_do_not_depend_on_what_the_caller_set():
    models, seen, matmul = [Linear(torch.eye(3)), Linear(rotation(3, 0))], [], torch.backends.cuda.matmul
    models[0].encode = lambda x: seen.append((matmul.fp32_precision, x.dtype)) or Linear.encode(models[0], x)
    expected = cross_scores(models, **SMALL)
    torch.set_default_dtype(torch.float64)
    matmul.fp32_precision = "tf32"
    np.testing.assert_array_equal(cross_scores(models, **SMALL), expected)
    assert set(seen) == {("ieee", torch.float32)}


@pytest.mark.parametrize(("prior", "spread"), [("uniform", 3**-0.5), ("normal", 1)])
def test_groups_hold_one_code_and_draw_all_else_anew(prior, spread):
    recorders = [Recorder(Linear(torch.eye(3))) for _ in range(2)]
    recorders[0].prior, recorders[0].num_noise = prior, 1
    cross_scores(recorders, **SMALL)
    codes = torch.stack(recorders[0].groups)  # [M, L, K]
    for m, group in enumerate(codes):
        assert (group.std(0) == 0).tolist() == [k == m % 3 for k in range(3)]
    free = torch.cat([codes[m, :, (m + 1) % 3] for m in range(len(codes))])
    assert len(free.unique()) > 0.99 * len(free)
    assert len({codes[m, 0, m % 3].item() for m in range(len(codes))}) == len(codes)
    assert prior == "normal" or codes.abs().max() <= 1
    assert free.std().item() == pytest.approx(spread, rel=0.05)


def test_known_pool_is_ranked_as_the_definition_demands():
    pool, K = known_pool(), 5
    B = cross_scores(pool, groups=100, group_size=100, scale_samples=2000)
    row = dict(zip(pool, B))
    assert np.isfinite(B).all()
    assert (B[:3, :3] == 1).all()  # order, sign and scale of the codes do not matter
    for name in ("collapsed", "broken"):
        assert (row[name] == 1 / K).all()  # chance, wherever the images come from
    # the constant code never votes, so the four others share five factors: only the votes of one are misplaced
    assert row["constant code"][0] == pytest.approx(1 - 1 / K, abs=0.05)
    assert 1 / K < row["rotated"][0] < 0.9
    B = cross_scores([Linear(torch.eye(4), pixels=6), Linear(torch.eye(6))], **SMALL)
    assert B[0, 0] == B[1, 1] == B[1, 0] == 1  # the wide encoder finds all four codes of the other
    assert B[0, 1] == pytest.approx(4 / 6, abs=0.15)  # four codes cannot tell six factors apart


def test_centrality_by_hand():
    B = np.array([[1.0, 0.8, 0.4], [0.6, 1.0, 0.2], [0.4, 0.0, 1.0]])
    A = similarity(B)
    np.testing.assert_allclose(A, [[1, 0.7, 0.4], [0.7, 1, 0.1], [0.4, 0.1, 1]])
    np.testing.assert_allclose(model_centrality(A), [0.55, 0.4, 0.25])
    assert model_centrality(torch.tensor([[np.nan, 0.5], [0.5, np.nan]])).tolist() == [0.5, 0.5]
    unknown = similarity([[0, 1, np.nan], [1, 0, 1], [1, 1, 0]])
    for wrong, value in ((np.zeros((2, 3)), r"\[2, 3\]"), (np.zeros((1, 1)), r"\[1, 1\]"), (unknown, "NaN")):
        with pytest.raises(InputError, match=value):
            model_centrality(wrong)


def test_no_value_depends_on_batches_on_order_or_on_the_rest_of_the_pool(monkeypatch):
    models, seen = list(known_pool().values())[2:6], []
    models[0].encode = lambda images: seen.append(len(images)) or Linear.encode(models[0], images)
    B = cross_scores(models, **SMALL, seed=3)
    assert max(seen) == 512  # by default; thousands at once are slow on a CPU
    for batch_size in (37, 10_000):
        np.testing.assert_array_equal(B, cross_scores(models, **SMALL, seed=3, batch_size=batch_size))
    order = [2, 0, 3]
    np.testing.assert_array_equal(B[np.ix_(order, order)], cross_scores([models[i] for i in order], **SMALL, seed=3))
    assert not np.array_equal(B, cross_scores(models, **SMALL, seed=4))
    monkeypatch.setattr(centrality, "ENCODERS_BLOCK", 3)  # encoders whose codes are in memory at a time
    np.testing.assert_array_equal(B, cross_scores(models, **SMALL | {"groups": 40.0}, seed=3))


def test_a_race_makes_each_image_once_and_takes_its_scale_from_its_groups():
    model, other, encoded = Linear(rotation(5, 0)), Linear(torch.eye(5)), []
    recorder = Recorder(model)
    pool = Pool([LoadedModel("a", other, "a"), LoadedModel("b", recorder, "b")], Sizes(40, 50, 1000), 90)
    pool.progress = encoded.append
    pair = np.array([[False, True], [False, False]])
    for groups in (7, 8, 25, 40):
        score = pool.measure(pair, groups)[0, 1]
        assert len(pool.known[pool.keys[0], pool.keys[1]].votes) == groups
    assert sum(encoded) == 40 * 50
    assert not recorder.points
    (found,) = pool.known.values()
    codes = other.encode(model.generate(torch.cat(recorder.groups))).double().unflatten(0, (40, 50))
    np.testing.assert_allclose(found.variance, codes.var(1, correction=0).mean(0), rtol=1e-5)
    assert pool.measure(pair, 25)[0, 1] == vote_score(vote_tables(found.votes[None, :25], 5, 5))[0]
    assert sum(encoded) == 40 * 50
    exact = pool.measure(pair)[0, 1]  # anew, by the scale sample
    assert score == pytest.approx(exact, abs=0.1)
    assert sum(encoded) == 2 * 40 * 50 + 1000
    assert pool.measure(pair, 40)[0, 1] == exact  # which then serves races too
    assert sum(encoded) == 2 * 40 * 50 + 1000
    pool.measure(pair, 8)
    assert [len(votes) for votes in pool.scored.values()] == [8]  # of which a race knows how many it scored


def test_a_constant_that_no_float_holds_never_votes():
    model, shift, stretch = Linear(torch.eye(3)), torch.tensor([0.1, 1e4, 0]), torch.tensor([0, 1, 1])
    model.encode = lambda images: Linear.encode(model, images) * stretch + shift
    B = cross_scores([model, Linear(torch.eye(3))], **SMALL)
    assert B[0, 0] == pytest.approx(2 / 3, abs=0.1)  # two codes for three factors


def test_mistakes_name_the_models():
    linear, short, failing, integers = (Linear(torch.eye(3)) for _ in range(4))
    short.encode = lambda images: images[:-1, 0, 0]
    failing.encode, failing.fingerprint = Mock(side_effect=RuntimeError("the reason")), "f"
    integers.sample = lambda n, seed: Linear.sample(integers, n, seed).byte()
    for models, sizes, value in (
        ([linear], {}, "at least 2 models, got 1"),
        ([linear, Linear(torch.eye(3), pixels=4)], {}, r"models\[0\].*\[1, 1, 3\].*models\[1\].*\[1, 1, 4\]"),
        ([linear, object()], {}, r"models\[1\] has no sample"),
        ([linear] * 2, {}, r"models\[0\] and models\[1\] behave the same"),
        ([linear] * 2, {"groups": 0}, "groups is 0"),
        ([linear] * 2, {"groups": 1.5}, "groups is 1.5"),
        ({"a": linear, "short": short}, SMALL, r"short.encode gave a tensor \[63, 3\]"),
        ({"a": linear, "f": failing}, SMALL, r"f.encode failed \(the reason\)"),
        ({"a": linear, "bytes": integers}, SMALL, r"bytes\.sample gave a tensor \[64, 1, 1, 3\] of torch\.uint8"),
    ):
        with pytest.raises(InputError, match=value):
            cross_scores(models, **sizes)
    with pytest.warns(UserWarning, match=r"far makes images from -\S+ to \S+; expected 0 to 1"):
        cross_scores({"far": Linear(2 * torch.eye(2)), "near": Linear(torch.eye(2) / 2)}, **SMALL)


def test_modules_are_in_eval_mode_meanwhile_and_as_they_were_after():
    class Holder:
        def __init__(self, module):
            self.module, self.sample, self.generate, self.encode = module, module.sample, module.generate, module.encode

    modules = [Rotation(seed) for seed in range(2)]
    modules[0].norm.eval()
    before = [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]
    cross_scores([modules[0], Holder(modules[1])], **SMALL)
    assert [module.training for module in modules] == [True, True]
    assert [module.norm.training for module in modules] == [False, True]
    for module, state in zip(modules, before):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_models_of_half_and_double_precision_share_a_pool():
    types = (torch.float32, torch.float64, torch.bfloat16)
    B = cross_scores([Rotation(seed, dtype=dtype) for seed, dtype in enumerate(types)], **SMALL)
    single = cross_scores([Rotation(seed) for seed in range(3)], **SMALL)
    np.testing.assert_allclose(B, single, atol=0.2)

    class Stubborn(Rotation):
        def encode(self, images):
            return super().encode(images.float())

    with pytest.raises(InputError, match=r"models\[1\].encode failed.*torch.float64"):
        cross_scores([Rotation(0), Stubborn(1, dtype=torch.float64)], **SMALL)


def test_threads_end_and_those_that_begin_later_compute_as_before():
    def threads():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result(), threading.active_count()

    before = threads()
    cross_scores([Linear(torch.eye(2)), Linear(-torch.eye(2))], **SMALL)
    assert threads() == before


# ---------------------------------------------------------------- how sure the choice is


def make_pool(seed, n=6):
    draw = torch.Generator().manual_seed(7)
    turns = [torch.matrix_exp(0.5 * t * (x - x.T)) for t, x in enumerate(torch.randn(n, 4, 4, generator=draw))]
    models = [LoadedModel(str(t), Linear(turn), f"{t}") for t, turn in enumerate(turns)]
    pool = Pool(models, Sizes(60, 30, 500, seed))
    pool.measure(np.ones((n, n), bool))
    return pool, pool.scored


OTHERS = ~np.eye(6, dtype=bool)


def test_bootstrap_tells_the_spread_over_fresh_draws():
    scores = np.array([model_centrality(similarity(make_pool(seed)[0].B)) for seed in range(25)])
    pool, votes = make_pool(0)
    ratio = bootstrap(votes, [4] * 6, OTHERS).std(0) / scores.std(0, ddof=1)
    assert 0.7 < np.median(ratio) < 1.4
    s, A = scores.mean(0), similarity(pool.B)
    gap = confidence_gap(A, votes, [4] * 6, int(s.argmax()), int(s.argmin()))
    assert gap["gap"] == pytest.approx(s.max() - s.min(), abs=3 * gap["standard_error"] + 0.05)
    assert gap["gap"] > 3 * gap["standard_error"]
    own = model_centrality(A)
    assert gap["gap"] == pytest.approx(own[s.argmax()] - own[s.argmin()])  # all pairs known: the scores' difference
    assert gap["confidence"] > 0.99


def test_bootstrap_is_that_of_whole_vote_tables():
    _, known = make_pool(0)
    known[1, 2] = np.where(np.arange(60) < 9, -1, known[1, 2])  # groups without a vote
    total = np.zeros((50, 6))
    for j in range(6):
        weights = np.random.default_rng([0, j]).poisson(1, (50, 60))
        for i in set(range(6)) - {j}:
            tables = np.zeros((50, 5, 4))
            for m in range(60):
                tables[:, known[i, j][m] % 5, m % 4] += weights[:, m]
            total[:, i] += vote_score(tables) / 10
            total[:, j] += vote_score(tables) / 10
    np.testing.assert_allclose(bootstrap(known, [4] * 6, OTHERS, replicates=50), total, rtol=1e-6)
    few = {pair: votes[:2] for pair, votes in known.items()}
    assert np.isfinite(bootstrap(few, [4] * 6, OTHERS)).all()


def test_a_split_pool_is_noticed_and_a_good_and_bad_one_is_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 20)) * 0.03
    two = np.full((20, 20), 0.4)
    two[:12, :12] = two[12:, 12:] = 0.9
    order = rng.permutation(20)
    side, excess = split((two + noise)[np.ix_(order, order)], np.arange(20))
    assert {frozenset(order[side]), frozenset(order[~side])} == {frozenset(range(12)), frozenset(range(12, 20))}
    assert excess == pytest.approx(0.5, abs=0.1)
    side, _ = split((two + noise)[np.ix_(order, order)], rng.permutation(20)[:9])  # some references only
    assert set(order[side]) in ({*range(12)}, {*range(12, 20)})
    good_and_bad = np.full((20, 20), 0.4)
    good_and_bad[:12, :12] = 0.9
    assert split(good_and_bad + noise, np.arange(20)) is None
    assert split(0.7 + noise, np.arange(20)) is None


# ---------------------------------------------------------------- fewer pairs


def matrix_pool(n, seed):
    """Exact answers without noise: a matrix that is not quite symmetric."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0.3, 1, n)
    B = np.minimum.outer(quality, quality) + rng.normal(size=(n, n)) * 0.05
    calls = []

    def measure(pairs, groups):
        calls.append((pairs, groups))
        return B

    return B, measure, calls


@pytest.mark.parametrize(("n", "share"), [(3, 0.9), (8, 0.3), (50, 0.06), (300, 0.03)])
def test_halving_keeps_its_budget_and_finds_the_medoid(n, share):
    sizes, regret = Sizes(), []
    for seed in range(5):
        B, measure, calls = matrix_pool(n, seed)
        s = model_centrality(similarity(B))
        result = sequential_halving(measure, n, share, sizes=Sizes(seed=seed))
        assert sorted(result.ranking) == list(range(n))
        regret.append(s.max() - s[result.ranking[0]])
        done = np.zeros((n, n), int)
        for pairs, groups in calls:
            assert (done[pairs] < groups).all()  # no pair twice for the same groups
            done[pairs] = groups
        assert done.sum() * sizes.group_size == result.encodes <= share * n * n * sizes.encodes
        # every model of the first round met the same references, on as many groups, both ways
        first = result.rounds[0]
        met = result.references[: first["references"]]
        others = np.setdiff1d(np.arange(n), met)
        assert first["models"] == n
        for side in (done, done.T):
            assert (side[np.ix_(others, met)] >= first["groups"]).all()
        if n == 3:  # the budget pays for all groups of all pairs: one round of everything
            assert len(result.rounds) == 1
            assert (done[~np.eye(n, dtype=bool)] == sizes.groups).all()
    assert np.mean(regret) < 0.01


def test_halving_refuses_a_budget_that_buys_nothing_and_says_what_would():
    _, measure, calls = matrix_pool(50, 0)
    with pytest.raises(InputError, match=r"0\.0001 is too small for 50 models; expected at least (0\.\d+)") as error:
        sequential_halving(measure, 50, 0.0001, sizes=Sizes())
    assert not calls
    least = float(str(error.value).split()[-1])
    assert len(sequential_halving(measure, 50, least * 1.05, sizes=Sizes()).ranking) == 50
