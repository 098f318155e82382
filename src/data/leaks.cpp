// SPDX-License-Identifier: Apache-2.0
#include "prefopt/data/leaks.h"

#include <fmt/format.h>

#include <utility>

#include "data/defect_line.h"
#include "data/pair_index.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

constexpr std::string_view kReason = "prompt of a held-out row";

void remove_leaks(Dataset& train, const std::vector<Leak>& leaks) {
  std::size_t kept = 0;
  auto leak = leaks.begin();
  for (std::size_t i = 0; i < train.pairs.size(); ++i) {
    if (leak != leaks.end() && leak->train == i) {
      ++leak;
      continue;
    }
    if (kept != i) {
      train.pairs[kept] = std::move(train.pairs[i]);
      train.lines[kept] = train.lines[i];
      if (!train.file_of.empty()) train.file_of[kept] = train.file_of[i];
    }
    ++kept;
  }
  train.pairs.resize(kept);
  train.lines.resize(kept);
  if (!train.file_of.empty()) train.file_of.resize(kept);
}

std::string line_of(std::string_view verb, const std::vector<Leak>& leaks, const Dataset& train) {
  if (train.file_of.empty()) {
    std::vector<std::int64_t> lines;
    for (const Leak& leak : leaks) lines.push_back(train.lines[leak.train]);
    return detail::defect_line(verb, kReason, lines);
  }
  std::vector<std::string> rows;
  for (const Leak& leak : leaks) rows.push_back(train.place(leak.train));
  return detail::defect_line(verb, kReason, rows);
}

DataError refusal_of(const Leak& leak, const Dataset& train, const Dataset& held_out,
                     std::string_view path) {
  return DataError(fmt::format(
      "{}: expected a prompt that is not held out, got that of {} of the held-out rows; the option "
      "leak = 'drop' leaves such rows out of training",
      train.file_of.empty() ? fmt::format("{}:{}", path, train.lines[leak.train])
                            : train.place(leak.train),
      held_out.file_of.empty() ? fmt::format("line {}", held_out.lines[leak.held_out])
                               : held_out.place(leak.held_out)));
}

}  // namespace

std::vector<Leak> find_leaks(const std::vector<TokenRow>& train,
                             const std::vector<TokenRow>& held_out) {
  using detail::PairIndex;
  PairIndex rows(held_out, PairIndex::Key::kRow);
  PairIndex prompts(held_out, PairIndex::Key::kPrompt);
  for (std::size_t i = 0; i < held_out.size(); ++i) {
    rows.add(i);
    prompts.add(i);
  }
  std::vector<Leak> leaks;
  for (std::size_t i = 0; i < train.size(); ++i) {
    const auto prompt = prompts.find(train[i]);
    if (!prompt) continue;
    const auto row = rows.find(train[i]);
    leaks.push_back({.train = i, .held_out = row.value_or(*prompt), .whole_row = row.has_value()});
  }
  return leaks;
}

std::string apply_leak_policy(Dataset& train, const Dataset& held_out, RowAction policy,
                              std::string_view path) {
  const auto leaks = find_leaks(train.pairs, held_out.pairs);
  if (leaks.empty()) return {};
  if (policy == RowAction::kError) throw refusal_of(leaks.front(), train, held_out, path);
  const auto line = [&](std::string_view verb) { return line_of(verb, leaks, train); };
  if (policy == RowAction::kKeep) return line("kept");
  if (leaks.size() == train.pairs.size()) {
    throw DataError(
        fmt::format("{}: expected a row to train on, got none: the prompts of all {} are held out",
                    path, leaks.size()));
  }
  std::string dropped = line("dropped");
  remove_leaks(train, leaks);
  return dropped;
}

}  // namespace prefopt
