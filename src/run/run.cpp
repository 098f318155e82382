// SPDX-License-Identifier: Apache-2.0
#include "prefopt/run/run.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/json.h"
#include "dist/meeting.h"
#include "kernels/cpu/tiles.h"
#include "policy/token_range.h"
#include "prefopt/error.h"
#include "run/program_parts.h"
#include "run/resolve.h"
#include "run/resume.h"
#include "run/run_loss.h"
#include "run/run_ranks.h"
#include "run/run_session.h"
#include "train/row_fingerprint.h"

namespace prefopt {

using detail::Json;
using detail::Meeting;
using detail::RunSession;

namespace {

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

constexpr std::array<const char*, 3> kPrecisions = {"highest", "high", "medium"};

void set_products(const RunOptions& options, const detail::Note& note) {
  const char* name = kPrecisions[static_cast<std::size_t>(options.machine.matmul_precision)];
  at::globalContext().setFloat32MatmulPrecision(name);
  if (options.machine.matmul_precision == MatmulPrecision::kHighest) return;
  if (kernels::cpu::has_tiles() || at::hasCUDA()) return;
  note(
      fmt::format("machine.matmul_precision: '{}' leaves a decoder's products in float32, as this "
                  "processor multiplies no tiles of bfloat16 numbers",
                  name));
}

void set_threads_and_seed(const RunOptions& options, const Ranks& ranks) {
  const auto given = static_cast<int>(options.machine.threads);
  const int threads = given > 0 ? given : detail::default_threads(ranks);
  if (threads > 0) at::set_num_threads(threads);
  at::manual_seed(static_cast<std::uint64_t>(options.seed));
}

/// Throws ConfigError for ranks that joined with other options than those of the run.
std::shared_ptr<Ranks> checked_ranks(const std::shared_ptr<Ranks>& ranks,
                                     const RanksOptions& options) {
  if (!ranks) return one_process(options);
  const std::string joined = options_to_json(ranks->options());
  if (joined == options_to_json(options)) return ranks;
  throw ConfigError(fmt::format("run: expected ranks that joined with distributed {}, got {}",
                                options_to_json(options), joined));
}

RunResult train_from_files(const RunOptions& given, const RunEvents& events,
                           const std::string& resume, Meeting& meeting) {
  RunOptions options = checked(given, "run");
  detail::check_same_options(options, meeting);
  detail::check_reference(options.reference, options.online.is_online());
  const detail::RunLoss loss(options.loss);
  options.loss = loss.config();
  RunSession session(options.output_dir, events, meeting);
  session.claim(options, resume);
  set_threads_and_seed(options, *meeting.ranks());
  set_products(options, session.note());
  const auto run = detail::resolve(std::move(options), loss, events, session.note(), meeting);
  const ReferenceOptions& of = run.options.reference;
  // A reference without a path or an adapter is made from the policy.
  Reference* const told = of.path.empty() && of.adapter.empty() ? nullptr : run.reference.get();
  return session.run(
      run.policy, run.reference, *run.source, run.options, loss,
      contents_of(*run.source, *run.policy, told, !run.options.model.adapter.empty()),
      run.planned_steps, run.rollouts, &run.companions);
}

RunResult train_from_program(const std::shared_ptr<Policy>& policy,
                             const std::shared_ptr<Reference>& reference, RowSource& source,
                             const RunOptions& given, const RunEvents& events,
                             const std::string& resume, Meeting& meeting) {
  RunOptions options = checked(given, "run");
  detail::check_same_options(options, meeting);
  detail::check_program_options(options);
  const detail::RunLoss loss(options.loss);
  options.loss = loss.config();
  const auto& held_out = source.held_out().rows;
  detail::check_evaluations(options.evaluate, !held_out.empty());
  detail::check_token_range(held_out, policy->vocab_size(), "held-out rows");
  detail::check_row_lengths(held_out, *policy, "held-out rows");
  detail::check_end_of_samples(loss, options.sampling);
  RunSession session(options.output_dir, events, meeting);
  session.claim(options, resume);
  set_threads_and_seed(options, *meeting.ranks());
  set_products(options, session.note());
  detail::note_idle_evaluations(options.evaluate, source.evaluates(), session.note());
  meeting.on_first([&] { detail::try_saving(*policy, options.output_dir, session.note()); });
  return session.run(policy, reference, source, options, loss,
                     contents_of(source, *policy, reference.get(), /*with_scale=*/true),
                     /*planned_steps=*/0, {.temperature = options.sampling.temperature});
}

}  // namespace

RunResult run_training(const RunOptions& options, const RunEvents& events,
                       const std::string& resume, const std::shared_ptr<Ranks>& ranks) {
  Meeting meeting(checked_ranks(ranks, options.distributed));
  return settled(meeting, [&] { return train_from_files(options, events, resume, meeting); });
}

RunResult run(const std::shared_ptr<Policy>& policy, const std::shared_ptr<Reference>& reference,
              const std::shared_ptr<RowSource>& source, const RunOptions& options,
              const RunEvents& events, const std::string& resume,
              const std::shared_ptr<Ranks>& ranks) {
  Meeting meeting(checked_ranks(ranks, options.distributed));
  return settled(meeting, [&] {
    if (!policy || !source) throw ConfigError("run: expected a policy and a row source, got null");
    return train_from_program(policy, reference, *source, options, events, resume, meeting);
  });
}

}  // namespace prefopt
