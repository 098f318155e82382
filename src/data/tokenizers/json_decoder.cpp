// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "core/utf8.h"
#include "data/tokenizers/json_parts.h"

namespace prefopt::detail {
namespace {

std::size_t read_count(const JsonNode& node) {
  if (!node.json().is_number_unsigned()) node.fail("a number of characters");
  return node.json().get<std::size_t>();
}

StripCharacters read_strip(const JsonNode& node) {
  node.only({"type", "content", "start", "stop"});
  const JsonNode content = node.member("content");
  StripCharacters step{.character = content.text(),
                       .start = read_count(node.member("start")),
                       .stop = read_count(node.member("stop"))};
  if (step.character.empty() || utf8_character(step.character, 0).length != step.character.size()) {
    content.fail("one character");
  }
  return step;
}

void append_steps(const JsonNode& node, std::vector<DecoderStep>& steps) {
  const std::string type = node.type();
  if (type == "Sequence") {
    node.only({"type", "decoders"});
    const JsonNode list = node.member("decoders");
    for (std::size_t i = 0; i < list.size(); ++i) append_steps(list.item(i), steps);
  } else if (type == "ByteLevel") {
    steps.emplace_back(ByteLevelDecoder{});  // its settings are those of the pre-tokenizer
  } else if (type == "Replace") {
    steps.emplace_back(read_replace(node));
  } else if (type == "ByteFallback") {
    node.only({"type"});
    steps.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    node.only({"type"});
    steps.emplace_back(Fuse{});
  } else if (type == "Strip") {
    steps.emplace_back(read_strip(node));
  } else if (type == "Metaspace") {
    const Metaspace step = read_metaspace(node);
    steps.emplace_back(MetaspaceDecoder{.replacement = step.replacement,
                                        .drops_first = step.scheme != PrependScheme::kNever});
  } else {
    node.member("type").fail(
        "'Sequence', 'ByteLevel', 'Metaspace', 'Replace', 'ByteFallback', 'Fuse' or 'Strip', which "
        "are all that is known here");
  }
}

}  // namespace

std::vector<DecoderStep> read_decoder(const JsonNode& decoder) {
  std::vector<DecoderStep> steps;
  if (!decoder.is_null()) append_steps(decoder, steps);
  return steps;
}

}  // namespace prefopt::detail
