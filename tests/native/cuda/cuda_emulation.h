// As much of CUDA's language as the vote table kernel uses, on the CPU: a warp is 32 threads that meet at every shuffle
// and barrier.
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
#define __shared__

struct Index {
  unsigned x, y;
};
inline thread_local Index threadIdx, blockIdx;
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
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

inline void __syncwarp() { warp.arrive_and_wait(); }

inline void atomicAdd(int32_t* p, int32_t value) { __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }

// Runs the blocks, each of one warp, one after the other.
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, unsigned blocks, const Arguments&... arguments) {
  std::vector<std::thread> threads;
  for (unsigned lane = 0; lane < 32; ++lane)
    threads.emplace_back([=, &arguments...] {
      for (unsigned block = 0; block < blocks; ++block) {
        blockIdx = {block, 0};
        threadIdx = {lane, 0};
        kernel(arguments...);
        warp.arrive_and_wait();
      }
    });
  for (std::thread& thread : threads) thread.join();
}
