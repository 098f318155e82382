// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>
#include <set>
#include <system_error>
#include <utility>

#include "cli/commands.h"
#include "cli/evaluation_report.h"
#include "cli/inputs.h"
#include "cli/stop_signal.h"
#include "core/file.h"
#include "core/json.h"
#include "policy/token_range.h"
#include "prefopt/data/controlled_task.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/device.h"
#include "prefopt/error.h"
#include "prefopt/evaluation/judge.h"
#include "prefopt/evaluation/preferences.h"
#include "prefopt/evaluation/sampled_kl.h"
#include "prefopt/policy/reference.h"
#include "prefopt/train/trainer.h"

namespace prefopt::cli {
namespace {

namespace fs = std::filesystem;
using detail::Json;
using Ids = std::vector<std::int64_t>;

std::int64_t samples_of(const EvalArguments& arguments) { return arguments.samples.value_or(4); }
std::int64_t prompts_of(const EvalArguments& arguments) { return arguments.prompts.value_or(64); }
std::int64_t new_tokens_of(const EvalArguments& arguments) {
  return arguments.max_new_tokens.value_or(64);
}

/// Refuses options of completions and of programs where there are none.
void check_options_are_read(const EvalArguments& arguments) {
  const auto refuse = [](std::string_view option, bool is_given, std::string_view expected) {
    if (!is_given) return;
    throw ConfigError(
        fmt::format("{}: expected {}, got none; it would do nothing", option, expected));
  };
  if (samples_of(arguments) == 0) {
    constexpr std::string_view kSamples = "completions to draw (--samples)";
    refuse("--prompts", arguments.prompts.has_value(), kSamples);
    refuse("--max-new-tokens", arguments.max_new_tokens.has_value(), kSamples);
    refuse("--end-tokens", !arguments.end_tokens.empty(), kSamples);
  }
  const bool has_program = !arguments.judge.empty() ||
                           (!arguments.reward.empty() && arguments.reward != "controlled_task");
  refuse("--judge-timeout",
         arguments.judge_timeout != EvalArguments().judge_timeout && !has_program,
         "a program that answers (--judge or --reward)");
}

void check(const EvalArguments& arguments) {
  const auto at_least = [](std::string_view option, std::int64_t value, std::int64_t least) {
    if (value >= least) return;
    throw ConfigError(fmt::format("{}: expected at least {}, got {}", option, least, value));
  };
  at_least("--batch", arguments.batch, 1);
  at_least("--samples", samples_of(arguments), 0);
  at_least("--prompts", prompts_of(arguments), 0);
  at_least("--max-new-tokens", new_tokens_of(arguments), 1);
  if (!arguments.judge.empty() && !arguments.reward.empty()) {
    throw ConfigError("--judge: expected a judge or a reward, got both");
  }
  if (samples_of(arguments) == 0 && (!arguments.judge.empty() || !arguments.reward.empty())) {
    throw ConfigError("--samples: expected at least 1 to judge completions, got 0");
  }
  check_options_are_read(arguments);
}

/// Whether all models are reward models. Throws ConfigError for some, and for options that they do
/// not read.
bool are_reward_models(const EvalArguments& arguments) {
  const auto count = std::count_if(arguments.models.begin(), arguments.models.end(),
                                   [](const std::string& path) { return is_reward_model(path); });
  if (count == 0) {
    if (!arguments.reference.empty()) return false;
    throw ConfigError("--ref: expected a reference to compare language models with, got none");
  }
  if (count != std::ssize(arguments.models)) {
    throw ConfigError(
        fmt::format("--model: expected reward models alone or none, got {} of {} models", count,
                    arguments.models.size()));
  }
  const auto refuse = [](std::string_view option, bool is_given) {
    if (!is_given) return;
    throw ConfigError(fmt::format(
        "{}: expected no such option for reward models, which write nothing and have no reference, "
        "got one",
        option));
  };
  refuse("--ref", !arguments.reference.empty());
  refuse("--guide", !arguments.guides.empty());
  refuse("--beta", arguments.beta.has_value());
  refuse("--judge", !arguments.judge.empty());
  refuse("--reward", !arguments.reward.empty());
  refuse("--end-tokens", !arguments.end_tokens.empty());
  refuse("--samples", arguments.samples.has_value());
  refuse("--prompts", arguments.prompts.has_value());
  refuse("--max-new-tokens", arguments.max_new_tokens.has_value());
  return true;
}

JudgeProgram program_of(const std::string& command, double timeout) {
  return {.command = {"/bin/sh", "-c", command}, .name = command, .timeout = timeout};
}

Reward read_reward(const EvalArguments& arguments) {
  if (arguments.reward != "controlled_task") {
    return make_program_reward(program_of(arguments.reward, arguments.judge_timeout));
  }
  return [task = ControlledTask()](const std::string& prompt, const std::string& completion) {
    return task.reward(prompt, completion);
  };
}

/// The beta of rewards and probabilities.
double beta_of(const EvalArguments& arguments, const std::optional<Loss>& loss) {
  constexpr double kDefault = 0.1;
  if (arguments.beta && !(*arguments.beta > 0)) {
    throw ConfigError(fmt::format("--beta: expected more than 0, got {}", *arguments.beta));
  }
  if (arguments.beta) return *arguments.beta;
  if (!loss) return kDefault;
  const Json config = detail::parse_json<ConfigError>(loss->config(), "--loss");
  return config.contains("beta") && config["beta"].is_number() ? config["beta"].get<double>()
                                                               : kDefault;
}

/// All that is the same for every model, and the models one after the other.
class Evaluator {
 public:
  Evaluator(const EvalArguments& arguments, std::ostream& err)
      : arguments_(arguments),
        device_(parse_device(arguments.device, "--device")),
        err_(err),
        of_rewards_(are_reward_models(arguments)) {
    if (!arguments.loss.empty()) loss_ = read_loss(arguments.loss);
    if (of_rewards_) {
      choose_tokenizer();
      pairs_ = read_rows();
      return;
    }
    beta_ = beta_of(arguments, loss_);
    // A judge that cannot be started is found before the models are loaded.
    if (!arguments.judge.empty()) {
      judge_ = make_program_judge(program_of(arguments.judge, arguments.judge_timeout));
    } else if (!arguments.reward.empty()) {
      reward_ = read_reward(arguments);
      judge_ = make_reward_judge(reward_);
    }
    choose_tokenizer();
    reference_ =
        Decoder::load(arguments.reference, dtype_for(arguments.reference, arguments.dtype));
    reference_->to(device_);
    if (!reference_->load_note().empty()) err_ << "prefopt: " << reference_->load_note() << '\n';
    pairs_ = read_rows();
    detail::check_token_range(pairs_, reference_->vocab_size(), arguments.data);
    detail::check_row_lengths(pairs_, *reference_, arguments.data);
    reference_sums_ = pair_sums(*reference_, pairs_, arguments.batch);
    choose_prompts();
    if (judge_) reference_texts_ = sample_reference();
  }

  double beta() const { return beta_; }
  std::size_t pairs() const { return pairs_.size(); }

  ModelReport evaluate(const std::string& path) {
    if (of_rewards_) return evaluate_rewards(path);
    const auto model = load(path);
    const auto policy = with_guides(model, arguments_.guides, arguments_.dtype, *tokenizer_, err_);
    ModelReport report{.model = path};
    report.preferences = evaluate_preferences(pairs_, pair_sums(*policy, pairs_, arguments_.batch),
                                              reference_sums_, {.beta = beta_, .seed = seed()});
    err_ << fmt::format("{}: {} pairs scored\n", path, pairs_.size());
    if (loss_) {
      report.loss = loss_of(policy, make_frozen_reference(reference_), sampling(*model));
    }
    const std::int64_t samples = samples_of(arguments_);
    if (samples == 0) return report;
    report.kl = sampled_kl(*policy, *reference_, prompts_, samples, sampling(*model));
    err_ << fmt::format("{}: {} completions sampled for {} prompts\n", path, report.kl->samples,
                        prompts_.size());
    if (judge_) judge(report);
    return report;
  }

 private:
  /// Of σ(r_w − r_l), the probability that the chosen completion is the better one.
  ModelReport evaluate_rewards(const std::string& path) const {
    const auto model = RewardModel::load(path, dtype_for(path, arguments_.dtype));
    model->to(device_);
    const std::string& note = model->body().load_note();
    if (!note.empty()) err_ << "prefopt: " << note << '\n';
    if (model->body().adapter()) model->complete_pad_token(*tokenizer_);
    detail::check_token_range(pairs_, model->vocab_size(), arguments_.data);
    detail::check_row_lengths(pairs_, *model, arguments_.data);
    ModelReport report{.model = path};
    report.preferences =
        evaluate_preferences(pairs_, pair_rewards(*model, pairs_, arguments_.batch),
                             std::vector<PairSums>(pairs()), {.beta = beta_, .seed = seed()});
    err_ << fmt::format("{}: {} pairs scored\n", path, pairs_.size());
    if (loss_) report.loss = loss_of(model, nullptr, {});
    return report;
  }

  std::uint64_t seed() const { return static_cast<std::uint64_t>(arguments_.seed); }

  /// One for all: the reference's, or that of a model where the reference brings none. The chat
  /// format is the one that the models were made with.
  void choose_tokenizer() {
    std::string name = arguments_.tokenizer;
    if (name.empty() && !of_rewards_) name = find_tokenizer(arguments_.reference);
    for (const std::string& model : arguments_.models) {
      if (name.empty()) name = find_tokenizer(model);
    }
    tokenizer_ =
        open_tokenizer(name, of_rewards_ ? arguments_.models.front() : arguments_.reference);
    const bool named = !arguments_.tokenizer.empty();
    if (named && !of_rewards_) check_same_tokens(*tokenizer_, arguments_.reference, named, err_);
    for (const std::string& model : arguments_.models) {
      check_same_tokens(*tokenizer_, model, named, err_);
    }
    // Whoever judges reads text, which a model of ids alone has not.
    if (name.empty() && judge_) tokenizer_->encode("");
    chat_format_ = arguments_.chat_format;
    if (chat_format_ != "auto") return;
    std::string maker;
    for (const std::string& model : arguments_.models) {
      // Bytes, since what is remembered does not depend on them.
      const std::string format = open_tokenizer("byte", model)->chat_format();
      if (format.empty()) continue;
      if (!maker.empty() && format != chat_format_) {
        throw ConfigError(fmt::format(
            "--model: expected models of one chat format, got '{}' of {} and '{}' of {}; name one "
            "with --chat-format",
            chat_format_, maker, format, model));
      }
      chat_format_ = format;
      maker = model;
    }
  }

  std::vector<TokenRow> read_rows() const {
    RowNeeds needs;
    if (loss_) needs = row_needs(loss_->requirements());
    if (needs.unpaired()) {
      throw ConfigError(
          fmt::format("--loss: expected a loss of pairs, which are what is evaluated, got {}",
                      loss_->info().name));
    }
    needs.rejected = true;
    const std::string& first = arguments_.models.front();
    const DecoderOptions shape =
        of_rewards_ ? RewardModel::load(first, dtype_for(first, arguments_.dtype))->body().options()
                    : reference_->options();
    needs.context_length = shape.max_position_embeddings;
    const RowMemory memory = choose_memory();
    return read_pairs(arguments_.data, *tokenizer_,
                      noted_row_options(arguments_.rows, chat_format_, memory, RowPart::kAll, err_),
                      needs, memory, err_)
        .pairs;
  }

  DataOptions rows_of(const RowMemory& memory) const {
    return row_options(arguments_.rows, chat_format_, memory, RowPart::kAll);
  }

  /// That of the models' runs, which have to have read rows alike, else of the reference's.
  RowMemory choose_memory() const {
    RowMemory chosen;
    for (const std::string& model : arguments_.models) {
      RowMemory memory = detail::remembered_rows({model});
      if (memory.options.empty()) continue;
      if (chosen.options.empty()) chosen = memory;
      const std::string other = differing_options(rows_of(memory), rows_of(chosen));
      if (other.empty()) continue;
      throw ConfigError(fmt::format(
          "--model: expected models whose runs read rows alike, got {} for {} and {} for {}; say "
          "it with --data-options",
          differing_options(rows_of(chosen), rows_of(memory)), chosen.folder, other, model));
    }
    const bool asks_reference = chosen.options.empty() && !of_rewards_;
    return asks_reference ? detail::remembered_rows({arguments_.reference}) : chosen;
  }

  /// A PEFT folder is an adapter of the reference.
  std::shared_ptr<Decoder> load(const std::string& path) const {
    std::error_code ignored;
    const bool is_adapter = fs::exists(path + "/adapter_config.json", ignored) &&
                            !fs::exists(path + "/config.json", ignored);
    const std::string& weights = is_adapter ? arguments_.reference : path;
    auto policy = Decoder::load(weights, dtype_for(weights, arguments_.dtype));
    if (!is_adapter && !policy->load_note().empty()) {
      err_ << "prefopt: " << policy->load_note() << '\n';
    }
    if (is_adapter) policy->load_adapter(path);
    policy->to(device_);
    if (policy->vocab_size() != reference_->vocab_size()) {
      throw ConfigError(
          fmt::format("{}: expected a model with the reference's vocabulary of {} "
                      "tokens, got one with {}",
                      path, reference_->vocab_size(), policy->vocab_size()));
    }
    return policy;
  }

  void choose_prompts() {
    std::set<Ids> known;
    for (const TokenRow& pair : pairs_) {
      const std::int64_t most = prompts_of(arguments_);
      if (most > 0 && std::ssize(prompts_) == most) break;
      if (known.insert(pair.prompt).second) prompts_.push_back(pair.prompt);
    }
  }

  SamplingOptions sampling(const Decoder& policy) const {
    SamplingOptions options;
    options.max_new_tokens = new_tokens_of(arguments_);
    options.seed = arguments_.seed;
    return with_end_tokens(options, arguments_.end_tokens, policy, *tokenizer_, chat_format_);
  }

  std::vector<std::string> sample_reference() {
    SamplingOptions options = sampling(*reference_);
    options.seed += 1;  // draws that have nothing to do with the policy's
    std::vector<std::string> texts;
    // Keys and values of all prompts at once could take any amount of memory.
    constexpr std::size_t kPart = 16;
    for (std::size_t first = 0; first < prompts_.size(); first += kPart) {
      const auto begin = prompts_.begin() + static_cast<std::ptrdiff_t>(first);
      const auto count = std::min(kPart, prompts_.size() - first);
      options.first_index = static_cast<std::int64_t>(first);
      for (const Ids& completion :
           sample(*reference_, {begin, begin + static_cast<std::ptrdiff_t>(count)}, options)) {
        texts.push_back(tokenizer_->decode_part(completion, prompts_[texts.size()]));
      }
    }
    return texts;
  }

  double loss_of(const std::shared_ptr<Policy>& model, std::shared_ptr<Reference> reference,
                 const SamplingOptions& sampling) const {
    TrainerOptions options;
    options.micro_batch_size = arguments_.batch;
    options.sampling = sampling;
    Trainer trainer(model, std::move(reference), *loss_, options);
    return metric(trainer.evaluate(pairs_), "loss");
  }

  /// The first completion of each prompt against the reference's.
  void judge(ModelReport& report) {
    std::vector<Contest> contests;
    for (std::size_t i = 0; i < prompts_.size(); ++i) {
      const Ids& completion =
          report.kl->completions[i * static_cast<std::size_t>(samples_of(arguments_))];
      contests.push_back({.prompt = tokenizer_->decode(prompts_[i]),
                          .policy = tokenizer_->decode_part(completion, prompts_[i]),
                          .reference = reference_texts_[i]});
    }
    report.contests = judge_contests(*judge_, contests);
    err_ << fmt::format("{}: {} contests judged\n", report.model, contests.size());
    if (!reward_) return;
    std::vector<double> policy_rewards, reference_rewards;
    for (const Contest& contest : contests) {
      policy_rewards.push_back(reward_(contest.prompt, contest.policy));
      reference_rewards.push_back(reward_(contest.prompt, contest.reference));
    }
    report.reward = bootstrap_mean(policy_rewards, seed());
    report.reference_reward = bootstrap_mean(reference_rewards, seed());
  }

  const EvalArguments& arguments_;
  at::Device device_;
  std::ostream& err_;
  bool of_rewards_;  ///< the models are reward models; there is no reference
  std::optional<Loss> loss_;
  double beta_ = 1;
  Reward reward_;
  std::unique_ptr<Judge> judge_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string chat_format_;
  std::shared_ptr<Decoder> reference_;
  std::vector<TokenRow> pairs_;
  std::vector<PairSums> reference_sums_;
  std::vector<Ids> prompts_;  // that differ
  std::vector<std::string> reference_texts_;
};

void write_files(const std::string& folder, const EvaluationReport& report) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw ConfigError(
        fmt::format("--out: expected to make the folder {}, got '{}'", folder, error.message()));
  }
  detail::write_file<ConfigError>(folder + "/evaluation.json", to_json(report) + "\n");
  detail::write_file<ConfigError>(folder + "/reliability.svg", reliability_chart(report));
}

}  // namespace

void run_eval(const EvalArguments& arguments, std::ostream& out, std::ostream& err) {
  check(arguments);
  const EndOfGroups end_of_judges;
  Evaluator evaluator(arguments, err);
  EvaluationReport report{.reference = arguments.reference,
                          .data = arguments.data,
                          .beta = evaluator.beta(),
                          .models = {}};
  for (const std::string& model : arguments.models) {
    report.models.push_back(evaluator.evaluate(model));
  }
  if (!arguments.out.empty()) write_files(arguments.out, report);
  out << (arguments.json ? to_json(report) + "\n" : to_table(report));
}

}  // namespace prefopt::cli
