// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/exact/random.h"
#include "prefopt/export.h"
#include "prefopt/online/preference.h"
#include "prefopt/options.h"

namespace prefopt {

/// A row made of completions of one prompt, by their places, with the columns that it sets.
struct SelectedRow {
  std::int64_t chosen = -1;
  std::int64_t rejected = -1;  ///< -1: a single completion
  std::optional<double> label_prob = {};
  std::optional<double> chosen_win_rate = {}, rejected_win_rate = {};
  std::optional<double> advantage = {};
  std::optional<double> weight = {};
};

/// The rows of a prompt, and what was left out.
struct SelectedRows {
  std::vector<SelectedRow> rows;
  std::int64_t ties = 0;       ///< pairs that were as good as each other
  std::int64_t identical = 0;  ///< pairs of equal token sequences
  std::int64_t failed = 0;     ///< pairs or completions without an answer
  std::int64_t unusable = 0;   ///< completions of no token, which no row can hold
  std::int64_t missing = 0;    ///< completions that were asked for (`n`) and are not there
};

/// The questions that a selection asks of any prompt, so that those of many prompts can be asked at
/// once; a selection may ask more on the way.
enum class Questions {
  kNone,
  kRewards,          ///< of all completions
  kComparisons,      ///< of all pairs
  kFirstComparison,  ///< of the first two completions with a token
  kAdaptive          ///< none at once
};

/// A rule that makes rows of the rated completions of a prompt.
class PREFOPT_API Selection {
 public:
  virtual ~Selection() = default;
  virtual Questions questions() const = 0;
  /// Returns whether rows weigh completions by how likely the policy draws them: the samples then
  /// have to follow the policy's own distribution (temperature 1, no top-k or top-p).
  virtual bool needs_own_distribution() const { return false; }
  /// Returns whether it pairs the steps of trees, which a source `tree` writes, instead of whole
  /// completions.
  virtual bool takes_steps() const { return false; }
  /// Returns the rows of a prompt. Draws depend on `random` alone.
  virtual SelectedRows select(Rater& rater, exact::Random& random) const = 0;
  /// Returns the options with all their values, as JSON.
  virtual std::string config() const = 0;
};

/// Names of the sources of rollouts, `Rollout::source` is a place in it; a selection refers to a
/// source by its name. Empty: no source has a name.
using SourceNames = std::vector<std::string>;

struct SelectionEntry {
  std::string name = {};
  std::string rows = {};  ///< the rows that it makes, for tables
  std::vector<FieldDoc> options = {};
  std::function<std::unique_ptr<Selection>(std::string_view options_json,
                                           const SourceNames& sources)>
      make = {};
};

/// Returns the selection that a JSON object names by `type`, with its options. Throws ConfigError
/// for an unknown type or option, naming the nearest known one, and for a source without a place in
/// `sources`.
PREFOPT_API std::unique_ptr<Selection> make_selection(std::string_view json,
                                                      const SourceNames& sources = {});

/// Returns the selections in the order of registration.
PREFOPT_API std::vector<SelectionEntry> registered_selections();
/// Registers a selection. Throws ConfigError if the name is taken.
PREFOPT_API void register_selection(SelectionEntry entry);

}  // namespace prefopt
