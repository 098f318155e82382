// SPDX-License-Identifier: Apache-2.0
#include "support/logps_oracle.h"

namespace prefopt::testing_support {

at::Tensor random_normal(std::vector<std::int64_t> shape, at::ScalarType dtype,
                         std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::kDouble).to(dtype);
}

at::Tensor random_targets(std::int64_t rows, std::int64_t vocab_size, std::uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randint(0, vocab_size, {rows}, generator, at::kLong);
}

TokenLogps logps_oracle(const at::Tensor& raw_logits, const at::Tensor& targets,
                        const LogitTransform& transform) {
  at::Tensor z = raw_logits.to(at::kDouble) * transform.scale;
  if (transform.softcap != 0) z = at::tanh(z / transform.softcap) * transform.softcap;
  z = z / transform.temperature;
  const at::Tensor log_p = at::log_softmax(z, 1);
  const at::Tensor column = targets.unsqueeze(1);
  TokenLogps result;
  result.logps = log_p.gather(1, column).squeeze(1);
  result.by_products.logsumexp = at::logsumexp(z, 1);
  result.by_products.entropy = at::special_entr(log_p.exp()).sum(1);
  result.by_products.mean_logit = z.mean(1);
  result.by_products.is_top1 = z.gather(1, column).squeeze(1).ge(z.amax(1));
  result.by_products.log_sum_p_squared = (2 * log_p).exp().sum(1).log();
  return result;
}

double relative_error(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor wide = b.to(at::kDouble);
  const double size = wide.norm().item<double>();
  const double error = (a.to(at::kDouble) - wide).norm().item<double>();
  return size == 0 ? error : error / size;
}

void check_against_oracle(const TokenLogps& got, const TokenLogps& expected, double tolerance) {
  const auto check = [&](const char* name, const at::Tensor& value, const at::Tensor& reference) {
    if (!value.defined()) return;
    INFO(name << "\n" << value << "\nexpected\n" << reference);
    CHECK(at::allclose(value.to(at::kDouble), reference.to(at::kDouble), tolerance, tolerance,
                       /*equal_nan=*/true));
  };
  check("logps", got.logps, expected.logps);
  check("logsumexp", got.by_products.logsumexp, expected.by_products.logsumexp);
  check("entropy", got.by_products.entropy, expected.by_products.entropy);
  check("mean_logit", got.by_products.mean_logit, expected.by_products.mean_logit);
  check("is_top1", got.by_products.is_top1, expected.by_products.is_top1);
  check("log_sum_p_squared", got.by_products.log_sum_p_squared,
        expected.by_products.log_sum_p_squared);
}

at::Tensor finite_differences(const std::function<double(const at::Tensor&)>& f,
                              const at::Tensor& x) {
  constexpr double kStep = 1e-5;
  at::Tensor at_x = x.detach().clone().contiguous();
  at::Tensor result = at::empty_like(at_x);
  for (std::int64_t i = 0; i < at_x.numel(); ++i) {
    at::Tensor element = at_x.view(-1)[i];
    const double before = element.item<double>();
    element.fill_(before + kStep);
    const double above = f(at_x);
    element.fill_(before - kStep);
    const double below = f(at_x);
    element.fill_(before);
    result.view(-1)[i] = (above - below) / (2 * kStep);
  }
  return result;
}

}  // namespace prefopt::testing_support
