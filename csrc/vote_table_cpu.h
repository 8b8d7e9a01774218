// The CPU kernel compiled for several instruction sets, of which count_votes<T>(K) picks the best that runs here.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

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
#include "vote_table_simd.h"
}

#ifdef __x86_64__  // whose baseline is that of 2003; other architectures' has vectors with fused multiply-add

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#include "vote_table_simd.h"
}
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
namespace avx512 {
#include "vote_table_simd.h"
}
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

// The kernel for codes of type T of this many dimensions.
template <typename T>
CountVotes count_votes(int64_t num_codes) {
#ifdef __x86_64__
  static const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (v4) return avx512::choose<T>(num_codes);
  if (v3) return avx2::choose<T>(num_codes);
#endif
  return baseline::choose<T>(num_codes);
}

}  // namespace crgan
