// SPDX-License-Identifier: Apache-2.0
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "prefopt/decoder/decoder.h"
#include "prefopt/error.h"
#include "prefopt/policy/sequence_logps.h"
#include "support/catch.h"
#include "support/files.h"
#include "support/temp_dir.h"

namespace prefopt {
namespace {

using namespace testing_support;
using nlohmann::json;

const std::string kGgufFamilies = PREFOPT_TEST_DATA_DIR "/families/gguf/";

/// What transformers gave (tests/data/families/make_gguf.py).
const json& recorded() {
  static const json all = json::parse(bytes_of(kGgufFamilies + "expected.json"));
  return all;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const auto& item : recorded()["models"].items()) names.push_back(item.key());
  return names;
}

double worst_difference_from(Decoder& decoder, const json& record) {
  using Tokens = std::vector<std::int64_t>;
  std::vector<TokenRow> rows;
  std::vector<double> expected;
  for (const json& row : recorded()["rows"]) {
    rows.push_back({.prompt = row["prompt"].get<Tokens>(),
                    .chosen = row["chosen"].get<Tokens>(),
                    .rejected = row["rejected"].get<Tokens>()});
  }
  for (const char* side : {"chosen", "rejected"}) {
    for (const json& row : record["logps"]) {
      for (const json& value : row[side]) expected.push_back(value);
    }
  }
  const at::NoGradGuard no_grad;
  const at::Tensor got = sequence_logps(decoder, make_pair_batch(rows)).token_logps;
  return (got.to(at::kDouble) - at::tensor(expected, at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("families in GGUF: log-probs of the same model in transformers", "[decoder]") {
  const std::string name = GENERATE(from_range(model_names()));
  INFO(name);
  const json& record = recorded()["models"][name];
  const std::string path = kGgufFamilies + name + ".gguf";
  const auto decoder = Decoder::load(path, "float64");
  CHECK(decoder->options().family == record["model_type"]);
  // Numbers of the metadata and sums of norms are float32 there.
  CHECK(worst_difference_from(*decoder, record) < 1e-6);

  const TempDir dir;
  decoder->save(dir.path());
  const auto back = Decoder::load(dir.path());
  CHECK(back->config() == decoder->config());
  CHECK(worst_difference_from(*back, record) < 1e-6);
}

}  // namespace prefopt
