// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/script_policy.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/StringUtil.h>
#include <caffe2/serialize/read_adapter_interface.h>
#include <fmt/format.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "core/hash.h"
#include "core/mapped_file.h"
#include "policy/parameters.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

// TorchScript's messages hold the whole call stack; the reason is the last line of them, LibTorch's
// the first. Later versions throw both as c10::Error.
std::string reason(const std::exception& error) {
  std::string_view text = error.what();
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  if (c10_error != nullptr) text = c10_error->what_without_backtrace();
  if (c10_error != nullptr && text.find("TorchScript interpreter") == text.npos) {
    return std::string(text.substr(0, text.find('\n')));
  }
  while (text.ends_with('\n')) text.remove_suffix(1);
  return std::string(text.substr(text.rfind('\n') + 1));
}

/// A mapped file as LibTorch reads one, without a copy of it.
class FileReader : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit FileReader(std::shared_ptr<detail::MappedFile> file) : file_(std::move(file)) {}

  std::size_t size() const override { return file_->bytes().size(); }
  std::size_t read(std::uint64_t position, void* buffer, std::size_t count,
                   const char* /*what*/) const override {
    if (position >= size()) return 0;
    return file_->bytes().copy(static_cast<char*>(buffer), count, position);
  }

 private:
  std::shared_ptr<detail::MappedFile> file_;
};

}  // namespace

struct ScriptPolicy::Impl {
  torch::jit::Module module;
  std::int64_t vocab_size;
  std::string file_hash;
};

ScriptPolicy::ScriptPolicy(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ScriptPolicy::~ScriptPolicy() = default;

std::shared_ptr<ScriptPolicy> ScriptPolicy::load(const std::string& path, std::int64_t vocab_size) {
  if (vocab_size < 1) {
    throw ConfigError(
        fmt::format("script policy: expected a vocab_size of at least 1, got {}", vocab_size));
  }
  const auto file = detail::map_file<CheckpointError>(path);
  auto impl = std::make_unique<Impl>();
  impl->vocab_size = vocab_size;
  detail::ContentHash hash;
  hash.update(file->bytes());
  impl->file_hash = hash.hex();
  try {
    impl->module = torch::jit::load(std::make_shared<FileReader>(file));
  } catch (const std::exception& error) {
    throw CheckpointError(
        fmt::format("{}: expected a TorchScript file, got: {}", path, reason(error)));
  }
  impl->module.eval();  // dropout would make each pass another policy
  const auto forward = impl->module.find_method("forward");
  // Two in addition to self.
  if (!forward || forward->function().getSchema().arguments().size() != 3) {
    throw CheckpointError(path +
                          ": expected a module with forward(input_ids, attention_mask), got "
                          "another signature");
  }
  return std::shared_ptr<ScriptPolicy>(new ScriptPolicy(std::move(impl)));
}

PolicyOutput ScriptPolicy::forward(const TokenBatch& batch) {
  c10::IValue result;
  try {
    result = impl_->module.forward({batch.input_ids, batch.attention_mask});
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const std::exception& error) {
    throw Error("script policy: expected forward to run, got: " + reason(error));
  }
  if (!result.isTensor()) {
    throw ShapeError("script policy: expected logits [S, T, vocab], got " + result.tagKind());
  }
  at::Tensor logits = result.toTensor();
  const std::vector<std::int64_t> shape{batch.input_ids.size(0), batch.input_ids.size(1),
                                        impl_->vocab_size};
  if (logits.sizes() != at::IntArrayRef(shape)) {
    throw ShapeError(fmt::format("script policy: expected logits {}, got {}",
                                 c10::str(at::IntArrayRef(shape)), c10::str(logits.sizes())));
  }
  return {.hidden = {}, .logits = std::move(logits)};
}

std::int64_t ScriptPolicy::vocab_size() const { return impl_->vocab_size; }

std::vector<NamedParameter> ScriptPolicy::named_parameters() const {
  std::vector<NamedParameter> parameters;
  for (const auto& parameter : impl_->module.named_parameters()) {
    parameters.push_back({parameter.name, parameter.value});
  }
  return parameters;
}

std::string ScriptPolicy::config() const { return impl_->file_hash; }

std::shared_ptr<Policy> ScriptPolicy::frozen_copy() const {
  // With a graph the copied parameters would be results, not leaves.
  const at::NoGradGuard no_grad;
  auto impl =
      std::make_unique<Impl>(Impl{impl_->module.deepcopy(), impl_->vocab_size, impl_->file_hash});
  std::shared_ptr<ScriptPolicy> copy(new ScriptPolicy(std::move(impl)));
  copy->set_requires_grad(false);
  return copy;
}

void ScriptPolicy::save(const std::string& path) const {
  std::ostringstream stream;
  try {
    impl_->module.save(stream);
  } catch (const std::exception& error) {
    throw CheckpointError(
        fmt::format("{}: expected a module that can be saved, got: {}", path, reason(error)));
  }
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  detail::write_file<CheckpointError>(is_folder ? path + "/model.pt" : path, stream.str());
}

void ScriptPolicy::load_weights(const std::string& directory) {
  const auto saved = load(directory + "/model.pt", impl_->vocab_size);
  std::map<std::string, at::Tensor> values;
  for (const auto& [name, value] : saved->named_parameters()) values[name] = value;
  detail::copy_parameters(named_parameters(), values, directory);
}

}  // namespace prefopt
