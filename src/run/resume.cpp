// SPDX-License-Identifier: Apache-2.0
#include "run/resume.h"

#include <c10/util/StringUtil.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <system_error>

#include "core/file.h"
#include "core/hash.h"
#include "core/text.h"
#include "kernels/block_tensor.h"
#include "math/sliced_weight.h"
#include "prefopt/error.h"
#include "prefopt/options.h"
#include "prefopt/run/run.h"
#include "run/run_loss.h"

namespace prefopt::detail {
namespace {

namespace fs = std::filesystem;

bool exists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool is_same_folder(const std::string& a, const std::string& b) {
  std::error_code ignored;
  return fs::equivalent(a, b, ignored);
}

/// The newest whole checkpoint, none in a run that has not saved one yet.
std::optional<std::string> newest_whole(const RunFolder& folder, const Note& note) {
  const CheckpointStore& store = folder.checkpoints();
  const auto last = store.last();
  std::vector<std::int64_t> steps = store.steps();
  if (last) {
    std::erase_if(steps, [&](std::int64_t step) { return step >= *last; });
    steps.push_back(*last);
  }
  if (steps.empty()) return std::nullopt;
  std::string first_defect;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const std::string path = store.folder_of(*step);
    const std::string defect = defect_of_checkpoint(path);
    if (defect.empty()) return path;
    note(fmt::format("checkpoint step-{} is damaged and passed over: {}", *step, defect));
    if (first_defect.empty()) first_defect = defect;
  }
  throw CheckpointError(fmt::format("{}: expected a whole checkpoint, got none; {}",
                                    folder.file("checkpoints"), first_defect));
}

/// Options that change no result: where things lie (their content has a hash), what is written
/// when, and how long.
constexpr std::array<std::string_view, 30> kHarmless = {"output_dir",
                                                        "machine.memory_budget_mib",
                                                        "machine.activation_folder",
                                                        "machine.prompt_cache_mib",
                                                        "model.path",
                                                        "model.adapter",
                                                        "model.tokenizer",
                                                        "reference.path",
                                                        "reference.adapter",
                                                        "reference.cache_dir",
                                                        "data.train",
                                                        "data.eval",
                                                        "data.chat_format",
                                                        "data.token_cache",
                                                        "evaluate.log_every",
                                                        "evaluate.every",
                                                        "evaluate.patience",
                                                        "evaluate.sample_prompts",
                                                        "evaluate.sample_tokens",
                                                        "online.at_once",
                                                        "online.feedback.workers",
                                                        "online.feedback.timeout",
                                                        "online.feedback.retries",
                                                        "online.feedback.max_failures",
                                                        "checkpoint.every",
                                                        "checkpoint.keep_last",
                                                        "checkpoint.keep_best",
                                                        "machine.head_budget_mib",
                                                        "machine.activation_budget_mib",
                                                        "distributed.timeout_seconds"};

/// Options that decide in which order numbers are added up.
constexpr std::array<std::string_view, 9> kRounding = {
    "model.device",         "machine.threads",    "machine.checkpointing",
    "batch.micro_rows",     "batch.micro_tokens", "distributed.backend",
    "distributed.sharding", "distributed.order",  "distributed.bucket_mib"};

/// A list of objects, as of the terms of a mix.
bool is_list_of_objects(const Json& value) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_object(); });
}

/// Each number, text or plain list under its path, `a.b` or `a.0.b`.
void flatten(const Json& value, const std::string& path, std::map<std::string, std::string>& flat) {
  if (!value.is_object() && !is_list_of_objects(value)) {
    flat[path] = dump_json(value);
    return;
  }
  for (const auto& [key, inner] : value.items()) {
    flatten(inner, path.empty() ? key : fmt::format("{}.{}", path, key), flat);
  }
}

std::map<std::string, std::string> flattened(const Json& value) {
  std::map<std::string, std::string> flat;
  flatten(value, "", flat);
  return flat;
}

std::string value_or_none(const std::map<std::string, std::string>& flat, const std::string& key) {
  const auto found = flat.find(key);
  return found == flat.end() ? "none" : found->second;
}

/// The length of a schedule is part of it, that of a constant one is not.
bool may_change_length(const Json& config) {
  const Json optimizer = config.value("optimizer", Json::object());
  return optimizer.value("schedule", Json()) == "constant";
}

/// Every option but those of losses, at its default.
std::map<std::string, std::string> defaults() {
  Json options = parse_json<ConfigError>(options_to_json(RunOptions()), "run");
  options.erase("loss");
  return flattened(options);
}

/// The config with the options that its loss, or a term of it, has got since it was saved, at
/// their defaults. As it is where this version has no such loss.
Json with_whole_loss(Json config) {
  try {
    const Json loss = config.value("loss", Json::object());
    config["loss"] = parse_json<ConfigError>(RunLoss(dump_json(loss)).config(), "loss");
  } catch (const ConfigError&) {
    // The comparison names what this version does not know.
  }
  return config;
}

/// The config with the group of ranks, which a config of one process leaves out.
Json with_ranks(Json config) {
  if (!config.contains("distributed")) {
    config["distributed"] = parse_json<ConfigError>(options_to_json(RanksOptions()), "run");
  }
  return config;
}

bool draws_samples(const Json& config) {
  if (config.contains("online")) return true;  // sources have these options where they name none
  const auto needs = RunLoss(dump_json(config.at("loss"))).requirements();
  return needs.sample_source != SampleSource::kNone;
}

/// The differences of two configs that matter, as "key: old -> new"; `note` hears of those that
/// change rounding or the samples of evaluations alone.
std::vector<std::string> config_changes(const Json& saved, const Json& present, const Note& note) {
  const Json before = with_ranks(with_whole_loss(with_present_places(saved)));
  const Json now = with_ranks(present);
  const bool free_length = may_change_length(now);
  const bool free_sampling = !draws_samples(now);
  const auto old_values = flattened(before);
  const auto new_values = flattened(now);
  const auto usual = defaults();
  std::vector<std::string> refused;
  for (const auto& [key, change] : differences(before, now)) {
    const bool is_length = key == "batch.steps" || key == "batch.epochs";
    const bool has_contents = key.starts_with("data.") || key.starts_with("model.decoder.");
    const bool is_default = usual.contains(key) && usual.at(key) == value_or_none(new_values, key);
    const bool is_new = !old_values.contains(key) && (has_contents || is_default);
    // The rows and their weights are among the contents.
    const bool is_place = key.starts_with("data.train.") || key.starts_with("data.eval.");
    if (is_place || contains(kHarmless, key) || (is_length && free_length) || is_new) continue;
    if (contains(kRounding, key)) {
      note(fmt::format("resume: {}; results may differ in their last digits", change));
    } else if (free_sampling && key.starts_with("sampling.")) {
      note(
          fmt::format("resume: {}; evaluations draw other samples from here on, and estimate kl "
                      "by them",
                      change));
    } else {
      refused.push_back(change);
    }
  }
  return refused;
}

/// The subject of a hash among the contents, and the options that say where it comes from.
struct HashedContent {
  std::string_view key, name;
  std::vector<std::string_view> places;
};

std::vector<HashedContent> hashed_contents() {
  return {{"train_rows", "rows to train on", {"data.train", "online.prompts"}},
          {"eval_rows", "held-out rows", {"data.eval", "data.train", "online.prompts"}},
          {"model", "weights of the model", {"model.path", "model.adapter"}},
          {"reference", "weights of the reference", {"reference.path", "reference.adapter"}}};
}

/// "data.train "a.jsonl" -> "b.jsonl"", or "data.train "a.jsonl", as before" of the places that the
/// configs have; empty where they have none.
std::string shown_places(const HashedContent& content, const Json& before, const Json& now) {
  const auto old_values = flattened(before);
  const auto new_values = flattened(now);
  std::vector<std::string> shown;
  for (const std::string_view place : content.places) {
    const std::string key(place);
    const std::string was = value_or_none(old_values, key), is = value_or_none(new_values, key);
    const auto is_given = [](const std::string& value) {
      return value != "none" && value != "\"\"";
    };
    if (!is_given(was) && !is_given(is)) continue;
    shown.push_back(was == is ? fmt::format("{} {}", key, is)
                              : fmt::format("{} {} -> {}", key, was, is));
  }
  return shown.empty() ? "" : fmt::format(" ({})", fmt::join(shown, ", "));
}

/// The differences of contents: hashes by the name of what they are of.
std::vector<std::string> content_changes(const Json& before, const Json& now) {
  std::vector<std::string> changes;
  const std::vector<HashedContent> hashed = hashed_contents();
  for (const auto& [key, change] : differences(before.at("contents"), now.at("contents"))) {
    // Checkpoints of the first version lack it.
    if (key == "adapter_scale" && !before.at("contents").contains(key)) continue;
    const auto content =
        std::find_if(hashed.begin(), hashed.end(),
                     [&name = key](const HashedContent& one) { return one.key == name; });
    changes.push_back(
        content == hashed.end()
            ? change
            : fmt::format("other {}{}", content->name,
                          shown_places(*content, before.at("config"), now.at("config"))));
  }
  return changes;
}

}  // namespace

std::map<std::string, std::string> differences(const Json& before, const Json& now) {
  const auto old_values = flattened(before);
  const auto new_values = flattened(now);
  std::set<std::string> keys;
  for (const auto& [key, value] : old_values) keys.insert(key);
  for (const auto& [key, value] : new_values) keys.insert(key);
  std::map<std::string, std::string> changes;
  for (const std::string& key : keys) {
    const std::string was = value_or_none(old_values, key);
    const std::string is = value_or_none(new_values, key);
    if (was != is) changes[key] = fmt::format("{}: {} -> {}", key, was, is);
  }
  return changes;
}

Json with_present_places(const Json& config) {
  try {
    return parse_json<ConfigError>(
        move_former_options<RunOptions>(dump_json(config), "config.json"), "config.json");
  } catch (const ConfigError&) {
    return config;
  }
}

bool resumes_here(const std::string& resume, const RunFolder& folder) {
  if (resume == "auto" || is_same_folder(resume, folder.path())) return true;
  std::error_code error;
  const auto checkpoint = fs::canonical(followed(resume), error);
  return !error && is_same_folder(checkpoint.parent_path().string(), folder.file("checkpoints"));
}

std::optional<ResumePoint> find_resume_point(const std::string& resume, const RunFolder& folder,
                                             const Note& note) {
  if (resume == "auto" || is_same_folder(resume, folder.path())) {
    const auto newest = newest_whole(folder, note);
    if (newest) return ResumePoint{*newest, true};
    note(fmt::format("resume: {} has no checkpoint yet, the run starts at its beginning",
                     folder.path()));
    return std::nullopt;
  }
  const RunFolder given(followed(resume));
  std::string checkpoint;
  if (exists(given.file("manifest.json"))) {
    std::error_code error;
    checkpoint = fs::canonical(given.path(), error).string();
    const std::string defect = defect_of_checkpoint(checkpoint);
    if (!defect.empty()) throw CheckpointError(defect);
  } else if (const auto newest = newest_whole(given, note)) {
    checkpoint = *newest;
  } else {
    throw ConfigError(fmt::format(
        "resume: expected auto, a run folder or a checkpoint, got {}, which has no {}", resume,
        exists(given.file("checkpoints")) ? "checkpoint in it"
                                          : "manifest.json and no checkpoints"));
  }
  const auto parent = fs::path(checkpoint).parent_path().string();
  const bool is_in_place = is_same_folder(parent, folder.file("checkpoints"));
  if (!is_in_place) folder.check_new();
  return ResumePoint{checkpoint, is_in_place};
}

std::string fingerprint_of(const Policy& policy) {
  ContentHash hash;
  hash.update(policy.config());
  HeldWeights held;  // until the next layer is
  for (const auto& [name, value] : policy.named_parameters()) {
    held = HeldWeights(value);
    const kernels::StoredBlocks* blocks = kernels::blocks_of(value);
    const at::Tensor here = blocks ? blocks->bytes : value.detach().cpu().contiguous();
    const std::string_view bytes(static_cast<const char*>(here.const_data_ptr()), here.nbytes());
    hash.update(fmt::format("\n{} {} {} {}", name, c10::str(value.sizes()),
                            blocks ? blocks->encoding : c10::toString(here.scalar_type()),
                            crc32_of(bytes)));
  }
  return hash.hex();
}

void check_same_run(const Json& before, const Json& now, const std::string& checkpoint,
                    const Note& note) {
  auto refused = config_changes(before.at("config"), now.at("config"), note);
  const Json ranks = {before.value("ranks", 1), now.value("ranks", 1)};
  if (ranks[0] != ranks[1]) {
    note(fmt::format("resume: ranks: {} -> {}; results may differ in their last digits",
                     ranks[0].get<int>(), ranks[1].get<int>()));
  }
  for (std::string& change : content_changes(before, now)) refused.push_back(std::move(change));
  if (refused.empty()) return;
  throw ConfigError(fmt::format(
      "resume: expected the options and contents that {} was saved with, got {}; undo that, or "
      "start a new run{}",
      checkpoint, fmt::join(refused, ", "),
      before.contains("version") ? ""
                                 : fmt::format(", with model.path {} to train on from its weights: "
                                               "an earlier version of prefopt saved it",
                                               checkpoint)));
}

void check_same_config(const Json& before, const Json& now, const std::string& folder) {
  const auto refused = config_changes(before, now, [](const std::string&) {});
  if (refused.empty()) return;
  throw ConfigError(
      fmt::format("resume: expected the options of {}/config.json, got {}; undo that, or choose "
                  "another output_dir",
                  folder, fmt::join(refused, ", ")));
}

}  // namespace prefopt::detail
