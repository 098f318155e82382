// SPDX-License-Identifier: Apache-2.0
#include "losses/trl_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "core/text.h"
#include "losses/trl_tables.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"

namespace prefopt::detail {
namespace {

bool has_option(const LossEntry& entry, std::string_view name) {
  return std::any_of(entry.options.begin(), entry.options.end(), [&](const FieldDoc& option) {
    return option.name == name ||
           std::count(option.aliases.begin(), option.aliases.end(), name) > 0;
  });
}

bool holds_name(const std::vector<std::string_view>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_list_of(const Json& list, bool (Json::*is)() const noexcept) {
  return list.is_array() &&
         std::all_of(list.begin(), list.end(), [&](const Json& x) { return (x.*is)(); });
}

void erase_nulls(Json& config) {
  for (auto item = config.begin(); item != config.end();) {
    item = item->is_null() ? config.erase(item) : std::next(item);
  }
}

/// Returns the trainer or config class that a config names.
const TrlTrainer& named_trainer(const Json& given) {
  std::vector<std::string_view> names;
  for (const TrlTrainer& trainer : trl_trainers()) {
    names.insert(names.end(), {trainer.name, trainer.config_name});
  }
  const std::string name = given.is_string() ? given.get<std::string>() : shown_json(given);
  for (const TrlTrainer& trainer : trl_trainers()) {
    if (name == trainer.name || name == trainer.config_name) return trainer;
  }
  throw ConfigError(fmt::format("loss: expected trainer to be one of {}, got '{}'{}",
                                fmt::join(names, ", "), name, did_you_mean(name, names)));
}

bool is_key_of_some(std::string_view key) {
  const auto& all = trl_trainers();
  return std::any_of(all.begin(), all.end(),
                     [&](const TrlTrainer& trainer) { return trainer.key(key) != nullptr; });
}

/// Of which trainers something may be, and how to call it.
struct Clue {
  std::string what;
  std::vector<const TrlTrainer*> fits;

  std::string text() const {
    std::vector<std::string_view> names;
    for (const TrlTrainer* trainer : fits) names.push_back(trainer->name);
    return fmt::format("{} of {}", what, fmt::join(names, ", "));
  }
};

template <class Fits>
Clue clue_of(std::string what, Fits fits) {
  Clue clue{std::move(what), {}};
  for (const TrlTrainer& trainer : trl_trainers()) {
    if (fits(trainer)) clue.fits.push_back(&trainer);
  }
  return clue;
}

bool share_a_trainer(const Clue& a, const Clue& b) {
  return std::any_of(a.fits.begin(), a.fits.end(), [&](const TrlTrainer* trainer) {
    return std::count(b.fits.begin(), b.fits.end(), trainer) > 0;
  });
}

/// Names a clue and an earlier one that it contradicts.
[[noreturn]] void throw_contradiction(const std::vector<Clue>& clues, std::size_t last) {
  std::size_t other = 0;
  while (other + 1 < last && share_a_trainer(clues[other], clues[last])) ++other;
  throw ConfigError(
      fmt::format("loss: expected a config of one TRL trainer, got {} next to {}; 'trainer' says "
                  "whose it is",
                  clues[last].text(), clues[other].text()));
}

/// Whose config it is by its names and keys: the first trainer that all of them fit. A loss_type
/// that no trainer has is a loss of ours, which DPOTrainer's list may hold.
const TrlTrainer& deduced_trainer(const Json& config, const Json& types, bool has_weights) {
  std::vector<Clue> clues;
  for (const Json& type : types) {
    const auto name = type.get<std::string>();
    Clue clue = clue_of(fmt::format("loss_type '{}'", name),
                        [&](const TrlTrainer& t) { return t.loss(name) != nullptr; });
    if (clue.fits.empty()) clue.fits.push_back(&trl_trainers().front());
    clues.push_back(std::move(clue));
  }
  if (has_weights) {
    clues.push_back(clue_of("'loss_weights'", [](const TrlTrainer& t) { return t.takes_lists; }));
  }
  if (types.size() > 1) {
    clues.push_back(clue_of("a list of losses", [](const TrlTrainer& t) { return t.takes_lists; }));
  }
  const bool only_ours =
      !types.empty() && std::all_of(types.begin(), types.end(), [](const Json& type) {
        return clue_of(
                   "",
                   [&](const TrlTrainer& t) { return t.loss(type.get<std::string>()) != nullptr; })
            .fits.empty();
      });
  for (const auto& [key, value] : config.items()) {
    if (only_ours) break;  // whose options may be called as those of any trainer
    if (!is_key_of_some(key)) continue;
    clues.push_back(clue_of(fmt::format("'{}'", key), [&, &name = key](const TrlTrainer& t) {
      return t.key(name) != nullptr;
    }));
  }
  std::vector<const TrlTrainer*> left;
  for (const TrlTrainer& trainer : trl_trainers()) left.push_back(&trainer);
  for (std::size_t i = 0; i < clues.size(); ++i) {
    std::vector<const TrlTrainer*> both;
    for (const TrlTrainer* trainer : left) {
      if (std::count(clues[i].fits.begin(), clues[i].fits.end(), trainer) > 0) {
        both.push_back(trainer);
      }
    }
    if (both.empty()) throw_contradiction(clues, i);
    left = std::move(both);
  }
  return *left.front();
}

/// One loss of a list, TRL's or ours, and the keys that TRL reads for it.
struct Term {
  std::string name;  ///< as the config has it
  Json config;
  std::vector<std::string_view> reads, ignores;
  const LossEntry* entry = nullptr;
  bool is_ours = false;
};

Term term_of(const TrlTrainer& trainer, const std::string& type) {
  Term term{.name = type, .config = {}, .reads = {}, .ignores = {}};
  if (const TrlLoss* known = trainer.loss(type)) {
    term.config = parse_json<ConfigError>(known->config, "loss");
    term.reads = known->reads;
    term.ignores = known->ignores;
    term.entry = &find_loss(term.config["type"].get<std::string>());
    return term;
  }
  std::vector<std::string_view> names;
  for (const TrlLoss& loss : trainer.losses) names.push_back(loss.name);
  if (!trainer.takes_lists) {
    throw ConfigError(fmt::format("loss: expected loss_type of {} to be one of {}, got '{}'{}",
                                  trainer.name, fmt::join(names, ", "), type,
                                  did_you_mean(type, names)));
  }
  term.is_ours = true;
  term.entry = &find_loss(type);
  term.config = {{"type", type}};
  for (const TrlKey& key : trainer.keys) {
    if (has_option(*term.entry, key.option)) term.reads.push_back(key.name);
  }
  return term;
}

/// Translates the keys of one config.
class TrlOptions {
 public:
  TrlOptions(const TrlTrainer& trainer, const Json& given, const Json& types)
      : trainer_(trainer), given_(given), types_(types) {
    for (const Json& type : types) terms_.push_back(term_of(trainer, type.get<std::string>()));
  }

  std::vector<Json> losses() {
    for (const auto& [name, value] : given_.items()) {
      if (const TrlKey* key = trainer_.key(name)) {
        check_read(*key, value);
      } else {
        add_ours(name, value);
      }
    }
    std::vector<Json> all;
    for (Term& term : terms_) {
      set_keys(term);
      if (trainer_.finish != nullptr) trainer_.finish(term.config);
      check_values(term);
      all.push_back(std::move(term.config));
    }
    return all;
  }

 private:
  static bool is_default(const TrlKey& key, const Json& value) {
    return value == parse_json<ConfigError>(key.fallback, "loss");
  }

  /// A key off its default that TRL does not read for these losses would do nothing.
  void check_read(const TrlKey& key, const Json& value) const {
    if (is_default(key, value)) return;
    bool is_known = false;
    for (const Term& term : terms_) {
      const bool fits = holds_name(term.reads, key.name) || holds_name(term.ignores, key.name);
      if (key.for_all && !fits) {
        throw ConfigError(fmt::format("loss: expected losses that have {} next to it, got '{}'",
                                      key.name, term.entry->info.name));
      }
      is_known = is_known || fits;
    }
    if (is_known) return;
    throw ConfigError(
        fmt::format("loss: expected no {} with {}, got {}; TRL's {} ignores it there{}", key.name,
                    shown_json(types_), shown_json(value), trainer_.name,
                    key.name == "label_smoothing" && trainer_.name == "DPOTrainer"
                        ? ", the type 'dpo' smooths labels"
                        : ""));
  }

  /// An option of ours, for the terms that have it.
  void add_ours(const std::string& name, const Json& value) {
    if (is_key_of_some(name) && !is_of_our_loss(name)) {
      const Clue owner = clue_of(fmt::format("'{}'", name),
                                 [&](const TrlTrainer& t) { return t.key(name) != nullptr; });
      throw ConfigError(
          fmt::format("loss: expected keys of {}, got {}", trainer_.name, owner.text()));
    }
    bool is_taken = false;
    for (Term& term : terms_) {
      if (!has_option(*term.entry, name)) continue;
      if (const auto set = term.config.find(name); set != term.config.end() && *set != value) {
        throw ConfigError(fmt::format("loss: expected {} {} with {}, which stands for it, got {}",
                                      name, shown_json(*set), shown_json(types_),
                                      shown_json(value)));
      }
      term.config[name] = value;
      is_taken = true;
    }
    if (is_taken) return;
    if (types_.size() > 1) {
      throw ConfigError(
          fmt::format("loss: expected an option of one of {}, got '{}'", shown_json(types_), name));
    }
    terms_.front().config[name] = value;  // the loss knows the nearest name
  }

  /// Returns whether a loss that is not TRL's has the option, whatever TRL calls so.
  bool is_of_our_loss(const std::string& name) const {
    return std::any_of(terms_.begin(), terms_.end(), [&](const Term& term) {
      return term.is_ours && has_option(*term.entry, name);
    });
  }

  void set_keys(Term& term) const {
    for (const std::string_view name : term.reads) {
      const TrlKey& key = *trainer_.key(name);
      const auto given = given_.find(name);
      const bool is_ours = says(term, key.option);
      if (is_ours && given != given_.end()) {
        throw ConfigError(fmt::format("loss: expected {} once, got it as '{}' and by our name",
                                      key.option, name));
      }
      if (is_ours) continue;
      term.config[std::string(key.option)] =
          given != given_.end() ? *given : parse_json<ConfigError>(key.fallback, "loss");
    }
  }

  /// Refuses a value under TRL's name for it; what else is wrong is for the loss to say.
  void check_values(const Term& term) const {
    const LossEntry& entry = find_loss(term.config["type"].get<std::string>());
    Json options = term.config;
    options.erase("type");
    try {
      entry.make(dump_json(options));
    } catch (const ConfigError& error) {
      for (const std::string_view name : term.reads) {
        if (given_.contains(name)) rethrow_in_terms_of(*trainer_.key(name), term, entry, error);
      }
    }
  }

  /// Rethrows if the option of `key` is the one that is not as expected.
  void rethrow_in_terms_of(const TrlKey& key, const Term& term, const LossEntry& entry,
                           const ConfigError& error) const {
    const std::string_view text = error.what();
    for (const std::string_view option : {key.option, key.name}) {
      const std::string head = fmt::format("{}: expected {} ", entry.info.name, option);
      if (!text.starts_with(head)) continue;
      throw ConfigError(fmt::format(
          "{}: expected {} {}",
          term.is_ours ? entry.info.name : fmt::format("{} {}", trainer_.name, term.name), key.name,
          text.substr(head.size())));
    }
  }

  /// Returns whether a config has an option under any of its names.
  static bool says(const Term& term, std::string_view name) {
    if (term.config.contains(name)) return true;
    const auto& options = term.entry->options;
    return std::any_of(options.begin(), options.end(), [&](const FieldDoc& option) {
      return option.name == name &&
             std::any_of(option.aliases.begin(), option.aliases.end(),
                         [&](const std::string& alias) { return term.config.contains(alias); });
    });
  }

  const TrlTrainer& trainer_;
  const Json& given_;
  const Json& types_;
  std::vector<Term> terms_;
};

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

/// Returns whether a config without a type says by its keys that it is TRL's: one that a single
/// trainer has, and no two losses of ours.
bool has_telling_key(const Json& config) {
  for (const auto& [key, value] : config.items()) {
    const Clue clue =
        clue_of("", [&, &name = key](const TrlTrainer& t) { return t.key(name) != nullptr; });
    if (clue.fits.size() != 1) continue;
    int losses = 0;
    for (const std::string& name : registered_losses()) {
      for (const FieldDoc& option : find_loss(name).options) losses += option.name == key ? 1 : 0;
    }
    if (losses < 2) return true;
  }
  return false;
}

}  // namespace

void translate_trl(Json& config) {
  const bool is_trl = config.contains("loss_type") || config.contains("trainer");
  if (config.contains("type")) {
    if (!is_trl) return;
    throw ConfigError(fmt::format("loss: expected one of type and {}, got both",
                                  config.contains("loss_type") ? "loss_type" : "trainer"));
  }
  erase_nulls(config);  // what TRL writes for "not set"
  if (!is_trl && !has_telling_key(config)) return;

  const Json name = config.value("trainer", Json());
  const Json given = config.value("loss_type", Json());
  Json types = given.is_array() ? given : given.is_null() ? Json::array() : Json::array({given});
  const Json weights = config.value("loss_weights", Json::array());
  if (!given.is_null()) check_types(given, types, weights);
  for (const char* key : {"trainer", "loss_type", "loss_weights"}) config.erase(key);

  const TrlTrainer& trainer =
      name.is_null() ? deduced_trainer(config, types, !weights.empty()) : named_trainer(name);
  if (types.empty()) {
    types.push_back(std::string(trainer.losses.front().name));
    check_types(types, types, weights);
  }
  if (!trainer.takes_lists && (types.size() > 1 || !weights.empty())) {
    throw ConfigError(fmt::format(
        "loss: expected one loss_type without loss_weights, got {} with loss_weights {}; {} takes "
        "no list",
        shown_json(types), shown_json(weights), trainer.name));
  }

  std::vector<Json> losses = TrlOptions(trainer, config, types).losses();
  if (losses.size() == 1 && (weights.empty() || weights[0] == 1)) {
    config = std::move(losses.front());
    return;
  }
  Json terms = Json::array();
  for (std::size_t i = 0; i < losses.size(); ++i) {
    terms.push_back({{"weight", weights.empty() ? Json(1) : weights[i]}, {"loss", losses[i]}});
  }
  config = {{"type", "mix"}, {"terms", std::move(terms)}};
}

}  // namespace prefopt::detail
