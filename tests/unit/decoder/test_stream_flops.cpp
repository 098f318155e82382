// SPDX-License-Identifier: Apache-2.0
// Operations counted token by token, from sets of beginnings of sequences, against stream_flops.
#include <torch/types.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "decoder/model_shape.h"
#include "decoder/stream_flops.h"
#include "prefopt/data/batch.h"
#include "support/catch.h"

namespace prefopt::test_stream_flops {
namespace {

using detail::ModelShape;
using detail::StreamFlops;
using Tokens = std::vector<std::int64_t>;

const std::vector<TokenRow> kRows = {
    {.prompt = {1, 2, 3, 4}, .chosen = {5, 6, 7}, .rejected = {5, 6, 8, 9, 1}},
    {.prompt = {7}, .chosen = {2, 3}, .rejected = {2, 3, 4}},
    {.prompt = {4, 4, 9}, .chosen = {1}, .rejected = {12, 11, 10, 9, 8, 7}},
    {.prompt = {2, 2}, .chosen = {3, 1}, .rejected = {3, 1}}};

DecoderOptions sizes() {
  return {.vocab_size = 13,
          .hidden_size = 12,
          .intermediate_size = 10,
          .num_hidden_layers = 3,
          .num_attention_heads = 4,
          .num_key_value_heads = 2,
          .head_dim = 6};
}

/// Inputs of a model: beginnings of a row's sequences, each once.
struct Input {
  std::int64_t place;    // from 1
  bool predicts_answer;  // its successor is a token of a completion
};

std::vector<Input> inputs() {
  std::vector<Input> all;
  for (const TokenRow& row : kRows) {
    std::set<Tokens> beginnings;
    for (const Tokens* completion : {&row.chosen, &row.rejected}) {
      Tokens sequence = row.prompt;
      sequence.insert(sequence.end(), completion->begin(), completion->end());
      for (sequence.pop_back(); !sequence.empty(); sequence.pop_back()) beginnings.insert(sequence);
    }
    for (const Tokens& one : beginnings) {
      all.push_back({std::ssize(one), one.size() >= row.prompt.size()});
    }
  }
  return all;
}

/// The weights that train: everything, or low-rank pairs of some maps in layers from `first_layer`
/// on.
struct Trained {
  bool all = true;
  std::int64_t rank = 0;
  std::set<std::string> maps = {};
  std::int64_t first_layer = 0;
};

/// The counts of one token in one layer, map by map.
StreamFlops count_by_hand(const DecoderOptions& o, const Trained& trained,
                          Checkpointing checkpointing, std::int64_t window = 0) {
  const double hidden = static_cast<double>(o.hidden_size);
  const double wide = static_cast<double>(o.intermediate_size);
  const double queries = static_cast<double>(o.num_attention_heads * o.head_dim);
  const double keys = static_cast<double>(o.num_key_value_heads * o.head_dim);
  struct Map {
    std::string name;
    double in, out;
    bool for_all;   // also where a token only gives keys and values
    bool of_input;  // its input is the layer's
    bool again_full, again_selective;
  };
  const std::vector<Map> maps = {{"q_proj", hidden, queries, false, true, true, false},
                                 {"k_proj", hidden, keys, true, true, true, false},
                                 {"v_proj", hidden, keys, true, true, true, false},
                                 {"o_proj", queries, hidden, false, false, true, false},
                                 {"gate_proj", hidden, wide, false, false, true, true},
                                 {"up_proj", hidden, wide, false, false, true, true},
                                 {"down_proj", wide, hidden, false, false, false, false}};
  StreamFlops sum;
  for (std::int64_t layer = 0; layer < o.num_hidden_layers; ++layer) {
    const bool is_last = layer + 1 == o.num_hidden_layers;
    const bool has_adapter = !trained.all && layer >= trained.first_layer;
    const bool needs_backward = trained.all || has_adapter;
    const bool input_wanted = trained.all || layer > trained.first_layer;
    for (const Input& input : inputs()) {
      const bool goes_on = !is_last || input.predicts_answer;
      for (const Map& map : maps) {
        if (!goes_on && !map.for_all) continue;
        const double rank =
            has_adapter && trained.maps.contains(map.name) ? static_cast<double>(trained.rank) : 0;
        const double pass = 2 * map.in * map.out + 2 * rank * (map.in + map.out);
        sum.forward += pass;
        if (!needs_backward) continue;
        if (!map.of_input || input_wanted) sum.backward += pass;
        if (trained.all) sum.backward += 2 * map.in * map.out;
        // Both gradients of a low-rank pair, and the two products that they are made of.
        sum.backward += 4 * rank * (map.in + map.out);
        if (checkpointing == Checkpointing::kFull && map.again_full) sum.recomputed += pass;
        if (checkpointing == Checkpointing::kSelective && map.again_selective) {
          sum.recomputed += pass;
        }
      }
      if (!goes_on) continue;
      const double seen =
          static_cast<double>(window > 0 ? std::min(input.place, window) : input.place);
      sum.forward += 2 * 2 * queries * seen;
      if (!needs_backward) continue;
      sum.backward += 5 * 2 * queries * seen;
      if (checkpointing == Checkpointing::kFull) sum.recomputed += 2 * 2 * queries * seen;
    }
  }
  return sum;
}

void check_equal(const StreamFlops& counted, const StreamFlops& expected) {
  CHECK(counted.forward == expected.forward);
  CHECK(counted.backward == expected.backward);
  CHECK(counted.recomputed == expected.recomputed);
}

constexpr Checkpointing kAllLevels[] = {Checkpointing::kNone, Checkpointing::kSelective,
                                        Checkpointing::kFull};

}  // namespace

TEST_CASE("stream flops: all weights, token by token", "[decoder]") {
  const TokenBatch batch = make_pair_batch(kRows);
  REQUIRE(batch.packed->input_ids.size(0) == std::ssize(inputs()));
  for (const Checkpointing level : kAllLevels) {
    const ModelShape shape(sizes(), at::kFloat);
    check_equal(stream_flops(shape.seen(), *batch.packed, level),
                count_by_hand(sizes(), {}, level));
  }
}

TEST_CASE("stream flops: adapters, and frozen layers below them", "[decoder]") {
  const TokenBatch batch = make_pair_batch(kRows);
  const std::vector<std::pair<LoraOptions, Trained>> adapters = {
      {{.r = 3},
       {false, 3, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}}},
      {{.r = 2, .target_modules = {"q_proj", "down_proj"}}, {false, 2, {"q_proj", "down_proj"}}},
      {{.r = 5, .target_modules = {"v_proj"}, .layers_to_transform = "[1, 2]"},
       {false, 5, {"v_proj"}, 1}}};
  for (const auto& [options, trained] : adapters) {
    CAPTURE(options_to_json(options));
    ModelShape shape(sizes(), at::kBFloat16);
    shape.add_adapter(options);
    for (const Checkpointing level : kAllLevels) {
      check_equal(stream_flops(shape.seen(), *batch.packed, level),
                  count_by_hand(sizes(), trained, level));
    }
  }
}

TEST_CASE("stream flops: windows, and a reference without gradients", "[decoder]") {
  const TokenBatch batch = make_pair_batch(kRows);
  DecoderOptions options = sizes();
  options.family = "mistral";
  options.sliding_window = 3;
  const ModelShape shape(options, at::kFloat);
  check_equal(stream_flops(shape.seen(), *batch.packed, Checkpointing::kFull),
              count_by_hand(options, {}, Checkpointing::kFull, 3));

  ModelShape adapted(sizes(), at::kFloat);
  adapted.add_adapter({.r = 2});
  const StreamFlops base = stream_flops(adapted.network(), *batch.packed, Checkpointing::kNone);
  CHECK(base.forward == count_by_hand(sizes(), {}, Checkpointing::kNone).forward);
  CHECK(base.backward == 0);
}

TEST_CASE("stream flops: routed experts are those that a token chooses", "[decoder]") {
  const auto shape = ModelShape::read(PREFOPT_TEST_DATA_DIR "/families/mixtral", "float32");
  const DecoderOptions& o = shape.options();
  const auto& experts = shape.network().spec.layers[0].experts;
  REQUIRE(experts.count > experts.chosen);
  // One row of two equal completions of one token: every input is the prompt's.
  const TokenBatch batch = make_pair_batch({{.prompt = {1}, .chosen = {2}, .rejected = {3}}});
  const double queries = static_cast<double>(o.num_attention_heads * o.head_dim);
  const double keys = static_cast<double>(o.num_key_value_heads * o.head_dim);
  const double hidden = static_cast<double>(o.hidden_size);
  const double layer =
      2 * hidden * (2 * queries + 2 * keys) + 4 * queries +
      2 * hidden * static_cast<double>(experts.count + 3 * experts.chosen * experts.width);
  const StreamFlops counted = stream_flops(shape.seen(), *batch.packed, Checkpointing::kNone);
  CHECK(counted.forward == static_cast<double>(o.num_hidden_layers) * layer);
  const double attention = 4 * queries;
  CHECK(counted.backward ==
        static_cast<double>(o.num_hidden_layers) * (2 * (layer - attention) + 2.5 * attention));
}

}  // namespace prefopt::test_stream_flops
