// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/value_head.h"

#include <utility>

#include "decoder/score_head.h"
#include "prefopt/error.h"

namespace prefopt {

ValueHead::ValueHead(std::shared_ptr<Decoder> policy)
    : policy_(std::move(policy)), score_(detail::fresh_score_head(*policy_)) {
  score_.requires_grad_(true);
}

at::Tensor ValueHead::token_values(const TokenBatch& batch) {
  return detail::token_scores(*policy_, score_, batch);
}

at::Tensor ValueHead::rewards(const std::vector<TokenSequence>&) {
  throw ConfigError("value head: expected a reward model for rewards of texts, got a value head");
}

std::int64_t ValueHead::vocab_size() const { return policy_->vocab_size(); }

std::vector<NamedParameter> ValueHead::named_parameters() const {
  return {{"score.weight", score_}};
}

void ValueHead::save(const std::string& directory) const {
  detail::save_parameters(named_parameters(), directory);
}

void ValueHead::load_weights(const std::string& directory) {
  detail::load_parameters(named_parameters(), directory);
}

void ValueHead::keep_slices(const std::shared_ptr<Ranks>& /*ranks*/) {}

}  // namespace prefopt
