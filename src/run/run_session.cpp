// SPDX-License-Identifier: Apache-2.0
#include "run/run_session.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "prefopt/error.h"
#include "run/environment.h"
#include "run/run_ranks.h"
#include "run/sample_table.h"

namespace prefopt::detail {
namespace {

/// Of what a checkpoint says of its run; the first version had no number.
constexpr int kIdentityVersion = 2;

TrainerOptions trainer_options(const RunOptions& options, std::int64_t total_steps,
                               const RolloutTraining& rollouts,
                               std::vector<NonFiniteStep>& non_finite,
                               const std::shared_ptr<Ranks>& ranks) {
  const auto micro = options.batch.micro_rows;
  return {
      .optimizer = options.optimizer,
      .total_steps = total_steps,
      // An evaluation is cut as well, or it would take more memory than a step.
      .micro_batch_size = micro > 0 ? micro : std::max(options.batch.rows, rollouts.completions),
      .micro_batch_tokens = options.batch.micro_tokens,
      .evaluation_batch_size = options.batch.rows,
      .head_budget_bytes = options.machine.head_budget_mib << 20,
      .sampling = options.sampling,
      .temperature = rollouts.temperature,
      .imitation_coefficient =
          options.online.imitate.data.empty() ? 0 : options.online.imitate.coefficient,
      .value_model = rollouts.value_model,
      .value_optimizer = options.value.optimizer,
      .value_pretrain_steps = options.value.pretrain_steps,
      .on_non_finite = [&](const NonFiniteStep& step) { non_finite.push_back(step); },
      .ranks = ranks};
}

}  // namespace

void RunSession::claim(const RunOptions& options, const std::string& resume) {
  const auto found = meeting_.from_first([&] {
    const auto point = find(options, resume);
    return point ? dump_json({{"checkpoint", point->checkpoint}, {"in_place", point->is_in_place}})
                 : "";
  });
  if (found.empty()) return;
  const Json point = parse_json<ConfigError>(found, "resume");
  from_ = {point.at("checkpoint").get<std::string>(), point.at("in_place").get<bool>()};
}

/// Returns the point, and locks the folder where it is the run's own.
std::optional<ResumePoint> RunSession::find(const RunOptions& options, const std::string& resume) {
  if (resume.empty()) {
    folder_.check_new();
    return std::nullopt;
  }
  is_here_ = resumes_here(resume, folder_);
  if (is_here_) {
    folder_.check_run_or_new(
        {options.reference.cache_dir, folder_.file("reference-cache"), options.data.token_cache});
    std::error_code ignored;
    if (std::filesystem::is_directory(folder_.path(), ignored)) folder_.lock();
  }
  return find_resume_point(resume, folder_, note_);
}

RunResult RunSession::run(const std::shared_ptr<Policy>& policy,
                          const std::shared_ptr<Reference>& reference, RowSource& source,
                          const RunOptions& options, const RunLoss& loss, const Json& contents,
                          std::int64_t planned_steps, const RolloutTraining& rollouts,
                          const FilesLater* companions) {
  const std::int64_t total_steps =
      planned_steps > 0 ? planned_steps : count_steps(options.batch, source.rows_an_epoch());
  std::vector<NonFiniteStep> non_finite;
  check_same_contents(contents, options, meeting_);
  const auto made = loss.make_trainer(
      policy, reference,
      trainer_options(options, total_steps, rollouts, non_finite, meeting_.ranks()));
  Trainer& trainer = *made;

  RunPromptCache prompts(options.machine.prompt_cache_mib);
  Json config = parse_json<ConfigError>(options_to_json(options), "run");
  for (const char* group : {"model", "reference", "data"}) {
    if (companions == nullptr) config[group] = Json::object();
  }
  const auto size = count_parameters(*policy);
  const Json facts = {{"train_rows", source.rows_an_epoch()},
                      {"eval_rows", source.held_out().rows.size()},
                      {"total_steps", total_steps},
                      {"parameters", size.all},
                      {"trained_parameters", size.trained}};
  RunLoop loop(
      {.options = options,
       .source = source,
       .trainer = trainer,
       .reference = reference.get(),
       .folder = folder_,
       .log = log_,
       .samples = SampleTable(source, options.sampling,
                              {loss.requirements().of_rewards ? 0 : options.evaluate.sample_prompts,
                               options.evaluate.sample_tokens}),
       .prompts = prompts,
       .events = events_,
       .note = note_,
       .meeting = meeting_,
       .identity = {{"version", kIdentityVersion},
                    {"config", config},
                    {"contents", contents},
                    {"ranks", meeting_.size()}},
       .non_finite = non_finite,
       .companions = companions == nullptr ? FilesLater([] { return FolderFiles(); }) : *companions,
       .total_steps = total_steps});
  if (from_) loop.load(*from_);
  loop.evaluate_first();
  Json machine = environment();
  add_ranks(machine, meeting_);
  const auto kept = meeting_.from_first([&] {
    const auto [seconds, step] = open(loop, config, machine, facts, trainer.steps_done());
    return dump_json({{"seconds", seconds}, {"logged_step", step}});
  });
  const Json said = parse_json<CheckpointError>(kept, "run");
  loop.count_from({.seconds = said.at("seconds"), .logged_step = said.at("logged_step")});

  RunResult result;
  result.policy = policy;
  try {
    loop.train(result);
  } catch (const std::exception& error) {
    log_.stop(error.what());
    throw;
  }
  if (reference) reference->flush();
  if (const std::string summary = prompts.summary(); !summary.empty()) note_(summary);
  meeting_.on_first([&] { log_.finish(!result.stopped); });
  result.seconds = watch_.seconds();
  return result;
}

RunFolder::Kept RunSession::open(RunLoop& loop, const Json& config, const Json& environment,
                                 const Json& facts, std::int64_t start) {
  const bool was_locked = folder_.is_locked();
  folder_.lock();
  // Once more: another run may have come and gone while this one loaded its model.
  if (!is_here_ || !was_locked) folder_.check_new();
  const bool is_in_place = from_ && from_->is_in_place;
  RunFolder::Kept kept;
  if (is_in_place) {
    kept = folder_.resume(config, environment, start, loop.evaluation_is_due(), note_);
    folder_.checkpoints().link("last", start);
    folder_.checkpoints().link_best(loop.selection().best_steps());
  } else {
    if (const auto before = folder_.config()) {
      check_same_config(*before, config, folder_.path());
    }
    folder_.start(config, environment);
    // Of RUN/checkpoints/step-N; a checkpoint that was copied out of its run says nothing of it.
    const auto parent = std::filesystem::path(from_ ? from_->checkpoint : "").parent_path();
    if (parent.filename() == "checkpoints") {
      kept.seconds = seconds_by(parent.parent_path().string(), start);
    }
  }
  log_.start(config, facts, is_in_place ? std::optional(start) : std::nullopt,
             loop.evaluation_is_due());
  return kept;
}

}  // namespace prefopt::detail
