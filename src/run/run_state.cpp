// SPDX-License-Identifier: Apache-2.0
#include "run/run_state.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file.h"
#include "core/text.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "run/run_folder.h"
#include "train/metrics.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kStateFile = "training_state.json";
constexpr std::string_view kTensorFile = "training_state.safetensors";
constexpr std::string_view kEvaluationFile = "evaluation.json";
constexpr std::string_view kGenerator = "generator.cpu";
/// In front of the names of a row source's tensors.
constexpr std::string_view kSource = "source.";
/// Names that a row source cannot have for its numbers.
constexpr std::array kRunNames = std::to_array<std::string_view>(
    {"step", "learning_rate", "selection", "displacement_noted", "evaluation_is_due", "unlogged",
     "last_step", "first_evaluation", "last_evaluation", "identity"});

Json metrics_to_json(const Metrics& metrics) {
  Json object = Json::object();
  for (const auto& [name, value] : metrics) object[name] = json_number(value);
  return object;
}

Metrics metrics_from_json(const Json& object) {
  Metrics metrics;
  for (const auto& [name, value] : object.items()) {
    metrics.emplace_back(name, number_in(value));
  }
  return metrics;
}

class SourceSaver final : public StateVisitor {
 public:
  explicit SourceSaver(Json* values) : values_(values) {}

  void tensor(const std::string& name, const at::Tensor& value) override {
    tensors.emplace_back(fmt::format("{}{}", kSource, name), value);
  }
  void integer(const std::string& name, std::int64_t& value) override { put(name, value); }
  void real(const std::string& name, double& value) override { put(name, json_number(value)); }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    put(name, values);
  }

  NamedTensors tensors;

 private:
  void put(const std::string& name, const Json& value) {
    if (contains(kRunNames, name)) {
      throw Error(fmt::format(
          "row source: expected names that a run does not have for its own state, got '{}'", name));
    }
    if (values_ != nullptr) (*values_)[name] = value;
  }

  Json* values_;
};

class SourceLoader final : public StateVisitor {
 public:
  SourceLoader(const Json& values, const NamedTensors& tensors)
      : values_(values), tensors_(tensors.begin(), tensors.end()) {}

  bool is_loading() const override { return true; }
  void tensor(const std::string& name, const at::Tensor& value) override {
    const auto found = tensors_.find(fmt::format("{}{}", kSource, name));
    if (found == tensors_.end() || found->second.sizes() != value.sizes() ||
        found->second.scalar_type() != value.scalar_type()) {
      throw CheckpointError(
          fmt::format("expected tensor '{}{}' of the row source, got {}", kSource, name,
                      found == tensors_.end() ? "none" : "another shape or dtype"));
    }
    const at::NoGradGuard no_grad;
    value.copy_(found->second);
  }
  void array(const std::string& name, at::Tensor& value) override {
    const auto found = tensors_.find(fmt::format("{}{}", kSource, name));
    if (found == tensors_.end() || found->second.scalar_type() != value.scalar_type()) {
      throw CheckpointError(fmt::format("expected tensor '{}{}' of the row source, got {}", kSource,
                                        name, found == tensors_.end() ? "none" : "another dtype"));
    }
    value = found->second.clone();
  }
  void integer(const std::string& name, std::int64_t& value) override {
    value = values_.at(name).get<std::int64_t>();
  }
  void real(const std::string& name, double& value) override {
    value = number_in(values_.at(name));
  }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    values = values_.at(name).get<std::vector<std::int64_t>>();
  }

 private:
  const Json& values_;
  std::map<std::string, at::Tensor> tensors_;
};

std::string path_of(const std::string& folder, std::string_view name) {
  return fmt::format("{}/{}", folder, name);
}

/// Takes the tensors whose names `is_wanted` out of `tensors`.
template <class IsWanted>
NamedTensors take_out(NamedTensors& tensors, IsWanted&& is_wanted) {
  const auto begin = std::stable_partition(
      tensors.begin(), tensors.end(), [&](const auto& item) { return !is_wanted(item.first); });
  NamedTensors taken(begin, tensors.end());
  tensors.erase(begin, tensors.end());
  return taken;
}

}  // namespace

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

void SavedRun::check_names() const {
  SourceSaver of_source(nullptr);
  source.visit_state(of_source);
}

void SavedRun::write(const std::string& folder, NamedTensors tensors) const {
  Json of_steps = Json::object();
  SourceSaver of_source(&of_steps);
  source.visit_state(of_source);
  tensors.emplace_back(kGenerator, generator_state());
  tensors.insert(tensors.end(), of_source.tensors.begin(), of_source.tensors.end());
  write_safetensors(path_of(folder, kTensorFile), {.tensors = std::move(tensors), .metadata = {}});
  write_file<CheckpointError>(path_of(folder, kStateFile), dump_json(values(of_steps), 2) + "\n");
}

Json SavedRun::values(const Json& of_source) const {
  Json values = {{"step", trainer.steps_done()},
                 {"learning_rate", find_metric(state.last_step, "learning_rate").value_or(0)}};
  values.update(of_source);
  values["selection"] = state.selection.state();
  values["displacement_noted"] = state.displacement_noted;
  values["evaluation_is_due"] = state.evaluation_is_due;
  values["unlogged"] = state.window.state();
  values["last_step"] = metrics_to_json(state.last_step);
  values["first_evaluation"] = metrics_to_json(state.first_evaluation);
  values["last_evaluation"] = metrics_to_json(state.last_evaluation);
  values["identity"] = identity;
  return values;
}

Json SavedRun::read_values(const std::string& checkpoint) {
  const std::string path = path_of(checkpoint, kStateFile);
  return parse_json<CheckpointError>(read_file<CheckpointError>(path), path);
}

void SavedRun::load(const Json& values, const std::string& checkpoint) const {
  const std::string path = path_of(checkpoint, kTensorFile);
  NamedTensors tensors = read_safetensors(path).tensors;
  const NamedTensors generator =
      take_out(tensors, [](const std::string& name) { return name == kGenerator; });
  if (generator.empty() || generator.front().second.scalar_type() != at::kByte ||
      generator.front().second.sizes() != generator_state().sizes()) {
    throw CheckpointError(fmt::format("{}: expected tensor '{}' of LibTorch's generator, got {}",
                                      path, kGenerator, generator.empty() ? "none" : "another"));
  }
  set_generator_state(generator.front().second.clone());
  const NamedTensors of_source =
      take_out(tensors, [](const std::string& name) { return name.starts_with(kSource); });
  trainer.load_state(tensors);

  const std::string values_path = path_of(checkpoint, kStateFile);
  SourceLoader loader(values, of_source);
  try {
    source.visit_state(loader);
  } catch (const CheckpointError& error) {
    throw CheckpointError(fmt::format("{}: {}", values_path, error.what()));
  }
  load_values(values, values_path);
}

void SavedRun::load_values(const Json& values, const std::string& path) const {
  if (values.at("step").get<std::int64_t>() != trainer.steps_done()) {
    throw CheckpointError(fmt::format("{}: expected step {}, as the tensors say, got {}", path,
                                      trainer.steps_done(), values.at("step").get<std::int64_t>()));
  }
  state.selection.load(values.at("selection"));
  state.displacement_noted = values.at("displacement_noted").get<bool>();
  // The first version had evaluated all that it saved, and logged single steps.
  state.evaluation_is_due = values.value("evaluation_is_due", false);
  if (values.contains("unlogged")) state.window.load(values.at("unlogged"));
  state.last_step = metrics_from_json(values.at("last_step"));
  state.first_evaluation = metrics_from_json(values.at("first_evaluation"));
  state.last_evaluation = metrics_from_json(values.at("last_evaluation"));
}

void SavedRun::write_evaluation(const std::string& checkpoint) const {
  Json of_source = Json::object();
  SourceSaver saver(&of_source);
  source.visit_evaluation(saver);
  const Json values = {{"step", trainer.steps_done()},
                       {"source", of_source},
                       {"selection", state.selection.state()},
                       {"displacement_noted", state.displacement_noted},
                       {"last_evaluation", metrics_to_json(state.last_evaluation)}};
  write_file<CheckpointError>(path_of(checkpoint, kEvaluationFile), dump_json(values, 2) + "\n");
}

void SavedRun::load_evaluation(const std::string& checkpoint) const {
  std::string text;
  if (!try_read_file(path_of(checkpoint, kEvaluationFile), text).empty()) return;
  const Json values = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  try {
    if (values.at("step").get<std::int64_t>() != trainer.steps_done()) return;
    const bool displacement_noted = values.at("displacement_noted").get<bool>();
    Metrics last_evaluation = metrics_from_json(values.at("last_evaluation"));
    Selection selection = state.selection;
    selection.load(values.at("selection"));
    SourceLoader loader(values.at("source"), {});
    source.visit_evaluation(loader);
    state.selection = std::move(selection);
    state.displacement_noted = displacement_noted;
    state.last_evaluation = std::move(last_evaluation);
    state.evaluation_is_due = false;
  } catch (const Json::exception&) {
    // A damaged one is as good as none.
  } catch (const CheckpointError&) {
    // The same.
  }
}

}  // namespace prefopt::detail
