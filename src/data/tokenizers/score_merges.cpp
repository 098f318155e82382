// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/score_merges.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <unordered_map>

#include "core/json.h"
#include "core/utf8.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

struct Cut {
  std::size_t token, left, right;  // ids
};

class Cutter {
 public:
  Cutter(const ScoredTokens& vocabulary, std::string_view where)
      : vocabulary_(vocabulary), where_(where) {
    for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      if (vocabulary.merges[id]) ids_.emplace(vocabulary.tokens[id], id);
    }
  }

  std::vector<Cut> run() const {
    std::vector<Cut> cuts;
    for (const auto& [token, id] : ids_) add_cuts(token, id, cuts);
    const auto key = [&](const Cut& cut) {
      return std::tuple(-vocabulary_.scores[cut.token], cut.token, cut.left, cut.right);
    };
    std::sort(cuts.begin(), cuts.end(),
              [&](const Cut& a, const Cut& b) { return key(a) < key(b); });
    check_scores(cuts);
    return cuts;
  }

 private:
  void add_cuts(std::string_view token, std::size_t id, std::vector<Cut>& cuts) const {
    for (std::size_t at = utf8_character(token, 0).length; at < token.size();
         at += utf8_character(token, at).length) {
      const std::string_view left = token.substr(0, at), right = token.substr(at);
      if (ids_.contains(left) && ids_.contains(right)) {
        cuts.push_back({id, ids_.at(left), ids_.at(right)});
      } else if (is_symbol(left) && is_symbol(right)) {
        throw CheckpointError(
            fmt::format("{}tokens: expected each character of token {} to be a token, got '{}'",
                        where_, id, shown_text(std::string(token))));
      }
    }
  }

  // Returns whether it can be a neighbour when tokens merge: llama.cpp begins with characters,
  // tokens or not.
  bool is_symbol(std::string_view part) const {
    return ids_.contains(part) || utf8_character(part, 0).length == part.size();
  }

  void check_scores(const std::vector<Cut>& cuts) const {
    for (std::size_t i = 1; i < cuts.size(); ++i) {
      const std::size_t a = cuts[i - 1].token, b = cuts[i].token;
      if (a == b || vocabulary_.scores[a] != vocabulary_.scores[b]) continue;
      throw CheckpointError(fmt::format(
          "{}scores: expected scores that say which tokens merge first, got {} for '{}' and '{}'",
          where_, vocabulary_.scores[a], shown_text(vocabulary_.tokens[a]),
          shown_text(vocabulary_.tokens[b])));
    }
  }

  const ScoredTokens& vocabulary_;
  std::string_view where_;
  std::unordered_map<std::string_view, std::size_t> ids_;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> merges_by_score(const ScoredTokens& vocabulary,
                                                                 std::string_view where) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const Cut& cut : Cutter(vocabulary, where).run()) {
    merges.emplace_back(vocabulary.tokens[cut.left], vocabulary.tokens[cut.right]);
  }
  return merges;
}

}  // namespace prefopt::detail
