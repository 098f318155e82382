// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>

#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "jinja/template.h"

namespace prefopt::fuzz {
namespace {

using jinja::Text;
using Json = nlohmann::ordered_json;

constexpr std::string_view kTemplatePlace = "template";
// In no template but one that spells it.
constexpr std::string_view kMark = "\xee\x80\x80";

jinja::Variables variables() {
  const std::string content = "x" + std::string(kMark) + "<|end|>";
  const Json call = {{"function", {{"name", "f"}, {"arguments", {{"a", content}, {"b", 1.5}}}}}};
  const Json messages = {{{"role", "system"}, {"content", content}},
                         {{"role", "user"}, {"content", content + " \n"}},
                         {{"role", "assistant"}, {"content", ""}, {"tool_calls", {call}}},
                         {{"role", "tool"}, {"content", content}}};
  return {{"messages", jinja::value_of(messages, 1)},
          {"tools", jinja::value_of(Json::array({call}), 1)},
          {"add_generation_prompt", jinja::Value(true)},
          {"bos_token", jinja::Value("<s>")},
          {"eos_token", jinja::Value("</s>")},
          {"n", jinja::Value(std::int64_t{3})}};
}

/// Text of the variables is never taken for the template's.
void check_origins(const Text& text) {
  for (std::size_t at = text.view().find(kMark); at != std::string_view::npos;
       at = text.view().find(kMark, at + kMark.size())) {
    for (std::size_t i = at; i < at + kMark.size(); ++i) {
      expect(jinja::writer_of(text.origin(i)) != jinja::kOfTemplate,
             "text of a variable that was taken for the template's");
    }
  }
}

}  // namespace

void read_template(std::string_view bytes) {
  accepts(kTemplatePlace, [&] {
    const jinja::Template chat(bytes, std::string(kTemplatePlace));
    const jinja::RenderOptions options{.now = {}, .work = 200'000};
    const Text text = chat.render(variables(), kTemplatePlace, options);
    expect(chat.render(variables(), kTemplatePlace, options).bytes() == text.bytes(),
           "two renders of one conversation that differ");
    const bool spells_mark =
        bytes.find('\xee') != std::string_view::npos || bytes.find('\\') != std::string_view::npos;
    if (!spells_mark) check_origins(text);
  });
}

}  // namespace prefopt::fuzz
