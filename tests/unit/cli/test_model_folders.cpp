// SPDX-License-Identifier: Apache-2.0
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "prefopt/data/tokenizer.h"
#include "prefopt/decoder/decoder.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace model_folders_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using namespace prefopt;
using namespace prefopt::testing_support;

const std::string kData = PREFOPT_TEST_DATA_DIR "/";

std::string chatml_template() {
  for (const json& golden : json::parse(read_text(kData + "chat.json"))) {
    if (golden["format"] == "chatml") return golden["template"];
  }
  return "";
}

/// A model of a BPE tokenizer, and rows of messages for it.
class Models {
 public:
  Models() {
    at::manual_seed(3);
    Decoder decoder({.vocab_size = 720,
                     .hidden_size = 16,
                     .intermediate_size = 24,
                     .num_hidden_layers = 1,
                     .num_attention_heads = 2,
                     .num_key_value_heads = 1,
                     .initializer_range = 0.5,
                     .eos_token_id = 0});
    decoder.save(model);
    write_text(model + "/tokenizer.json", read_text(kData + "tokenizers/smollm2/tokenizer.json"));
    write_text(model + "/tokenizer_config.json",
               json{{"eos_token", "<|endoftext|>"}, {"chat_template", chatml_template()}}.dump());
    std::string rows, texts;
    for (const char* word : {"red", "green", "blue", "grey"}) {
      rows += json{{"prompt", {{{"role", "user"}, {"content", word}}}},
                   {"chosen", {{{"role", "assistant"}, {"content", std::string("Yes ") + word}}}},
                   {"rejected", {{{"role", "assistant"}, {"content", "No"}}}}}
                  .dump() +
              "\n";
      texts += json{{"prompt", word}, {"chosen", " yes"}, {"rejected", " no"}}.dump() + "\n";
    }
    write_text(messages, rows);
    write_text(text, texts);
    config = {{"output_dir", folder.file("run")},
              {"loss", {{"type", "dpo"}}},
              {"model", {{"path", model}}},
              {"data", {{"train", messages}, {"eval_fraction", 0.25}}},
              {"batch", {{"steps", 1}, {"rows", 2}}},
              {"machine", {{"threads", 1}}},
              {"sampling", {{"max_new_tokens", 3}}}};
  }

  CliResult train() const {
    write_text(folder.file("config.json"), config.dump());
    return run_cli({"train", "--config", folder.file("config.json"), "--quiet"});
  }
  std::string last() const { return config["output_dir"].get<std::string>() + "/checkpoints/last"; }
  json written_config() const {
    return json::parse(read_text(config["output_dir"].get<std::string>() + "/config.json"));
  }

  TempDir folder;
  std::string model = folder.file("model");
  std::string messages = folder.file("messages.jsonl");
  std::string text = folder.file("text.jsonl");
  json config;
};

std::string scores(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "score");
  const CliResult result = run_cli(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return result.out;
}

/// Ids of the first line.
std::vector<std::int64_t> generated(std::vector<std::string> arguments) {
  const std::vector<std::string> greedy{"generate", "--temperature",    "0",
                                        "--json",   "--max-new-tokens", "12"};
  arguments.insert(arguments.begin(), greedy.begin(), greedy.end());
  const CliResult result = run_cli(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return json::parse(result.out.substr(0, result.out.find('\n')))["ids"];
}

TEST_CASE("prefopt: a checkpoint is used as its model was, unasked", "[cli]") {
  Models models;
  models.config["data"]["chat_format"] = "alpaca";  // not what the template says
  const CliResult result = models.train();
  INFO(result.err);
  REQUIRE(result.code == 0);
  const std::string last = models.last();
  const json manifest = json::parse(read_text(last + "/manifest.json"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "prefopt.json"}) {
    CHECK(manifest["files"].contains(name));
  }
  CHECK(read_text(last + "/tokenizer.json") == read_text(models.model + "/tokenizer.json"));
  CHECK(models.written_config()["data"]["chat_format"] == "alpaca");

  const std::string named = scores({"--model", last, "--tokenizer", models.model, "--data",
                                    models.messages, "--chat-format", "alpaca"});
  CHECK(scores({"--model", last, "--data", models.messages}) == named);
  CHECK(scores({"--model", last, "--data", models.messages, "--chat-format", "chatml"}) != named);
  CHECK(scores({"--model", last, "--data", models.text}) ==
        scores({"--model", last, "--data", models.text, "--tokenizer", models.model}));
  const json check =
      cli_json({"data", "check", "--model", last, "--data", models.messages, "--json"});
  CHECK(check["chat_format"] == "alpaca");
  const auto evaluated = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments{
        "eval",   "--model",       last,        "--ref", models.model,
        "--data", models.messages, "--samples", "0",     "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return cli_json(arguments);
  };
  CHECK(evaluated({}) == evaluated({"--chat-format", "alpaca"}));
  CHECK(evaluated({}) != evaluated({"--chat-format", "chatml"}));

  // The next stage and an export take both over.
  models.config["model"]["path"] = last;
  models.config["data"].erase("chat_format");
  models.config["output_dir"] = models.folder.file("second");
  REQUIRE(models.train().code == 0);
  CHECK(models.written_config()["model"]["tokenizer"] == last);
  CHECK(models.written_config()["data"]["chat_format"] == "alpaca");
  const std::string out = models.folder.file("out");
  REQUIRE(run_cli({"export", "--model", models.last(), "--out", out}).code == 0);
  CHECK(read_text(out + "/prefopt.json") == read_text(last + "/prefopt.json"));
  CHECK(read_text(out + "/tokenizer.json") == read_text(last + "/tokenizer.json"));
}

TEST_CASE("prefopt: an adapter's checkpoint brings tokenizer and format", "[cli]") {
  Models models;
  models.config["model"]["use_lora"] = true;
  models.config["data"]["chat_format"] = "alpaca";
  REQUIRE(models.train().code == 0);
  const std::string last = models.last();
  CHECK(fs::exists(last + "/adapter_config.json"));
  CHECK(fs::exists(last + "/tokenizer.json"));
  CHECK_FALSE(fs::exists(last + "/generation_config.json"));
  CHECK(json::parse(read_text(last + "/adapter_config.json"))["base_model_name_or_path"] ==
        models.model);
  const std::string named =
      scores({"--model", models.model, "--adapter", last, "--data", models.messages, "--tokenizer",
              models.model, "--chat-format", "alpaca"});
  CHECK(scores({"--model", models.model, "--adapter", last, "--data", models.messages}) == named);
  // Even on a base that brings no tokenizer.
  const std::string bare = models.folder.file("bare");
  Decoder::load(models.model)->save(bare);
  CHECK(scores({"--model", bare, "--adapter", last, "--data", models.messages}) == named);
  const std::string out = models.folder.file("out");
  REQUIRE(run_cli({"export", "--model", bare, "--adapter", last, "--out", out}).code == 0);
  CHECK(fs::exists(out + "/tokenizer.json"));
  CHECK(fs::exists(out + "/prefopt.json"));
}

TEST_CASE("prefopt: a model without a tokenizer is never read as bytes", "[cli]") {
  const Models models;
  const std::string bare = models.folder.file("bare");
  Decoder::load(models.model)->save(bare);
  const std::string sentence =
      bare +
      ": expected a tokenizer.json with the model, or a tokenizer in a GGUF file, to read text "
      "with, got none for 720 tokens; name one (model.tokenizer, --tokenizer), or say 'byte' for a "
      "model of bytes";
  const std::string ids = models.folder.file("ids.jsonl");
  write_text(ids, R"({"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]})"
                  "\n");
  check_cli_refused({"score", "--model", bare, "--data", models.text}, 2, sentence);
  check_cli_refused({"eval", "--model", bare, "--ref", bare, "--data", ids, "--judge", "cat"}, 2,
                    sentence);
  check_cli_refused({"generate", "--model", bare, "--prompt", "a"}, 2, sentence);
  check_cli_refused({"generate", "--model", bare, "--message", "a"}, 2, sentence);
  check_cli_refused({"data", "check", "--model", bare, "--data", models.text}, 2, sentence);
  check_cli_refused({"eval", "--model", bare, "--ref", bare, "--data", models.text}, 2, sentence);
  check_cli_refused(
      {"grad", "--model", bare, "--loss", R"({"type": "sft"})", "--data", models.text}, 2,
      sentence);
  Models trained;
  trained.config["model"]["path"] = bare;
  trained.config["data"]["train"] = trained.text;
  const CliResult result = trained.train();
  CHECK(result.code == 2);
  CHECK(result.err.find(sentence) != std::string::npos);

  CHECK(scores({"--model", bare, "--tokenizer", "byte", "--data", models.text}).size() > 0);
  CHECK(scores({"--model", bare, "--data", ids}).size() > 0);
  const CliResult text =
      run_cli({"generate", "--model", bare, "--data", ids, "--max-new-tokens", "1"});
  CHECK(text.code == 0);
  CHECK(text.out.starts_with("["));
}

TEST_CASE("prefopt: models that tokenize otherwise are not compared", "[cli]") {
  Models models;
  const std::string other = models.folder.file("other");
  fs::copy(models.model, other);
  json changed = json::parse(read_text(other + "/tokenizer.json"));
  json& vocabulary = changed["model"]["vocab"];
  std::swap(vocabulary["x"], vocabulary["y"]);  // text of the first is the second's now
  write_text(other + "/tokenizer.json", changed.dump());
  const auto id = std::min(vocabulary["x"].get<int>(), vocabulary["y"].get<int>());
  const std::string found = vocabulary["x"] == id ? "x" : "y", expected = found == "x" ? "y" : "x";
  const std::string tokenizer = models.model + "/tokenizer.json";
  const std::string difference =
      "token " + std::to_string(id) + " is '" + found + "' in place of '" + expected + "'";
  const std::string sentence = other + ": expected a model that tokenizes as " + tokenizer +
                               " does, got one by which " + difference +
                               "; --tokenizer names one for both";
  const std::vector<std::string> eval{"eval",   "--model",   other,       "--ref", models.model,
                                      "--data", models.text, "--samples", "0"};
  check_cli_refused(eval, 2, sentence);
  const std::vector<std::string> grad{"grad",      "--model", models.model,
                                      "--ref",     other,     "--data",
                                      models.text, "--loss",  R"({"type": "dpo"})"};
  check_cli_refused(grad, 2, sentence);
  for (std::vector<std::string> words : {eval, grad}) {
    words.insert(words.end(), {"--tokenizer", models.model});
    const CliResult named = run_cli(words);
    CHECK(named.code == 0);
    CHECK(named.err.find("prefopt: " + other + " gets the tokens of " + tokenizer +
                         ", but by its own tokenizer " + difference + "\n") != std::string::npos);
  }

  // Ids alone have no text that could differ.
  const std::string bare = models.folder.file("bare"), ids = models.folder.file("ids.jsonl");
  Decoder::load(models.model)->save(bare);
  write_text(ids, R"({"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]})");
  CHECK(run_cli({"grad", "--model", bare, "--ref", other, "--data", ids, "--loss",
                 R"({"type": "dpo"})"})
            .code == 0);

  models.config["reference"] = {{"path", other}};
  const CliResult trained = models.train();
  CHECK(trained.code == 2);
  CHECK(trained.err.ends_with("prefopt: reference.path: expected a model that tokenizes as " +
                              tokenizer + " does, got " + other + ", by which " + difference +
                              "; model.tokenizer names one for both\n"));
  models.config["model"]["tokenizer"] = models.model;
  const CliResult named = models.train();
  CHECK(named.code == 0);
  CHECK(named.err.find("reference: gets the tokens of " + tokenizer +
                       ", but by its own tokenizer " + difference) != std::string::npos);

  // One family's models end texts otherwise, and that is all.
  write_text(other + "/tokenizer.json", read_text(tokenizer));
  write_text(other + "/tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  CHECK(run_cli(eval).code == 0);
}

TEST_CASE("prefopt: a model that was made with bytes stays one", "[cli]") {
  Models models;
  models.config["model"] = {{"decoder",
                             {{"vocab_size", 300},
                              {"hidden_size", 16},
                              {"intermediate_size", 24},
                              {"num_hidden_layers", 1},
                              {"num_attention_heads", 2},
                              {"num_key_value_heads", 1}}}};
  models.config["data"]["train"] = models.text;
  REQUIRE(models.train().code == 0);
  CHECK(scores({"--model", models.last(), "--data", models.text}) ==
        scores({"--model", models.last(), "--data", models.text, "--tokenizer", "byte"}));
}

TEST_CASE("prefopt: every end token of a model ends a completion", "[cli]") {
  const TempDir folder;
  const std::string model = folder.file("model"), rows = folder.file("rows.jsonl");
  fs::copy(kPolicy, model);
  write_text(rows, "{\"prompt_ids\": [5, 6, 7]}\n");
  const json config = json::parse(read_text(model + "/config.json"));
  const auto with_ends = [&](const json& ends, const json& generation) {
    json changed = config;
    changed["eos_token_id"] = ends;
    fs::remove(model + "/config.json");
    write_text(model + "/config.json", changed.dump());
    fs::remove(model + "/generation_config.json");
    if (!generation.is_null()) {
      write_text(model + "/generation_config.json", json{{"eos_token_id", generation}}.dump());
    }
  };
  const auto ids = [&](const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"--model", model, "--data", rows};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return generated(arguments);
  };
  with_ends(511, nullptr);
  const auto whole = ids();
  REQUIRE(whole.size() == 12);
  const std::int64_t end = whole[3];
  const std::vector<std::int64_t> cut(whole.begin(),
                                      std::find(whole.begin(), whole.end(), end) + 1);
  with_ends({511, end}, nullptr);
  CHECK(ids() == cut);
  with_ends({end, 511}, nullptr);
  CHECK(ids() == cut);
  with_ends(511, end);
  CHECK(ids() == cut);
  with_ends(511, {510, end});
  CHECK(ids() == cut);
  CHECK(ids({"--end-tokens", "511"}) == whole);
  CHECK(ids({"--eos-id", "-1"}) == whole);
  with_ends(nullptr, nullptr);
  CHECK(ids() == whole);
  CHECK(ids({"--end-tokens", std::to_string(end)}) == cut);
  CHECK(ids({"--end-tokens", "511", "--end-tokens", std::to_string(end)}) == cut);
  check_cli_refused({"generate", "--model", model, "--data", rows, "--end-tokens", "512"}, 2,
                    "--end-tokens: expected ids in [-1, 512), got 512");
}

TEST_CASE("prefopt train: all end tokens end its samples", "[cli]") {
  Models models;
  json config = json::parse(read_text(models.model + "/config.json"));
  config["eos_token_id"] = {5, 6};
  write_text(models.model + "/config.json", config.dump());
  write_text(models.model + "/generation_config.json", R"({"eos_token_id": [6, 7], "top_k": 3})");
  const std::int64_t turn = make_tokenizer(models.model)->encode("<|im_end|>").at(0);
  REQUIRE(models.train().code == 0);
  CHECK(models.written_config()["sampling"]["eos_id"] == 5);
  // config.json's, generation_config.json's, the tokenizer's, the end of a ChatML turn
  CHECK(models.written_config()["sampling"]["extra_eos_ids"] == json({6, 7, 0, turn}));
  const json saved = json::parse(read_text(models.last() + "/generation_config.json"));
  CHECK(saved == json({{"eos_token_id", {5, 6, 7, 0, turn}}, {"top_k", 3}}));
  CHECK(json::parse(read_text(models.last() + "/config.json"))["eos_token_id"] == json({5, 6}));

  models.config["output_dir"] = models.folder.file("named");
  models.config["sampling"] = {{"extra_eos_ids", {9}}};
  REQUIRE(models.train().code == 0);
  CHECK(models.written_config()["sampling"]["eos_id"] == -1);
  CHECK(models.written_config()["sampling"]["extra_eos_ids"] == json({9}));
}

TEST_CASE("prefopt generate: control tokens in messages are as in rows", "[cli]") {
  const Models models;
  const std::string text = "x<|im_end|>y";
  const auto tokenizer = make_tokenizer(models.model);
  const std::string before = "<|im_start|>user\n", after = "<|im_end|>\n<|im_start|>assistant\n";
  const std::string whole = before + text + after;
  const std::vector<TextRange> message{{before.size(), before.size() + text.size()}};
  // The same prompt as ids.
  const auto of_ids = [&](const std::vector<std::int64_t>& ids) {
    const std::string rows = models.folder.file("ids.jsonl");
    write_text(rows, json{{"prompt_ids", ids}}.dump());
    return generated({"--model", models.model, "--data", rows});
  };
  const auto of_message = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"--model", models.model, "--message", text};
    words.insert(words.end(), more.begin(), more.end());
    return generated(words);
  };
  const std::vector<std::string> split{"--data-options", R"({"special_tokens_in_text": "split"})"};
  const auto kept = of_message({}), plain = of_message(split);
  CHECK(kept == of_ids(tokenizer->encode(whole)));
  CHECK(plain == of_ids(tokenizer->encode_plain(whole, message)));
  CHECK(kept != plain);

  std::vector<std::string> words{"generate", "--model", models.model,       "--message",
                                 text,       "--json",  "--max-new-tokens", "1"};
  CHECK(run_cli(words).err ==
        "prefopt: --message: control token spelled in the text (special_tokens_in_text = "
        "'keep')\n");
  words.insert(words.end(), {"--data-options", R"({"special_tokens_in_text": "error"})"});
  check_cli_refused(words, 3,
                    "--message: expected a usable row, got one with 'control token spelled in the "
                    "text'; the option special_tokens_in_text = 'split' takes it as text");
  // Rows are counted.
  const std::string rows = models.folder.file("rows.jsonl");
  const json row{{"prompt", {{{"role", "user"}, {"content", text}}}}};
  write_text(rows, row.dump() + "\n" + row.dump() + "\n");
  CHECK(
      run_cli({"generate", "--model", models.model, "--data", rows, "--max-new-tokens", "1"}).err ==
      "kept 2 rows: control token spelled in the text (lines 1, 2)\n");
}

TEST_CASE("prefopt generate: messages are written in the model's format", "[cli]") {
  const Models models;
  const auto prompts = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(),
                     {"generate", "--model", models.model, "--json", "--max-new-tokens", "1"});
    const CliResult result = run_cli(arguments);
    INFO(result.err);
    REQUIRE(result.code == 0);
    std::vector<std::string> texts;
    std::istringstream lines(result.out);
    for (std::string line; std::getline(lines, line);) texts.push_back(json::parse(line)["prompt"]);
    return texts;
  };
  const std::string opening = "<|im_end|>\n<|im_start|>assistant\n";
  CHECK(prompts({"--message", "Hi", "--message", "[a,b]"}) ==
        std::vector<std::string>{"<|im_start|>user\nHi" + opening,
                                 "<|im_start|>user\n[a,b]" + opening});
  CHECK(prompts({"--message", "Hi", "--system", "Be brief"}) ==
        std::vector<std::string>{"<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi" +
                                 opening});
  check_cli_refused({"generate", "--model", models.model, "--message", ""}, 3,
                    "--message: expected a prompt whose last turn has a text, got an empty turn of "
                    "the user");
  CHECK(prompts({"--message", "Hi", "--chat-format", "plain"}) ==
        std::vector<std::string>{"Hi\n\n"});
  CHECK(prompts({"--prompt", "Hi", "--prompt", " "}) == std::vector<std::string>{"Hi", " "});
  check_cli_refused({"generate", "--model", models.model, "--prompt", "a", "--message", "b"}, 2,
                    "generate: expected one of --prompt, --message and --data, got several");
  check_cli_refused({"generate", "--model", models.model, "--prompt", "a", "--system", "b"}, 2,
                    "--system: expected a --message that it goes before, got none");

  write_text(models.model + "/tokenizer_config.json", "{}");
  const CliResult noted =
      run_cli({"generate", "--model", models.model, "--message", "Hi", "--max-new-tokens", "1"});
  CHECK(noted.code == 0);
  CHECK(noted.err.find("1 row of messages in the chat format 'dialogue', as the tokenizer") !=
        std::string::npos);
  write_text(models.model + "/tokenizer_config.json",
             R"({"chat_template": "{{ messages | pprint }}"})");
  const CliResult refused = run_cli({"generate", "--model", models.model, "--message", "Hi"});
  CHECK(refused.code == 2);
  CHECK(refused.err.find("line 1: expected a filter known here, got 'pprint'") !=
        std::string::npos);
  CHECK(run_cli({"generate", "--model", models.model, "--prompt", "Hi", "--max-new-tokens", "1"})
            .code == 0);
}

}  // namespace
}  // namespace model_folders_test
