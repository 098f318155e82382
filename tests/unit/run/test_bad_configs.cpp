// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "prefopt/error.h"
#include "prefopt/losses/registry.h"
#include "prefopt/run/run.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/memory_limit.h"

namespace prefopt {
namespace {

struct BadConfig {
  std::string json;
  std::string error;
};

std::string nested(std::size_t levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

std::string many_keys(int count) {
  std::string object = "{";
  for (int i = 0; i < count; ++i) {
    object += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":0";
  }
  return object + "}";
}

const std::vector<BadConfig>& bad_runs() {
  static const std::vector<BadConfig> kConfigs = {
      {"[]", "run: expected an object of options, got []"},
      {"\"run\"", "run: expected an object of options, got \"run\""},
      {R"({"train": {}, "train": {}})", "run: expected JSON, got the key 'train' twice"},
      {R"({"model": {"lora": {"r": 1, "r": 2}}})", "run: expected JSON, got the key 'r' twice"},
      {R"({"loss": )" + nested(64) + "}", "run: expected JSON, got nesting deeper than 64 levels"},
      {R"({"loss": )" + many_keys(10'001) + "}",
       "run: expected JSON, got an object of more than 10000 keys"},
      {R"({"bacth": {}})", "run: expected a known option, got 'bacth'; did you mean 'batch'?"},
      {R"({"micro_rows": 2})",
       "run: expected a known option, got 'micro_rows'; it is an option of 'batch'"},
      {R"({"optimizer": {"output_dir": "x"}})",
       "run.optimizer: expected a known option, got 'output_dir'; it is an option of the top "
       "level"},
      {R"({"learning_rate": 1})",
       "run: expected a known option, got 'learning_rate'; it is an option of 'optimizer' and "
       "'value.optimizer'"},
      {R"({"path": "x"})",
       "run: expected a known option, got 'path'; it is an option of 'model', 'reference' and "
       "'value'"},
      {"{\"" + std::string(1000, 'k') + "\": 1}",
       "run: expected a known option, got '" + std::string(300, 'k') + "…'"},
      {R"({"batch": []})", "run: expected batch to be an object, got []"},
      {R"({"batch": null})", "run: expected batch to be an object, got null"},
      // Former places.
      {R"({"train": []})", "run: expected train to be an object, got []"},
      {R"({"train": null})", "run: expected train to be an object, got null"},
      {R"({"train": {"stpes": 1}})",
       "run.train: expected a known option, got 'stpes'; did you mean 'steps'?"},
      {R"({"train": {"steps": 1}, "batch": {"steps": 1}})",
       "run: expected batch.steps once, got it as 'batch.steps' and as 'train.steps'"},
      {R"({"train": {"steps": 1}, "batch": {"max_steps": 1}})",
       "run: expected batch.steps once, got it as 'batch.max_steps' and as 'train.steps'"},
      {R"({"train": {"steps": 1}, "batch": 3})", "run: expected batch to be an object, got 3"},
      {R"({"train": {"batch_size": 0}})", "run.batch: expected rows in [1, 1000000], got 0"},
      {R"({"train": {"seed": 1}, "seed": 1})",
       "run: expected seed once, got it as 'seed' and as 'train.seed'"},
      {R"({"output_dir": 7})", "run: expected output_dir to be text, got 7"},
      {R"({"batch": {"steps": "7"}})", "run.batch: expected steps to be a whole number, got \"7\""},
      {R"({"batch": {"steps": 1.5}})", "run.batch: expected steps to be a whole number, got 1.5"},
      {R"({"batch": {"steps": 1e300}})",
       "run.batch: expected steps to be a whole number, got 1e+300"},
      {R"({"batch": {"steps": 18446744073709551615}})",
       "run.batch: expected steps to be a number of at most 64 bits, got 18446744073709551615"},
      {R"({"batch": {"steps": -1}})", "run.batch: expected steps in [0, 1000000000], got -1"},
      {R"({"batch": {"steps": 1, "max_steps": 1}})",
       "run.batch: expected steps once, got it as 'steps' and as 'max_steps'"},
      {R"({"batch": {"shuffle": 1}})", "run.batch: expected shuffle to be true or false, got 1"},
      {R"({"machine": {"threads": 4097}})", "run.machine: expected threads in [0, 4096], got 4097"},
      {R"({"reference": {"kind": "froze"}})",
       "run.reference: expected kind to be one of 'frozen', 'cached', got 'froze'; did you mean "
       "'frozen'?"},
      {R"({"reference": {"kind": 1}})",
       "run.reference: expected kind to be one of 'frozen', 'cached', got 1"},
      {R"({"model": {"lora": {"r": 0}}})", "run.model.lora: expected r in [1, 65536], got 0"},
      {R"({"data": {"eval_fraction": 1}})", "run.data: expected eval_fraction in [0, 1), got 1"},
  };
  return kConfigs;
}

const std::vector<BadConfig>& bad_losses() {
  static const std::vector<BadConfig> kConfigs = {
      {"7", "loss: expected an object with a key 'type', got 7"},
      {"{}", "loss: expected a key 'type' that names a loss, got {}"},
      {R"({"type": 7})", "loss: expected a key 'type' that names a loss, got {\"type\":7}"},
      {R"({"type": "dpo", "beta": "x"})", "dpo: expected beta to be a number, got \"x\""},
      {R"({"loss_type": 3})",
       "loss: expected loss_type to be a name or a list of them, with as many loss_weights or "
       "none, got 3 with loss_weights []"},
      {R"({"loss_type": ["dpo"], "loss_weights": [1, 2]})",
       "loss: expected loss_type to be a name or a list of them, with as many loss_weights or "
       "none, got [\"dpo\"] with loss_weights [1,2]"},
  };
  return kConfigs;
}

}  // namespace

TEST_CASE("bad configurations are refused by option", "[run]") {
  for (const auto& [text, error] : bad_runs()) {
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(options_from_json<RunOptions>(text, "run"), ConfigError, error);
  }
  for (const auto& [text, error] : bad_losses()) {
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(make_loss(text), ConfigError, error);
  }
  testing_support::report_count("bad configurations refused",
                                bad_runs().size() + bad_losses().size());
  // Just within the limits: 64 levels, of which the outermost is the run.
  CHECK_NOTHROW(options_from_json<RunOptions>(R"({"loss": )" + nested(63) + "}", "run"));
  CHECK_NOTHROW(options_from_json<RunOptions>(R"({"loss": )" + many_keys(10'000) + "}", "run"));
}

}  // namespace prefopt
