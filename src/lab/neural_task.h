// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "prefopt/data/batch.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/exact/pairs.h"
#include "prefopt/exact/policy.h"
#include "prefopt/exact/random.h"

// One task for tables and for transformers. A completion is a string of two letters, so that a
// network's probabilities of all strings can be computed, and with them every measure of the
// tables.
namespace prefopt::lab {

inline constexpr exact::Index kPrompts = 4, kLetters = 4;
inline constexpr exact::Index kStrings = kLetters * kLetters;

/// The answers that a network can give. In a closed language every two letters are an answer and
/// nothing else is, as for a table. An open one has an end token, and with it answers that end too
/// early or too late: anything else.
enum class Language { kClosed, kOpen };

inline constexpr std::int64_t kEnd = kLetters;  ///< in an open language

Language language_of(const Policy& policy);

/// [kStrings, kPrompts]: 1 for strings with the first letter of the alphabet in them. Pairs of them
/// speak of every letter in every place, but not of the other nine strings.
exact::Table covered_strings();
exact::Table all_strings();

/// The task that a seed decides: letters have values by prompt and place, of which the first
/// letter's is the least, so that strings that are not covered promise more than those that are. A
/// string has the sum of its two, less a disappointment where it is not covered.
struct NeuralTask {
  NeuralTask(std::uint64_t seed, double disappointment);

  exact::Table rewards;      ///< [kStrings, kPrompts]
  Eigen::MatrixXd features;  ///< of the log-linear class that holds every optimum
};

/// Two letters, which are not the same: attention over one letter alone gives the same however
/// often it occurs, so that a network could not tell the first letter's place from the
/// second's.
std::vector<std::int64_t> prompt_tokens(exact::Index prompt);
/// In an open language with the end token.
std::vector<std::int64_t> string_tokens(exact::Index string, Language language);
/// Throws ShapeError for weights that are not all the same: rows have none.
std::vector<TokenRow> token_pairs(const exact::Pairs& pairs, Language language);

/// A policy's distribution of answers: as it is, and given a string. Pairs compare strings with
/// strings, so the second is what they fix, and what a table can be compared with.
struct Answers {
  /// [kStrings + 1, kPrompts] log-probs: of each string, then of anything else.
  exact::Table outcomes;

  /// [kStrings, kPrompts] log-probs of a string, given that it is one.
  exact::Table strings() const;
};

Answers answers(Policy& policy);

/// Rewards of outcomes: anything else is as good as the prompt's worst string.
exact::Table with_anything_else(const exact::Table& rewards);

/// Returns the answers of the log-linear class over `features` at the minimum of the loss.
exact::Table best_table(const std::string& loss, const exact::Table& ref,
                        const Eigen::MatrixXd& features, const exact::Pairs& pairs);

/// Returns a small transformer with weights of the seed, the same however many threads there are.
std::shared_ptr<Decoder> fresh_network(Language language, std::uint64_t seed);

/// Returns one that was trained by likelihood on strings drawn from `target` [kStrings, kPrompts].
/// It has learned that up to some error, so that its own strings() are the reference of tables too.
std::shared_ptr<Decoder> supervised_network(Language language, const exact::Table& target,
                                            std::uint64_t seed);

/// Returns a copy that shares nothing with the network, and can be trained.
std::shared_ptr<Decoder> trainable_copy(const Decoder& network);

struct NeuralTraining {
  std::string loss;
  double learning_rate = 1e-3;
  bool decays = false;  ///< the learning rate, linearly to 0
  int steps = 0;
  exact::Index batch = 0;  ///< pairs a step, drawn by their weights; 0: all rows at every step
};

/// Returns the generator of the pairs of a seed, the same for network and table.
exact::Random pair_random(std::uint64_t seed);

/// Trains a copy of `reference` with the library's Trainer. `seen(step, network)` is called before
/// the first step and after each. Returns the copy.
std::shared_ptr<Decoder> train_network(const Decoder& reference, const exact::Pairs& pairs,
                                       const NeuralTraining& training, std::uint64_t seed,
                                       const std::function<void(int, Policy&)>& seen = {});

}  // namespace prefopt::lab
