// SPDX-License-Identifier: Apache-2.0
#include "run/run_loop.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "core/text.h"
#include "dist/gathering_ranks.h"
#include "prefopt/error.h"
#include "train/metrics.h"

namespace prefopt::detail {
namespace {

/// The beginning of an evaluation's metrics in metrics.jsonl.
constexpr std::string_view kEvalPrefix = "eval_";

void add_all(Metrics& metrics, const Metrics& more) {
  metrics.insert(metrics.end(), more.begin(), more.end());
}

}  // namespace

RunLoop::RunLoop(LoopParts parts)
    : parts_(std::move(parts)),
      state_{.selection = Selection(options().evaluate.best_metric, options().checkpoint.keep_best,
                                    options().evaluate.patience)} {}

// The loop, in order of use.

void RunLoop::train(RunResult& result) {
  try {
    take_steps();
    parts_.meeting.wait();  // where another rank has failed since
  } catch (const std::exception&) {
    const std::exception_ptr error = parts_.meeting.settle(std::current_exception());
    save_after_failure();
    std::rethrow_exception(error);
  }
  result.checkpoint = saved_.second;
  result.steps = steps_done();
  result.stopped = !is_done();
  result.last_step = state_.last_step;
  result.first_evaluation = state_.first_evaluation;
  result.last_evaluation = state_.last_evaluation;
}

void RunLoop::take_steps() {
  tokens_logged_ = static_cast<double>(parts_.trainer.tokens_seen());
  if (before_training_) {
    record(*before_training_);
    parts_.source.finish_evaluation();
    state_.first_evaluation = state_.last_evaluation = before_training_->metrics;
    before_training_.reset();
    // A name that it does not have does not lose the work of the evaluation.
    if (!find_metric(state_.first_evaluation, best_name())) save();
    check_name(state_.first_evaluation);
  }
  if (is_resumed_ && log_is_due()) log_step();
  if (is_resumed_ && state_.evaluation_is_due && !asked_to_stop()) evaluate_and_judge();
  while (!is_done() && !asked_to_stop()) take_step();
  if (is_done() && state_.window.steps() > 0) log_step();  // of a run that its patience ended
  const bool has_begun = is_resumed_ || steps_done() > 0;
  if (has_begun && saved_.first != steps_done()) save();
}

void RunLoop::take_step() {
  if (!take_update()) return evaluate_late_end();
  const std::int64_t step = steps_done();
  if (parts_.events.step) parts_.events.step(step, parts_.total_steps, state_.last_step);
  if (log_is_due()) log_step();
  const bool save_due = options().checkpoint.every > 0 && step % options().checkpoint.every == 0;
  // Before an evaluation, which may fail or be killed for its memory.
  if (save_due || (is_done() && state_.evaluation_is_due)) save();
  if (state_.evaluation_is_due) evaluate_and_judge();
}

/// Returns false where the source has ended a round, or itself, instead.
bool RunLoop::take_update() {
  const std::int64_t before = steps_done();
  const at::Tensor generator = generator_state();
  StepRows rows;
  Stopwatch watch;
  Metrics metrics;
  try {
    rows = parts_.source.next(parts_.trainer.policy());
    parts_.meeting.wait();
    if (rows.rows.empty()) {
      skip_round(rows);
      return false;
    }
    check_rows(rows);
    if (rows.restarts_optimizer) parts_.trainer.restart_optimizer();
    watch = {};
    metrics = parts_.trainer.step(rows.rows);
  } catch (const NonFiniteError& error) {
    // It counts as a step where the trainer has counted it.
    const bool is_counted = steps_done() != before;
    if (is_counted) {
      step_seconds_ += watch.seconds();
      add_step(rows, parts_.non_finite.empty() ? Metrics() : parts_.non_finite.back().metrics);
    } else {
      set_generator_state(generator);
    }
    const std::string bundle = write_bundle(rows, /*ends_the_run=*/true);
    if (is_counted) log_step();
    throw NonFiniteError(bundle.empty() ? error.what()
                                        : fmt::format("{}; see {}", error.what(), bundle));
  } catch (...) {
    is_torn_ = steps_done() != before;
    set_generator_state(generator);
    throw;
  }
  step_seconds_ += watch.seconds();
  parts_.prompts.finish_step();
  add_step(rows, std::move(metrics));
  const bool is_skipped = find_metric(state_.last_step, "skipped").has_value();
  if (!is_skipped) last_update_ = steps_done();
  const std::string bundle = write_bundle(rows, /*ends_the_run=*/false);
  if (is_skipped) {
    parts_.note(fmt::format("step {}: loss or gradient is not finite, its update is skipped{}",
                            steps_done(), bundle.empty() ? "" : "; see " + bundle));
  }
  return true;
}

/// Writes down a round without a step.
void RunLoop::skip_round(const StepRows& rows) {
  if (!rows.round.empty()) {
    parts_.log.round(steps_done(), rows.round);
  } else if (!parts_.source.is_done()) {
    throw ConfigError(
        "row source: expected rows, the record of a round without rows, or an end, got neither");
  }
}

/// Throws ConfigError for rows that the run would tell wrongly of.
void RunLoop::check_rows(const StepRows& rows) const {
  if (!rows.numbers.empty() && rows.numbers.size() != rows.rows.size()) {
    throw ConfigError(fmt::format("row source: expected as many numbers as rows, got {} and {}",
                                  rows.numbers.size(), rows.rows.size()));
  }
  if (parts_.source.rows_an_epoch() > 0 && std::ssize(rows.rows) != options().batch.rows) {
    throw ConfigError(
        fmt::format("batch.rows: expected the rows that a step of the source has, {}, got {}",
                    rows.rows.size(), options().batch.rows));
  }
}

/// Counts a step that the trainer has taken on these rows.
void RunLoop::add_step(const StepRows& rows, Metrics metrics) {
  const std::int64_t step = steps_done();
  is_torn_ = true;  // until the rows have moved on as well
  parts_.source.finish_step();
  is_torn_ = false;
  for (const auto& [name, value] : rows.metrics) {
    if (name != "skipped" && !find_metric(metrics, name)) continue;
    throw ConfigError(fmt::format(
        "row source: expected metrics that a step does not have itself, got '{}'", name));
  }
  const std::int64_t every = options().evaluate.every;
  const bool eval_due = every > 0 ? step % every == 0 : rows.ends_round;
  state_.evaluation_is_due = parts_.source.evaluates() && (eval_due || is_last_step());
  parts_.log.set_step(step);
  if (!rows.round.empty()) parts_.log.round(step, rows.round);
  add_all(metrics, rows.metrics);
  state_.last_step = std::move(metrics);
  state_.window.add(state_.last_step, parts_.trainer.step_counts());
}

/// Returns the folder; empty where the trainer has reported nothing, or where there are enough.
std::string RunLoop::write_bundle(const StepRows& rows, bool ends_the_run) {
  if (parts_.non_finite.empty()) return "";
  const NonFiniteStep report = std::move(parts_.non_finite.back());
  parts_.non_finite.clear();
  if (!writes()) return "";
  std::vector<std::int64_t> numbers = rows.numbers;
  if (numbers.empty()) {
    numbers.resize(rows.rows.size());
    std::iota(numbers.begin(), numbers.end(), 0);
  }
  const std::string folder = parts_.folder.write_non_finite(report, numbers, ends_the_run);
  if (folder.empty() && !full_noted_) {
    full_noted_ = true;
    parts_.note(
        fmt::format("nonfinite: {} steps are written down; step {} and later ones are not, but for "
                    "one that ends the run",
                    RunFolder::kMostNonFinite, report.step));
  }
  return folder;
}

/// Whether a rank is asked to stop.
bool RunLoop::asked_to_stop() {
  const bool is_asked = parts_.events.should_stop && parts_.events.should_stop();
  return !parts_.meeting.all(!is_asked);
}

bool RunLoop::is_done() const { return is_last_step() || state_.selection.is_exhausted(); }

bool RunLoop::is_last_step() const {
  const bool is_planned_end = !parts_.source.ends_itself() && steps_done() >= parts_.total_steps;
  return is_planned_end || parts_.source.is_done();
}

// Evaluations.

void RunLoop::evaluate_first() {
  saved_run().check_names();
  if (!parts_.source.evaluates() || is_done()) return;
  if (!is_resumed_) {
    if (asked_to_stop()) return;
    before_training_ = measure();
  } else if (state_.first_evaluation.empty() ||
             (best_name() == "kl" && !parts_.samples.gives_kl(reference_model()))) {
    // The run may have had samples so far.
    check_name(measure_loss());
  } else {
    check_name(state_.first_evaluation);
  }
}

void RunLoop::evaluate_and_judge() {
  const std::int64_t step = steps_done();
  const Evaluation evaluation = measure();
  record(evaluation);
  state_.last_evaluation = evaluation.metrics;
  check_name(state_.last_evaluation);
  const bool is_among_best =
      state_.selection.add(step, *find_metric(state_.last_evaluation, best_name()));
  parts_.source.finish_evaluation();
  state_.evaluation_is_due = false;
  if (saved_.first == step) {
    if (writes()) saved_run().write_evaluation(saved_.second);
    link_and_prune(step);
  } else if (is_among_best) {
    save();
  }
}

/// Makes the evaluation of the last step where only rounds without rows have shown it to be the
/// last.
void RunLoop::evaluate_late_end() {
  const std::int64_t every = options().evaluate.every;
  const bool was_evaluated = every == 0 || steps_done() % every == 0;
  if (was_evaluated || !parts_.source.evaluates() || !parts_.source.is_done()) return;
  if (state_.window.steps() > 0) log_step();
  state_.evaluation_is_due = true;
  save();
  evaluate_and_judge();
}

/// Returns the loss of held-out rows, where there are any, and what the source measures.
Metrics RunLoop::measure_loss() {
  parts_.meeting.wait();
  Metrics metrics;
  if (!held_out().empty()) {
    metrics = parts_.trainer.evaluate(held_out());
    add_all(metrics, parts_.source.held_out().metrics);
  }
  add_all(metrics, parts_.source.evaluate(parts_.trainer.policy()));
  return metrics;
}

RunLoop::Evaluation RunLoop::measure() {
  Evaluation result{.metrics = measure_loss(), .samples = {}};
  // Completions of the policy as it is now, and the KL that they show where the loss gives none.
  const bool has_samples =
      !parts_.meeting.from_first([&] { return parts_.log.has_samples() ? "some" : ""; }).empty();
  auto draw = parts_.samples.draw(steps_done(), parts_.trainer.policy(), reference_model(),
                                  !has_samples, parts_.meeting);
  if (draw.kl && !find_metric(result.metrics, "kl")) result.metrics.emplace_back("kl", *draw.kl);
  result.samples = std::move(draw.lines);
  return result;
}

void RunLoop::record(const Evaluation& evaluation) {
  parts_.log.samples(evaluation.samples);
  if (parts_.events.evaluation) parts_.events.evaluation(steps_done(), evaluation.metrics);
  Json line = metrics_line(evaluation.metrics, kEvalPrefix);
  line["seconds"] = seconds();
  append(line);
  watch_displacement(evaluation.metrics);
  parts_.log.refresh_report();
}

/// The metric that the best checkpoint is found by, as evaluations have it.
std::string_view RunLoop::best_name() const {
  std::string_view name = options().evaluate.best_metric;
  if (name.starts_with(kEvalPrefix)) name.remove_prefix(kEvalPrefix.size());
  return name;
}

void RunLoop::check_name(const Metrics& metrics) const {
  if (find_metric(metrics, best_name())) return;
  std::vector<std::string> names;
  for (const auto& item : metrics) names.push_back(fmt::format("{}{}", kEvalPrefix, item.first));
  throw ConfigError(fmt::format(
      "evaluate.best_metric: expected a metric of an evaluation, got '{}'{}{}; there are {}",
      options().evaluate.best_metric,
      did_you_mean(options().evaluate.best_metric, {names.begin(), names.end()}),
      best_name() == "kl" ? "; it takes a reference, evaluate.sample_prompts above 0, and samples "
                            "with temperature 1, top_k 0 and top_p 1"
                          : "",
      fmt::join(names, ", ")));
}

Policy* RunLoop::reference_model() const {
  return parts_.reference != nullptr ? parts_.reference->policy() : nullptr;
}

// Lines of metrics.

bool RunLoop::log_is_due() const {
  const std::int64_t step = steps_done();
  return state_.window.steps() > 0 && (step % options().evaluate.log_every == 0 ||
                                       step == parts_.total_steps || parts_.source.is_done());
}

void RunLoop::log_step() {
  if (!writes()) return state_.window.clear();
  const Metrics metrics = state_.window.mean();
  Json line = metrics_line(metrics, "");
  const double tokens = metric(metrics, "num_tokens");
  if (step_seconds_ > 0) line["tokens_per_second"] = (tokens - tokens_logged_) / step_seconds_;
  parts_.prompts.add_counts(line);
  line["seconds"] = seconds();
  append(line);
  state_.window.clear();
  tokens_logged_ = tokens;
  step_seconds_ = 0;
  if (!parts_.source.evaluates()) watch_displacement(metrics);
}

void RunLoop::append(const Json& line) {
  if (!writes()) return;
  parts_.folder.append_metrics(line);
  parts_.log.metrics(line);
}

Json RunLoop::metrics_line(const Metrics& metrics, std::string_view prefix) const {
  Json line = {{"step", steps_done()}};
  if (const auto rows = parts_.source.rows_an_epoch(); rows > 0) {
    const auto seen = static_cast<double>(steps_done() * options().batch.rows);
    line["epoch"] = seen / static_cast<double>(rows);
  }
  for (const auto& [name, value] : metrics) line[fmt::format("{}{}", prefix, name)] = value;
  return line;
}

/// Notes once that the likelihood of chosen completions fell.
void RunLoop::watch_displacement(const Metrics& metrics) {
  const auto chosen = find_metric(metrics, "logps/chosen");
  const auto before = find_metric(metrics, "logps/ref_chosen");
  if (state_.displacement_noted || !chosen || !before) return;
  if (!is_displaced(*chosen, *before)) return;
  state_.displacement_noted = true;
  parts_.note(
      fmt::format("chosen log-probs fell below the reference's (likelihood displacement): {:.2f} "
                  "against {:.2f} nats at step {}; an SFT term (rpo) holds them up",
                  *chosen, *before, steps_done()));
}

// Checkpoints.

void RunLoop::load(const ResumePoint& from) {
  Json values = SavedRun::read_values(from.checkpoint);
  try {
    Json before = values.at("identity");
    before.at("config") = with_present_places(before.at("config"));
    // Nothing was judged by the metric yet.
    if (values.at("step") == 0) {
      before.at("config").at("evaluate")["best_metric"] = options().evaluate.best_metric;
    }
    check_same_run(before, parts_.identity, from.checkpoint, parts_.note);
    parts_.trainer.load_policy(from.checkpoint);
    saved_run().load(values, from.checkpoint);
  } catch (const Json::exception& error) {
    throw CheckpointError(
        fmt::format("{}/training_state.json: expected the state of a run, got "
                    "'{}'",
                    from.checkpoint, error.what()));
  }
  if (state_.evaluation_is_due) saved_run().load_evaluation(from.checkpoint);
  parts_.note(fmt::format("resume: continues after step {} of {}, from {}", steps_done(),
                          parts_.total_steps, from.checkpoint));
  is_resumed_ = true;
  first_step_ = last_update_ = steps_done();
  if (from.is_in_place) saved_ = {steps_done(), from.checkpoint};
}

void RunLoop::count_from(const RunFolder::Kept& kept) {
  seconds_before_ = kept.seconds;
  if (kept.logged_step == steps_done()) state_.window.clear();
}

/// The part that ranks do together comes first, so that trouble with the disk, which is rank 0's
/// alone, parts none of them: all hear of it where they meet afterwards.
void RunLoop::save() {
  const std::int64_t step = steps_done();
  parts_.meeting.wait();
  NamedTensors state = gather();
  write_checkpoint(step, std::move(state));
  link_and_prune(step);
  parts_.meeting.wait();
  saved_ = {step, parts_.folder.checkpoints().folder_of(step)};
}

NamedTensors RunLoop::gather() {
  NamedTensors state = parts_.trainer.gather_state();
  if (parts_.reference != nullptr) parts_.reference->flush();
  return state;
}

void RunLoop::write_checkpoint(std::int64_t step, NamedTensors state) {
  if (!writes()) return;
  parts_.folder.sync_metrics();
  parts_.folder.checkpoints().commit(step, [&](const std::string& sibling) {
    parts_.trainer.save_policy(sibling, state);
    if (!companions_) companions_ = parts_.companions();
    write_files(*companions_, sibling);
    saved_run().write(sibling, std::move(state));
  });
}

/// Whether the state of training is spread over the ranks.
bool RunLoop::keeps_slices() const {
  return parts_.meeting.size() > 1 && options().distributed.sharding != Sharding::kNone;
}

void RunLoop::link_and_prune(std::int64_t step) {
  if (!writes()) return;
  const CheckpointStore& store = parts_.folder.checkpoints();
  const auto best = state_.selection.best_steps();
  if (!best.empty() && best.front() == step) store.link("best", step);
  store.prune(step, options().checkpoint.keep_last, {best.begin(), best.end()});
}

/// Keeps what an error would lose: all updates since the last checkpoint. Older checkpoints stay,
/// as this one may be worth less. The error matters more than another one here.
void RunLoop::save_after_failure() {
  const std::int64_t known = std::max(saved_.first, first_step_);
  const bool is_due = !is_torn_ && last_update_ > known;
  const bool together = all_can_save(is_due);
  if (!together && (!is_due || keeps_slices())) return;
  try {
    const std::int64_t step = steps_done();
    write_checkpoint(step, together ? gather() : parts_.trainer.gather_state());
    saved_ = {step, parts_.folder.checkpoints().folder_of(step)};
    if (writes()) parts_.note(fmt::format("step {} is saved in {}", saved_.first, saved_.second));
  } catch (const std::exception&) {
    // The first error says what is wrong.
  }
  if (together) give_slices();
}

/// Waits for rank 0, which may still gather weights that it writes.
void RunLoop::give_slices() {
  if (!slices_weights(*parts_.meeting.ranks())) return;
  try {
    parts_.meeting.ranks()->barrier();
  } catch (const std::exception&) {
    // The first error says more.
  }
}

/// Returns whether all ranks are here, each with steps to save: no rank decides alone about what
/// they do together. False where one cannot be reached.
bool RunLoop::all_can_save(bool is_due) {
  if (parts_.meeting.is_broken()) return false;
  try {
    return parts_.meeting.all(is_due);
  } catch (const LostRankError&) {
    return false;
  }
}

}  // namespace prefopt::detail
