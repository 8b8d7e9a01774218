#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <limits>

#include "module.h"
#include "vote_table_kernel.cuh"
#include "vote_table_op.h"

namespace crgan {
namespace {

constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;

Tensor vote_table(const Tensor& codes, const Tensor& scale, const Tensor& factor, int64_t num_factors) {
  const int device = codes.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const VoteTableOp op(codes, scale, factor, num_factors);
  const VoteTable& t = op.table;
  if (op.empty()) return op.votes;
  STD_TORCH_CHECK(t.N * t.G <= kMost && t.L * t.K <= kMost / 4, "vote_table: ", t.N * t.G, " groups of ", t.L, " x ",
                  t.K, " codes are too many");
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const auto launch = [&](auto kernel, int64_t item_size) {
    const Tiling tiling(t, item_size);
    int room = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    STD_TORCH_CHECK(tiling.bytes <= room, "vote_table: ", t.K, " codes are too many for a GPU's shared memory, use impl='ref'");
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    kernel<<<tiling.tiles, kWarp, tiling.bytes, (cudaStream_t)stream>>>(t, tiling);
  };
  switch (op.codes.scalar_type()) {
    case ScalarType::Float:
      launch(count_votes<float>, sizeof(float));
      break;
    case ScalarType::Half:
      launch(count_votes<__half>, sizeof(__half));
      break;
    case ScalarType::BFloat16:
      launch(count_votes<__nv_bfloat16>, sizeof(__nv_bfloat16));
      break;
    default:
      STD_TORCH_CHECK(false, "vote_table: codes must be float32, float16 or bfloat16");
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return op.votes;
}

}  // namespace
}  // namespace crgan

STABLE_TORCH_LIBRARY_IMPL(crgan, CUDA, m) { m.impl("vote_table", TORCH_BOX(&crgan::vote_table)); }
