// SPDX-License-Identifier: Apache-2.0
#pragma once

// A policy whose log-probs follow from a formula of a line, and a step of pairs for it.

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/policy/policy.h"
#include "support/catch.h"

namespace prefopt::testing_support {

inline constexpr std::int64_t kVocab = 5;
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Logits of the next token: a row of `table` chosen by the present token, plus `bias`.
class BigramPolicy final : public Policy {
 public:
  explicit BigramPolicy(std::uint64_t seed) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    table_ = torch::randn({kVocab, kVocab}, generator, torch::kDouble).requires_grad_(true);
    bias_ = torch::randn({kVocab}, generator, torch::kDouble).requires_grad_(true);
  }
  BigramPolicy(const at::Tensor& table, const at::Tensor& bias)
      : table_(table.detach().clone()), bias_(bias.detach().clone()) {}

  PolicyOutput forward(const TokenBatch& batch) override {
    auto logits = torch::embedding(table_, batch.input_ids) + bias_;
    return {.hidden = {}, .logits = poisoned ? logits * kNan : logits};
  }
  std::int64_t vocab_size() const override { return kVocab; }
  std::vector<NamedParameter> named_parameters() const override {
    return {{"table", table_}, {"bias", bias_}};
  }
  std::shared_ptr<Policy> frozen_copy() const override {
    return std::make_shared<BigramPolicy>(table_, bias_);
  }

  const at::Tensor& table() const { return table_; }
  const at::Tensor& bias() const { return bias_; }
  double logit(std::int64_t from, std::int64_t to) const {
    return table_.const_data_ptr<double>()[from * kVocab + to] + bias_.const_data_ptr<double>()[to];
  }
  /// log pi(to | from), by its formula.
  double logp(std::int64_t from, std::int64_t to) const {
    double sum = 0;
    for (std::int64_t v = 0; v < kVocab; ++v) sum += std::exp(logit(from, v));
    return logit(from, to) - std::log(sum);
  }
  double sum_logps(const std::vector<std::int64_t>& prompt,
                   const std::vector<std::int64_t>& completion) const {
    double sum = 0;
    auto from = prompt.back();
    for (const auto to : completion) {
      sum += logp(from, to);
      from = to;
    }
    return sum;
  }

  bool poisoned = false;

 private:
  at::Tensor table_;
  at::Tensor bias_;
};

inline const std::vector<TokenRow>& pairs() {
  static const std::vector<TokenRow> kPairs = {
      {.prompt = {0}, .chosen = {1, 2, 3}, .rejected = {4}},
      {.prompt = {2, 1}, .chosen = {3}, .rejected = {3, 0, 1, 2}},
      {.prompt = {4, 4, 0}, .chosen = {0, 0}, .rejected = {1, 1}},
      {.prompt = {3}, .chosen = {2, 4, 1, 0, 2}, .rejected = {2, 4, 1}},
      {.prompt = {1, 0}, .chosen = {4, 4}, .rejected = {0, 3, 3}},
  };
  return kPairs;
}

}  // namespace prefopt::testing_support
