// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string_view>

#include "fuzz/verdict.h"
#include "prefopt/data/tokenizer.h"

namespace prefopt::fuzz {

/// Texts with all that a tokenizer treats apart, through encode() and decode().
inline void use_tokenizer(const Tokenizer& tokenizer) {
  constexpr auto kTexts = std::to_array<std::string_view>({
      "",
      "a ab abc  1234<s>",
      " \t\r\n<|im_start|>user\nIt's\u00e9 e\u0301 \u4f60\u597d \U0001f600<|im_end|></s>",
      "\xff\x80 cut \xe4\xbd",
  });
  for (const std::string_view text : kTexts) {
    // Not of the file but of the text, under a pattern that tries too much.
    accepts("tokenizer: expected a text that the pattern", [&] {
      const auto ids = tokenizer.encode(text);
      for (const std::int64_t id : ids) {
        expect(id >= 0 && id < tokenizer.vocab_size(), "an id that is no token");
      }
      static_cast<void>(tokenizer.decode(ids));
      // As what follows another text, which ends in a token, in white space or in a word.
      for (const std::string_view before : kTexts) {
        static_cast<void>(tokenizer.encode_part(text, {}, {.before = before, .is_last = false}));
      }
      static_cast<void>(tokenizer.decode_part(ids, ids));
    });
  }
  for (const std::int64_t id : {tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()}) {
    expect(id >= -1 && id < tokenizer.vocab_size(), "a special id that is no token");
  }
}

}  // namespace prefopt::fuzz
