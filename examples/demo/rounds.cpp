// SPDX-License-Identifier: Apache-2.0
#include "rounds.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "prefopt/error.h"
#include "report.h"

namespace demo {

using namespace prefopt;
using Json = nlohmann::ordered_json;

Rounds::Rounds(Settings settings, std::vector<Prompt> prompts,
               std::shared_ptr<const Tokenizer> tokenizer, std::string pairs)
    : settings_(std::move(settings)),
      prompts_(std::move(prompts)),
      tokenizer_(std::move(tokenizer)),
      pairs_(std::move(pairs)) {}

StepRows Rounds::next(Policy& policy) {
  if (!round_) round_ = draw(policy);
  return round_->rows;
}

Rounds::Round Rounds::draw(Policy& policy) const {
  RolloutOptions options{.samples_per_prompt = settings_.samples_per_prompt,
                         .sampling = settings_.run.sampling};
  Round round;
  while (round.rows.rows.empty()) {
    if (round.taken >= std::ssize(prompts_)) {
      throw DataError(fmt::format(
          "min_reward_gap: expected responses whose rewards differ by {}, got none to {} prompts",
          settings_.min_reward_gap, round.taken));
    }
    const std::int64_t first = taken_ + round.taken;
    std::vector<Prompt> prompts;
    for (std::int64_t i = 0; i < settings_.prompts_per_round; ++i) {
      prompts.push_back(prompts_[static_cast<std::size_t>(first + i) % prompts_.size()]);
    }
    options.sampling.first_index = first * options.samples_per_prompt;  // no draw twice
    const Responses responses = respond(policy, *tokenizer_, prompts, options);
    for (std::size_t i = 0; i < prompts.size(); ++i) add_pair(prompts[i], responses[i], round);
    round.taken += settings_.prompts_per_round;
    round.rows.metrics = {{"reward", mean_reward(responses)},
                          {"pairs", static_cast<double>(round.rows.rows.size())}};
  }
  return round;
}

void Rounds::add_pair(const Prompt& prompt, const std::vector<Response>& responses,
                      Round& round) const {
  const auto [worst, best] = std::minmax_element(
      responses.begin(), responses.end(),
      [](const Response& a, const Response& b) { return a.reward() < b.reward(); });
  if (best->reward() - worst->reward() < settings_.min_reward_gap) return;
  round.rows.rows.push_back({prompt.ids, best->ids, worst->ids});
  const Json line = {{"prompt_ids", prompt.ids},
                     {"chosen_ids", best->ids},
                     {"rejected_ids", worst->ids},
                     {"prompt", prompt.question},
                     {"chosen", best->text},
                     {"rejected", worst->text},
                     {"rewards", {best->reward(), worst->reward()}}};
  round.lines += line.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
}

void Rounds::finish_step() {
  // A run that is resumed finds pairs of steps that it takes again.
  if (std::filesystem::exists(pairs_)) {
    std::filesystem::resize_file(pairs_, static_cast<std::uintmax_t>(written_));
  }
  std::ofstream file(pairs_, std::ios::binary | std::ios::app);
  file << round_->lines << std::flush;
  if (!file) throw CheckpointError(pairs_ + ": expected to append pairs, got an error");
  written_ += std::ssize(round_->lines);
  taken_ += round_->taken;
  round_.reset();
}

void Rounds::visit_state(StateVisitor& visitor) {
  visitor.integer("prompts_taken", taken_);
  visitor.integer("pairs_bytes", written_);
}

std::string Rounds::fingerprint() const {
  std::string parts = fmt::format("{} {} {}", settings_.prompts_per_round,
                                  settings_.samples_per_prompt, settings_.min_reward_gap);
  for (const Prompt& prompt : prompts_) parts += fmt::format(" {}", prompt.ids);
  return fmt::format("{:016x}", std::hash<std::string>()(parts));
}

}  // namespace demo
