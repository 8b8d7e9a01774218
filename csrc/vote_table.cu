#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "module.h"
#include "vote_table_kernel.cuh"
#include "vote_table_op.h"

namespace crgan {
namespace {

Tensor vote_table(const Tensor& codes, const Tensor& scale, const Tensor& factor, int64_t num_factors) {
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  const VoteTableOp op(codes, scale, factor, num_factors);
  const VoteTable& t = op.table;
  if (op.empty()) return op.votes;
  STD_TORCH_CHECK(t.L * t.K <= std::numeric_limits<int32_t>::max() / 2, "vote_table: a group of ", t.L, " x ", t.K,
                  " codes is too large");
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(codes.get_device_index(), &stream));
  const dim3 grid((unsigned)((t.G + kWarps - 1) / kWarps), (unsigned)std::min<int64_t>(t.N, 65535));
  const auto launch = [&](auto kernel) { kernel<<<grid, kWarp * kWarps, 0, (cudaStream_t)stream>>>(t); };
  switch (op.codes.scalar_type()) {
    case ScalarType::Float:
      launch(count_votes<float>);
      break;
    case ScalarType::Half:
      launch(count_votes<__half>);
      break;
    case ScalarType::BFloat16:
      launch(count_votes<__nv_bfloat16>);
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
