// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prefopt/export.h"

namespace prefopt {

class PREFOPT_API Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;
  /// Token ids of `text`, without begin or end tokens.
  virtual std::vector<std::int64_t> encode(std::string_view text) const = 0;
  /// Text of `ids`; begin, end and padding tokens are left out.
  virtual std::string decode(const std::vector<std::int64_t>& ids) const = 0;
  virtual std::int64_t vocab_size() const = 0;
  virtual std::int64_t bos_id() const = 0;  ///< -1 where there is none
  virtual std::int64_t eos_id() const = 0;
  virtual std::int64_t pad_id() const = 0;
};

/// Ids 0 to 255 are the bytes of UTF-8 text; 256 begin, 257 end, 258 padding.
class PREFOPT_API ByteTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  std::vector<std::int64_t> encode(std::string_view text) const override;
  std::string decode(const std::vector<std::int64_t>& ids) const override;
  std::int64_t vocab_size() const override { return 259; }
  std::int64_t bos_id() const override { return 256; }
  std::int64_t eos_id() const override { return 257; }
  std::int64_t pad_id() const override { return 258; }
};

/// "byte" is the only one so far. Throws ConfigError for an unknown name.
PREFOPT_API std::shared_ptr<const Tokenizer> make_tokenizer(std::string_view name);

}  // namespace prefopt
