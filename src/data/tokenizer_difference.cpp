// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizer_difference.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace prefopt::detail {
namespace {

// Where rules of cutting words part: contractions, digits, white space, punctuation, scripts.
constexpr std::string_view kTexts[] = {
    "It's 12345 o'clock, they'll say; WE'VE 3.14159 left?!",
    "  two  blanks\n\n\n\ttab \r\n   end   ",
    "na\u00efve cafe\u0301 \u65e5\u672c\u8a9e\u306e\u6587 "
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
    "\U0001F642\U0001F44D\U0001F3FD",
    "f(x_1) = {\"a\": [1,2,3]}; // ===> #!$%^&*",
};

std::string in_quotes(const std::string& text) { return fmt::format("'{}'", shown_text(text)); }

}  // namespace

// By what becomes of texts and not by files, since one tokenizer has several forms: a GGUF file
// names the rules that a tokenizer.json spells out. Each token's own text tells of its merges.
std::string tokenizer_difference(const Tokenizer& a, const Tokenizer& b) {
  if (a.fingerprint() == b.fingerprint()) return "";
  std::vector<std::string> words;
  for (std::int64_t id = 0; id < std::min(a.vocab_size(), b.vocab_size()); ++id) {
    words.push_back(a.spelling(id));
    if (const std::string other = b.spelling(id); other != words.back()) {
      return fmt::format("token {} is {} in place of {}", id, in_quotes(other),
                         in_quotes(words.back()));
    }
  }
  std::vector<std::string_view> texts(words.begin(), words.end());
  texts.insert(texts.end(), std::begin(kTexts), std::end(kTexts));
  const auto of_a = a.encode_batch(texts);
  const auto of_b = b.encode_batch(texts);
  const auto apart = std::mismatch(of_a.begin(), of_a.end(), of_b.begin());
  if (apart.first == of_a.end()) return "";
  const auto at = static_cast<std::size_t>(apart.first - of_a.begin());
  return fmt::format("text {} becomes other tokens", in_quotes(std::string(texts[at])));
}

std::string tokenizer_difference(const Tokenizer& tokenizer, const std::string& model) {
  const std::string name = find_tokenizer(model);
  return name.empty() ? "" : tokenizer_difference(tokenizer, *make_tokenizer(name));
}

}  // namespace prefopt::detail
