// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <ostream>
#include <utility>

#include "cli/chosen_steps.h"
#include "cli/commands.h"
#include "cli/inputs.h"
#include "core/json.h"
#include "data/chat_template.h"
#include "data/chat_writer.h"
#include "data/conversation.h"
#include "data/data_files.h"
#include "data/row_preparation.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/records.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/prompt_cache.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/error.h"
#include "prefopt/online/rollout.h"
#include "prefopt/policy/drafted_sampling.h"
#include "prefopt/policy/sampling.h"
#include "prefopt/policy/value_search.h"

namespace prefopt::cli {
namespace {

using detail::Json;
using detail::RowDefect;

struct Prompt {
  std::string text;
  std::vector<std::int64_t> ids;
};

/// Reads prompts and makes tokens of them as of those of rows to train on.
class PromptReader {
 public:
  PromptReader(const GenerateArguments& arguments, const Tokenizer& tokenizer,
               std::int64_t vocab_size, DataOptions options, std::ostream& err)
      : arguments_(arguments),
        tokenizer_(tokenizer),
        vocab_size_(vocab_size),
        options_(std::move(options)),
        err_(err) {
    options_.chat_format = detail::chat_format_for_rows(arguments.chat_format, tokenizer);
    chat_template_ = detail::chat_template_for_rows(options_, tokenizer);
  }

  std::vector<Prompt> read() {
    for (const std::string& text : arguments_.prompts) take_text(text);
    for (const std::string& text : arguments_.messages) take_message(text);
    if (!arguments_.data.empty()) read_rows();
    const std::string note =
        detail::chat_format_note(arguments_.chat_format, tokenizer_, message_rows_);
    if (!note.empty()) err_ << "prefopt: " << note << '\n';
    return std::move(prompts_);
  }

 private:
  void read_rows() {
    for (const std::string& path : detail::find_files_of_rows(arguments_.data, DataSplit::kAny)) {
      detail::read_prompts(path, tokenizer_, options_,
                           [&](const PreferenceRow& row, const detail::RowTrace& trace) {
                             ++report_.rows_read;
                             for (const auto& column : trace.unread) ++report_.unread[column.name];
                             take(row, detail::row_place(path, row.line));
                           });
    }
    if (const std::string summary = report_.summary(); !summary.empty()) err_ << summary << '\n';
    if (prompts_.empty()) {
      throw DataError(arguments_.data + ": expected at least one row, got none");
    }
  }

  void take_text(const std::string& text) {
    PreferenceRow row;
    row.prompt = text;
    take(row, "--prompt");
  }

  void take_message(const std::string& text) {
    constexpr std::string_view kWhere = "--message";
    const detail::ChatWriter chat(options_.chat_format, kWhere);
    detail::Turns messages;
    if (arguments_.system) messages.emplace_back("system", *arguments_.system);
    messages.emplace_back("user", text);
    const bool is_rendered = chat_template_ != nullptr &&
                             (options_.chat_format == "auto" || chat_template_->has_variables());
    if (arguments_.system && !is_rendered && !chat.has_system_turn()) {
      throw ConfigError(fmt::format(
          "--system: expected a chat format that has a turn for it, got '{}'", chat.name()));
    }
    const detail::TemplateRow nothing_more;
    const detail::ConversationRules rules{
        .chat = chat,
        .where = kWhere,
        .loss_on = options_.loss_on,
        .removes_repeats = false,
        .chat_template = is_rendered ? chat_template_.get() : nullptr,
        .template_row = &nothing_more,
        .prompt_alone = true};
    take(detail::conversation_row({.prompt = messages, .chosen = {{"assistant", ""}}}, rules),
         std::string(kWhere));
  }

  void take(const PreferenceRow& row, const std::string& where) {
    const detail::PreparedRow prepared = detail::prepare_prompt(row, tokenizer_, options_);
    for (const RowDefect defect : prepared.defects) {
      if (!is_used(defect, row, where)) return;
    }
    message_rows_ += row.from_messages ? 1 : 0;
    const std::vector<std::int64_t>& ids = prepared.pair.prompt;
    check_ids(ids, where);
    prompts_.push_back({row.tokenized ? tokenizer_.decode(ids) : row.prompt, ids});
  }

  void check_ids(const std::vector<std::int64_t>& ids, const std::string& where) const {
    for (const std::int64_t id : ids) {
      if (id >= 0 && id < vocab_size_) continue;
      throw DataError(fmt::format(
          "{}: expected token ids from 0 to {}, the model's, got {}; is the tokenizer another "
          "model's?",
          where, vocab_size_ - 1, id));
    }
  }

  /// Heeds what the options say of a row with the defect.
  bool is_used(RowDefect defect, const PreferenceRow& row, const std::string& where) {
    // Of completions, which nothing is made of here.
    if (defect == RowDefect::kEndsWithUser) return true;
    const auto [policy, option, value] = detail::policy_for(defect, options_);
    const std::string name(detail::defect_name(defect));
    if (policy == RowAction::kError) throw DataError(detail::refusal_of(defect, options_, where));
    if (policy == RowAction::kDrop) {
      report_.dropped[name].push_back(row.line);
      return false;
    }
    if (defect == RowDefect::kRepeatedPrompt) return true;  // likewise
    if (row.line > 0) {
      report_.kept_with[name].push_back(row.line);
    } else {
      err_ << fmt::format("prefopt: {}: {} ({} = '{}')\n", where, name, option, value);
    }
    return true;
  }

  const GenerateArguments& arguments_;
  const Tokenizer& tokenizer_;
  std::int64_t vocab_size_;
  DataOptions options_;
  std::unique_ptr<const detail::ChatTemplate> chat_template_;
  std::ostream& err_;
  std::vector<Prompt> prompts_;
  RowReport report_;
  std::int64_t message_rows_ = 0;
};

void check_candidates(const GenerateArguments& arguments) {
  if (arguments.json) {
    throw ConfigError(
        "--candidates: expected no --json, which prints a line per completion, got both");
  }
  if (arguments.temperature == 0 && arguments.samples > 1) {
    throw ConfigError(fmt::format(
        "--candidates: expected a temperature above 0, got 0; all {} samples would be equal",
        arguments.samples));
  }
}

void check_search(const GenerateArguments& arguments) {
  if (arguments.value.empty()) {
    const auto refuse = [](std::string_view option, bool is_given) {
      if (!is_given) return;
      throw ConfigError(
          fmt::format("{}: expected a --value that steps are searched by, got none", option));
    };
    refuse("--beams", arguments.beams.has_value());
    refuse("--step-end", arguments.step_end.has_value() && arguments.choose_steps == 0);
    return;
  }
  if (arguments.candidates || arguments.samples != 1 || !arguments.stop.empty()) {
    throw ConfigError(fmt::format(
        "--value: expected no {}, got it; the search gives one completion of a prompt, the best",
        arguments.candidates     ? "--candidates"
        : arguments.samples != 1 ? "--samples"
                                 : "--stop"));
  }
}

void check_drafts(const GenerateArguments& arguments) {
  if (arguments.draft_tokens == 0) return;
  if (arguments.draft_tokens < 0) {
    throw ConfigError(
        fmt::format("--draft-tokens: expected at least 0, got {}", arguments.draft_tokens));
  }
  const char* other = arguments.candidates         ? "--candidates"
                      : !arguments.value.empty()   ? "--value"
                      : arguments.choose_steps > 0 ? "--choose-steps"
                      : !arguments.guides.empty()  ? "--guide"
                                                   : nullptr;
  if (other == nullptr) return;
  throw ConfigError(
      fmt::format("--draft-tokens: expected plain completions of one model, got {}", other));
}

void check(const GenerateArguments& arguments) {
  const int sources = (arguments.prompts.empty() ? 0 : 1) + (arguments.messages.empty() ? 0 : 1) +
                      (arguments.data.empty() ? 0 : 1);
  if (sources != 1) {
    throw ConfigError(
        fmt::format("generate: expected one of --prompt, --message and --data, got {}",
                    sources == 0 ? "none" : "several"));
  }
  if (arguments.system && arguments.messages.empty()) {
    throw ConfigError("--system: expected a --message that it goes before, got none");
  }
  if (arguments.samples < 1) {
    throw ConfigError(fmt::format("--samples: expected at least 1, got {}", arguments.samples));
  }
  if (arguments.candidates) check_candidates(arguments);
  check_search(arguments);
  check_step_choice(arguments);
  check_drafts(arguments);
}

// Completions are drawn in parts, so that a long file needs no more memory than a short one;
// first_index makes the draws those of one call.
constexpr std::size_t kPart = 64;

using Ids = std::vector<std::int64_t>;

/// Prompts that are kept while a command lasts: samples of one may be of several parts, and nothing
/// changes the weights.
class PromptsOfCommand {
 public:
  PromptsOfCommand() { set_prompt_cache(kBytes); }
  ~PromptsOfCommand() { set_prompt_cache(0); }
  PromptsOfCommand(const PromptsOfCommand&) = delete;
  PromptsOfCommand& operator=(const PromptsOfCommand&) = delete;

 private:
  static constexpr std::int64_t kBytes = std::int64_t{256} << 20;
};

void print_completions(const GenerateArguments& arguments, Policy& policy,
                       const Tokenizer& tokenizer, const std::vector<Prompt>& prompts,
                       const SamplingOptions& sampling, std::ostream& out) {
  SamplingOptions options = sampling;
  const auto samples = static_cast<std::size_t>(arguments.samples);
  const std::size_t total = prompts.size() * samples;
  for (std::size_t first = 0; first < total; first += kPart) {
    std::vector<Ids> part;
    for (std::size_t i = first; i < std::min(first + kPart, total); ++i) {
      part.push_back(prompts[i / samples].ids);
    }
    options.first_index = static_cast<std::int64_t>(first);
    const auto completions = arguments.draft_tokens > 0
                                 ? sample_with_drafts(policy, part, options, arguments.draft_tokens)
                                 : sample(policy, part, options);
    for (std::size_t i = 0; i < completions.size(); ++i) {
      const std::string completion = tokenizer.decode_part(completions[i], part[i]);
      if (arguments.json) {
        const Json line{{"prompt", prompts[(first + i) / samples].text},
                        {"completion", completion},
                        {"ids", completions[i]}};
        out << detail::dump_json(line) << '\n';
      } else {
        out << completion << '\n';
      }
    }
  }
}

/// Draws what print_completions draws.
void print_candidates(const GenerateArguments& arguments, Policy& policy,
                      const Tokenizer& tokenizer, const std::vector<Prompt>& prompts,
                      const SamplingOptions& options, std::ostream& out) {
  const auto samples = static_cast<std::size_t>(arguments.samples);
  const std::size_t at_once = std::max(kPart / samples, std::size_t{1});
  for (std::size_t first = 0; first < prompts.size(); first += at_once) {
    const std::size_t count = std::min(at_once, prompts.size() - first);
    std::vector<Ids> part;
    for (std::size_t i = 0; i < count; ++i) part.push_back(prompts[first + i].ids);
    RolloutOptions rollout_options{.samples_per_prompt = arguments.samples, .sampling = options};
    rollout_options.sampling.first_index = static_cast<std::int64_t>(first * samples);
    const std::vector<Rollout> rollouts = draw_rollouts(policy, part, rollout_options);
    for (std::size_t i = 0; i < count; ++i) {
      Json completions = Json::array(), token_logps = Json::array(), ended = Json::array();
      for (std::size_t k = i * samples; k < (i + 1) * samples; ++k) {
        // Without the end token, which a row that is trained on gets again.
        completions.push_back(completion_text(rollouts[k].completion, tokenizer, options, part[i]));
        token_logps.push_back(rollouts[k].token_logps);
        ended.push_back(rollouts[k].ended);
      }
      const Json line{{"prompt", prompts[first + i].text},
                      {"completions", completions},
                      {"token_logps", token_logps},
                      {"ended", ended}};
      out << detail::dump_json(line) << '\n';
    }
  }
}

/// Searches for the completion of each prompt by a value model.
void print_search(const GenerateArguments& arguments, Policy& policy, const Tokenizer& tokenizer,
                  const std::vector<Prompt>& prompts, const SamplingOptions& sampling,
                  std::ostream& out) {
  const auto values =
      load_reward_model(arguments.value, tokenizer, dtype_for(arguments.value, arguments.dtype));
  if (values->vocab_size() != policy.vocab_size()) {
    throw ConfigError(
        fmt::format("--value: expected a model with the policy's vocabulary of {} tokens, got {}",
                    policy.vocab_size(), values->vocab_size()));
  }
  ValueSearchOptions options{.sampling = sampling};
  options.beams = arguments.beams.value_or(options.beams);
  options.step_end = arguments.step_end.value_or(options.step_end);
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const ValuedCompletion best =
        search_by_values(policy, *values, prompts[i].ids, options, static_cast<std::int64_t>(i))
            .front();
    const std::string completion = tokenizer.decode_part(best.completion, prompts[i].ids);
    if (arguments.json) {
      const Json line{{"prompt", prompts[i].text},
                      {"completion", completion},
                      {"ids", best.completion},
                      {"value", best.value}};
      out << detail::dump_json(line) << '\n';
    } else {
      out << completion << '\n';
    }
  }
}

}  // namespace

void run_generate(const GenerateArguments& arguments, std::ostream& out, std::ostream& err) {
  check(arguments);
  SamplingOptions options{.max_new_tokens = arguments.max_new_tokens,
                          .temperature = arguments.temperature,
                          .top_k = arguments.top_k,
                          .top_p = arguments.top_p,
                          .seed = arguments.seed,
                          .min_new_tokens = arguments.min_new_tokens,
                          .repetition_penalty = arguments.repetition_penalty,
                          .stop = arguments.stop};
  options = checked(options, "generate");
  const auto tokenizer = load_tokenizer(arguments);
  options.tokenizer = tokenizer;
  const auto policy = load_model(arguments, err);
  options =
      with_end_tokens(options, arguments.end_tokens, *policy, *tokenizer, arguments.chat_format);

  const auto prompts =
      PromptReader(arguments, *tokenizer, policy->vocab_size(),
                   noted_row_options(arguments.rows, arguments.chat_format, row_memory(arguments),
                                     RowPart::kPrompts, err),
                   err)
          .read();
  if (arguments.choose_steps > 0) {
    std::vector<std::vector<std::int64_t>> ids;
    for (const Prompt& prompt : prompts) ids.push_back(prompt.ids);
    print_chosen_steps(arguments, *policy, *tokenizer, ids, options, out, err);
    return;
  }
  const PromptsOfCommand kept_prompts;
  const auto guided = with_guides(policy, arguments.guides, arguments.dtype, *tokenizer, err);
  if (!arguments.value.empty()) {
    options.tokenizer = tokenizer;
    return print_search(arguments, *guided, *tokenizer, prompts, options, out);
  }
  const auto print = arguments.candidates ? print_candidates : print_completions;
  print(arguments, *guided, *tokenizer, prompts, options, out);
}

}  // namespace prefopt::cli
