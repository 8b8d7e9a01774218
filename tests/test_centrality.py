from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from threading import BrokenBarrierError

import numpy as np
import pytest
import torch
from grid_data import Grid
from linear_models import Linear, known_pool, rotation

from crgan.device import arithmetic
from crgan.errors import InputError
from crgan.loading import Member
from crgan.metrics import evaluate
from crgan.selection.budget import sequential_halving
from crgan.selection.centrality import (
    Pair,
    Pool,
    Sizes,
    bootstrap,
    confidence_gap,
    cross_scores,
    factor_score,
    model_centrality,
    similarity,
    split,
    vote_tables,
)
from crgan.threads import core_each

SMALL = {"groups": 40, "group_size": 50, "scale_samples": 1000}


class Recorder:
    """Passes on a model's images and keeps them."""

    def __init__(self, model):
        self.model, self.points, self.groups = model, [], []
        self.prior, self.num_codes, self.image_shape = model.prior, model.num_codes, model.image_shape

    def sample(self, n, seed):
        self.points.append(self.model.sample(n, seed))
        return self.points[-1]

    def generate(self, codes):
        self.groups.append(codes)
        return self.model.generate(codes)

    def encode(self, images):
        return self.model.encode(images)


def plain_score(encoder, generator, points, groups):
    """The definition, group by group."""
    scale = encoder.encode(torch.cat(points)).double().numpy().std(0)
    votes = np.zeros((len(scale), generator.num_codes))
    for m, codes in enumerate(groups):
        held = encoder.encode(generator.generate(codes)).double().numpy()
        votes[(held.std(0) / scale).argmin(), m % generator.num_codes] += 1
    return votes.max(1).sum() / votes.sum()


def test_agrees_with_the_definition():
    noisy = torch.eye(4) + 0.4 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    models = [Linear(torch.eye(4), pixels=6), Linear(rotation(6, 0)), Linear(noisy, pixels=6)]
    recorders = [Recorder(model) for model in models]
    B = cross_scores(recorders, **SMALL)
    for j, seen in enumerate(recorders):
        assert sum(map(len, seen.points)) >= SMALL["scale_samples"]
        assert len(seen.groups) == SMALL["groups"]
        seen.points[-1] = seen.points[-1][: SMALL["scale_samples"] - sum(map(len, seen.points[:-1]))]
        for i, encoder in enumerate(models):
            assert B[i, j] == pytest.approx(plain_score(encoder, models[j], seen.points, seen.groups), abs=1e-12)


def test_scores_in_float32_whatever_the_caller_set():
    seen = []

    class Watch(Linear):
        def encode(self, images):
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return images.flatten(1) @ self.unmix.T

    pixels = Watch(torch.eye(4))
    pixels.image_shape = Grid.image_shape
    with arithmetic("tf32"):
        cross_scores([Watch(torch.eye(3)), Watch(rotation(3, 0))], **SMALL)
        pooled = len(seen)
        evaluate(pixels, Grid(), groups=10, scale_samples=100)
        assert torch.backends.cuda.matmul.allow_tf32
    assert 0 < pooled < len(seen)
    assert not any(seen)


def test_groups_hold_one_code_and_draw_all_else_anew():
    recorders = [Recorder(Linear(torch.eye(3))) for _ in range(2)]
    recorders[1].prior = "normal"
    cross_scores(recorders, **SMALL)
    for recorder in recorders:
        codes = torch.stack(recorder.groups)  # [M, L, K]
        for m, group in enumerate(codes):
            assert (group.std(0) == 0).tolist() == [k == m % 3 for k in range(3)]
        free = torch.cat([codes[m, :, (m + 1) % 3] for m in range(len(codes))])
        assert len(free.unique()) > 0.99 * len(free)
        held = torch.stack([codes[m, 0, m % 3] for m in range(len(codes))])
        assert len(held.unique()) == len(held)
        if recorder.prior == "uniform":
            assert codes.abs().max() <= 1
            assert free.std().item() == pytest.approx(3**-0.5, rel=0.05)
        else:
            assert free.std().item() == pytest.approx(1, rel=0.05)


def test_known_pool_is_ranked_as_the_definition_demands():
    pool = known_pool()
    names, K = list(pool), 5
    B = cross_scores(list(pool.values()), groups=100, group_size=100, scale_samples=2000)
    row = dict(zip(names, B))
    assert np.isfinite(B).all()
    assert (B[:3, :3] == 1).all()  # order, sign and scale of the codes do not matter
    for name in ("collapsed", "broken"):
        assert (row[name] == 1 / K).all()  # chance, wherever the images come from
    # the constant code never votes, so the four others share five factors: only the votes of one are misplaced
    assert row["constant code"][0] == pytest.approx(1 - 1 / K, abs=0.05)
    assert 1 / K < row["rotated"][0] < 0.9
    s = dict(zip(names, model_centrality(similarity(B))))
    assert min(s["identity"], s["permuted"], s["rescaled"]) > s["constant code"] > s["rotated"]
    assert s["rotated"] > max(s["collapsed"], s["broken"])


def test_similarity_and_centrality_by_hand():
    B = np.array([[1.0, 0.8, 0.4], [0.6, 1.0, 0.2], [0.4, 0.0, 1.0]])
    A = similarity(B)
    np.testing.assert_allclose(A, [[1, 0.7, 0.4], [0.7, 1, 0.1], [0.4, 0.1, 1]])
    np.testing.assert_allclose(model_centrality(A), [0.55, 0.4, 0.25])


def test_models_of_unlike_code_sizes():
    wide = Linear(torch.eye(6))
    B = cross_scores([Linear(torch.eye(4), pixels=6), wide], **SMALL)
    assert B[0, 0] == B[1, 1] == B[1, 0] == 1  # the wide encoder finds all four codes of the other
    assert B[0, 1] == pytest.approx(4 / 6, abs=0.15)  # four codes cannot tell six factors apart


def test_no_value_depends_on_batches_on_order_or_on_the_rest_of_the_pool():
    models = list(known_pool().values())[2:6]
    B = cross_scores(models, **SMALL, seed=3)
    np.testing.assert_array_equal(B, cross_scores(models, **SMALL, seed=3, batch_size=37))
    np.testing.assert_array_equal(B, cross_scores(models, **SMALL, seed=3, batch_size=10_000))
    order = [2, 0, 3]
    np.testing.assert_array_equal(B[np.ix_(order, order)], cross_scores([models[i] for i in order], **SMALL, seed=3))
    assert not np.array_equal(B, cross_scores(models, **SMALL, seed=4))


def test_measuring_in_stages_makes_every_image_once():
    model, other = Linear(rotation(5, 0)), Linear(torch.eye(5))
    recorder = Recorder(model)
    sizes = Sizes(40, 50, 1000)
    encoded = []
    pool = Pool([Member("a", other, "a"), Member("b", recorder, "b")], sizes, batch_size=90, progress=encoded.append)
    for groups in (7, 8, 25, 40):
        pool.measure(1, [0], groups)
        assert pool.pairs[0, 1].done == groups
    assert pool.pairs[0, 1].count == 1000
    assert len(pool.pairs[0, 1].votes) == 40
    seen = torch.cat(recorder.groups).flatten().tolist()
    again = Recorder(model)
    Pool([Member("a", other, "a"), Member("b", again, "b")], sizes).measure(1, [0], 40)
    assert set(seen) == set(torch.cat(again.groups).flatten().tolist())


def test_moments_are_exact_where_one_pass_sums_fail():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(10_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 1e7, -1e4])
    codes[:, 1] = 0.1  # a constant that no float holds exactly
    pair = Pair()
    for part in codes.split(777):
        pair.add_points(part)
    assert pair.count == 10_000
    assert pair.m2[1] == 0
    for k in (0, 2):
        assert (pair.m2[k] / 10_000).item() == pytest.approx(codes[:, k].numpy().var(), rel=1e-10)


def test_mistakes_name_the_models():
    with pytest.raises(InputError, match="at least 2 models, got 1"):
        cross_scores([Linear(torch.eye(3))])
    with pytest.raises(InputError, match=r"models\[0\].*\[1, 1, 3\].*models\[1\].*\[1, 1, 4\]"):
        cross_scores([Linear(torch.eye(3)), Linear(torch.eye(3), pixels=4)])
    with pytest.raises(InputError, match=r"models\[1\] has no sample"):
        cross_scores([Linear(torch.eye(3)), object()])
    with pytest.raises(InputError, match="groups is 0"):
        cross_scores([Linear(torch.eye(3))] * 2, groups=0)
    short = Linear(torch.eye(3))
    short.encode = lambda images: images[:-1, 0, 0]
    with pytest.raises(InputError, match=r"models\[1\].encode gave a tensor"):
        cross_scores([Linear(torch.eye(3)), short], **SMALL)


def make_pool(seed, spread=0.5, n=6):
    draw = torch.Generator().manual_seed(7)
    turns = [torch.matrix_exp(spread * t * (x - x.T)) for t, x in enumerate(torch.randn(n, 4, 4, generator=draw))]
    members = [Member(str(t), Linear(turn), f"{t}") for t, turn in enumerate(turns)]
    pool = Pool(members, Sizes(60, 30, 500, seed))
    pool.measure_all()
    return pool


def test_bootstrap_tells_the_spread_over_fresh_draws():
    scores = np.array([model_centrality(similarity(make_pool(seed).B)) for seed in range(25)])
    pool = make_pool(0)
    resampled = bootstrap(pool, ~np.eye(6, dtype=bool))
    ratio = resampled.std(0) / scores.std(0, ddof=1)
    assert 0.7 < np.median(ratio) < 1.4
    s = scores.mean(0)
    gap = confidence_gap(pool, int(s.argmax()), int(s.argmin()))
    assert gap["gap"] == pytest.approx(s.max() - s.min(), abs=3 * gap["standard_error"] + 0.05)
    assert gap["gap"] > 3 * gap["standard_error"]
    own = model_centrality(similarity(pool.B))
    assert gap["gap"] == pytest.approx(own[s.argmax()] - own[s.argmin()])  # all pairs known: the scores' difference
    assert gap["confidence"] > 0.99


def test_bootstrap_is_that_of_whole_vote_tables():
    pool = make_pool(0)
    pool.pairs[1, 2]._votes = [np.where(np.arange(60) < 9, -1, pool.pairs[1, 2].votes)]  # groups without a vote
    total = np.zeros((50, 6))
    for j in range(6):
        weights = np.random.default_rng([0, j]).poisson(1, (50, 60))
        for i in set(range(6)) - {j}:
            drawn = [np.repeat(pool.pairs[i, j].votes, w) for w in weights]
            factors = [np.repeat(pool.factor(j), w) for w in weights]
            tables = np.array([vote_tables(v[None], f, 4, 4)[0] for v, f in zip(drawn, factors)])
            total[:, i] += factor_score(tables) / 10
            total[:, j] += factor_score(tables) / 10
    np.testing.assert_allclose(bootstrap(pool, ~np.eye(6, dtype=bool), 50), total, rtol=1e-6)


def test_bootstrap_of_few_groups_is_finite():
    pool = make_pool(0)
    for key, pair in pool.pairs.items():
        pool.pairs[key]._votes, pool.pairs[key].done = [pair.votes[:2]], 2
    assert np.isfinite(bootstrap(pool, ~np.eye(6, dtype=bool))).all()


def test_an_encoder_of_16_bit_codes_votes_as_with_the_same_codes_in_float32():
    class Rounded(Linear):
        def __init__(self, seed, dtype):
            super().__init__(rotation(5, seed))
            self.dtype, self.fingerprint = dtype, f"{seed}"  # which keys the draws

        def encode(self, images):
            return (2e4 * super().encode(images)).bfloat16().to(self.dtype)

    types = torch.float32, torch.bfloat16
    expected, found = (cross_scores([Rounded(seed, dtype) for seed in range(3)], **SMALL) for dtype in types)
    np.testing.assert_array_equal(found, expected)


def test_images_of_another_range_or_type_are_told():
    class Bytes(Linear):
        def sample(self, n, seed):
            return super().sample(n, seed).byte()

    models = {"far": Linear(2 * torch.eye(2)), "near": Linear(torch.eye(2) / 2)}
    with pytest.warns(UserWarning, match=r"far makes images from -\S+ to \S+; expected 0 to 1"):
        cross_scores(models, **SMALL)
    with pytest.raises(InputError, match=r"bytes\.sample gave a tensor of torch\.uint8, expected floats"):
        cross_scores({"bytes": Bytes(torch.eye(2)), **models}, **SMALL)


def test_threads_that_cannot_begin_hold_nobody_up():
    def begin():
        raise OSError("no such stream")

    with pytest.raises((BrokenThreadPool, BrokenBarrierError)):
        core_each(3, begin)


def test_threads_that_begin_later_compute_as_before():
    with ThreadPoolExecutor(1) as threads:
        expected = threads.submit(torch.get_num_threads).result()
    cross_scores([Linear(torch.eye(2)), Linear(-torch.eye(2))], **SMALL)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(torch.get_num_threads).result() == expected


def test_a_module_encodes_where_its_weights_are():
    class Bare(torch.nn.Module):
        num_codes, image_shape = 2, (1, 1, 2)

        def __init__(self, device):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(2, device=device))

        def sample(self, n, seed): ...
        def generate(self, codes): ...
        def encode(self, images): ...

    assert Member("bare", Bare("meta"), "f").device == torch.device("meta")
    assert Member("other", Linear(torch.eye(2))).device == torch.device("cpu")


def test_what_is_no_similarity_is_refused():
    with pytest.raises(InputError, match=r"shape \[2, 3\]; expected \[N, N\]"):
        model_centrality(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"shape \[1, 1\]"):
        model_centrality(np.zeros((1, 1)))
    with pytest.raises(InputError, match="holds NaN, pairs not measured"):
        model_centrality(similarity([[0, 1, np.nan], [1, 0, 1], [1, 1, 0]]))
    assert model_centrality(torch.tensor([[np.nan, 0.5], [0.5, np.nan]])).tolist() == [0.5, 0.5]


def test_a_split_pool_is_noticed_and_a_good_and_bad_one_is_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 20)) * 0.03
    two = np.full((20, 20), 0.4)
    two[:12, :12] = two[12:, 12:] = 0.9
    order = rng.permutation(20)
    side, lead = split((two + noise)[np.ix_(order, order)])
    assert {frozenset(order[side]), frozenset(order[~side])} == {frozenset(range(12)), frozenset(range(12, 20))}
    assert lead == pytest.approx(0.5, abs=0.1)
    side, _ = split((two + noise)[np.ix_(order, order)][:, :9])  # some references only
    assert set(order[side]) in ({*range(12)}, {*range(12, 20)})
    good_and_bad = np.full((20, 20), 0.4)
    good_and_bad[:12, :12] = 0.9
    assert split(good_and_bad + noise) is None
    assert split(0.7 + noise) is None


def matrix_pool(n, seed):
    """Exact answers without noise: a matrix that is not quite symmetric."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0.3, 1, n)
    B = np.minimum.outer(quality, quality) + rng.normal(size=(n, n)) * 0.05
    calls = []

    def measure(j, encoders, groups):
        calls.append((j, tuple(encoders), groups))
        return B[encoders, j]

    return B, measure, calls


@pytest.mark.parametrize("n", [3, 8, 50, 300])
def test_halving_keeps_its_budget_and_finds_the_medoid(n):
    sizes = Sizes()
    share = {3: 0.9, 8: 0.5, 50: 0.1, 300: 0.04}[n]
    regret = []
    for seed in range(5):
        B, measure, calls = matrix_pool(n, seed)
        s = model_centrality(similarity(B))
        result = sequential_halving(measure, n, share, sizes=Sizes(seed=seed))
        assert sorted(result.ranking) == list(range(n))
        regret.append(s.max() - s[result.ranking[0]])
        exact = n * n * sizes.encodes(sizes.groups)
        assert result.encodes <= share * exact
        # what was asked for is what was paid for, and no pair twice for the same groups
        done = np.zeros((n, n), int)
        for j, encoders, groups in calls:
            assert (done[list(encoders), j] < groups).all()
            done[list(encoders), j] = groups
        assert int(sizes.encodes(done).sum()) == result.encodes
        # every model of a round met the same references, on as many groups, both ways
        first = result.rounds[0]
        met = result.references[: first["references"]]
        others = np.setdiff1d(np.arange(n), met)
        assert (done[np.ix_(others, met)] >= first["groups"]).all()
        assert (done[np.ix_(met, others)] >= first["groups"]).all()
        assert first["models"] == n
    assert np.mean(regret) < 0.01


def test_halving_refuses_a_budget_that_buys_nothing_and_says_what_would():
    _, measure, calls = matrix_pool(50, 0)
    with pytest.raises(InputError, match=r"0\.001 is too small for 50 models; expected at least (0\.\d+)") as error:
        sequential_halving(measure, 50, 0.001, sizes=Sizes())
    assert not calls
    least = float(str(error.value).split()[-1])
    assert len(sequential_halving(measure, 50, least * 1.05, sizes=Sizes()).ranking) == 50
