// The arithmetic of one group of the vote table, shared by the CPU and the CUDA kernel, and the shapes of the op.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define CRGAN_INLINE __host__ __device__ __forceinline__
#else
#define CRGAN_INLINE inline __attribute__((always_inline))
#endif

namespace crgan {

struct VoteTable {
  const void* codes;      // [N, G, L, K], the leading dimensions flattened to N
  const float* scale;     // [N, K]
  const int64_t* factor;  // [G], values in [0, F)
  int32_t* votes;         // [N, K, F], zero on entry
  int64_t N, G, L, K, F;
};

// Sums of the deviations from a shift that some of the values give, so that one pass over all of them is enough. V is a
// float or a vector of floats.
template <typename V>
struct Moments {
  V shift{}, sum{}, square{};

  CRGAN_INLINE void add(V x) {
    const V d = x - shift;
    sum += d;
    square += d * d;
  }
};

// How many of n rows, or blocks of rows, give the shift, which is their mean. Few, so that most of a group is read once;
// enough that it lies near the group's mean, or four bits away where they are outliers.
CRGAN_INLINE int64_t head_rows(int64_t n) { return (n + 7) / 8; }

// The scale, or NaN where it is of no use: then the spread is NaN too, and the dimension does not vote.
CRGAN_INLINE float usable(float scale) {
  return scale > 0 && scale <= std::numeric_limits<float>::max() ? scale : std::numeric_limits<float>::quiet_NaN();
}

// Variance (ddof 0) over the square of the scale: E[d^2] - E[d]^2 with d = x - shift. The second term makes it exact for
// any shift; where that is the mean of n of the values, at most log2(count / n) bits cancel, and only if those are
// outliers. Divides twice, as scale^2 could underflow.
template <typename V>
CRGAN_INLINE V spread(V sum, V square, float count, V scale) {
  const V mean = sum / count;
  const V variance = square / count - mean * mean;
  return (variance < 0 ? V{} : variance) / scale / scale;  // rounding may leave a variance of 0 below it
}

// The dimension with the least spread so far. Neither NaN nor infinity ever wins, and of equal ones the first does.
struct Vote {
  float least = std::numeric_limits<float>::infinity();
  int dimension = -1;

  CRGAN_INLINE void consider(float value, int d) {
    if (value < least) {
      least = value;
      dimension = d;
    }
  }
};

}  // namespace crgan
