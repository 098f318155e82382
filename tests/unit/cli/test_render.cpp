// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

constexpr const char* kTemplate =
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.thinking }}{% endfor "
    "%}{% if tools %}{{ tools | tojson }}{% endif %}{{ style }}{{ eos_token }}"
    "{% if add_generation_prompt %}<assistant>{% endif %}\n";

struct RenderScene {
  TempDir folder;
  std::string rows = folder.file("rows.jsonl");
  std::string chat_template = folder.file("t.jinja");

  explicit RenderScene(const std::string& lines) {
    write_text(rows, lines);
    write_text(chat_template, kTemplate);
  }

  std::vector<json> lines(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "render");
    arguments.insert(arguments.end(), {"--messages", rows});
    return json_lines(run_cli(arguments).out);
  }
};

TEST_CASE("prefopt render: the text of each conversation", "[cli]") {
  const RenderScene scene(
      R"({"messages": [{"role": "user", "content": "é\n"}]})"
      "\n"
      R"({"messages": [{"role": "user", "content": null}], "tools": [{"b": 1, "a": 2}],)"
      R"( "style": "!"})"
      "\n"
      R"({"messages": [{"role": "a", "content": "", "reasoning": "hm"}],)"
      R"( "chat_template_kwargs": {"style": "?"}})"
      "\n");
  CHECK(scene.lines({"--template", scene.chat_template}) ==
        std::vector<json>{"<user>\u00e9\n", "<user>None[{\"b\": 1, \"a\": 2}]!", "<a>hm?"});
  CHECK(scene
            .lines({"--template", scene.chat_template, "--bos", "<s>", "--eos", "</s>",
                    "--add-generation-prompt"})
            .front() == "<s><user>\u00e9\n</s><assistant>");
}

TEST_CASE("prefopt render: the template and the tokens of a model", "[cli]") {
  const RenderScene scene(R"({"messages": []})"
                          "\n");
  const std::string config = scene.folder.file("tokenizer_config.json");
  write_text(config, json{{"bos_token", "<b>"},
                          {"eos_token", {{"content", "<e>"}}},
                          {"chat_template",
                           {{{"name", "default"}, {"template", "D{{ bos_token }}"}},
                            {{"name", "tool_use"}, {"template", "T{{ eos_token }}"}}}}}
                         .dump());
  const std::string model = scene.folder.path();
  CHECK(scene.lines({"--model", model}) == std::vector<json>{"D<b>"});
  CHECK(scene.lines({"--model", model, "--template-name", "tool_use"}) ==
        std::vector<json>{"T<e>"});
  check_cli_refused(
      {"render", "--model", model, "--template-name", "rag", "--messages", scene.rows}, 2,
      config + ": expected a chat template 'rag', got those named default, tool_use");
  write_text(scene.folder.file("chat_template.jinja"), "J{{ eos_token }}\n");
  CHECK(scene.lines({"--model", model, "--bos", "x"}) == std::vector<json>{"J<e>"});
}

TEST_CASE("prefopt render: errors name the line", "[cli]") {
  const RenderScene scene(R"({"messages": [{"role": "user", "content": "a"}]})"
                          "\n\n"
                          R"({"messages": [{"role": "user"}]})"
                          "\n");
  const auto refuse = [&](const std::string& source, int code, const std::string& what) {
    write_text(scene.chat_template, source);
    check_cli_refused({"render", "--template", scene.chat_template, "--messages", scene.rows}, code,
                      what);
  };
  // The rows before it have their lines.
  write_text(scene.chat_template, "\n{{ messages[0].content + '' }}");
  const CliResult third =
      run_cli({"render", "--template", scene.chat_template, "--messages", scene.rows});
  CHECK(third.code == 3);
  CHECK(third.out == "\"\\na\"\n");
  CHECK(third.err == "prefopt: " + scene.rows + ":3: " + scene.chat_template +
                         ": line 2: expected 'content' in dict, got none\n");
  refuse("{% if %}", 2, scene.chat_template + ": line 1: expected an expression, got '%}'");
  write_text(scene.rows, "[1]\n");
  refuse("a", 3, scene.rows + ":1: expected an object with a list 'messages', got list");
  write_text(scene.rows, R"({"messages": [1]})");
  refuse("a", 3, scene.rows + ":1: expected messages that are objects, got number");
  write_text(scene.rows, R"({"messages": [], "chat_template_kwargs": 1})");
  refuse("a", 3, scene.rows + ":1: expected 'chat_template_kwargs' to be an object, got number");
  check_cli_refused({"render", "--messages", scene.rows}, 2,
                    "render: expected --model or --template, got neither");
  check_cli_refused({"render", "--template", scene.chat_template, "--template-name", "x",
                     "--messages", scene.rows},
                    2, "--template-name: expected a --model that has templates, got --template");
}

}  // namespace
}  // namespace prefopt::testing_support
