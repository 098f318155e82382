// SPDX-License-Identifier: Apache-2.0
#include "online/shared_work.h"

#include <string>

#include "online/packed.h"

namespace prefopt::detail {

std::vector<double> gather_numbers(const std::vector<double>& own, Meeting& meeting) {
  Packer packer;
  packer(own);
  std::vector<double> all;
  for (const std::string& of_rank : meeting.texts(packer.take())) {
    const auto numbers = Unpacker(of_rank).take<std::vector<double>>();
    all.insert(all.end(), numbers.begin(), numbers.end());
  }
  return all;
}

std::vector<Rollout> gather_rollouts(const std::vector<Rollout>& own, Meeting& meeting) {
  Packer packer;
  for (const Rollout& rollout : own) pack_rollout(packer, rollout);
  std::vector<Rollout> all;
  for (const std::string& of_rank : meeting.texts(packer.take())) {
    for (Unpacker unpacker(of_rank); !unpacker.is_empty();) {
      pack_rollout(unpacker, all.emplace_back());
    }
  }
  return all;
}

void share_failures(Preference& feedback, const std::vector<std::int64_t>& before,
                    Meeting& meeting) {
  if (before.empty() || meeting.size() == 1) return;
  Packer packer;
  packer(feedback.failures());
  std::vector<std::int64_t> failures = before;
  for (const std::string& of_rank : meeting.texts(packer.take())) {
    const auto counts = Unpacker(of_rank).take<std::vector<std::int64_t>>();
    for (std::size_t i = 0; i < failures.size(); ++i) failures[i] += counts[i] - before[i];
  }
  feedback.set_failures(failures);
}

std::int64_t sum_of(std::int64_t own, Meeting& meeting) {
  std::int64_t sum = 0;
  for (const std::string& of_rank : meeting.texts(std::to_string(own))) sum += std::stoll(of_rank);
  return sum;
}

}  // namespace prefopt::detail
