// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model family: the names and rules of its files, and the arithmetic that its options mean. Each
// family is a file of this folder and a line of the list in families.cpp.

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "decoder/family_fields.h"
#include "decoder/gguf_fields.h"
#include "decoder/layer_spec.h"
#include "decoder/strict_config.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::detail {

/// Names in a family's files, and defaults for the fields that they leave out.
struct FamilyTraits {
  std::string_view model_type;    ///< in config.json, and the name in DecoderOptions
  std::string_view architecture;  ///< in config.json
  std::string_view gguf = {};     ///< `general.architecture`; empty: it has none
  /// The same in files that are written: another family's name, where that is the one read.
  std::string_view gguf_written = gguf;
  /// In GGUF files, rows of query and key heads are in llama.cpp's order: neighbours are rotated.
  bool gguf_neighbours = false;
  /// In GGUF files, norms are 1 + weight.
  bool gguf_norms_add_one = false;
  /// llama.cpp computes the windows of the layers that slide.
  bool gguf_slides = false;
  /// Whether a share of each head may be rotated.
  bool has_partial_rotary = false;
  /// Rotary base of the layers that slide, where GGUF files do not say it; 0: that of all.
  double sliding_rope_theta = 0;
  /// Whether config.json has a place for a sliding window.
  bool has_window = false;
  /// Whether the other options tell all that the family computes. Its name is then left out of
  /// Decoder::config(), and "llama" becomes the first such family that has the options.
  bool told_by_options = false;

  // Where config.json leaves a field out, transformers' default holds.
  bool needs_key_value_heads = true;  ///< else: as many as heads
  std::int64_t head_dim = 0;          ///< 0: hidden_size / num_attention_heads
  std::int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  bool tie_word_embeddings = false;
};

/// A part of a tensor's name here, and what it is in the family's safetensors files.
struct TensorName {
  std::string_view here, in_file;
};

/// A part of a layer in GGUF files, and in Hugging Face's.
struct GgufPart {
  std::string_view gguf, hugging_face;
};

class Family {
 public:
  explicit Family(const FamilyTraits& traits) : traits(traits) {}
  virtual ~Family() = default;

  const FamilyTraits traits;

  /// Returns the first option that no model of the family has, as "qk_norm true"; empty: none.
  virtual std::string misfit(const DecoderOptions& options) const = 0;
  /// Errors in `family_fields` are led by `where`.
  virtual ModelSpec spec(const DecoderOptions& options, std::string_view where) const {
    return plain_spec(options, where);
  }

  /// Reads the fields that families do not share; the others are in `options` already.
  virtual void read(const StrictConfig& config, DecoderOptions& options) const = 0;
  virtual void read_rope(const StrictConfig& config, DecoderOptions& options) const {
    set_rope(options, read_one_rope(config, rope_defaults(config, traits.rope_theta, options)));
  }
  /// Adds the fields that families do not share, and that `family_fields` does not hold, to a
  /// config.json.
  virtual void write(const DecoderOptions& options, Json& config) const = 0;
  virtual void read_gguf(const GgufFields&, DecoderOptions&) const {}
  /// Adds the metadata that `read_gguf` reads.
  virtual void write_gguf(const ModelSpec&, GgufFieldWriter&) const {}

  /// Fields of config.json that `read` reads in addition to the shared ones.
  virtual std::vector<std::string_view> understood() const { return {}; }
  /// Values that config.json must have, in addition to those of all families or in their place.
  virtual std::vector<RequiredValue> required() const { return {}; }
  /// Metadata that `read_gguf` reads, behind "ARCHITECTURE.".
  virtual std::vector<std::string_view> gguf_understood() const { return {}; }
  /// Values that metadata must have, in addition to those of all families.
  virtual std::vector<RequiredValue> gguf_required() const { return {}; }
  /// Parts that have another meaning in the family's GGUF files than in those of others.
  virtual std::vector<GgufPart> gguf_parts() const { return {}; }
  virtual std::vector<TensorName> tensor_names() const { return {}; }
};

/// All families, Llama first.
const std::vector<const Family*>& families();

/// Returns the family of this `model_type`, or null.
const Family* find_family(std::string_view model_type);
/// Throws ConfigError, led by `where`, if there is none.
const Family& family_named(std::string_view model_type, std::string_view where);
/// Returns the same for `general.architecture`.
const Family* find_gguf_family(std::string_view architecture);

/// Returns the family that options name; in place of "llama" the first one, told by options, that
/// has them. Throws ConfigError, led by `where`, if the family named does not have them.
const Family& family_of(const DecoderOptions& options, std::string_view where);
/// Returns whether `options.family` follows from the other options.
bool is_family_implied(const DecoderOptions& options);

/// Names in quotes, as "'llama', 'qwen2' or 'qwen3'".
std::string list_names(const std::vector<std::string_view>& names, char quote);

/// Translates a tensor's name into that in the family's files, or back.
std::string name_in_file(const Family& family, std::string name);
std::string name_from_file(const Family& family, std::string name);

// --- shared by families ------------------------------------------------------------------------

/// An option that a family has with one value only.
struct FlagRule {
  std::string_view name;
  bool given, expected;
};
/// Returns "name true" or "name false" of the first rule that is broken; empty: none.
std::string first_misfit(std::initializer_list<FlagRule> rules);
/// Returns the same of Llama's rules: no norms of queries and keys, a bias of all projections of
/// attention or of none.
std::string llama_misfit(const DecoderOptions& options);

/// Reads a window of all layers, where `used`; `absent` is that of configs without the field, 0:
/// none. layer_types that say otherwise are refused: transformers does not read them there.
void read_window_of_all(const StrictConfig& config, bool used, std::int64_t absent,
                        DecoderOptions& options);
/// Reads the windows of Qwen's configs, which name the first layer that slides.
void read_optional_windows(const StrictConfig& config, DecoderOptions& options);
/// Reads an attention_bias of all four projections.
void read_attention_bias(const StrictConfig& config, DecoderOptions& options);
/// Refuses an attention_bias other than the family's.
void expect_attention_bias(const StrictConfig& config, bool bias, std::string_view family);
/// Writes sliding_window as Qwen's configs have it.
void write_optional_window(const DecoderOptions& options, Json& config);
/// Writes sliding_window and, for each layer, whether it slides.
void write_layer_windows(const DecoderOptions& options, Json& config);

/// Returns the spec that Gemma 2 and 3 share.
ModelSpec gemma_spec(const DecoderOptions& options, std::string_view where);
std::vector<RequiredValue> gemma_required_values();
void write_gemma(const DecoderOptions& options, Json& config);

/// The same of OLMo 2 and 3.
ModelSpec olmo_spec(const DecoderOptions& options, std::string_view where);
std::string olmo_misfit(const DecoderOptions& options);

/// The numbers of a family's experts, where its config leaves them out.
struct ExpertDefaults {
  std::string_view count_name;
  std::int64_t count, chosen;
};
ExpertSpec read_experts(const StrictConfig& config, const ExpertDefaults& defaults);
/// Values of a router's fields that this decoder trains with.
std::vector<RequiredValue> router_required_values();
/// Keeps that a config asks for the routers' loss. One that does not is the same as one without the
/// field, as in the hashes of models.
void keep_router_loss(const StrictConfig& config, DecoderOptions& options);
/// Returns the coefficient of the routers' loss; 0: it is not asked for.
double read_router_loss(const StrictConfig& config);

/// Returns the width of a head before it is settled.
std::int64_t gguf_head_dim(const DecoderOptions& options);
/// Tells which layers of a Gemma slide, and the scale of its queries: llama.cpp takes that of a
/// head in all sizes but one, which it knows by its number of layers.
void read_gguf_gemma(std::int64_t layers_of_27b, const SlidingRule& slides,
                     DecoderOptions& options);
void read_gguf_experts(const GgufFields& fields, std::string_view count_name,
                       DecoderOptions& options);
void write_gguf_experts(const ModelSpec& spec, GgufFieldWriter& fields);
/// Returns the experts of the first layer that has any; those of no layer without one.
ExpertSpec experts_of(const ModelSpec& spec);

/// Makes a family known for as long as this object lives: how a test adds one.
class AddedFamily {
 public:
  explicit AddedFamily(const Family& family);
  ~AddedFamily();
  AddedFamily(const AddedFamily&) = delete;
  AddedFamily& operator=(const AddedFamily&) = delete;
};

}  // namespace prefopt::detail
