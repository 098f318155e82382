// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/loss.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt::detail {
namespace {

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "));
}

// What every tensor of a PairLogps has to agree with: chosen_logps.
struct Expected {
  const std::string& loss;
  const at::Tensor& like;

  void check(const at::Tensor& tensor, const char* name, std::int64_t size,
             bool counts = false) const {
    if (!tensor.defined()) {
      throw ShapeError(
          fmt::format("{}: expected {} of shape [{}], got no tensor", loss, name, size));
    }
    if (tensor.dim() != 1 || tensor.size(0) != size) {
      throw ShapeError(fmt::format("{}: expected {} of shape [{}], got {}", loss, name, size,
                                   shape_text(tensor)));
    }
    if (counts ? !(tensor.is_floating_point() || tensor.scalar_type() == at::kLong)
               : tensor.scalar_type() != like.scalar_type()) {
      throw DtypeError(fmt::format("{}: expected {} of dtype {}, got {}", loss, name,
                                   counts ? "int64 or floating" : at::toString(like.scalar_type()),
                                   at::toString(tensor.scalar_type())));
    }
    if (tensor.device() != like.device()) {
      throw DeviceError(fmt::format("{}: expected {} on {}, got {}", loss, name,
                                    like.device().str(), tensor.device().str()));
    }
  }
};

// Not a plain list, which autograd would take for further inputs.
struct Gradients {
  std::vector<at::Tensor> tensors;
};

std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

// Passes the loss through and hands its precomputed derivatives to the log-probs.
class AttachGradient : public torch::autograd::Function<AttachGradient> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& /*chosen*/,
                            const std::optional<at::Tensor>& /*rejected*/,
                            const std::optional<at::Tensor>& /*samples*/, const at::Tensor& loss,
                            const Gradients& gradients) {
    context->save_for_backward(gradients.tensors);
    return loss.clone();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list outer) {
    torch::autograd::variable_list result;
    for (const at::Tensor& gradient : context->get_saved_variables()) {
      result.push_back(gradient.defined() ? gradient * outer[0] : at::Tensor());
    }
    result.resize(5);  // the loss itself and the list of gradients take none
    return result;
  }
};

}  // namespace

PairLogps checked_inputs(const PairLogps& logps, const LossRequirements& needs, bool needs_lens,
                         const std::string& name) {
  const at::Tensor& like = logps.chosen_logps;
  if (!like.defined()) {
    throw ShapeError(
        fmt::format("{}: expected chosen_logps of shape [batch], got no tensor", name));
  }
  if (like.dim() != 1 || like.size(0) == 0) {
    throw ShapeError(
        fmt::format("{}: expected chosen_logps of shape [batch] with batch >= 1, got {}", name,
                    shape_text(like)));
  }
  if (like.scalar_type() != at::kFloat && like.scalar_type() != at::kDouble) {
    throw DtypeError(fmt::format("{}: expected chosen_logps of dtype Float or Double, got {}", name,
                                 at::toString(like.scalar_type())));
  }
  const Expected expected{name, like};
  const std::int64_t batch = like.size(0);
  const std::int64_t samples = batch * needs.samples_per_prompt;
  PairLogps in;
  in.totals = logps.totals;
  in.chosen_logps = like.detach();
  const auto take = [&](const at::Tensor& from, const char* field, std::int64_t size) {
    expected.check(from, field, size);
    return from.detach();
  };
  const auto take_lens = [&](const at::Tensor& from, const char* field, std::int64_t size) {
    expected.check(from, field, size, /*counts=*/true);
    return from.detach().to(like.scalar_type());
  };
  if (needs.rejected) in.rejected_logps = take(logps.rejected_logps, "rejected_logps", batch);
  if (needs.reference) {
    in.ref_chosen_logps = take(logps.ref_chosen_logps, "ref_chosen_logps", batch);
    if (needs.rejected) {
      in.ref_rejected_logps = take(logps.ref_rejected_logps, "ref_rejected_logps", batch);
    }
  }
  if (needs_lens) {
    in.chosen_lens = take_lens(logps.chosen_lens, "chosen_lens", batch);
    if (needs.rejected) in.rejected_lens = take_lens(logps.rejected_lens, "rejected_lens", batch);
  }
  if (samples > 0) {
    if (logps.samples_per_prompt != needs.samples_per_prompt) {
      throw ShapeError(fmt::format("{}: expected {} fresh samples a prompt, got {}", name,
                                   needs.samples_per_prompt, logps.samples_per_prompt));
    }
    in.samples_per_prompt = logps.samples_per_prompt;
    in.sample_logps = take(logps.sample_logps, "sample_logps", samples);
    in.ref_sample_logps = take(logps.ref_sample_logps, "ref_sample_logps", samples);
    if (needs_lens) in.sample_lens = take_lens(logps.sample_lens, "sample_lens", samples);
  }
  return in;
}

void check_length(std::int64_t length, std::int64_t expected, const char* field,
                  const std::string& name) {
  if (length != expected) {
    throw ShapeError(
        fmt::format("{}: expected {} of length {}, got {}", name, field, expected, length));
  }
}

void attach_gradient(LossOutput& out, const PairLogps& logps) {
  out.loss = AttachGradient::apply(
      logps.chosen_logps, if_defined(logps.rejected_logps), if_defined(logps.sample_logps),
      out.loss, Gradients{{out.grad_chosen, out.grad_rejected, out.grad_samples}});
}

NoGrad::NoGrad() : before_(at::GradMode::is_enabled()) { at::GradMode::set_enabled(false); }
NoGrad::~NoGrad() { at::GradMode::set_enabled(before_); }

std::string typed_config(std::string_view name, std::string_view options_json) {
  Json config = {{"type", name}};
  config.update(parse_json<ConfigError>(options_json, name));
  return dump_json(config);
}

}  // namespace prefopt::detail
