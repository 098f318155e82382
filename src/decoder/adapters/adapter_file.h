// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "decoder/adapters/adapter_config.h"
#include "decoder/adapters/adapter_parts.h"

namespace prefopt::detail {

/// The weight of the output head that an adapter was trained over; undefined without one.
struct HeadUnder {
  at::Tensor weight = {};
  double tolerance = 0;  ///< of its largest number: one that was changed is rounded
};

/// An `adapter_model.safetensors`, whose tensors are taken one by one.
class AdapterFile {
 public:
  explicit AdapterFile(const std::string& path);

  bool has(const std::string& key) const { return left_.contains(key); }
  /// Replaces `tensor` by a copy of the file's in the same shape, dtype and place. Throws
  /// CheckpointError for one that is missing, of another shape or not of floating numbers.
  void take(const std::string& key, at::Tensor& tensor);
  /// Throws CheckpointError for tensors that are left, but for copies of the weights under the
  /// adapter, which PEFT writes of an embedding and a head that are targets.
  void check_nothing_left(const at::Tensor& embedding, const HeadUnder& head);

 private:
  std::string path_;
  std::map<std::string, at::Tensor> left_;
};

/// After undo_base_change.
HeadUnder head_under(BaseChange change, const Network& base, const AdapterParts& parts);

/// Makes an adapter whose weights were changed under it one for weights as they are: of twice the
/// rank, B A - B₀ A₀ with what was taken out of them, as PEFT's own conversion does. Throws
/// CheckpointError, led by `where`, for a rank that a weight does not have.
void undo_base_change(BaseChange change, const Network& base, AdapterParts& parts,
                      LoraOptions& options, const std::string& where);

}  // namespace prefopt::detail
