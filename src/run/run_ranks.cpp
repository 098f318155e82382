// SPDX-License-Identifier: Apache-2.0
#include "run/run_ranks.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/text.h"
#include "prefopt/dist/launch.h"
#include "prefopt/error.h"
#include "run/resume.h"

namespace prefopt::detail {
namespace {

/// Options that a rank may have for itself. Of a list of files each has its place in it.
constexpr std::array kOwn = std::to_array<std::string_view>(
    {"output_dir", "model.path", "model.adapter", "model.tokenizer", "reference.path",
     "reference.adapter", "reference.cache_dir", "data.train", "data.eval", "data.token_cache",
     "online.prompts", "online.eval_prompts", "machine.threads"});

bool is_own(std::string_view key) {
  return contains(kOwn, key) || key.starts_with("data.train.") || key.starts_with("data.eval.");
}

/// The option that says where something was read, and its value.
using Origin = std::pair<std::string, std::string>;

/// Returns the origin of what a hash in the contents is of.
Origin origin_of(std::string_view key, const RunOptions& options) {
  const auto first_set = [](const Origin& a, const Origin& b) { return a.second.empty() ? b : a; };
  const OnlineOptions& online = options.online;
  const Origin rows =
      first_set({"online.prompts", online.prompts}, {"data.train", options.data.train});
  if (key == "train_rows") return rows;
  if (key == "eval_rows") {
    return first_set(
        first_set({"online.eval_prompts", online.eval_prompts}, {"data.eval", options.data.eval}),
        rows);
  }
  const bool is_reference = key.starts_with("reference");
  return is_reference ? first_set({"reference.path", options.reference.path},
                                  {"reference.adapter", options.reference.adapter})
                      : first_set({"model.adapter", options.model.adapter},
                                  {"model.path", options.model.path});
}

std::string name_of_machine() {
  std::array<char, HOST_NAME_MAX + 1> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

/// The launch of these ranks; of ranks that a program has made itself one that says nothing.
Launch launch_of(const Ranks& ranks) {
  const Launch launch = launch_of_process();
  return launch.size == ranks.size() ? launch : Launch{.size = ranks.size()};
}

}  // namespace

void check_same_options(const RunOptions& options, Meeting& meeting) {
  const auto texts = meeting.texts(options_to_json(options));
  const Json of_first = parse_json<ConfigError>(texts.front(), "run");
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    auto changes = differences(of_first, parse_json<ConfigError>(texts[rank], "run"));
    std::erase_if(changes, [](const auto& change) { return is_own(change.first); });
    if (changes.empty()) continue;
    std::vector<std::string> sentences;
    for (const auto& [key, change] : changes) sentences.push_back(change);
    throw ConfigError(fmt::format("rank {}: expected the options of rank 0, got {}", rank,
                                  fmt::join(sentences, ", ")));
  }
}

void check_same_contents(const Json& contents, const RunOptions& options, Meeting& meeting) {
  Json own = Json::object();
  for (const auto& [key, hash] : contents.items()) {
    const auto [option, value] = origin_of(key, options);
    own[key] = {{"hash", hash}, {"option", option}, {"value", value}};
  }
  const auto texts = meeting.texts(dump_json(own));
  const Json of_first = parse_json<ConfigError>(texts.front(), "run");
  for (std::size_t rank = 1; rank < texts.size(); ++rank) {
    const Json of_rank = parse_json<ConfigError>(texts[rank], "run");
    for (const auto& [key, first] : of_first.items()) {
      const Json& other = of_rank.at(key);
      if (other.at("hash") == first.at("hash")) continue;
      throw ConfigError(fmt::format(
          "rank {}: expected {} with the contents that rank 0 has from '{}', got others from '{}'",
          rank, first.at("option").get<std::string>(), first.at("value").get<std::string>(),
          other.at("value").get<std::string>()));
    }
  }
}

int default_threads(const Ranks& ranks) {
  if (ranks.size() == 1) return 0;
  const Launch launch = launch_of(ranks);
  // A launcher may have bound this process to its part of the processors.
  const int mine = static_cast<int>(std::thread::hardware_concurrency());
  const int all = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  return std::max(1, std::min(mine, all / std::max(1, launch.local_size)));
}

void add_ranks(Json& environment, Meeting& meeting) {
  if (meeting.size() == 1) return;
  environment["ranks"] = meeting.size();
  environment["launcher"] = launch_of(*meeting.ranks()).launcher;
  environment["backend"] = meeting.ranks()->backend();
  environment["machines"] = meeting.texts(name_of_machine());
}

}  // namespace prefopt::detail
