// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/losses/loss.h"
#include "prefopt/online/selection.h"
#include "prefopt/options.h"

namespace prefopt::detail {

/// Base of the selections: `S` has `kName`, and options that are an OptionStruct.
template <class S, class OptionsOfS>
class SelectionOf : public Selection {
 public:
  using Options = OptionsOfS;

  SelectionOf(Options options, SourceNames sources)
      : options_(std::move(options)), sources_(std::move(sources)) {}

  std::string config() const override { return typed_config(S::kName, options_to_json(options_)); }

 protected:
  bool is_from(const Rollout& rollout, std::string_view source) const {
    const auto place = static_cast<std::size_t>(rollout.source);
    return place < sources_.size() && sources_[place] == source;
  }

  /// Throws ConfigError unless a source has the name that the option gives.
  void require_source(std::string_view option, const std::string& source) const {
    if (contains(sources_, source)) return;
    const std::vector<std::string_view> names(sources_.begin(), sources_.end());
    throw ConfigError(fmt::format("{}: expected {} to name a source{}, got '{}'{}", S::kName,
                                  option, list_of_sources(), shown_text(source),
                                  did_you_mean(source, names)));
  }

  Options options_;
  SourceNames sources_;

 private:
  std::string list_of_sources() const {
    std::string list;
    for (const std::string& name : sources_) {
      list += fmt::format("{}'{}'", list.empty() ? ", one of " : ", ", name);
    }
    return list.empty() ? " (there are none)" : list;
  }
};

/// An option that may be absent, null in JSON.
inline void optional_real(FieldVisitor& v, const Field& field, std::optional<double>& value,
                          std::string_view where) {
  std::string text = value ? fmt::format("{}", *value) : "null";
  v.json(field, text);
  const Json json = parse_json<ConfigError>(text, where);
  if (!json.is_null() && !json.is_number()) {
    throw ConfigError(fmt::format("{}: expected {} to be a number or null, got {}", where,
                                  field.name, shown_json(json)));
  }
  value = json.is_null() ? std::nullopt : std::optional(json.get<double>());
}

/// Options of selections that make several pairs of a prompt.
struct PromptWeightOptions {
  bool weigh_prompts = true;

  void fields(FieldVisitor& v) {
    v.flag(
        {"weigh_prompts", "column weight = 1 / pairs of the prompt, so that prompts count alike"},
        weigh_prompts);
  }
};

}  // namespace prefopt::detail
