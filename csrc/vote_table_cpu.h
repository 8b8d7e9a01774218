// The CPU kernel compiled for several instruction sets, of which count_votes<T>(K) picks the best that runs here.
#pragma once

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "vote_table.h"

namespace crgan {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

using CountVotes = void (*)(const VoteTable&, int64_t begin, int64_t end);

namespace baseline {
#define CRGAN_LANES 4
#include "vote_table_simd.h"
}  // namespace baseline

// The baseline of x86-64 is that of 2003, so newer instruction sets are compiled beside it and chosen at run time.
#ifdef __x86_64__
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#define CRGAN_LANES 8
#include "vote_table_simd.h"
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// The kernel for codes of type T of this many dimensions, for the processor at hand.
template <typename T>
CountVotes count_votes(int64_t num_codes) {
#ifdef __x86_64__
  static const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2) return avx2::choose<T>(num_codes);
#endif
  return baseline::choose<T>(num_codes);
}

}  // namespace crgan
