// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "lab/neural_task.h"
#include "prefopt/exact/preferences.h"
#include "prefopt/losses/loss.h"
#include "prefopt/objectives/token_objective.h"
#include "prefopt/online/online_options.h"
#include "prefopt/online/preference.h"

// Rounds of the library's engine (OnlineRows) on the closed language of neural_task.h: a network
// writes strings, a table rates them, a selection makes rows and a Trainer takes a step.
namespace prefopt::lab {

/// Feedback by rewards [kStrings, kPrompts]; of two strings the better one always wins.
std::shared_ptr<Preference> rewarding(const exact::Table& rewards);
/// Feedback that knows comparisons alone.
std::shared_ptr<Preference> comparing(exact::Preferences preferences);

/// A writer of `n` strings for each prompt, under its own name.
SourceOptions writer(SourceKind from, std::string name, std::int64_t n);

struct NeuralRounds {
  std::variant<Loss, TokenObjective> loss;
  std::vector<SourceOptions> sources;
  std::shared_ptr<Preference> feedback;
  std::string selection = R"({"type": "pair"})";  ///< not of an objective on tokens
  std::int64_t copies = 1;                        ///< of each prompt in a round
  RoundOptions rounds = {.steps = 1};
  double learning_rate = 1e-2;
  bool decays = false;  ///< the learning rate, linearly to 0
};

/// Returns a copy of `reference` after the rounds. `seen(round, network)` is called before the
/// first one and after each.
std::shared_ptr<Decoder> train_rounds(const Decoder& reference, const NeuralRounds& rounds,
                                      std::uint64_t seed,
                                      const std::function<void(int, Policy&)>& seen = {});

/// Returns the rows of the first step, which is a whole round where its `steps` are 1.
std::vector<TokenRow> first_rows(const Decoder& reference, const NeuralRounds& rounds,
                                 std::uint64_t seed);

/// Returns the place of a string of two letters, as in a Table.
exact::Index string_of(const std::vector<std::int64_t>& letters);

}  // namespace prefopt::lab
