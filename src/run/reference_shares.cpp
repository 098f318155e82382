// SPDX-License-Identifier: Apache-2.0
#include "run/reference_shares.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <set>

#include "run/resolve.h"
#include "train/epoch_order.h"

namespace prefopt::detail {
namespace {

/// Returns the places of the rows that the steps of a run take.
std::set<std::size_t> places_taken(const RunRows& rows, const RunOptions& options) {
  const auto parts =
      rows.parts.empty() ? std::vector<EpochPart>{{.rows = std::ssize(rows.train)}} : rows.parts;
  WeightedOrder order(parts, options.seed, options.batch.shuffle);
  const std::int64_t last = count_steps(options.batch, order.count()) * options.batch.rows;
  std::set<std::size_t> places;
  for (std::int64_t at = 0; at < last && places.size() < rows.train.size(); ++at) {
    places.insert(order.at(at));
  }
  return places;
}

}  // namespace

void share_cache(Reference* reference, const Meeting& meeting) {
  auto* const cached = dynamic_cast<CachedReference*>(reference);
  if (cached != nullptr && meeting.size() > 1) cached->share(meeting.ranks());
}

void score_ahead(Reference* reference, const RunRows& rows, const LossRequirements& needs,
                 const RunOptions& options, Meeting& meeting, const Note& note) {
  auto* const cached = dynamic_cast<CachedReference*>(reference);
  if (cached == nullptr || meeting.size() == 1) return;
  std::vector<TokenRow> all;
  for (const std::size_t place : places_taken(rows, options)) all.push_back(rows.train[place]);
  all.insert(all.end(), rows.eval.begin(), rows.eval.end());
  const auto micro = options.batch.micro_rows > 0 ? options.batch.micro_rows : options.batch.rows;
  const Portion own = portion_of(std::ssize(all), *meeting.ranks());
  for (std::int64_t begin = own.begin; begin < own.end; begin += micro) {
    const std::int64_t end = std::min(begin + micro, own.end);
    const TokenBatch batch =
        make_pair_batch({all.begin() + begin, all.begin() + end}, needs.rejected(), needs.gold());
    cached->sequence_logps(batch);
  }
  const std::int64_t computed = cached->misses();
  cached->flush();
  note(fmt::format("reference: {} ranks scored {} rows, rank 0 computed {} sequences of them",
                   meeting.size(), all.size(), computed));
}

}  // namespace prefopt::detail
