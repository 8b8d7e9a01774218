// What the CPU and the CUDA kernel of group_votes share: its arguments, and the arithmetic of one group.
#pragma once

#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <vector>

#ifdef __CUDACC__
#define CRGAN_INLINE __host__ __device__ __forceinline__
#else
#define CRGAN_INLINE inline __attribute__((always_inline))
#endif

namespace crgan {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct GroupVotes {
  const void* codes;   // [N, G, L, K], the leading dimensions flattened to N
  const float* scale;  // [N, K]
  int64_t* votes;      // [N, G]
  int64_t N, G, L, K;
};

// Keeps the tensors alive that a GroupVotes points into. Checks what could make a kernel access memory beyond them.
struct GroupVotesOp {
  Tensor codes, scale, votes;
  GroupVotes t;

  GroupVotesOp(const Tensor& codes_, const Tensor& scale_)
      : codes(torch::stable::contiguous(codes_)), scale(torch::stable::contiguous(scale_)), votes(codes) {
    const int64_t dim = codes.dim(), *const shape = codes.sizes().data();
    STD_TORCH_CHECK(dim >= 3, "group_votes: codes have ", dim, " dimensions, expected 3 or more");
    votes = torch::stable::new_empty(codes, std::vector<int64_t>(shape, shape + dim - 2), ScalarType::Long);
    const int64_t G = shape[dim - 3], L = shape[dim - 2], K = shape[dim - 1], N = G ? votes.numel() / G : 0;
    STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.numel() >= N * K, "group_votes: scale has ",
                    scale.numel(), " values, expected ", N * K, " float32");
    t = {codes.const_data_ptr(), scale.const_data_ptr<float>(), votes.mutable_data_ptr<int64_t>(), N, G, L, K};
  }
};

// How many of n rows give the shift, which is their mean. Few, so that most of a group is read once; enough that the
// shift lies near the group's mean; `spread` says what is lost where they are outliers.
CRGAN_INLINE int64_t head_rows(int64_t n) { return (n + 7) / 8; }

// Variance (ddof 0) over the square of the scale, E[d^2] - E[d]^2 with d = x - shift; NaN where the scale is not
// positive and finite. Where the shift is the mean of n values, at most log2(count / n) bits cancel, and only if
// those are outliers. Divides twice, as scale^2 could underflow.
CRGAN_INLINE float spread(float sum, float square, float count, float scale) {
  using limits = std::numeric_limits<float>;
  const float mean = sum / count, usable = scale > 0 && scale <= limits::max() ? scale : limits::quiet_NaN();
  const float variance = square / count - mean * mean;
  return (variance < 0 ? 0 : variance) / usable / usable;  // rounding may leave a variance of 0 below it
}

// The dimension with the least spread so far. Neither NaN nor infinity ever wins, and of equal ones the first does.
struct Vote {
  float least = std::numeric_limits<float>::infinity();
  int dimension = -1;

  CRGAN_INLINE void consider(float value, int d) {
    if (value < least) least = value, dimension = d;
  }
};
}  // namespace crgan

// An empty Python module: importing it loads the library, whose static initialisers register the op.
#define CRGAN_MODULE(name)                                                   \
  PyMODINIT_FUNC PyInit_##name() {                                           \
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, #name, nullptr, -1}; \
    return PyModule_Create(&module);                                         \
  }
