// SPDX-License-Identifier: Apache-2.0

// Selections by the golden values of tests/data/online_selections.json, and by their formulas.

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/online/feedback.h"
#include "prefopt/online/rejection.h"
#include "prefopt/online/selection.h"
#include "support/catch.h"
#include "support/close.h"
#include "support/errors.h"
#include "support/table_preference.h"
#include "support/text_files.h"

namespace prefopt {
namespace {

using namespace testing_support;
using nlohmann::json;

using Numbers = std::vector<double>;
using Matrix = std::vector<Numbers>;
using IndexPairs = std::vector<std::pair<std::int64_t, std::int64_t>>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
const Matrix kCycle = {{0.5, 0.8, 0.3}, {0.2, 0.5, 0.9}, {0.7, 0.1, 0.5}};

const json& golden() {
  static const json file = json::parse(read_text(PREFOPT_TEST_DATA_DIR "/online_selections.json"));
  return file;
}
const json& golden_selections() { return golden().at("hand").at("selections"); }

SelectedRows select_with(Preference& preference, const std::string& config,
                         const std::vector<Rollout>& rollouts, const SourceNames& sources = {},
                         const RaterOptions& options = {}) {
  Rater rater(preference, rollouts, options);
  exact::Random random(7);
  return make_selection(config, sources)->select(rater, random);
}

SelectedRows select_by_rewards(const Numbers& rewards, const std::string& config) {
  TableRewards preference(rewards);
  return select_with(preference, config, make_rollouts(rewards.size()));
}

SelectedRows select_by_table(const Matrix& table, const std::string& config) {
  TablePreference preference(table);
  return select_with(preference, config, make_rollouts(table.size()));
}

IndexPairs pairs_of(const SelectedRows& selected) {
  IndexPairs pairs;
  for (const SelectedRow& row : selected.rows) pairs.emplace_back(row.chosen, row.rejected);
  return pairs;
}

Numbers advantages_of(const SelectedRows& selected) {
  Numbers advantages;
  for (const SelectedRow& row : selected.rows) {
    CHECK(row.rejected == -1);
    advantages.push_back(row.advantage.value());
  }
  return advantages;
}

void check_numbers(const Numbers& got, const Numbers& expected) {
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) check_close(got[i], expected[i], 1e-12, 1e-15);
}

Matrix random_table(std::size_t size, exact::Random& random) {
  Matrix table(size, Numbers(size, 0.5));
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      table[i][j] = random.uniform();
      table[j][i] = 1 - table[i][j];
    }
  }
  return table;
}

TEST_CASE("pair labels the first two completions", "[online]") {
  const auto hard = select_by_table(kCycle, R"({"type": "pair"})");
  CHECK(pairs_of(hard) == IndexPairs{{0, 1}});
  CHECK(!hard.rows[0].label_prob);
  const auto soft = select_by_table({{0.5, 0.3}, {0.7, 0.5}}, R"({"type": "pair", "soft": true})");
  CHECK(pairs_of(soft) == IndexPairs{{1, 0}});
  CHECK(soft.rows[0].label_prob == 0.7);

  const Matrix tie = {{0.5, 0.5}, {0.5, 0.5}};
  CHECK(select_by_table(tie, R"({"type": "pair"})").rows.empty());
  CHECK(select_by_table(tie, R"({"type": "pair"})").ties == 1);
  const auto soft_tie = select_by_table(tie, R"({"type": "pair", "soft": true})");
  CHECK(pairs_of(soft_tie) == IndexPairs{{0, 1}});
  CHECK(soft_tie.rows[0].label_prob == 0.5);
  for (const char* config : {R"({"type": "pair"})", R"({"type": "pair", "soft": true})"}) {
    const auto failed = select_by_table({{0.5, kNan}, {kNan, 0.5}}, config);
    CHECK(failed.rows.empty());
    CHECK(failed.failed == 1);
    CHECK(failed.ties == 0);
    CHECK(select_by_table({{0.5}}, config).rows.empty());
  }
}

TEST_CASE("pair asks one question, however many completions there are", "[online]") {
  TablePreference preference(kCycle);
  const auto rollouts = make_rollouts(3);
  std::vector<Rater> raters(2, Rater(preference, rollouts));
  const auto selection = make_selection(R"({"type": "pair"})");
  ask(raters, selection->questions());
  exact::Random random(7);
  for (Rater& rater : raters) {
    CHECK(rater.counts().questions == 1);
    CHECK(pairs_of(selection->select(rater, random)) == IndexPairs{{0, 1}});
    CHECK(rater.counts().questions == 1);
  }
}

TEST_CASE("pair chooses what TRL's OnlineDPOTrainer does, without its ties", "[online]") {
  const json& trl = golden().at("trl").at("online_dpo");
  const Numbers rewards = trl.at("rewards");
  const std::vector<bool> ended = trl.at("ended");
  const std::size_t prompts = trl.at("prompts");
  for (const double penalty : {0.0, 1.0}) {
    const json& expected = trl.at(penalty == 0 ? "sigmoid, missing_eos_penalty None"
                                               : "sigmoid, missing_eos_penalty 1.0");
    for (std::size_t prompt = 0; prompt < prompts; ++prompt) {
      const std::array places = {prompt, prompt + prompts};
      auto rollouts = make_rollouts(2);
      for (std::size_t side : {0, 1}) rollouts[side].ended = ended[places[side]];
      TableRewards preference({rewards[places[0]], rewards[places[1]]});
      const RaterOptions options{.missing_eos_penalty = penalty};
      Rater rater(preference, rollouts, options);
      for (std::size_t side : {0, 1}) {
        CHECK(rater.reward(static_cast<std::int64_t>(side)) ==
              expected.at("rewards_after_penalty")[places[side]].get<double>());
      }
      const auto got = select_with(preference, R"({"type": "pair"})", rollouts, {}, options);
      const auto soft =
          select_with(preference, R"({"type": "pair", "soft": true})", rollouts, {}, options);
      const bool first_is_chosen = expected.at("chosen_indices")[prompt] == places[0];
      const IndexPairs theirs = {first_is_chosen ? std::pair(0, 1) : std::pair(1, 0)};
      CHECK(pairs_of(soft) == theirs);
      const bool is_tie = rewards[places[0]] == rewards[places[1]];
      CHECK(pairs_of(got) == (is_tie ? IndexPairs{} : theirs));
      CHECK(got.ties == (is_tie ? 1 : 0));
    }
  }
}

TEST_CASE("a missing end token costs the completion its place", "[online]") {
  const json& item = golden_selections().at("missing_eos");
  TableRewards preference(item.at("rewards").get<Numbers>());
  auto rollouts = make_rollouts(2);
  for (std::size_t i : {0, 1}) rollouts[i].ended = item.at("ended")[i];
  const RaterOptions options{.missing_eos_penalty = item.at("penalty")};
  const auto got = select_with(preference, R"({"type": "best_worst"})", rollouts, {}, options);
  REQUIRE(got.rows.size() == 1);
  CHECK(got.rows[0].chosen == item.at("chosen").get<std::int64_t>());
  CHECK(pairs_of(select_with(preference, R"({"type": "best_worst"})", rollouts)) ==
        IndexPairs{{0, 1}});
}

TEST_CASE("the best completion against another", "[online]") {
  const Numbers rewards = {0.1, 0.9, -0.5, 0.9, 0.3, -0.5};
  CHECK(pairs_of(select_by_rewards(rewards, R"({"type": "best_worst"})")) == IndexPairs{{1, 2}});
  CHECK(select_by_rewards(rewards, R"({"type": "best_second"})").ties == 1);
  CHECK(pairs_of(select_by_rewards({0.1, 0.9, 0.3}, R"({"type": "best_second"})")) ==
        IndexPairs{{1, 2}});
  CHECK(
      select_by_rewards({0.1, 0.9, 0.3}, R"({"type": "best_worst", "min_gap": 0.9})").rows.empty());
  CHECK(pairs_of(select_by_rewards({0.1, 0.9, kNan}, R"({"type": "best_worst"})")) ==
        IndexPairs{{1, 0}});
  CHECK(select_by_rewards({0.1, 0.9, kNan}, R"({"type": "best_worst"})").failed == 1);
  // Row means of the cycle: 0.55, 0.55, 0.4.
  CHECK(pairs_of(select_by_table(kCycle, R"({"type": "best_worst", "by": "row_mean"})")) ==
        IndexPairs{{0, 2}});
  const auto ties = select_by_rewards(golden_selections().at("ties_best_worst").at("rewards"),
                                      R"({"type": "best_worst"})");
  CHECK(ties.rows.empty());
  CHECK(ties.ties == 1);
  CHECK_THROWS_TEXT(select_by_table(kCycle, R"({"type": "best_worst"})"), ConfigError,
                    "best_worst: expected rewards of completions, got comparisons alone");
}

TEST_CASE("best_random draws each of the others", "[online]") {
  TableRewards preference({0.1, 0.9, 0.3, 0.5});
  const auto rollouts = make_rollouts(4);
  const auto selection = make_selection(R"({"type": "best_random"})");
  std::array<int, 4> counts{};
  exact::Random random(3);
  for (int i = 0; i < 3000; ++i) {
    Rater rater(preference, rollouts);
    const auto got = selection->select(rater, random);
    REQUIRE(got.rows.size() == 1);
    CHECK(got.rows[0].chosen == 1);
    ++counts.at(static_cast<std::size_t>(got.rows[0].rejected));
  }
  CHECK(counts[1] == 0);
  for (std::size_t i : {0, 2, 3}) CHECK(std::abs(counts[i] - 1000) < 100);  // 3.9 deviations
}

TEST_CASE("tournament asks 11 questions about 8 completions", "[online]") {
  const auto play = [](TablePreference preference, std::size_t size) {
    const auto rollouts = make_rollouts(size);
    Rater rater(preference, rollouts);
    exact::Random random(1);
    auto got = make_selection(R"({"type": "tournament"})")->select(rater, random);
    return std::pair(got, rater.counts().questions);
  };
  const json& eight = golden_selections().at("tournament");
  const auto [got, questions] =
      play(make_comparisons(golden_selections().at("tournament_rewards")), 8);
  CHECK(pairs_of(got) == IndexPairs{{eight.at("best"), eight.at("worst")}});
  CHECK(questions == eight.at("questions").get<std::int64_t>());

  const json& cyclic = golden_selections().at("tournament_cyclic_4");
  const auto [none, four] = play(TablePreference(cyclic.at("P").get<Matrix>()), 4);
  CHECK(none.rows.empty());  // the winner loses to the loser
  CHECK(none.ties == 0);
  CHECK(four == cyclic.at("questions").get<std::int64_t>());
  // With the one entry of that match turned, the same two are a row.
  Matrix turned = cyclic.at("P");
  const std::size_t best = cyclic.at("best"), worst = cyclic.at("worst");
  std::swap(turned[best][worst], turned[worst][best]);
  CHECK(pairs_of(play(TablePreference(turned), 4).first) == IndexPairs{{best, worst}});

  CHECK(pairs_of(play(make_comparisons({0.2, 0.4}), 2).first) == IndexPairs{{1, 0}});
  CHECK(play(make_comparisons({0.2, 0.4}), 2).second == 1);
  // The odd one advances: it may win, and does not play among the losers.
  CHECK(pairs_of(play(make_comparisons({0.2, 0.4, 0.9}), 3).first) == IndexPairs{{2, 0}});
  CHECK(play(make_comparisons({1, 1, 1, 1}), 4).first.ties == 1);
  const auto failed = play(TablePreference({{0.5, kNan}, {kNan, 0.5}}), 2).first;
  CHECK(failed.rows.empty());
  CHECK(failed.failed == 1);
}

TEST_CASE("all_pairs keeps pairs that are far enough apart", "[online]") {
  const json& item = golden_selections().at("all_pairs");
  const auto got = select_by_rewards(
      item.at("rewards"), json{{"type", "all_pairs"}, {"min_gap", item.at("min_gap")}}.dump());
  CHECK(pairs_of(got) == item.at("pairs").get<IndexPairs>());
  for (const SelectedRow& row : got.rows) CHECK(row.weight == 0.5);
  const auto unweighed =
      select_by_rewards(item.at("rewards"), R"({"type": "all_pairs", "weigh_prompts": false})");
  CHECK(unweighed.rows.size() == 3);
  CHECK(!unweighed.rows[0].weight);
  const auto ties = select_by_rewards({1, 1, 2}, R"({"type": "all_pairs"})");
  CHECK(pairs_of(ties) == IndexPairs{{2, 0}, {2, 1}});
  CHECK(ties.ties == 1);
}

TEST_CASE("all_pairs makes the pairs of DNO-Prct", "[online]") {
  const json& item = golden_selections().at("dno_prct");
  const Numbers scores = item.at("scores");
  auto rollouts = make_rollouts(scores.size());
  rollouts[item.at("gold_index").get<std::size_t>()].source = 1;
  TableRewards preference(scores);
  const std::string config =
      R"({"type": "all_pairs", "min_score": 5, "min_gap": 2, "min_gap_own": 1})";
  CHECK(pairs_of(select_with(preference, config, rollouts, {"policy", "data"})) ==
        item.at("pairs").get<IndexPairs>());
  // Were it the policy's own, it would also beat the one that is 1 lower.
  rollouts[5].source = 0;
  CHECK(select_with(preference, config, rollouts, {"policy", "data"}).rows.size() ==
        item.at("pairs").size() + 1);
  CHECK_THROWS_TEXT(make_selection(config, {"policy", "dato"}), ConfigError,
                    "all_pairs: expected data_source to name a source, one of 'policy', 'dato', "
                    "got 'data'; did you mean 'dato'?");
}

TEST_CASE("rejection accepts by given uniforms as RSO's Algorithm 1", "[online]") {
  const json& item = golden().at("hand").at("rso_trace");
  Numbers rewards;
  std::string names;
  for (const json& candidate : item.at("candidates")) {
    names += candidate[0].get<std::string>();
    rewards.push_back(candidate[1]);
  }
  const Numbers uniforms = item.at("uniforms");
  std::size_t used = 0;
  const auto accepted = accept_by_rejection(rewards, item.at("beta"), item.at("num_samples"),
                                            [&] { return uniforms.at(used++); });
  std::vector<std::string> got;
  for (const std::int64_t place : accepted)
    got.emplace_back(1, names.at(static_cast<std::size_t>(place)));
  CHECK(got == item.at("accepted").get<std::vector<std::string>>());
  CHECK(used == item.at("uniforms_used").get<std::size_t>());
}

/// Algorithm 1 as the specification writes it, with a set of accepted candidates.
std::vector<std::int64_t> accept_slowly(const Numbers& rewards, double beta, std::int64_t n,
                                        const std::function<double()>& uniform) {
  std::vector<std::int64_t> accepted;
  std::vector<bool> is_gone(rewards.size());
  const auto size = std::min<std::size_t>(rewards.size(), static_cast<std::size_t>(n));
  while (accepted.size() < size) {
    double top = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < rewards.size(); ++i) {
      if (!is_gone[i]) top = std::fmax(top, rewards[i]);
    }
    const auto before = is_gone;
    for (std::size_t i = 0; i < rewards.size(); ++i) {
      if (before[i]) continue;
      const double u = uniform();
      if (u >= std::exp((rewards[i] - top) / beta)) continue;
      accepted.push_back(static_cast<std::int64_t>(i));
      is_gone[i] = true;
      if (accepted.size() == size) break;
    }
  }
  return accepted;
}

TEST_CASE("rejection takes several passes, and all where there are few", "[online]") {
  exact::Random random(11);
  for (int trial = 0; trial < 200; ++trial) {
    Numbers rewards(static_cast<std::size_t>(1 + random.below(9)));
    for (double& reward : rewards) reward = random.normal();
    const double beta = 0.05 + random.uniform();
    const std::int64_t n = 1 + random.below(10);
    exact::Random ours(static_cast<std::uint64_t>(trial)),
        theirs(static_cast<std::uint64_t>(trial));
    CHECK(accept_by_rejection(rewards, beta, n, [&] { return ours.uniform(); }) ==
          accept_slowly(rewards, beta, n, [&] { return theirs.uniform(); }));
    CHECK(ours.uniform() == theirs.uniform());  // as many draws
  }
  const auto never = []() -> double { throw Error("no uniform is needed"); };
  CHECK(accept_by_rejection({1, 3, 2, 3}, 0, 3, never) == std::vector<std::int64_t>{1, 3, 2});
  CHECK(accept_by_rejection({}, 0.5, 3, never).empty());
  CHECK_THROWS_TEXT(accept_by_rejection({1}, -1, 3, never), ConfigError,
                    "rejection: expected beta >= 0, got -1");
  CHECK_THROWS_TEXT(accept_by_rejection({kNan}, 1, 3, never), ConfigError,
                    "rejection: expected finite rewards, got nan");
}

struct AcceptedShares {
  Numbers first, all;  ///< counts of actions, among those accepted first, and among all
};

AcceptedShares count_accepted(const json& law, std::int64_t candidates, std::int64_t n,
                              int trials) {
  const Numbers sft = law.at("pi_sft"), rewards = law.at("rewards");
  const Eigen::ArrayXd weights = Eigen::Map<const Eigen::ArrayXd>(sft.data(), std::ssize(sft));
  exact::Random random(2024);
  AcceptedShares counts{Numbers(sft.size()), Numbers(sft.size())};
  for (int trial = 0; trial < trials; ++trial) {
    std::vector<std::size_t> draws;
    Numbers drawn;
    for (std::int64_t i = 0; i < candidates; ++i) {
      draws.push_back(static_cast<std::size_t>(random.index(weights)));
      drawn.push_back(rewards[draws.back()]);
    }
    const auto accepted =
        accept_by_rejection(drawn, law.at("beta"), n, [&] { return random.uniform(); });
    ++counts.first[draws[static_cast<std::size_t>(accepted.front())]];
    for (const std::int64_t place : accepted) ++counts.all[draws[static_cast<std::size_t>(place)]];
  }
  return counts;
}

double chi_squared(const Numbers& counts, const Numbers& law) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    sum += std::pow(counts[i] - total * law[i], 2) / (total * law[i]);
  }
  return sum;
}

TEST_CASE("accepted completions follow pi exp(r / beta)", "[online]") {
  const json& item = golden().at("hand").at("rso_law");
  const Numbers sft = item.at("pi_sft"), rewards = item.at("rewards");
  const double beta = item.at("beta");
  Numbers law;
  double total = 0, rate = 0;
  for (std::size_t i = 0; i < sft.size(); ++i) {
    law.push_back(sft[i] * std::exp(rewards[i] / beta));
    total += law[i];
    rate += sft[i] * std::exp((rewards[i] - 1) / beta);  // eq. 18, the largest reward is 1
  }
  for (double& p : law) p /= total;
  check_numbers(law, item.at("pi_r"));
  check_close(rate, item.at("acceptance_rate"), 1e-12);

  constexpr double kQuantile = 13.8;  // of chi-squared with 2 degrees of freedom, at 0.999
  const auto many = count_accepted(item, 64, 8, 3000);
  CHECK(chi_squared(many.first, law) < kQuantile);
  for (std::size_t i = 0; i < law.size(); ++i) {
    CHECK(std::abs(many.all[i] / (3000 * 8) - law[i]) < 0.012);
  }
  // Of few draws, passes after the first accept what is left.
  const auto few = count_accepted(item, 8, 4, 3000);
  CHECK(chi_squared(few.all, law) > 100 * kQuantile);
  CHECK(chi_squared(many.first, sft) > 100 * kQuantile);
}

TEST_CASE("rejection pairs what it accepts", "[online]") {
  const Numbers rewards = {5, 4, 3, 2, 1};
  const auto first_round =
      select_by_rewards(rewards, R"({"type": "rejection", "beta": 0, "n": 4})");
  CHECK(pairs_of(first_round) == IndexPairs{{0, 1}, {2, 3}});
  CHECK(first_round.rows[0].weight == 0.5);
  CHECK(first_round.missing == 0);
  const auto tournament = select_by_rewards(
      rewards, R"({"type": "rejection", "beta": 0, "n": 4, "then": "tournament"})");
  CHECK(pairs_of(tournament) == IndexPairs{{0, 1}, {2, 3}, {0, 2}});
  // The odd one meets the winner of the next round.
  const auto odd = select_by_rewards(
      rewards, R"({"type": "rejection", "beta": 0, "n": 3, "then": "tournament"})");
  CHECK(pairs_of(odd) == IndexPairs{{0, 1}, {0, 2}});
  CHECK(select_by_rewards(rewards, R"({"type": "rejection", "n": 8})").missing == 3);
  CHECK(select_by_rewards({kNan, 1, 0}, R"({"type": "rejection", "beta": 0, "n": 2})").failed == 1);

  // Equal completions are one candidate, at its first place.
  TableRewards preference({5, 4, 3});
  auto rollouts = make_rollouts(3);
  rollouts.insert(rollouts.begin() + 1, rollouts.front());
  const std::string config = R"({"type": "rejection", "beta": 0, "n": 4)";
  const auto merged = select_with(preference, config + "}", rollouts);
  CHECK(pairs_of(merged) == IndexPairs{{0, 2}});
  CHECK(merged.missing == 1);
  CHECK(merged.identical == 1);
  const auto apart = select_with(preference, config + R"(, "merge": false})", rollouts);
  CHECK(pairs_of(apart) == IndexPairs{{2, 3}});
  CHECK(apart.identical == 1);
}

TEST_CASE("win_rates leave the completion itself out", "[online]") {
  const auto rows = select_by_table(kCycle, R"({"type": "win_rates"})").rows;
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].chosen == 0);
  CHECK(rows[0].rejected == 2);
  check_close(rows[0].chosen_win_rate.value(), 0.55, 1e-15);
  check_close(rows[0].rejected_win_rate.value(), 0.4, 1e-15);
  CHECK(rows[0].weight == 1);
  CHECK(!rows[0].label_prob);

  exact::Random random(5);
  for (int trial = 0; trial < 20; ++trial) {
    const std::size_t k = 2 + static_cast<std::size_t>(random.below(6));
    const Matrix table = random_table(k, random);
    const auto apart =
        select_by_table(table, R"({"type": "win_rates", "pick": "all", "label_probs": true})");
    const auto with_self =
        select_by_table(table, R"({"type": "win_rates", "pick": "all", "include_self": true})");
    REQUIRE(apart.rows.size() == k / 2);
    CHECK(pairs_of(apart) == pairs_of(with_self));
    std::vector<int> seen(k);
    for (std::size_t i = 0; i < apart.rows.size(); ++i) {
      const SelectedRow& row = apart.rows[i];
      ++seen[static_cast<std::size_t>(row.chosen)];
      ++seen[static_cast<std::size_t>(row.rejected)];
      const auto mean = [&](std::int64_t place) {
        const Numbers& all = table[static_cast<std::size_t>(place)];
        return (std::accumulate(all.begin(), all.end(), 0.0) - 0.5) / static_cast<double>(k - 1);
      };
      check_close(*row.chosen_win_rate, mean(row.chosen), 1e-12);
      check_close(*row.rejected_win_rate, mean(row.rejected), 1e-12);
      check_close(*row.label_prob, sigmoid(mean(row.chosen) - mean(row.rejected)), 1e-12);
      check_close(*row.weight, 1.0 / static_cast<double>(k / 2), 1e-15);
      // SPPO's code shrinks P - 1/2 by (K - 1)/K.
      const double shrink = static_cast<double>(k - 1) / static_cast<double>(k);
      check_close(*with_self.rows[i].chosen_win_rate - 0.5, shrink * (*row.chosen_win_rate - 0.5),
                  1e-12, 1e-15);
      if (i > 0) CHECK(*row.chosen_win_rate <= *apart.rows[i - 1].chosen_win_rate);
      if (i > 0) CHECK(*row.rejected_win_rate >= *apart.rows[i - 1].rejected_win_rate);
    }
    for (const int count : seen) CHECK(count <= 1);
  }
}

TEST_CASE("win_rates keep ties, and need two completions", "[online]") {
  const auto equal = select_by_rewards({1, 1, 1}, R"({"type": "win_rates"})");
  CHECK(pairs_of(equal) == IndexPairs{{0, 1}});
  CHECK(equal.rows[0].chosen_win_rate == 0.5);
  CHECK(equal.rows[0].rejected_win_rate == 0.5);
  for (const char* name : {"win_rates", "advantage"}) {
    CHECK_THROWS_TEXT(select_by_rewards({1}, json{{"type", name}}.dump()), ConfigError,
                      std::string(name) +
                          ": expected at least 2 completions of a prompt to compare with each "
                          "other, got 1; draw more of them");
  }
  // One pair without an answer: the means of the others, and the one failure counted once.
  Matrix table = kCycle;
  table[0][1] = table[1][0] = kNan;
  const auto failed = select_by_table(table, R"({"type": "win_rates"})");
  CHECK(failed.failed == 1);
  CHECK(pairs_of(failed) == IndexPairs{{1, 0}});
  CHECK(failed.rows[0].chosen_win_rate == 0.9);
  CHECK(failed.rows[0].rejected_win_rate == 0.3);
}

TEST_CASE("advantages of self-play and against opponents", "[online]") {
  const json& item = golden().at("hand").at("nash_md_advantages");
  const json& self_play = item.at("self_play_of_3");
  check_numbers(
      advantages_of(select_by_table(self_play.at("P").get<Matrix>(), R"({"type": "advantage"})")),
      self_play.at("advantages"));

  const Matrix against = item.at("P_of_2_policy_samples_against_3_opponents");
  Matrix table(5, Numbers(5, kNan));  // nothing else is asked
  for (std::size_t i : {0, 1}) {
    for (std::size_t j : {0, 1, 2}) {
      table[i][2 + j] = against[i][j];
      table[2 + j][i] = 1 - against[i][j];
    }
  }
  TablePreference preference(table);
  auto rollouts = make_rollouts(5);
  for (std::size_t j : {2, 3, 4}) rollouts[j].source = 1;
  const auto got = select_with(preference, R"({"type": "advantage", "against": "mixture"})",
                               rollouts, {"policy", "mixture"});
  check_numbers(advantages_of(got), item.at("advantages"));
  CHECK(got.rows[1].chosen == 1);
  CHECK(got.failed == 0);
  CHECK_THROWS_TEXT(
      make_selection(R"({"type": "advantage", "against": "mixtur"})", {"policy", "mixture"}),
      ConfigError,
      "advantage: expected against to name a source, one of 'policy', 'mixture', got "
      "'mixtur'; did you mean 'mixture'?");
  CHECK_THROWS_TEXT(make_selection(R"({"type": "advantage", "against": "queue"})"), ConfigError,
                    "advantage: expected against to name a source (there are none), got 'queue'");
}

TEST_CASE("advantages against a queue count both kinds of opponents", "[online]") {
  exact::Random random(13);
  const Matrix table = random_table(5, random);
  TablePreference preference(table);
  auto rollouts = make_rollouts(5);
  rollouts[3].source = rollouts[4].source = 1;
  const Numbers got = advantages_of(select_with(
      preference, R"({"type": "advantage", "against": "queue"})", rollouts, {"policy", "queue"}));
  REQUIRE(got.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const double sum = std::accumulate(table[i].begin(), table[i].end(), -0.5);
    check_close(got[i], sum / 4 - 0.5, 1e-12, 1e-15);
  }
}

TEST_CASE("advantages add up to 0", "[online]") {
  exact::Random random(17);
  for (int trial = 0; trial < 50; ++trial) {
    const Matrix table = random_table(2 + static_cast<std::size_t>(random.below(7)), random);
    for (const char* baseline : {"half", "group"}) {
      const Numbers advantages = advantages_of(
          select_by_table(table, json{{"type", "advantage"}, {"baseline", baseline}}.dump()));
      CHECK(advantages.size() == table.size());
      CHECK(std::abs(std::accumulate(advantages.begin(), advantages.end(), 0.0)) < 1e-14);
    }
    // Without a baseline they do not.
    const Numbers raw =
        advantages_of(select_by_table(table, R"({"type": "advantage", "baseline": "none"})"));
    check_close(std::accumulate(raw.begin(), raw.end(), 0.0), static_cast<double>(raw.size()) / 2,
                1e-12);
  }
  // Two completions: P - 1/2 and its opposite. Equal ones have 1/2 - 1/2.
  check_numbers(
      advantages_of(select_by_table({{0.5, 0.8}, {0.2, 0.5}}, R"({"type": "advantage"})")),
      {0.3, -0.3});
  TablePreference unasked(Matrix{{kNan}});
  auto equal = make_rollouts(1);
  equal.push_back(equal.front());
  check_numbers(advantages_of(select_with(unasked, R"({"type": "advantage"})", equal)), {0, 0});
}

TEST_CASE("advantages of rewards are TRL's leave-one-out", "[online]") {
  const json& item = golden().at("trl").at("rloo_advantages");
  const Numbers rewards = item.at("rewards");
  const std::size_t group = item.at("group");
  Numbers got;
  for (std::size_t first = 0; first < rewards.size(); first += group) {
    const auto begin = rewards.begin() + static_cast<std::ptrdiff_t>(first);
    const Numbers part = advantages_of(
        select_by_rewards({begin, begin + static_cast<std::ptrdiff_t>(group)},
                          R"({"type": "advantage", "by": "reward", "baseline": "group"})"));
    got.insert(got.end(), part.begin(), part.end());
  }
  check_numbers(got, item.at("advantages"));
  // Rewards 0, 1, 2 have the standard deviation 1.
  check_numbers(
      advantages_of(select_by_rewards(
          {0, 1, 2},
          R"({"type": "advantage", "by": "reward", "baseline": "none", "normalize": true})")),
      {0, 1 / 1.0001, 2 / 1.0001});
  CHECK_THROWS_TEXT(make_selection(R"({"type": "advantage", "by": "reward"})"), ConfigError,
                    "advantage: expected the baseline 'group' or 'none' with by = 'reward', got "
                    "'half', which is the mean of a probability");
}

TEST_CASE("only advantages need samples of the policy's own distribution", "[online]") {
  for (const SelectionEntry& entry : registered_selections()) {
    CAPTURE(entry.name);
    const auto selection = entry.make("{}", {"policy", "data"});
    CHECK(selection->needs_own_distribution() == (entry.name == "advantage"));
  }
}

TEST_CASE("best_of keeps the best different completions", "[online]") {
  const auto got = select_by_rewards({1, 3, 2}, R"({"type": "best_of", "n": 2})");
  CHECK(pairs_of(got) == IndexPairs{{1, -1}, {2, -1}});
  CHECK(select_by_rewards({1, 3, 2}, R"({"type": "best_of", "n": 5})").missing == 2);
  TableRewards preference({1, 3});
  auto rollouts = make_rollouts(2);
  rollouts.push_back(rollouts[1]);
  const auto distinct = select_with(preference, R"({"type": "best_of", "n": 2})", rollouts);
  CHECK(pairs_of(distinct) == IndexPairs{{1, -1}, {0, -1}});
  CHECK(distinct.identical == 1);
}

TEST_CASE("against_data asks nothing", "[online]") {
  TablePreference unasked(Matrix{});
  auto rollouts = make_rollouts(4);
  rollouts[2].source = 1;
  rollouts[3] = rollouts[2];
  rollouts[3].source = 0;
  const SourceNames sources = {"past", "data"};
  const auto got = select_with(unasked, R"({"type": "against_data"})", rollouts, sources);
  CHECK(pairs_of(got) == IndexPairs{{2, 0}, {2, 1}});
  CHECK(got.identical == 1);
  CHECK(got.rows[0].weight == 0.5);
  CHECK_THROWS_TEXT(select_with(unasked, R"({"type": "against_data"})", make_rollouts(2), sources),
                    ConfigError,
                    "against_data: expected one completion of the source 'data', got 0");
}

/// Steps after the nodes `parents`, with values and visits, of a tree in order.
std::vector<Rollout> tree_steps(const std::vector<std::int64_t>& parents, const Numbers& values,
                                const std::vector<std::int64_t>& visits,
                                const std::vector<std::size_t>& best = {}) {
  auto rollouts = make_rollouts(parents.size());
  for (std::size_t i = 0; i < parents.size(); ++i) {
    rollouts[i].step = {.node = static_cast<std::int64_t>(i) + 1,
                        .parent = parents[i],
                        .visits = visits[i],
                        .value = values[i]};
  }
  for (const std::size_t i : best) rollouts[i].step.is_best = true;
  return rollouts;
}

TEST_CASE("siblings are the best and the worst step of each state", "[online]") {
  TablePreference unasked(Matrix{});
  const auto steps = tree_steps({0, 0, 0, 1, 1, 2, 2, 5}, {0.5, -1, 0.2, 1, 1, 0.4, -0.4, 0},
                                {8, 2, 3, 4, 4, 1, 4, 0}, {2, 5});
  const auto all = select_with(unasked, R"({"type": "siblings"})", steps);
  CHECK(pairs_of(all) == IndexPairs{{0, 1}, {5, 6}});
  CHECK(all.rows[0].label_prob == 0.8);  // 1 / (1 + 2/8)
  CHECK(all.rows[1].label_prob == 0.5);  // the floor
  CHECK(all.ties == 1);
  // Node 3 is on the best path, and so is the sixth step, which follows node 2.
  auto on_path = select_with(
      unasked, R"({"type": "siblings", "points": "best_path", "labels": "hard"})", steps);
  CHECK(pairs_of(on_path) == IndexPairs{{0, 1}, {5, 6}});
  CHECK_FALSE(on_path.rows[0].label_prob);
  on_path = select_with(unasked, R"({"type": "siblings", "points": "best_path"})",
                        tree_steps({0, 0, 1, 1}, {1, 0, 1, 0}, {2, 1, 1, 1}, {0}));
  CHECK(pairs_of(on_path) == IndexPairs{{0, 1}});
  CHECK(select_with(unasked, R"({"type": "siblings", "min_gap": 1})", steps).rows.size() == 1);
  CHECK(select_with(unasked, R"({"type": "siblings", "min_visits": 3})", steps).rows.size() == 1);
  auto dead = steps;
  dead[1].step.is_dead = true;
  CHECK(pairs_of(select_with(unasked, R"({"type": "siblings"})", dead)) ==
        IndexPairs{{0, 2}, {5, 6}});
  CHECK_THROWS_TEXT(select_with(unasked, R"({"type": "siblings"})", make_rollouts(2)), ConfigError,
                    "siblings: expected steps of a source 'tree', got a completion of another "
                    "source");
}

TEST_CASE("no selection pairs equal completions, or uses empty ones", "[online]") {
  TableRewards preference({1, 2, 3});
  auto equal = make_rollouts(1);
  equal.push_back(equal.front());
  auto empty = make_rollouts(2);
  empty[0].completion.clear();
  for (const SelectionEntry& entry : registered_selections()) {
    if (entry.name == "against_data") continue;  // has two sources
    if (entry.name == "siblings") continue;      // of steps
    CAPTURE(entry.name);
    const bool is_single = entry.name == "advantage" || entry.name == "best_of";
    const std::string config = json{{"type", entry.name}}.dump();
    const auto same = select_with(preference, config, equal, {"policy"});
    if (!is_single) {
      CHECK(same.rows.empty());
      CHECK(same.identical == 1);
    }
    const auto one = select_with(preference, config, empty, {"policy"});
    CHECK(one.unusable == 1);
    CHECK(one.rows.size() == (entry.name == "best_of" ? 1 : 0));
  }
}

TEST_CASE("selections are made by name, with all their options", "[online]") {
  std::vector<std::string> names;
  for (const SelectionEntry& entry : registered_selections()) {
    CAPTURE(entry.name);
    names.push_back(entry.name);
    const SourceNames sources = {"policy", "data"};
    const auto made = make_selection(json{{"type", entry.name}}.dump(), sources);
    const json config = json::parse(made->config());
    CHECK(config.at("type") == entry.name);
    CHECK(config.size() == entry.options.size() + 1);
    CHECK(make_selection(config.dump(), sources)->config() == made->config());
  }
  REQUIRE(names.size() >= 12);
  names.resize(12);  // a test may have registered another one
  CHECK(names == std::vector<std::string>{"pair", "best_worst", "best_random", "best_second",
                                          "tournament", "all_pairs", "rejection", "win_rates",
                                          "advantage", "best_of", "against_data", "siblings"});
  CHECK_THROWS_TEXT(make_selection(R"({"type": "best_wurst"})"), ConfigError,
                    "select: expected a known selection, got 'best_wurst'; did you mean "
                    "'best_worst'?");
  CHECK_THROWS_TEXT(make_selection(R"({"type": "pair", "sofd": true})"), ConfigError,
                    "pair: expected a known option, got 'sofd'; did you mean 'soft'?");
  CHECK_THROWS_TEXT(make_selection("[]"), ConfigError,
                    "select: expected an object with a key 'type' that names a selection, got []");
  CHECK_THROWS_TEXT(make_selection(R"({"type": "rejection", "n": 0})"), ConfigError,
                    "rejection: expected n >= 1, got 0");
  CHECK_THROWS_TEXT(make_selection(R"({"type": "all_pairs", "min_score": "5"})"), ConfigError,
                    "all_pairs: expected min_score to be a number or null, got \"5\"");
}

TEST_CASE("a selection of one's own has a name as well", "[online]") {
  class FirstSelection final : public Selection {
   public:
    Questions questions() const override { return Questions::kNone; }
    SelectedRows select(Rater&, exact::Random&) const override { return {.rows = {{.chosen = 0}}}; }
    std::string config() const override { return R"({"type": "first_of_test"})"; }
  };
  register_selection({.name = "first_of_test", .make = [](std::string_view, const SourceNames&) {
                        return std::make_unique<FirstSelection>();
                      }});
  CHECK(pairs_of(select_by_rewards({1, 2}, R"({"type": "first_of_test"})")) == IndexPairs{{0, -1}});
  CHECK_THROWS_TEXT(register_selection({.name = "pair"}), ConfigError,
                    "select: expected a name that is free, got 'pair'");
}

}  // namespace
}  // namespace prefopt
