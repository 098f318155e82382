// SPDX-License-Identifier: Apache-2.0
#include "decoder/spec_difference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "core/json.h"
#include "decoder/families/family.h"
#include "decoder/layer_spec.h"
#include "decoder/rope.h"

namespace prefopt::detail {
namespace {

/// Names and values of what is computed by; those that do not matter are left out.
using Facts = std::vector<std::pair<std::string, Json>>;

void add_rope(const RopeSpec& rope, std::int64_t head_dim, Facts& facts) {
  const auto add = [&](const char* name, const Json& value) {
    facts.emplace_back(std::string("rope ") + name, value);
  };
  const RopeType type = rope.type;
  const bool by_context =
      type == RopeType::kLlama3 || type == RopeType::kYarn || type == RopeType::kLongrope;
  add("type", rope_to_json(rope).at("rope_type"));
  add("theta", rope.theta);
  add("turned numbers", rope.turned(head_dim));
  if (type != RopeType::kDefault && type != RopeType::kLongrope) add("factor", rope.factor);
  if (by_context) add("context", rope.context);
  if (type == RopeType::kDynamic) add("longest", rope.longest());
  if (type == RopeType::kLlama3) {
    add("low_freq_factor", rope.low);
    add("high_freq_factor", rope.high);
  }
  if (type == RopeType::kYarn) {
    add("beta_fast", rope.fast);
    add("beta_slow", rope.slow);
    add("truncate", rope.truncate);
  }
  if (type == RopeType::kLongrope) {
    add("short_factor", rope.short_factors);
    add("long_factor", rope.long_factors);
  }
  add("attention_factor", rope.attention_factor);
}

void add_experts(const ExpertSpec& experts, Facts& facts) {
  facts.emplace_back("experts", experts.count);
  if (experts.count == 0) return;
  facts.emplace_back("experts of a token", experts.chosen);
  facts.emplace_back("width of experts", experts.width);
  facts.emplace_back("norm_topk_prob", experts.normalized);
}

Facts facts_of(const ModelSpec& spec, const LayerSpec& layer, std::int64_t head_dim) {
  Facts facts{{"norm eps", layer.norm.eps},
              {"norms by 1 + weight", layer.norm.adds_one},
              {"norms before", layer.norms.before},
              {"norms after", layer.norms.after},
              {"gate", static_cast<int>(layer.gate)},
              {"attention_bias", layer.attention_bias},
              {"attention_output_bias", layer.attention_output_bias},
              {"mlp_bias", layer.mlp_bias},
              {"fused matrices", layer.fused},
              {"query_key_norm", static_cast<int>(layer.query_key_norm)},
              {"scale of scores", layer.query_scale},
              {"attn_logit_softcapping", layer.attention_softcap},
              {"window", layer.window},
              {"residual_multiplier", layer.residual_scale}};
  add_experts(layer.experts, facts);
  const bool rotates = layer.rope != LayerSpec::kNoRope;
  facts.emplace_back("rotation", rotates);
  if (rotates) add_rope(spec.ropes[static_cast<std::size_t>(layer.rope)], head_dim, facts);
  return facts;
}

Facts facts_of(const ModelSpec& spec, const DecoderOptions& options) {
  return {{"vocab_size", options.vocab_size},
          {"hidden_size", options.hidden_size},
          {"intermediate_size", options.intermediate_size},
          {"num_hidden_layers", options.num_hidden_layers},
          {"num_attention_heads", options.num_attention_heads},
          {"num_key_value_heads", options.num_key_value_heads},
          {"head_dim", options.head_dim},
          {"max_position_embeddings", options.max_position_embeddings},
          {"final norm eps", spec.norm.eps},
          {"final norm by 1 + weight", spec.norm.adds_one},
          {"embedding_multiplier", spec.embedding_scale},
          {"scale of logits", spec.logits.scale},
          {"final_logit_softcapping", spec.logits.softcap},
          {"tie_word_embeddings", spec.tied_head}};
}

bool alike(const Json& a, const Json& b) {
  if (a.is_array() && b.is_array()) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), alike);
  }
  if (!a.is_number_float() || !b.is_number_float()) return a == b;
  constexpr double kRounding = 1e-6;
  const auto x = a.get<double>(), y = b.get<double>();
  return std::abs(x - y) <= kRounding * std::max(std::abs(x), std::abs(y));
}

const Json* find_fact(const Facts& facts, const std::string& name) {
  const auto at = std::find_if(facts.begin(), facts.end(),
                               [&](const auto& fact) { return fact.first == name; });
  return at == facts.end() ? nullptr : &at->second;
}

/// Differences, each name once.
class Differences {
 public:
  explicit Differences(std::string_view place) : place_(place) {}

  /// `where` follows the value, as " of layer 3".
  void compare(const Facts& given, const Facts& other, const std::string& where) {
    for (const auto& [name, value] : given) {
      const Json* found = find_fact(other, name);
      if (found && alike(value, *found)) continue;
      if (std::find(names_.begin(), names_.end(), name) != names_.end()) continue;
      names_.push_back(name);
      texts_.push_back(fmt::format("{} {}{} ({} {})", name, dump_json(value), where,
                                   found ? dump_json(*found) : "none", place_));
    }
  }

  std::vector<std::string> texts() && { return std::move(texts_); }

 private:
  std::string_view place_;
  std::vector<std::string> names_, texts_;
};

}  // namespace

std::vector<std::string> spec_differences(const DecoderOptions& given, const DecoderOptions& other,
                                          std::string_view place) {
  const ModelSpec spec = family_named(given.family, "decoder").spec(given, "decoder");
  const ModelSpec against = family_named(other.family, "decoder").spec(other, "decoder");
  Differences differences(place);
  differences.compare(facts_of(spec, given), facts_of(against, other), "");
  const std::size_t layers = std::min(spec.layers.size(), against.layers.size());
  for (std::size_t i = 0; i < layers; ++i) {
    differences.compare(facts_of(spec, spec.layers[i], given.head_dim),
                        facts_of(against, against.layers[i], other.head_dim),
                        fmt::format(" of layer {}", i));
  }
  return std::move(differences).texts();
}

}  // namespace prefopt::detail
