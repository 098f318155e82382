// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <optional>
#include <ostream>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/plan_report.h"
#include "cli/run_config.h"
#include "cli/tables.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "decoder/decoder_config.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "run/plan/calibrate.h"
#include "run/plan/known_models.h"
#include "run/plan/memory_budget.h"
#include "run/plan/run_plan.h"
#include "run/resolve.h"
#include "run/run_loss.h"
#include "run/run_rows.h"
#include "train/step_plan.h"

namespace prefopt::cli {
namespace {

using detail::Json;
using detail::PlanAssumptions;

void put_model(const std::string& model, ModelOptions& options) {
  if (model.empty()) return;
  if (model.starts_with('{')) {
    read_fields([&](FieldVisitor& v) { options.decoder.fields(v); }, model, "--model");
    options.decoder = detail::checked_decoder_options(options.decoder, "--model");
    options.path.clear();
  } else if (const auto known = detail::known_model(model)) {
    options.decoder = *known;
    options.path.clear();
  } else {
    options.path = detail::followed(model);
    std::error_code ignored;
    if (std::filesystem::exists(options.path, ignored)) return;
    const std::vector<std::string> names = detail::known_models();
    throw ConfigError(fmt::format(
        "--model: expected a folder, a GGUF file, JSON of model.decoder or one of {}, got '{}'{}",
        fmt::join(names, ", "), model, detail::did_you_mean(model, {names.begin(), names.end()})));
  }
}

RunOptions planned_options(const PlanArguments& arguments, std::ostream& err) {
  std::vector<std::string> moves;
  RunOptions options = read_run_config(arguments.config, arguments.sets, moves);
  for (const std::string& move : moves) err << "prefopt: config: " << move << '\n';
  put_model(arguments.model, options.model);
  if (!arguments.data.empty()) options.data.train = arguments.data;
  if (!arguments.tokenizer.empty()) options.model.tokenizer = arguments.tokenizer;
  return options;
}

/// Takes what the config says of ranks; flags may say otherwise.
void put_distributed(const RanksOptions& options, PlanAssumptions& machine) {
  if (options.order == SumOrder::kTree) {
    throw ConfigError(
        "distributed.order: expected fast for a plan, got tree, whose sums are not planned");
  }
  machine.sharding = options.sharding;
  machine.bucket_mib = options.bucket_mib;
}

/// Returns a value as JSON has it; what is neither a number nor true or false is a text.
Json assumed_value(const std::string& text) {
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_number() || value.is_boolean() ? value : Json(text);
}

/// Puts what was given on the command line into `machine`.
void put_given(const PlanArguments& arguments, PlanAssumptions& machine) {
  for (const auto& [name, value] : arguments.assumptions) {
    const Json given = {{name, assumed_value(value)}};
    read_fields([&](FieldVisitor& v) { machine.fields(v); }, detail::dump_json(given),
                flag_of(name));
  }
}

PlanAssumptions assumptions_of(const PlanArguments& arguments) {
  if (!arguments.gpus) return {};
  if (*arguments.gpus < 1) {
    throw ConfigError(fmt::format("--gpus: expected 1 or more, got {}", *arguments.gpus));
  }
  if (arguments.assumptions.contains("ranks")) {
    throw ConfigError("--ranks: expected one of --ranks and --gpus, got both");
  }
  if (arguments.calibrate) {
    throw ConfigError("--calibrate: expected a plan for CPUs, which are measured, got --gpus");
  }
  return PlanAssumptions::of_gpus(*arguments.gpus);
}

/// Rows, and the name of the tokenizer that counts their tokens.
struct CountedRows {
  detail::RunRows rows;
  std::string tokenizer = {};
};

CountedRows rows_of(const PlanArguments& arguments, RunOptions& options, std::ostream& err) {
  if (arguments.lengths.empty()) {
    if (options.data.train.empty()) {
      throw ConfigError("--data: expected rows in it, in data.train or in --lengths, got none");
    }
    const auto note = [&](const std::string& line) { err << "prefopt: " << line << '\n'; };
    const auto tokenizer = detail::open_run_tokenizer(options.model);
    const RowNeeds needs = row_needs(detail::RunLoss(options.loss).requirements());
    return {detail::load_rows(options.data, *tokenizer, needs, note), tokenizer->name()};
  }
  if (!options.data.train.empty()) {
    throw ConfigError(fmt::format("--lengths: expected no rows of --data or data.train, got '{}'",
                                  options.data.train));
  }
  if (!arguments.tokenizer.empty()) {
    throw ConfigError("--tokenizer: expected rows, whose tokens it counts, got --lengths");
  }
  const std::vector<std::int64_t>& lengths = arguments.lengths;
  for (const std::int64_t length : lengths) {
    if (length >= 1) continue;
    throw ConfigError(
        fmt::format("--lengths: expected 1 token or more of each part, got {}", length));
  }
  return {
      .rows = {.train = detail::equal_rows(options.batch.rows, lengths[0], lengths[1], lengths[2]),
               .eval = {},
               .train_cut = {},
               .eval_cut = {}}};
}

/// Measures this machine on the first micro-batch; returns the spread of its runs.
double calibrate(RunOptions options, const detail::RunRows& rows, PlanAssumptions& machine) {
  if (!options.model.path.empty()) {
    options.model.decoder = detail::ModelShape::read(options.model.path, "float32").options();
  }
  if (options.machine.threads > 0) {
    at::set_num_threads(static_cast<int>(options.machine.threads));
  }
  TrainerOptions cuts;
  cuts.micro_batch_size =
      options.batch.micro_rows > 0 ? options.batch.micro_rows : options.batch.rows;
  cuts.micro_batch_tokens = options.batch.micro_tokens;
  const auto parts = detail::cut_micro_batches(rows.train, cuts);
  const detail::MeasuredSpeed speed = detail::measure_speed(options, parts.front());
  speed.put_into(machine);
  return speed.spread;
}

}  // namespace

void run_plan(const PlanArguments& arguments, std::ostream& out, std::ostream& err) {
  RunOptions options = planned_options(arguments, err);
  PlanAssumptions machine = assumptions_of(arguments);
  put_distributed(options.distributed, machine);
  put_given(arguments, machine);
  detail::RunModels::of(options, machine);  // refuses what cannot be planned before rows are read
  const auto [rows, tokenizer] = rows_of(arguments, options, err);
  detail::fit_memory(options, rows, machine,
                     [&](const std::string& line) { err << "prefopt: " << line << '\n'; });
  std::optional<double> spread;
  if (arguments.calibrate) {
    spread = calibrate(options, rows, machine);
    put_given(arguments, machine);  // what was given counts, not what was measured
  }
  detail::RunPlan plan = detail::plan_run(options, rows, machine, arguments.steps);
  plan.tokenizer = tokenizer;
  const PlanReport report{.plan = plan, .machine = machine, .spread = spread};
  if (arguments.json) {
    out << detail::dump_json(plan_to_json(report), 2) << '\n';
  } else {
    print_plan(report, out);
  }
}

}  // namespace prefopt::cli
