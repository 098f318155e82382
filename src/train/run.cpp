// SPDX-License-Identifier: Apache-2.0
#include "prefopt/train/run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "data/chat_writer.h"
#include "model/decoder_files.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/model/end_tokens.h"
#include "prefopt/model/reference.h"
#include "prefopt/model/safetensors.h"
#include "train/environment.h"
#include "train/log_window.h"
#include "train/metrics.h"
#include "train/resume.h"
#include "train/run_folder.h"
#include "train/run_log.h"
#include "train/run_models.h"
#include "train/run_rows.h"
#include "train/sample_table.h"
#include "train/selection.h"
#include "train/token_range.h"

namespace prefopt {

using detail::Json;
using detail::Note;
using detail::RunFolder;
using detail::RunLog;
using detail::SampleTable;

namespace {

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void check_patience(const LoopOptions& options, const detail::RunRows& rows) {
  if (options.patience == 0 || (options.eval_every > 0 && !rows.eval.empty())) return;
  throw ConfigError(fmt::format(
      "train.patience: expected evaluations to count, got {}; set train.eval_every and data.eval "
      "or data.eval_fraction",
      options.eval_every > 0 ? "no held-out rows" : "train.eval_every 0"));
}

std::int64_t count_steps(const LoopOptions& options, std::int64_t pairs) {
  if (options.steps > 0) return options.steps;
  const double steps =
      options.epochs * static_cast<double>(pairs) / static_cast<double>(options.batch_size);
  return std::max<std::int64_t>(1, std::llround(std::ceil(steps - 1e-9)));
}

constexpr std::string_view kStateFile = "training_state.json";
constexpr std::string_view kTensorFile = "training_state.safetensors";
/// The result of an evaluation that was made after its step was saved. Not in the manifest: without
/// it the evaluation is made again.
constexpr std::string_view kEvaluationFile = "evaluation.json";
constexpr std::string_view kGenerator = "generator.cpu";
/// Of what a checkpoint says of its run; the first version had no number.
constexpr int kIdentityVersion = 2;

Json metrics_to_json(const Metrics& metrics) {
  Json object = Json::object();
  for (const auto& [name, value] : metrics) object[name] = detail::json_number(value);
  return object;
}

Metrics metrics_from_json(const Json& object) {
  Metrics metrics;
  for (const auto& [name, value] : object.items()) {
    metrics.emplace_back(name, detail::number_in(value));
  }
  return metrics;
}

at::Tensor generator_state() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::scoped_lock lock(generator.mutex());
  return generator.get_state();
}

void set_generator_state(const at::Tensor& state) {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::scoped_lock lock(generator.mutex());
  generator.set_state(state);
}

/// Throws ConfigError where nothing will be judged by a metric that was asked for.
void check_best_metric(const LoopOptions& options, const detail::RunRows& rows) {
  if (!rows.eval.empty() || options.best_metric == LoopOptions().best_metric) return;
  throw ConfigError(
      fmt::format("train.best_metric: expected held-out rows to find '{}' of, got none; set "
                  "data.eval or data.eval_fraction",
                  options.best_metric));
}

/// The parts of a run, once everything is loaded.
struct RunParts {
  const RunOptions& options;
  detail::RunRows rows;
  Trainer& trainer;
  Reference* reference;
  RunFolder& folder;
  RunLog& log;
  SampleTable samples;
  const RunEvents& events;
  const Note& note;
  Json identity;                           ///< of check_same_run
  std::vector<NonFiniteStep>& non_finite;  ///< steps that the trainer has reported
  FolderFiles companions;                  ///< files of a checkpoint next to the weights
};

/// The beginning of an evaluation's metrics in metrics.jsonl.
constexpr std::string_view kEvalPrefix = "eval_";

/// The loop of one run.
class Run {
 public:
  explicit Run(RunParts parts)
      : parts_(std::move(parts)),
        options_(parts_.options.train),
        total_(count_steps(options_, std::ssize(parts_.rows.train))),
        order_(std::ssize(parts_.rows.train), options_.seed, options_.shuffle),
        selection_(options_.best_metric, options_.keep_best, options_.patience) {}

  /// Takes up the run where the checkpoint was saved.
  void load(const detail::ResumePoint& from, const Decoder& policy) {
    const std::string path = fmt::format("{}/{}", from.checkpoint, kStateFile);
    const Json state =
        detail::parse_json<CheckpointError>(detail::read_file<CheckpointError>(path), path);
    try {
      Json before = state.at("identity");
      // Nothing was judged by the metric yet.
      if (state.at("step") == 0) {
        before.at("config").at("train")["best_metric"] = options_.best_metric;
      }
      detail::check_same_run(before, parts_.identity, from.checkpoint, parts_.note);
      detail::load_weights(from.checkpoint, policy);
      load_tensors(from.checkpoint);
      load_values(state, path);
    } catch (const Json::exception& error) {
      throw CheckpointError(
          fmt::format("{}: expected the state of a run, got '{}'", path, error.what()));
    }
    if (evaluation_is_due_) load_evaluation(from.checkpoint);
    parts_.note(fmt::format("resume: goes on after step {} of {}, from {}", steps_done(), total_,
                            from.checkpoint));
    is_resumed_ = true;
    first_step_ = last_update_ = steps_done();
    if (from.is_in_place) saved_ = {steps_done(), from.checkpoint};
  }

  /// Seconds that earlier processes took. Not of a checkpoint, which is the same to the last bit
  /// however often a run was broken off.
  void count_from(double seconds) { seconds_before_ = seconds; }
  /// The same of the run's own folder, which may have the line that an error kept from being known
  /// as written.
  void go_on_from(const RunFolder::Kept& kept) {
    count_from(kept.seconds);
    if (kept.logged_step == steps_done()) window_.clear();
  }

  /// Evaluates before the first step, which shows what metrics evaluations have, and writes
  /// nothing. Throws ConfigError if the best one is to be found by another.
  void evaluate_first() {
    if (parts_.rows.eval.empty() || is_done()) return;
    if (!is_resumed_) {
      if (asked_to_stop()) return;
      before_training_ = measure();
    } else if (first_evaluation_.empty() ||
               (best_name() == "kl" && !parts_.samples.gives_kl(reference_model()))) {
      // The run may have had samples so far.
      check_name(parts_.trainer.evaluate(parts_.rows.eval));
    } else {
      check_name(first_evaluation_);
    }
  }

  /// Whether the evaluation of the step after which the run is resumed has still to be made.
  bool evaluation_is_due() const { return evaluation_is_due_; }
  const detail::Selection& selection() const { return selection_; }

  /// Where an error ends it, steps that were done and not saved are saved before it is thrown on.
  void train(RunResult& result) {
    try {
      take_steps();
    } catch (const std::exception&) {
      save_after_failure();
      throw;
    }
    result.checkpoint = saved_.second;
    result.steps = steps_done();
    result.stopped = !is_done();
    result.last_step = last_step_;
    result.first_evaluation = first_evaluation_;
    result.last_evaluation = last_evaluation_;
  }

 private:
  struct Evaluation {
    Metrics metrics;
    std::vector<Json> samples;  ///< lines of samples.jsonl
  };

  std::int64_t steps_done() const { return parts_.trainer.steps_done(); }
  bool is_done() const { return steps_done() >= total_ || selection_.is_exhausted(); }
  bool asked_to_stop() const { return parts_.events.should_stop && parts_.events.should_stop(); }

  void take_steps() {
    tokens_logged_ = static_cast<double>(parts_.trainer.tokens_seen());
    if (before_training_) {
      record(*before_training_);
      first_evaluation_ = last_evaluation_ = before_training_->metrics;
      before_training_.reset();
      // A name that it does not have does not lose the work of the evaluation.
      if (!detail::find_metric(first_evaluation_, best_name())) save();
      check_name(first_evaluation_);
    }
    if (is_resumed_ && log_is_due()) log_step();
    if (is_resumed_ && evaluation_is_due_ && !asked_to_stop()) evaluate_and_judge();
    while (!is_done() && !asked_to_stop()) take_step();
    if (is_done() && window_.steps() > 0) log_step();  // of a run that its patience ended
    const bool has_begun = is_resumed_ || steps_done() > 0;
    if (has_begun && saved_.first != steps_done()) save();
  }

  void take_step() {
    take_update();
    const std::int64_t step = steps_done();
    if (parts_.events.step) parts_.events.step(step, total_, last_step_);
    if (log_is_due()) log_step();
    const bool save_due = options_.save_every > 0 && step % options_.save_every == 0;
    // Before an evaluation, which may fail or be killed for its memory.
    if (save_due || (step == total_ && evaluation_is_due_)) save();
    if (evaluation_is_due_) evaluate_and_judge();
  }

  /// One step of the trainer, with what it says of it.
  void take_update() {
    const std::vector<std::int64_t> numbers = next_rows();
    std::vector<TokenPair> batch;
    for (const auto number : numbers) {
      batch.push_back(parts_.rows.train[static_cast<std::size_t>(number)]);
    }
    const Stopwatch watch;
    const std::int64_t before = steps_done();
    const at::Tensor generator = generator_state();
    Metrics metrics;
    try {
      metrics = parts_.trainer.step(batch);
    } catch (const NonFiniteError& error) {
      // It counts as a step where the trainer has counted it.
      const bool is_counted = steps_done() != before;
      if (is_counted) {
        step_seconds_ += watch.seconds();
        add_step(numbers, parts_.non_finite.back().metrics);
      } else {
        set_generator_state(generator);
      }
      const std::string bundle = write_bundle(numbers, /*ends_the_run=*/true);
      if (is_counted) log_step();
      throw NonFiniteError(bundle.empty() ? error.what()
                                          : fmt::format("{}; see {}", error.what(), bundle));
    } catch (...) {
      is_torn_ = steps_done() != before;
      set_generator_state(generator);
      throw;
    }
    step_seconds_ += watch.seconds();
    add_step(numbers, metrics);
    const bool is_skipped = detail::find_metric(last_step_, "skipped").has_value();
    if (!is_skipped) last_update_ = steps_done();
    const std::string bundle = write_bundle(numbers, /*ends_the_run=*/false);
    if (is_skipped) {
      parts_.note(fmt::format("step {}: loss or gradient is not finite, its update is skipped{}",
                              steps_done(), bundle.empty() ? "" : "; see " + bundle));
    }
  }

  /// Counts a step that the trainer has taken on these rows.
  void add_step(const std::vector<std::int64_t>& numbers, Metrics metrics) {
    count_step();
    const auto cut = std::count_if(numbers.begin(), numbers.end(), [&](std::int64_t number) {
      return parts_.rows.train_cut[static_cast<std::size_t>(number)];
    });
    add_truncated(metrics, cut, std::ssize(numbers));
    last_step_ = std::move(metrics);
    window_.add(last_step_, parts_.trainer.step_counts());
  }

  void count_step() {
    const std::int64_t step = steps_done();
    position_ += options_.batch_size;
    const bool eval_due = options_.eval_every > 0 && step % options_.eval_every == 0;
    evaluation_is_due_ = !parts_.rows.eval.empty() && (eval_due || step == total_);
    parts_.log.set_step(step);
  }

  void evaluate_and_judge() {
    const std::int64_t step = steps_done();
    const Evaluation evaluation = measure();
    record(evaluation);
    last_evaluation_ = evaluation.metrics;
    const bool is_among_best = judge(last_evaluation_);
    evaluation_is_due_ = false;
    if (saved_.first == step) {
      detail::write_file<CheckpointError>(fmt::format("{}/{}", saved_.second, kEvaluationFile),
                                          detail::dump_json(evaluation_values(), 2) + "\n");
      link_and_prune();
    } else if (is_among_best) {
      save();
    }
  }

  /// The share of rows that the budgets shortened.
  static void add_truncated(Metrics& metrics, std::int64_t cut, std::int64_t rows) {
    metrics.emplace_back("truncated", static_cast<double>(cut) / static_cast<double>(rows));
  }

  /// Gives the folder; empty where the trainer has reported nothing, or where there are enough.
  std::string write_bundle(const std::vector<std::int64_t>& numbers, bool ends_the_run) {
    if (parts_.non_finite.empty()) return "";
    const NonFiniteStep report = std::move(parts_.non_finite.back());
    parts_.non_finite.clear();
    const std::string folder = parts_.folder.write_non_finite(report, numbers, ends_the_run);
    if (folder.empty() && !full_noted_) {
      full_noted_ = true;
      parts_.note(fmt::format(
          "nonfinite: {} steps are written down; step {} and later ones are not, but for "
          "one that ends the run",
          RunFolder::kMostNonFinite, report.step));
    }
    return folder;
  }

  /// Of the training rows, for the next step.
  std::vector<std::int64_t> next_rows() {
    std::vector<std::int64_t> numbers;
    for (auto place = position_; place < position_ + options_.batch_size; ++place) {
      numbers.push_back(static_cast<std::int64_t>(order_.at(place)));
    }
    return numbers;
  }

  bool log_is_due() const {
    const std::int64_t step = steps_done();
    return window_.steps() > 0 && (step % options_.log_every == 0 || step == total_);
  }

  void log_step() {
    const Metrics metrics = window_.mean();
    auto line = metrics_line(metrics, "");
    const double tokens = metric(metrics, "num_tokens");
    if (step_seconds_ > 0) line["tokens_per_second"] = (tokens - tokens_logged_) / step_seconds_;
    line["seconds"] = seconds();
    parts_.folder.append_metrics(line);
    window_.clear();
    parts_.log.metrics(line);
    tokens_logged_ = tokens;
    step_seconds_ = 0;
    if (parts_.rows.eval.empty()) watch_displacement(metrics);
  }

  Policy* reference_model() const {
    return parts_.reference != nullptr ? parts_.reference->policy() : nullptr;
  }

  Evaluation measure() {
    Evaluation result{.metrics = parts_.trainer.evaluate(parts_.rows.eval), .samples = {}};
    auto& metrics = result.metrics;
    const auto& cut = parts_.rows.eval_cut;
    add_truncated(metrics, std::count(cut.begin(), cut.end(), true), std::ssize(cut));
    // Completions of the policy as it is now, and the KL that they show where the loss gives none.
    auto draw = parts_.samples.draw(steps_done(), parts_.trainer.policy(), reference_model(),
                                    !parts_.log.has_samples());
    if (draw.kl && !detail::find_metric(metrics, "kl")) metrics.emplace_back("kl", *draw.kl);
    result.samples = std::move(draw.lines);
    return result;
  }

  void record(const Evaluation& evaluation) {
    parts_.log.samples(evaluation.samples);
    if (parts_.events.evaluation) parts_.events.evaluation(steps_done(), evaluation.metrics);
    auto line = metrics_line(evaluation.metrics, "eval_");
    line["seconds"] = seconds();
    append(line);
    watch_displacement(evaluation.metrics);
    parts_.log.refresh_report();
  }

  void append(const Json& line) {
    parts_.folder.append_metrics(line);
    parts_.log.metrics(line);
  }

  /// The metric that the best checkpoint is found by, as evaluations have it.
  std::string_view best_name() const {
    std::string_view name = options_.best_metric;
    if (name.starts_with(kEvalPrefix)) name.remove_prefix(kEvalPrefix.size());
    return name;
  }

  void check_name(const Metrics& metrics) const {
    if (detail::find_metric(metrics, best_name())) return;
    std::vector<std::string> names;
    for (const auto& item : metrics) names.push_back(fmt::format("{}{}", kEvalPrefix, item.first));
    throw ConfigError(fmt::format(
        "train.best_metric: expected a metric of an evaluation, got '{}'{}{}; there are {}",
        options_.best_metric,
        detail::did_you_mean(options_.best_metric, {names.begin(), names.end()}),
        best_name() == "kl" ? "; it takes a reference, train.sample_prompts above 0, and samples "
                              "with temperature 1, top_k 0 and top_p 1"
                            : "",
        fmt::join(names, ", ")));
  }

  /// Whether this evaluation is among the best.
  bool judge(const Metrics& metrics) {
    check_name(metrics);
    return selection_.add(steps_done(), *detail::find_metric(metrics, best_name()));
  }

  Json metrics_line(const Metrics& metrics, std::string_view prefix) const {
    const auto seen = static_cast<double>(steps_done() * options_.batch_size);
    Json line = {{"step", steps_done()},
                 {"epoch", seen / static_cast<double>(parts_.rows.train.size())}};
    for (const auto& [name, value] : metrics) line[fmt::format("{}{}", prefix, name)] = value;
    return line;
  }

  /// Says once that the likelihood of chosen completions fell.
  void watch_displacement(const Metrics& metrics) {
    const auto chosen = detail::find_metric(metrics, "logps/chosen");
    const auto before = detail::find_metric(metrics, "logps/ref_chosen");
    if (displacement_noted_ || !chosen || !before) return;
    if (!detail::is_displaced(*chosen, *before)) return;
    displacement_noted_ = true;
    parts_.note(
        fmt::format("chosen log-probs fell below the reference's (likelihood displacement): {:.2f} "
                    "against {:.2f} nats at step {}; an SFT term (rpo) holds them up",
                    *chosen, *before, steps_done()));
  }

  double seconds() const { return seconds_before_ + clock_.seconds(); }

  void save() {
    write_checkpoint();
    link_and_prune();
  }

  void write_checkpoint() {
    const std::int64_t step = steps_done();
    parts_.folder.sync_metrics();
    if (auto* cache = dynamic_cast<CachedReference*>(parts_.reference)) cache->flush();
    const std::string folder =
        parts_.folder.checkpoints().commit(step, [&](const std::string& beside) {
          parts_.trainer.save_policy(beside);
          prefopt::write_files(parts_.companions, beside);
          auto tensors = parts_.trainer.state();
          tensors.emplace_back(kGenerator, generator_state());
          write_safetensors(fmt::format("{}/{}", beside, kTensorFile),
                            {.tensors = std::move(tensors), .metadata = {}});
          detail::write_file<CheckpointError>(fmt::format("{}/{}", beside, kStateFile),
                                              detail::dump_json(values(), 2) + "\n");
        });
    saved_ = {step, folder};
  }

  void link_and_prune() {
    const detail::CheckpointStore& store = parts_.folder.checkpoints();
    const auto best = selection_.best_steps();
    if (!best.empty() && best.front() == saved_.first) store.link("best", best.front());
    store.prune(saved_.first, options_.keep_last, {best.begin(), best.end()});
  }

  /// Keeps what an error would lose: all updates since the last checkpoint. Older checkpoints stay,
  /// as this one may be worth less. The error matters more than another one here.
  void save_after_failure() {
    const std::int64_t known = std::max(saved_.first, first_step_);
    if (is_torn_ || last_update_ <= known) return;
    try {
      write_checkpoint();
      parts_.note(fmt::format("step {} is saved in {}", saved_.first, saved_.second));
    } catch (const std::exception&) {
      // Whoever threw first says what is wrong.
    }
  }

  Json evaluation_values() const {
    return {{"step", steps_done()},
            {"selection", selection_.state()},
            {"displacement_noted", displacement_noted_},
            {"last_evaluation", metrics_to_json(last_evaluation_)}};
  }

  /// Takes the evaluation of this step, if it was made after the step was saved.
  void load_evaluation(const std::string& checkpoint) {
    std::string text;
    if (!detail::try_read_file(fmt::format("{}/{}", checkpoint, kEvaluationFile), text).empty()) {
      return;
    }
    const Json values = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    try {
      if (values.at("step").get<std::int64_t>() != steps_done()) return;
      const bool displacement_noted = values.at("displacement_noted").get<bool>();
      Metrics last_evaluation = metrics_from_json(values.at("last_evaluation"));
      selection_.load(values.at("selection"));
      displacement_noted_ = displacement_noted;
      last_evaluation_ = std::move(last_evaluation);
      evaluation_is_due_ = false;
    } catch (const Json::exception&) {
      // A damaged one is as good as none.
    }
  }

  Json values() {
    return {{"step", steps_done()},
            {"learning_rate", detail::find_metric(last_step_, "learning_rate").value_or(0)},
            {"position", position_},
            {"next_rows", next_rows()},
            {"selection", selection_.state()},
            {"displacement_noted", displacement_noted_},
            {"evaluation_is_due", evaluation_is_due_},
            {"unlogged", window_.state()},
            {"last_step", metrics_to_json(last_step_)},
            {"first_evaluation", metrics_to_json(first_evaluation_)},
            {"last_evaluation", metrics_to_json(last_evaluation_)},
            {"identity", parts_.identity}};
  }

  void load_values(const Json& state, const std::string& path) {
    position_ = state.at("position").get<std::int64_t>();
    const auto saved_rows = state.at("next_rows").get<std::vector<std::int64_t>>();
    if (position_ < 0 || next_rows() != saved_rows) {
      throw CheckpointError(
          fmt::format("{}: expected next_rows to be what the order of rows has at position {}, got "
                      "others",
                      path, position_));
    }
    if (state.at("step").get<std::int64_t>() != steps_done()) {
      throw CheckpointError(fmt::format("{}: expected step {}, as the tensors say, got {}", path,
                                        steps_done(), state.at("step").get<std::int64_t>()));
    }
    selection_.load(state.at("selection"));
    displacement_noted_ = state.at("displacement_noted").get<bool>();
    // The first version had evaluated all that it saved, and logged single steps.
    evaluation_is_due_ = state.value("evaluation_is_due", false);
    if (state.contains("unlogged")) window_.load(state.at("unlogged"));
    last_step_ = metrics_from_json(state.at("last_step"));
    first_evaluation_ = metrics_from_json(state.at("first_evaluation"));
    last_evaluation_ = metrics_from_json(state.at("last_evaluation"));
  }

  void load_tensors(const std::string& checkpoint) {
    const std::string path = fmt::format("{}/{}", checkpoint, kTensorFile);
    auto tensors = read_safetensors(path).tensors;
    const auto generator = std::find_if(tensors.begin(), tensors.end(),
                                        [](const auto& item) { return item.first == kGenerator; });
    if (generator == tensors.end() || generator->second.scalar_type() != at::kByte ||
        generator->second.sizes() != generator_state().sizes()) {
      throw CheckpointError(fmt::format("{}: expected tensor '{}' of LibTorch's generator, got {}",
                                        path, kGenerator,
                                        generator == tensors.end() ? "none" : "another"));
    }
    set_generator_state(generator->second.clone());
    tensors.erase(generator);
    parts_.trainer.load_state(tensors);
  }

  RunParts parts_;
  const LoopOptions& options_;
  std::int64_t total_;
  detail::PairOrder order_;
  detail::Selection selection_;
  std::int64_t position_ = 0;  // in the stream of epochs
  Metrics last_step_, first_evaluation_, last_evaluation_;
  detail::LogWindow window_;
  std::optional<Evaluation> before_training_;  ///< made and not yet written down
  bool evaluation_is_due_ = false;             ///< of the last step
  std::int64_t first_step_ = 0;                ///< that this process found done
  std::int64_t last_update_ = 0;               ///< the last step that was not skipped
  bool is_torn_ = false;                       ///< an error broke into the midst of an update
  bool displacement_noted_ = false;
  bool full_noted_ = false;  // that `nonfinite` has as many steps as it takes
  bool is_resumed_ = false;
  std::pair<std::int64_t, std::string> saved_ = {-1, ""};  // newest checkpoint: step, folder
  Stopwatch clock_;
  double seconds_before_ = 0;  // of the processes before this one
  double tokens_logged_ = 0;
  double step_seconds_ = 0;
};

/// Hashes of what lies under the paths of the options.
Json contents_of(const RunOptions& options, const detail::RunRows& rows, const Policy& policy,
                 Reference* reference) {
  Json contents = {{"train_rows", detail::fingerprint_of(rows.train)},
                   {"eval_rows", detail::fingerprint_of(rows.eval)},
                   {"model", detail::fingerprint_of(policy)}};
  // The scale of an adapter is in none of its matrices, and that of a file in no option.
  for (const TrainedWeight& weight : policy.trained_weights()) {
    if (options.model.adapter.empty() || !weight.lora_a.defined()) continue;
    contents["adapter_scale"] = weight.lora_scale;
    break;
  }
  if (reference != nullptr && !options.reference.path.empty()) {
    contents["reference"] = detail::fingerprint_of(*reference->policy());
  }
  return contents;
}

}  // namespace

RunResult run_training(const RunOptions& given, const RunEvents& events,
                       const std::string& resume) {
  const Stopwatch watch;
  RunLog log(given.output_dir);
  const Note note = [&](const std::string& line) {
    log.note(line);
    if (events.note) events.note(line);
  };

  auto options = checked(given, "run");
  detail::check_reference(options.reference);
  const auto loss = make_loss(options.loss);
  options.loss = loss.config();
  const auto needs = loss.requirements();
  RunFolder folder(options.output_dir);
  std::optional<detail::ResumePoint> from;
  const bool is_here = !resume.empty() && detail::resumes_here(resume, folder);
  if (resume.empty()) {
    folder.check_new();
  } else {
    if (is_here) {
      folder.check_run_or_new(
          {options.reference.cache_dir, folder.file("reference-cache"), options.data.token_cache});
      std::error_code ignored;
      if (std::filesystem::is_directory(folder.path(), ignored)) folder.lock();
    }
    from = detail::find_resume_point(resume, folder, note);
  }
  for (std::string* path : {&options.model.path, &options.model.adapter, &options.model.tokenizer,
                            &options.reference.path}) {
    *path = detail::followed(*path);
  }
  if (options.train.threads > 0) at::set_num_threads(static_cast<int>(options.train.threads));
  at::manual_seed(static_cast<std::uint64_t>(options.train.seed));

  const auto tokenizer = detail::open_run_tokenizer(options.model);
  RowNeeds of_rows = row_needs(needs);
  of_rows.context_length = options.model.path.empty()
                               ? options.model.decoder.max_position_embeddings
                               : detail::context_length_of(options.model.path);
  auto rows = detail::load_rows(options.data, *tokenizer, of_rows, note);
  check_patience(options.train, rows);
  check_best_metric(options.train, rows);
  const auto policy = detail::make_policy(options.model, *tokenizer, note);
  detail::check_token_range(rows.train, policy->vocab_size(), "data.train");
  detail::check_token_range(rows.eval, policy->vocab_size(), "data.eval");
  detail::check_row_lengths(rows.train, *policy, "data.train");
  detail::check_row_lengths(rows.eval, *policy, "data.eval");
  const auto companions = detail::companions_of(options, *policy, *tokenizer, rows.message_rows);
  options.sampling =
      with_end_tokens(options.sampling, *policy, *tokenizer, options.data.chat_format);
  options.data.chat_format = detail::chat_format_for_rows(options.data.chat_format, *tokenizer);
  if (options.reference.cache_dir.empty()) {
    options.reference.cache_dir = folder.file("reference-cache");
  }

  std::shared_ptr<Reference> reference;
  if (needs.reference || needs.sample_source == SampleSource::kReference) {
    // Whoever weighs tokens needs each.
    const bool by_token = needs.head_logps || needs.limits ||
                          detail::has_token_weights(rows.train) ||
                          detail::has_token_weights(rows.eval);
    if (!options.model.tokenizer.empty()) {
      detail::check_reference_tokens(options.reference, *tokenizer, !given.model.tokenizer.empty(),
                                     note);
    }
    reference = detail::make_reference(options.reference, options.model, *policy,
                                       by_token ? CacheLevel::kToken : CacheLevel::kSequence);
  }
  const auto total_steps = count_steps(options.train, std::ssize(rows.train));
  const auto micro = options.train.micro_batch_size;
  detail::set_checkpointing(options.train, detail::most_tokens(rows.train, options.train), *policy,
                            note);
  std::vector<NonFiniteStep> non_finite;
  Trainer trainer(
      policy, reference, loss,
      {.optimizer = options.optimizer,
       .total_steps = total_steps,
       // An evaluation is cut as well, or it would take more memory than a step.
       .micro_batch_size = micro > 0 ? micro : options.train.batch_size,
       .micro_batch_tokens = options.train.micro_batch_tokens,
       .evaluation_batch_size = options.train.batch_size,
       .head_budget_bytes = options.train.head_budget_mib << 20,
       .sampling = options.sampling,
       .on_non_finite = [&](const NonFiniteStep& step) { non_finite.push_back(step); }});

  const Json config = detail::parse_json<ConfigError>(options_to_json(options), "run");
  Json identity = {{"version", kIdentityVersion},
                   {"config", config},
                   {"contents", contents_of(options, rows, *policy, reference.get())}};
  const auto size = detail::count_parameters(*policy);
  const Json facts = {{"train_rows", rows.train.size()},
                      {"eval_rows", rows.eval.size()},
                      {"total_steps", total_steps},
                      {"parameters", size.all},
                      {"trained_parameters", size.trained}};
  SampleTable samples(rows.eval, tokenizer, options.sampling,
                      {options.train.sample_prompts, options.train.sample_tokens});
  Run run({.options = options,
           .rows = std::move(rows),
           .trainer = trainer,
           .reference = reference.get(),
           .folder = folder,
           .log = log,
           .samples = std::move(samples),
           .events = events,
           .note = note,
           .identity = std::move(identity),
           .non_finite = non_finite,
           .companions = companions});
  if (from) run.load(*from, *policy);
  run.evaluate_first();
  const bool was_locked = folder.is_locked();
  folder.lock();
  // Once more: another run may have come and gone while this one loaded its model.
  if (!is_here || !was_locked) folder.check_new();
  const bool is_in_place = from && from->is_in_place;
  const std::int64_t start = trainer.steps_done();
  if (is_in_place) {
    run.go_on_from(
        folder.resume(config, detail::environment(), start, run.evaluation_is_due(), note));
    folder.checkpoints().link("last", start);
    folder.checkpoints().link_best(run.selection().best_steps());
  } else {
    if (const auto before = folder.config()) {
      detail::check_same_config(*before, config, folder.path());
    }
    folder.start(config, detail::environment());
    // Of RUN/checkpoints/step-N; a checkpoint that was copied out of its run says nothing of it.
    const auto parent = std::filesystem::path(from ? from->checkpoint : "").parent_path();
    if (parent.filename() == "checkpoints") {
      run.count_from(detail::seconds_by(parent.parent_path().string(), start));
    }
  }
  log.start(config, facts, is_in_place ? std::optional(start) : std::nullopt,
            run.evaluation_is_due());

  RunResult result;
  result.policy = policy;
  try {
    run.train(result);
  } catch (const std::exception& error) {
    log.stop(error.what());
    throw;
  }
  if (auto* cache = dynamic_cast<CachedReference*>(reference.get())) cache->flush();
  log.finish(!result.stopped);
  result.seconds = watch.seconds();
  return result;
}

}  // namespace prefopt
