// SPDX-License-Identifier: Apache-2.0
#include "decoder/packed_session.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <map>
#include <numeric>
#include <utility>

#include "core/memory_pool.h"
#include "core/one_thread.h"
#include "decoder/kept_prompts.h"
#include "decoder/tree_attention.h"
#include "kernels/block_tensor.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/query_attention.h"
#include "kernels/cpu/thin_linear.h"
#include "policy/decoding.h"
#include "policy/draft_session.h"
#include "policy/output_head.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

namespace cpu = kernels::cpu;

/// Rows of prompts that go through the layers at once, and the memory that they may take: more need
/// no fewer reads of the weights for each row.
constexpr std::int64_t kMostRowsAtOnce = 4096, kLeastRowsAtOnce = 256;
constexpr std::int64_t kBytesAtOnce = std::int64_t{256} << 20;
/// Tokens that a sequence has room for at first.
constexpr std::int64_t kFirstCapacity = 64;

template <class T>
constexpr at::ScalarType kDtype = std::is_same_v<T, double> ? at::kDouble : at::kFloat;

/// A prompt that differs from all others.
struct Prompt {
  std::vector<std::int64_t> tokens;
  /// Keys and values by layer and head, so that one head's are contiguous: [layers, 2, kv_heads,
  /// length, D]; and the logits after the prompt.
  KeptPrompt kept = {};
  std::int64_t length() const { return std::ssize(tokens); }
};

/// An unfinished sequence, the cache slot of its generated tokens and their number.
struct Live {
  std::size_t prompt;
  std::int64_t slot;
  std::int64_t length = 0;
};

/// A row of generated tokens: the sequence that it is of, and its place among them.
struct Added {
  std::size_t live;
  std::int64_t place;
};

/// Keys and values of generated tokens in a layer, [slots, kv_heads, capacity, D].
struct Cache {
  at::Tensor keys, values;
};

/// Values of the layers for some rows.
template <class T>
struct Rows {
  Rows(const DecoderOptions& options, std::int64_t rows)
      : count(rows),
        queries(options.num_attention_heads * options.head_dim),
        keys(options.num_key_value_heads * options.head_dim),
        hidden(options.hidden_size),
        wide(options.intermediate_size),
        x(rows * hidden),
        normed(rows * hidden),
        qkv(rows * qkv_stride()),
        attended(rows * queries),
        gate_up(rows * 2 * wide) {}

  /// Returns the bytes of a row.
  static std::int64_t bytes(const DecoderOptions& options) {
    const Rows of(options, 0);
    return static_cast<std::int64_t>(sizeof(T)) *
           (2 * of.hidden + of.qkv_stride() + of.queries + 2 * of.wide);
  }

  std::int64_t qkv_stride() const { return queries + 2 * keys; }
  T* query(std::int64_t row) const { return qkv.data() + row * qkv_stride(); }
  T* key(std::int64_t row) const { return query(row) + queries; }
  T* value(std::int64_t row) const { return key(row) + keys; }

  /// Leaves only these rows of x and of the queries.
  void select(const std::vector<std::int64_t>& rows) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto to = static_cast<std::int64_t>(i);
      std::copy_n(x.data() + rows[i] * hidden, hidden, x.data() + to * hidden);
      std::copy_n(query(rows[i]), queries, query(to));
    }
    count = std::ssize(rows);
  }

  std::int64_t count, queries, keys, hidden, wide;
  cpu::Buffer<T> x, normed;
  cpu::Buffer<T> qkv;  ///< queries, keys and values of a row side by side
  cpu::Buffer<T> attended;
  cpu::Buffer<T> gate_up;  ///< side by side; the product of both in place of gate
};

/// A linear map and where its results go.
template <class T>
struct MapInto {
  const Linear& linear;
  cpu::Rows<T> y;
};

template <class T>
cpu::WeightRows<T> weight_rows(const at::Tensor& weight) {
  if constexpr (std::is_same_v<T, float>) {
    if (const auto* blocks = kernels::blocks_of(weight)) return blocks->matrix;
    if (weight.scalar_type() == at::kBFloat16) return weight.const_data_ptr<c10::BFloat16>();
    if (weight.scalar_type() == at::kHalf) return weight.const_data_ptr<c10::Half>();
  }
  return weight.const_data_ptr<T>();
}

/// Handles of the weights as the kernels read them: dense, unfused, vectors in T, and norms that
/// multiply by what they hold.
template <class T>
Network readable(Network network) {
  const auto make_readable = [](at::Tensor& tensor) {
    if (!tensor.defined() || kernels::blocks_of(tensor)) return;
    tensor = tensor.detach().contiguous();
    if (tensor.dim() == 1) tensor = tensor.to(kDtype<T>);
  };
  const auto add_one = [](at::Tensor& norm) {
    if (norm.defined()) norm = norm + 1;
  };
  for (std::size_t i = 0; i < network.layers.size(); ++i) {
    Layer& layer = network.layers[i];
    layer = network.unfused(i);
    for_each_tensor(layer, make_readable);
    if (!network.spec.layers[i].norm.adds_one) continue;
    network.for_each_norm(i,
                          [&](std::string_view, at::Tensor& norm, std::int64_t) { add_one(norm); });
  }
  for (at::Tensor* tensor : {&network.embedding, &network.norm, &network.lm_head}) {
    make_readable(*tensor);
  }
  if (network.spec.norm.adds_one) add_one(network.norm);
  return network;
}

template <class T>
class PackedSession final : public DraftSession {
 public:
  PackedSession(const Network& network, const std::vector<std::vector<std::int64_t>>& prompts,
                std::int64_t rows_at_once)
      : network_(readable<T>(network)),
        kept_prompts_(KeptPrompts::of(network)),
        rows_at_once_(rows_at_once > 0 ? rows_at_once : default_rows()),
        caches_(network_.layers.size()) {
    std::map<std::vector<std::int64_t>, std::size_t> place_of;
    for (const auto& tokens : prompts) {
      const auto [at, is_new] = place_of.emplace(tokens, prompts_.size());
      if (is_new) prompts_.push_back({tokens});
      live_.push_back({at->second, std::ssize(live_)});
    }
  }

  at::Tensor prefill() override {
    const at::NoGradGuard no_grad;
    const OneThread one_thread;
    for (Live& live : live_) live.length = 0;
    filled_ = true;
    std::vector<Prompt*> unknown;
    for (Prompt& prompt : prompts_) {
      prompt.kept = kept_prompts_.find(prompt.tokens);
      if (!prompt.kept.logits.defined()) unknown.push_back(&prompt);
    }
    for (auto first = unknown.begin(), last = first; first != unknown.end(); first = last) {
      std::int64_t rows = 0;
      while (last != unknown.end() &&
             (last == first || rows + (*last)->length() <= rows_at_once_)) {
        rows += (*last++)->length();
      }
      if (rows > rows_at_once_) {
        fill_in_parts(**first);
      } else {
        fill({first, last}, rows);
      }
    }
    at::Tensor logits = empty_from_pool({std::ssize(live_), vocab_size()}, kDtype<T>);
    for (std::size_t i = 0; i < live_.size(); ++i) {
      logits[static_cast<std::int64_t>(i)].copy_(prompts_[live_[i].prompt].kept.logits);
    }
    for (Prompt& prompt : prompts_) prompt.kept.logits.reset();
    return logits;
  }

  at::Tensor append(const at::Tensor& tokens) override {
    check_filled();
    check_appended_tokens(tokens, std::ssize(live_), vocab_size());
    std::vector<Added> added;
    for (std::size_t i = 0; i < live_.size(); ++i) added.push_back({i, live_[i].length});
    return extend(added, tokens);
  }

  at::Tensor append_all(const std::vector<std::vector<std::int64_t>>& tokens) override {
    check_filled();
    check_appended_lists(tokens, std::ssize(live_), vocab_size());
    std::vector<Added> added;
    std::vector<std::int64_t> ids;
    for (std::size_t i = 0; i < live_.size(); ++i) {
      for (std::int64_t k = 0; k < std::ssize(tokens[i]); ++k) {
        added.push_back({i, live_[i].length + k});
      }
      ids.insert(ids.end(), tokens[i].begin(), tokens[i].end());
    }
    return extend(added, at::tensor(ids, at::kLong));
  }

  void take_back(const std::vector<std::int64_t>& counts) override {
    if (counts.size() != live_.size()) {
      throw ShapeError(fmt::format("take_back: expected counts of {} sequences, got of {}",
                                   live_.size(), counts.size()));
    }
    for (std::size_t i = 0; i < live_.size(); ++i) {
      if (counts[i] < 0 || counts[i] > live_[i].length) {
        throw ShapeError(fmt::format("take_back: expected 0 to {} tokens of sequence {}, got {}",
                                     live_[i].length, i, counts[i]));
      }
      live_[i].length -= counts[i];
    }
  }

  void keep(const std::vector<std::int64_t>& sequences) override {
    check_kept(sequences, std::ssize(live_));
    std::vector<Live> kept;
    for (const std::int64_t s : sequences) kept.push_back(live_[static_cast<std::size_t>(s)]);
    live_ = std::move(kept);
  }

 private:
  std::int64_t default_rows() const {
    return std::clamp(kBytesAtOnce / Rows<T>::bytes(network_.options), kLeastRowsAtOnce,
                      kMostRowsAtOnce);
  }

  std::int64_t vocab_size() const { return network_.options.vocab_size; }
  std::int64_t head_dim() const { return network_.options.head_dim; }
  std::int64_t kv_heads() const { return network_.options.num_key_value_heads; }
  std::int64_t layers() const { return std::ssize(network_.layers); }
  const LayerSpec& spec_of(std::size_t layer) const { return network_.spec.layers[layer]; }
  static at::TensorOptions like() { return at::TensorOptions(kDtype<T>); }

  void check_filled() const {
    if (!filled_) throw ConfigError("append: expected prefill to be called first, got append");
  }

  // --- the arithmetic of a layer, on rows wherever they belong ---------------------------------

  void embed(const at::Tensor& ids, Rows<T>& rows) const {
    at::Tensor x = embedded(network_.embedding, ids, kDtype<T>);
    if (const double scale = network_.spec.embedding_scale; scale != 1) x = x * scale;
    std::copy_n(x.const_data_ptr<T>(), x.numel(), rows.x.data());
  }

  void check_positions(const std::vector<std::int64_t>& positions) const {
    const std::int64_t longest = network_.spec.longest();
    const std::int64_t last = *std::max_element(positions.begin(), positions.end());
    if (longest == 0 || last < longest) return;
    throw DataError(fmt::format(
        "append: expected at most {} tokens, the context of a model with dynamic rotary scaling, "
        "got {}; fewer new tokens or a shorter prompt fit",
        longest, last + 1));
  }

  std::vector<std::int64_t> lengths_after(const std::vector<std::int64_t>& positions) const {
    std::vector<std::int64_t> lengths = positions;
    for (std::int64_t& length : lengths) ++length;
    return lengths;
  }

  std::vector<Rotary> rotaries_of(const std::vector<std::int64_t>& positions,
                                  const std::vector<std::int64_t>& lengths) const {
    return network_.rotaries_at(at::tensor(positions, at::kLong), at::tensor(lengths, at::kLong),
                                kDtype<T>);
  }

  void norm(cpu::Rows<const T> x, const Rows<T>& rows, const at::Tensor& weight,
            const NormSpec& of) const {
    cpu::rms_norm<T>({.shape = {.rows = rows.count, .width = rows.hidden},
                      .x = x,
                      .weight = weight.const_data_ptr<T>(),
                      .eps = of.eps,
                      .y = {rows.normed.data(), rows.hidden}});
  }

  /// Returns x, normed where the layer has this norm.
  cpu::Rows<const T> input(const Rows<T>& rows, const at::Tensor& weight,
                           const NormSpec& of) const {
    const cpu::Rows<const T> x{rows.x.data(), rows.hidden};
    if (!weight.defined()) return x;
    norm(x, rows, weight, of);
    return {rows.normed.data(), rows.hidden};
  }

  /// Norms heads, or all of them as one vector where the weight is as wide.
  void norm_heads(const at::Tensor& weight, std::int64_t width, cpu::Rows<T> x, std::int64_t count,
                  const NormSpec& of) const {
    if (!weight.defined()) return;
    cpu::rms_norm<T>(
        {.shape = {.rows = count, .groups = width / weight.size(0), .width = weight.size(0)},
         .x = x,
         .weight = weight.const_data_ptr<T>(),
         .eps = of.eps,
         .y = x});
  }

  /// Several maps of the same rows; the results are added to what is there if `accumulate`.
  void map(cpu::Rows<const T> x, std::int64_t count, std::initializer_list<MapInto<T>> maps,
           bool accumulate = false) const {
    std::vector<cpu::ThinLinear<T>> products;
    for (const MapInto<T>& into : maps) {
      const Linear& linear = into.linear;
      products.push_back({.x = x,
                          .rows = count,
                          .in = linear.weight.size(1),
                          .out = linear.weight.size(0),
                          .weight = weight_rows<T>(linear.weight),
                          .bias = linear.bias.defined() ? linear.bias.const_data_ptr<T>() : nullptr,
                          .y = into.y,
                          .accumulate = accumulate});
    }
    cpu::thin_linear<T>(products);
    for (const MapInto<T>& into : maps) add_adapter(x, count, into);
  }

  void add_adapter(cpu::Rows<const T> x, std::int64_t count, const MapInto<T>& into) const {
    const Linear& linear = into.linear;
    if (!linear.lora_a.defined()) return;
    const std::int64_t rank = linear.lora_a.size(0);
    at::Tensor low = at::empty({count, rank}, like());
    const cpu::ThinLinear<T> down{.x = x,
                                  .rows = count,
                                  .in = linear.lora_a.size(1),
                                  .out = rank,
                                  .weight = linear.lora_a.const_data_ptr<T>(),
                                  .y = {low.mutable_data_ptr<T>(), rank}};
    cpu::thin_linear<T>({&down, 1});
    low.mul_(network_.lora_scale);
    const cpu::ThinLinear<T> up{.x = {low.const_data_ptr<T>(), rank},
                                .rows = count,
                                .in = rank,
                                .out = linear.lora_b.size(0),
                                .weight = linear.lora_b.const_data_ptr<T>(),
                                .y = into.y,
                                .accumulate = true};
    cpu::thin_linear<T>({&up, 1});
  }

  /// Queries, keys and values of x.
  void take_heads(std::size_t index, const std::vector<Rotary>& rotaries, Rows<T>& rows) const {
    const Layer& layer = network_.layers[index];
    const LayerSpec& of = spec_of(index);
    const std::int64_t stride = rows.qkv_stride();
    const cpu::Rows<T> query{rows.query(0), stride}, key{rows.key(0), stride};
    map(input(rows, layer.attention_in_norm, of.norm), rows.count,
        {{layer.query, query}, {layer.key, key}, {layer.value, {rows.value(0), stride}}});
    norm_heads(layer.query_norm, rows.queries, query, rows.count, of.norm);
    norm_heads(layer.key_norm, rows.keys, key, rows.count, of.norm);
    if (of.rope == LayerSpec::kNoRope) return;
    const Rotary& rotary = rotaries[static_cast<std::size_t>(of.rope)];
    const std::int64_t half = rotary.cos.size(-1);
    cpu::apply_rope_<T>({.rows = rows.count,
                         .heads = network_.options.num_attention_heads + kv_heads(),
                         .head_dim = head_dim(),
                         .x = query,
                         .cos = {rotary.cos.const_data_ptr<T>(), half},
                         .sin = {rotary.sin.const_data_ptr<T>(), half},
                         .rotated = 2 * half});
  }

  /// x += scale · norm(map(rows)), where the layer has norm and scale.
  void join(cpu::Rows<const T> from, const Linear& linear, const at::Tensor& out_norm,
            const LayerSpec& of, Rows<T>& rows) const {
    const cpu::Rows<T> x{rows.x.data(), rows.hidden};
    if (!out_norm.defined() && of.residual_scale == 1) {
      map(from, rows.count, {{linear, x}}, /*accumulate=*/true);
      return;
    }
    const cpu::Rows<T> result{rows.normed.data(), rows.hidden};
    map(from, rows.count, {{linear, result}});
    add(rows, out_norm, of);
  }

  /// x += scale · norm(normed), where the layer has norm and scale.
  void add(Rows<T>& rows, const at::Tensor& out_norm, const LayerSpec& of) const {
    if (out_norm.defined()) {
      norm({rows.normed.data(), rows.hidden}, rows, out_norm, of.norm);
    }
    const auto scale = static_cast<T>(of.residual_scale);
    for (std::int64_t i = 0; i < rows.count * rows.hidden; ++i) {
      rows.x.data()[i] += scale * rows.normed.data()[i];
    }
  }

  /// The rest of a layer, after attention.
  void finish(std::size_t index, Rows<T>& rows) const {
    const Layer& layer = network_.layers[index];
    const LayerSpec& of = spec_of(index);
    join({rows.attended.data(), rows.queries}, layer.output, layer.attention_out_norm, of, rows);
    const cpu::Rows<const T> x = input(rows, layer.feed_in_norm, of.norm);
    if (of.experts.count > 0) {
      const at::Tensor mixed = mix_experts(
          at::from_blob(const_cast<T*>(x.data), {rows.count, rows.hidden}, like()), layer, of);
      std::copy_n(mixed.contiguous().template const_data_ptr<T>(), mixed.numel(),
                  rows.normed.data());
      add(rows, layer.feed_out_norm, of);
      return;
    }
    const std::int64_t both = 2 * rows.wide;
    const cpu::Rows<T> gate{rows.gate_up.data(), both}, up{gate.data + rows.wide, both};
    map(x, rows.count, {{layer.gate, gate}, {layer.up, up}});
    cpu::swiglu<T>(
        {.rows = rows.count, .width = rows.wide, .g = gate, .u = up, .h = gate, .gate = of.gate});
    join(gate, layer.down, layer.feed_out_norm, of, rows);
  }

  void write_logits(const Rows<T>& rows, const at::Tensor& logits) const {
    norm({rows.x.data(), rows.hidden}, rows, network_.norm, network_.spec.norm);
    Linear head;
    head.weight = network_.head();
    map({rows.normed.data(), rows.hidden}, rows.count,
        {{head, {logits.mutable_data_ptr<T>(), vocab_size()}}});
    transform_logits_(logits, network_.spec.logits);
  }

  void attend(const std::vector<cpu::QueryTask<T>>& tasks, std::size_t index) const {
    const LayerSpec& of = spec_of(index);
    cpu::query_attention<T>(tasks, {.groups = network_.groups(),
                                    .head_dim = head_dim(),
                                    .scale = of.query_scale,
                                    .softcap = of.attention_softcap});
  }

  // --- prompts ---------------------------------------------------------------------------------

  /// Returns where keys, or values, of a prompt's head begin.
  T* place_of(const Prompt& prompt, std::size_t layer, bool of_values, std::int64_t head) const {
    const std::int64_t half = 2 * static_cast<std::int64_t>(layer) + (of_values ? 1 : 0);
    return prompt.kept.keys_and_values.template data_ptr<T>() +
           (half * kv_heads() + head) * prompt.length() * head_dim();
  }

  cpu::KeyRows<T> keys_of(const Prompt& prompt, std::size_t layer, std::int64_t head) const {
    return {place_of(prompt, layer, false, head), place_of(prompt, layer, true, head),
            prompt.length()};
  }

  /// Computes what is kept of each of the prompts, which have `count` tokens in all.
  void fill(const std::vector<Prompt*>& prompts, std::int64_t count) {
    Rows<T> rows(network_.options, count);
    std::vector<std::int64_t> ids, positions, lengths, last;
    std::vector<AttentionBlock> blocks;
    for (Prompt* prompt : prompts) {
      const std::int64_t length = prompt->length();
      make_room(*prompt);
      blocks.push_back({.query = std::ssize(ids), .key = std::ssize(ids), .length = length});
      for (std::int64_t i = 0; i < length; ++i) positions.push_back(i);
      lengths.insert(lengths.end(), prompt->tokens.size(), length);
      ids.insert(ids.end(), prompt->tokens.begin(), prompt->tokens.end());
      last.push_back(std::ssize(ids) - 1);
    }
    embed(at::tensor(ids, at::kLong), rows);
    const std::vector<Rotary> rotaries = rotaries_of(positions, lengths);
    for (std::size_t i = 0; i < network_.layers.size(); ++i) {
      take_heads(i, rotaries, rows);
      keep_prompts(prompts, rows, i);
      if (i + 1 < network_.layers.size()) {
        attend_prompts(blocks, rows, i);
      } else {
        // Only the last row of each prompt is needed from here on.
        rows.select(last);
        attend(last_tasks(prompts, i, rows), i);
      }
      finish(i, rows);
    }
    keep_logits(prompts, rows);
  }

  /// Does the same for one prompt, a part of it after the other. Its keys and values are those that
  /// are kept, so that no part needs the rows of those before it.
  void fill_in_parts(Prompt& prompt) {
    make_room(prompt);
    for (std::int64_t first = 0; first < prompt.length(); first += rows_at_once_) {
      const std::int64_t count = std::min(rows_at_once_, prompt.length() - first);
      Rows<T> rows(network_.options, count);
      std::vector<std::int64_t> positions(static_cast<std::size_t>(count));
      std::iota(positions.begin(), positions.end(), first);
      const auto begin = prompt.tokens.begin() + first;
      embed(at::tensor(std::vector<std::int64_t>(begin, begin + count), at::kLong), rows);
      const std::vector<Rotary> rotaries =
          rotaries_of(positions, std::vector<std::int64_t>(positions.size(), prompt.length()));
      const bool is_end = first + count == prompt.length();
      for (std::size_t i = 0; i < network_.layers.size(); ++i) {
        take_heads(i, rotaries, rows);
        keep_rows(prompt, {first, count}, rows, 0, i);
        if (i + 1 < network_.layers.size()) {
          attend_part(prompt, first, rows, i);
        } else if (is_end) {
          rows.select({count - 1});
          attend(last_tasks({&prompt}, i, rows), i);
        } else {
          break;  // nothing reads what the last layer makes of these rows
        }
        finish(i, rows);
      }
      if (is_end) keep_logits({&prompt}, rows);
    }
  }

  void make_room(Prompt& prompt) const {
    prompt.kept.keys_and_values =
        at::empty({layers(), 2, kv_heads(), prompt.length(), head_dim()}, like());
  }

  /// Keeps the logits after each prompt; row i is the last of prompt i.
  void keep_logits(const std::vector<Prompt*>& prompts, Rows<T>& rows) {
    const at::Tensor logits = at::empty({std::ssize(prompts), vocab_size()}, like());
    write_logits(rows, logits);
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      prompts[i]->kept.logits = logits[static_cast<std::int64_t>(i)].clone();
      kept_prompts_.put(prompts[i]->tokens, prompts[i]->kept);
    }
  }

  void keep_prompts(const std::vector<Prompt*>& prompts, const Rows<T>& rows,
                    std::size_t layer) const {
    std::int64_t first = 0;
    for (const Prompt* prompt : prompts) {
      keep_rows(*prompt, {0, prompt->length()}, rows, first, layer);
      first += prompt->length();
    }
  }

  struct PartOfPrompt {
    std::int64_t first, count;
  };

  /// Keeps keys and values of a part of a prompt, whose rows begin at `row`.
  void keep_rows(const Prompt& prompt, PartOfPrompt part, const Rows<T>& rows, std::int64_t row,
                 std::size_t layer) const {
    for (std::int64_t head = 0; head < kv_heads(); ++head) {
      T* keys = place_of(prompt, layer, false, head) + part.first * head_dim();
      T* values = place_of(prompt, layer, true, head) + part.first * head_dim();
      for (std::int64_t i = 0; i < part.count; ++i) {
        const std::int64_t of_head = head * head_dim(), to = i * head_dim();
        std::copy_n(rows.key(row + i) + of_head, head_dim(), keys + to);
        std::copy_n(rows.value(row + i) + of_head, head_dim(), values + to);
      }
    }
  }

  /// Lets rows see themselves and the `first` tokens of their prompt before them.
  void attend_part(const Prompt& prompt, std::int64_t first, const Rows<T>& rows,
                   std::size_t index) const {
    const LayerSpec& of = spec_of(index);
    const auto cached = [&](bool of_values) {
      return at::from_blob(place_of(prompt, index, of_values, 0),
                           {first + rows.count, kv_heads(), head_dim()},
                           {head_dim(), prompt.length() * head_dim(), 1}, like());
    };
    const at::Tensor queries =
        at::from_blob(rows.query(0), {rows.count, network_.options.num_attention_heads, head_dim()},
                      {rows.qkv_stride(), head_dim(), 1}, like());
    const AttentionResult result =
        tree_attention(queries, cached(false), cached(true),
                       {{.query = 0, .key = first, .length = rows.count, .past = first}},
                       of.query_scale, {.window = of.window, .softcap = of.attention_softcap});
    std::copy_n(result.output.template const_data_ptr<T>(), rows.count * rows.queries,
                rows.attended.data());
  }

  void attend_prompts(const std::vector<AttentionBlock>& blocks, const Rows<T>& rows,
                      std::size_t index) const {
    const LayerSpec& of = spec_of(index);
    const auto view = [&](T* data, std::int64_t heads) {
      return at::from_blob(data, {rows.count, heads, head_dim()},
                           {rows.qkv_stride(), head_dim(), 1}, like());
    };
    const AttentionResult result =
        tree_attention(view(rows.query(0), network_.options.num_attention_heads),
                       view(rows.key(0), kv_heads()), view(rows.value(0), kv_heads()), blocks,
                       of.query_scale, {.window = of.window, .softcap = of.attention_softcap});
    std::copy_n(result.output.template const_data_ptr<T>(), rows.count * rows.queries,
                rows.attended.data());
  }

  /// Returns the last token of each prompt; row i is that of prompt i.
  std::vector<cpu::QueryTask<T>> last_tasks(const std::vector<Prompt*>& prompts, std::size_t index,
                                            const Rows<T>& rows) const {
    std::vector<cpu::QueryTask<T>> tasks;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      for (std::int64_t head = 0; head < kv_heads(); ++head) {
        tasks.push_back(task_of(static_cast<std::int64_t>(i), head,
                                keys_of(*prompts[i], index, head), {}, rows,
                                spec_of(index).window));
      }
    }
    return tasks;
  }

  cpu::QueryTask<T> task_of(std::int64_t row, std::int64_t head, cpu::KeyRows<T> prompt,
                            cpu::KeyRows<T> own, const Rows<T>& rows, std::int64_t window) const {
    const std::int64_t unseen =
        window == 0 ? 0 : std::max<std::int64_t>(prompt.length + own.length - window, 0);
    const std::int64_t of_prompt = std::min(unseen, prompt.length);
    drop(of_prompt, prompt);
    drop(unseen - of_prompt, own);
    const std::int64_t of_head = head * network_.groups() * head_dim();
    return {.query = rows.query(row) + of_head,
            .prompt = prompt,
            .own = own,
            .output = rows.attended.data() + row * rows.queries + of_head};
  }

  /// Leaves out the first rows.
  void drop(std::int64_t count, cpu::KeyRows<T>& rows) const {
    if (count == 0) return;
    rows.key += count * head_dim();
    rows.value += count * head_dim();
    rows.length -= count;
  }

  // --- generated tokens ------------------------------------------------------------------------

  /// Returns logits after each row, [added.size(), vocab].
  at::Tensor extend(const std::vector<Added>& added, const at::Tensor& ids) {
    const at::NoGradGuard no_grad;
    const OneThread one_thread;
    std::vector<std::int64_t> positions;
    std::int64_t longest = 0;
    for (const auto& [live, place] : added) {
      positions.push_back(prompts_[live_[live].prompt].length() + place);
      longest = std::max(longest, place + 1);
    }
    check_positions(positions);
    reserve(longest);
    Rows<T> rows(network_.options, std::ssize(added));
    embed(ids, rows);
    const std::vector<Rotary> rotaries = rotaries_of(positions, lengths_after(positions));
    for (std::size_t i = 0; i < network_.layers.size(); ++i) {
      take_heads(i, rotaries, rows);
      keep_own(added, rows, caches_[i]);
      attend(own_tasks(added, rows, i), i);
      finish(i, rows);
    }
    for (const auto& [live, place] : added) live_[live].length = place + 1;
    at::Tensor logits = empty_from_pool({rows.count, vocab_size()}, kDtype<T>);
    write_logits(rows, logits);
    return logits;
  }

  /// Returns where the tokens of a sequence begin.
  std::int64_t own_begin(const Live& live, std::int64_t head) const {
    return (live.slot * kv_heads() + head) * capacity_ * head_dim();
  }

  void keep_own(const std::vector<Added>& added, const Rows<T>& rows, const Cache& cache) const {
    T* keys = cache.keys.template data_ptr<T>();
    T* values = cache.values.template data_ptr<T>();
    for (std::size_t i = 0; i < added.size(); ++i) {
      const auto row = static_cast<std::int64_t>(i);
      for (std::int64_t head = 0; head < kv_heads(); ++head) {
        const std::int64_t to = own_begin(live_[added[i].live], head) + added[i].place * head_dim();
        std::copy_n(rows.key(row) + head * head_dim(), head_dim(), keys + to);
        std::copy_n(rows.value(row) + head * head_dim(), head_dim(), values + to);
      }
    }
  }

  std::vector<cpu::QueryTask<T>> own_tasks(const std::vector<Added>& added, const Rows<T>& rows,
                                           std::size_t index) const {
    const Cache& cache = caches_[index];
    std::vector<cpu::QueryTask<T>> tasks;
    for (std::size_t i = 0; i < added.size(); ++i) {
      const Live& live = live_[added[i].live];
      for (std::int64_t head = 0; head < kv_heads(); ++head) {
        const std::int64_t begin = own_begin(live, head);
        const cpu::KeyRows<T> own{cache.keys.template const_data_ptr<T>() + begin,
                                  cache.values.template const_data_ptr<T>() + begin,
                                  added[i].place + 1};
        tasks.push_back(task_of(static_cast<std::int64_t>(i), head,
                                keys_of(prompts_[live.prompt], index, head), own, rows,
                                spec_of(index).window));
      }
    }
    return tasks;
  }

  /// Makes room for `length` tokens of each unfinished sequence; slots of the others are freed.
  void reserve(std::int64_t length) {
    if (length <= capacity_) return;
    const std::int64_t capacity = std::max(length, std::max(kFirstCapacity, 2 * capacity_));
    std::vector<std::int64_t> slots;
    for (const Live& live : live_) slots.push_back(live.slot);
    for (Cache& cache : caches_) {
      for (at::Tensor* own : {&cache.keys, &cache.values}) {
        at::Tensor grown = at::empty({std::ssize(live_), kv_heads(), capacity, head_dim()}, like());
        if (capacity_ > 0) {
          grown.narrow(2, 0, capacity_).copy_(own->index_select(0, at::tensor(slots, at::kLong)));
        }
        *own = std::move(grown);
      }
    }
    capacity_ = capacity;
    for (std::size_t i = 0; i < live_.size(); ++i) live_[i].slot = static_cast<std::int64_t>(i);
  }

  Network network_;
  KeptPrompts kept_prompts_;
  std::int64_t rows_at_once_;
  std::vector<Prompt> prompts_;
  std::vector<Live> live_;
  std::vector<Cache> caches_;
  bool filled_ = false;
  std::int64_t capacity_ = 0;  ///< generated tokens that there is room for
};

}  // namespace

std::unique_ptr<DecodeSession> make_packed_session(
    const Network& network, const std::vector<std::vector<std::int64_t>>& prompts,
    std::int64_t rows_at_once) {
  if (network.embedding.scalar_type() == at::kDouble) {
    return std::make_unique<PackedSession<double>>(network, prompts, rows_at_once);
  }
  return std::make_unique<PackedSession<float>>(network, prompts, rows_at_once);
}

}  // namespace prefopt::detail
