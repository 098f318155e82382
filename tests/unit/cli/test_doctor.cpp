// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <filesystem>
#include <regex>
#include <string>

#include "prefopt/decoder/decoder.h"
#include "support/catch.h"
#include "support/cli.h"
#include "support/files.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace prefopt::testing_support {
namespace {

using nlohmann::json;

/// The finding about what begins with `subject`.
json finding(const json& report, const std::string& subject) {
  for (const json& one : report["findings"]) {
    if (one["subject"].get<std::string>().starts_with(subject)) return one;
  }
  FAIL("no finding about " + subject);
  return {};
}

TEST_CASE("prefopt doctor: a machine that is well", "[cli]") {
  const TempDir folder;
  put(folder.file("rows.jsonl"), R"({"prompt": "a", "chosen": "b", "rejected": "c"})");
  const std::string out = folder.file("runs");
  const json report = cli_json({"doctor", "--model", kPolicy, "--tokenizer", "byte", "--data",
                                folder.file("rows.jsonl"), "--out", out, "--json"});
  for (const std::string subject : {"processor", "CUDA", "threads", "LibTorch", "memory"}) {
    CAPTURE(subject);
    CHECK(finding(report, subject)["status"] != "problem");
    CHECK_FALSE(finding(report, subject)["found"].get<std::string>().empty());
  }
  CHECK(finding(report, "kernels")["status"] == "ok");
  CHECK(finding(report, "folder")["found"].get<std::string>().find("MiB/s, fsync takes ") !=
        std::string::npos);
  CHECK(std::filesystem::is_empty(out));
  CHECK(finding(report, "model")["status"] == "ok");
  CHECK(finding(report, "model")["found"] ==
        "llama, vocab_size 512, hidden_size 64, intermediate_size 160, num_hidden_layers 3, "
        "num_attention_heads 4, num_key_value_heads 2, head_dim 16, max_position_embeddings 256, "
        "rms_norm_eps 1e-06, tie_word_embeddings false, initializer_range 0.1, bos_token_id 1, "
        "eos_token_id 2, pad_token_id 0");
  CHECK(finding(report, "weights")["found"].get<std::string>().ends_with(
      " parameters, all finite, 512 tokens"));
  CHECK(finding(report, "tokenizer")["found"] ==
        "byte, 259 tokens, begin token 256 '<begin>', end token 257 '<end>', padding token "
        "258 '<padding>'");
  CHECK(finding(report, "chat template")["found"] == "none; messages are written as 'dialogue'");
  CHECK(finding(report, "end tokens")["found"] == "2 '\u2402', 257 '<end>'");
  CHECK(finding(report, "data")["found"] ==
        "1 rows that can be used; `prefopt data check` says more");

  const json bare = cli_json({"doctor", "--model", kPolicy, "--out", out, "--json"});
  CHECK(finding(bare, "tokenizer")["status"] == "warning");

  const CliResult text = run_cli({"doctor", "--out", out});
  CHECK(text.code == 0);
  CHECK(text.err == "");
  CHECK(text.out.find("\nok       kernels: log-probs and gradients within ") != std::string::npos);
}

TEST_CASE("prefopt doctor: what PREFOPT_SIMD holds all libraries to", "[cli]") {
  const TempDir folder;
  const auto run_held = [&](const std::string& limit) {
    return run_cli_program({"doctor", "--out", folder.path()}, "PREFOPT_SIMD=" + limit);
  };
#if defined(__x86_64__)
  const CliResult scalar = run_held("scalar");
  CHECK(scalar.code == 0);
  CHECK(std::regex_search(scalar.out, std::regex("LibTorch for (DEFAULT|NO AVX)\n")));
  CHECK(scalar.out.find("kernels for AVX") == std::string::npos);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    CHECK(run_held("avx2").out.find("kernels for AVX2, LibTorch for AVX2\n") != std::string::npos);
  }
#endif
  const CliResult unknown = run_held("sse");
  CHECK(unknown.code == 2);
  CHECK(unknown.err == "prefopt: PREFOPT_SIMD: expected scalar, avx2 or avx512, got sse\n");
}

TEST_CASE("prefopt doctor: files that are not well", "[cli]") {
  const TempDir folder;
  const std::string rows = folder.file("rows.jsonl");
  put(rows, R"({"prompt": "a", "chosen": "b", "rejected": "c"})"
            "\n{\"prompt\": \"a\"\n");
  const CliResult result = run_cli({"doctor", "--data", rows, "--out", folder.path()});
  CHECK(result.code == 3);
  CHECK(result.out.find("\nproblem  data " + rows + ": " + rows + ":2: expected JSON, got ") !=
        std::string::npos);
  CHECK(result.err.starts_with("prefopt: " + rows + ":2: expected JSON, got "));

  const CliResult model =
      run_cli({"doctor", "--model", folder.file("none"), "--out", folder.path()});
  CHECK(model.code == 4);
  CHECK(model.err == "prefopt: " + folder.file("none") +
                         "/config.json: expected a readable file, got No such file or directory\n");

  const CliResult out = run_cli({"doctor", "--out", rows});
  CHECK(out.code == 4);
  CHECK(out.err == "prefopt: " + rows + ": expected a folder to write to, got 'Not a directory'\n");
  CHECK(out.out.find("\nproblem  folder " + rows + ": ") != std::string::npos);
}

TEST_CASE("prefopt doctor: paths are told apart by what they hold", "[cli]") {
  const TempDir folder;
  const std::string adapter = folder.file("adapter");
  auto model = Decoder::load(kPolicy);
  model->add_adapter({.r = 2, .lora_alpha = 8, .target_modules = {"q_proj"}});
  model->save_adapter(adapter);
  put(folder.file("rows.jsonl"),
      R"({"prompt_ids": [10], "chosen_ids": [11, 2], "rejected_ids": [12, 2], "remark": "x"})");
  const json report =
      cli_json({"doctor", folder.file("rows.jsonl"), adapter, "--out", folder.path(), "--json"});
  CHECK(finding(report, "model")["subject"] == "model " + std::string(kPolicy));
  CHECK(finding(report, "adapter " + adapter)["found"] ==
        R"(r 2, lora_alpha 8.0, target_modules ["q_proj"])");
  CHECK(finding(report, "data")["found"] ==
        "1 rows that can be used; `prefopt data check` says more");
  CHECK(finding(report, "data")["advice"] == "nothing reads the column 'remark'");

  const std::string second = folder.file("second");
  auto other = Decoder::load(kPolicy);
  other->add_adapter({.r = 3, .lora_alpha = 6, .target_modules = {"v_proj"}});
  other->save_adapter(second);
  for (const auto& arguments :
       {std::vector<std::string>{adapter, second},
        std::vector<std::string>{"--model", kPolicy, "--adapter", adapter, second},
        std::vector<std::string>{kPolicy, "--adapter", adapter, "--adapter", second}}) {
    std::vector<std::string> command{"doctor", "--out", folder.path(), "--json"};
    command.insert(command.begin() + 1, arguments.begin(), arguments.end());
    const json both = cli_json(command);
    CHECK(finding(both, "model")["subject"] == "model " + std::string(kPolicy));
    CHECK(finding(both, "adapter " + adapter)["found"] ==
          R"(r 2, lora_alpha 8.0, target_modules ["q_proj"])");
    CHECK(finding(both, "adapter " + second)["found"] ==
          R"(r 3, lora_alpha 6.0, target_modules ["v_proj"])");
  }

  const json elsewhere =
      cli_json({"doctor", kReference, adapter, "--out", folder.path(), "--json"});
  CHECK(finding(elsewhere, "adapter " + adapter)["status"] == "warning");
  CHECK(finding(elsewhere, "adapter " + adapter)["advice"] ==
        "it was made for '" + kPolicy + "': is that this model?");

  const CliResult two = run_cli({"doctor", kPolicy, kPolicy, "--out", folder.path()});
  CHECK(two.err == fmt::format("prefopt: {0}: expected one model, got '{0}' as well\n", kPolicy));
}

TEST_CASE("prefopt doctor and data check: lists of files, and what is passed over", "[cli]") {
  const TempDir folder;
  const std::string pair = R"({"prompt": "a", "chosen": "b", "rejected": "c"})";
  std::filesystem::create_directories(folder.file("rows/old"));
  put(folder.file("rows/a.jsonl"), pair);
  put(folder.file("rows/notes.txt"), "");
  put(folder.file("b.jsonl"), pair + "\n" + pair);
  const std::string list =
      json::array({folder.file("rows"), {{"path", folder.file("b.jsonl")}, {"weight", 2}}}).dump();
  const std::string passed_over =
      fmt::format("not read: '{0}/rows/notes.txt', '{0}/rows/old'", folder.path());
  const CliResult check = run_cli({"data", "check", "--data", list, "--json"});
  CHECK(check.err == "prefopt: " + passed_over + "\n");
  CHECK(json::parse(check.out)["train"]["rows"] == 3);
  const json two = cli_json(
      {"data", "check", "--data", folder.file("b.jsonl"), folder.file("rows/a.jsonl"), "--json"});
  CHECK(two["train"]["rows"] == 3);

  const std::string both = json::array({folder.file("rows"), folder.file("b.jsonl")}).dump();
  const json report = cli_json({"doctor", "--data", both, "--out", folder.path(), "--json"});
  CHECK(finding(report, "data")["found"] ==
        "3 rows that can be used; `prefopt data check` says more");
  CHECK(finding(report, "data")["advice"] == passed_over);
  check_cli_refused({"doctor", both, "--out", folder.path()}, 2,
                    "PATH: expected a file or a folder, got \"" + folder.file("rows") +
                        "\" of a list; --data takes a whole list");
}

TEST_CASE("prefopt doctor: the model's own chat template", "[cli]") {
  const TempDir folder;
  std::filesystem::copy(PREFOPT_TEST_DATA_DIR "/tokenizers/smollm2", folder.path(),
                        std::filesystem::copy_options::recursive);
  const auto template_finding = [&](const std::string& chat_template) {
    put(folder.file("chat_template.jinja"), chat_template);
    return finding(
        json::parse(run_cli({"doctor", folder.path(), "--out", folder.path(), "--json"}).out),
        "chat template");
  };
  CHECK(template_finding(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")["found"] ==
        "the model's own, which is rendered; '<|im_end|>' ends an answer");
  const json refused = template_finding("{% unheard_of %}");
  CHECK(refused["status"] == "problem");
  CHECK(refused["found"].get<std::string>().find("unheard_of") != std::string::npos);
}

TEST_CASE("prefopt doctor: a part that is not understood hides no other", "[cli]") {
  const TempDir folder;
  std::filesystem::copy(kPolicy, folder.path(), std::filesystem::copy_options::recursive);
  json config = json::parse(bytes_of(folder.file("config.json")));
  config["rope_scaling"] = {{"rope_type", "unheard_of"}, {"factor", 2.0}};
  put(folder.file("config.json"), config.dump());
  const CliResult result =
      run_cli({"doctor", folder.path(), "--tokenizer", "byte", "--out", folder.path(), "--json"});
  CHECK(result.code == 4);
  const json report = json::parse(result.out);
  CHECK(finding(report, "model")["status"] == "problem");
  CHECK(finding(report, "model")["found"].get<std::string>().find("unheard_of") !=
        std::string::npos);
  CHECK(finding(report, "tokenizer")["status"] == "ok");
}

TEST_CASE("prefopt doctor: threads are those of the environment", "[cli]") {
  const TempDir folder;
  const CliResult result =
      run_cli_program({"doctor", "--out", folder.path(), "--json"}, "OMP_NUM_THREADS=1");
  REQUIRE(result.code == 0);
  const std::string threads = finding(json::parse(result.out), "threads")["found"];
  CHECK(threads.starts_with("1 of LibTorch on "));
  CHECK(threads.ends_with(", OMP_NUM_THREADS=1"));
}

}  // namespace
}  // namespace prefopt::testing_support
