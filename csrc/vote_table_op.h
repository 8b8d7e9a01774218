// The op's arguments as both kernels take them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "vote_table.h"

namespace crgan {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Keeps the tensors alive that a VoteTable points into.
struct VoteTableOp {
  Tensor codes, scale, factor, votes;
  VoteTable table;

  VoteTableOp(const Tensor& codes_, const Tensor& scale_, const Tensor& factor_, int64_t num_factors)
      : codes(torch::stable::contiguous(codes_)),
        scale(torch::stable::contiguous(scale_)),
        factor(torch::stable::contiguous(factor_)),
        votes(codes) {
    const auto shape = codes.sizes();
    const int64_t dim = codes.dim();
    STD_TORCH_CHECK(dim >= 3, "vote_table: codes have ", dim, " dimensions, expected 3 or more");
    int64_t N = 1;
    std::vector<int64_t> out;
    for (int64_t i = 0; i < dim - 3; ++i) {
      N *= shape[i];
      out.push_back(shape[i]);
    }
    const int64_t G = shape[dim - 3], L = shape[dim - 2], K = shape[dim - 1];
    STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, "vote_table: scale must be float32");
    STD_TORCH_CHECK(scale.numel() == N * K, "vote_table: scale has ", scale.numel(), " values, expected ", N * K);
    STD_TORCH_CHECK(factor.scalar_type() == ScalarType::Long, "vote_table: factor must be int64");
    STD_TORCH_CHECK(factor.numel() == G, "vote_table: factor has ", factor.numel(), " values, expected ", G);
    STD_TORCH_CHECK(num_factors >= 0, "vote_table: num_factors is ", num_factors);
    out.push_back(K);
    out.push_back(num_factors);
    votes = torch::stable::new_zeros(codes, out, ScalarType::Int);
    table = {codes.const_data_ptr(),
             scale.const_data_ptr<float>(),
             factor.const_data_ptr<int64_t>(),
             votes.mutable_data_ptr<int32_t>(),
             N, G, L, K, num_factors};
  }

  // No group, or none in which a dimension has a variance.
  bool empty() const { return table.N * table.G * table.L * table.K == 0; }
};

}  // namespace crgan
