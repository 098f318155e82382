// SPDX-License-Identifier: Apache-2.0
#include "run/resolve.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string_view>
#include <utility>

#include "core/activation_file.h"
#include "core/file.h"
#include "data/chat_writer.h"
#include "data/model_memory.h"
#include "data/tokenizer_difference.h"
#include "decoder/decoder_files.h"
#include "dist/gathering_ranks.h"
#include "policy/token_range.h"
#include "prefopt/data/step_ends.h"
#include "prefopt/decoder/decoder.h"
#include "prefopt/decoder/end_tokens.h"
#include "prefopt/decoder/reward_model.h"
#include "prefopt/decoder/value_head.h"
#include "prefopt/device.h"
#include "prefopt/error.h"
#include "prefopt/policy/moving_reference.h"
#include "prefopt/train/epoch_rows.h"
#include "run/model_base.h"
#include "run/online_run.h"
#include "run/plan/memory_budget.h"
#include "run/quantize_cost.h"
#include "run/reference_shares.h"
#include "run/run_prompt_cache.h"
#include "run/run_rows.h"
#include "run/stream_rows.h"
#include "train/epoch_order.h"

namespace prefopt::detail {
namespace {

constexpr std::array kLevels{Checkpointing::kNone, Checkpointing::kSelective, Checkpointing::kFull};
constexpr std::array kChoices{CheckpointingChoice::kNone, CheckpointingChoice::kSelective,
                              CheckpointingChoice::kFull};

at::Device device_of(const ModelOptions& options) {
  return parse_device(options.device, "model.device");
}

template <class Model>
void add_adapter(const ModelOptions& options, Model& policy) {
  if (!options.adapter.empty()) {
    policy.load_adapter(options.adapter);
  } else if (options.use_lora) {
    policy.add_adapter(options.lora);
  }
}

/// Throws ConfigError for a shape of an adapter where none is made.
void check_lora(const RunOptions& options) {
  const ModelOptions& model = options.model;
  const bool is_made = (model.use_lora && model.adapter.empty()) || options.value.use_lora;
  if (is_made || options_to_json(model.lora) == options_to_json(LoraOptions())) return;
  throw ConfigError(fmt::format(
      "model.lora: expected use_lora and no adapter with the shape of a fresh one, got {}",
      model.adapter.empty() ? "use_lora false" : fmt::format("adapter '{}'", model.adapter)));
}

/// The policy as it is now.
std::shared_ptr<Decoder> present_policy(const ReferenceOptions& options, const ModelOptions& model,
                                        const Decoder& policy) {
  if (options.moving || options.rule != ReferenceRule::kFixed) return policy.merged_decoder();
  if (!options.dtype.empty()) return policy.frozen_decoder();
  // A fresh adapter changes nothing yet, so the model without it needs no further memory.
  const bool changes_nothing =
      policy.adapter() && model.adapter.empty() && policy.adapter()->init_lora_weights != "false";
  return changes_nothing ? policy.without_adapter() : policy.frozen_adapter_copy();
}

/// The model of the policy with another adapter: the weights under it are shared if the policy does
/// not train them.
std::shared_ptr<Decoder> with_other_adapter(const ReferenceOptions& options,
                                            const ModelOptions& model, const Decoder& policy) {
  if (policy.adapter() && options.dtype.empty()) return policy.with_adapter(options.adapter);
  if (model.path.empty()) {
    throw ConfigError(fmt::format(
        "reference.adapter: expected a model of a file under it, model.path or reference.path, got "
        "neither with '{}'",
        options.adapter));
  }
  auto frozen = Decoder::load(model.path, kept_reference(options, model.path, model));
  frozen->load_adapter(options.adapter);
  frozen->to(device_of(model));
  return frozen;
}

FilesLater companions_of(const RunOptions& options, const Decoder& policy,
                         const Tokenizer& tokenizer, std::int64_t message_rows) {
  const std::string& asked = options.data.chat_format;
  const std::string format = chat_format_for_rows(asked, tokenizer);
  // A format that nobody chose and nothing used is not worth remembering.
  const bool chosen =
      asked != "auto" || !tokenizer.chat_format().empty() || !tokenizer.chat_template().empty();
  // "auto" here is a template that is rendered, whose answers end as it says.
  const bool remembers = format != "auto" && (chosen || message_rows > 0);
  FilesLater files = model_companions_later(options.model.tokenizer, options.model.path,
                                            remembers ? format : "", row_memory(options.data));
  if (policy.adapter()) return files;
  const std::string generation = generation_config_with(
      policy, end_tokens(policy, tokenizer, remembers || format == "auto" ? format : "plain"));
  if (generation.empty()) return files;
  return [files = std::move(files), generation] {
    FolderFiles all = files();
    all["generation_config.json"] = generation;
    return all;
  };
}

/// Throws ConfigError for sources that write by past weights: each rank puts them back for its own
/// prompts, at another time than the others, which would gather some of them.
void check_sliced_sources(const std::vector<SourceOptions>& sources, const ModelOptions& model,
                          const Meeting& meeting) {
  const bool trains_adapter = model.use_lora || !model.adapter.empty();
  if (!slices_weights(*meeting.ranks()) || trains_adapter) return;
  for (const SourceOptions& source : sources) {
    if (source.from != SourceKind::kLast && source.from != SourceKind::kPast) continue;
    throw ConfigError(fmt::format(
        "distributed.sharding: expected none, optimizer or gradients for the source '{}' of a "
        "model without an adapter, got weights",
        source.from == SourceKind::kLast ? "last" : "past"));
  }
}

void keep_slices(Policy* model, const Meeting& meeting) {
  if (model != nullptr && slices_weights(*meeting.ranks())) model->keep_slices(meeting.ranks());
}

/// Fills in what a fresh model's shape leaves to the tokenizer.
void complete_shape(ModelOptions& options, const Tokenizer& tokenizer) {
  DecoderOptions& shape = options.decoder;
  if (shape.vocab_size < tokenizer.vocab_size()) {
    throw ConfigError(
        fmt::format("model.decoder.vocab_size: expected at least the {} tokens of "
                    "the tokenizer '{}', got {}",
                    tokenizer.vocab_size(), tokenizer.name(), shape.vocab_size));
  }
  if (shape.bos_token_id < 0) shape.bos_token_id = tokenizer.bos_id();
  if (shape.eos_token_id < 0) shape.eos_token_id = tokenizer.eos_id();
  if (shape.pad_token_id < 0) shape.pad_token_id = tokenizer.pad_id();
  if (options.dtype == "keep") options.dtype = "float32";
}

const Decoder& layers_of(const Decoder& model) { return model; }
const Decoder& layers_of(const RewardModel& model) { return model.body(); }

std::shared_ptr<Decoder> load_model(const ModelOptions& options, const Decoder* /*kind*/) {
  return Decoder::load(options.path, kept_weights(options));
}
std::shared_ptr<RewardModel> load_model(const ModelOptions& options, const RewardModel* /*kind*/) {
  return RewardModel::load(options.path, kept_weights(options), ScoreHead::kFreshIfNone);
}

PlanAssumptions plan_of_ranks(const RanksOptions& options, int ranks) {
  PlanAssumptions machine;
  machine.ranks = machine.ranks_per_node = ranks;
  machine.sharding = options.sharding;
  return machine;
}

/// A `Decoder` or a `RewardModel`.
template <class Model>
std::shared_ptr<Model> make_model(ModelOptions& options, const Tokenizer& tokenizer,
                                  const Note& note, const Meeting& meeting) {
  std::shared_ptr<Model> model;
  if (options.path.empty()) {
    if (!options.quantize.empty()) kept_weights(options);  // refuses it
    if (options.base != "auto") {
      throw ConfigError(fmt::format(
          "model.base: expected auto for a fresh model, whose weights are in model.dtype, got '{}'",
          options.base));
    }
    complete_shape(options, tokenizer);
    const auto dtype = parse_dtype(options.dtype);
    model = std::make_shared<Model>(options.decoder);
    model->to(dtype);
  } else {
    model = load_model(options, model.get());
    options.decoder = layers_of(*model).options();
    const std::string& load_note = layers_of(*model).load_note();
    if (!load_note.empty()) note("model: " + load_note);
  }
  add_adapter(options, *model);
  const bool is_sliced = slices_weights(*meeting.ranks());
  if (!options.path.empty() && !layers_of(*model).adapter() && !is_sliced) {
    // Writing to pages that are mapped from a file copies them one by one, in the first step.
    model = std::dynamic_pointer_cast<Model>(model->frozen_copy());
    model->set_requires_grad(true);
  }
  model->to(device_of(options));
  if (is_sliced) model->keep_slices(meeting.ranks());
  const auto size = count_parameters(*model);
  note(fmt::format(
      "model: {} parameters, {}{}", size.all,
      options.path.empty() ? "fresh weights" : "from " + options.path,
      size.trained == size.all ? "" : fmt::format(", {} of them trained", size.trained)));
  return model;
}

std::shared_ptr<RewardModel> make_reward_model(ModelOptions& options, const Tokenizer& tokenizer,
                                               const Note& note, const Meeting& meeting) {
  auto model = make_model<RewardModel>(options, tokenizer, note, meeting);
  // The files of reward models name one: transformers takes no batch without.
  model->complete_pad_token(tokenizer);
  if (model->has_fresh_head()) note("model: a fresh score head");
  if (!options.quantize.empty()) {
    note(fmt::format("model.quantize: {}; what it costs is measured of language models alone",
                     options.quantize));
  }
  return model;
}

/// Sets the steps of rows for a loss on them. Throws ConfigError for a stream, whose rows have
/// none.
void set_steps(const TokenLoss& loss, const Tokenizer& tokenizer, bool is_stream, RunRows& rows) {
  const TokenLossNeeds needs = loss.needs();
  if (!needs.steps) return;
  if (is_stream) {
    throw ConfigError(fmt::format(
        "data.stream.buffer: expected 0 for '{}' on steps, which are found when rows are loaded, "
        "got more",
        loss.name()));
  }
  for (auto* const part : {&rows.train, &rows.eval}) {
    for (TokenRow& row : *part) {
      const auto ends = find_step_ends(row.chosen, tokenizer, needs.step_end);
      std::int64_t step = 0;
      for (std::int64_t t = 0; t < std::ssize(row.chosen); ++t) {
        while (t >= ends[static_cast<std::size_t>(step)]) ++step;
        const bool counts = row.chosen_mask.empty() || row.chosen_mask[static_cast<std::size_t>(t)];
        if (counts) row.rollout.turns.push_back(step);
      }
    }
  }
}

/// Throws ConfigError for options of a value model that the loss has no use for.
void check_value_options(const ValueModelOptions& options, const RunLoss& loss) {
  if (loss.has_values() || options_to_json(options) == options_to_json(ValueModelOptions())) return;
  throw ConfigError(fmt::format(
      "value: expected its defaults for '{}', which has no values, got others", loss.name()));
}

/// Returns the value model of an objective with values, else null.
std::shared_ptr<RewardPolicy> make_value_model(const RunOptions& options, const RunLoss& loss,
                                               const std::shared_ptr<Decoder>& policy,
                                               const Tokenizer& tokenizer, const Note& note) {
  const ValueModelOptions& value = options.value;
  if (!loss.has_values()) return nullptr;
  if (value.body == ValueBody::kPolicy) {
    if (!value.path.empty() || value.use_lora) {
      throw ConfigError(fmt::format(
          "value.{}: expected its default where value.body is 'policy', got another value",
          value.path.empty() ? "use_lora" : "path"));
    }
    return std::make_shared<ValueHead>(policy);
  }
  const auto kept = [&](const std::string& path) {
    const std::string& dtype = options.model.dtype;
    const bool may_keep = options.model.base == "auto" || options.model.base == "quantized";
    return value.use_lora && may_keep ? kept_frozen(path, dtype, device_of(options.model)) : dtype;
  };
  std::shared_ptr<RewardModel> model;
  if (!value.path.empty()) {
    const std::string path = followed(value.path);
    const std::string difference = tokenizer_difference(tokenizer, path);
    if (!difference.empty()) {
      throw ConfigError(
          fmt::format("value.path: expected a model that tokenizes as {} does, got {}, by which {}",
                      tokenizer.name(), path, difference));
    }
    model = RewardModel::load(path, kept(path), ScoreHead::kFreshIfNone);
    if (model->vocab_size() != policy->vocab_size()) {
      throw ConfigError(fmt::format(
          "value.path: expected a model with the policy's vocabulary of {} tokens, got {} with {}",
          policy->vocab_size(), path, model->vocab_size()));
    }
  } else if (options.model.path.empty()) {
    model = std::make_shared<RewardModel>(options.model.decoder);
    model->to(parse_dtype(options.model.dtype));
  } else if (value.use_lora && policy->adapter()) {
    model = RewardModel::on(*policy);  // one copy under both adapters
  } else {
    model =
        RewardModel::load(options.model.path, kept(options.model.path), ScoreHead::kFreshIfNone);
  }
  if (value.use_lora) {
    model->add_adapter(options.model.lora);
  } else {
    model = model->frozen_model();  // pages of a mapped file would be copied one by one
    model->set_requires_grad(true);
  }
  model->to(device_of(options.model));
  const auto size = count_parameters(*model);
  note(fmt::format("value model: {} parameters, {} of them trained", size.all, size.trained));
  return model;
}

void check_no_token_weights(const std::vector<TokenRow>& rows) {
  if (!has_token_weights(rows)) return;
  throw ConfigError(
      "loss: expected rows without weights of tokens for a reward model, which scores a text as "
      "a whole, got some");
}

/// Throws ConfigError for rows and options that a reward model would not read.
void check_reward_run(const RunOptions& options, const RunRows& rows) {
  check_no_token_weights(rows.train);
  check_no_token_weights(rows.eval);
  if (options.evaluate.sample_prompts == 0) return;
  if (options.evaluate.sample_prompts == EvaluateOptions().sample_prompts) return;
  throw ConfigError(
      fmt::format("evaluate.sample_prompts: expected 0 for a reward model, which writes nothing, "
                  "got {}",
                  options.evaluate.sample_prompts));
}

/// Opens or closes the file of activations.
void set_activation_file(const RunOptions& options) {
  const std::string& folder = options.machine.activation_folder;
  if (folder.empty()) {
    activation_file().reset();
    return;
  }
  constexpr const char* kOption = "machine.activation_folder";
  if (!device_of(options.model).is_cpu()) {
    throw ConfigError(fmt::format("{}: expected the cpu as model.device, got '{}'", kOption,
                                  options.model.device));
  }
  if (options.machine.checkpointing != CheckpointingChoice::kFull) {
    activation_file().reset();
    if (options.machine.memory_budget_mib > 0) return;  // which needs no file
    throw ConfigError(fmt::format(
        "{}: expected machine.checkpointing full, which leaves the inputs of layers to keep, got "
        "'{}'",
        kOption, folder));
  }
  activation_file() = std::make_shared<ActivationFile>(folder, kOption);
}

void set_checkpointing(MachineOptions& options, std::int64_t rows, Decoder& policy,
                       const Note& note) {
  const auto bytes = [&](Checkpointing level) { return policy.activation_bytes(rows, level); };
  const Checkpointing level = chosen_checkpointing(options, bytes);
  options.checkpointing = kChoices[static_cast<std::size_t>(level)];
  policy.set_checkpointing(level);
  note(fmt::format("checkpointing: {}, up to {:.0f} MiB kept for {} tokens", to_string(level),
                   static_cast<double>(bytes(level)) / (1 << 20), rows));
}

/// Throws ConfigError where the reference's own tokenizer gives texts other tokens than the run's,
/// which both models get; only notes it if the config named that one (`named`).
void check_reference_tokens(const ReferenceOptions& options, const Tokenizer& tokenizer, bool named,
                            const Note& note) {
  if (options.path.empty()) return;
  const std::string difference = tokenizer_difference(tokenizer, options.path);
  if (difference.empty()) return;
  if (named) {
    return note(fmt::format("reference: gets the tokens of {}, but by its own tokenizer {}",
                            tokenizer.name(), difference));
  }
  throw ConfigError(fmt::format(
      "reference.path: expected a model that tokenizes as {} does, got {}, by which {}; "
      "model.tokenizer names one for both",
      tokenizer.name(), options.path, difference));
}

std::shared_ptr<Policy> make_frozen(const ReferenceOptions& options, const ModelOptions& model,
                                    const Decoder& policy) {
  if (options.path.empty() && options.adapter.empty()) {
    const auto copy = present_policy(options, model, policy);
    if (!options.dtype.empty()) copy->to(parse_dtype(options.dtype));
    return copy;
  }
  const bool moves = options.moving || options.rule != ReferenceRule::kFixed;
  if (options.path.empty()) {
    const auto other = with_other_adapter(options, model, policy);
    // It may not move weights that the policy has, too.
    return moves ? other->merged_decoder()->frozen_decoder() : other;
  }
  auto frozen = Decoder::load(options.path, kept_reference(options, options.path, model));
  if (frozen->vocab_size() != policy.vocab_size()) {
    throw ConfigError(
        fmt::format("reference.path: expected a model with the policy's vocabulary "
                    "of {} tokens, got {} with {}",
                    policy.vocab_size(), options.path, frozen->vocab_size()));
  }
  frozen->to(device_of(model));
  if (options.adapter.empty()) return frozen;
  frozen->load_adapter(options.adapter);
  return moves ? frozen->merged_decoder() : frozen;
}

RoundReference make_reference(const RunOptions& run, const Decoder& policy, CacheLevel level) {
  const ReferenceOptions& options = run.reference;
  auto frozen = make_frozen(options, run.model, policy);
  if (options.rule != ReferenceRule::kFixed) {
    return follow(options, std::move(frozen), policy, run.seed);
  }
  if (options.moving) {
    return {std::make_shared<MovingReference>(std::move(frozen), policy, options.update)};
  }
  if (options.kind == ReferenceKind::kFrozen) return {make_frozen_reference(std::move(frozen))};
  return {std::make_shared<CachedReference>(std::move(frozen), options.cache_dir, level)};
}

/// Returns the stream of `data.train`, whose rows are checked when they come.
std::shared_ptr<StreamRows> make_stream(const RunOptions& options, RunRows rows,
                                        const RowNeeds& needs,
                                        const std::shared_ptr<const Tokenizer>& tokenizer,
                                        const std::shared_ptr<Decoder>& policy, bool of_rewards,
                                        const Note& note) {
  StreamParts parts{.data = options.data,
                    .needs = needs,
                    .tokenizer = tokenizer,
                    .held_out = std::move(rows.eval),
                    .is_held_out_cut = std::move(rows.eval_cut),
                    .batch = options.batch,
                    .seed = options.seed,
                    .check = {},
                    .note = note};
  parts.data.chat_format = chat_format_for_rows(options.data.chat_format, *tokenizer);
  parts.check = [policy, of_rewards](const std::vector<TokenRow>& step) {
    check_token_range(step, policy->vocab_size(), "data.train");
    check_row_lengths(step, *policy, "data.train");
    if (of_rewards) check_no_token_weights(step);
  };
  return std::make_shared<StreamRows>(std::move(parts));
}

/// Loads rows on all ranks: on rank 0 first where it writes a token cache that the others then
/// read.
template <class Load>
void first_rank_first(const DataOptions& options, Meeting& meeting, const Load& load) {
  const bool waits = !options.token_cache.empty();
  if (waits && !meeting.is_first()) meeting.wait();
  load();
  if (waits && meeting.is_first()) meeting.wait();
}

/// Returns the model behind a reference, which stays alive with it.
std::shared_ptr<Policy> borrowed_model(const std::shared_ptr<Reference>& reference) {
  return {reference, reference->policy()};
}

/// Returns the tokens of the largest micro-batch that rounds can make: each prompt once, and all
/// completions at their longest.
std::int64_t most_online_tokens(const OnlinePrompts& prompts,
                                const std::vector<SourceOptions>& sources,
                                const RunOptions& options) {
  std::int64_t prompt = 0;
  for (const OnlinePrompt& item : prompts.train) {
    prompt = std::max(prompt, std::ssize(item.ids) + 2 * std::ssize(item.completion));
  }
  std::int64_t completion = 0;
  for (const SourceOptions& source : sources) {
    completion = std::max(completion, source.from == SourceKind::kEnvironment
                                          ? source.max_tokens
                                          : source.sampling.max_new_tokens);
  }
  const auto micro = options.batch.micro_rows > 0 ? options.batch.micro_rows : options.batch.rows;
  const std::int64_t all = micro * (prompt + 2 * completion);
  const std::int64_t limit = options.batch.micro_tokens;
  return limit > 0 ? std::min(all, std::max(limit, prompt + 2 * completion)) : all;
}

}  // namespace

std::shared_ptr<const Tokenizer> open_run_tokenizer(ModelOptions& options) {
  if (options.tokenizer.empty()) {
    options.tokenizer =
        options.path.empty() ? "byte" : find_tokenizer(options.path, options.adapter);
  }
  return open_tokenizer(options.tokenizer, options.path, options.adapter);
}

Checkpointing chosen_checkpointing(const MachineOptions& options,
                                   const std::function<std::int64_t(Checkpointing)>& bytes) {
  if (options.checkpointing != CheckpointingChoice::kAutomatic) {
    return kLevels[static_cast<std::size_t>(
        std::find(kChoices.begin(), kChoices.end(), options.checkpointing) - kChoices.begin())];
  }
  const auto is_kept = [&](Checkpointing level) {
    return bytes(level) <= options.activation_budget_mib << 20;
  };
  const auto* const least = std::find_if(kLevels.begin(), kLevels.end(), is_kept);
  return least == kLevels.end() ? kLevels.back() : *least;
}

std::string_view to_string(Checkpointing checkpointing) {
  constexpr std::array<std::string_view, 3> kNames{"none", "selective", "full"};
  return kNames[static_cast<std::size_t>(checkpointing)];
}

ParameterCount count_parameters(const Policy& policy) {
  ParameterCount count;
  for (const auto& [name, value] : policy.named_parameters()) {
    count.all += value.numel();
    if (value.requires_grad()) count.trained += value.numel();
  }
  return count;
}

void check_evaluations(const EvaluateOptions& options, bool has_held_out, bool has_rounds) {
  const bool are_regular = options.every > 0 || has_rounds;
  const std::string_view held_out = has_rounds ? "held-out prompts" : "held-out rows";
  const std::string_view settings = has_rounds ? "online.eval_prompts or online.eval_fraction"
                                               : "data.eval or data.eval_fraction";
  if (options.patience > 0 && (!are_regular || !has_held_out)) {
    throw ConfigError(
        fmt::format("evaluate.patience: expected evaluations to count, got {}; set {}{}",
                    are_regular ? fmt::format("no {}", held_out) : "evaluate.every 0",
                    has_rounds ? "" : "evaluate.every and ", settings));
  }
  if (has_held_out || options.best_metric == EvaluateOptions().best_metric) return;
  throw ConfigError(
      fmt::format("evaluate.best_metric: expected {} to find '{}' of, got none; set {}", held_out,
                  options.best_metric, settings));
}

void note_idle_evaluations(const EvaluateOptions& options, bool has_held_out, const Note& note) {
  if (options.every == 0 || has_held_out) return;
  note(fmt::format("evaluate.every: {}, but nothing is held out, so nothing is evaluated",
                   options.every));
}

std::int64_t count_steps(const BatchOptions& options, std::int64_t rows_an_epoch) {
  if (options.steps > 0) return options.steps;
  if (rows_an_epoch == 0) {
    throw ConfigError(
        "batch.steps: expected a number of steps, got 0; the rows have no end that epochs count");
  }
  return count_epoch_steps(options.epochs, static_cast<double>(rows_an_epoch), options.rows);
}

ResolvedRun resolve(RunOptions options, const RunLoss& loss, const RunEvents& events,
                    const Note& note, Meeting& meeting) {
  const LossRequirements needs = loss.requirements();
  const bool is_online = options.online.is_online();
  const bool is_stream = options.data.stream.buffer > 0;
  if (is_stream) check_stream_options(options);
  check_dtypes(options.model, options.reference);
  check_lora(options);
  const bool is_named = !options.model.tokenizer.empty();
  for (std::string* path : {&options.model.path, &options.model.adapter, &options.model.tokenizer,
                            &options.reference.path, &options.reference.adapter}) {
    *path = followed(*path);
  }
  options.model.device = device_of(options.model).str();  // before anything is read
  check_prompt_cache(options, loss);
  const auto tokenizer = open_run_tokenizer(options.model);
  RowNeeds of_rows = row_needs(needs);
  of_rows.context_length = options.model.path.empty()
                               ? options.model.decoder.max_position_embeddings
                               : context_length_of(options.model.path);
  RunRows rows;
  OnlinePrompts prompts;
  std::vector<SourceOptions> sources;
  first_rank_first(options.data, meeting, [&] {
    if (is_online) {
      sources = parse_sources(options.online.sources, options.sampling, "online.sources");
      prompts = load_online_prompts(options, sources, *tokenizer, note);
    } else if (is_stream) {
      rows = load_held_out(options.data, *tokenizer, of_rows, note);
    } else {
      rows = load_rows(options.data, *tokenizer, of_rows, note);
    }
  });
  check_sliced_sources(sources, options.model, meeting);
  if (loss.objective() != nullptr && !is_online) {
    throw ConfigError(fmt::format(
        "online.prompts: expected a file of prompts for '{}', which learns from completions that "
        "the policy writes, got none",
        loss.name()));
  }
  if (loss.token_loss() != nullptr && is_online) {
    throw ConfigError(fmt::format(
        "online.prompts: expected none for '{}', which learns from given rows, got '{}'",
        loss.name(), options.online.prompts));
  }
  check_value_options(options.value, loss);
  const bool has_held_out = !rows.eval.empty() || !prompts.held_out.empty();
  check_evaluations(options.evaluate, has_held_out, is_online);
  note_idle_evaluations(options.evaluate, has_held_out, note);

  if (is_online && needs.of_rewards) {
    throw ConfigError(fmt::format(
        "online.prompts: expected none for '{}', as a reward model writes nothing, got '{}'",
        loss.name(), options.online.prompts));
  }
  std::shared_ptr<Policy> trained;
  std::shared_ptr<Decoder> policy;  // or the layers of a reward model
  if (needs.of_rewards) {
    if (options.machine.memory_budget_mib > 0) {
      throw ConfigError(fmt::format(
          "machine.memory_budget_mib: expected 0 for a reward model, whose memory is not planned, "
          "got {}",
          options.machine.memory_budget_mib));
    }
    check_reward_run(options, rows);
    options.evaluate.sample_prompts = 0;
    const auto model = make_reward_model(options.model, *tokenizer, note, meeting);
    policy = std::shared_ptr<Decoder>(model, &model->body());
    trained = model;
  } else {
    options.model = with_numbers_for(options.reference, options.model);
    fit_memory(options, rows, plan_of_ranks(options.distributed, meeting.size()), note);
    const QuantizeCost cost(options.model, rows.eval, options.machine.head_budget_mib << 20);
    policy = make_model<Decoder>(options.model, *tokenizer, note, meeting);
    trained = policy;
    cost.tell(*policy, note);
  }
  set_activation_file(options);
  if (loss.token_loss() != nullptr) set_steps(*loss.token_loss(), *tokenizer, is_stream, rows);
  check_token_range(rows.train, policy->vocab_size(), "data.train");
  check_token_range(rows.eval, policy->vocab_size(), "data.eval");
  check_row_lengths(rows.train, *policy, "data.train");
  check_row_lengths(rows.eval, *policy, "data.eval");
  std::shared_ptr<StreamRows> stream;
  if (is_stream) {
    stream =
        make_stream(options, std::move(rows), of_rows, tokenizer, policy, needs.of_rewards, note);
    rows.message_rows = stream->message_rows();
  }
  FilesLater companions = companions_of(options, *policy, *tokenizer, rows.message_rows);
  const auto complete = [&](SamplingOptions& sampling) {
    sampling = with_end_tokens(sampling, *policy, *tokenizer, options.data.chat_format);
    sampling.tokenizer = tokenizer;
  };
  complete(options.sampling);
  for (SourceOptions& source : sources) complete(source.sampling);
  options.data.chat_format = chat_format_for_rows(options.data.chat_format, *tokenizer);
  if (options.reference.cache_dir.empty()) {
    options.reference.cache_dir = RunFolder(options.output_dir).file("reference-cache");
  }

  RoundReference reference;
  if (needs.reference() || needs.sample_source == SampleSource::kReference) {
    // Whoever weighs tokens needs each.
    const bool by_token = needs.has(Input::ref_chosen_overlap_logps) || needs.limits || is_stream ||
                          loss.token_loss() != nullptr || has_token_weights(rows.train) ||
                          has_token_weights(rows.eval);
    if (!options.model.tokenizer.empty()) {
      check_reference_tokens(options.reference, *tokenizer, is_named, note);
    }
    reference =
        make_reference(options, *policy, by_token ? CacheLevel::kToken : CacheLevel::kSequence);
    keep_slices(reference.reference->policy(), meeting);
    share_cache(reference.reference.get(), meeting);
  } else if (options.reference.rule != ReferenceRule::kFixed) {
    throw ConfigError(fmt::format(
        "reference.rule: expected 'fixed' for '{}', which has no reference, got another rule",
        loss.name()));
  }
  ResolvedRun run{.options = {},
                  .policy = trained,
                  .reference = reference.reference,
                  .source = nullptr,
                  .companions = std::move(companions)};
  if (is_online) {
    set_checkpointing(options.machine, most_online_tokens(prompts, sources, options), *policy,
                      note);
    std::shared_ptr<Policy> initial;
    if (needs_initial(options.online, sources)) {
      const bool has_it = reference.reference && options.reference.rule == ReferenceRule::kFixed &&
                          !options.reference.moving;
      initial = has_it ? borrowed_model(reference.reference)
                       : make_frozen(options.reference, options.model, *policy);
      keep_slices(initial.get(), meeting);
    }
    run.rollouts.temperature = rollout_temperature(sources);
    for (const SourceOptions& source : sources) run.rollouts.completions += source.n;
    run.rollouts.value_model = make_value_model(options, loss, policy, *tokenizer, note);
    run.source = make_online_rows(
        options, std::move(prompts), std::move(sources), tokenizer, *policy, std::move(initial),
        loss, reference, run.rollouts.value_model, meeting, events, note, run.planned_steps);
  } else if (is_stream) {
    const std::int64_t context = policy->options().max_position_embeddings;
    run.rollouts.value_model = make_value_model(options, loss, policy, *tokenizer, note);
    set_checkpointing(options.machine, most_stream_tokens(options, context), *policy, note);
    run.source = stream;
  } else {
    run.rollouts.value_model = make_value_model(options, loss, policy, *tokenizer, note);
    set_checkpointing(options.machine, most_tokens(rows.train, options.batch), *policy, note);
    score_ahead(run.reference.get(), rows, needs, options, meeting, note);
    run.source = std::make_shared<EpochRows>(EpochData{.rows = std::move(rows.train),
                                                       .held_out = std::move(rows.eval),
                                                       .is_cut = std::move(rows.train_cut),
                                                       .is_held_out_cut = std::move(rows.eval_cut),
                                                       .tokenizer = tokenizer,
                                                       .parts = std::move(rows.parts)},
                                             EpochOptions{.batch_size = options.batch.rows,
                                                          .seed = options.seed,
                                                          .shuffle = options.batch.shuffle});
  }
  run.options = std::move(options);
  return run;
}

}  // namespace prefopt::detail
