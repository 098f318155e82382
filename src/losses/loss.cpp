// SPDX-License-Identifier: Apache-2.0
#include "prefopt/losses/loss.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "losses/attach_gradient.h"
#include "prefopt/error.h"
#include "prefopt/losses/pairwise_loss.h"

namespace prefopt::detail {
namespace {

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "));
}

// Every tensor of a PairLogps has to agree with chosen_logps.
struct Expected {
  const std::string& loss;
  const at::Tensor& like;

  void check(const at::Tensor& tensor, std::string_view name, std::int64_t size,
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

// Passes the loss through and hands its precomputed derivatives to the inputs.
class AttachGradient : public torch::autograd::Function<AttachGradient> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::TensorList& /*inputs*/, const at::Tensor& loss,
                            const Gradients& gradients) {
    context->save_for_backward(gradients.tensors);
    return loss.clone();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list outer) {
    torch::autograd::variable_list result;
    for (const at::Tensor& gradient : context->get_saved_variables()) {
      result.push_back(gradient * outer[0]);
    }
    result.resize(result.size() + 2);  // the loss itself and the list of gradients take none
    return result;
  }
};

}  // namespace

PairLogps checked_inputs(const PairLogps& logps, const LossRequirements& needs,
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
  if (needs.samples_per_prompt > 0 && logps.samples_per_prompt != needs.samples_per_prompt) {
    throw ShapeError(fmt::format("{}: expected {} fresh samples a prompt, got {}", name,
                                 needs.samples_per_prompt, logps.samples_per_prompt));
  }
  PairLogps in;
  in.totals = logps.totals;
  in.running = logps.running;
  in.samples_per_prompt = needs.samples_per_prompt;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (!field.needed(needs)) continue;
    const at::Tensor& given = logps.*field.value;
    const bool is_number = field.is_number();
    expected.check(given, field.name, field.per_sample() ? batch * needs.samples_per_prompt : batch,
                   is_number);
    in.*field.value = is_number ? given.detach().to(like.scalar_type()) : given.detach();
  }
  check_whole_step(batch, logps.totals, needs, name);
  return in;
}

void check_length(std::int64_t length, std::int64_t expected, std::string_view field,
                  const std::string& name) {
  if (length != expected) {
    throw ShapeError(
        fmt::format("{}: expected {} of length {}, got {}", name, field, expected, length));
  }
}

void check_whole_step(std::int64_t pairs, const StepTotals& totals, const LossRequirements& needs,
                      const std::string& name) {
  if (needs.whole_step && totals.pairs > 0 && totals.pairs != static_cast<double>(pairs)) {
    throw ShapeError(fmt::format(
        "{}: expected all {} rows of the step at once, got {}; each row's loss depends on the "
        "others",
        name, totals.pairs, pairs));
  }
}

void refuse_margin(double margin_scale, const std::string& name) {
  if (margin_scale == 0) return;
  throw ConfigError(fmt::format(
      "{}: expected margin_scale 0, got {}; the loss looks at each completion by itself, and a "
      "margin belongs to a difference",
      name, margin_scale));
}

void attach_gradient(LossOutput& out, const PairLogps& logps) {
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> gradients;
  for (const auto& field : kPairFields<at::Tensor>) {
    if (field.gradient == nullptr || !(out.*field.gradient).defined()) continue;
    inputs.push_back(logps.*field.value);
    gradients.push_back(out.*field.gradient);
  }
  out.loss = attach_gradients(inputs, out.loss, std::move(gradients));
}

at::Tensor attach_gradients(const std::vector<at::Tensor>& inputs, const at::Tensor& value,
                            std::vector<at::Tensor> gradients) {
  if (inputs.empty()) return value;
  return AttachGradient::apply(at::TensorList(inputs), value, Gradients{std::move(gradients)});
}

at::Tensor attach_wanted_gradients(std::initializer_list<InputGradient> all,
                                   const at::Tensor& value) {
  std::vector<at::Tensor> inputs;
  std::vector<at::Tensor> gradients;
  for (const auto& [input, gradient] : all) {
    if (!gradient.defined() || !input.requires_grad()) continue;
    inputs.push_back(input);
    gradients.push_back(gradient);
  }
  return attach_gradients(inputs, value, std::move(gradients));
}

void detach_wide(std::initializer_list<at::Tensor*> tensors, at::Device device) {
  for (at::Tensor* const tensor : tensors) {
    if (tensor->defined()) *tensor = tensor->detach().to(device, at::kDouble);
  }
}

NoGrad::NoGrad() : before_(at::GradMode::is_enabled()) { at::GradMode::set_enabled(false); }
NoGrad::~NoGrad() { at::GradMode::set_enabled(before_); }

std::string typed_config(std::string_view name, std::string_view options_json) {
  Json config = {{"type", name}};
  config.update(parse_json<ConfigError>(options_json, name));
  return dump_json(config);
}

}  // namespace prefopt::detail
