// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/lora_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt {

ModuleNames::ModuleNames(std::initializer_list<std::string> names)
    : ModuleNames(std::vector<std::string>(names)) {}
ModuleNames::ModuleNames(const std::vector<std::string>& names)
    : json(detail::dump_json(detail::Json(names))) {}

ModuleNames ModuleNames::matching(const std::string& pattern) {
  ModuleNames names;
  names.json = detail::dump_json(detail::Json(pattern));
  return names;
}

void LoraOptions::fields(FieldVisitor& v) {
  const LoraOptions before;
  // Texts from before an option lack it, and are the same without it.
  const auto is_new = [&](const auto& value, const auto& old) {
    return !v.writes() || value != old;
  };
  v.integer({"r", "rank of the adapter", {"lora_r"}}, r, Range::between(1, 65536));
  v.real({"lora_alpha", "the adapter is scaled by lora_alpha / r"}, lora_alpha, Range::above(0));
  v.flag({"use_rslora", "scale by lora_alpha / sqrt(r) instead"}, use_rslora);
  v.json({"target_modules",
          "modules that get an adapter: names or their ends, a pattern, or \"all-linear\"",
          {"lora_target_modules"}},
         target_modules.json);
  if (is_new(exclude_modules.json, before.exclude_modules.json)) {
    v.json({"exclude_modules", "targets that get none: names or their ends, or a pattern"},
           exclude_modules.json);
  }
  if (is_new(layers_to_transform, before.layers_to_transform)) {
    v.json({"layers_to_transform", "a layer or a list of layers; null: all"}, layers_to_transform);
  }
  if (is_new(layers_pattern, before.layers_pattern)) {
    v.json({"layers_pattern", "name of the list of layers; null: any"}, layers_pattern);
  }
  if (is_new(rank_pattern, before.rank_pattern)) {
    v.json({"rank_pattern", "ranks by pattern, in place of r; the first that matches"},
           rank_pattern);
  }
  if (is_new(alpha_pattern, before.alpha_pattern)) {
    v.json({"alpha_pattern", "the same in place of lora_alpha"}, alpha_pattern);
  }
  if (is_new(use_dora, before.use_dora)) {
    v.flag({"use_dora", "train the lengths of the rows of adapted weights, too"}, use_dora);
  }
  if (is_new(lora_bias, before.lora_bias)) v.flag({"lora_bias", "B has a bias"}, lora_bias);
  if (is_new(bias, before.bias)) {
    v.choice({"bias", "biases that are trained as well: none, all, or of adapted maps"}, bias,
             {"none", "all", "lora_only"});
  }
  if (is_new(modules_to_save, before.modules_to_save)) {
    v.texts({"modules_to_save",
             "ends of names of modules that are trained whole",
             {"lora_modules_to_save"}},
            modules_to_save);
  }
  if (is_new(init_lora_weights, before.init_lora_weights)) {
    v.json({"init_lora_weights", "true, false or \"gaussian\""}, init_lora_weights);
  }
  if (is_new(lora_dropout, before.lora_dropout)) {
    v.real({"lora_dropout", "0: none"}, lora_dropout,
           Range::between(0, 0).because("the layers here have no dropout"));
  }
}

namespace detail {
namespace {

constexpr std::string_view kPatternHint =
    "letters, '.', [...], (...), (?:...), (?=...), (?!...), |, ^, $, *, +, ?, {m,n}, and \\ in "
    "front of d, w, s, b or a sign are";

[[noreturn]] void fail_at(std::string_view where, std::string_view expected, std::string_view got) {
  throw ConfigError(fmt::format("{}: expected {}, got {}", where, expected, got));
}

void check_portable(std::string_view pattern, std::string_view where) {
  const auto at = find_not_portable(pattern);
  if (!at) return;
  fail_at(where, "a pattern of what Python's re and PCRE2 read alike",
          fmt::format("'{}' at {} of '{}'; {}",
                      shown_text(std::string(pattern.substr(std::min(*at, pattern.size()), 8))),
                      *at, shown_text(std::string(pattern)), kPatternHint));
}

bool ends_in(std::string_view module, std::string_view name) {
  return module.size() > name.size() && module.ends_with(name) &&
         module[module.size() - name.size() - 1] == '.';
}

Json parsed(const std::string& json, const std::string& where) {
  return parse_json<ConfigError>(json, where);
}

bool is_list_of_texts(const Json& value) {
  return value.is_array() &&
         std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_string(); });
}

bool is_all_linear(const NameRule& targets) {
  std::string lower = targets.text();
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return lower == "all-linear";
}

}  // namespace

NameRule::NameRule(const ModuleNames& names, const std::string& where) {
  const Json value = parsed(names.json, where);
  if (value.is_null()) return;
  if (value.is_string()) {
    text_ = value.get<std::string>();
    check_portable(text_, where);
    if (!text_.empty()) pattern_.emplace(text_, where);
    return;
  }
  if (!is_list_of_texts(value)) {
    fail_at(where, "a list of texts, or a text with a pattern", shown_json(value));
  }
  names_ = value.get<std::vector<std::string>>();
}

bool NameRule::has(std::string_view module) const { return contains(names_, module); }

bool NameRule::matches(std::string_view module) const {
  if (pattern_) return pattern_->matches(module);
  return has(module) || std::any_of(names_.begin(), names_.end(),
                                    [&](const std::string& name) { return ends_in(module, name); });
}

LoraRules::LoraRules(LoraOptions options, std::string where)
    : options_(std::move(options)),
      where_(std::move(where)),
      targets_(options_.target_modules, where_ + ".target_modules"),
      excluded_(options_.exclude_modules, where_ + ".exclude_modules") {
  if (targets_.is_empty()) fail("target_modules", "at least one name", "none");
  all_linear_ = is_all_linear(targets_);
  read_layers();
  ranks_ = pattern_values("rank_pattern", options_.rank_pattern);
  alphas_ = pattern_values("alpha_pattern", options_.alpha_pattern);
  for (const std::string& name : options_.modules_to_save) {
    const std::string option = where_ + ".modules_to_save";
    check_portable(name, option);
    if (name.empty()) fail("modules_to_save", "names of modules", "an empty one");
    saved_.emplace_back("(^|.*\\.)" + name + "($|\\..*)", option);
  }
  if (options_.lora_bias && options_.use_dora) {
    fail("lora_bias", "false with use_dora", "true");
  }
}

void LoraRules::fail(std::string_view option, std::string_view expected,
                     std::string_view got) const {
  fail_at(fmt::format("{}.{}", where_, option), expected, got);
}

void LoraRules::read_layers() {
  const Json layers = parsed(options_.layers_to_transform, where_ + ".layers_to_transform");
  const auto add = [&](const Json& layer) {
    if (!layer.is_number_integer()) {
      fail("layers_to_transform", "a layer's number or a list of them", shown_json(layers));
    }
    layers_.push_back(layer.get<std::int64_t>());
  };
  if (layers.is_array()) {
    for (const Json& layer : layers) add(layer);
  } else if (!layers.is_null()) {
    add(layers);
  }
  Json patterns = parsed(options_.layers_pattern, where_ + ".layers_pattern");
  if (patterns.is_string()) patterns = Json::array({patterns});
  if (!patterns.is_null() && !is_list_of_texts(patterns)) {
    fail("layers_pattern", "a text or a list of texts", shown_json(patterns));
  }
  for (const Json& item : patterns) {
    const auto pattern = item.get<std::string>();
    if (pattern.empty()) continue;
    check_portable(pattern, where_ + ".layers_pattern");
    layer_patterns_.emplace_back("(?:^|.*?\\.)" + pattern + "\\.(?P<idx>\\d+)\\.",
                                 where_ + ".layers_pattern");
  }
  if (!layer_patterns_.empty() && layers.is_null()) {
    fail("layers_to_transform", "layers, as there is a layers_pattern", "none");
  }
  if (targets_.is_pattern() && !layers.is_null()) {
    fail("layers_to_transform", "null where target_modules is a text", shown_json(layers));
  }
}

std::vector<LoraRules::PatternValue> LoraRules::pattern_values(std::string_view option,
                                                               const std::string& json) const {
  const std::string where = fmt::format("{}.{}", where_, option);
  const Json values = parsed(json, where);
  if (values.is_null()) return {};
  if (!values.is_object()) fail(option, "an object of numbers", shown_json(values));
  const bool is_rank = option == "rank_pattern";
  std::vector<PatternValue> result;
  for (const auto& item : values.items()) {
    const Json& value = item.value();
    const bool fits = is_rank ? value.is_number_integer() && value >= 1 && value <= 65536
                              : value.is_number() && value > 0;
    if (!fits) {
      fail(option, is_rank ? "ranks in [1, 65536]" : "numbers > 0",
           fmt::format("'{}': {}", shown_text(item.key()), shown_json(value)));
    }
    check_portable(item.key(), where);
    result.push_back(
        {item.key(), ModulePattern("(.*\\.)?(" + item.key() + ")$", where), value.get<double>()});
  }
  return result;
}

bool LoraRules::is_excluded(std::string_view module) const {
  return excluded_.matches(module) ||
         std::any_of(saved_.begin(), saved_.end(),
                     [&](const ModulePattern& saved) { return saved.matches(module); });
}

bool LoraRules::is_in_layers(std::string_view module) const {
  if (layers_.empty()) return true;
  static const ModulePattern kAnyList(".*?\\.[^.]*\\.(?P<idx>\\d+)\\.", "layers_pattern");
  std::string index;
  if (layer_patterns_.empty()) index = kAnyList.index_in(module);
  for (const ModulePattern& pattern : layer_patterns_) {
    if (index.empty()) index = pattern.index_in(module);
  }
  return std::any_of(layers_.begin(), layers_.end(),
                     [&](std::int64_t layer) { return fmt::format("{}", layer) == index; });
}

bool LoraRules::targets(std::string_view module, std::optional<ModuleKind> kind) const {
  if (is_excluded(module)) return false;
  if (all_linear_) return kind == ModuleKind::kLinear;
  if (targets_.is_pattern() || targets_.has(module)) return targets_.matches(module);
  return targets_.matches(module) && is_in_layers(module);
}

bool LoraRules::saves(std::string_view module) const {
  return std::any_of(options_.modules_to_save.begin(), options_.modules_to_save.end(),
                     [&](const std::string& name) { return module.ends_with(name); });
}

std::int64_t LoraRules::rank_of(std::string_view module) const {
  for (const PatternValue& rank : ranks_) {
    if (rank.pattern.matches(module)) return static_cast<std::int64_t>(rank.value);
  }
  return options_.r;
}

double LoraRules::scale_of(std::string_view module) const {
  for (const PatternValue& alpha : alphas_) {
    if (alpha.pattern.matches(module)) return scale(alpha.value, rank_of(module));
  }
  return scale(options_.lora_alpha, rank_of(module));
}

double LoraRules::common_scale() const { return scale(options_.lora_alpha, options_.r); }

double LoraRules::scale(double alpha, std::int64_t rank) const {
  const auto wide = static_cast<double>(rank);
  return alpha / (options_.use_rslora ? std::sqrt(wide) : wide);
}

std::string LoraRules::find_unused(const std::vector<std::string>& modules) const {
  const auto is_used = [&](const auto& matches) {
    return std::any_of(modules.begin(), modules.end(), matches);
  };
  for (const std::string& name : targets_.names()) {
    const auto is_it = [&](const std::string& module) {
      return module == name || ends_in(module, name);
    };
    if (!is_used(is_it)) return fmt::format("target_modules: '{}'", name);
  }
  for (const auto& [option, values] :
       {std::pair{"rank_pattern", &ranks_}, std::pair{"alpha_pattern", &alphas_}}) {
    for (const PatternValue& value : *values) {
      const auto is_it = [&](const std::string& module) { return value.pattern.matches(module); };
      if (!is_used(is_it)) return fmt::format("{}: '{}'", option, value.text);
    }
  }
  return {};
}

}  // namespace detail
}  // namespace prefopt
