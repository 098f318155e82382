// SPDX-License-Identifier: Apache-2.0
#include "policy/summed_logits.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/isneginf.h>
#include <c10/core/ScalarType.h>

#include <limits>
#include <utility>

#include "policy/output_head.h"

namespace prefopt::detail {
namespace {

class SummedSession final : public DecodeSession {
 public:
  SummedSession(std::vector<std::unique_ptr<DecodeSession>> sessions, std::vector<double> weights)
      : sessions_(std::move(sessions)), weights_(std::move(weights)) {}

  at::Tensor prefill() override {
    return sum_of([](DecodeSession& session) { return session.prefill(); });
  }
  at::Tensor append(const at::Tensor& tokens) override {
    return sum_of([&](DecodeSession& session) { return session.append(tokens); });
  }
  void keep(const std::vector<std::int64_t>& sequences) override {
    for (const auto& session : sessions_) session->keep(sequences);
  }

 private:
  template <class LogitsOf>
  at::Tensor sum_of(const LogitsOf& logits_of_session) const {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> logits;
    for (const auto& session : sessions_) logits.push_back(logits_of_session(*session));
    return summed_logits(logits, weights_);
  }

  std::vector<std::unique_ptr<DecodeSession>> sessions_;
  std::vector<double> weights_;
};

}  // namespace

at::Tensor all_logits(Policy& policy, const TokenBatch& batch) {
  const PolicyOutput output = policy.forward(batch);
  if (output.logits.defined()) return output.logits;
  const std::int64_t width = output.hidden.size(-1);
  const at::Tensor rows = logits_of(policy.head(), output.hidden.reshape({-1, width}));
  return rows.view({output.hidden.size(0), output.hidden.size(1), -1});
}

at::Tensor summed_logits(const std::vector<at::Tensor>& logits,
                         const std::vector<double>& weights) {
  auto dtype = at::kFloat;
  for (const at::Tensor& each : logits) dtype = c10::promoteTypes(dtype, each.scalar_type());
  const at::Device device = logits.front().device();
  at::Tensor sum = logits.front().to(dtype) * weights.front();
  for (std::size_t k = 1; k < logits.size(); ++k) {
    const at::Tensor each = logits[k].to(device, dtype);
    sum = sum + each * weights[k];
    // A negative weight would turn it round.
    if (weights[k] < 0) {
      sum = sum.masked_fill(at::isneginf(each), -std::numeric_limits<double>::infinity());
    }
  }
  return sum;
}

std::unique_ptr<DecodeSession> summed_session(std::vector<std::unique_ptr<DecodeSession>> sessions,
                                              std::vector<double> weights) {
  return std::make_unique<SummedSession>(std::move(sessions), std::move(weights));
}

}  // namespace prefopt::detail
