// SPDX-License-Identifier: Apache-2.0
#include "run/program_parts.h"

#include <fmt/format.h>

#include <filesystem>
#include <string_view>
#include <system_error>

#include "prefopt/error.h"

namespace prefopt::detail {

void check_program_options(const RunOptions& options) {
  const auto check = [](std::string_view group, const std::string& given,
                        const std::string& usual) {
    if (given == usual) return;
    throw ConfigError(fmt::format(
        "{}: expected no options where a program gives policy, reference and rows, got {}", group,
        given));
  };
  check("model", options_to_json(options.model), options_to_json(ModelOptions()));
  check("reference", options_to_json(options.reference), options_to_json(ReferenceOptions()));
  check("data", options_to_json(options.data), options_to_json(DataOptions()));
  check("online", options_to_json(options.online), options_to_json(OnlineOptions()));
  check("value", options_to_json(options.value), options_to_json(ValueModelOptions()));
  const RunOptions idle;
  const auto check_idle = [](std::string_view name, bool is_set) {
    if (!is_set) return;
    throw ConfigError(
        fmt::format("{}: expected its default where a program gives policy and rows, which it "
                    "would not reach, got another value",
                    name));
  };
  check_idle("batch.shuffle", options.batch.shuffle != idle.batch.shuffle);
  check_idle("machine.checkpointing", options.machine.checkpointing != idle.machine.checkpointing);
  check_idle("machine.activation_budget_mib",
             options.machine.activation_budget_mib != idle.machine.activation_budget_mib);
  check_idle("machine.memory_budget_mib", options.machine.memory_budget_mib > 0);
  check_idle("machine.activation_folder", !options.machine.activation_folder.empty());
}

void check_end_of_samples(const RunLoss& loss, const SamplingOptions& sampling) {
  const bool has_end = sampling.eos_id >= 0 || !sampling.extra_eos_ids.empty();
  if (loss.requirements().sample_source == SampleSource::kNone || has_end) return;
  throw ConfigError(fmt::format(
      "sampling.eos_id: expected the model's end token for samples of '{}', got none; a program "
      "that gives the policy says it",
      loss.name()));
}

void try_saving(Policy& policy, const std::string& folder, const Note& note) {
  const std::string trial = folder + ".trial";
  std::error_code ignored;
  std::filesystem::create_directories(trial, ignored);
  try {
    policy.save(trial);
    policy.load_weights(trial);
  } catch (const ConfigError& error) {
    note(fmt::format("resume: this run cannot be resumed: {}", error.what()));
  } catch (...) {
    std::filesystem::remove_all(trial, ignored);
    throw;
  }
  std::filesystem::remove_all(trial, ignored);
}

}  // namespace prefopt::detail
