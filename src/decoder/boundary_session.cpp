// SPDX-License-Identifier: Apache-2.0
#include "decoder/boundary_session.h"

#include <cstdint>
#include <utility>

#include "policy/decoding.h"
#include "prefopt/error.h"

namespace prefopt::detail {
namespace {

class BoundarySession final : public DecodeSession {
 public:
  BoundarySession(StartSession start, std::vector<std::vector<std::int64_t>> prompts,
                  std::int64_t boundary)
      : start_(std::move(start)), prompts_(std::move(prompts)), boundary_(boundary) {}

  at::Tensor prefill() override {
    sequences_ = prompts_;
    return restart();
  }

  at::Tensor append(const at::Tensor& tokens) override {
    if (!session_) throw ConfigError("append: expected prefill to be called first, got append");
    check_appended_tokens(tokens, std::ssize(prompts_), vocab_size_);
    bool crosses = false;
    const at::Tensor ids = tokens.cpu();
    for (std::size_t i = 0; i < sequences_.size(); ++i) {
      sequences_[i].push_back(ids[static_cast<std::int64_t>(i)].item<std::int64_t>());
      crosses = crosses || std::ssize(sequences_[i]) == boundary_ + 1;
    }
    return crosses ? restart() : session_->append(tokens);
  }

  void keep(const std::vector<std::int64_t>& sequences) override {
    check_kept(sequences, std::ssize(prompts_));
    if (session_) session_->keep(sequences);
    for (Sequences* all : {&prompts_, &sequences_}) {
      Sequences kept;
      for (const std::int64_t s : sequences) {
        const auto at = static_cast<std::size_t>(s);
        if (at < all->size()) kept.push_back(std::move((*all)[at]));
      }
      *all = std::move(kept);
    }
  }

 private:
  using Sequences = std::vector<std::vector<std::int64_t>>;

  at::Tensor restart() {
    session_ = start_(sequences_);
    at::Tensor logits = session_->prefill();
    vocab_size_ = logits.size(1);
    return logits;
  }

  StartSession start_;
  Sequences prompts_, sequences_;  // without and with what was appended
  std::int64_t boundary_;
  std::int64_t vocab_size_ = 0;
  std::unique_ptr<DecodeSession> session_;
};

}  // namespace

std::unique_ptr<DecodeSession> make_boundary_session(StartSession start,
                                                     std::vector<std::vector<std::int64_t>> prompts,
                                                     std::int64_t boundary) {
  return std::make_unique<BoundarySession>(std::move(start), std::move(prompts), boundary);
}

}  // namespace prefopt::detail
