// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "prefopt/train/state_visitor.h"

namespace prefopt::detail {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// The state of a part, under names that begin with the part's.
class PartOfState final : public StateVisitor {
 public:
  PartOfState(std::string prefix, StateVisitor& whole)
      : prefix_(std::move(prefix)), whole_(whole) {}

  bool is_loading() const override { return whole_.is_loading(); }
  void tensor(const std::string& name, const at::Tensor& value) override {
    whole_.tensor(prefix_ + name, value);
  }
  void integer(const std::string& name, std::int64_t& value) override {
    whole_.integer(prefix_ + name, value);
  }
  void real(const std::string& name, double& value) override { whole_.real(prefix_ + name, value); }
  void integers(const std::string& name, std::vector<std::int64_t>& values) override {
    whole_.integers(prefix_ + name, values);
  }

 private:
  std::string prefix_;
  StateVisitor& whole_;
};

using StateList = std::function<void(StateVisitor&)>;

/// Tensors as they are, not copies; numbers as tensors without a dimension, int64 and float64.
NamedTensors save_state(const StateList& list);

/// Visits all and keeps nothing: for a rank that only gives others its slices.
void send_state(const StateList& list);

/// Throws CheckpointError, led by `where`, and changes nothing where names, shapes or dtypes are
/// not exactly those of the list.
void load_state(const StateList& list, const NamedTensors& saved, std::string_view where);

}  // namespace prefopt::detail
