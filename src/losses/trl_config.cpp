// SPDX-License-Identifier: Apache-2.0
#include "losses/trl_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"

namespace prefopt::detail {
namespace {

bool has_option(const LossEntry& entry, const std::string& key) {
  return std::any_of(entry.options.begin(), entry.options.end(), [&](const FieldDoc& option) {
    return option.name == key || std::count(option.aliases.begin(), option.aliases.end(), key) > 0;
  });
}

/// TRL's trainer smooths labels in some of its losses; ours can in these as well.
bool is_unread_in_trl(const LossEntry& entry, const std::string& key) {
  return key == "label_smoothing" &&
         (entry.info.name == "dpo" || entry.info.name == "sigmoid_norm");
}

/// An option with the value at which it does nothing, or one that TRL has for all losses and reads
/// for a few.
bool changes_nothing(const std::string& key, const Json& value) {
  constexpr std::array<std::string_view, 3> kForAFew = {"beta", "discopop_tau",
                                                        "f_alpha_divergence_coef"};
  static const Json kNeutral = {{"label_smoothing", 0},
                                {"cpo_alpha", 0},
                                {"ld_alpha", 1},
                                {"f_divergence_type", "reverse_kl"}};
  const auto neutral = kNeutral.find(key);
  return (neutral != kNeutral.end() && *neutral == value) ||
         std::find(kForAFew.begin(), kForAFew.end(), key) != kForAFew.end();
}

// TRL's flag is our choice.
void translate_weighting(Json& config) {
  const auto given = config.find("use_weighting");
  if (given == config.end() || !given->is_boolean()) return;
  if (given->get<bool>()) config["weighting"] = "sampled_alignment";
  config.erase("use_weighting");
}

// Names that TRL has for settings of one of our losses.
void translate_name(Json& loss) {
  if (loss["type"] == "apo_zero_unpaired") {
    loss["type"] = "kto";
    loss["estimate_kl"] = false;
  } else if (loss["type"] == "tpo-l") {
    loss["type"] = "tpo";
    loss["length_normalized"] = true;
  }
}

void set_defaults(Json& loss, const LossEntry& entry) {
  const std::string& name = entry.info.name;
  if (name == "exo_pair") loss["trl_constants"] = true;
  if (name != "tpo" && has_option(entry, "beta") && !loss.contains("beta")) loss["beta"] = 0.1;
  const bool has_gamma = loss.contains("gamma") || loss.contains("simpo_gamma");
  if ((name == "simpo" || name == "alphapo") && !has_gamma) loss["gamma"] = 0.5;
}

/// Options that a loss takes of a config, each of which one term at least has to take.
class Options {
 public:
  explicit Options(const Json& options) : options_(options) {}

  Json of(const std::string& type) {
    Json loss = {{"type", type}};
    translate_name(loss);
    const LossEntry& entry = find_loss(loss["type"].get<std::string>());
    loss["type"] = entry.info.name;
    for (const auto& [key, value] : options_.items()) {
      if (has_option(entry, key) && !is_unread_in_trl(entry, key)) {
        loss[key] = value;
        taken_[key] = true;
      } else if (changes_nothing(key, value)) {
        taken_[key] = true;
      } else {
        check_may_lack(entry, key);
      }
    }
    set_defaults(loss, entry);
    return loss;
  }

  /// What no term has taken is an error: of a term alone, which knows the nearest name, or here.
  void check_all_taken(const Json& types, Json& first) const {
    for (const auto& [key, value] : options_.items()) {
      if (taken_.contains(key)) continue;
      if (key == "label_smoothing") {
        throw ConfigError(fmt::format(
            "loss: expected no label_smoothing with {}, got {}; TRL ignores it there, the type "
            "'dpo' smooths labels",
            shown_json(types), shown_json(value)));
      }
      if (types.size() > 1) {
        throw ConfigError(
            fmt::format("loss: expected an option of one of {}, got '{}'", shown_json(types), key));
      }
      first[key] = value;
    }
  }

 private:
  // TRL weighs the log-probs of all losses but sft's.
  static void check_may_lack(const LossEntry& entry, const std::string& key) {
    if (key == "weighting") {
      throw ConfigError(
          fmt::format("loss: expected losses that can be weighted beside use_weighting, got '{}'",
                      entry.info.name));
    }
    if (key == "ld_alpha" && entry.info.name != "sft") {
      throw ConfigError(fmt::format("loss: expected losses that have ld_alpha beside it, got '{}'",
                                    entry.info.name));
    }
    const bool imitates_in_trl = entry.info.name == "simpo" || entry.info.name == "alphapo";
    if (key == "cpo_alpha" && imitates_in_trl) {
      throw ConfigError(fmt::format(
          "loss: expected cpo_alpha 0 beside '{}', got another; TRL adds that share of the NLL, as "
          "a mix with 'sft' does here",
          entry.info.name));
    }
  }

  const Json& options_;
  Json taken_ = Json::object();
};

bool is_list_of(const Json& list, bool (Json::*is)() const noexcept) {
  return list.is_array() &&
         std::all_of(list.begin(), list.end(), [&](const Json& x) { return (x.*is)(); });
}

void check_types(const Json& given, const Json& types, const Json& weights) {
  if (!types.empty() && is_list_of(types, &Json::is_string) &&
      is_list_of(weights, &Json::is_number) &&
      (weights.empty() || weights.size() == types.size())) {
    return;
  }
  throw ConfigError(fmt::format(
      "loss: expected loss_type to be a name or a list of them, with as many loss_weights or none, "
      "got {} with loss_weights {}",
      shown_json(given), shown_json(weights)));
}

void erase_nulls(Json& config) {
  for (auto item = config.begin(); item != config.end();) {
    item = item->is_null() ? config.erase(item) : std::next(item);
  }
}

}  // namespace

void translate_trl(Json& config) {
  translate_weighting(config);
  if (!config.contains("loss_type")) {
    if (config.contains("type")) translate_name(config);
    return;
  }
  if (config.contains("type")) {
    throw ConfigError("loss: expected one of type and loss_type, got both");
  }
  erase_nulls(config);  // what TRL writes for "not set"
  const Json given = config.value("loss_type", Json());
  const Json types = given.is_array() ? given : Json::array({given});
  const Json weights = config.value("loss_weights", Json::array());
  check_types(given, types, weights);
  config.erase("loss_type");
  config.erase("loss_weights");

  Options options(config);
  Json terms = Json::array();
  for (std::size_t i = 0; i < types.size(); ++i) {
    terms.push_back({{"weight", weights.empty() ? Json(1) : weights[i]},
                     {"loss", options.of(types[i].get<std::string>())}});
  }
  options.check_all_taken(types, terms[0]["loss"]);
  const bool is_one = terms.size() == 1 && terms[0]["weight"] == 1;
  config = is_one ? Json(terms[0]["loss"]) : Json({{"type", "mix"}, {"terms", terms}});
}

}  // namespace prefopt::detail
