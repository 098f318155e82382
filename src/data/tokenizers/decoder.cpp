// SPDX-License-Identifier: Apache-2.0
#include "data/tokenizers/decoder.h"

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "core/utf8.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/normalizer.h"
#include "data/tokenizers/unicode.h"

namespace prefopt::detail {
namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

using Texts = std::vector<std::string>;

std::string joined(const Texts& texts, std::string_view between = "") {
  std::string result;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) result += between;
    result += texts[i];
  }
  return result;
}

// Bytes in a row that form no UTF-8 are each U+FFFD, also where a part of them does.
void join_byte_tokens(Texts& tokens) {
  Texts result;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (find_invalid_utf8(bytes) == std::string::npos) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), std::string(kReplacementCharacter));
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (unsigned char byte = 0; byte_of_token(token, byte)) {
      bytes += static_cast<char>(byte);
      continue;
    }
    flush();
    result.push_back(std::move(token));
  }
  flush();
  tokens = std::move(result);
}

void strip(const StripCharacters& step, bool strips_start, std::string& token) {
  const std::string& character = step.character;
  std::size_t begin = 0, end = token.size();
  const std::string_view text = token;
  for (std::size_t i = 0; strips_start && i < step.start; ++i) {
    if (text.substr(begin, character.size()) != character) break;
    begin += character.size();
  }
  for (std::size_t i = 0; i < step.stop; ++i) {
    if (!text.substr(begin, end - begin).ends_with(character)) break;
    end -= character.size();
  }
  token = token.substr(begin, end - begin);
}

void write_spaces(const MetaspaceDecoder& step, bool drops, std::string& token) {
  std::string result;
  for (std::size_t at = 0; at < token.size();) {
    if (std::string_view(token).substr(at, step.replacement.size()) == step.replacement) {
      if (!drops) result += ' ';
      at += step.replacement.size();
    } else {
      result += token[at++];
    }
  }
  token = std::move(result);
}

/// Makes the function of each step.
struct DecoderMaker {
  using Step = std::function<void(Texts&, bool)>;
  std::string where;
  bool& is_fused;  // all tokens are one by now: a Strip strips the text

  Step operator()(const Replace& rule) const {
    return [replacement = Replacement(rule, where)](Texts& tokens, bool) {
      SplitPattern::Scratch scratch;
      for (std::string& token : tokens) token = replacement.apply(token, scratch);
    };
  }
  Step operator()(const ByteFallback&) const {
    return [](Texts& tokens, bool) { join_byte_tokens(tokens); };
  }
  Step operator()(const Fuse&) const {
    is_fused = true;
    return [](Texts& tokens, bool) { tokens = {joined(tokens)}; };
  }
  Step operator()(const StripCharacters& step) const {
    return [step, of_text = is_fused](Texts& tokens, bool begins) {
      for (std::string& token : tokens) strip(step, begins || !of_text, token);
    };
  }
  Step operator()(const MetaspaceDecoder& step) const {
    return [step](Texts& tokens, bool begins) {
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        write_spaces(step, i == 0 && begins && step.drops_first, tokens[i]);
      }
    };
  }
  Step operator()(const ByteLevelDecoder&) const {
    is_fused = true;
    return [alphabet = std::make_shared<const ByteAlphabet>()](Texts& tokens, bool) {
      std::string text, bytes;
      for (const std::string& token : tokens) {
        text += alphabet->bytes_of(token, bytes) ? bytes : token;
      }
      tokens = {find_invalid_utf8(text) == std::string::npos ? text : replace_invalid_utf8(text)};
    };
  }
};

}  // namespace

TokenDecoder::TokenDecoder(const std::vector<DecoderStep>& steps, bool joins_with_spaces,
                           std::string_view where)
    : joins_with_spaces_(joins_with_spaces) {
  bool is_fused = false;
  for (const DecoderStep& step : steps) {
    steps_.push_back(std::visit(DecoderMaker{fmt::format("{}: decoder", where), is_fused}, step));
    has_byte_tokens_ |= std::holds_alternative<ByteFallback>(step);
  }
  is_byte_level_ = steps.size() == 1 && std::holds_alternative<ByteLevelDecoder>(steps.front());
}

std::string TokenDecoder::decode(std::vector<std::string> tokens, bool begins) const {
  for (const Step& step : steps_) step(tokens, begins);
  return joined(tokens, joins_with_spaces_ ? " " : "");
}

std::string TokenDecoder::spelling(const std::string& token) const {
  if (unsigned char byte = 0; has_byte_tokens_ && byte_of_token(token, byte)) {
    return {static_cast<char>(byte)};
  }
  return decode({token}, /*begins=*/false);
}

}  // namespace prefopt::detail
