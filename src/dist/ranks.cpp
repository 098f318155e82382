// SPDX-License-Identifier: Apache-2.0
#include "prefopt/dist/ranks.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <utility>

#include "prefopt/error.h"

namespace prefopt {

void RanksOptions::fields(FieldVisitor& v) {
  v.choice({"backend",
            "How tensors travel: gloo between hosts, nccl between GPUs; auto: nccl where there is "
            "one"},
           backend, {"auto", "gloo", "nccl"});
  v.choice({"sharding",
            "What each rank keeps a slice of: nothing, the optimizer's state (ZeRO-1), gradients "
            "too (ZeRO-2), weights too (ZeRO-3)"},
           sharding, {"none", "optimizer", "gradients", "weights"});
  v.choice({"order",
            "Order of additions over micro-batches: fast, or tree, which gives the same bits on "
            "1, 2, 4, 8, ... ranks and takes more memory and traffic"},
           order, {"fast", "tree"});
  v.integer({"bucket_mib", "MiB of gradients that are sent together", {"ddp_bucket_cap_mb"}},
            bucket_mib, Range::at_least(1));
  v.integer({"timeout_seconds", "How long a rank waits for the others", {"ddp_timeout"}},
            timeout_seconds, Range::at_least(1));
}

void Ranks::gather_into(const at::Tensor& all, const at::Tensor& own) { all.copy_(gather(own)); }

void Ranks::sum(const std::vector<at::Tensor>& tensors) {
  std::vector<Wait> waits;
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_contiguous()) {
      at::Tensor dense = tensor.contiguous();
      begin_sum(dense)();
      tensor.copy_(dense);
      continue;
    }
    waits.push_back(begin_sum(tensor));
  }
  for (const Wait& wait : waits) wait();
}

at::Tensor Ranks::gather_rows(const at::Tensor& rows) {
  const at::Tensor counts = gather(at::tensor({rows.size(0)}, at::kLong));
  const auto* const count = counts.const_data_ptr<std::int64_t>();
  const std::int64_t most = *std::max_element(count, count + size());
  std::vector<std::int64_t> sizes = rows.sizes().vec();
  sizes.front() = most;
  at::Tensor padded = at::zeros(sizes, rows.options());
  padded.narrow(0, 0, rows.size(0)).copy_(rows);
  const at::Tensor all = gather(padded);
  std::vector<at::Tensor> parts;
  for (int r = 0; r < size(); ++r) parts.push_back(all[r].narrow(0, 0, count[r]));
  return at::cat(parts);
}

namespace {

// Of the message that goes out before the longest text is known.
constexpr std::int64_t kFirstBytes = 4096;
constexpr auto kLengthBytes = static_cast<std::int64_t>(sizeof(std::int64_t));

at::Tensor bytes_of(std::string_view text, std::int64_t size) {
  at::Tensor bytes = at::zeros({size}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  return bytes;
}

std::string_view row_of(const at::Tensor& all, int row) {
  const auto width = static_cast<std::size_t>(all.size(1));
  const auto* const bytes = static_cast<const char*>(all.const_data_ptr());
  return {bytes + static_cast<std::size_t>(row) * width, width};
}

}  // namespace

std::vector<std::string> Ranks::gather_text(const std::string& own) {
  const std::int64_t length = std::ssize(own);
  std::string first(reinterpret_cast<const char*>(&length), sizeof length);
  first += own.substr(0, static_cast<std::size_t>(kFirstBytes - kLengthBytes));
  const at::Tensor all = gather(bytes_of(first, kFirstBytes));
  std::vector<std::string> texts;
  std::vector<std::size_t> lengths;
  std::int64_t most_left = 0;
  for (int r = 0; r < size(); ++r) {
    const std::string_view row = row_of(all, r);
    std::int64_t whole = 0;
    std::memcpy(&whole, row.data(), sizeof whole);
    const std::int64_t here = std::min(whole, kFirstBytes - kLengthBytes);
    texts.emplace_back(row.substr(sizeof whole, static_cast<std::size_t>(here)));
    lengths.push_back(static_cast<std::size_t>(whole));
    most_left = std::max(most_left, whole - here);
  }
  if (most_left == 0) return texts;
  const std::string_view left =
      std::string_view(own).substr(std::min(own.size(), first.size() - sizeof length));
  const at::Tensor rest = gather(bytes_of(left, most_left));
  for (int r = 0; r < size(); ++r) {
    std::string& text = texts[static_cast<std::size_t>(r)];
    text += row_of(rest, r).substr(0, lengths[static_cast<std::size_t>(r)] - text.size());
  }
  return texts;
}

bool Ranks::agree(bool is_true) {
  const std::vector<std::string> answers = gather_text(is_true ? "" : "no");
  return std::all_of(answers.begin(), answers.end(),
                     [](const std::string& answer) { return answer.empty(); });
}

void Ranks::share_trouble(const std::exception_ptr& trouble) {
  detail::throw_trouble(gather_text(detail::trouble_text(trouble)), trouble);
}

void Ranks::together(const std::function<void()>& work) {
  std::exception_ptr trouble;
  try {
    work();
  } catch (...) {
    trouble = std::current_exception();
  }
  share_trouble(trouble);
}

// Trouble.

namespace {

/// A type of exception that other ranks throw as it is.
struct TroubleKind {
  char letter;
  bool (*fits)(const std::exception& error);
  void (*raise)(const std::string& text);
};

template <class E>
constexpr TroubleKind trouble_kind(char letter) {
  return {letter,
          [](const std::exception& error) { return dynamic_cast<const E*>(&error) != nullptr; },
          [](const std::string& text) { throw E(text); }};
}

// The last one fits every exception.
const std::array kTroubleKinds = {
    trouble_kind<ConfigError>('c'),
    trouble_kind<ShapeError>('s'),
    trouble_kind<DtypeError>('t'),
    trouble_kind<DeviceError>('d'),
    trouble_kind<DataError>('r'),
    trouble_kind<CheckpointError>('p'),
    trouble_kind<NonFiniteError>('n'),
    TroubleKind{'e', [](const std::exception&) { return true; },
                [](const std::string& text) { throw Error(text); }},
};

}  // namespace

namespace detail {

std::string trouble_text(const std::exception_ptr& trouble) {
  if (!trouble) return {};
  try {
    std::rethrow_exception(trouble);
  } catch (const std::exception& error) {
    const auto kind = std::find_if(kTroubleKinds.begin(), kTroubleKinds.end(),
                                   [&](const TroubleKind& one) { return one.fits(error); });
    return kind->letter + std::string(error.what());
  } catch (...) {
    return "ean exception of an unknown type";
  }
}

void throw_trouble(const std::vector<std::string>& texts, const std::exception_ptr& own) {
  const auto first = std::find_if(texts.begin(), texts.end(),
                                  [](const std::string& text) { return !text.empty(); });
  if (first == texts.end()) return;
  const bool all_alike = std::all_of(texts.begin(), texts.end(),
                                     [&](const std::string& text) { return text == *first; });
  if (all_alike) std::rethrow_exception(own);
  for (const TroubleKind& kind : kTroubleKinds) {
    if (kind.letter != first->front()) continue;
    kind.raise(fmt::format("rank {}: {}", first - texts.begin(), first->substr(1)));
  }
}

}  // namespace detail

// One process.

namespace {

class OneProcess final : public Ranks {
 public:
  explicit OneProcess(const RanksOptions& options) : options_(options) {}

  int rank() const override { return 0; }
  int size() const override { return 1; }
  const RanksOptions& options() const override { return options_; }
  std::string backend() const override { return "none"; }
  Wait begin_sum(const at::Tensor& /*values*/) override {
    return [] {};
  }
  Wait begin_sum_scatter(const at::Tensor& own, const at::Tensor& all) override {
    own.copy_(all[0]);
    return [] {};
  }
  at::Tensor gather(const at::Tensor& own) override { return own.unsqueeze(0); }
  void broadcast(const at::Tensor& /*values*/) override {}
  void barrier() override {}

 private:
  RanksOptions options_;
};

}  // namespace

std::shared_ptr<Ranks> one_process(const RanksOptions& options) {
  return std::make_shared<OneProcess>(options);
}

}  // namespace prefopt
