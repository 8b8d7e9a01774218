// As much of CUDA's language as the vote table kernel uses, on the CPU: a warp is 32 threads that meet at every shuffle.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Index {
  unsigned x, y;
};
inline thread_local Index threadIdx, blockIdx;
inline Index gridDim;
using std::min;

inline std::barrier<> warp(32);
inline uint32_t lanes[32];

template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  std::memcpy(&lanes[threadIdx.x % 32], &value, sizeof value);
  warp.arrive_and_wait();
  std::memcpy(&value, &lanes[from], sizeof value);
  warp.arrive_and_wait();
  return value;
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(mask, value, lane + delta < 32 ? lane + delta : lane);
}

template <typename T>
T __ldcs(const T* p) {
  return *p;
}

inline void atomicAdd(int32_t* p, int32_t value) { __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }

// Runs the warps of all blocks one after the other.
template <typename Kernel, typename Argument>
void launch(Kernel kernel, Index grid, unsigned warps, const Argument& argument) {
  gridDim = grid;
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 32; ++lane)
    threads.emplace_back([=, &argument] {
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x)
          for (unsigned w = 0; w < warps; ++w) {
            blockIdx = {x, y};
            threadIdx = {32 * w + lane, 0};
            kernel(argument);
          }
    });
  for (std::thread& thread : threads) thread.join();
}
