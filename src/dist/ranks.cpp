// SPDX-License-Identifier: Apache-2.0
#include "prefopt/dist/ranks.h"

namespace prefopt {
namespace {

class OneProcess final : public Ranks {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void sum(const std::vector<at::Tensor>& /*tensors*/) override {}
  at::Tensor gather(const at::Tensor& rows) override { return rows; }
  bool agree(bool is_true) override { return is_true; }
};

}  // namespace

std::shared_ptr<Ranks> one_process() { return std::make_shared<OneProcess>(); }

}  // namespace prefopt
