// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "data/tokenizer_json.h"
#include "data/tokenizer_writer.h"
#include "prefopt/data/chat.h"
#include "prefopt/data/dataset.h"
#include "prefopt/data/tokenizer.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"
#include "support/text_files.h"

namespace prefopt::tokenizer_files_test {
namespace {

using nlohmann::json;
using testing_support::read_text;
using testing_support::TempDir;
using testing_support::write_text;

const std::string kTokenizers = PREFOPT_TEST_DATA_DIR "/tokenizers/";

/// The template that the golden conversations of a format come from.
std::string template_of(const std::string& format) {
  for (const json& golden : json::parse(read_text(PREFOPT_TEST_DATA_DIR "/chat.json"))) {
    if (golden["format"] == format) return golden["template"];
  }
  throw std::runtime_error(format);
}

/// A model folder with SmolLM2's kind of tokenizer and this chat template.
void write_model(const std::string& folder, const std::string& chat_template) {
  std::filesystem::create_directories(folder);
  write_text(folder + "/tokenizer.json", read_text(kTokenizers + "smollm2/tokenizer.json"));
  json config{{"eos_token", "<|im_end|>"}};
  if (!chat_template.empty()) config["chat_template"] = chat_template;
  write_text(folder + "/tokenizer_config.json", config.dump());
}

TEST_CASE("tokenizers that are written and read again give equal ids", "[data]") {
  for (const char* name :
       {"gpt2", "llama3", "odd", "qwen2", "smollm2", "llama2", "mistral3", "gemma", "unknown",
        "split", "inner_bytes", "t5", "albert", "unigram_bytes"}) {
    INFO(name);
    const TempDir dir;
    const std::string path = kTokenizers + name;
    write_files(
        detail::written_tokenizer(detail::read_tokenizer_json(path + "/tokenizer.json"), name),
        dir.path());
    const auto before = make_tokenizer(path);
    const auto after = make_tokenizer(dir.path());
    CHECK(after->fingerprint() == before->fingerprint());
    CHECK(after->vocab_size() == before->vocab_size());
    for (const json& golden : json::parse(read_text(path + "/cases.json"))) {
      if (!golden.contains("text")) continue;
      const std::string text = golden["text"];
      CHECK(after->encode(text) == before->encode(text));
      const auto ids = golden["ids"].get<std::vector<std::int64_t>>();
      CHECK(after->decode(ids) == before->decode(ids));
    }
  }
}

TEST_CASE("a vocabulary that JSON cannot hold is refused", "[data]") {
  const BpeVocabulary vocabulary{.tokens = {"a", "\xFF"}};
  CHECK_THROWS_TEXT(detail::written_tokenizer(detail::spec_of(vocabulary), "m.gguf"),
                    CheckpointError,
                    "m.gguf: expected tokens in UTF-8, to be written as tokenizer.json, got other "
                    "bytes in token 1");
}

TEST_CASE("a folder's tokenizer is copied with all that speaks of it", "[data]") {
  const TempDir dir;
  const std::string from = dir.file("model");
  write_model(from, "x");
  for (const char* name : {"special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
                           "chat_template.json", "vocab.json", "merges.txt", "tokenizer.model"}) {
    write_text(from + "/" + name, std::string("bytes of ") + name + "\n");
  }
  write_text(from + "/model.safetensors", "weights");
  const FolderFiles files = tokenizer_files(from);
  CHECK(files.size() == 9);
  for (const auto& [name, content] : files) CHECK(content == read_text(from + "/" + name));
  CHECK(tokenizer_files(from + "/tokenizer.json") == files);
  CHECK(tokenizer_files(from, "chatml").at("prefopt.json") ==
        "{\n  \"chat_format\": \"chatml\"\n}\n");
  CHECK(tokenizer_files("byte").at("prefopt.json") == "{\n  \"tokenizer\": \"byte\"\n}\n");
  CHECK(tokenizer_files("").empty());
  CHECK(tokenizer_files("", "", R"({"add_bos": false})").at("prefopt.json") ==
        "{\n  \"data\": {\n    \"add_bos\": false\n  }\n}\n");

  // Files that are not read here are copied as well.
  std::filesystem::remove(from + "/tokenizer.json");
  CHECK(model_companions("", from).contains("tokenizer.model"));
  CHECK(model_companions("", dir.file("m.gguf")).empty());
}

TEST_CASE("a model without a tokenizer is not one of bytes", "[data]") {
  const TempDir dir;
  const std::string model = dir.file("model");
  std::filesystem::create_directories(model);
  const auto says = [&](const json& config) { write_text(model + "/config.json", config.dump()); };
  const std::string way_out =
      "; name one (model.tokenizer, --tokenizer), or say 'byte' for a model of bytes";
  const std::string expected =
      model +
      ": expected a tokenizer.json with the model, or a tokenizer in a GGUF file, to read "
      "text with, got ";

  says({{"vocab_size", 512}, {"eos_token_id", {7, 8}}, {"pad_token_id", nullptr}});
  CHECK(find_tokenizer(model).empty());
  CHECK_THROWS_TEXT(tokenizer_of_model(model), ConfigError,
                    expected + "none for 512 tokens" + way_out);
  const auto missing = open_tokenizer("", model);
  CHECK_THROWS_TEXT(missing->encode(""), ConfigError, expected + "none for 512 tokens" + way_out);
  CHECK(missing->decode({5, 70}) == "[5][70]");
  CHECK(missing->eos_id() == 7);
  CHECK(missing->bos_id() == -1);
  CHECK(missing->pad_id() == -1);
  CHECK(missing->vocab_size() == 512);
  CHECK(open_tokenizer("byte", model)->vocab_size() == 259);

  write_text(model + "/tokenizer.model", "");
  CHECK_THROWS_TEXT(tokenizer_of_model(model), ConfigError,
                    expected + "tokenizer.model alone, which is not read here" + way_out);
  says({{"vocab_size", 259}});
  CHECK(tokenizer_of_model(model) == "byte");
  says({{"vocab_size", 300}});
  write_files(tokenizer_files("byte"), model);
  CHECK(tokenizer_of_model(model) == "byte");
  CHECK(make_tokenizer(model)->name() == "byte");
  write_model(model, "");
  CHECK(tokenizer_of_model(model) == model);
}

TEST_CASE("an adapter's folder goes before its model's", "[data]") {
  const TempDir dir;
  const std::string model = dir.file("model"), adapter = dir.file("adapter");
  write_model(model, "");
  std::filesystem::create_directories(adapter);
  CHECK(find_tokenizer(model, adapter) == model);
  CHECK(open_tokenizer("", model, adapter)->chat_format().empty());
  write_files(tokenizer_files(model, "zephyr"), model);
  CHECK(open_tokenizer("", model, adapter)->chat_format() == "zephyr");
  write_files(tokenizer_files("byte", "alpaca"), adapter);
  CHECK(find_tokenizer(model, adapter) == "byte");
  CHECK(open_tokenizer("", model, adapter)->chat_format() == "alpaca");
  // A tokenizer that is named takes the format along.
  CHECK(open_tokenizer(kTokenizers + "gpt2", model, adapter)->chat_format() == "alpaca");
  CHECK(open_tokenizer(kTokenizers + "gpt2", model, adapter)->vocab_size() > 259);
}

TEST_CASE("a damaged prefopt.json is refused by field", "[data]") {
  const TempDir dir;
  const std::string path = dir.file("prefopt.json");
  const auto refuse = [&](const std::string& text, const std::string& sentence) {
    write_text(path, text);
    CHECK_THROWS_TEXT(make_tokenizer(dir.path()), CheckpointError, path + ": expected " + sentence);
  };
  refuse("[]", "an object, got list");
  refuse(R"({"tokenizer": "bpe"})", R"(tokenizer to be 'byte', got "bpe")");
  refuse(R"({"chat_format": 1})", "chat_format to be text, got 1");
  refuse(R"({"more": "x"})", "the fields tokenizer, chat_format and data only, got 'more'");
  const auto refuse_data = [&](const std::string& data, const std::string& sentence) {
    write_text(path, R"({"data": )" + data + "}");
    CHECK_THROWS_TEXT(make_tokenizer(dir.path()), CheckpointError,
                      path + ": data: expected " + sentence);
  };
  refuse_data("[]", "an object of options, got []");
  refuse_data(R"({"loss_on": "first"})",
              "loss_on to be one of 'assistant', 'last', 'all', got 'first'");
  refuse_data(R"({"of_tomorrow": 1})", "a known option, got 'of_tomorrow'");
  refuse_data(R"({"train": "rows.jsonl"})", "options that say how rows are read, got 'train'");
  write_text(path, R"({"tokenizer": "byte", "chat_format": "of_tomorrow"})");
  CHECK_THROWS_AS(resolve_chat_format("auto", *make_tokenizer(dir.path())), ConfigError);
}

TEST_CASE("auto is the format of the run, of the template, or dialogue", "[data]") {
  const TempDir dir;
  const std::string model = dir.file("model");
  const auto resolved = [&] { return resolve_chat_format("auto", *make_tokenizer(model)); };
  const auto ends = [&](const std::string& format) {
    return chat_end_ids(format, *make_tokenizer(model));
  };
  write_model(model, "");
  CHECK(resolved() == "dialogue");
  CHECK(ends("auto").empty());
  write_model(model, " \n");
  CHECK(resolved() == "dialogue");
  for (const char* format : {"chatml", "smollm2", "qwen2.5"}) {
    write_model(model, template_of(format));
    CHECK(resolved() == format);
    CHECK(ends("auto") == make_tokenizer(model)->encode("<|im_end|>"));
  }
  CHECK(ends("llama3").empty());  // whose end is many tokens here
  CHECK(ends("plain").empty());
  write_model(model, "{{ messages }}");
  CHECK_THROWS_AS(resolved(), ConfigError);
  CHECK(ends("auto").empty());
  CHECK_FALSE(ends("chatml").empty());
  write_files(tokenizer_files(model, "alpaca"), model);
  CHECK(resolved() == "alpaca");
  // A tokenizer that remembers a format is the same otherwise.
  const auto bare = make_tokenizer(model + "/tokenizer.json");
  const auto remembering = make_tokenizer(model);
  const std::string text = "a<|im_end|>";
  const std::vector<TextRange> plain{{0, text.size()}};
  CHECK(remembering->encode_plain(text, plain) == bare->encode_plain(text, plain));
  CHECK(remembering->encode_plain(text, plain) != bare->encode(text));
  CHECK(remembering->find_control(text) == bare->find_control(text));
  CHECK(remembering->spelling(bare->eos_id()) == bare->spelling(bare->eos_id()));
  CHECK(resolve_chat_format("zephyr", *make_tokenizer(model)) == "zephyr");
}

TEST_CASE("templates that say the same are one", "[data]") {
  const std::string loop =
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
      "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}";
  const std::string prompt =
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  const std::string guard =
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
      "{% endif %}";
  CHECK(recognize_chat_format(loop + prompt, "m") == "chatml");
  CHECK(recognize_chat_format(guard + loop + prompt + "\n", "m") == "chatml");
  CHECK(recognize_chat_format(
            "{%for message in messages%}{{\"<|im_start|>\" + message.role + \"\n\" + "
            "message.content + \"<|im_end|>\" + \"\\n\"}}{%  endfor  %}" +
                prompt,
            "m") == "chatml");
  for (const std::string& other :
       {loop, prompt + loop, loop + " " + prompt, loop + loop + prompt, prompt + guard}) {
    CHECK_THROWS_AS(recognize_chat_format(other, "m"), ConfigError);
  }
  for (const char* broken :
       {"{{", "{{ 'a", "{% x", "{{ 'a\\", "{{ .role }}", "{", "{{ \"\\q\" }}"}) {
    CHECK_THROWS_AS(recognize_chat_format(broken, "m"), ConfigError);
  }
}

TEST_CASE("a template that cannot be read is an error for messages alone", "[data]") {
  const TempDir dir;
  const std::string model = dir.file("model"), rows = dir.file("rows.jsonl");
  const std::string text_row = R"({"prompt": "a", "chosen": "b", "rejected": "c"})"
                               "\n";
  const std::string messages = R"({"prompt": [{"role": "user", "content": "Hi"}], )"
                               R"("chosen": [{"role": "assistant", "content": "Yes"}], )"
                               R"("rejected": [{"role": "assistant", "content": "No"}]})"
                               "\n";
  const auto load = [&] { return load_dataset(rows, *make_tokenizer(model), {}); };
  write_model(model, "{{ messages | pprint }}");
  write_text(rows, text_row);
  CHECK(load().pairs.size() == 1);
  CHECK(load().report.chat_note.empty());
  write_text(rows, text_row + messages);
  CHECK_THROWS_TEXT(load(), ConfigError,
                    "the chat template of '" + model +
                        "/tokenizer.json': line 1: expected a filter known here, got 'pprint'");
  write_model(model, template_of("chatml"));
  Dataset dataset = load();
  CHECK(dataset.report.message_rows == 1);
  CHECK(dataset.report.chat_note.empty());
  CHECK(dataset.pairs[1].prompt ==
        make_tokenizer(model)->encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"));
  // Without a template nothing says which format the model has.
  write_model(model, "");
  dataset = load();
  CHECK(dataset.pairs[1].prompt == make_tokenizer(model)->encode("\n\nHuman: Hi\n\nAssistant:"));
  CHECK(dataset.report.chat_note ==
        "1 row of messages in the chat format 'dialogue', as the tokenizer '" + model +
            "/tokenizer.json' has no chat template; chat_format names another");
}

}  // namespace
}  // namespace prefopt::tokenizer_files_test
