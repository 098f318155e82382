// SPDX-License-Identifier: Apache-2.0
#include "decoder/packed_layer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "core/activation_file.h"
#include "core/one_thread.h"
#include "decoder/layer_math.h"
#include "math/upload.h"
#include "math/wide_gradient.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor wide(const at::Tensor& tensor, const at::Tensor& like) {
  return tensor.to(like.scalar_type());
}

// Returns scale · x Aᵀ.
at::Tensor lora_low(const at::Tensor& x, const Linear& map, double scale) {
  return product(x, wide(map.lora_a, x)).mul_(scale);
}

// Returns scale · grad B.
at::Tensor lora_low_grad(const at::Tensor& grad, const Linear& map, double scale) {
  at::Tensor low_grad;
  add_input_product(grad, wide(map.lora_b, grad), low_grad);
  return low_grad.mul_(scale);
}

// Returns the map of `x`, added to `residual` where that is defined.
at::Tensor linear_forward(const at::Tensor& x, const Linear& map, double lora_scale,
                          const at::Tensor& residual = {}) {
  at::Tensor result = product(x, map.weight, residual);
  if (map.bias.defined()) result.add_(wide(map.bias, x));
  if (map.lora_a.defined()) {
    add_product(lora_low(x, map, lora_scale), wide(map.lora_b, x), result);
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
  add_input_product(lora_low_grad(grad, map, lora_scale), wide(map.lora_a, grad), sum);
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
    const auto dtype = at_least_float32(grad.scalar_type());
    gradients.bias = settled_gradient(map.bias, grad.sum(at::IntArrayRef{0}, false, dtype));
  }
  if (!map.lora_a.defined() || !map.lora_a.requires_grad()) return;
  gradients.lora_b = weight_product(grad, lora_low(x, map, lora_scale), map.lora_b);
  gradients.lora_a = weight_product(lora_low_grad(grad, map, lora_scale), x, map.lora_a);
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
  at::Tensor input_rstd;  // of the norms in front of and behind attention
  at::Tensor attended, attended_rstd;
  at::Tensor query_raw, query_rstd, key_raw, key_rstd;  // around the norms of queries and keys
  at::Tensor query, key, value;
  AttentionResult attention;
  at::Tensor middle;  // between attention and feed-forward
  at::Tensor gate, up;
  at::Tensor fed, fed_rstd;  // around the norm behind the feed-forward part

  template <class Self, class Visit>
  static void for_each(Self& self, Visit&& visit) {
    for (auto* tensor : {&self.input_rstd, &self.attended, &self.attended_rstd, &self.query_raw,
                         &self.query_rstd, &self.key_raw, &self.key_rstd, &self.query, &self.key,
                         &self.value, &self.attention.output, &self.attention.logsumexp,
                         &self.middle, &self.gate, &self.up, &self.fed, &self.fed_rstd}) {
      visit(*tensor);
    }
  }
};

/// The arithmetic of one layer on one stream. Without a feed-forward part, as where experts follow,
/// it ends in the middle.
class LayerPass {
 public:
  LayerPass(const StreamPlan& plan, const Layer& layer, std::int64_t index, at::Tensor x)
      : plan_(plan),
        index_(index),
        spec_(plan.spec.layers[static_cast<std::size_t>(index)]),
        layer_(layer),
        x_(std::move(x)),
        x_queries_(plan.query_rows.defined() ? x_.index_select(0, plan.query_rows) : x_) {}

  Activations& activations() { return a_; }

  at::Tensor forward() {
    attend();
    project();
    if (!has_feed_forward()) return a_.middle;
    feed(normed(a_.middle, layer_.feed_in_norm).value);
    return put_down();
  }

  /// Gradients of the layer's tensors; that of x in `x_grad` if it is wanted.
  Layer backward(const at::Tensor& grad, at::Tensor* x_grad) {
    if (!a_.query.defined()) attend();
    if (!a_.middle.defined()) project();
    Layer gradients;
    at::Tensor middle_grad = grad;
    if (has_feed_forward()) {
      middle_grad = feed_backward(grad, gradients);
      add_rows_(middle_grad, grad);
    }
    at::Tensor rest = attend_backward(middle_grad, gradients, x_grad != nullptr);
    if (x_grad == nullptr) return gradients;
    if (plan_.query_rows.defined()) {
      *x_grad = rest.index_add_(0, plan_.query_rows, middle_grad);
    } else {
      add_rows_(rest, middle_grad);
      *x_grad = std::move(rest);
    }
    return gradients;
  }

 private:
  bool has_feed_forward() const { return layer_.gate.weight.defined(); }

  // --- norms, rotation and residuals, where the layer has them -----------------------------------

  Normed normed(const at::Tensor& rows, const at::Tensor& weight) const {
    return weight.defined() ? norm_forward(rows, weight, spec_.norm) : Normed{rows, {}};
  }

  void normed_backward_(at::Tensor& grad, const at::Tensor& rows, const at::Tensor& rstd,
                        const at::Tensor& weight, at::Tensor& weight_grad) const {
    if (!weight.defined()) return;
    norm_backward_(grad, rows, rstd, weight, spec_.norm, wanted(weight, weight_grad));
  }

  const Rotary* rotary_in(const std::vector<Rotary>& rotaries) const {
    if (spec_.rope == LayerSpec::kNoRope) return nullptr;
    return &rotaries[static_cast<std::size_t>(spec_.rope)];
  }

  AttentionLimits limits() const {
    return {.window = spec_.window, .softcap = spec_.attention_softcap};
  }

  // Returns residual + scale · norm(map(rows)); `raw` and `rstd` are for the norm's backward pass.
  at::Tensor joined(const at::Tensor& rows, const Linear& map, const at::Tensor& norm,
                    const at::Tensor& residual, at::Tensor& raw, at::Tensor& rstd) const {
    if (!norm.defined() && spec_.residual_scale == 1) {
      return linear_forward(rows, map, plan_.lora_scale, residual);
    }
    Normed result{linear_forward(rows, map, plan_.lora_scale), {}};
    if (norm.defined()) {
      raw = result.value;
      result = norm_forward(raw, norm, spec_.norm);
      rstd = result.rstd;
    }
    return result.value.mul_(spec_.residual_scale).add_(residual);
  }

  // Returns the gradient of what map gave.
  at::Tensor joined_backward(const at::Tensor& grad, const at::Tensor& norm, const at::Tensor& raw,
                             const at::Tensor& rstd, at::Tensor& norm_grad) const {
    if (!norm.defined() && spec_.residual_scale == 1) return grad;
    at::Tensor of_raw = grad * spec_.residual_scale;
    normed_backward_(of_raw, raw, rstd, norm, norm_grad);
    return of_raw;
  }

  // --- attention ---------------------------------------------------------------------------------

  at::Tensor split(const at::Tensor& rows) const {
    return rows.view({rows.size(0), -1, plan_.head_dim});
  }

  at::Tensor queries_of(const at::Tensor& rows) const {
    return plan_.query_rows.defined() ? rows.index_select(0, plan_.query_rows) : rows;
  }

  void attend() {
    const Normed input = normed(x_, layer_.attention_in_norm);
    a_.input_rstd = input.rstd;
    const double scale = plan_.lora_scale;
    const auto heads = [&](const at::Tensor& rows, const Linear& map, const at::Tensor& norm,
                           const Rotary* rotary, at::Tensor& raw, at::Tensor& rstd) {
      at::Tensor result = linear_forward(rows, map, scale);
      if (norm.defined()) {
        // Each head by itself, or all of them as one vector.
        raw = result.view({result.size(0), -1, norm.size(0)});
        Normed of_heads = norm_forward(raw, norm, spec_.norm);
        rstd = std::move(of_heads.rstd);
        result = std::move(of_heads.value);
      }
      result = split(result);
      // In place: the norm's backward pass uses the values in `raw`.
      if (rotary != nullptr) apply_rope_(result, *rotary);
      return result;
    };
    a_.query = heads(queries_of(input.value), layer_.query, layer_.query_norm,
                     rotary_in(plan_.query_rotaries), a_.query_raw, a_.query_rstd);
    a_.key = heads(input.value, layer_.key, layer_.key_norm, rotary_in(plan_.key_rotaries),
                   a_.key_raw, a_.key_rstd);
    a_.value = split(linear_forward(input.value, layer_.value, scale));
    a_.attention = attention();
  }

  AttentionResult attention() const {
    if (plan_.attend) return {plan_.attend(index_, a_.query, a_.key, a_.value), {}};
    if (plan_.segments) {
      return segment_attention(a_.query, a_.key, a_.value, *plan_.segments, spec_.query_scale,
                               limits());
    }
    return tree_attention(a_.query, a_.key, a_.value, plan_.blocks, spec_.query_scale, limits());
  }

  AttentionGradients attention_backward(const at::Tensor& grad) const {
    if (plan_.segments) {
      return segment_attention_backward(grad, a_.query, a_.key, a_.value, a_.attention,
                                        *plan_.segments, spec_.query_scale, limits());
    }
    return tree_attention_backward(grad, a_.query, a_.key, a_.value, a_.attention, plan_.blocks,
                                   spec_.query_scale, limits());
  }

  void project() {
    a_.middle = joined(a_.attention.output.flatten(1), layer_.output, layer_.attention_out_norm,
                       x_queries_, a_.attended, a_.attended_rstd);
  }

  // Gradient of x by way of queries, keys and values.
  at::Tensor attend_backward(const at::Tensor& middle_grad, Layer& gradients, bool x_wanted) {
    const double scale = plan_.lora_scale;
    const at::Tensor projected_grad =
        joined_backward(middle_grad, layer_.attention_out_norm, a_.attended, a_.attended_rstd,
                        gradients.attention_out_norm);
    const at::Tensor attended_grad = linear_backward_input(projected_grad, layer_.output, scale);
    linear_backward_weights(projected_grad, a_.attention.output.flatten(1), layer_.output, scale,
                            gradients.output);
    const AttentionGradients of =
        attention_backward(attended_grad.view(a_.attention.output.sizes()));
    const auto rows_back = [&](at::Tensor back, const Rotary* rotary, const at::Tensor& norm,
                               const at::Tensor& raw, const at::Tensor& rstd,
                               at::Tensor& norm_grad) {
      if (rotary != nullptr) apply_rope_backward_(back, *rotary);
      if (norm.defined()) back = back.view(raw.sizes());
      normed_backward_(back, raw, rstd, norm, norm_grad);
      return back.flatten(1);
    };
    const at::Tensor query_grad =
        rows_back(of.query, rotary_in(plan_.query_rotaries), layer_.query_norm, a_.query_raw,
                  a_.query_rstd, gradients.query_norm);
    const at::Tensor key_grad = rows_back(of.key, rotary_in(plan_.key_rotaries), layer_.key_norm,
                                          a_.key_raw, a_.key_rstd, gradients.key_norm);
    const at::Tensor input = normed(x_, layer_.attention_in_norm).value;
    const bool norm_wanted =
        layer_.attention_in_norm.defined() && layer_.attention_in_norm.requires_grad();
    at::Tensor input_grad, query_rows_grad;
    at::Tensor* into = x_wanted || norm_wanted ? &input_grad : nullptr;
    linear_backward(key_grad, input, layer_.key, scale, gradients.key, into);
    linear_backward(of.value.flatten(1), input, layer_.value, scale, gradients.value, into);
    if (!plan_.query_rows.defined()) {
      linear_backward(query_grad, input, layer_.query, scale, gradients.query, into);
    } else {
      linear_backward(query_grad, queries_of(input), layer_.query, scale, gradients.query,
                      into == nullptr ? nullptr : &query_rows_grad);
      if (into != nullptr) input_grad.index_add_(0, plan_.query_rows, query_rows_grad);
    }
    if (into == nullptr) return {};
    normed_backward_(input_grad, x_, a_.input_rstd, layer_.attention_in_norm,
                     gradients.attention_in_norm);
    return input_grad;
  }

  // --- feed-forward ------------------------------------------------------------------------------

  void feed(const at::Tensor& input) {
    a_.gate = linear_forward(input, layer_.gate, plan_.lora_scale);
    a_.up = linear_forward(input, layer_.up, plan_.lora_scale);
  }

  at::Tensor put_down() {
    return joined(swiglu(spec_.gate, a_.gate, a_.up), layer_.down, layer_.feed_out_norm, a_.middle,
                  a_.fed, a_.fed_rstd);
  }

  // Gradient of the middle by way of the feed-forward part.
  at::Tensor feed_backward(const at::Tensor& grad, Layer& gradients) {
    const double scale = plan_.lora_scale;
    const Normed input = normed(a_.middle, layer_.feed_in_norm);
    if (!a_.gate.defined()) feed(input.value);
    if (layer_.feed_out_norm.defined() && !a_.fed.defined()) put_down();
    const at::Tensor fed_grad =
        joined_backward(grad, layer_.feed_out_norm, a_.fed, a_.fed_rstd, gradients.feed_out_norm);
    at::Tensor gated_grad = linear_backward_input(fed_grad, layer_.down, scale);
    const SwigluGradients of = swiglu_backward_(spec_.gate, gated_grad, a_.gate, a_.up);
    linear_backward_weights(fed_grad, of.value, layer_.down, scale, gradients.down);
    at::Tensor input_grad;
    linear_backward(of.gate, input.value, layer_.gate, scale, gradients.gate, &input_grad);
    linear_backward(of.up, input.value, layer_.up, scale, gradients.up, &input_grad);
    normed_backward_(input_grad, a_.middle, input.rstd, layer_.feed_in_norm,
                     gradients.feed_in_norm);
    return input_grad;
  }

  const StreamPlan& plan_;
  std::int64_t index_;
  const LayerSpec& spec_;
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
                            std::int64_t places, std::int64_t index,
                            const c10::intrusive_ptr<StreamPlan>& plan) {
    auto next = tensors.begin();
    const Layer layer = DefinedTensors::back(places, next);
    LayerPass pass(*plan, layer, index, x);
    const at::Tensor result = pass.forward();
    drop_recomputed(pass.activations(), plan->checkpointing);
    const bool is_in_file = plan->checkpointing == Checkpointing::kFull && activation_file();
    // A copy in the file is no input: it does not say whether a gradient is wanted.
    context->saved_data["x_wanted"] = x.requires_grad();
    variable_list saved{is_in_file ? ActivationFile::put(activation_file(), x) : x};
    saved.insert(saved.end(), tensors.begin(), tensors.end());
    Activations::for_each(pass.activations(),
                          [&](const at::Tensor& tensor) { saved.push_back(tensor); });
    context->save_for_backward(std::move(saved));
    context->saved_data["plan"] = c10::IValue::make_capsule(plan);
    context->saved_data["places"] = places;
    context->saved_data["index"] = index;
    return result;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::NoGradGuard first_order_only;
    const OneThread one_thread;
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["plan"].toCapsule();
    const auto& plan = static_cast<const StreamPlan&>(*capsule);
    auto next = saved.begin();
    const at::Tensor x = *next++;
    const std::int64_t places = context->saved_data["places"].toInt();
    const Layer layer = DefinedTensors::back(places, next);
    const std::vector<HeldWeights> held = hold(layer);
    LayerPass pass(plan, layer, context->saved_data["index"].toInt(), x);
    Activations::for_each(pass.activations(), [&](at::Tensor& tensor) { tensor = *next++; });
    at::Tensor x_grad;
    const Layer gradients = pass.backward(
        grads[0].contiguous(), context->saved_data["x_wanted"].toBool() ? &x_grad : nullptr);
    variable_list result{x_grad};
    int place = 0;
    for_each_tensor(gradients, [&](const at::Tensor& tensor) {
      if ((places >> place++ & 1) != 0) result.push_back(tensor);
    });
    result.resize(result.size() + 3);  // places, index and plan have none
    return result;
  }
};

struct LengthRange {
  std::int64_t least, most;
};

LengthRange lengths_in(const PackedGroup& group, bool has_last_tokens) {
  const std::int64_t shared = group.shared + (has_last_tokens ? 0 : 1);
  LengthRange range{shared, shared};
  if (group.branches.empty()) return range;
  const auto [least, most] = std::minmax_element(group.branches.begin(), group.branches.end());
  return {range.least + *least, range.most + *most};
}

// Returns the length of the sequence that each row is in, its last token included. A row that
// sequences share has one length only if they are on the same side of every boundary.
at::Tensor lengths_of(const PackedTokens& tokens, bool has_last_tokens, const ModelSpec& spec) {
  std::vector<std::int64_t> lengths;
  for (const PackedGroup& group : tokens.groups) {
    const auto [least, most] = lengths_in(group, has_last_tokens);
    for (const RopeSpec& rope : spec.ropes) {
      if (!rope.depends_on_length() || (least > rope.context) == (most > rope.context)) continue;
      throw DataError(fmt::format(
          "decoder: expected sequences that share a beginning to be all within the model's "
          "original context of {} tokens or all beyond it, where its rotary frequencies change, "
          "got lengths {} and {}",
          rope.context, least, most));
    }
    std::int64_t rows = group.shared;
    for (const std::int64_t length : group.branches) rows += length;
    lengths.insert(lengths.end(), static_cast<std::size_t>(rows), most);
  }
  return at::tensor(lengths, at::kLong);
}

}  // namespace

c10::intrusive_ptr<StreamPlan> StreamPlan::make(const Network& network, const PackedTokens& tokens,
                                                const Packing& packing, bool scored_only) {
  auto plan = c10::make_intrusive<StreamPlan>();
  plan->spec = network.spec;
  plan->head_dim = network.options.head_dim;
  plan->lora_scale = network.lora_scale;
  plan->checkpointing = packing.checkpointing;
  const auto dtype = at_least_float32(network.embedding.scalar_type());
  const at::Device device = tokens.positions.device();
  plan->key_rotaries = network.rotaries_at(
      tokens.positions, uploaded(lengths_of(tokens, packing.has_last_tokens, network.spec), device),
      dtype);
  plan->query_rotaries = plan->key_rotaries;
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
    plan->query_rows = uploaded(at::tensor(kept), device);
    for (Rotary& rotary : plan->query_rotaries) {
      rotary = {rotary.cos.index_select(0, plan->query_rows),
                rotary.sin.index_select(0, plan->query_rows)};
    }
  }
  if (!device.is_cpu()) {
    plan->segments = SegmentPlan::make(plan->blocks, query, tokens.positions.size(0), device);
  }
  return plan;
}

at::Tensor packed_layer(const at::Tensor& x, const Layer& layer, std::int64_t index,
                        const c10::intrusive_ptr<StreamPlan>& plan) {
  const LayerSpec& spec = plan->spec.layers[static_cast<std::size_t>(index)];
  at::Tensor result;
  if (!at::GradMode::is_enabled()) {
    result = LayerPass(*plan, layer, index, x).forward();
  } else {
    const DefinedTensors defined = DefinedTensors::of(layer);
    result = PackedLayer::apply(x, at::TensorList(defined.tensors), defined.places, index, plan);
  }
  if (spec.experts.count == 0) return result;
  const auto widened_norm = [&](const at::Tensor& rows, const at::Tensor& norm) {
    const auto dtype = at_least_float32(x.scalar_type());
    return norm.defined() ? rms_norm(rows, widened(norm, dtype), spec.norm) : rows;
  };
  const at::Tensor mixed =
      mix_experts(widened_norm(result, layer.feed_in_norm), layer, spec, plan->watch_router);
  return result + widened_norm(mixed, layer.feed_out_norm) * spec.residual_scale;
}

namespace {

std::int64_t kept_numbers(const DecoderOptions& options, const LayerSpec& layer,
                          Checkpointing checkpointing) {
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  std::int64_t numbers = options.hidden_size;
  if (checkpointing != Checkpointing::kFull) {
    numbers += options.hidden_size + 2 * queries + 2 * keys + options.num_attention_heads + 2;
    if (layer.query_key_norm != QueryKeyNorm::kNone) {
      numbers += queries + keys + options.num_attention_heads * 2;
    }
    if (layer.norms.after) numbers += 2 * (options.hidden_size + 1);
  }
  // Experts are left to autograd, which keeps what goes through them.
  const ExpertSpec& experts = layer.experts;
  if (experts.count > 0) {
    return numbers + 3 * options.hidden_size + 2 * experts.count +
           experts.chosen * (3 * options.hidden_size + 4 * experts.width);
  }
  if (checkpointing == Checkpointing::kNone) numbers += 2 * options.intermediate_size;
  return numbers;
}

}  // namespace

std::int64_t kept_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype) {
  std::int64_t numbers = 0;
  for (const LayerSpec& layer : network.spec.layers) {
    numbers += kept_numbers(network.options, layer, checkpointing);
  }
  return numbers * static_cast<std::int64_t>(c10::elementSize(dtype));
}

std::int64_t work_bytes_per_row(const Network& network, Checkpointing checkpointing,
                                at::ScalarType dtype) {
  const DecoderOptions& options = network.options;
  const std::int64_t queries = options.num_attention_heads * options.head_dim;
  const std::int64_t keys = options.num_key_value_heads * options.head_dim;
  std::int64_t again = 0;
  for (const LayerSpec& layer : network.spec.layers) {
    again = std::max(again, kept_numbers(options, layer, Checkpointing::kNone) -
                                kept_numbers(options, layer, checkpointing));
  }
  // Of the feed-forward part: the gradients of gate and up and their product once more; of rows of
  // the hidden size: the result's gradient, the norm's value, the input's gradient and the map's;
  // of attention: gradients, those of keys and values of a task at a time as well.
  const std::int64_t made =
      3 * options.intermediate_size + 4 * options.hidden_size + 2 * queries + 4 * keys;
  return (again + made) * static_cast<std::int64_t>(c10::elementSize(dtype));
}

}  // namespace prefopt::detail
