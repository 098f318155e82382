// SPDX-License-Identifier: Apache-2.0
// The work of the CUDA kernels on a row, run on the CPU in the order of blocks, warps and lanes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "logps/kernels/cuda/block_rows.h"
#include "support/catch.h"
#include "support/emulated_block.h"

namespace prefopt::kernels::cuda::test_cuda_rows {
namespace {

using testing_support::EmulatedBlocks;

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Shape {
  int threads = 128;
  int blocks = 1;
  int misaligned = 0;  // elements between a 16-byte border and the row
  bool staged = true;
  bool backwards = false;
};

struct Transform {
  double scale = 1, softcap = 0, temperature = 1;

  double logit(double raw) const {
    return softcap == 0 ? scale * raw / temperature
                        : softcap * std::tanh(scale * raw / softcap) / temperature;
  }
  double slope(double raw) const {
    if (softcap == 0) return scale / temperature;
    const double cosh = std::cosh(scale * raw / softcap);
    return scale / temperature / (cosh * cosh);
  }
};

/// A row between elements that belong to others.
template <class Element>
class Buffer {
 public:
  Buffer(const std::vector<double>& row, int misaligned)
      : units_(row.size() * sizeof(Element) / 16 + 3), begin_(Unit<Element>::kWidth + misaligned) {
    for (Unit<Element>& unit : units_) {
      for (Element& value : unit.values) value = stranger();
    }
    for (std::size_t i = 0; i < row.size(); ++i) {
      data()[i] = static_cast<Element>(static_cast<Accumulate<Element>>(row[i]));
    }
  }

  Element* data() { return units_.data()->values + begin_; }
  std::vector<double> values(std::size_t size) {
    std::vector<double> result(size);
    for (std::size_t i = 0; i < size; ++i) result[i] = static_cast<double>(data()[i]);
    return result;
  }
  bool is_same(const Buffer& other) const {
    return std::memcmp(units_.data(), other.units_.data(), units_.size() * sizeof(Unit<Element>)) ==
           0;
  }
  /// Nobody wrote around the row.
  bool is_intact(std::size_t size) {
    const Element* const first = units_.data()->values;
    const Element* const last = first + units_.size() * Unit<Element>::kWidth;
    const auto is_stranger = [](Element value) { return std::isnan(static_cast<double>(value)); };
    return std::all_of(first, static_cast<const Element*>(data()), is_stranger) &&
           std::all_of(static_cast<const Element*>(data()) + size, last, is_stranger);
  }

 private:
  static Element stranger() {
    return static_cast<Element>(std::numeric_limits<Accumulate<Element>>::quiet_NaN());
  }

  std::vector<Unit<Element>> units_;
  std::ptrdiff_t begin_;
};

struct Result {
  std::vector<double> statistics;
  std::vector<double> raw;       // as the row holds them
  std::vector<double> gradient;  // empty: not asked for
  std::int64_t fetches = 0;
};

template <class Element>
using Moments = SoftmaxMoments<Accumulate<Element>>;

std::int64_t share_of(std::size_t size, int element_bytes, int blocks) {
  return ceil_div(units_of(static_cast<std::int64_t>(size), element_bytes), blocks);
}

template <class Element, class State = Moments<Element>>
Result score(const std::vector<double>& logits, std::int64_t target, const Shape& shape,
             const Transform& transform = {}, bool with_gradient = true, bool ignored = false) {
  Buffer<Element> buffer(logits, shape.misaligned);
  Result result{std::vector<double>(kAllStatistics, -77), buffer.values(logits.size()), {}, 0};
  EmulatedBlocks<State, Element> context(shape.threads, shape.blocks,
                                         share_of(logits.size(), sizeof(Element), shape.blocks),
                                         shape.staged && with_gradient, shape.backwards);
  const Row<Element> row{buffer.data(), static_cast<std::int64_t>(logits.size()), target, ignored,
                         with_gradient ? buffer.data() : nullptr};
  score_row<State>(context, row, {transform.scale, transform.softcap, transform.temperature},
                   result.statistics.data(), 1);
  CHECK(buffer.is_intact(logits.size()));
  if (with_gradient) result.gradient = buffer.values(logits.size());
  result.fetches = context.fetches();
  return result;
}

/// Into another row, which may lie otherwise than the logits.
template <class Element>
std::vector<double> backpropagate(const std::vector<double>& logits, std::int64_t target,
                                  const Shape& shape, double logsumexp, const RowFactors& factors,
                                  int gradient_misaligned, const Transform& transform = {},
                                  bool ignored = false) {
  Buffer<Element> buffer(logits, shape.misaligned);
  Buffer<Element> gradient(std::vector<double>(logits.size(), -77), gradient_misaligned);
  EmulatedBlocks<SoftmaxSum<Accumulate<Element>>, Element> context(
      shape.threads, shape.blocks, share_of(logits.size(), sizeof(Element), shape.blocks), false);
  const Row<Element> row{buffer.data(), static_cast<std::int64_t>(logits.size()), target, ignored,
                         gradient.data()};
  const Buffer<Element> before = buffer;
  backpropagate_row(context, row, {transform.scale, transform.softcap, transform.temperature},
                    logsumexp, factors);
  CHECK(gradient.is_intact(logits.size()));
  CHECK(buffer.is_same(before));
  return gradient.values(logits.size());
}

/// The definition in float64.
struct Oracle {
  Oracle(const std::vector<double>& raw, std::size_t target, const Transform& transform = {})
      : statistics(kAllStatistics), gradient(raw.size()) {
    std::vector<double> z(raw.size());
    std::transform(raw.begin(), raw.end(), z.begin(), [&](double u) { return transform.logit(u); });
    const double max = *std::max_element(z.begin(), z.end());
    double sum = 0, sum_z = 0;
    for (const double logit : z) sum += std::exp(logit - max), sum_z += logit;
    const double logsumexp = max + std::log(sum);
    double entropy = 0, sum_squares = 0;
    for (std::size_t i = 0; i < z.size(); ++i) {
      const double log_p = (z[i] - max) - std::log(sum), p = std::exp(log_p);
      if (p > 0) entropy -= p * log_p;
      sum_squares += p * p;
      gradient[i] = ((i == target ? 1 : 0) - p) * transform.slope(raw[i]);
    }
    statistics[kLogp] = (z[target] - max) - std::log(sum);
    statistics[kLogsumexp] = logsumexp;
    statistics[kIsTop1] = z[target] == max ? 1 : 0;
    statistics[kEntropy] = entropy;
    statistics[kMeanLogit] = sum_z / static_cast<double>(z.size());
    statistics[kLogSumPSquared] = std::log(sum_squares);
  }

  std::vector<double> statistics, gradient;
};

/// Of a float; float64 rows are held to 1e-12.
template <class Element>
constexpr double kTolerance = std::is_same_v<Element, double> ? 1e-12 : 1e-6;

template <class Element>
void check_statistics(const Result& got, const std::vector<double>& expected) {
  CHECK(got.statistics[kIsTop1] == expected[kIsTop1]);
  for (const Statistic k : {kLogp, kLogsumexp, kEntropy, kMeanLogit, kLogSumPSquared}) {
    CAPTURE(k, got.statistics[k], expected[k]);
    const bool is_close = std::abs(got.statistics[k] - expected[k]) <=
                          kTolerance<Element> * (1 + std::abs(expected[k]));
    CHECK((got.statistics[k] == expected[k] || is_close));
  }
}

/// The target's within 1e-5, and ‖got - expected‖ of the others within 1e-5 of ‖expected‖. What
/// narrow elements round off comes on top.
template <class Element>
void check_gradient(const std::vector<double>& got, const std::vector<double>& expected,
                    std::size_t target) {
  using Limits = std::numeric_limits<Element>;
  // A float64 logsumexp of 1e4 leaves no more digits than this to a probability.
  const double tolerance = std::is_same_v<Element, double> ? 2.5e-12 : 1e-5;
  const double rounding = sizeof(Element) > 2 ? 0 : 0.51 * static_cast<double>(Limits::epsilon());
  const double smallest = static_cast<double>(Limits::denorm_min());
  REQUIRE(got.size() == expected.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double size = std::abs(expected[i]);
    const double off = std::abs(got[i] - expected[i]) - rounding * size - smallest;
    if (i == target) {
      CAPTURE(got[i], expected[i]);
      // The oracle's 1 - p has its own error.
      CHECK(off <= tolerance * size + 1e-15);
    } else {
      // A NaN stays one.
      error += off <= 0 ? 0 : off * off;
      norm += size * size;
    }
  }
  CAPTURE(std::sqrt(error), std::sqrt(norm));
  CHECK(std::sqrt(error) <= tolerance * std::sqrt(norm));
}

/// f(Element()) for each type of logits.
template <class F>
void for_elements(const F& f) {
  f(float());
  f(double());
  f(at::BFloat16());
  f(at::Half());
}

std::vector<double> random_row(std::size_t size, double spread, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, spread);
  std::vector<double> row(size);
  for (double& logit : row) logit = normal(generator);
  return row;
}

template <class Element>
void check_row(const std::vector<double>& logits, std::size_t target, const Shape& shape,
               const Transform& transform = {}) {
  CAPTURE(logits.size(), target, shape.threads, shape.blocks, shape.misaligned, shape.staged,
          sizeof(Element));
  const auto index = static_cast<std::int64_t>(target);
  const Result got = score<Element>(logits, index, shape, transform);
  const Oracle expected(got.raw, target, transform);
  check_statistics<Element>(got, expected.statistics);
  check_gradient<Element>(got.gradient, expected.gradient, target);
}

}  // namespace

TEST_CASE("cuda rows: statistics and gradient in place agree with float64", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    const std::vector<Shape> shapes{
        {.threads = 32, .blocks = 1, .misaligned = 0},
        {.threads = 64, .blocks = 4, .misaligned = 1, .staged = false},
        {.threads = 512, .blocks = 8, .misaligned = 1},
        {.threads = 1024, .blocks = 1, .misaligned = 0, .staged = false}};
    for (const std::size_t size : {1, 31, 257, 50257}) {
      const std::vector<double> row = random_row(size, 3, size);
      for (const Shape& shape : shapes) {
        check_row<Element>(row, size / 2, shape);
      }
    }
    const std::vector<double> long_row = random_row(151936, 3, 7);
    check_row<Element>(long_row, 151935, {.threads = 512, .blocks = 4, .misaligned = 1});
    check_row<Element>(long_row, 0, {.threads = 1024, .misaligned = 1, .staged = false});
  });
}

TEST_CASE("cuda rows: a row may begin and end anywhere", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    for (int misaligned = 0; misaligned < Unit<Element>::kWidth; ++misaligned) {
      for (std::size_t size = 1; size < 40; ++size) {
        const std::vector<double> row = random_row(size, 2, 40 + size);
        check_row<Element>(row, size - 1, {.threads = 32, .misaligned = misaligned});
        check_row<Element>(row, 0, {.threads = 32, .blocks = 2, .misaligned = misaligned});
      }
    }
  });
}

TEST_CASE("cuda rows: few statistics are the first of all of them", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    const std::vector<double> row = random_row(3001, 4, 5);
    const Shape shape{.threads = 96, .blocks = 2, .misaligned = 1};
    const Result all = score<Element>(row, 17, shape, {}, /*with_gradient=*/false);
    const Result few = score<Element, SoftmaxSum<Accumulate<Element>>>(row, 17, shape);
    for (int k = 0; k < kFewStatistics; ++k) CHECK(few.statistics[k] == all.statistics[k]);
    CHECK(few.statistics[kEntropy] == -77);
  });
}

TEST_CASE("cuda rows: transformed logits", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    const std::vector<double> row = random_row(2000, 20, 11);
    const Shape shape{.threads = 64, .blocks = 2, .misaligned = 1};
    check_row<Element>(row, 1999, shape, {.scale = 0.125, .softcap = 0, .temperature = 0.7});
    check_row<Element>(row, 3, shape, {.scale = 1, .softcap = 30, .temperature = 1});
    check_row<Element>(row, 3, shape, {.scale = -0.5, .softcap = 5, .temperature = 2});
  });
}

TEST_CASE("cuda rows: backward with a coefficient", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    const Transform transform{.scale = 0.5, .softcap = 20, .temperature = 0.8};
    for (const double coefficient : {1.0, -3.25, 0.0}) {
      for (const int gradient_misaligned : {1, 0}) {
        const std::vector<double> row = Buffer<Element>(random_row(5003, 3, 21), 0).values(5003);
        Oracle expected(row, 5002, transform);
        for (double& value : expected.gradient) value *= coefficient;
        check_gradient<Element>(
            backpropagate<Element>(row, 5002, {.threads = 64, .blocks = 3, .misaligned = 1},
                                   expected.statistics[kLogsumexp], {coefficient, coefficient, 0},
                                   gradient_misaligned, transform),
            expected.gradient, 5002);
      }
    }
  });
}

TEST_CASE("cuda rows: backward of entropy and logsumexp", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    for (const Transform& transform :
         {Transform{}, Transform{.scale = 0.5, .softcap = 20, .temperature = 0.8}}) {
      for (const RowFactors& factors :
           {RowFactors{0.5, 0.7, -0.2}, RowFactors{0, -1.25, 0}, RowFactors{-3, -3, 2}}) {
        std::vector<double> row = Buffer<Element>(random_row(5003, 3, 22), 0).values(5003);
        for (std::size_t i = 0; i < 40; ++i) row[i] = -kInf;  // 0 log 0 is 0
        row[4000] = 12;                                       // most of the probability
        for (const std::size_t target : {std::size_t{4000}, std::size_t{5002}}) {
          const Oracle oracle(row, target, transform);
          std::vector<double> expected(row.size());
          for (std::size_t i = 0; i < row.size(); ++i) {
            const double log_p = transform.logit(row[i]) - oracle.statistics[kLogsumexp];
            const double p = std::exp(log_p);
            const double of_z = (i == target ? factors.of_target : 0) - factors.of_p * p -
                                (p > 0 ? factors.of_p_log_p * p * log_p : 0);
            expected[i] = of_z == 0 ? 0 : of_z * transform.slope(row[i]);
          }
          CAPTURE(factors.of_p, factors.of_p_log_p, target, transform.softcap);
          // All of them in one norm: the target's may be a small difference.
          check_gradient<Element>(
              backpropagate<Element>(row, static_cast<std::int64_t>(target),
                                     {.threads = 64, .blocks = 3, .misaligned = 1},
                                     oracle.statistics[kLogsumexp], factors, 0, transform),
              expected, row.size());
        }
      }
    }
  });
}

TEST_CASE("cuda rows: the entropy's gradient at a sure token keeps its digits", "[logps]") {
  std::vector<double> row = random_row(1000, 1, 43);
  row[500] = 25;
  const std::vector<double> raw = Buffer<float>(row, 0).values(row.size());
  const Oracle oracle(raw, 500);
  double others = 0;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (i != 500) others += std::exp(raw[i] - raw[500]);
  }
  // -p (log p + H), where log p = -others and H is of the size of others.
  const double entropy = oracle.statistics[kEntropy];
  const std::vector<double> got = backpropagate<float>(
      row, 500, {.threads = 64}, oracle.statistics[kLogsumexp], {0, entropy, 1}, 0);
  CHECK(got[500] == Approx(others - entropy).epsilon(1e-5));
}

TEST_CASE("cuda rows: hostile rows", "[logps]") {
  const std::size_t size = 4099;
  const Shape shape{.threads = 128, .blocks = 2, .misaligned = 3};
  std::vector<std::vector<double>> rows{std::vector<double>(size, 0),
                                        std::vector<double>(size, -1e4), random_row(size, 1, 31),
                                        random_row(size, 1, 32)};
  rows[2][1000] = 1e4;
  for (double& logit : rows[3]) logit += 1e4;
  rows.push_back(random_row(size, 100, 33));
  for (const std::vector<double>& row : rows) {
    for (const std::size_t target : {std::size_t{0}, std::size_t{1000}, size - 1}) {
      check_row<float>(row, target, shape);
      check_row<double>(row, target, shape);
    }
  }
}

TEST_CASE("cuda rows: sums keep their digits in a thread of many logits", "[logps]") {
  // Each lane's sum is of one maximum and then thousands of the same number, which float32 would
  // round the same way each time; or of logits each of which is the maximum so far.
  std::vector<double> level(151936, 0), rising(151936);
  std::fill_n(level.begin(), 32 * 4, 2.3);
  for (std::size_t i = 0; i < rising.size(); ++i) rising[i] = 2e-5 * static_cast<double>(i);
  for (const std::vector<double>& row : {level, rising}) {
    const Result got = score<float>(row, 9, {.threads = 32});
    const Oracle expected(got.raw, 9);
    CHECK(std::abs(got.statistics[kLogp] - expected.statistics[kLogp]) < 3e-7);
    CHECK(std::abs(got.statistics[kEntropy] - expected.statistics[kEntropy]) < 1e-6);
  }
}

TEST_CASE("cuda rows: a sure token keeps its digits", "[logps]") {
  // 1 - p is near 1e-14, which logp keeps, and near 1e-8, which is left of it in float64 next to a
  // logsumexp of 25.
  for (const double sure : {40.0, 25.0}) {
    std::vector<double> row = random_row(1000, 1, 41);
    row[500] = sure;
    const Result got = score<float>(row, 500, {.threads = 64});
    double others = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i != 500) others += std::exp(got.raw[i] - got.raw[500]);
    }
    CHECK(got.statistics[kLogp] == Approx(-others).epsilon(1e-6));
    CHECK(got.statistics[kLogSumPSquared] == Approx(-2 * others).epsilon(1e-6));
    if (sure == 25) CHECK(got.gradient[500] == Approx(others).epsilon(1e-6));
  }
}

TEST_CASE("cuda rows: a slope near the cap keeps its digits", "[logps]") {
  const Transform transform{.scale = 0.5, .softcap = 15, .temperature = 1.25};
  const LogitMap<float> map(transform.scale, transform.softcap, transform.temperature);
  for (const float raw : {0.0f, -1e-3f, 20.0f, -200.0f, 600.0f}) {
    const float raws[1] = {raw};
    float slope[1] = {1};
    map.multiply_by_slope(raws, slope);
    CHECK(slope[0] == Approx(transform.slope(raw)).epsilon(5e-6));
    CHECK(map.logit(raw) == Approx(transform.logit(raw)).epsilon(1e-6));
  }
}

TEST_CASE("cuda rows: a staged row is read once", "[logps]") {
  const std::vector<double> row = random_row(4000, 1, 42);
  const Shape shape{.threads = 64, .blocks = 2};
  CHECK(score<float>(row, 5, shape).fetches == 1000);
  CHECK(score<float>(row, 5, {.threads = 64, .blocks = 2, .staged = false}).fetches == 2000);
  CHECK(score<float>(row, 5, shape, {}, /*with_gradient=*/false).fetches == 1000);
}

TEST_CASE("cuda rows: tokens that cannot come", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    std::vector<double> row = random_row(300, 2, 51);
    // A whole warp's share of them, so that a lane, and a block, has nothing else.
    for (std::size_t i = 0; i < 150; ++i) row[i] = -kInf;
    for (const Shape& shape : {Shape{.threads = 32}, Shape{.threads = 32, .blocks = 4}}) {
      check_row<Element>(row, 200, shape);
      check_row<Element>(row, 0, shape);
      const Result got = score<Element>(row, 200, shape);
      CHECK(got.statistics[kMeanLogit] == -kInf);
      CHECK(got.gradient[7] == 0);
    }
    const Result none = score<Element>(std::vector<double>(40, -kInf), 3, {.threads = 32});
    CHECK(std::isnan(none.statistics[kLogp]));
    CHECK(none.statistics[kLogsumexp] == -kInf);
  });
}

TEST_CASE("cuda rows: what is not a number stays none", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    for (const double hostile : {std::numeric_limits<double>::quiet_NaN(), kInf}) {
      for (const std::size_t at : {0, 77, 299}) {
        std::vector<double> row = random_row(300, 2, 61);
        row[at] = hostile;
        for (const std::int64_t target : {77, 150}) {
          const Result got = score<Element>(row, target, {.threads = 64, .blocks = 2});
          CHECK(std::isnan(got.statistics[kLogp]));
          CHECK(std::isnan(got.statistics[kLogsumexp]));
          CHECK(std::isnan(got.statistics[kEntropy]));
          CHECK(std::isnan(got.gradient[5]));
        }
      }
    }
  });
}

TEST_CASE("cuda rows: a target outside of the row makes it NaN", "[logps]") {
  const std::vector<double> row = random_row(70, 2, 71);
  for (const std::int64_t target :
       {std::int64_t{-2}, std::int64_t{70}, std::numeric_limits<std::int64_t>::max(),
        std::numeric_limits<std::int64_t>::min()}) {
    const Result got = score<float>(row, target, {.threads = 32, .misaligned = 3});
    for (const int k : {kLogp, kLogsumexp, kEntropy, kMeanLogit, kLogSumPSquared}) {
      CHECK(std::isnan(got.statistics[static_cast<std::size_t>(k)]));
    }
    CHECK(std::all_of(got.gradient.begin(), got.gradient.end(),
                      [](double value) { return std::isnan(value); }));
  }
}

TEST_CASE("cuda rows: a row that is left out gets zeros", "[logps]") {
  const std::vector<double> row(70, std::numeric_limits<double>::quiet_NaN());
  const Shape shape{.threads = 32, .blocks = 2, .misaligned = 3};
  const Result got = score<float>(row, -1, shape, {}, /*with_gradient=*/true, /*ignored=*/true);
  CHECK(got.statistics == std::vector<double>(kAllStatistics, 0));
  CHECK(got.gradient == std::vector<double>(70, 0));
  CHECK(backpropagate<float>(row, -1, shape, 0, {1, 1, 0.5}, 2, {}, /*ignored=*/true) ==
        std::vector<double>(70, 0));
}

TEST_CASE("cuda rows: lanes, warps and blocks are added in a fixed order", "[logps]") {
  constexpr std::size_t kThreads = 128, kBlocks = 5, kWidth = 2;
  // 16 apart, then 8, ..., 1 in a warp, then the warps alike, then blocks in their order; or not.
  const auto sum_of = [](const std::vector<double>& row, bool nearest_first,
                         bool last_block_first) {
    const auto of_lanes = [&](std::vector<double> lanes) {
      for (std::size_t step = 1; step < 32; step *= 2) {
        const std::size_t mask = nearest_first ? step : 16 / step;
        std::vector<double> others(32);
        for (std::size_t lane = 0; lane < 32; ++lane) others[lane] = lanes[lane ^ mask];
        for (std::size_t lane = 0; lane < 32; ++lane) lanes[lane] += others[lane];
      }
      return lanes[0];
    };
    double sum = 0;
    for (std::size_t i = 0; i < kBlocks; ++i) {
      const std::size_t block = last_block_first ? kBlocks - 1 - i : i;
      std::vector<double> warps(32, 0);
      for (std::size_t warp = 0; warp < kThreads / 32; ++warp) {
        std::vector<double> lanes(32);
        for (std::size_t lane = 0; lane < 32; ++lane) {
          const double* const unit = &row[(block * kThreads + warp * 32 + lane) * kWidth];
          lanes[lane] = 1 + std::exp2(unit[1] * kLog2E<double>);
        }
        warps[warp] = of_lanes(lanes);
      }
      sum += of_lanes(warps);
    }
    return sum;
  };
  // One unit a thread, in float64: sums of a few float32 numbers in float64 have no order. Each
  // begins with its maximum 0, so that nothing is rescaled. Most rows tell the orders apart.
  std::vector<double> row;
  double expected = 0;
  for (std::uint64_t seed = 0;
       seed == 0 || expected == sum_of(row, true, false) || expected == sum_of(row, false, true);
       ++seed) {
    row = random_row(kThreads * kBlocks * kWidth, 3, seed);
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = i % kWidth == 0 ? 0 : -std::abs(row[i]);
    expected = sum_of(row, false, false);
  }

  Buffer<double> buffer(row, 0);
  const Row<double> without_target{buffer.data(), static_cast<std::int64_t>(row.size()), -5, false,
                                   nullptr};
  EmulatedBlocks<SoftmaxSum<double>, double> context(kThreads, kBlocks, kThreads, false);
  auto states = context.values<SoftmaxSum<double>>();
  const LogitMap<double> identity(1, 0, 1);
  context.each([&](Thread thread) {
    states[thread] = scan<SoftmaxSum<double>>(context, thread, without_target, identity);
  });
  reduce_row<SoftmaxSum<double>>(context, states);
  for (std::size_t block = 0; block < kBlocks; ++block) {
    CHECK(context.scratch_of(static_cast<int>(block)).row.sum == expected);
  }
}

TEST_CASE("cuda rows: no thread needs another one's work of the same phase", "[logps]") {
  for_elements([](auto element) {
    using Element = decltype(element);
    const std::vector<double> row = random_row(20011, 4, 91);
    for (const bool staged : {true, false}) {
      Shape shape{.threads = 96, .blocks = 3, .misaligned = 2, .staged = staged};
      const Result forwards = score<Element>(row, 4, shape);
      shape.backwards = true;
      const Result backwards = score<Element>(row, 4, shape);
      CHECK(forwards.statistics == backwards.statistics);
      CHECK(forwards.gradient == backwards.gradient);
    }
  });
}

TEST_CASE("cuda rows: states of nothing and of tokens that cannot come are neutral", "[logps]") {
  using State = SoftmaxMoments<float>;
  State some = State::none();
  const float logits[4] = {1, 2, -3, 4};
  push(some, logits, sum_of(logits));
  State dead = State::none();
  const float none[1] = {-std::numeric_limits<float>::infinity()};
  push(dead, none, none[0]);
  for (const State& other : {State::none(), dead}) {
    for (const State& merged : {merge(some, other), merge(other, some)}) {
      CHECK(merged.sum == some.sum);
      CHECK(merged.tilted == some.tilted);
      CHECK(merged.squared == some.squared);
      CHECK(merged.max == 4);
    }
  }
  CHECK(merge(dead, State::none()).sum == 0);
  CHECK(merge(dead, some).total == -kInf);
}

TEST_CASE("cuda rows: plans fit their devices", "[logps]") {
  const DeviceLimits a100{.multiprocessors = 108, .shared_bytes = 166912, .clusters = false};
  const DeviceLimits h100{.multiprocessors = 132, .shared_bytes = 232448, .clusters = true};
  for (const DeviceLimits& device : {a100, h100}) {
    for (const std::int64_t rows : {1, 64, 384, 2048, 1 << 20}) {
      for (const std::int64_t size : {1, 31, 257, 49152, 151936, 1 << 22}) {
        for (const int bytes : {2, 4, 8}) {
          for (const bool gradient : {false, true}) {
            const Plan plan = plan_scores(rows, size, bytes, gradient, device);
            CHECK(shared_bytes(plan) <= device.shared_bytes);
            CHECK(plan.blocks <= (device.clusters ? kMaxBlocks : 1));
            CHECK((!plan.staged || gradient));
            const Plan backward = plan_gradients(rows, size, bytes, device);
            CHECK(shared_bytes(backward) <= device.shared_bytes);
            for (const Plan& each : {plan, backward}) {
              CHECK(each.threads % kWarp == 0);
              CHECK((each.threads >= kWarp && each.threads <= kBlockThreads));
              CHECK(each.blocks * each.share >= units_of(size, bytes));
            }
          }
        }
      }
    }
  }
  // One read where a row fits into shared memory, of one block or of a cluster.
  CHECK(plan_scores(2048, 49152, 2, true, a100).staged);
  CHECK_FALSE(plan_scores(2048, 151936, 4, true, a100).staged);
  CHECK(plan_scores(2048, 151936, 4, true, h100).staged);
  CHECK(plan_scores(2048, 151936, 4, true, h100).blocks == 8);
  CHECK(plan_scores(2048, 49152, 2, true, h100).blocks == 1);
  // Few rows are shared among more blocks.
  CHECK(plan_scores(64, 151936, 2, false, h100).blocks == 4);
  CHECK(plan_gradients(64, 151936, 2, a100).blocks == 4);
}

}  // namespace prefopt::kernels::cuda::test_cuda_rows
