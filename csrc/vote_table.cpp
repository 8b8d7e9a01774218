#include "module.h"
#include "vote_table_cpu.h"
#include "vote_table_op.h"

namespace crgan {
namespace {

CountVotes kernel(const Tensor& codes) {
  const int64_t K = codes.size(-1);
  switch (codes.scalar_type()) {
    case ScalarType::Float:
      return count_votes<float>(K);
    case ScalarType::Half:
      return count_votes<Half>(K);
    case ScalarType::BFloat16:
      return count_votes<BFloat16>(K);
    default:
      STD_TORCH_CHECK(false, "vote_table: codes must be float32, float16 or bfloat16");
  }
}

Tensor vote_table(const Tensor& codes, const Tensor& scale, const Tensor& factor, int64_t num_factors) {
  const VoteTableOp op(codes, scale, factor, num_factors);
  const VoteTable& t = op.table;
  for (int64_t g = 0; g < t.G; ++g)
    STD_TORCH_CHECK(t.factor[g] >= 0 && t.factor[g] < t.F, "vote_table: factor holds ", t.factor[g],
                    ", expected 0 <= factor < num_factors = ", t.F);
  if (op.empty()) return op.votes;
  const CountVotes count = kernel(op.codes);
  const int64_t grain = 1 + 16384 / (t.L * t.K + 1);  // below some 10 us of work a thread does not pay
  torch::stable::parallel_for(0, t.N * t.G, grain, [&](int64_t begin, int64_t end) { count(t, begin, end); });
  return op.votes;
}

}  // namespace
}  // namespace crgan

STABLE_TORCH_LIBRARY_FRAGMENT(crgan, m) {
  m.def("vote_table(Tensor codes, Tensor scale, Tensor factor, int num_factors) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(crgan, CPU, m) { m.impl("vote_table", TORCH_BOX(&crgan::vote_table)); }
