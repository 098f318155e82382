// SPDX-License-Identifier: Apache-2.0

// pg-kl-placement with a transformer that writes two tokens, by RLOO on its own samples: where the
// KL is placed decides where training ends. In the reward it counts over the whole string, so that
// the end is π_ref e^(r / β) / Z. In the loss each token pays for its own KL alone: k2 ends
// where the second letter is drawn from the optimum of its own reward, and the first from that of
// the mean reward after it; k3 at the same of the other direction, E r − β KL(π_ref ‖ π).
// Those ends are computed from the network's own reference. Control: k1 in the loss, which holds
// nothing.

#include "lab/kl_bandit.h"
#include "lab/neural_experiments.h"
#include "lab/neural_rounds.h"
#include "prefopt/exact/measures.h"

namespace prefopt::lab::neural_kl_placement {
namespace {

using namespace exact;
using Eigen::ArrayXd;

constexpr double kRewardScale = 0.5;
constexpr double kLearningRate = 1e-2;
constexpr int kSteps = 300, kBriefSteps = 40;
constexpr std::int64_t kGroup = 16, kCopies = 2;
constexpr int kDrawn = 20;

enum Place : std::size_t { kReward, kLossK2, kLossK3, kLossK1, kPlaces };
const std::vector<std::string> kNames{"k1 in the reward", "k2 in the loss", "k3 in the loss",
                                      "k1 in the loss"};

TokenObjective objective_of(std::size_t place) {
  KlOptions kl{.place = place == kReward ? KlPlace::kReward : KlPlace::kLoss,
               .coefficient = kKlCoefficient};
  constexpr KlEstimator kEstimators[] = {KlEstimator::kK1, KlEstimator::kK2, KlEstimator::kK3,
                                         KlEstimator::kK1};
  kl.estimator = kEstimators[place];
  return TokenObjective({.advantage = R"({"kind": "leave_one_out"})",
                         .aggregation = Aggregation::kSequenceSum,
                         .kl = kl});
}

/// Returns the optimum of E r − β KL(π_ref ‖ π) of one choice: β π_ref / (λ − r) at the λ whose
/// probabilities sum to 1.
ArrayXd forward_optimum(const ArrayXd& ref, const ArrayXd& rewards) {
  const ArrayXd p = kKlCoefficient * ref.exp();
  const auto sum = [&](double limit) { return (p / (limit - rewards)).sum(); };
  double low = rewards.maxCoeff(), high = low + kKlCoefficient;  // where the sum is at most 1
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (sum(middle) > 1 ? low : high) = middle;
  }
  return log_softmax((p / (high - rewards)).log()).col(0);
}

ArrayXd reverse_optimum(const ArrayXd& ref, const ArrayXd& rewards) {
  return optimum(ref, rewards, kKlCoefficient).col(0);
}

/// Returns the strings of a policy each of whose letters is the `best` of its own choice: the
/// second of its reward, the first of the mean reward of what follows it.
template <class Best>
Table token_by_token(const Table& ref, const Table& rewards, Best&& best) {
  Table logps(kStrings, kPrompts);
  for (Index x = 0; x < kPrompts; ++x) {
    ArrayXd first_ref(kLetters), values(kLetters);
    for (Index a = 0; a < kLetters; ++a) {
      const Index begin = kLetters * a;
      const ArrayXd joint = ref.col(x).segment(begin, kLetters);
      const ArrayXd after = rewards.col(x).segment(begin, kLetters);
      const ArrayXd ref_second = log_softmax(joint).col(0);
      first_ref[a] = joint[0] - ref_second[0];
      const ArrayXd second = best(ref_second, after);
      values[a] = (second.exp() * after).sum();
      logps.col(x).segment(begin, kLetters) = second;
    }
    const ArrayXd first = best(first_ref, values);
    for (Index a = 0; a < kLetters; ++a) logps.col(x).segment(kLetters * a, kLetters) += first[a];
  }
  return logps;
}

/// The policies that training is compared with.
enum End : std::size_t { kOptimum, kTokenReverse, kTokenForward, kEnds };

/// Columns of an instance: for each place KL to each end along training, then the entropy at the
/// last step.
struct Columns {
  std::size_t points;

  std::size_t distance(std::size_t place, std::size_t end) const {
    return (kEnds * place + end) * points;
  }
  std::size_t last(std::size_t place, std::size_t end) const {
    return distance(place, end) + points - 1;
  }
  std::size_t entropy(std::size_t place) const { return points * kPlaces * kEnds + place; }
};

std::vector<double> run_seed(int number, int steps) {
  const auto seed = static_cast<std::uint64_t>(number);
  const Table rewards = kRewardScale * NeuralTask(seed, 0).rewards;
  const auto reference = fresh_network(Language::kClosed, seed);
  const Table ref = answers(*reference).strings();
  const std::vector<Table> ends{optimum(ref, rewards, kKlCoefficient),
                                token_by_token(ref, rewards, reverse_optimum),
                                token_by_token(ref, rewards, forward_optimum)};
  std::vector<double> row, entropies;
  for (std::size_t place = 0; place < kPlaces; ++place) {
    std::vector<std::vector<double>> distances(kEnds);
    const auto network = train_rounds(*reference,
                                      {.loss = objective_of(place),
                                       .sources = {writer(SourceKind::kPolicy, "policy", kGroup)},
                                       .feedback = rewarding(rewards),
                                       .copies = kCopies,
                                       .rounds = {.rounds = steps, .steps = 1},
                                       .learning_rate = kLearningRate,
                                       .decays = true},
                                      seed, [&](int step, Policy& policy) {
                                        if (step % (steps / kDrawn) != 0) return;
                                        const Table now = answers(policy).strings();
                                        for (std::size_t end = 0; end < kEnds; ++end) {
                                          distances[end].push_back(kl(now, ends[end]));
                                        }
                                      });
    for (const auto& curve : distances) row.insert(row.end(), curve.begin(), curve.end());
    entropies.push_back(entropy(answers(*network).strings()));
  }
  row.insert(row.end(), entropies.begin(), entropies.end());
  return row;
}

}  // namespace

Report run(const Settings& settings) { return run(settings, Length::kWhole); }

Report run(const Settings& settings, Length length) {
  const int steps = length == Length::kBrief ? kBriefSteps : kSteps;
  const Columns columns{kDrawn + 1};
  const auto by_seed =
      for_each_seed(settings.seeds, [&](int seed) { return run_seed(seed, steps); });
  Report report{.data = {{"neural-kl-placement", {"case", "step", "kl", "low", "high"}}},
                .pictures = {{"neural-kl-placement",
                              {.title = "A transformer's distance to π_ref e^{r/β}/Z",
                               .x_label = "steps",
                               .y_label = "KL(π ‖ π*), nats",
                               .log_y = true}}}};
  std::vector<double> xs;
  for (int i = 0; i <= kDrawn; ++i) xs.push_back(i * (steps / kDrawn));
  for (std::size_t place = 0; place < kPlaces; ++place) {
    add_curve(report, kNames[place], xs,
              means(by_seed, columns.distance(place, kOptimum), columns.points));
  }
  const auto distance = [&](std::size_t place, std::size_t end) {
    return mean(by_seed, columns.last(place, end));
  };
  const auto nearer = [&](std::size_t place, std::size_t end, std::size_t other) {
    return mean_difference(by_seed, columns.last(place, other), columns.last(place, end));
  };
  report.verdicts = {
      below("transformer: k1 in the reward ends at the optimum: KL", distance(kReward, kOptimum),
            0.05),
      above("transformer: nearer to it than to the end of the tokens' own KL: by",
            nearer(kReward, kOptimum, kTokenReverse), 0),
      below("transformer: k2 in the loss ends at the optimum: KL", distance(kLossK2, kOptimum),
            0.05),
      below("transformer: it ends where each token pays for its own KL: KL",
            distance(kLossK2, kTokenReverse), 0.05),
      above("transformer: nearer to that than to the optimum: by",
            nearer(kLossK2, kTokenReverse, kOptimum), 0),
      below("transformer: k3 in the loss ends at the optimum: KL", distance(kLossK3, kOptimum),
            0.05),
      below("transformer: it ends at that of E r − β KL(π_ref ‖ π), token by token: KL",
            distance(kLossK3, kTokenForward), 0.05),
      above("transformer: nearer to that than to the optimum of the tokens: by",
            nearer(kLossK3, kTokenForward, kTokenReverse), 0),
      above("control, transformer: k1 in the loss holds nothing: KL to the optimum",
            distance(kLossK1, kOptimum), 0.3),
      below("control, transformer: and its entropy ends at: nats",
            mean(by_seed, columns.entropy(kLossK1)), 0.1)};
  return report;
}

}  // namespace prefopt::lab::neural_kl_placement
