// The CUDA kernel: one warp per group, codes read once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>

#include "vote_table.h"

namespace crgan {

constexpr int kWarp = 32, kWarps = 4;

// Little is read twice, and that at once, so the loads ask for no lasting place in the cache.
__device__ inline float load(const float* p) { return __ldcs(p); }
__device__ inline float load(const __half* p) { return __half2float(__ldcs(p)); }
__device__ inline float load(const __nv_bfloat16* p) { return __bfloat162float(__ldcs(p)); }

// Lanes are rows x dimensions: 32 / K rows of K, or one row of 32 at a time, so that neighbours read neighbours.
// Every lane sums its dimension over every 32 / K-th row, relative to the mean of the group's first rows, which it finds
// again in the cache.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarps, 10) count_votes(VoteTable t) {
  const int lane = threadIdx.x % kWarp;
  const int64_t g = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (g >= t.G) return;
  const int64_t f = t.factor[g];
  assert(f >= 0 && f < t.F && "vote_table: factor out of range");
  const int K = (int)t.K, size = (int)t.L * K, head = (int)head_rows(t.L) * K;
  const int width = min(K, kWarp), rows = kWarp / width;
  const int row = lane / width;
  for (int64_t n = blockIdx.y; n < t.N; n += gridDim.y) {
    const T* group = (const T*)t.codes + (n * t.G + g) * size;
    Vote best;
    for (int first = 0; first < K; first += width) {
      const int d = first + lane % width;
      const int begin = row < rows && d < K ? row * K + d : size;
      const auto fold = [&](float sum) {  // the second half of the rows onto the first, in the same order for all d
        for (int left = rows; left > 1;) {
          const int half = (left + 1) / 2;
          const float other = __shfl_down_sync(~0u, sum, half * width);
          if (row + half < left) sum += other;
          left = half;
        }
        return sum;
      };
      float sum = 0;
#pragma unroll 4
      for (int i = begin; i < head; i += rows * K) sum += load(group + i);
      Moments<float> m;
      m.shift = __shfl_sync(~0u, fold(sum) / (float)(head / K), lane % width);
#pragma unroll 8
      for (int i = begin; i < size; i += rows * K) m.add(load(group + i));
      const float total = fold(m.sum), square = fold(m.square);
      if (row == 0 && d < K) best.consider(spread(total, square, t.L, usable(t.scale[n * K + d])), d);
    }
    for (int half = kWarp / 2; half; half /= 2) {
      const float least = __shfl_down_sync(~0u, best.least, half);
      const int dimension = __shfl_down_sync(~0u, best.dimension, half);
      if (least < best.least || (least == best.least && dimension < best.dimension)) best = {least, dimension};
    }
    if (lane == 0 && best.dimension >= 0) atomicAdd(t.votes + (n * K + best.dimension) * t.F + f, 1);
  }
}

}  // namespace crgan
