// SPDX-License-Identifier: Apache-2.0
#include "prefopt/decoder/end_tokens.h"

#include <algorithm>

#include "core/json.h"
#include "decoder/decoder_config.h"
#include "prefopt/data/chat.h"
#include "prefopt/error.h"

namespace prefopt {

std::vector<std::int64_t> end_tokens(const Decoder& model, const Tokenizer& tokenizer,
                                     std::string_view chat_format) {
  std::vector<std::int64_t> ids;
  const auto add = [&](std::int64_t id) {
    const bool known = std::find(ids.begin(), ids.end(), id) != ids.end();
    if (id >= 0 && id < model.vocab_size() && !known) ids.push_back(id);
  };
  for (const std::int64_t id : detail::end_tokens_of(model.options())) add(id);
  add(tokenizer.eos_id());
  for (const std::int64_t id : chat_end_ids(chat_format, tokenizer)) add(id);
  return ids;
}

SamplingOptions with_end_tokens(SamplingOptions options, const Decoder& model,
                                const Tokenizer& tokenizer, std::string_view chat_format) {
  if (options.eos_id >= 0 || !options.extra_eos_ids.empty()) return options;
  const std::vector<std::int64_t> ids = end_tokens(model, tokenizer, chat_format);
  if (ids.empty()) return options;
  options.eos_id = ids.front();
  options.extra_eos_ids.assign(ids.begin() + 1, ids.end());
  return options;
}

std::string generation_config_with(const Decoder& model, const std::vector<std::int64_t>& ids) {
  DecoderOptions options = model.options();
  const std::vector<std::int64_t> own = detail::end_tokens_of(options);
  const bool is_new = std::any_of(ids.begin(), ids.end(), [&](std::int64_t id) {
    return std::find(own.begin(), own.end(), id) == own.end();
  });
  if (!is_new) return "";
  const std::string written = model.generation_config();
  options.extra_eos_token_ids.insert(options.extra_eos_token_ids.end(), ids.begin(), ids.end());
  detail::Json config = detail::make_generation_config(options);
  if (!written.empty()) {
    detail::Json kept = detail::parse_json<CheckpointError>(written, "generation_config.json");
    kept["eos_token_id"] = config["eos_token_id"];
    config = std::move(kept);
  }
  return detail::dump_json(config, 2) + "\n";
}

}  // namespace prefopt
