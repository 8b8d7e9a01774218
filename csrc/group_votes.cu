// The CUDA kernel: a warp copies a few groups into shared memory and works on them there, while others wait for theirs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <cstring>

#include "group_votes.h"

namespace crgan {
namespace {

// Sums of the deviations from a shift, the mean of some of the values, so that one pass over all of them is enough.
struct Moments {
  float shift = 0, sum = 0, square = 0;

  __device__ inline void add(float x) {
    const float d = x - shift;
    sum += d;
    square += d * d;
  }
};

constexpr int kWarp = 32;
constexpr int kPiece = 16;             // bytes that a lane copies, or reads from shared memory, at once
constexpr int64_t kStage = 12 * 1024;  // bytes that a warp works on at once; a Hopper's multiprocessor holds 16 warps

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline void load(const T* piece, float (&x)[kPiece / sizeof(T)]) {
  T codes[kPiece / sizeof(T)];
  const int4 raw = *(const int4*)piece;
  memcpy(codes, &raw, sizeof raw);
#pragma unroll
  for (size_t i = 0; i < kPiece / sizeof(T); ++i) x[i] = to_float(codes[i]);
}

// A warp takes a tile of `groups` groups, `rows` of their rows at a time, and for each has `parts` x min(K, 32) lanes;
// leftover lanes are idle.
struct Tiling {
  int groups, parts, rows, tiles;
  int64_t stage, bytes;  // of shared memory: for the codes; with the sums

  Tiling(const GroupVotes& t, int64_t item_size) {
    const int64_t row = t.K * item_size, group = t.L * row, values = kPiece / item_size;
    const int64_t slots = kWarp / std::min<int64_t>(t.K, kWarp);
    rows = (int)(group <= kStage ? t.L : std::max<int64_t>(kStage / (row * values), 1) * values);
    groups = rows < t.L ? 1 : (int)std::clamp<int64_t>(kStage / group, 1, slots);
    parts = (int)slots / groups;
    tiles = (int)((t.N * t.G + groups - 1) / groups);
    stage = (groups * rows * row + 2 * kPiece - 1) / kPiece * kPiece;  // the codes may begin and end within a piece
    bytes = stage + groups * (1 + 2 * parts * values) * t.K * (int64_t)sizeof(float);
  }
};

template <typename T>
__global__ void __launch_bounds__(kWarp) group_votes(GroupVotes t, Tiling tiling) {
  constexpr int V = kPiece / sizeof(T);
  extern __shared__ int4 shared[];
  const int L = (int)t.L, K = (int)t.K, parts = tiling.parts, lane = threadIdx.x;
  const int width = min(K, kWarp), column = lane % width, slot = lane / width;
  const int member = slot / parts, part = slot % parts;
  float* const behind = (float*)((char*)shared + tiling.stage);
  float* const means = behind + member * K;                       // of [groups, K]
  float* const sums = behind + tiling.groups * K + slot * V * K;  // of [groups, parts, V * K]
  float* const squares = sums + tiling.groups * parts * V * K;

  const int leader = blockIdx.x * tiling.groups, group = leader + member;  // of the tile, of the lane
  const int groups = min(tiling.groups, (int)(t.N * t.G) - leader);
  const bool mine = member < groups, folds = mine && part == 0;
  const int pieces = mine ? K : 0, dimensions = folds ? K : 0;
  const unsigned n = (unsigned)group / (unsigned)t.G;
  const float* const scales = t.scale + (int64_t)n * K;
  const float scale = folds ? scales[column] : 0;
  const auto address = [&](int group, int first) {
    return (uintptr_t)((const T*)t.codes + ((int64_t)group * L + first) * K);
  };

  Vote best;
  for (int first = 0; first < L; first += tiling.rows) {
    const int rows = min(tiling.rows, L - first);
    // Whole pieces, which may begin before the codes and end behind them, but within the same 16 bytes.
    const uintptr_t begin = address(leader, first), origin = begin / kPiece * kPiece;
    const int size = (int)(begin - origin) + ((groups - 1) * L + rows) * K * (int)sizeof(T);
#pragma unroll 8
    for (int at = lane * kPiece; at < size; at += kWarp * kPiece)
      __pipeline_memcpy_async((char*)shared + at, (const char*)origin + at, kPiece);
    __pipeline_commit();
    // The group's elements begin at `low` of the piece that holds the first.
    const int offset = mine ? (int)(address(group, first) - origin) : 0, low = offset % kPiece / (int)sizeof(T);
    const int head = min((int)head_rows(L), rows), high = low + rows * K, step = parts * K * V;
    const T* const codes = (const T*)((const char*)shared + offset / kPiece * kPiece);
    __pipeline_wait_prior(0);
    __syncwarp();

    // Adds up the parts' sums of a dimension, from row 0 on: in the same order for all, so that equal ones tie.
    const auto fold = [&](const float* from, int d) {
      float sum = 0;
#pragma unroll 4
      for (int n = 0, i = d + low; n < parts * V; ++n) {
        sum += from[i];
        i += K;
        if (i >= parts * V * K) i -= parts * V * K;
      }
      return sum;
    };
    if (first == 0) {
      const int until = low + head * K;
#pragma unroll 1
      for (int piece = column; piece < pieces; piece += width) {
        float sum[V] = {};
#pragma unroll 1
        for (int at = (part * K + piece) * V; at < until; at += step) {
          float x[V];
          load(codes + at, x);
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += at + i >= low && at + i < until ? x[i] : 0;
        }
#pragma unroll
        for (int i = 0; i < V; ++i) sums[piece * V + i] = sum[i];
      }
      __syncwarp();
#pragma unroll 1
      for (int d = column; d < dimensions; d += width) means[d] = fold(sums, d) / (float)head;
      __syncwarp();
    }
#pragma unroll 1
    for (int piece = column; piece < pieces; piece += width) {
      Moments m[V];
      int d = (piece * V + V * K - low) % K;
#pragma unroll
      for (int i = 0; i < V; ++i) {
        m[i].shift = means[d];
        if (first > 0) m[i].sum = sums[piece * V + i], m[i].square = squares[piece * V + i];
        d = d + 1 < K ? d + 1 : 0;
      }
      const auto add = [&](int at, bool whole) {
        float x[V];
        load(codes + at, x);
#pragma unroll
        for (int i = 0; i < V; ++i) m[i].add(whole || (at + i >= low && at + i < high) ? x[i] : m[i].shift);
      };
      int at = (part * K + piece) * V;
      if (at < low) add(at, false), at += step;
#pragma unroll 4
      for (; at + V <= high; at += step) add(at, true);
      if (at < high) add(at, false);
#pragma unroll
      for (int i = 0; i < V; ++i) sums[piece * V + i] = m[i].sum, squares[piece * V + i] = m[i].square;
    }
    __syncwarp();
    if (first + rows == L)
#pragma unroll 1
      for (int d = column; d < dimensions; d += width) {
        const float own = d == column ? scale : scales[d];
        best.consider(spread(fold(sums, d), fold(squares, d), (float)L, own), d);
      }
  }
#pragma unroll 1
  for (int left = width; left > 1;) {
    const int half = (left + 1) / 2;
    const float least = __shfl_down_sync(~0u, best.least, half);
    const int dimension = __shfl_down_sync(~0u, best.dimension, half);
    if (column + half < left && (least < best.least || (least == best.least && dimension < best.dimension)))
      best = {least, dimension};
    left = half;
  }
  if (folds && column == 0) t.votes[group] = best.dimension;
}

Tensor group_votes_cuda(const Tensor& codes, const Tensor& scale) {
  const int device = codes.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const GroupVotesOp op(codes, scale);
  const GroupVotes& t = op.t;
  if (t.N * t.G * t.L * t.K == 0) return torch::stable::fill_(op.votes, -1);
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / 2;
  STD_TORCH_CHECK(t.N * t.G <= most && t.L * t.K <= most / 4, "group_votes: too many codes");
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const auto launch = [&](auto kernel, int64_t item_size) {
    const Tiling tiling(t, item_size);
    int room = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    STD_TORCH_CHECK(tiling.bytes <= room, "group_votes: too many codes for a GPU's shared memory, use impl='ref'");
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    kernel<<<tiling.tiles, kWarp, tiling.bytes, (cudaStream_t)stream>>>(t, tiling);
  };
  const ScalarType type = op.codes.scalar_type();
  if (type == ScalarType::Half) {
    launch(group_votes<__half>, 2);
  } else if (type == ScalarType::BFloat16) {
    launch(group_votes<__nv_bfloat16>, 2);
  } else {
    STD_TORCH_CHECK(type == ScalarType::Float, "group_votes: codes must be float32, float16 or bfloat16");
    launch(group_votes<float>, 4);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return op.votes;
}

}  // namespace
}  // namespace crgan

STABLE_TORCH_LIBRARY_IMPL(crgan, CUDA, m) { m.impl("group_votes", TORCH_BOX(&crgan::group_votes_cuda)); }
CRGAN_MODULE(_crgan_cuda)
