// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <ostream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/json.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"

namespace prefopt::cli {
namespace {

using detail::Json;

// A JSON string, or a list of bytes, for text that is no UTF-8.
std::string read_text(std::string_view line, const std::string& where) {
  const Json json = detail::parse_json<DataError>(line, where);
  if (json.is_string()) return json.get<std::string>();
  std::string text;
  for (const Json& byte : json.is_array() ? json : Json::array({-1})) {
    if (!byte.is_number_unsigned() || byte.get<std::uint64_t>() > 255) {
      throw DataError(fmt::format("{}: expected text or a list of bytes, got {}", where,
                                  detail::json_type_name(json)));
    }
    text += static_cast<char>(byte.get<unsigned>());
  }
  return text;
}

void write_tokens(const std::vector<std::string>& texts, const Tokenizer& tokenizer,
                  std::ostream& out) {
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  for (const auto& ids : tokenizer.encode_batch(views)) {
    out << detail::dump_json(Json{{"ids", ids}, {"text", tokenizer.decode(ids)}}) << '\n';
  }
}

}  // namespace

void run_tokenize(const TokenizeArguments& arguments, std::ostream& out) {
  const auto tokenizer = make_tokenizer(arguments.tokenizer);
  // In parts, so that a long file needs no more memory than a short one.
  constexpr std::size_t kPart = 1024;
  std::vector<std::string> texts;
  for_each_line(arguments.data, [&](std::int64_t line, std::string_view text) {
    texts.push_back(read_text(text, fmt::format("{}:{}", arguments.data, line)));
    if (texts.size() == kPart) {
      write_tokens(texts, *tokenizer, out);
      texts.clear();
    }
  });
  write_tokens(texts, *tokenizer, out);
}

}  // namespace prefopt::cli
