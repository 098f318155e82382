// SPDX-License-Identifier: Apache-2.0
#include "prefopt/run/run.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "run/environment.h"
#include "run/program_parts.h"
#include "run/resolve.h"
#include "run/resume.h"
#include "run/run_folder.h"
#include "run/run_log.h"
#include "run/run_loop.h"
#include "run/run_loss.h"
#include "run/sample_table.h"
#include "train/row_fingerprint.h"

namespace prefopt {

using detail::Json;
using detail::Note;
using detail::RunFolder;
using detail::RunLog;

namespace {

/// Of what a checkpoint says of its run; the first version had no number.
constexpr int kIdentityVersion = 2;

/// The folder of a run, its log, and the point that it is resumed from.
class RunSession {
 public:
  RunSession(std::string folder, const RunEvents& events)
      : log_(folder), folder_(std::move(folder)), events_(events), note_([this](const auto& line) {
          log_.note(line);
          if (events_.note) events_.note(line);
        }) {}
  RunSession(const RunSession&) = delete;
  RunSession& operator=(const RunSession&) = delete;

  const Note& note() const { return note_; }

  /// Finds the point that `resume` names. Throws ConfigError for a folder that is not the run's.
  void claim(const RunOptions& options, const std::string& resume);
  /// `contents`: of check_same_run. `planned_steps`: the most steps of a source of rounds; 0:
  /// options and epochs say how many. `rollouts`: of an objective on tokens.
  /// `companions`: of a run from files; null: of a program's own
  /// policy and rows, of which the options say nothing.
  RunResult run(const std::shared_ptr<Policy>& policy, const std::shared_ptr<Reference>& reference,
                RowSource& source, const RunOptions& options, const detail::RunLoss& loss,
                const Json& contents, std::int64_t planned_steps,
                const detail::RolloutTraining& rollouts, const FolderFiles* companions = nullptr);

 private:
  /// Locks the folder, and writes or takes up the files of the run.
  void open(detail::RunLoop& loop, const Trainer& trainer, const Json& config, const Json& facts);

  detail::Stopwatch watch_;
  RunLog log_;
  RunFolder folder_;
  const RunEvents& events_;
  Note note_;
  std::optional<detail::ResumePoint> from_;
  bool is_here_ = false;  ///< whether the run is resumed in its own folder
};

/// The scales of a model's adapter, which are in none of its matrices: one where all are the same;
/// null without an adapter.
Json adapter_scale(const Policy& policy) {
  std::vector<double> scales;
  for (const TrainedWeight& weight : policy.trained_weights()) {
    if (weight.lora_b.defined()) scales.push_back(weight.lora_scale);
  }
  if (scales.empty()) return nullptr;
  const bool is_one = std::count(scales.begin(), scales.end(), scales[0]) == std::ssize(scales);
  return is_one ? Json(scales[0]) : Json(scales);
}

/// Hashes of rows and models, whatever paths the options name. The scale of an adapter is among
/// them `with_scale`: where no option holds it.
Json contents_of(const RowSource& source, const Policy& policy, Reference* reference,
                 bool with_scale) {
  Json contents = {{"train_rows", source.fingerprint()},
                   {"eval_rows", detail::fingerprint_of(source.held_out().rows)},
                   {"model", detail::fingerprint_of(policy)}};
  if (const Json scale = adapter_scale(policy); with_scale && !scale.is_null()) {
    contents["adapter_scale"] = scale;
  }
  if (reference != nullptr && reference->policy() != nullptr) {
    contents["reference"] = detail::fingerprint_of(*reference->policy());
    if (const Json scale = adapter_scale(*reference->policy()); !scale.is_null()) {
      contents["reference_scale"] = scale;
    }
  }
  return contents;
}

TrainerOptions trainer_options(const RunOptions& options, std::int64_t total_steps,
                               const detail::RolloutTraining& rollouts,
                               std::vector<NonFiniteStep>& non_finite) {
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
      .on_non_finite = [&](const NonFiniteStep& step) { non_finite.push_back(step); }};
}

void set_threads_and_seed(const RunOptions& options) {
  const auto threads = static_cast<int>(options.machine.threads);
  if (threads > 0) at::set_num_threads(threads);
  at::manual_seed(static_cast<std::uint64_t>(options.seed));
}

}  // namespace

RunResult run_training(const RunOptions& given, const RunEvents& events,
                       const std::string& resume) {
  RunOptions options = checked(given, "run");
  detail::check_reference(options.reference, options.online.is_online());
  const detail::RunLoss loss(options.loss);
  options.loss = loss.config();
  RunSession session(options.output_dir, events);
  session.claim(options, resume);
  set_threads_and_seed(options);
  const auto run = detail::resolve(std::move(options), loss, events, session.note());
  const ReferenceOptions& of = run.options.reference;
  // A reference without a path or an adapter is made from the policy.
  Reference* const told = of.path.empty() && of.adapter.empty() ? nullptr : run.reference.get();
  return session.run(
      run.policy, run.reference, *run.source, run.options, loss,
      contents_of(*run.source, *run.policy, told, !run.options.model.adapter.empty()),
      run.planned_steps, run.rollouts, &run.companions);
}

RunResult run(const std::shared_ptr<Policy>& policy, const std::shared_ptr<Reference>& reference,
              const std::shared_ptr<RowSource>& source, const RunOptions& given,
              const RunEvents& events, const std::string& resume) {
  if (!policy || !source) throw ConfigError("run: expected a policy and a row source, got null");
  RunOptions options = checked(given, "run");
  detail::check_program_options(options);
  const detail::RunLoss loss(options.loss);
  options.loss = loss.config();
  const auto& held_out = source->held_out().rows;
  detail::check_evaluations(options.evaluate, !held_out.empty());
  detail::check_token_range(held_out, policy->vocab_size(), "held-out rows");
  detail::check_row_lengths(held_out, *policy, "held-out rows");
  detail::check_end_of_samples(loss, options.sampling);
  RunSession session(options.output_dir, events);
  session.claim(options, resume);
  set_threads_and_seed(options);
  detail::note_idle_evaluations(options.evaluate, source->evaluates(), session.note());
  detail::try_saving(*policy, options.output_dir, session.note());
  return session.run(policy, reference, *source, options, loss,
                     contents_of(*source, *policy, reference.get(), /*with_scale=*/true),
                     /*planned_steps=*/0, {.temperature = options.sampling.temperature});
}

namespace {

void RunSession::claim(const RunOptions& options, const std::string& resume) {
  if (resume.empty()) {
    folder_.check_new();
    return;
  }
  is_here_ = detail::resumes_here(resume, folder_);
  if (is_here_) {
    folder_.check_run_or_new(
        {options.reference.cache_dir, folder_.file("reference-cache"), options.data.token_cache});
    std::error_code ignored;
    if (std::filesystem::is_directory(folder_.path(), ignored)) folder_.lock();
  }
  from_ = detail::find_resume_point(resume, folder_, note_);
}

RunResult RunSession::run(const std::shared_ptr<Policy>& policy,
                          const std::shared_ptr<Reference>& reference, RowSource& source,
                          const RunOptions& options, const detail::RunLoss& loss,
                          const Json& contents, std::int64_t planned_steps,
                          const detail::RolloutTraining& rollouts, const FolderFiles* companions) {
  const std::int64_t total_steps = planned_steps > 0
                                       ? planned_steps
                                       : detail::count_steps(options.batch, source.rows_an_epoch());
  std::vector<NonFiniteStep> non_finite;
  const auto made = loss.make_trainer(policy, reference,
                                      trainer_options(options, total_steps, rollouts, non_finite));
  Trainer& trainer = *made;

  Json config = detail::parse_json<ConfigError>(options_to_json(options), "run");
  for (const char* group : {"model", "reference", "data"}) {
    if (companions == nullptr) config[group] = Json::object();
  }
  const auto size = detail::count_parameters(*policy);
  const Json facts = {{"train_rows", source.rows_an_epoch()},
                      {"eval_rows", source.held_out().rows.size()},
                      {"total_steps", total_steps},
                      {"parameters", size.all},
                      {"trained_parameters", size.trained}};
  detail::RunLoop loop(
      {.options = options,
       .source = source,
       .trainer = trainer,
       .reference = reference.get(),
       .folder = folder_,
       .log = log_,
       .samples = detail::SampleTable(
           source, options.sampling,
           {loss.requirements().of_rewards ? 0 : options.evaluate.sample_prompts,
            options.evaluate.sample_tokens}),
       .events = events_,
       .note = note_,
       .identity = {{"version", kIdentityVersion}, {"config", config}, {"contents", contents}},
       .non_finite = non_finite,
       .companions = companions == nullptr ? FolderFiles() : *companions,
       .total_steps = total_steps});
  if (from_) loop.load(*from_);
  loop.evaluate_first();
  open(loop, trainer, config, facts);

  RunResult result;
  result.policy = policy;
  try {
    loop.train(result);
  } catch (const std::exception& error) {
    log_.stop(error.what());
    throw;
  }
  if (reference) reference->flush();
  log_.finish(!result.stopped);
  result.seconds = watch_.seconds();
  return result;
}

void RunSession::open(detail::RunLoop& loop, const Trainer& trainer, const Json& config,
                      const Json& facts) {
  const bool was_locked = folder_.is_locked();
  folder_.lock();
  // Once more: another run may have come and gone while this one loaded its model.
  if (!is_here_ || !was_locked) folder_.check_new();
  const bool is_in_place = from_ && from_->is_in_place;
  const std::int64_t start = trainer.steps_done();
  if (is_in_place) {
    loop.count_from(
        folder_.resume(config, detail::environment(), start, loop.evaluation_is_due(), note_));
    folder_.checkpoints().link("last", start);
    folder_.checkpoints().link_best(loop.selection().best_steps());
  } else {
    if (const auto before = folder_.config()) {
      detail::check_same_config(*before, config, folder_.path());
    }
    folder_.start(config, detail::environment());
    // Of RUN/checkpoints/step-N; a checkpoint that was copied out of its run says nothing of it.
    const auto parent = std::filesystem::path(from_ ? from_->checkpoint : "").parent_path();
    if (parent.filename() == "checkpoints") {
      loop.count_from(detail::seconds_by(parent.parent_path().string(), start));
    }
  }
  log_.start(config, facts, is_in_place ? std::optional(start) : std::nullopt,
             loop.evaluation_is_due());
}

}  // namespace

}  // namespace prefopt
