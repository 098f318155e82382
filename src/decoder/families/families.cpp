// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>

#include "core/text.h"
#include "decoder/families/family.h"
#include "prefopt/error.h"

// A line for each family; its file defines `const Family& NAME_family()`.
#define PREFOPT_FAMILIES(add) add(llama) add(mistral) add(qwen2) add(qwen3)

namespace prefopt::detail {

#define PREFOPT_DECLARE(name) const Family& name##_family();
PREFOPT_FAMILIES(PREFOPT_DECLARE)
#undef PREFOPT_DECLARE

namespace {

std::vector<const Family*>& all_families() {
#define PREFOPT_ADDRESS(name) &name##_family(),
  static std::vector<const Family*> all = {PREFOPT_FAMILIES(PREFOPT_ADDRESS)};
#undef PREFOPT_ADDRESS
  return all;
}

const Family* find_by(std::string_view FamilyTraits::*name, std::string_view wanted) {
  for (const Family* family : families()) {
    if (!wanted.empty() && family->traits.*name == wanted) return family;
  }
  return nullptr;
}

// Null if no family has the options.
const Family* family_told_by(const DecoderOptions& options) {
  for (const Family* family : families()) {
    const FamilyTraits& traits = family->traits;
    const bool holds_window = traits.has_window || options.sliding_window == 0;
    if (traits.told_by_options && holds_window && family->misfit(options).empty()) return family;
  }
  return nullptr;
}

bool is_default(const DecoderOptions& options) {
  return options.family == families().front()->traits.model_type;
}

std::string replaced(std::string name, std::string_view from, std::string_view to) {
  if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

}  // namespace

const std::vector<const Family*>& families() { return all_families(); }

const Family* find_family(std::string_view model_type) {
  return find_by(&FamilyTraits::model_type, model_type);
}

const Family* find_gguf_family(std::string_view architecture) {
  return find_by(&FamilyTraits::gguf, architecture);
}

const Family& family_named(std::string_view model_type, std::string_view where) {
  if (const Family* family = find_family(model_type)) return *family;
  std::vector<std::string_view> names;
  for (const Family* family : families()) names.push_back(family->traits.model_type);
  throw ConfigError(fmt::format("{}: expected family to be {}, got '{}'{}", where,
                                list_names(names, '\''), shown_text(std::string(model_type)),
                                did_you_mean(model_type, names)));
}

const Family& family_of(const DecoderOptions& options, std::string_view where) {
  const Family& named = family_named(options.family, where);
  const Family* told = is_default(options) ? family_told_by(options) : nullptr;
  if (told) return *told;
  const std::string misfit = named.misfit(options);
  if (misfit.empty()) return named;
  throw ConfigError(fmt::format("{}: expected options that the family '{}' has, got {}", where,
                                named.traits.model_type, misfit));
}

bool is_family_implied(const DecoderOptions& options) {
  if (is_default(options)) return true;
  const Family* told = family_told_by(options);
  return told && told->traits.model_type == options.family;
}

std::string list_names(const std::vector<std::string_view>& names, char quote) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string_view before = i == 0 ? "" : i + 1 == names.size() ? " or " : ", ";
    text += fmt::format("{}{}{}{}", before, quote, names[i], quote);
  }
  return text;
}

std::string name_in_file(const Family& family, std::string name) {
  for (const auto& [here, in_file] : family.tensor_names()) {
    name = replaced(std::move(name), here, in_file);
  }
  return name;
}

std::string name_from_file(const Family& family, std::string name) {
  for (const auto& [here, in_file] : family.tensor_names()) {
    name = replaced(std::move(name), in_file, here);
  }
  return name;
}

std::string first_misfit(std::initializer_list<FlagRule> rules) {
  for (const FlagRule& rule : rules) {
    if (rule.given != rule.expected) return fmt::format("{} {}", rule.name, rule.given);
  }
  return "";
}

std::int64_t read_window(const StrictConfig& config, bool used, std::int64_t absent) {
  if (const Json* types = config.find("layer_types")) {
    const auto is = [](std::string_view name) {
      return [name](const Json& type) { return type == name; };
    };
    const auto is_known = [](const Json& type) {
      return type == "full_attention" || type == "sliding_attention";
    };
    if (!types->is_array() || !std::all_of(types->begin(), types->end(), is_known)) {
      config.fail(R"(layer_types to hold "full_attention" and "sliding_attention" only)",
                  shown_json(*types));
    }
    const bool slides = std::any_of(types->begin(), types->end(), is("sliding_attention"));
    if (slides && !config.find("sliding_window")) {
      config.fail("sliding_window with layer_types of sliding_attention", "none");
    }
    used = used || slides;
  }
  if (!used) return 0;
  if (!config.names("sliding_window")) return absent;
  return config.find("sliding_window") ? config.size("sliding_window") : 0;
}

void expect_attention_bias(const StrictConfig& config, bool bias, std::string_view family) {
  if (config.flag("attention_bias", bias) == bias) return;
  config.fail(fmt::format("attention_bias to be {} in {}", bias, family),
              shown_json(*config.find("attention_bias")));
}

void write_optional_window(const DecoderOptions& options, Json& config) {
  config["use_sliding_window"] = options.sliding_window > 0;
  if (options.sliding_window == 0) return;
  config["sliding_window"] = options.sliding_window;
  config["max_window_layers"] = 0;
}

AddedFamily::AddedFamily(const Family& family) { all_families().push_back(&family); }
AddedFamily::~AddedFamily() { all_families().pop_back(); }

}  // namespace prefopt::detail
