// SPDX-License-Identifier: Apache-2.0
#include "decoder/family_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

constexpr const char* kRope = "rope_parameters";

double above_zero(const StrictConfig& config, std::string_view name, double absent) {
  const double value = config.number(name, absent);
  if (std::isfinite(value) && value > 0) return value;
  config.fail(fmt::format("{} above 0", name), fmt::format("{}", value));
}

Json layer_types(const std::vector<bool>& slides) {
  Json types = Json::array();
  for (const bool slide : slides) types.push_back(slide ? kSlidingAttention : kFullAttention);
  return types;
}

std::vector<bool> read_layer_types(const StrictConfig& config, const Json& types,
                                   std::int64_t layers) {
  const auto is_known = [](const Json& type) {
    return type == kFullAttention || type == kSlidingAttention;
  };
  if (!types.is_array() || !std::all_of(types.begin(), types.end(), is_known)) {
    config.fail(R"(layer_types to hold "full_attention" and "sliding_attention" only)",
                shown_json(types));
  }
  if (std::ssize(types) != layers) {
    config.fail(fmt::format("layer_types of {} layers", layers), fmt::format("{}", types.size()));
  }
  std::vector<bool> slides;
  for (const Json& type : types) slides.push_back(type == kSlidingAttention);
  return slides;
}

bool any(const std::vector<bool>& flags) {
  return std::find(flags.begin(), flags.end(), true) != flags.end();
}

}  // namespace

FamilyFields::FamilyFields(const DecoderOptions& options, std::string_view where)
    : json_(family_fields_of(options)), config_(json_, std::string(where)) {}

double FamilyFields::positive(std::string_view name, double absent) const {
  return above_zero(config_, name, absent);
}

double FamilyFields::softcap(std::string_view name) const {
  return config_.find(name) ? above_zero(config_, name, 1) : 0;
}

Json family_fields_of(const DecoderOptions& options) {
  Json fields = parse_json<ConfigError>(options.family_fields, "family_fields");
  if (fields.is_object()) return fields;
  throw ConfigError("family_fields: expected an object, got " + shown_json(fields));
}

void set_family_field(DecoderOptions& options, std::string_view name, const Json& value) {
  const Json before = family_fields_of(options);
  // In the order of their names: the text is part of a model's hash.
  std::map<std::string, Json> fields;
  for (const auto& item : before.items()) fields.emplace(item.key(), item.value());
  fields.insert_or_assign(std::string(name), value);
  Json sorted = Json::object();
  for (auto& [key, field] : fields) sorted[key] = std::move(field);
  options.family_fields = dump_json(sorted);
}

void keep_fields(const StrictConfig& config, const std::vector<std::string_view>& names,
                 DecoderOptions& options) {
  for (const std::string_view name : names) {
    if (const Json* value = config.find(name)) set_family_field(options, name, *value);
  }
}

// --- windows -----------------------------------------------------------------------------------

void read_windows(const StrictConfig& config, const SlidingRule& slides, std::int64_t absent,
                  DecoderOptions& options) {
  std::vector<bool> sliding;
  if (const Json* types = config.find("layer_types")) {
    sliding = read_layer_types(config, *types, options.num_hidden_layers);
  } else {
    for (std::int64_t i = 0; i < options.num_hidden_layers; ++i) sliding.push_back(slides(i));
  }
  options.sliding_window = 0;
  if (!any(sliding)) return;
  const bool is_absent = !config.names("sliding_window");
  if (is_absent ? absent == 0 : !config.find("sliding_window")) {
    if (config.find("layer_types")) {
      config.fail("sliding_window with layer_types of sliding_attention", "none");
    }
    return;
  }
  options.sliding_window = is_absent ? absent : config.size("sliding_window");
  set_sliding_layers(sliding, options);
}

void set_sliding_layers(const std::vector<bool>& slides, DecoderOptions& options) {
  if (!any(slides)) options.sliding_window = 0;
  const bool alike = std::equal(slides.begin() + 1, slides.end(), slides.begin());
  if (!alike) set_family_field(options, "layer_types", layer_types(slides));
}

std::vector<bool> sliding_layers(const DecoderOptions& options, const FamilyFields& fields) {
  if (const Json* types = fields.config().find("layer_types")) {
    return read_layer_types(fields.config(), *types, options.num_hidden_layers);
  }
  return std::vector<bool>(static_cast<std::size_t>(options.num_hidden_layers),
                           options.sliding_window > 0);
}

// --- rotary positions --------------------------------------------------------------------------

RopeDefaults rope_defaults(const StrictConfig& config, double theta,
                           const DecoderOptions& options) {
  RopeDefaults defaults{.theta = config.number("rope_theta", theta),
                        .partial = config.number("partial_rotary_factor", 1),
                        .longest = options.max_position_embeddings};
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  if (config.find(kOriginal)) defaults.original_longest = config.size(kOriginal);
  return defaults;
}

RopeSpec read_one_rope(const StrictConfig& config, const RopeDefaults& defaults) {
  std::optional<RopeSpec> rope;
  for (const char* name : {"rope_scaling", kRope}) {
    const Json* group = config.find(name);
    if (!group) continue;
    RopeSpec given = read_rope(config, name, *group, defaults);
    if (rope.value_or(given) != given) {
      config.fail("rope_parameters that agree with rope_scaling", shown_json(*group));
    }
    rope = std::move(given);
    if (config.find("rope_theta") && rope->theta != defaults.theta) {
      config.fail(fmt::format("one rope_theta, {}", defaults.theta),
                  shown_json((*group)["rope_theta"]));
    }
  }
  return rope.value_or(RopeSpec{.theta = defaults.theta, .partial = defaults.partial});
}

void set_rope(DecoderOptions& options, const RopeSpec& rope) {
  options.rope_theta = rope.theta;
  const bool has_options = rope.partial == 1;
  if (has_options && rope.type == RopeType::kDefault) return;
  if (has_options && rope.type == RopeType::kLlama3) {
    options.rope_scaling_factor = rope.factor;
    options.rope_low_freq_factor = rope.low;
    options.rope_high_freq_factor = rope.high;
    options.rope_original_max_position_embeddings = rope.context;
    return;
  }
  set_family_field(options, kRope, rope_to_json(rope));
}

RopeSpec rope_of(const DecoderOptions& options, const FamilyFields& fields) {
  if (const Json* group = fields.config().find(kRope)) {
    return read_rope(fields.config(), kRope, *group,
                     {.theta = options.rope_theta,
                      .longest = options.max_position_embeddings,
                      .may_be_partial = true});
  }
  RopeSpec rope{.theta = options.rope_theta};
  if (options.rope_scaling_factor == 1) return rope;
  rope.type = RopeType::kLlama3;
  rope.factor = options.rope_scaling_factor;
  rope.low = options.rope_low_freq_factor;
  rope.high = options.rope_high_freq_factor;
  rope.context = options.rope_original_max_position_embeddings;
  return rope;
}

namespace {

// The group of one type of layers; an empty one where it is not given.
Json group_of(const StrictConfig& config, std::string_view type) {
  const Json* groups = config.find(kRope);
  if (!groups || !groups->is_object()) return Json::object();
  const auto at = groups->find(std::string(type));
  return at == groups->end() || at->is_null() ? Json::object() : *at;
}

void check_group_names(const StrictConfig& config) {
  const Json* groups = config.find(kRope);
  if (!groups) return;
  const auto is_type = [](const auto& item) {
    return item.key() == kFullAttention || item.key() == kSlidingAttention;
  };
  bool fits = groups->is_object();
  for (const auto& item : groups->items()) fits = fits && is_type(item);
  if (!fits) {
    config.fail("rope_parameters of full_attention and sliding_attention", shown_json(*groups));
  }
}

}  // namespace

RopePair read_rope_pair(const StrictConfig& config, const RopeDefaults& defaults,
                        double sliding_theta) {
  check_group_names(config);
  RopeDefaults of_sliding = defaults;
  of_sliding.theta = sliding_theta;
  const std::string name(kRope);
  RopePair ropes{
      read_rope(config, name + ".full_attention", group_of(config, kFullAttention), defaults),
      read_rope(config, name + ".sliding_attention", group_of(config, kSlidingAttention),
                of_sliding)};
  for (const RopeSpec* rope : {&ropes.full, &ropes.sliding}) {
    // transformers looks for it outside of the two groups.
    if (!rope->truncate) config.fail("rope_parameters without truncate false", "one with it");
  }
  if (const Json* older = config.find("rope_scaling")) {
    if (config.find(kRope)) config.fail("one of rope_parameters and rope_scaling", "both");
    ropes.full = read_rope(config, "rope_scaling", *older, defaults);
  }
  return ropes;
}

void set_rope_pair(DecoderOptions& options, const RopePair& ropes) {
  options.rope_theta = ropes.full.theta;
  set_family_field(options, kRope,
                   {{kFullAttention, rope_to_json(ropes.full)},
                    {kSlidingAttention, rope_to_json(ropes.sliding)}});
}

bool has_rope_pair(const FamilyFields& fields) {
  const Json* groups = fields.config().find(kRope);
  return groups && groups->is_object() && groups->contains(std::string(kFullAttention));
}

RopePair rope_pair_of(const DecoderOptions& options, const FamilyFields& fields) {
  return read_rope_pair(fields.config(),
                        {.theta = options.rope_theta, .longest = options.max_position_embeddings},
                        options.rope_theta);
}

}  // namespace prefopt::detail
