// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <exception>
#include <ios>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/run_config.h"
#include "cli/stop_signal.h"
#include "cli/temporary_folder.h"
#include "core/file.h"
#include "core/json.h"
#include "core/memory.h"
#include "core/text.h"
#include "prefopt/dist/launch.h"
#include "prefopt/dist/ranks.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "run/run_loss.h"
#include "train/metrics.h"

namespace prefopt::cli {
namespace {

/// Ends a run after its first step.
struct FirstStepDone {};

void dry_run(RunOptions options, const std::shared_ptr<Ranks>& ranks, std::ostream& out,
             std::ostream& err) {
  const TemporaryFolder folder("prefopt-dry-run");
  options.output_dir = folder.path() + "/run";
  options.reference.cache_dir.clear();  // inside of the temporary run folder then

  StepClock clock;
  std::int64_t steps = 0;
  double tokens = 0;
  double evaluation_seconds = 0;
  RunEvents events;
  events.note = [&](const std::string& line) {
    clock.skip();
    err << detail::printable(line) << '\n';
  };
  events.evaluation = [&](std::int64_t, const Metrics&) { evaluation_seconds = clock.lap(); };
  events.step = [&](std::int64_t, std::int64_t total, const Metrics& metrics) {
    clock.count_step();
    steps = total;
    tokens = metric(metrics, "num_tokens");
    throw FirstStepDone{};
  };
  try {
    run_training(options, events, /*resume=*/{}, ranks);
  } catch (const FirstStepDone&) {
    // Every run has a first step, and it ends here.
  }

  const std::int64_t every = options.evaluate.every;
  const std::int64_t evaluations = 2 + (every > 0 ? (steps - 1) / every : 0);
  const double total_seconds = static_cast<double>(steps) * clock.seconds() +
                               static_cast<double>(evaluations) * evaluation_seconds;
  if (ranks->rank() > 0) return;
  out << fmt::format("steps: {} of {} pairs\n", steps, options.batch.rows)
      << fmt::format("first step: {:.0f} tokens in {:.3f} s, {:.0f} tokens/s\n", tokens,
                     clock.seconds(), tokens / clock.seconds())
      << fmt::format("peak memory: {} MiB\n", detail::peak_memory_bytes() >> 20)
      << fmt::format("time to finish: about {}\n", duration(total_seconds));
}

/// The last words of a run that was stopped.
std::string stop_sentence(const RunResult& result) {
  return result.checkpoint.empty()
             ? "stopped before the first step; nothing was saved"
             : fmt::format("stopped after step {}, which {} holds; --resume auto continues",
                           result.steps, result.checkpoint);
}

void print_summary(const RunOptions& options, const RunResult& result, std::ostream& out) {
  out << "checkpoint: " << result.checkpoint << '\n';
  out << "report: " << options.output_dir << "/report.html\n";
  out << "time: " << duration(result.seconds) << '\n';
  for (const char* name : {"loss", "rewards/accuracies", "rewards/margins", "kl"}) {
    const auto before = detail::find_metric(result.first_evaluation, name);
    const auto after = detail::find_metric(result.last_evaluation, name);
    if (before && after) {
      out << fmt::format("eval_{}: {:.4f}, before training {:.4f}\n", name, *after, *before);
    }
  }
}

void train(const TrainArguments& arguments, const RunOptions& options, const std::string& moved,
           const std::shared_ptr<Ranks>& ranks, std::ostream& out, std::ostream& err) {
  const bool speaks = ranks->rank() == 0;
  std::ostream nowhere(nullptr);
  Progress progress(speaks ? err : nowhere, arguments.terminal_width, arguments.quiet);
  if (!moved.empty()) progress.note(moved);
  RunEvents events;
  events.note = [&](const std::string& line) { progress.note(line); };
  events.step = [&](std::int64_t step, std::int64_t total, const Metrics& metrics) {
    progress.step(step, total, metrics);
  };
  events.evaluation = [&](std::int64_t step, const Metrics& metrics) {
    progress.evaluation(step, metrics);
  };
  events.phase = [&](std::string_view name, std::int64_t done, std::int64_t total) {
    progress.phase(name, done, total);
  };
  const StopSignal signal;
  events.should_stop = [&] { return signal.has_come(); };
  const RunResult result = run_training(options, events, arguments.resume, ranks);
  progress.finish();
  if (result.stopped) throw Interrupted(stop_sentence(result));
  if (speaks) print_summary(options, result, out);
}

/// The options of a config, and the former places that it has them in.
struct Given {
  RunOptions options;
  std::string moved;
};

Given read_config(const TrainArguments& arguments) {
  std::vector<std::string> moves;
  Given given{.options = read_run_config(arguments.config, arguments.sets, moves), .moved = {}};
  if (!moves.empty()) given.moved = fmt::format("config: {}", fmt::join(moves, ", "));
  return given;
}

void print_config(const TrainArguments& arguments, bool speaks, std::ostream& out,
                  std::ostream& err) {
  Given given = read_config(arguments);
  given.options.loss = detail::RunLoss(given.options.loss).config();
  if (!speaks) return;
  if (!given.moved.empty()) err << given.moved << '\n';
  out << options_to_json(given.options, 2) << '\n';
}

/// The ranks of a run, and what each of them was given.
struct Joined {
  std::shared_ptr<Ranks> ranks;
  Given given;
  std::exception_ptr trouble = {};  ///< with the config of this rank
};

/// A rank whose config is at fault meets the others too, by default options: one of them says it
/// for all.
Joined join(const TrainArguments& arguments, const Launch& launch) {
  Joined joined;
  try {
    joined.given = read_config(arguments);
    joined.ranks = join_ranks(joined.given.options.distributed, launch);
  } catch (const ConfigError&) {
    joined.trouble = std::current_exception();
    joined.ranks = join_ranks({}, launch);
  }
  return joined;
}

}  // namespace

void run_train(const TrainArguments& arguments, std::ostream& out, std::ostream& err) {
  const Launch launch = launch_of_process();
  const bool speaks = launch.rank == 0;
  if (arguments.print_config) return print_config(arguments, speaks, out, err);
  const auto [ranks, given, trouble] = join(arguments, launch);
  try {
    ranks->share_trouble(trouble);
    if (arguments.dry_run) {
      if (!given.moved.empty() && speaks) err << given.moved << '\n';
      return dry_run(given.options, ranks, out, err);
    }
    train(arguments, given.options, given.moved, ranks, out, err);
  } catch (const LostRankError&) {
    throw;
  } catch (const std::exception&) {
    // Rank 0 says it for all.
    if (!speaks) err.setstate(std::ios::failbit);
    throw;
  }
}

}  // namespace prefopt::cli
