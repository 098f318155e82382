// SPDX-License-Identifier: Apache-2.0
#include "cli/evaluation_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>
#include <utility>

#include "core/chart.h"
#include "core/json.h"

namespace prefopt::cli {
namespace {

using detail::Json;

// A cell is empty where a model has no such value.
std::string percent(const Estimate& estimate) {
  if (std::isnan(estimate.mean)) return "-";
  return fmt::format("{:.1f} % ({:.1f} to {:.1f})", 100 * estimate.mean, 100 * estimate.low,
                     100 * estimate.high);
}

std::string number(const Estimate& estimate) {
  if (std::isnan(estimate.mean)) return "-";
  return fmt::format("{:.4f} ({:.4f} to {:.4f})", estimate.mean, estimate.low, estimate.high);
}

std::string rate_among(const PartialRate& part) {
  if (part.pairs == 0) return "-";
  return fmt::format("{} of {}", percent(part.rate), part.pairs);
}

std::size_t width_of(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(
      utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) >> 6) != 2; }));
}

/// Rows of cells, each column as wide as its widest cell.
class Table {
 public:
  explicit Table(const std::vector<ModelReport>& models) : models_(models) {
    std::vector<std::string> names{""};
    for (std::size_t i = 0; i < models.size(); ++i) names.push_back(fmt::format("[{}]", i + 1));
    rows_.push_back(std::move(names));
  }

  /// Leaves the row out where no model has a value.
  void add(const std::string& label, const std::function<std::string(const ModelReport&)>& cell) {
    std::vector<std::string> row{label};
    for (const ModelReport& model : models_) row.push_back(cell(model));
    const bool is_empty = std::all_of(row.begin() + 1, row.end(),
                                      [](const std::string& text) { return text.empty(); });
    if (!is_empty) rows_.push_back(std::move(row));
  }

  std::string text() const {
    std::vector<std::size_t> widths(rows_.front().size());
    for (const auto& row : rows_) {
      for (std::size_t i = 0; i < row.size(); ++i) {
        widths[i] = std::max(widths[i], width_of(row[i]));
      }
    }
    std::string text;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        line += row[i] + std::string(widths[i] - width_of(row[i]) + 2, ' ');
      }
      text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
  }

 private:
  const std::vector<ModelReport>& models_;
  std::vector<std::vector<std::string>> rows_;
};

void add_preferences(Table& table) {
  const auto of = [](auto&& cell) {
    return [cell](const ModelReport& model) -> std::string { return cell(model.preferences); };
  };
  using P = const PreferenceEvaluation&;
  table.add("accuracy", of([](P p) { return percent(p.accuracy); }));
  table.add("  ties", of([](P p) { return fmt::format("{} of {}", p.ties, p.pairs); }));
  table.add("  chosen shorter", of([](P p) { return rate_among(p.shorter); }));
  table.add("  as long", of([](P p) { return rate_among(p.as_long); }));
  table.add("  chosen longer", of([](P p) { return rate_among(p.longer); }));
  table.add("margin", of([](P p) { return number(p.margin); }));
  table.add("  with length", of([](P p) { return number(p.length_correlation); }));
  table.add("reward of chosen", of([](P p) { return number(p.chosen_reward); }));
  table.add("reward of rejected", of([](P p) { return number(p.rejected_reward); }));
  table.add("calibration error",
            of([](P p) { return fmt::format("{:.4f}", p.calibration.expected_error); }));
  table.add("log loss, nats",
            of([](P p) { return fmt::format("{:.4f}", p.calibration.log_loss); }));
}

void add_samples(Table& table) {
  const auto of_kl = [](auto&& cell) {
    return
        [cell](const ModelReport& model) -> std::string { return model.kl ? cell(*model.kl) : ""; };
  };
  const auto of_contests = [](auto&& cell) {
    return [cell](const ModelReport& model) -> std::string {
      return model.contests ? cell(*model.contests) : "";
    };
  };
  using K = const SampledKl&;
  using C = const ContestResult&;
  table.add("KL(π‖π_ref), nats", of_kl([](K kl) { return number(kl.kl); }));
  table.add("  of completions", of_kl([](K kl) {
              return fmt::format("{}, {} without an end, {:.1f} tokens", kl.samples, kl.unfinished,
                                 kl.mean_length);
            }));
  table.add("win rate", of_contests([](C c) { return percent(c.win_rate); }));
  table.add("  wins, ties, losses",
            of_contests([](C c) { return fmt::format("{}, {}, {}", c.wins, c.ties, c.losses); }));
  table.add("  verdicts by order",
            of_contests([](C c) { return fmt::format("{} of {}", c.inconsistent, c.contests); }));
  const auto maybe = [](const std::optional<Estimate>& value) {
    return value ? number(*value) : "";
  };
  table.add("reward of samples", [&](const ModelReport& m) { return maybe(m.reward); });
  table.add("  of the reference", [&](const ModelReport& m) { return maybe(m.reference_reward); });
}

// Where the curve of a model leaves the diagonal.
std::string reliability_table(const EvaluationReport& report) {
  std::string text;
  for (std::size_t i = 0; i < report.models.size(); ++i) {
    text += fmt::format("\nreliability of [{}]: confidence, pairs, accuracy\n", i + 1);
    for (const ReliabilityBin& bin : report.models[i].preferences.calibration.bins) {
      text += fmt::format("  {:.2f} to {:.2f}  mean {:.3f}  {:>6}  {}\n", bin.low, bin.high,
                          bin.confidence, bin.count, percent(bin.accuracy));
    }
  }
  return text;
}

Json json_of(const Estimate& estimate) {
  return {{"mean", estimate.mean}, {"low", estimate.low}, {"high", estimate.high}};
}

Json json_of(const PartialRate& part) {
  return {{"pairs", part.pairs}, {"accuracy", json_of(part.rate)}};
}

Json json_of(const CalibrationCurve& calibration) {
  Json bins = Json::array();
  for (const ReliabilityBin& bin : calibration.bins) {
    bins.push_back({{"low", bin.low},
                    {"high", bin.high},
                    {"count", bin.count},
                    {"confidence", bin.confidence},
                    {"accuracy", json_of(bin.accuracy)}});
  }
  return {{"expected_error", calibration.expected_error},
          {"maximum_error", calibration.maximum_error},
          {"log_loss", calibration.log_loss},
          {"brier_score", calibration.brier_score},
          {"bins", std::move(bins)}};
}

Json json_of(const ModelReport& model) {
  const PreferenceEvaluation& preferences = model.preferences;
  Json json{{"model", model.model},
            {"pairs", preferences.pairs},
            {"accuracy", json_of(preferences.accuracy)},
            {"ties", preferences.ties},
            {"margin", json_of(preferences.margin)},
            {"chosen_reward", json_of(preferences.chosen_reward)},
            {"rejected_reward", json_of(preferences.rejected_reward)},
            {"calibration", json_of(preferences.calibration)},
            {"length",
             {{"correlation", json_of(preferences.length_correlation)},
              {"chosen_shorter", json_of(preferences.shorter)},
              {"as_long", json_of(preferences.as_long)},
              {"chosen_longer", json_of(preferences.longer)}}}};
  if (model.loss) json["loss"] = *model.loss;
  if (const auto& kl = model.kl) {
    json["kl"] = json_of(kl->kl);
    json["samples"] = {
        {"count", kl->samples}, {"unfinished", kl->unfinished}, {"mean_length", kl->mean_length}};
  }
  if (const auto& contests = model.contests) {
    json["win_rate"] = json_of(contests->win_rate);
    json["contests"] = {{"count", contests->contests},
                        {"wins", contests->wins},
                        {"ties", contests->ties},
                        {"losses", contests->losses},
                        {"inconsistent", contests->inconsistent}};
  }
  if (model.reward) {
    json["reward"] = json_of(*model.reward);
    json["reference_reward"] = json_of(*model.reference_reward);
  }
  return json;
}

}  // namespace

std::string to_table(const EvaluationReport& report) {
  std::string text =
      report.reference.empty()
          ? fmt::format("{}, reward models; 95 % intervals in brackets\n", report.data)
          : fmt::format("{} against {}, beta {}; 95 % intervals in brackets\n", report.data,
                        report.reference, report.beta);
  for (std::size_t i = 0; i < report.models.size(); ++i) {
    text += fmt::format("[{}] {}\n", i + 1, report.models[i].model);
  }
  Table table(report.models);
  add_preferences(table);
  add_samples(table);
  table.add("loss", [](const ModelReport& model) {
    return model.loss ? fmt::format("{:.4f}", *model.loss) : "";
  });
  return text + "\n" + table.text() + reliability_table(report);
}

std::string to_json(const EvaluationReport& report) {
  Json models = Json::array();
  for (const ModelReport& model : report.models) models.push_back(json_of(model));
  const bool of_rewards = report.reference.empty();
  return detail::dump_json({{"reference", of_rewards ? Json() : Json(report.reference)},
                            {"data", report.data},
                            {"beta", report.beta},
                            {"models", std::move(models)}});
}

std::string reliability_chart(const EvaluationReport& report) {
  detail::Chart chart{.title = "How often the preferred completion is the more probable one",
                      .x_label = "confidence of the model",
                      .y_label = "accuracy"};
  chart.series.push_back({.name = "calibrated", .xs = {0.5, 1}, .ys = {0.5, 1}});
  for (const ModelReport& model : report.models) {
    detail::Series series{.name = model.model, .style = detail::Series::Style::kLineAndPoints};
    for (const ReliabilityBin& bin : model.preferences.calibration.bins) {
      series.xs.push_back(bin.confidence);
      series.ys.push_back(bin.accuracy.mean);
      series.low.push_back(bin.accuracy.low);
      series.high.push_back(bin.accuracy.high);
    }
    chart.series.push_back(std::move(series));
  }
  return detail::to_svg(chart);
}

}  // namespace prefopt::cli
