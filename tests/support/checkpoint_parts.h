// SPDX-License-Identifier: Apache-2.0
#pragma once

// The contents of a checkpoint, part by part, and copies of it that lack one.

#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/hash.h"
#include "prefopt/files/safetensors.h"
#include "run/checkpoint.h"
#include "support/catch.h"
#include "support/run_scene.h"

namespace prefopt::testing_support {

using Parts = std::map<std::string, std::string>;

inline const std::vector<std::string> kTensorFiles = {
    "model.safetensors", "adapter_model.safetensors", "training_state.safetensors"};

/// Every tensor and every number of a checkpoint but the time that it took and where it lies: equal
/// if and only if all bits are.
inline Parts parts_of(const std::string& checkpoint) {
  Parts parts;
  for (const std::string& name : kTensorFiles) {
    if (!std::filesystem::exists(checkpoint + "/" + name)) continue;
    for (const auto& [tensor, value] : read_safetensors(checkpoint + "/" + name).tensors) {
      detail::ContentHash hash;
      hash.update(value.const_data_ptr(), value.nbytes());
      parts[name + ":" + tensor] = hash.hex();
    }
  }
  const auto state = Json::parse(read_text(checkpoint + "/training_state.json"));
  for (const auto& [key, value] : state.items()) {
    if (key != "identity") parts[key] = value.dump();
  }
  // An evaluation that came after its step was saved.
  if (std::filesystem::exists(checkpoint + "/evaluation.json")) {
    parts["evaluation.json"] = read_text(checkpoint + "/evaluation.json");
  }
  return parts;
}

inline std::set<std::string> differing(const Parts& a, const Parts& b) {
  std::set<std::string> names;
  for (const auto& [name, value] : a) {
    if (!b.contains(name) || b.at(name) != value) names.insert(name);
  }
  for (const auto& [name, value] : b) {
    if (!a.contains(name)) names.insert(name);
  }
  return names;
}

using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Copies a checkpoint, lets `change` at it, and writes the manifest that goes with the result.
inline void copy_changed(const std::string& from, const std::string& to,
                         const std::function<void(Tensors& tensors, Json& values)>& change) {
  namespace fs = std::filesystem;
  fs::copy(from, to);
  const std::string state_path = to + "/training_state.json";
  Json values = Json::parse(read_text(state_path));
  std::map<std::string, SafetensorsFile> files;
  Tensors tensors;
  for (const std::string& name : kTensorFiles) {
    if (!fs::exists(to + "/" + name)) continue;
    files[name] = read_safetensors(to + "/" + name);
    for (auto& [tensor, value] : files[name].tensors) value = value.clone();
    tensors.insert(tensors.end(), files[name].tensors.begin(), files[name].tensors.end());
  }
  const auto step = values.at("step").get<std::int64_t>();
  change(tensors, values);
  std::map<std::string, at::Tensor> left(tensors.begin(), tensors.end());
  for (auto& [name, file] : files) {
    std::erase_if(file.tensors, [&](const auto& item) { return !left.contains(item.first); });
    for (auto& [tensor, value] : file.tensors) value = left.at(tensor);
    write_safetensors(to + "/" + name, file);
  }
  write_text(state_path, values.dump(2));
  fs::remove(to + "/manifest.json");
  detail::write_manifest(to, step);
}

}  // namespace prefopt::testing_support
