// SPDX-License-Identifier: Apache-2.0
#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "decoder/model_shape.h"
#include "decoder/packed_session.h"
#include "support/catch.h"

namespace prefopt::detail::test_long_prefill {
namespace {

Network random_network(const DecoderOptions& options, at::ScalarType dtype) {
  at::manual_seed(8);
  Network network = network_of(options, "test");
  network.for_each_weight([&](const std::string&, at::Tensor& weight, const auto& shape) {
    weight = (shape.size() == 2 ? at::randn(shape) * 0.3 : at::ones(shape)).to(dtype);
  });
  return network;
}

std::vector<std::int64_t> prompt_of(std::int64_t length, std::int64_t first) {
  std::vector<std::int64_t> prompt;
  for (std::int64_t i = 0; i < length; ++i) prompt.push_back((first + 7 * i) % 50);
  return prompt;
}

/// Returns logits after the prompts and after two more tokens of each.
std::vector<at::Tensor> logits_of(const Network& network, std::int64_t rows_at_once) {
  const auto session = make_packed_session(
      network, {prompt_of(67, 1), prompt_of(7, 2), prompt_of(40, 3), prompt_of(7, 2)},
      rows_at_once);
  std::vector<at::Tensor> logits{session->prefill()};
  for (int step = 0; step < 2; ++step) {
    logits.push_back(session->append(at::tensor({3, 4, 5, 6}, at::kLong)));
  }
  return logits;
}

}  // namespace

TEST_CASE("prefill: a long prompt in parts gives the bits of one at once", "[decoder]") {
  DecoderOptions options{.vocab_size = 50,
                         .hidden_size = 32,
                         .intermediate_size = 48,
                         .num_hidden_layers = 3,
                         .num_attention_heads = 4,
                         .num_key_value_heads = 2,
                         .head_dim = 16};
  const bool has_window = GENERATE(false, true);
  if (has_window) {
    options.family = "mistral";
    options.sliding_window = 11;
  }
  const auto dtype = GENERATE(at::kFloat, at::kDouble);
  const Network network = random_network(options, dtype);
  const auto expected = logits_of(network, 1000);
  for (const std::int64_t rows : {66, 24, 10, 1}) {
    CAPTURE(has_window, rows);
    const auto got = logits_of(network, rows);
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(at::equal(got[i], expected[i]));
  }
}

}  // namespace prefopt::detail::test_long_prefill
