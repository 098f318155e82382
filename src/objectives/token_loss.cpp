// SPDX-License-Identifier: Apache-2.0
#include "prefopt/objectives/token_loss.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/json.h"
#include "core/text.h"
#include "losses/attach_gradient.h"
#include "prefopt/error.h"
#include "prefopt/losses/loss_base.h"
#include "prefopt/objectives/token_losses/iqlearn.h"
#include "prefopt/objectives/token_losses/oreo.h"

namespace prefopt {
namespace {

using detail::Json;

template <class T>
void check_rows(const BasicTokenRows<T>& in, const TokenLossNeeds& needs, const std::string& name) {
  const std::int64_t tokens = math::length(in.logps);
  const auto check = [&](std::string_view field, const T& of, bool is_needed) {
    if (!is_needed || math::length(of) == tokens) return;
    throw ShapeError(
        fmt::format("{}: expected {} [{}], got [{}]", name, field, tokens, math::length(of)));
  };
  if (tokens == 0) throw ShapeError(fmt::format("{}: expected tokens, got none", name));
  check("completions", in.completions, true);
  check("lens", in.lens, true);
  check("ref_logps", in.ref_logps, needs.ref_logps);
  check("values", in.values, needs.values);
  check("log_normalizers", in.log_normalizers, needs.log_normalizers);
  check("exact_kls", in.exact_kls, needs.exact_kls);
  check("rewards", in.rewards, needs.rewards);
  check("steps", in.steps, needs.steps);
  const auto given = static_cast<double>(in.completion_count);
  if (in.totals.tokens >= static_cast<double>(tokens) && in.totals.completions >= given) return;
  throw ShapeError(
      fmt::format("{}: expected totals of at least {} tokens and {} completions, got {} and {}",
                  name, tokens, given, in.totals.tokens, in.totals.completions));
}

template <class L>
TokenLossEntry entry_of() {
  using Options = typename L::Options;
  TokenLossEntry entry;
  entry.info = L::info();
  entry.options = describe_options<Options>();
  entry.make = [](std::string_view json) -> TokenLoss {
    return L(options_from_json<Options>(json, L::info().kind));
  };
  return entry;
}

const TokenLossEntry* find_entry(std::string_view name) {
  const auto& all = token_losses();
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const TokenLossEntry& entry) { return entry.info.kind == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace

template <class T>
BasicTokenLossOutput<T> TokenLoss::formula(const BasicTokenRows<T>& in) const {
  check_rows(in, needs(), name());
  return self_->apply(in);
}

template PREFOPT_API BasicTokenLossOutput<at::Tensor> TokenLoss::formula(
    const BasicTokenRows<at::Tensor>& in) const;
template PREFOPT_API BasicTokenLossOutput<Eigen::ArrayXd> TokenLoss::formula(
    const BasicTokenRows<Eigen::ArrayXd>& in) const;

TokenLossOutput TokenLoss::forward(const TokenRows& in) const {
  TokenRows plain = in;
  detail::detach_wide(
      {&plain.logps, &plain.ref_logps, &plain.values, &plain.log_normalizers, &plain.exact_kls,
       &plain.rewards, &plain.completions, &plain.steps, &plain.lens},
      in.logps.device());
  TokenLossOutput out = [&] {
    const detail::NoGrad no_grad;
    return formula(plain);
  }();
  out.loss = detail::attach_wanted_gradients({{in.logps, out.grad_logps},
                                              {in.values, out.grad_values},
                                              {in.log_normalizers, out.grad_log_normalizers},
                                              {in.exact_kls, out.grad_exact_kls}},
                                             out.loss);
  return out;
}

std::string TokenLoss::config() const {
  return detail::typed_config(name(), self_->options_json());
}

const std::vector<TokenLossEntry>& token_losses() {
  static const std::vector<TokenLossEntry> all{entry_of<OreoLoss>(), entry_of<IqlearnLoss>()};
  return all;
}

bool is_token_loss(std::string_view config_json) {
  const Json config = detail::parse_json<ConfigError>(config_json, "loss");
  if (!config.is_object()) return false;
  const auto type = config.find("type");
  return type != config.end() && type->is_string() &&
         find_entry(type->get<std::string>()) != nullptr;
}

TokenLoss make_token_loss(std::string_view config_json) {
  Json config = detail::parse_json<ConfigError>(config_json, "loss");
  const auto type = config.is_object() ? config.find("type") : config.end();
  if (type == config.end() || !type->is_string()) {
    throw ConfigError(fmt::format("loss: expected a key 'type' that names a loss on tokens, got {}",
                                  detail::shown_json(config)));
  }
  const auto name = type->get<std::string>();
  const TokenLossEntry* const entry = find_entry(name);
  if (entry == nullptr) {
    std::vector<std::string_view> names;
    for (const TokenLossEntry& each : token_losses()) names.push_back(each.info.kind);
    throw ConfigError(fmt::format("loss: expected a loss on tokens, got '{}'{}", name,
                                  detail::did_you_mean(name, names)));
  }
  config.erase("type");
  return entry->make(detail::dump_json(config));
}

}  // namespace prefopt
