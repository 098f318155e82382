// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "prefopt/data/prompts.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/train/row_source.h"
#include "responses.h"
#include "settings.h"

namespace demo {

/// Rows that the policy writes itself. In each round, which is a step, it answers the next prompts;
/// the best and the worst answer to each make a pair, where the reward tells them apart.
class Rounds final : public prefopt::RowSource {
 public:
  /// Draws as `settings.run.sampling` says. Pairs that were trained on go to the file `pairs`, rows
  /// that `prefopt train` takes as well.
  Rounds(Settings settings, std::vector<prefopt::Prompt> prompts,
         std::shared_ptr<const prefopt::Tokenizer> tokenizer, std::string pairs);

  prefopt::StepRows next(prefopt::Policy& policy) override;
  void finish_step() override;
  void visit_state(prefopt::StateVisitor& visitor) override;
  std::string fingerprint() const override;

 private:
  struct Round {
    prefopt::StepRows rows;
    std::string lines;       ///< the same rows, for the file
    std::int64_t taken = 0;  ///< prompts
  };

  Round draw(prefopt::Policy& policy) const;
  void add_pair(const prefopt::Prompt& prompt, const std::vector<Response>& responses,
                Round& round) const;

  Settings settings_;
  std::vector<prefopt::Prompt> prompts_;
  std::shared_ptr<const prefopt::Tokenizer> tokenizer_;
  std::string pairs_;

  std::optional<Round> round_;  ///< until its step is done
  std::int64_t taken_ = 0;      ///< prompts of the rounds before, over and over again
  std::int64_t written_ = 0;    ///< bytes of the file
};

}  // namespace demo
