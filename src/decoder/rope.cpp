// SPDX-License-Identifier: Apache-2.0
#include "decoder/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr std::array kTypeNames =
    std::to_array<std::string_view>({"default", "linear", "llama3", "yarn", "dynamic", "longrope"});

// --- frequencies: operations in transformers' order, since a difference in the last bit grows with
// --- the position

// theta^(2 i / dim).
at::Tensor wavelengths_by_turn(const RopeSpec& spec, std::int64_t dim, at::Device device) {
  const auto float32 = at::TensorOptions(at::kFloat).device(device);
  return at::pow(spec.theta, at::arange(0, dim, 2, float32) / static_cast<double>(dim));
}

// Long waves turn `factor` times slower, short ones as before, and between the two bounds the
// shares of both go from 1 to 0.
at::Tensor llama3_frequencies(const RopeSpec& spec, const at::Tensor& frequencies) {
  const auto context = static_cast<double>(spec.context);
  const at::Tensor wavelengths = (2 * std::numbers::pi) / frequencies;
  const at::Tensor kept = ((context / wavelengths - spec.low) / (spec.high - spec.low)).clamp(0, 1);
  return (1 - kept) * frequencies / spec.factor + kept * frequencies;
}

// The pair that turns so often within the context (2309.00071).
double pair_of_turns(const RopeSpec& spec, std::int64_t dim, double turns) {
  const double waves = static_cast<double>(spec.context) / (turns * 2 * std::numbers::pi);
  return static_cast<double>(dim) * std::log(waves) / (2 * std::log(spec.theta));
}

at::Tensor yarn_frequencies(const RopeSpec& spec, std::int64_t dim, const at::Tensor& by_turn) {
  double low = pair_of_turns(spec, dim, spec.fast), high = pair_of_turns(spec, dim, spec.slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  const auto like = at::TensorOptions(at::kFloat).device(by_turn.device());
  const at::Tensor kept = 1 - ((at::arange(dim / 2, like) - low) / (high - low)).clamp(0, 1);
  return (spec.factor * by_turn).reciprocal() * (1 - kept) + by_turn.reciprocal() * kept;
}

at::Tensor frequencies_of(const RopeSpec& spec, std::int64_t dim, bool is_long, at::Device device) {
  const at::Tensor by_turn = wavelengths_by_turn(spec, dim, device);
  switch (spec.type) {
    case RopeType::kLinear:
      return by_turn.reciprocal() / spec.factor;
    case RopeType::kLlama3:
      return llama3_frequencies(spec, by_turn.reciprocal());
    case RopeType::kYarn:
      return yarn_frequencies(spec, dim, by_turn);
    case RopeType::kLongrope: {
      const auto& factors = is_long ? spec.long_factors : spec.short_factors;
      return (at::tensor(factors, at::kFloat).to(device) * by_turn).reciprocal();
    }
    case RopeType::kDefault:
    case RopeType::kDynamic:
      break;
  }
  return by_turn.reciprocal();
}

// --- configs -----------------------------------------------------------------------------------

/// The fields that a type reads, apart from type, theta and share.
std::vector<std::string_view> fields_of(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return {};
    case RopeType::kLinear:
    case RopeType::kDynamic:
      return {"factor"};
    case RopeType::kLlama3:
      return {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    case RopeType::kYarn:
      return {"factor", "attention_factor", "beta_fast", "beta_slow",
              "mscale", "mscale_all_dim",   "truncate",  "original_max_position_embeddings"};
    case RopeType::kLongrope:
      return {"factor", "attention_factor", "short_factor", "long_factor",
              "original_max_position_embeddings"};
  }
  return {};
}

/// A rotary group and how errors name it.
class RopeGroup {
 public:
  RopeGroup(const StrictConfig& config, std::string_view name, const Json& group)
      : config_(config), name_(name), group_(group) {}

  [[noreturn]] void fail(std::string_view expected) const {
    config_.fail(fmt::format("{} {}", name_, expected), shown_json(group_));
  }

  const Json* find(std::string_view field) const {
    const auto at = group_.find(std::string(field));
    return at == group_.end() || at->is_null() ? nullptr : &*at;
  }

  double number(std::string_view field, std::optional<double> absent) const {
    const Json* value = find(field);
    if (value && value->is_number()) return value->get<double>();
    if (value || !absent) fail(fmt::format("with a number {}", field));
    return *absent;
  }

  std::int64_t tokens(std::string_view field, std::int64_t absent) const {
    const Json* value = find(field);
    if (!value) return absent;
    const std::int64_t count = config_.whole(field, *value);
    if (count < 1 || count > kMaxDecoderSize) {
      fail(fmt::format("with {} in [1, {}]", field, kMaxDecoderSize));
    }
    return count;
  }

  std::vector<double> numbers(std::string_view field) const {
    const Json* value = find(field);
    const auto is_number = [](const Json& item) { return item.is_number(); };
    if (!value || !value->is_array() || !std::all_of(value->begin(), value->end(), is_number)) {
      fail(fmt::format("with {}, a list of numbers", field));
    }
    return value->get<std::vector<double>>();
  }

  bool flag(std::string_view field, bool absent) const {
    const Json* value = find(field);
    if (value && !value->is_boolean()) fail(fmt::format("with {} true or false", field));
    return value ? value->get<bool>() : absent;
  }

  RopeType type() const {
    const Json* given = find("rope_type");
    const Json* older = find("type");
    if (given && older && *given != *older) fail("of one type");
    if (!given) given = older;
    if (!given) return RopeType::kDefault;
    const auto at = std::find(kTypeNames.begin(), kTypeNames.end(), *given);
    if (at == kTypeNames.end()) {
      fail(R"(of rope_type "default", "linear", "llama3", "yarn", "dynamic" or "longrope")");
    }
    return static_cast<RopeType>(at - kTypeNames.begin());
  }

  /// Refuses fields that the type does not read.
  void check_names(RopeType type) const {
    const std::vector<std::string_view> read = fields_of(type);
    for (const auto& item : group_.items()) {
      const std::string& name = item.key();
      const bool is_shared = name == "rope_type" || name == "type" || name == "rope_theta" ||
                             name == "partial_rotary_factor";
      if (is_shared || item.value().is_null() || contains(read, name)) continue;
      // A stretch by 1 and the length of a context without a stretch change nothing.
      if (name == "factor" && item.value() == 1) continue;
      if (name == "original_max_position_embeddings") continue;
      fail(fmt::format("of rope_type \"{}\" without {}", kTypeNames[static_cast<std::size_t>(type)],
                       name));
    }
  }

 private:
  const StrictConfig& config_;
  std::string_view name_;
  const Json& group_;
};

double yarn_attention(double factor, double scale) {
  return factor <= 1 ? 1 : 0.1 * scale * std::log(factor) + 1;
}

void read_llama3(const RopeGroup& group, RopeSpec& spec) {
  for (const std::string_view name : fields_of(RopeType::kLlama3)) {
    if (!group.find(name)) {
      group.fail(
          "with factor, low_freq_factor, high_freq_factor and original_max_position_embeddings");
    }
  }
  spec.low = group.number("low_freq_factor", {});
  spec.high = group.number("high_freq_factor", {});
}

void read_yarn(const RopeGroup& group, RopeSpec& spec) {
  // 0 is the same as none.
  const auto or_default = [&](std::string_view name, double usual) {
    const double given = group.number(name, 0);
    return given == 0 ? usual : given;
  };
  spec.fast = or_default("beta_fast", 32);
  spec.slow = or_default("beta_slow", 1);
  spec.truncate = group.flag("truncate", true);
  const double scale = group.number("mscale", 0), all = group.number("mscale_all_dim", 0);
  const double usual = scale != 0 && all != 0
                           ? yarn_attention(spec.factor, scale) / yarn_attention(spec.factor, all)
                           : yarn_attention(spec.factor, 1);
  spec.attention_factor = group.number("attention_factor", usual);
}

void read_longrope(const RopeGroup& group, RopeSpec& spec) {
  spec.short_factors = group.numbers("short_factor");
  spec.long_factors = group.numbers("long_factor");
  const double usual =
      spec.factor <= 1
          ? 1
          : std::sqrt(1 + std::log(spec.factor) / std::log(static_cast<double>(spec.context)));
  spec.attention_factor = group.number("attention_factor", usual);
}

}  // namespace

std::int64_t RopeSpec::turned(std::int64_t head_dim) const {
  return static_cast<std::int64_t>(static_cast<double>(head_dim) * partial);
}

Rotary rotary_of(const RopeSpec& spec, std::int64_t head_dim, const at::Tensor& positions,
                 bool is_long, at::ScalarType dtype) {
  const at::Tensor frequencies =
      frequencies_of(spec, spec.turned(head_dim), is_long, positions.device());
  const at::Tensor angles = positions.to(at::kFloat).unsqueeze(-1) * frequencies;
  if (spec.attention_factor == 1) return {angles.cos().to(dtype), angles.sin().to(dtype)};
  return {(angles.cos() * spec.attention_factor).to(dtype),
          (angles.sin() * spec.attention_factor).to(dtype)};
}

RopeSpec read_rope(const StrictConfig& config, std::string_view name, const Json& group,
                   const RopeDefaults& defaults) {
  if (!group.is_object()) config.fail(fmt::format("{} to be an object", name), shown_json(group));
  const RopeGroup fields(config, name, group);
  RopeSpec spec;
  spec.type = fields.type();
  fields.check_names(spec.type);
  spec.theta = fields.number("rope_theta", defaults.theta);
  spec.partial = fields.number("partial_rotary_factor", defaults.partial);
  if (spec.partial != 1 && !defaults.may_be_partial) {
    config.fail("partial_rotary_factor to be 1", fmt::format("{}", spec.partial));
  }
  if (spec.type == RopeType::kDefault) return spec;
  const std::int64_t context =
      defaults.original_longest > 0
          ? defaults.original_longest
          : fields.tokens("original_max_position_embeddings", defaults.longest);
  // Dynamic frequencies begin to change at the model's own limit.
  spec.context = spec.type == RopeType::kDynamic ? defaults.longest : context;
  const bool by_context = spec.type == RopeType::kYarn || spec.type == RopeType::kLongrope;
  const std::optional<double> by_ratio =
      by_context
          ? std::optional(static_cast<double>(defaults.longest) / static_cast<double>(spec.context))
          : std::nullopt;
  spec.factor = fields.number("factor", by_ratio);
  if (spec.type == RopeType::kLlama3) read_llama3(fields, spec);
  if (spec.type == RopeType::kYarn) read_yarn(fields, spec);
  if (spec.type == RopeType::kLongrope) read_longrope(fields, spec);
  // A stretch by 1 changes nothing.
  if (spec.type == RopeType::kLinear && spec.factor == 1) {
    return {.theta = spec.theta, .partial = spec.partial};
  }
  return spec;
}

void check_rope(const RopeSpec& spec, std::int64_t head_dim, std::string_view where) {
  const auto expect = [&](bool holds, std::string_view expected, const auto& got) {
    if (!holds) throw ConfigError(fmt::format("{}: expected {}, got {}", where, expected, got));
  };
  const auto is_positive = [](double value) { return std::isfinite(value) && value > 0; };
  expect(is_positive(spec.theta), "a rope_theta above 0", spec.theta);
  expect(spec.partial > 0 && spec.partial <= 1, "partial_rotary_factor in (0, 1]", spec.partial);
  const std::int64_t turned = spec.turned(head_dim);
  expect(turned > 0 && turned % 2 == 0, "an even number of rotated numbers of a head", turned);
  if (spec.type == RopeType::kDefault) return;
  expect(std::isfinite(spec.factor) && spec.factor >= 1, "a rotary factor of at least 1",
         spec.factor);
  expect(is_positive(spec.attention_factor), "a rotary attention_factor above 0",
         spec.attention_factor);
  expect(spec.high > spec.low, "high_freq_factor above low_freq_factor", spec.high);
  expect(is_positive(spec.slow) && std::isfinite(spec.fast) && spec.fast >= spec.slow,
         "beta_fast of at least beta_slow, which is above 0", spec.fast);
  if (spec.type == RopeType::kYarn) expect(spec.theta != 1, "a rope_theta other than 1", 1);
  if (spec.type != RopeType::kLongrope) return;
  for (const auto* factors : {&spec.short_factors, &spec.long_factors}) {
    expect(std::ssize(*factors) == turned / 2,
           fmt::format("{} numbers in short_factor and long_factor", turned / 2), factors->size());
    expect(std::all_of(factors->begin(), factors->end(), is_positive),
           "short_factor and long_factor above 0", "others");
  }
}

Json rope_to_json(const RopeSpec& spec) {
  Json group{{"rope_type", kTypeNames[static_cast<std::size_t>(spec.type)]},
             {"rope_theta", spec.theta}};
  if (spec.partial != 1) group["partial_rotary_factor"] = spec.partial;
  if (spec.type == RopeType::kDefault) return group;
  group["factor"] = spec.factor;
  if (spec.type == RopeType::kLinear || spec.type == RopeType::kDynamic) return group;
  group["original_max_position_embeddings"] = spec.context;
  if (spec.type == RopeType::kLlama3) {
    group["low_freq_factor"] = spec.low;
    group["high_freq_factor"] = spec.high;
    return group;
  }
  group["attention_factor"] = spec.attention_factor;
  if (spec.type == RopeType::kYarn) {
    group["beta_fast"] = spec.fast;
    group["beta_slow"] = spec.slow;
    group["truncate"] = spec.truncate;
  } else {
    group["short_factor"] = spec.short_factors;
    group["long_factor"] = spec.long_factors;
  }
  return group;
}

}  // namespace prefopt::detail
