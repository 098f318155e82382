// SPDX-License-Identifier: Apache-2.0
#include "prefopt/policy/reference.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/file.h"
#include "core/hash.h"
#include "data/token_weights.h"
#include "dist/meeting.h"
#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "prefopt/policy/sequence_logps.h"

namespace prefopt {
namespace {

constexpr std::string_view kFormat = "prefopt-reference-1";
constexpr std::int64_t kKeyLength = 40;  // hexadecimal digits of a ContentHash

class FrozenReference final : public Reference {
 public:
  explicit FrozenReference(std::shared_ptr<Policy> policy) : policy_(std::move(policy)) {}

  at::Tensor sequence_logps(const TokenBatch& batch) override {
    const at::NoGradGuard no_grad;
    return prefopt::sequence_logps(*policy_, batch).logps;
  }
  at::Tensor token_logps(const TokenBatch& batch) override {
    const at::NoGradGuard no_grad;
    return prefopt::sequence_logps(*policy_, batch).token_logps;
  }
  at::Tensor tempered_token_logps(const TokenBatch& batch, double temperature) override {
    const at::NoGradGuard no_grad;
    SequenceLogpsOptions options;
    options.temperature = temperature;
    return prefopt::sequence_logps(*policy_, batch, options).token_logps;
  }
  Policy* policy() override { return policy_.get(); }

 private:
  std::shared_ptr<Policy> policy_;
};

std::string_view level_name(CacheLevel level) {
  return level == CacheLevel::kToken ? "token" : "sequence";
}

// Tokens of sequence `s` and where its completion begins; padding stays out of the key.
std::string key_of(const TokenBatch& batch, std::int64_t s) {
  const std::int64_t width = batch.input_ids.size(1);
  const auto* ids = batch.input_ids.const_data_ptr<std::int64_t>() + s * width;
  const auto* real = batch.attention_mask.const_data_ptr<bool>() + s * width;
  const auto* completion = batch.completion_mask.const_data_ptr<bool>() + s * width;
  detail::ContentHash hash;
  for (std::int64_t t = 0; t < width; ++t) {
    if (!real[t]) continue;
    const std::int64_t item[2] = {ids[t], completion[t]};
    hash.update(item, sizeof item);
  }
  return hash.hex();
}

// The entry of one sequence on disk. `tokens` stays empty at sequence level.
struct CacheEntry {
  double sum;
  std::vector<double> tokens;
};

template <class T>
std::span<const T> values_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), static_cast<std::size_t>(tensor.numel())};
}

template <class T>
at::Tensor tensor_of(const std::vector<T>& values, at::ScalarType dtype) {
  at::Tensor tensor = at::empty({std::ssize(values)}, at::TensorOptions(dtype));
  if (!values.empty()) {
    std::memcpy(tensor.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  }
  return tensor;
}

/// Entries as bytes, for other ranks of the same program.
class PackedEntries {
 public:
  void add(const std::string& key, const CacheEntry& entry) {
    bytes_ += key;
    add_numbers({entry.sum, static_cast<double>(entry.tokens.size())});
    add_numbers(entry.tokens);
  }
  const std::string& bytes() const { return bytes_; }

  static void unpack(std::string_view bytes, std::map<std::string, CacheEntry>& entries) {
    while (!bytes.empty()) {
      CacheEntry& entry = entries[std::string(bytes.substr(0, kKeyLength))];
      bytes.remove_prefix(kKeyLength);
      const auto head = take_numbers(bytes, 2);
      entry = {.sum = head[0], .tokens = take_numbers(bytes, static_cast<std::size_t>(head[1]))};
    }
  }

 private:
  void add_numbers(const std::vector<double>& numbers) {
    bytes_.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(double));
  }
  static std::vector<double> take_numbers(std::string_view& bytes, std::size_t count) {
    std::vector<double> numbers(count);
    std::memcpy(numbers.data(), bytes.data(), count * sizeof(double));
    bytes.remove_prefix(count * sizeof(double));
    return numbers;
  }

  std::string bytes_;
};

// The file's form: sorted keys, so that equal contents give equal bytes.
struct CacheFile {
  std::string path;
  std::string model;
  CacheLevel level;

  std::map<std::string, std::string> metadata() const {
    return {{"format", std::string(kFormat)},
            {"level", std::string(level_name(level))},
            {"model", model}};
  }

  void write(const std::map<std::string, CacheEntry>& entries, at::ScalarType token_dtype) const {
    std::vector<std::uint8_t> keys;
    std::vector<double> sums, tokens;
    std::vector<std::int64_t> offsets{0};
    for (const auto& [key, entry] : entries) {
      keys.insert(keys.end(), key.begin(), key.end());
      sums.push_back(entry.sum);
      tokens.insert(tokens.end(), entry.tokens.begin(), entry.tokens.end());
      offsets.push_back(std::ssize(tokens));
    }
    SafetensorsFile file{.tensors = {}, .metadata = metadata()};
    file.tensors.emplace_back("keys", tensor_of(keys, at::kByte).view({-1, kKeyLength}));
    file.tensors.emplace_back("sequence_logps", tensor_of(sums, at::kDouble));
    if (level == CacheLevel::kToken) {
      file.tensors.emplace_back("offsets", tensor_of(offsets, at::kLong));
      file.tensors.emplace_back("token_logps", tensor_of(tokens, at::kDouble).to(token_dtype));
    }
    write_safetensors(path, file);
  }

  std::map<std::string, CacheEntry> read(at::ScalarType& token_dtype) const {
    const SafetensorsFile file = read_safetensors(path);
    if (file.metadata != metadata()) {
      fail(fmt::format("metadata of format {}, level {}, model {}", kFormat, level_name(level),
                       model),
           "other metadata");
    }
    const std::size_t parts = level == CacheLevel::kToken ? 4 : 2;
    if (file.tensors.size() != parts) {
      fail(fmt::format("{} tensors", parts), fmt::format("{}", file.tensors.size()));
    }
    const at::Tensor keys = find(file, "keys", {at::kByte});
    if (keys.dim() != 2 || keys.size(1) != kKeyLength) {
      fail(fmt::format("keys [n, {}]", kKeyLength), c10::str(keys.sizes()));
    }
    const std::int64_t count = keys.size(0);
    const at::Tensor sums = find(file, "sequence_logps", {at::kDouble}, count);
    std::map<std::string, CacheEntry> entries;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto* key = static_cast<const char*>(keys.const_data_ptr()) + i * kKeyLength;
      entries[std::string(key, kKeyLength)].sum =
          values_of<double>(sums)[static_cast<std::size_t>(i)];
    }
    if (std::ssize(entries) != count) fail("each key once", "a key twice");
    if (level == CacheLevel::kToken) read_tokens(file, keys, entries, token_dtype);
    return entries;
  }

 private:
  void read_tokens(const SafetensorsFile& file, const at::Tensor& keys,
                   std::map<std::string, CacheEntry>& entries, at::ScalarType& token_dtype) const {
    const at::Tensor stored = find(file, "token_logps", {at::kFloat, at::kDouble});
    token_dtype = stored.scalar_type();
    const at::Tensor wide = stored.to(at::kDouble);
    const auto tokens = values_of<double>(wide);
    const at::Tensor offset_tensor = find(file, "offsets", {at::kLong}, keys.size(0) + 1);
    const auto offsets = values_of<std::int64_t>(offset_tensor);
    if (stored.dim() != 1 || offsets.front() != 0 || offsets.back() != std::ssize(tokens) ||
        !std::is_sorted(offsets.begin(), offsets.end())) {
      fail(fmt::format("offsets that rise from 0 to {}", stored.numel()), "others");
    }
    for (std::int64_t i = 0; i < keys.size(0); ++i) {
      const auto* key = static_cast<const char*>(keys.const_data_ptr()) + i * kKeyLength;
      const auto begin = static_cast<std::size_t>(offsets[static_cast<std::size_t>(i)]);
      const auto end = static_cast<std::size_t>(offsets[static_cast<std::size_t>(i) + 1]);
      entries[std::string(key, kKeyLength)].tokens.assign(tokens.begin() + begin,
                                                          tokens.begin() + end);
    }
  }

  // `count` -1: any shape.
  at::Tensor find(const SafetensorsFile& file, std::string_view name,
                  std::initializer_list<at::ScalarType> dtypes, std::int64_t count = -1) const {
    for (const auto& [found, tensor] : file.tensors) {
      if (found != name) continue;
      if (std::find(dtypes.begin(), dtypes.end(), tensor.scalar_type()) == dtypes.end()) {
        fail(fmt::format("{} of dtype {}", name, c10::toString(*dtypes.begin())),
             c10::toString(tensor.scalar_type()));
      }
      if (count >= 0 && tensor.sizes() != at::IntArrayRef({count})) {
        fail(fmt::format("{} [{}]", name, count), c10::str(tensor.sizes()));
      }
      return tensor;
    }
    fail(fmt::format("tensor '{}'", name), "none");
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format(
        "{}: expected {}, got {}; delete the file to compute it again", path, expected, got));
  }
};

}  // namespace

at::Tensor Reference::tempered_token_logps(const TokenBatch& batch, double temperature) {
  if (temperature == 1) return token_logps(batch);
  throw ConfigError(fmt::format(
      "reference: expected temperature 1 of a reference without logits, got {}", temperature));
}

void Reference::after_step(const Policy&, std::int64_t) {}

std::vector<std::pair<std::string, at::Tensor>> Reference::state() const { return {}; }

std::shared_ptr<Reference> make_frozen_reference(std::shared_ptr<Policy> policy) {
  if (!policy) throw ConfigError("reference: expected a policy, got none");
  return std::make_shared<FrozenReference>(std::move(policy));
}

struct CachedReference::Impl {
  std::shared_ptr<Policy> inner;
  CacheFile file;
  std::map<std::string, CacheEntry> entries;
  at::ScalarType token_dtype = at::kFloat;
  bool unwritten = false;
  std::vector<std::string> news;           ///< keys that other ranks do not know of
  std::optional<detail::Meeting> meeting;  ///< of the ranks that share the cache
  std::int64_t hits = 0;
  std::int64_t misses = 0;

  // Entries of all sequences of `batch`, which is contiguous and on the CPU.
  std::vector<const CacheEntry*> look_up(const TokenBatch& batch) {
    std::vector<std::string> keys;
    std::vector<std::int64_t> missing;
    for (std::int64_t s = 0; s < batch.sequences(); ++s) {
      keys.push_back(key_of(batch, s));
      if (!entries.contains(keys.back())) missing.push_back(s);
    }
    misses += std::ssize(missing);
    hits += batch.sequences() - std::ssize(missing);
    if (!missing.empty()) compute(batch, missing, keys);
    std::vector<const CacheEntry*> found;
    for (const auto& key : keys) found.push_back(&entries.at(key));
    return found;
  }

  void compute(const TokenBatch& batch, const std::vector<std::int64_t>& missing,
               const std::vector<std::string>& keys) {
    const at::NoGradGuard no_grad;
    TokenBatch plain = batch;
    plain.token_weights = at::Tensor();  // what is kept holds for any weights
    const TokenBatch part = select_sequences(plain, missing);
    const SequenceLogps fresh = prefopt::sequence_logps(*inner, part.to(inner->device()));
    const at::Tensor sums = fresh.logps.cpu();
    token_dtype = fresh.token_logps.scalar_type();
    const at::Tensor wide = fresh.token_logps.to(at::kDouble).cpu();
    const auto tokens = values_of<double>(wide);
    std::size_t begin = 0;
    for (std::size_t i = 0; i < missing.size(); ++i) {
      const auto length =
          static_cast<std::size_t>(values_of<std::int64_t>(part.completion_lens)[i]);
      CacheEntry entry{.sum = values_of<double>(sums)[i], .tokens = {}};
      if (file.level == CacheLevel::kToken) {
        const auto own = tokens.subspan(begin, length);
        entry.tokens.assign(own.begin(), own.end());
      }
      const std::string& key = keys[static_cast<std::size_t>(missing[i])];
      entries.emplace(key, std::move(entry));
      if (meeting) news.push_back(key);
      begin += length;
    }
    unwritten = true;
  }

  static TokenBatch on_cpu(const TokenBatch& batch) {
    TokenBatch here = batch.to(at::kCPU);
    here.input_ids = here.input_ids.contiguous();
    here.attention_mask = here.attention_mask.contiguous();
    here.completion_mask = here.completion_mask.contiguous();
    if (here.token_weights.defined()) here.token_weights = here.token_weights.contiguous();
    return here;
  }

  /// Gets the entries that other ranks have computed, and gives them this one's.
  void exchange() {
    PackedEntries own;
    for (const std::string& key : news) own.add(key, entries.at(key));
    const bool is_wide = token_dtype == at::kDouble;
    const auto all = meeting->texts((is_wide ? "d" : "f") + own.bytes());
    news.clear();
    for (const std::string& of_rank : all) {
      if (of_rank.size() == 1) continue;
      token_dtype = of_rank.front() == 'd' ? at::kDouble : at::kFloat;
      PackedEntries::unpack(std::string_view(of_rank).substr(1), entries);
      unwritten = true;
    }
  }

  void write() {
    if (!unwritten || (meeting && !meeting->is_first())) return;
    file.write(entries, token_dtype);
    unwritten = false;
  }
};

CachedReference::CachedReference(std::shared_ptr<Policy> inner, std::string directory,
                                 CacheLevel level)
    : impl_(std::make_unique<Impl>()) {
  if (!inner) throw ConfigError("cached reference: expected a policy, got none");
  std::error_code why;
  std::filesystem::create_directories(directory, why);
  if (why) {
    throw CheckpointError(
        fmt::format("{}: expected to create a folder, got {}", directory, why.message()));
  }
  detail::remove_unfinished_files(directory, [](std::string_view name) {
    return name.starts_with("ref-") && name.ends_with(".safetensors");
  });
  impl_->inner = std::move(inner);
  impl_->file.level = level;
  impl_->file.model = content_hash(*impl_->inner);
  impl_->file.path = fmt::format("{}/ref-{}-{}.safetensors", directory,
                                 impl_->file.model.substr(0, 16), level_name(level));
  if (std::filesystem::exists(impl_->file.path, why)) {
    impl_->entries = impl_->file.read(impl_->token_dtype);
  }
}

CachedReference::~CachedReference() {
  try {
    impl_->write();
  } catch (...) {  // a destructor must not throw: call flush() to hear of a full disk
  }
}

at::Tensor CachedReference::sequence_logps(const TokenBatch& batch) {
  const TokenBatch here = Impl::on_cpu(batch);
  if (here.token_weights.defined() && impl_->file.level != CacheLevel::kToken) {
    throw ConfigError(
        "cached reference: expected a cache of token level for weighted tokens, got sequence "
        "level");
  }
  check_token_weights(here, "cached reference");
  std::vector<double> sums;
  const bool is_weighted = here.token_weights.defined();
  auto weights = is_weighted ? values_of<double>(here.token_weights) : std::span<const double>();
  for (const CacheEntry* entry : impl_->look_up(here)) {
    if (!is_weighted) {
      sums.push_back(entry->sum);
      continue;
    }
    const auto& tokens = entry->tokens;
    sums.push_back(std::inner_product(tokens.begin(), tokens.end(), weights.begin(), 0.0));
    weights = weights.subspan(tokens.size());
  }
  return tensor_of(sums, at::kDouble).to(batch.input_ids.device());
}

at::Tensor CachedReference::token_logps(const TokenBatch& batch) {
  if (impl_->file.level != CacheLevel::kToken) {
    throw ConfigError(
        "cached reference: expected a cache of token level for token_logps, got sequence level");
  }
  std::vector<double> tokens;
  for (const CacheEntry* entry : impl_->look_up(Impl::on_cpu(batch))) {
    tokens.insert(tokens.end(), entry->tokens.begin(), entry->tokens.end());
  }
  return tensor_of(tokens, at::kDouble).to(impl_->token_dtype).to(batch.input_ids.device());
}

at::Tensor CachedReference::tempered_token_logps(const TokenBatch& batch, double temperature) {
  if (temperature == 1) return token_logps(batch);
  throw ConfigError(fmt::format(
      "cached reference: expected temperature 1, at which log-probs are kept, got {}; use the "
      "reference without a cache",
      temperature));
}

Policy* CachedReference::policy() { return impl_->inner.get(); }
void CachedReference::flush() {
  if (impl_->meeting) impl_->exchange();
  impl_->write();
}
void CachedReference::share(std::shared_ptr<Ranks> ranks) {
  impl_->meeting.emplace(std::move(ranks));
}
const std::string& CachedReference::path() const { return impl_->file.path; }
std::int64_t CachedReference::hits() const { return impl_->hits; }
std::int64_t CachedReference::misses() const { return impl_->misses; }

}  // namespace prefopt
