// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/adapters/adapter_parts.h"
#include "decoder/network.h"
#include "prefopt/policy/policy.h"

namespace prefopt::detail {

/// Returns a network without weights. Throws ConfigError, led by `where`.
Network network_of(DecoderOptions options, std::string_view where);

/// A model by its sizes: its tensors have shape, dtype and whether they are trained, and take no
/// memory.
class ModelShape {
 public:
  /// A fresh model. Throws ConfigError as Decoder does.
  ModelShape(const DecoderOptions& options, at::ScalarType dtype);
  /// The model of a folder or a `.gguf` file, from its config; its weights are looked at where
  /// `dtype` is "keep" or "quantized", and never read. Throws CheckpointError as Decoder::load
  /// does.
  static ModelShape read(const std::string& path, std::string_view dtype);

  /// Adds an adapter, of which alone the model trains then. Throws ConfigError as
  /// Decoder::add_adapter does.
  void add_adapter(const LoraOptions& options);

  const DecoderOptions& options() const { return network_.options; }
  const std::optional<AdapterParts>& adapter() const { return adapter_; }
  /// Returns the network without its adapter.
  const Network& network() const { return network_; }
  /// Returns the network as executors see it. Throws ConfigError for an adapter that makes whole
  /// matrices: DoRA, or one of embedding or head.
  Network seen() const;
  /// Returns the bytes of the weights without an adapter's, `mapped` of them the blocks of a file.
  struct WeightBytes {
    std::int64_t all = 0, mapped = 0;
  };
  WeightBytes weight_bytes() const;
  /// Returns whether a weight, or the output head, is in blocks.
  bool has_blocks() const { return !blocks_.empty(); }
  bool has_head_in_blocks() const;
  /// Returns the names and tensors of Decoder::named_parameters.
  std::vector<NamedParameter> parameters() const;

 private:
  explicit ModelShape(Network network) : network_(std::move(network)) {}

  /// Bytes of a weight in blocks.
  struct Blocks {
    std::int64_t bytes = 0;
    bool are_mapped = false;
  };

  Network network_;
  std::map<std::string, Blocks> blocks_;  ///< by the names of the weights that are in some
  std::optional<AdapterParts> adapter_;
};

}  // namespace prefopt::detail
