// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

/// Passed to a `visit_state` function, which lists all that steps change, once; saving and loading
/// both follow that list, so that neither can leave out what the other has.
class PREFOPT_API StateVisitor {
 public:
  virtual ~StateVisitor() = default;
  /// Returns whether visited values take those that were saved: what follows from them is then made
  /// again.
  virtual bool is_loading() const { return false; }
  /// Visits a tensor. Loading writes into it in place.
  virtual void tensor(const std::string& name, const at::Tensor& value) = 0;
  /// A tensor whose shape steps change: a row source's loading puts another one in its place.
  virtual void array(const std::string& name, at::Tensor& value) { tensor(name, value); }
  virtual void integer(const std::string& name, std::int64_t& value) = 0;
  virtual void real(const std::string& name, double& value) = 0;
  virtual void integers(const std::string& name, std::vector<std::int64_t>& values) = 0;
};

}  // namespace prefopt
