// Runs every build of the vote table's kernel against the definition in double, without torch or a GPU, so that
// sanitizers see nothing but the kernel. With -DEMULATE_CUDA it is the CUDA kernel, run on the CPU.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#ifdef EMULATE_CUDA
#include "vote_table_kernel.cuh"

namespace crgan {
int4 shared[1 << 16];
}
#else
#include "vote_table_cpu.h"
#endif

using crgan::VoteTable;

namespace {

std::mt19937 generator(1);
int checks = 0;
double worst = 0;

struct Case {
  int64_t N, G, L, K;
};

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

float from_half(uint16_t h) { return bits<_Float16>(h); }
float from_bfloat16(uint16_t b) { return bits<float>((uint32_t)b << 16); }
uint16_t to_half(float f) { return bits<uint16_t>((_Float16)f); }
uint16_t to_bfloat16(float f) { return bits<uint32_t>(f) >> 16; }  // truncated, which is as good here

// Every group is its own factor, so the table shows who won in each. `values` are the codes as numbers.
void check(const char* name, const Case& c, const void* codes, const std::vector<double>& values,
           const std::vector<float>& scale, const std::function<void(const VoteTable&)>& run) {
  std::vector<int64_t> factor(c.G);
  for (int64_t g = 0; g < c.G; ++g) factor[g] = c.G - 1 - g;
  std::vector<int32_t> votes(c.N * c.K * c.G);
  run({codes, scale.data(), factor.data(), votes.data(), c.N, c.G, c.L, c.K, c.G});
  for (int64_t n = 0; n < c.N; ++n)
    for (int64_t g = 0; g < c.G; ++g) {
      int64_t winner = -1, total = 0;
      double least = INFINITY, won = INFINITY;
      for (int64_t d = 0; d < c.K; ++d) {
        const double* x = values.data() + (n * c.G + g) * c.L * c.K + d;
        double mean = c.L ? x[0] : 0, variance = c.L ? 0 : NAN;
        for (int64_t r = 0; r < c.L; ++r) mean += (x[r * c.K] - x[0]) / c.L;  // exact where all are equal
        for (int64_t r = 0; r < c.L; ++r) variance += (x[r * c.K] - mean) * (x[r * c.K] - mean) / c.L;
        const double s = scale[n * c.K + d], spread = s > 0 && s < INFINITY ? variance / s / s : NAN;
        const int32_t count = votes[(n * c.K + d) * c.G + factor[g]];
        total += count;
        if (count) winner = d, won = spread;
        if (spread < least) least = spread;
      }
      const bool right = least < INFINITY ? total == 1 && won <= least * (1 + 1e-5) : total == 0;
      if (least > 0 && won < INFINITY) worst = std::max(worst, won / least - 1);
      ++checks;
      if (!right) {
        printf("%s N=%ld G=%ld L=%ld K=%ld, n=%ld g=%ld: %ld votes, dimension %ld with %g, least %g\n", name, (long)c.N,
               (long)c.G, (long)c.L, (long)c.K, (long)n, (long)g, (long)total, (long)winner, won, least);
        exit(1);
      }
    }
}

template <typename T, typename Encode, typename Decode>
void check_type(const char* name, const Case& c, Encode encode, Decode decode,
                const std::function<void(const VoteTable&)>& run) {
  std::normal_distribution<float> normal;
  const size_t size = c.N * c.G * c.L * c.K;
  std::vector<float> scale(c.N * c.K);
  for (float& s : scale) s = std::exp(normal(generator));
  const float unusable[] = {0, -1, INFINITY, NAN};
  if (c.K > 2) scale[generator() % scale.size()] = unusable[generator() % 4];
#ifdef EMULATE_CUDA  // which copies the whole of the 16 bytes in which codes begin and end
  T* const allocated = (T*)aligned_alloc(16, (size + 1) * sizeof(T) / 16 * 16 + 16);
  T* codes = allocated + size % 2;
#else
  T* const allocated = (T*)malloc(size * sizeof(T) + !size);  // not a byte more, for the address sanitizer
  T* codes = allocated;
#endif
  std::vector<double> values(size);
  const float mean = generator() % 2 ? 100 : 0;
  for (size_t i = 0; i < size; ++i) {
    const float s = scale[i / (c.G * c.L * c.K) * c.K + i % c.K];
    const float value = size > 50 && i == 17 ? NAN : mean + (s > 0 && s < 100 ? s : 1) * normal(generator);
    const auto code = encode(value);
    memcpy(codes + i, &code, sizeof code);
    values[i] = decode(code);
  }
  check(name, c, codes, values, scale, run);
  free(allocated);
}

// Codes of mean 1e4 and deviation 1, the first of a group `outlier` off, with one dimension whose scaled variance is 2e-5
// below that of the others: it must be found.
void check_precision(const char* name, int64_t L, int64_t K, float outlier,
                     const std::function<void(const VoteTable&)>& run) {
  std::normal_distribution<float> normal(1e4, 1);
  const Case c{8, 1, L, K};
  std::vector<float> codes(c.N * L * K), scale(c.N * K);
  for (float& x : codes) x = normal(generator);
  for (size_t i = 0; i < codes.size(); ++i)
    if (i / K % L == 0) codes[i] += i % 2 ? outlier : -outlier;
  const std::vector<double> values(codes.begin(), codes.end());
  for (int64_t i = 0; i < c.N * K; ++i) {
    const double* x = values.data() + i / K * L * K + i % K;
    double mean = 0, variance = 0;
    for (int64_t r = 0; r < L; ++r) mean += x[r * K] / L;
    for (int64_t r = 0; r < L; ++r) variance += (x[r * K] - mean) * (x[r * K] - mean) / L;
    scale[i] = std::sqrt(variance * (i % K == i / K % K ? 1 + 2e-5 : 1));
  }
  check(name, c, codes.data(), values, scale, run);
}

// Dimensions that are equal: the first of them gets all votes, wherever in memory a group begins.
void check_ties(const char* name, int64_t L, int64_t K, const std::function<void(const VoteTable&)>& run) {
  std::normal_distribution<float> normal(3, 1);
  const Case c{1, 9, L, K};
  std::vector<float> codes(c.G * L * K), scale(K, 1.f);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = i % K ? codes[i - 1] : normal(generator);
  std::vector<int64_t> factor(c.G);
  std::vector<int32_t> votes(K);
  run({codes.data(), scale.data(), factor.data(), votes.data(), c.N, c.G, L, K, 1});
  if (votes[0] != c.G) {
    printf("%s L=%ld K=%ld: %d of %ld votes for the first of equal dimensions\n", name, (long)L, (long)K, votes[0],
           (long)c.G);
    exit(1);
  }
  checks += c.G;
}

template <typename F32, typename F16, typename BF16, typename Runner>
void check_types(const char* name, const std::vector<std::pair<int64_t, int64_t>>& precise,
                 const std::vector<Case>& cases, Runner runner) {
  const auto same = [](float f) { return f; };
  for (float outlier : {0.f, 5.f})
    for (const auto& [L, K] : precise) check_precision(name, L, K, outlier, runner((F32*)nullptr));
  for (const auto& [L, K] : {std::pair{33, 3}, {37, 5}, {101, 1}, {99, 10}, {701, 6}, {2001, 3}, {37, 40}})
    check_ties(name, L, K, runner((F32*)nullptr));
  for (const Case& c : cases) {
    check_type<F32>(name, c, same, same, runner((F32*)nullptr));
    check_type<F16>(name, c, to_half, from_half, runner((F16*)nullptr));
    check_type<BF16>(name, c, to_bfloat16, from_bfloat16, runner((BF16*)nullptr));
  }
}

}  // namespace

int main() {
#ifdef EMULATE_CUDA
  check_types<float, __half, __nv_bfloat16>(
      "cuda", {{100, 2}, {100, 40}, {1000, 5}, {10000, 5}},
      {{1, 1, 1, 1}, {2, 7, 100, 5}, {1, 5, 7, 2}, {3, 2, 33, 31}, {1, 2, 9, 32}, {1, 1, 17, 70},
       {1, 2, 700, 40}, {1, 3, 3000, 3}},
      [](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        return [](const VoteTable& t) {
          const crgan::Tiling tiling(t, sizeof(T));
          if (tiling.bytes > (int64_t)sizeof crgan::shared) puts("a tile has no room"), exit(1);
          launch(crgan::count_votes<T>, tiling.tiles, t, tiling);
        };
      });
#else
  for (unsigned h = 0; h < 65536; ++h) {  // the conversion that processors without one of their own take
    const std::vector<crgan::Half> row(crgan::baseline::W, crgan::Half{(uint16_t)h});
    const float got = crgan::baseline::load(row.data())[0], expected = from_half(h);
    if (got != expected && (got == got || expected == expected)) return printf("half %x is %g\n", h, got), 1;
  }
  std::vector<Case> cases;
  for (int64_t K = 1; K <= 70; ++K)
    for (int64_t L : {1, 2, 7, 8, 9, 31, 100}) cases.push_back({2, 3, L, K});
  cases.insert(cases.end(), {{1, 50, 100, 5}, {7, 1, 16, 5}, {1, 1, 100000, 3}, {1, 3, 0, 5}, {1, 2, 0, 20}});
  // Four threads on uneven shares of the groups, as they add to the same table.
  const auto check_kernels = [&](const char* name, auto choose) {
    const std::vector<std::pair<int64_t, int64_t>> precise{{100, 2}, {100, 40}, {1000, 5}, {10000, 5}, {10000, 40}};
    check_types<float, crgan::Half, crgan::BFloat16>(name, precise, cases, [=](auto* type) {
      return [=](const VoteTable& t) {
        const crgan::CountVotes count = choose(type, t.K);
        std::vector<std::thread> threads;
        for (int i = 0; i < 4; ++i)
          threads.emplace_back([=, &t] { count(t, t.N * t.G * i / 4, t.N * t.G * (i + 1) / 4); });
        for (std::thread& thread : threads) thread.join();
      };
    });
  };
  check_kernels("best", [](auto* type, int64_t K) {
    return crgan::count_votes<std::remove_pointer_t<decltype(type)>>(K);
  });
  check_kernels("baseline", [](auto* type, int64_t K) {
    return crgan::baseline::choose<std::remove_pointer_t<decltype(type)>>(K);
  });
#endif
  printf("%d groups right, worst spread %.1e above the least\n", checks, worst);
}
