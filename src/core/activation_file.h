// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

namespace prefopt::detail {

/// A file without a name that tensors of the CPU are put into until they are needed again, so that
/// the system can take their memory. The file grows as it has to, and its parts are used again.
class ActivationFile {
 public:
  /// Makes the file in a folder. Throws ConfigError, led by `option`, where it cannot.
  ActivationFile(const std::string& folder, const std::string& option);
  ~ActivationFile();
  ActivationFile(const ActivationFile&) = delete;
  ActivationFile& operator=(const ActivationFile&) = delete;

  /// Returns a copy of a tensor in the file, whose part of it is free again once all copies of the
  /// result are gone; the tensor keeps the file. Throws CheckpointError where the drive is full.
  static at::Tensor put(const std::shared_ptr<ActivationFile>& file, const at::Tensor& tensor);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The file that layers keep their inputs in where all else is computed again; null: memory. One
/// for the process, as its memory is.
std::shared_ptr<ActivationFile>& activation_file();

}  // namespace prefopt::detail
