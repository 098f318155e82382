// SPDX-License-Identifier: Apache-2.0
#include "support/inputs.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "prefopt/error.h"

namespace prefopt::bench {
namespace {

// Rows of [prompt, chosen, rejected] as one batch.
PairLens batch_of(const std::vector<std::vector<std::int64_t>>& pairs) {
  PairLens lens;
  std::int64_t longest = 1;
  for (const auto& pair : pairs) {
    lens.chosen.push_back(pair[1]);
    lens.rejected.push_back(pair[2]);
    longest = std::max(longest, pair[0] + std::max(pair[1], pair[2]));
  }
  lens.padded_rows = 2 * static_cast<std::int64_t>(pairs.size()) * (longest - 1);
  return lens;
}

}  // namespace

at::ScalarType dtype_named(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  throw ConfigError("--dtype: expected float32 or bfloat16, got " + name);
}

at::Tensor random_normal(std::vector<std::int64_t> shape, double scale, at::ScalarType dtype,
                         std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kFloat).mul_(scale).to(dtype);
}

at::Tensor random_targets(std::int64_t rows, std::int64_t vocab_size, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randint(0, vocab_size, {rows}, generator, at::kLong);
}

std::int64_t PairLens::rows() const {
  return std::accumulate(chosen.begin(), chosen.end(), std::int64_t{0}) +
         std::accumulate(rejected.begin(), rejected.end(), std::int64_t{0});
}

std::vector<PairLens> read_lengths(const std::string& path, std::int64_t pairs) {
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  std::vector<std::vector<std::int64_t>> rows;
  if (json.is_array()) {
    for (const auto& row : json) {
      const bool fits = row.is_array() && row.size() == 3 &&
                        std::all_of(row.begin(), row.end(), [](const auto& count) {
                          return count.is_number_integer() && count >= 1;
                        });
      if (fits) rows.push_back(row.get<std::vector<std::int64_t>>());
    }
  }
  if (rows.empty() || rows.size() != json.size()) {
    throw DataError("--lengths: expected an array of [prompt, chosen, rejected] counts in " + path);
  }
  std::vector<PairLens> batches;
  for (auto first = rows.begin(); first != rows.end();) {
    const auto left = static_cast<std::int64_t>(rows.end() - first);
    const auto last = first + std::min(left, pairs);
    batches.push_back(batch_of({first, last}));
    first = last;
  }
  return batches;
}

PairLens equal_lengths(std::int64_t pairs, std::int64_t prompt, std::int64_t chosen,
                       std::int64_t rejected) {
  return batch_of(std::vector<std::vector<std::int64_t>>(static_cast<std::size_t>(pairs),
                                                         {prompt, chosen, rejected}));
}

}  // namespace prefopt::bench
