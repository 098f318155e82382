// SPDX-License-Identifier: Apache-2.0
#include "train/step_news.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/json.h"

namespace prefopt::detail {
namespace {

// JSON has no infinities.
std::uint64_t bits_of(double value) { return std::bit_cast<std::uint64_t>(value); }
double double_of(const Json& bits) { return std::bit_cast<double>(bits.get<std::uint64_t>()); }

std::string text_of(const StepNews& news, const StepMetrics& metrics) {
  Json sums = Json::array();
  for (const StepMetrics::HostSum& sum : metrics.sums()) {
    sums.push_back({sum.name, bits_of(sum.value), sum.count});
  }
  Json norms = Json::array();
  for (const double norm : news.norms) norms.push_back(bits_of(norm));
  return dump_json(Json::array({trouble_text(news.trouble), news.present, norms, sums}));
}

void add(const Json& sums, std::vector<StepMetrics::HostSum>& all) {
  for (const Json& sum : sums) {
    const auto name = sum[0].get<std::string>();
    auto known =
        std::find_if(all.begin(), all.end(), [&](const auto& one) { return one.name == name; });
    if (known == all.end()) known = all.insert(all.end(), {name, 0, 0});
    known->value += double_of(sum[1]);
    known->count += sum[2].get<double>();
  }
}

}  // namespace

std::vector<StepNews> exchange_news(Ranks& ranks, const StepNews& own, StepMetrics& metrics) {
  std::vector<StepNews> news;
  std::vector<std::string> troubles;
  std::vector<StepMetrics::HostSum> all;
  for (const std::string& text : ranks.gather_text(text_of(own, metrics))) {
    const Json parts = Json::parse(text);
    troubles.push_back(parts[0].get<std::string>());
    StepNews& of_rank = news.emplace_back();
    of_rank.present = parts[1].get<std::string>();
    for (const Json& norm : parts[2]) of_rank.norms.push_back(double_of(norm));
    // In the order of ranks: the same bits on each.
    add(parts[3], all);
  }
  throw_trouble(troubles, own.trouble);
  metrics.set_sums(all);
  return news;
}

}  // namespace prefopt::detail
