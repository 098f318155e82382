// SPDX-License-Identifier: Apache-2.0
#include "train/state.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <map>
#include <set>

#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

class Saver final : public StateVisitor {
 public:
  void tensor(const std::string& name, const at::Tensor& value) override {
    tensors.emplace_back(name, value);
  }
  void integer(const std::string& name, std::int64_t& value) override {
    tensors.emplace_back(name, at::scalar_tensor(value, at::TensorOptions(at::kLong)));
  }
  void real(const std::string& name, double& value) override {
    tensors.emplace_back(name, at::scalar_tensor(value, at::TensorOptions(at::kDouble)));
  }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    tensors.emplace_back(name, at::tensor(values, at::kLong));
  }

  NamedTensors tensors;
};

class Sender final : public StateVisitor {
 public:
  void tensor(const std::string& /*name*/, const at::Tensor& /*value*/) override {}
  void integer(const std::string& /*name*/, std::int64_t& /*value*/) override {}
  void real(const std::string& /*name*/, double& /*value*/) override {}
  void integers(const std::string& /*name*/, std::vector<std::int64_t>& /*values*/) override {}
};

std::string describe(at::IntArrayRef sizes, at::ScalarType dtype) {
  return fmt::format("{} of {}", c10::str(sizes), c10::toString(dtype));
}

using Saved = std::map<std::string, at::Tensor, std::less<>>;

class Checker final : public StateVisitor {
 public:
  Checker(const Saved& saved, std::string_view where) : saved_(saved), where_(where) {}

  void tensor(const std::string& name, const at::Tensor& value) override {
    check(name, value.sizes(), value.scalar_type());
  }
  void integer(const std::string& name, std::int64_t&) override { check(name, {}, at::kLong); }
  void real(const std::string& name, double&) override { check(name, {}, at::kDouble); }
  void integers(const std::string& name, std::vector<std::int64_t>&) override {
    const auto found = saved_.find(name);
    const std::int64_t count = found == saved_.end() ? 0 : found->second.numel();
    check(name, {count}, at::kLong);
  }

  void check_nothing_left() const {
    for (const auto& [name, value] : saved_) {
      if (!seen_.contains(name)) {
        throw CheckpointError(fmt::format(
            "{}: expected tensors that this run has, got '{}'; was the state saved with another "
            "model, loss or optimizer?",
            where_, name));
      }
    }
  }

 private:
  void check(const std::string& name, at::IntArrayRef sizes, at::ScalarType dtype) {
    seen_.insert(name);
    const auto found = saved_.find(name);
    if (found == saved_.end()) {
      throw CheckpointError(
          fmt::format("{}: expected tensor '{}', got none of that name", where_, name));
    }
    const at::Tensor& value = found->second;
    if (value.sizes() != sizes || value.scalar_type() != dtype) {
      throw CheckpointError(fmt::format("{}: tensor '{}': expected {}, got {}", where_, name,
                                        describe(sizes, dtype),
                                        describe(value.sizes(), value.scalar_type())));
    }
  }

  const Saved& saved_;
  std::string_view where_;
  std::set<std::string, std::less<>> seen_;
};

class Loader final : public StateVisitor {
 public:
  explicit Loader(const Saved& saved) : saved_(saved) {}

  bool is_loading() const override { return true; }
  void tensor(const std::string& name, const at::Tensor& value) override {
    value.copy_(saved_.at(name));
  }
  void integer(const std::string& name, std::int64_t& value) override {
    value = saved_.at(name).item<std::int64_t>();
  }
  void real(const std::string& name, double& value) override {
    value = saved_.at(name).item<double>();
  }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    const at::Tensor saved = saved_.at(name).contiguous();
    const auto* first = saved.const_data_ptr<std::int64_t>();
    values.assign(first, first + saved.numel());
  }

 private:
  const Saved& saved_;
};

}  // namespace

NamedTensors save_state(const StateList& list) {
  Saver saver;
  list(saver);
  return std::move(saver.tensors);
}

void send_state(const StateList& list) {
  Sender sender;
  list(sender);
}

void load_state(const StateList& list, const NamedTensors& saved, std::string_view where) {
  const Saved by_name(saved.begin(), saved.end());
  Checker checker(by_name, where);
  list(checker);
  checker.check_nothing_left();
  const at::NoGradGuard no_grad;
  Loader loader(by_name);
  list(loader);
}

}  // namespace prefopt::detail
