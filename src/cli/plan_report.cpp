// SPDX-License-Identifier: Apache-2.0
#include "cli/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "cli/tables.h"
#include "prefopt/options.h"
#include "run/resolve.h"

namespace prefopt::cli {
namespace {

using detail::Collective;
using detail::DealingPlan;
using detail::Json;
using detail::MemoryPart;
using detail::RunPlan;
using detail::StepTime;
using detail::StepWork;
using Cells = std::vector<std::string>;

std::string bytes_text(std::int64_t bytes) {
  constexpr double kMebibyte = 1 << 20;
  const double mebibytes = static_cast<double>(bytes) / kMebibyte;
  return mebibytes < 1024 ? fmt::format("{:.1f} MiB", mebibytes)
                          : fmt::format("{:.2f} GiB", mebibytes / 1024);
}

std::string seconds_text(double seconds) {
  return seconds < 1 ? fmt::format("{:.1f} ms", seconds * 1e3) : fmt::format("{:.2f} s", seconds);
}

std::string flops_text(double flops) { return fmt::format("{:.4g} TFLOP", flops * 1e-12); }

void print_section(const std::vector<Cells>& rows, std::ostream& out) {
  std::vector<Cells> indented;
  for (Cells row : rows) {
    row.front().insert(0, "  ");
    indented.push_back(std::move(row));
  }
  print_table(indented, out);
}

void print_memory(const RunPlan& plan, std::ostream& out) {
  const detail::MemoryPlan& memory = plan.memory;
  const std::string room =
      memory.limit == 0 ? "; how much there is could not be read"
                        : fmt::format(", {} into {}", memory.fits() ? "fits" : "DOES NOT FIT",
                                      bytes_text(memory.limit));
  out << fmt::format("memory of a rank: {}{}\n", bytes_text(memory.total()), room);
  std::vector<Cells> rows;
  for (const MemoryPart& part : memory.parts) {
    rows.push_back({part.name, bytes_text(part.bytes), part.note});
  }
  for (const detail::ActivationLevel& level : plan.activations) {
    if (level.is_chosen) continue;
    rows.push_back({"  instead", bytes_text(level.bytes),
                    fmt::format("of activations with checkpointing {}",
                                detail::to_string(level.checkpointing))});
  }
  print_section(rows, out);
}

void print_work(const RunPlan& plan, std::ostream& out) {
  const StepWork& work = plan.work;
  const auto mean = [&](double sum) { return plan.mean(sum); };
  const auto tokens = [&](std::int64_t sum) {
    return fmt::format("{:.1f}", mean(static_cast<double>(sum)));
  };
  out << fmt::format("a step of all ranks, mean of {} of {}\n", plan.planned, plan.steps);
  print_section(
      {{"pairs", tokens(work.pairs), ""},
       {"total tokens", tokens(work.total_tokens), "inputs of all sequences"},
       {"unique tokens", tokens(work.unique_tokens), "with common beginnings once"},
       {"scored tokens", tokens(work.scored_tokens), "that the output head is applied to"},
       {"layers", flops_text(mean(work.layers.forward + work.layers.backward)),
        "forward and backward"},
       {"computed again", flops_text(mean(work.layers.recomputed + work.head_recomputed)),
        "by checkpointing, and of the head"},
       {"measured first", flops_text(mean(work.measured_first + work.head_measured_first)),
        "of a loss that sees the whole step"},
       {"output head", flops_text(mean(work.head)), ""},
       {"reference", flops_text(mean(work.reference_layers + work.reference_head)), ""},
       {"all", flops_text(mean(work.flops())), ""}},
      out);
}

void print_dealing(const RunPlan& plan, std::int64_t ranks, std::ostream& out) {
  out << fmt::format(
      "rows dealt to {} ranks: what the mean rank has of the slowest one's work, mean and least; "
      "ranks/imbalance\n",
      ranks);
  std::vector<Cells> rows;
  for (const DealingPlan& dealing : plan.dealing) {
    rows.push_back(
        {std::string(detail::to_string(dealing.rule)), fmt::format("{:.3f}", dealing.mean_share),
         fmt::format("{:.3f}", dealing.least_share), fmt::format("{:.3f}", dealing.imbalance)});
  }
  print_section(rows, out);
}

void print_collectives(const RunPlan& plan, std::ostream& out) {
  out << "collectives of a step\n";
  std::vector<Cells> rows{{"", "count", "bytes", "seconds"}};
  for (const Collective& one : plan.collectives) {
    rows.push_back({one.name, fmt::format("{:.0f}", one.count), fmt::format("{:.4g}", one.bytes),
                    seconds_text(one.seconds)});
  }
  print_section(rows, out);
}

void print_time(const PlanReport& report, std::ostream& out) {
  const RunPlan& plan = report.plan;
  const StepTime& time = plan.time;
  out << fmt::format(
      "time of a step: {}, {}\n", seconds_text(time.step()),
      report.spread ? fmt::format("computed from speeds measured here, by runs within {:.0f} %",
                                  100 * *report.spread)
                    : "computed from assumed speeds");
  std::vector<Cells> rows{{"layers", seconds_text(time.layers), ""},
                          {"output head", seconds_text(time.head), ""},
                          {"reference", seconds_text(time.reference), ""},
                          {"fixed", seconds_text(time.fixed), ""},
                          {"imbalance", seconds_text(time.imbalance), "longest first"},
                          {"collectives", seconds_text(time.exposed),
                           fmt::format("not hidden, of {}", seconds_text(time.collectives))},
                          {"optimizer", seconds_text(time.optimizer), ""},
                          {"pairs/s a rank", fmt::format("{:.4g}", plan.pairs_per_second), ""},
                          {"bottleneck", time.bottleneck(), ""}};
  rows.insert(rows.end() - 1, {"MFU", plan.mfu > 0 ? fmt::format("{:.3f}", plan.mfu) : "not known",
                               plan.mfu > 0 ? "" : "--peak-tflops says of what"});
  print_section(rows, out);
}

void print_assumptions(const detail::PlanAssumptions& machine, std::ostream& out) {
  out << fmt::format("assumptions of {}, each a flag\n", machine.gpu ? "GPUs" : "CPUs");
  std::vector<Cells> rows;
  for (const FieldDoc& field : describe_options(machine)) {
    std::string flag = field.name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    rows.push_back({"--" + flag, field.default_value, field.doc});
  }
  print_section(rows, out);
}

Json parts_to_json(const RunPlan& plan) {
  Json parts = Json::object();
  for (const MemoryPart& part : plan.memory.parts) parts[part.name] = part.bytes;
  return parts;
}

Json work_to_json(const RunPlan& plan) {
  const StepWork& work = plan.work;
  const auto mean = [&](auto sum) { return plan.mean(static_cast<double>(sum)); };
  return {{"pairs", mean(work.pairs)},
          {"sequences", mean(work.sequences)},
          {"total_tokens", mean(work.total_tokens)},
          {"unique_tokens", mean(work.unique_tokens)},
          {"scored_tokens", mean(work.scored_tokens)},
          {"flops",
           {{"layers_forward", mean(work.layers.forward)},
            {"layers_backward", mean(work.layers.backward)},
            {"layers_recomputed", mean(work.layers.recomputed)},
            {"measured_first", mean(work.measured_first + work.head_measured_first)},
            {"head", mean(work.head)},
            {"head_recomputed", mean(work.head_recomputed)},
            {"reference", mean(work.reference_layers + work.reference_head)},
            {"all", mean(work.flops())},
            {"useful", mean(work.useful_flops())}}}};
}

Json time_to_json(const RunPlan& plan) {
  const StepTime& time = plan.time;
  return {
      {"layers", time.layers},   {"head", time.head},           {"reference", time.reference},
      {"fixed", time.fixed},     {"imbalance", time.imbalance}, {"collectives", time.collectives},
      {"exposed", time.exposed}, {"optimizer", time.optimizer}, {"step", time.step()}};
}

}  // namespace

void print_plan(const PlanReport& report, std::ostream& out) {
  const RunPlan& plan = report.plan;
  out << fmt::format("model: {} parameters, {} trained\n", plan.parameters, plan.trained);
  out << (plan.tokenizer.empty()
              ? "tokens: of the given lengths\n"
              : fmt::format("tokens: as the tokenizer '{}' counts them\n", plan.tokenizer));
  print_memory(plan, out);
  print_work(plan, out);
  if (report.machine.ranks > 1) {
    print_dealing(plan, report.machine.ranks, out);
    print_collectives(plan, out);
  }
  print_time(report, out);
  print_assumptions(report.machine, out);
}

Json plan_to_json(const PlanReport& report) {
  const RunPlan& plan = report.plan;
  Json activations = Json::object();
  for (const detail::ActivationLevel& level : plan.activations) {
    activations[std::string(detail::to_string(level.checkpointing))] = level.bytes;
  }
  Json dealing = Json::object();
  for (const DealingPlan& one : plan.dealing) {
    dealing[std::string(detail::to_string(one.rule))] = {
        {"mean", one.mean_share}, {"least", one.least_share}, {"imbalance", one.imbalance}};
  }
  Json collectives = Json::array();
  for (const Collective& one : plan.collectives) {
    collectives.push_back(
        {{"name", one.name}, {"count", one.count}, {"bytes", one.bytes}, {"seconds", one.seconds}});
  }
  return {{"parameters", plan.parameters},
          {"tokenizer", plan.tokenizer.empty() ? Json() : Json(plan.tokenizer)},
          {"trained_parameters", plan.trained},
          {"steps", plan.steps},
          {"planned_steps", plan.planned},
          {"memory",
           {{"parts", parts_to_json(plan)},
            {"total", plan.memory.total()},
            {"limit", plan.memory.limit},
            {"fits", plan.memory.fits()},
            {"activations", activations},
            {"tokens", plan.most_tokens},
            {"head", plan.head.text()}}},
          {"step", work_to_json(plan)},
          {"micro_batches", plan.micro_batches},
          {"dealing", dealing},
          {"collectives", collectives},
          {"seconds", time_to_json(plan)},
          {"computed", !report.spread || report.machine.ranks > 1},
          {"spread", report.spread ? Json(*report.spread) : Json()},
          {"pairs_per_second_a_rank", plan.pairs_per_second},
          {"mfu", plan.mfu > 0 ? Json(plan.mfu) : Json(nullptr)},
          {"bottleneck", plan.time.bottleneck()},
          {"assumptions", detail::parse_json_or_throw<Json>(options_to_json(report.machine))}};
}

}  // namespace prefopt::cli
