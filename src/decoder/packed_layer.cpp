// SPDX-License-Identifier: Apache-2.0
#include "decoder/packed_layer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "decoder/layer_math.h"
#include "math/wide_gradient.h"

namespace prefopt::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor wide(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.to(like.scalar_type());
}

// Returns the map of `x`, added to `residual` where that is defined.
at::Tensor linear_forward(const at::Tensor& x, const Linear& map, double lora_scale,
                          const at::Tensor& residual = {}) {
  at::Tensor result = product(x, map.weight, residual);
  if (map.bias.defined()) result.add_(wide(map.bias, x));
  if (map.lora_a.defined()) {
    const at::Tensor low = at::mm(x, wide(map.lora_a, x).t());
    result.addmm_(low, wide(map.lora_b, x).t(), /*beta=*/1, lora_scale);
  }
  return result;
}

// Returns where a trained weight's gradient goes; null for a frozen one.
at::Tensor* wanted(const at::Tensor& weight, at::Tensor& gradient) {
  return weight.requires_grad() ? &gradient : nullptr;
}

// Adds the gradient of the map's input to `sum`, where there is one yet.
void add_input_gradient(const at::Tensor& grad, const Linear& map, double lora_scale,
                        at::Tensor& sum) {
  add_input_product(grad, map.weight, sum);
  if (!map.lora_a.defined()) return;
  sum.addmm_(at::mm(grad, wide(map.lora_b, grad)), wide(map.lora_a, grad), /*beta=*/1, lora_scale);
}

at::Tensor linear_backward_input(const at::Tensor& grad, const Linear& map, double lora_scale) {
  at::Tensor of_input;
  add_input_gradient(grad, map, lora_scale, of_input);
  return of_input;
}

void linear_backward_weights(const at::Tensor& grad, const at::Tensor& x, const Linear& map,
                             double lora_scale, Linear& gradients) {
  if (map.weight.requires_grad()) gradients.weight = weight_product(grad, x, map.weight);
  if (map.bias.defined() && map.bias.requires_grad()) {
    gradients.bias = settled_gradient(map.bias, grad.sum(0));
  }
  if (!map.lora_a.defined() || !map.lora_a.requires_grad()) return;
  const at::Tensor low = at::mm(x, wide(map.lora_a, x).t()).mul_(lora_scale);
  const at::Tensor low_grad = at::mm(grad, wide(map.lora_b, x)).mul_(lora_scale);
  gradients.lora_b = weight_product(grad, low, map.lora_b);
  gradients.lora_a = weight_product(low_grad, x, map.lora_a);
}

// Computes both; the input's gradient is added to `*of_input` unless that is null.
void linear_backward(const at::Tensor& grad, const at::Tensor& x, const Linear& map,
                     double lora_scale, Linear& gradients, at::Tensor* of_input) {
  if (of_input != nullptr) add_input_gradient(grad, map, lora_scale, *of_input);
  linear_backward_weights(grad, x, map, lora_scale, gradients);
}

/// Intermediate values of the forward pass. Tensors that the backward pass does not find are
/// computed again.
struct Activations {
  at::Tensor input_rstd;
  at::Tensor query_raw, query_rstd, key_raw, key_rstd;  // around the norms of queries and keys
  at::Tensor query, key, value;
  AttentionResult attention;
  at::Tensor middle, middle_rstd;  // between attention and feed-forward
  at::Tensor gate, up;

  template <class Self, class Visit>
  static void for_each(Self& self, Visit&& visit) {
    for (auto* tensor :
         {&self.input_rstd, &self.query_raw, &self.query_rstd, &self.key_raw, &self.key_rstd,
          &self.query, &self.key, &self.value, &self.attention.output, &self.attention.logsumexp,
          &self.middle, &self.middle_rstd, &self.gate, &self.up}) {
      visit(*tensor);
    }
  }
};

/// The arithmetic of one layer on one stream.
class LayerPass {
 public:
  LayerPass(const StreamPlan& plan, const Layer& layer, at::Tensor x)
      : plan_(plan),
        layer_(layer),
        x_(std::move(x)),
        x_queries_(plan.query_rows.defined() ? x_.index_select(0, plan.query_rows) : x_) {}

  Activations& activations() { return a_; }

  at::Tensor forward() {
    attend();
    project();
    const at::Tensor normed = norm_forward(a_.middle, layer_.post_attention_norm, eps()).value;
    feed(normed);
    return linear_forward(swiglu(a_.gate, a_.up), layer_.down, plan_.lora_scale, a_.middle);
  }

  /// Gradients of the layer's tensors; that of x in `x_grad` if it is wanted.
  Layer backward(const at::Tensor& grad, at::Tensor* x_grad) {
    if (!a_.query.defined()) attend();
    if (!a_.middle.defined()) project();
    Layer gradients;
    const at::Tensor middle_grad = feed_backward(grad, gradients).add_(grad);
    at::Tensor rest = attend_backward(middle_grad, gradients, x_grad != nullptr);
    if (x_grad == nullptr) return gradients;
    if (plan_.query_rows.defined()) {
      *x_grad = rest.index_add_(0, plan_.query_rows, middle_grad);
    } else {
      *x_grad = rest.add_(middle_grad);
    }
    return gradients;
  }

 private:
  double eps() const { return plan_.spec.norm_eps; }

  at::Tensor split(const at::Tensor& rows) const {
    return rows.view({rows.size(0), -1, plan_.head_dim});
  }

  at::Tensor queries_of(const at::Tensor& rows) const {
    return plan_.query_rows.defined() ? rows.index_select(0, plan_.query_rows) : rows;
  }

  void attend() {
    Normed normed = norm_forward(x_, layer_.input_norm, eps());
    a_.input_rstd = normed.rstd;
    const double scale = plan_.lora_scale;
    const auto heads = [&](const at::Tensor& rows, const Linear& map, const at::Tensor& norm,
                           const Rotary& rotary, at::Tensor& raw, at::Tensor& rstd) {
      at::Tensor result = split(linear_forward(rows, map, scale));
      if (norm.defined()) {
        raw = result;
        Normed of_heads = norm_forward(raw, norm, eps());
        rstd = std::move(of_heads.rstd);
        result = std::move(of_heads.value);
      }
      // In place: the norm's backward pass uses the values in `raw`.
      apply_rope_(result, rotary);
      return result;
    };
    a_.query = heads(queries_of(normed.value), layer_.query, layer_.query_norm, plan_.query_rotary,
                     a_.query_raw, a_.query_rstd);
    a_.key =
        heads(normed.value, layer_.key, layer_.key_norm, plan_.key_rotary, a_.key_raw, a_.key_rstd);
    a_.value = split(linear_forward(normed.value, layer_.value, scale));
    a_.attention = tree_attention(a_.query, a_.key, a_.value, plan_.blocks, plan_.spec.query_scale);
  }

  void project() {
    a_.middle =
        linear_forward(a_.attention.output.flatten(1), layer_.output, plan_.lora_scale, x_queries_);
  }

  void feed(const at::Tensor& normed) {
    a_.gate = linear_forward(normed, layer_.gate, plan_.lora_scale);
    a_.up = linear_forward(normed, layer_.up, plan_.lora_scale);
  }

  // Gradient of the middle by way of the feed-forward part.
  at::Tensor feed_backward(const at::Tensor& grad, Layer& gradients) {
    const double scale = plan_.lora_scale;
    const Normed normed = norm_forward(a_.middle, layer_.post_attention_norm, eps());
    if (!a_.gate.defined()) feed(normed.value);
    at::Tensor gated_grad = linear_backward_input(grad, layer_.down, scale);
    const SwigluGradients of = swiglu_backward_(gated_grad, a_.gate, a_.up);
    linear_backward_weights(grad, of.value, layer_.down, scale, gradients.down);
    at::Tensor normed_grad;
    linear_backward(of.gate, normed.value, layer_.gate, scale, gradients.gate, &normed_grad);
    linear_backward(of.up, normed.value, layer_.up, scale, gradients.up, &normed_grad);
    norm_backward_(normed_grad, a_.middle, normed.rstd, layer_.post_attention_norm,
                   wanted(layer_.post_attention_norm, gradients.post_attention_norm));
    return normed_grad;
  }

  // Gradient of x by way of queries, keys and values.
  at::Tensor attend_backward(const at::Tensor& middle_grad, Layer& gradients, bool x_wanted) {
    const double scale = plan_.lora_scale;
    const at::Tensor attended_grad = linear_backward_input(middle_grad, layer_.output, scale);
    linear_backward_weights(middle_grad, a_.attention.output.flatten(1), layer_.output, scale,
                            gradients.output);
    AttentionGradients of =
        tree_attention_backward(attended_grad.view(a_.attention.output.sizes()), a_.query, a_.key,
                                a_.value, a_.attention, plan_.blocks, plan_.spec.query_scale);
    const auto rows_back = [&](const at::Tensor& heads, const Rotary& rotary,
                               const at::Tensor& norm, const at::Tensor& raw,
                               const at::Tensor& rstd, at::Tensor& norm_grad) {
      at::Tensor back = heads;
      apply_rope_backward_(back, rotary);
      if (norm.defined()) norm_backward_(back, raw, rstd, norm, wanted(norm, norm_grad));
      return back.flatten(1);
    };
    const at::Tensor query_grad = rows_back(of.query, plan_.query_rotary, layer_.query_norm,
                                            a_.query_raw, a_.query_rstd, gradients.query_norm);
    const at::Tensor key_grad = rows_back(of.key, plan_.key_rotary, layer_.key_norm, a_.key_raw,
                                          a_.key_rstd, gradients.key_norm);
    const at::Tensor normed = norm_forward(x_, layer_.input_norm, eps()).value;
    const bool norm_wanted = layer_.input_norm.requires_grad();
    at::Tensor normed_grad, query_rows_grad;
    at::Tensor* into = x_wanted || norm_wanted ? &normed_grad : nullptr;
    linear_backward(key_grad, normed, layer_.key, scale, gradients.key, into);
    linear_backward(of.value.flatten(1), normed, layer_.value, scale, gradients.value, into);
    if (!plan_.query_rows.defined()) {
      linear_backward(query_grad, normed, layer_.query, scale, gradients.query, into);
    } else {
      linear_backward(query_grad, queries_of(normed), layer_.query, scale, gradients.query,
                      into == nullptr ? nullptr : &query_rows_grad);
      if (into != nullptr) normed_grad.index_add_(0, plan_.query_rows, query_rows_grad);
    }
    if (into == nullptr) return {};
    norm_backward_(normed_grad, x_, a_.input_rstd, layer_.input_norm,
                   wanted(layer_.input_norm, gradients.input_norm));
    return normed_grad;
  }

  const StreamPlan& plan_;
  const Layer& layer_;
  at::Tensor x_, x_queries_;
  Activations a_;
};

/// The tensors of a layer that are defined, as autograd takes them, and which those are.
struct DefinedTensors {
  variable_list tensors;
  std::int64_t places = 0;  // a bit each

  static DefinedTensors of(const Layer& layer) {
    DefinedTensors defined;
    int place = 0;
    for_each_tensor(layer, [&](const at::Tensor& tensor) {
      if (tensor.defined()) {
        defined.tensors.push_back(tensor);
        defined.places |= std::int64_t{1} << place;
      }
      ++place;
    });
    return defined;
  }

  /// Takes tensors from `next` on.
  template <class Iterator>
  static Layer back(std::int64_t places, Iterator& next) {
    Layer layer;
    int place = 0;
    for_each_tensor(layer, [&](at::Tensor& tensor) {
      if ((places >> place++ & 1) != 0) tensor = *next++;
    });
    return layer;
  }
};

void drop_recomputed(Activations& activations, Checkpointing checkpointing) {
  if (checkpointing == Checkpointing::kNone) return;
  if (checkpointing == Checkpointing::kFull) {
    activations = {};
    return;
  }
  activations.gate.reset();
  activations.up.reset();
}

class PackedLayer : public torch::autograd::Function<PackedLayer> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, at::TensorList tensors,
                            std::int64_t places, const c10::intrusive_ptr<StreamPlan>& plan) {
    auto next = tensors.begin();
    const Layer layer = DefinedTensors::back(places, next);
    LayerPass pass(*plan, layer, x);
    const at::Tensor result = pass.forward();
    drop_recomputed(pass.activations(), plan->checkpointing);
    variable_list saved{x};
    saved.insert(saved.end(), tensors.begin(), tensors.end());
    Activations::for_each(pass.activations(),
                          [&](const at::Tensor& tensor) { saved.push_back(tensor); });
    context->save_for_backward(std::move(saved));
    context->saved_data["plan"] = c10::IValue::make_capsule(plan);
    context->saved_data["places"] = places;
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::NoGradGuard first_order_only;
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["plan"].toCapsule();
    const auto& plan = static_cast<const StreamPlan&>(*capsule);
    auto next = saved.begin();
    const at::Tensor x = *next++;
    const std::int64_t places = context->saved_data["places"].toInt();
    const Layer layer = DefinedTensors::back(places, next);
    LayerPass pass(plan, layer, x);
    Activations::for_each(pass.activations(), [&](at::Tensor& tensor) { tensor = *next++; });
    at::Tensor x_grad;
    const Layer gradients =
        pass.backward(grads[0].contiguous(), x.requires_grad() ? &x_grad : nullptr);
    variable_list result{x_grad};
    int place = 0;
    for_each_tensor(gradients, [&](const at::Tensor& tensor) {
      if ((places >> place++ & 1) != 0) result.push_back(tensor);
    });
    result.resize(result.size() + 2);  // places and plan have none
    return result;
  }
};

}  // namespace

c10::intrusive_ptr<StreamPlan> StreamPlan::make(const Network& network, const PackedTokens& tokens,
                                                Checkpointing checkpointing, bool scored_only) {
  auto plan = c10::make_intrusive<StreamPlan>();
  plan->spec = network.spec.layer;
  plan->head_dim = network.options.head_dim;
  plan->lora_scale = network.lora_scale;
  plan->checkpointing = checkpointing;
  const auto dtype = at_least_float32(network.embedding.scalar_type());
  plan->key_rotary = network.rotary_at(tokens.positions, dtype);
  plan->query_rotary = plan->key_rotary;
  std::vector<std::int64_t> kept;
  std::int64_t query = 0;
  for (const PackedGroup& group : tokens.groups) {
    const std::int64_t first = scored_only ? group.scored : 0;
    plan->blocks.push_back({.query = query,
                            .key = group.begin + first,
                            .length = group.shared - first,
                            .prefix = group.begin,
                            .prefix_length = first});
    query += group.shared - first;
    std::int64_t end = group.begin + group.shared;
    for (const std::int64_t length : group.branches) {
      if (length == 0) continue;
      plan->blocks.push_back({.query = query,
                              .key = end,
                              .length = length,
                              .prefix = group.begin,
                              .prefix_length = group.shared});
      query += length;
      end += length;
    }
    for (std::int64_t row = group.begin + first; scored_only && row < end; ++row) {
      kept.push_back(row);
    }
  }
  if (scored_only) {
    plan->query_rows = at::tensor(kept);
    plan->query_rotary = {plan->key_rotary.cos.index_select(0, plan->query_rows),
                          plan->key_rotary.sin.index_select(0, plan->query_rows)};
  }
  return plan;
}

at::Tensor packed_layer(const at::Tensor& x, const Layer& layer,
                        const c10::intrusive_ptr<StreamPlan>& plan) {
  if (!at::GradMode::is_enabled()) return LayerPass(*plan, layer, x).forward();
  const DefinedTensors defined = DefinedTensors::of(layer);
  return PackedLayer::apply(x, at::TensorList(defined.tensors), defined.places, plan);
}

void check_packed_spec(const ModelSpec& spec, std::string_view where) {
  refuse_unsupported(spec, {}, "the packed forward", where);
}

std::int64_t kept_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype) {
  const DecoderOptions& options = network.options;
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  std::int64_t numbers = options.hidden_size;
  if (checkpointing != Checkpointing::kFull) {
    numbers += options.hidden_size + 2 * queries + 2 * keys + options.num_attention_heads + 2;
    if (network.spec.layer.query_key_norm)
      numbers += queries + keys + options.num_attention_heads * 2;
  }
  if (checkpointing == Checkpointing::kNone) numbers += 2 * options.intermediate_size;
  return numbers * static_cast<std::int64_t>(c10::elementSize(dtype));
}

}  // namespace prefopt::detail
