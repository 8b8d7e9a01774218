#include "group_votes.h"

#include <algorithm>
#include <utility>

namespace crgan {
namespace {

// Adds up `rows` rows of K values into the first, in the same order for every dimension, so that equal codes tie.
// Value by value: longer loads would have to wait for several of the stores before them.
CRGAN_INLINE void fold(float* sums, int64_t rows, int64_t K) {
  for (int64_t d = 0; d < K; ++d) {
    float total = sums[d];
    for (int64_t row = 1; row < rows; ++row) total += sums[row * K + d];
    sums[d] = total;
  }
}

// Computes the votes of groups begin to end, of N * G. Eight rows are taken as one of 8 * K values, in loops that
// compilers vectorise. FIXED is K where it is known when this is compiled, else 0.
template <int FIXED>
CRGAN_INLINE void group_votes(const GroupVotes& t, int64_t begin, int64_t end) {
  constexpr int64_t R = 8;
  const int64_t K = FIXED ? FIXED : t.K, L = t.L, size = R * K;
  const int64_t head = std::min(L, (head_rows(L) + R - 1) / R * R);
  float few[3 * R * FIXED + 1];
  std::vector<float> many(FIXED ? 0 : 3 * size);
  float *const shift = FIXED ? few : many.data(), *const sum = shift + size, *const square = sum + size;
  for (int64_t g = begin; g < end; ++g) {
    const float* __restrict x = (const float*)t.codes + g * L * K;
    for (int64_t i = 0; i < 3 * size; ++i) shift[i] = 0;
    const auto add_head = [&](int64_t row, int64_t n) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) shift[i] += x[row * K + i];
    };
    int64_t row = 0;
    for (; row + R <= head; row += R) add_head(row, size);
    add_head(row, (head - row) * K);
    fold(shift, R, K);
    for (int64_t d = 0; d < K; ++d) shift[d] /= (float)head;
    for (int64_t i = K; i < size; ++i) shift[i] = shift[i - K];

    const auto add = [&](int64_t row, int64_t n) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) {
        const float d = x[row * K + i] - shift[i];
        sum[i] += d;
        square[i] += d * d;
      }
    };
    for (row = 0; row + R <= L; row += R) add(row, size);
    add(row, (L - row) * K);
    fold(sum, R, K);
    fold(square, R, K);
    const float* scale = t.scale + g / t.G * K;
    for (int64_t d = 0; d < K; ++d) sum[d] = spread(sum[d], square[d], (float)L, scale[d]);
    Vote best;
    for (int64_t d = 0; d < K; ++d) best.consider(sum[d], (int)d);
    t.votes[g] = best.dimension;
  }
}

// The x86-64 baseline dates from 2003, so AVX2 is compiled beside it and chosen at run time. AVX-512 gains nothing.
#ifdef __x86_64__
template <int FIXED>
__attribute__((target("avx2,fma"))) void avx2(const GroupVotes& t, int64_t begin, int64_t end) {
  group_votes<FIXED>(t, begin, end);
}
#endif

// A kernel for each K up to 12; the first takes any K.
template <int... K>
auto choose(int64_t num_codes, std::integer_sequence<int, K...>) {
  const int64_t fixed = num_codes < (int64_t)sizeof...(K) ? num_codes : 0;
#ifdef __x86_64__
  static constexpr decltype(&avx2<0>) fast[] = {avx2<K>...};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fast[fixed];
#endif
  static constexpr decltype(&group_votes<0>) plain[] = {group_votes<K>...};
  return plain[fixed];
}

Tensor group_votes_cpu(const Tensor& codes, const Tensor& scale) {
  const GroupVotesOp op(torch::stable::to(codes, ScalarType::Float), scale);
  const auto kernel = choose(op.t.K, std::make_integer_sequence<int, 13>{});
  const int64_t grain = 1 + 16384 / (op.t.L * op.t.K + 1);  // below some 10 us of work a thread does not pay off
  torch::stable::parallel_for(0, op.t.N * op.t.G, grain, [&](int64_t begin, int64_t end) { kernel(op.t, begin, end); });
  return op.votes;
}

}  // namespace
}  // namespace crgan

STABLE_TORCH_LIBRARY_IMPL(crgan, CPU, m) { m.impl("group_votes", TORCH_BOX(&crgan::group_votes_cpu)); }
CRGAN_MODULE(_crgan_C)
