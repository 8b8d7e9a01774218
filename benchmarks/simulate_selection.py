"""How often budgeted selection finds the exact winner, on simulated pools of linear models.

Model j makes x = W_j c from uniform codes c, and its encoder is E_j W_j^-1, E_j near the identity: an encoder that
undoes its generator not quite. Encoder i sees generator j's codes through T = E_i W_i^-1 W_j, so every vote is drawn
as in a real selection: from the variances of 100 codes in a group, over the variance of a scale sample (exact) or the
mean variance in the groups so far (race), with the groups of a generator shared by all encoders. W_j = expm(t_j S_j),
S_j random and skew: t_j = 0 is a perfect model.

    python benchmarks/simulate_selection.py --models 50 --budget 0.1 --pools 10 --trials 20
"""

import json
import time

import numpy as np
import tyro
from scipy.linalg import expm

from crgan import model_centrality, similarity
from crgan.metrics import vote_score
from crgan.selection.budget import sequential_halving
from crgan.selection.centrality import Sizes, vote_tables
from crgan.selection.uncertainty import bootstrap

L, K, BANK = 100, 5, 2048
SPREAD, ENCODER_ERROR = 0.8, 0.1


def covariance_bank(rng: np.random.Generator) -> np.ndarray:
    """Sample covariances [K, BANK, K * K] of groups of L uniform codes with code f held."""
    bank = np.empty((K, BANK, K, K), np.float32)
    for f in range(K):
        codes = rng.uniform(-1, 1, (BANK, L, K))
        codes[:, :, f] = 0
        codes -= codes.mean(1, keepdims=True)
        bank[f] = codes.transpose(0, 2, 1) @ codes / L
    return bank.reshape(K, BANK, K * K)


class LinearPool:
    def __init__(self, num_models: int, seed: int, sizes: Sizes):
        rng = np.random.default_rng(seed)
        skew = rng.normal(size=(num_models, K, K)) / np.sqrt(2)
        turns = rng.gamma(2.0, SPREAD / 2, num_models)  # how far each model is from disentangled
        self.W = expm(turns[:, None, None] * (skew - skew.swapaxes(1, 2)))
        noise = rng.normal(size=(num_models, K, K)) * ENCODER_ERROR
        self.decode = (np.eye(K) + noise) @ self.W.swapaxes(1, 2)  # E_i W_i^-1
        self.sizes, self.seed, self.bank = sizes, seed, covariance_bank(rng)
        self.race_votes: dict[int, np.ndarray] = {}  # of generator j [N, groups], -1: not yet
        self.B = np.full((num_models, num_models), np.nan)

    def variances(self, encoders: np.ndarray, j: int, groups: int) -> np.ndarray:  # [n, K, groups]
        """Draw what is inside the first groups of generator j, and express it in the encoders' codes."""
        rng = np.random.default_rng([self.seed, j])
        pick = rng.integers(BANK, size=self.sizes.groups)[:groups]
        C = self.bank[np.arange(groups) % K, pick]  # [groups, K * K]
        T = (self.decode[encoders] @ self.W[j]).astype(np.float32)  # [n, K, K]
        Q = (T[..., :, None] * T[..., None, :]).reshape(-1, K * K)
        return (Q @ C.T).reshape(len(encoders), K, groups)

    def votes(self, j: int) -> np.ndarray:  # [N, M]
        """The exact votes of all encoders on generator j, by the variance of a scale sample."""
        R = self.sizes.scale_samples
        rng = np.random.default_rng([self.seed, j, R])
        noise = np.triu(rng.normal(size=(K, K)) / 3, 1)  # of a covariance: Var(u v) = 1/9, Var(u^2) = 4/45
        S = np.eye(K) / 3 + (noise + noise.T + np.diag(rng.normal(size=K) * np.sqrt(4 / 45))) / np.sqrt(R)
        T = (self.decode @ self.W[j]).astype(np.float32)
        scale2 = np.einsum("nab,bc,nac->na", T, S.astype(np.float32), T)
        return (self.variances(np.arange(len(self.W)), j, self.sizes.groups) / scale2[..., None]).argmin(1)

    def race(self, pairs: np.ndarray, groups: int) -> np.ndarray:
        """Measure as a race does: new groups vote by the mean variance so far, earlier votes stay."""
        for j in np.flatnonzero(pairs.any(0)).tolist():
            encoders = np.flatnonzero(pairs[:, j])
            variances = self.variances(encoders, j, groups)
            new = (variances / variances.mean(2, keepdims=True)).argmin(1)
            kept = self.race_votes.get(j, np.full((len(self.W), 0), -1, np.int8))
            kept = np.pad(kept, ((0, 0), (0, max(0, groups - kept.shape[1]))), constant_values=-1)
            old = kept[encoders, :groups]
            kept[encoders, :groups] = votes = np.where(old < 0, new, old)
            self.race_votes[j] = kept
            self.B[encoders, j] = vote_score(vote_tables(votes.astype(np.int64), K, K))
        return self.B

    def standard_error(self, model: int) -> float:
        """By the bootstrap over groups that the command uses."""
        N = len(self.W)
        mask = (np.arange(N) == model) ^ (np.arange(N)[:, None] == model)  # the model with all others, both ways
        votes = {}
        for j in range(N):
            taken = self.votes(j)
            votes |= {(i, j): taken[i] for i in np.flatnonzero(mask[:, j]).tolist()}
        return float(bootstrap(votes, [K] * N, mask, self.sizes.seed)[:, model].std())


def simulate(models: int = 50, budget: float = 0.1, pools: int = 5, trials: int = 20, first: int = 15) -> None:
    """Print how often the race over pools of linear models finds their exact winner, and what it costs."""
    rows = []  # one for each selection
    for p in range(pools):
        sizes = Sizes(seed=p)
        pool = LinearPool(models, 1000 + p, sizes)
        B = np.stack([vote_score(vote_tables(pool.votes(j), K, K)) for j in range(models)], 1)
        s = model_centrality(similarity(B))
        best = int(s.argmax())
        error = pool.standard_error(best)
        for trial in range(trials):
            begin = time.perf_counter()
            pool.race_votes.clear()
            result = sequential_halving(pool.race, models, budget, sizes=Sizes(seed=trial), first_groups=first)
            regret = s[best] - s[result.ranking[0]]
            row = {"exact_winner": result.ranking[0] == best, "within_one_standard_error": regret <= error}
            row |= {"mean_regret": regret, "share_of_encodes": result.encodes / (models**2 * sizes.encodes)}
            rows.append(row | {"seconds_per_selection": time.perf_counter() - begin})
    results = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    results["worst_regret"] = max(row["mean_regret"] for row in rows)
    print(json.dumps({name: float(value) for name, value in results.items()}, indent=2))


if __name__ == "__main__":
    tyro.cli(simulate)
