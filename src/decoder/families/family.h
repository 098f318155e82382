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
  /// The same in files that are written, where another family's name is the one that is read.
  std::string_view gguf_written = gguf;
  /// In GGUF files, rows of query and key heads are in llama.cpp's order: neighbours are rotated.
  bool gguf_neighbours = false;
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

class Family {
 public:
  explicit Family(const FamilyTraits& traits) : traits(traits) {}
  virtual ~Family() = default;

  const FamilyTraits traits;

  /// Returns the first option that no model of the family has, as "qk_norm true"; empty: none.
  virtual std::string misfit(const DecoderOptions& options) const = 0;
  virtual ModelSpec spec(const DecoderOptions& options) const { return plain_spec(options); }

  /// Reads the fields that families do not share; the others are in `options` already.
  virtual void read(const StrictConfig& config, DecoderOptions& options) const = 0;
  /// Adds the fields that families do not share to a config.json.
  virtual void write(const DecoderOptions& options, Json& config) const = 0;
  virtual void read_gguf(const GgufFields&, DecoderOptions&) const {}
  /// Adds the metadata that `read_gguf` reads.
  virtual void write_gguf(const DecoderOptions&, GgufFieldWriter&) const {}

  /// Fields of config.json that `read` reads in addition to the shared ones.
  virtual std::vector<std::string_view> understood() const { return {}; }
  /// Values that config.json must have, in addition to those of all families or in their place.
  virtual std::vector<RequiredValue> required() const { return {}; }
  /// Metadata that `read_gguf` reads, behind "ARCHITECTURE.".
  virtual std::vector<std::string_view> gguf_understood() const { return {}; }
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

/// Returns the window of config.json, 0 where every layer sees all. `used`: the field counts even
/// if no layer is said to slide. A window of some layers is taken for one of all: no sequence may
/// be longer, and up to there both are the same.
std::int64_t read_window(const StrictConfig& config, bool used, std::int64_t absent = 0);
/// Refuses an attention_bias other than the family's.
void expect_attention_bias(const StrictConfig& config, bool bias, std::string_view family);
/// Writes sliding_window as Qwen's configs have it.
void write_optional_window(const DecoderOptions& options, Json& config);

/// Makes a family known for as long as this object lives: how a test adds one.
class AddedFamily {
 public:
  explicit AddedFamily(const Family& family);
  ~AddedFamily();
  AddedFamily(const AddedFamily&) = delete;
  AddedFamily& operator=(const AddedFamily&) = delete;
};

}  // namespace prefopt::detail
