// SPDX-License-Identifier: Apache-2.0

// The products of a decoder's linear layers, forward and backward, against at::mm. Weights and
// their gradients follow one another as the layers of a model do, so that they come from memory and
// not from a cache.

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>
#include <functional>
#include <new>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/simd_limit.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/thin_linear.h"
#include "kernels/cpu/tiles.h"
#include "prefopt/error.h"
#include "support/inputs.h"
#include "support/oracle.h"
#include "support/report.h"

namespace prefopt::bench {
namespace {

namespace cpu = kernels::cpu;

constexpr const char* kOurs = "prefopt";
constexpr const char* kMm = "at::mm";
constexpr const char* kOursFresh = "prefopt, fresh memory";
constexpr const char* kMmFresh = "at::mm, fresh memory";
constexpr const char* kNarrow = "prefopt, bfloat16 weight";
constexpr const char* kThin = "prefopt, thin";
constexpr const char* kNoTiles = "prefopt, no tiles";
constexpr const char* kRounded = "prefopt, rounded to bfloat16";

constexpr double kTolerance = 1e-6;
constexpr std::int64_t kBytesOfWeights = std::int64_t{96} << 20;

struct Arguments {
  Options options;
  std::vector<std::string> shapes = {"576x576",  "576x192",  "576x960",
                                     "576x1536", "576x3072", "1536x576"};
  std::vector<std::string> products = {"forward", "input", "weight"};
};

/// Memory that nobody has touched yet.
at::Tensor fresh(at::IntArrayRef shape) {
#ifdef __linux__
  const std::size_t bytes = static_cast<std::size_t>(c10::multiply_integers(shape)) * sizeof(float);
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return at::from_blob(
      data, shape, [bytes](void* p) { munmap(p, bytes); }, at::kFloat);
#else
  return at::empty(shape, at::kFloat);
#endif
}

/// One linear layer, of which there are as many as exceed any cache.
struct Layers {
  Layers(std::int64_t rows, std::int64_t in, std::int64_t out)
      : x(random_normal({rows, in}, 1, at::kFloat, 1)),
        dy(random_normal({rows, out}, 1, at::kFloat, 2)) {
    const at::Tensor weight = random_normal({out, in}, 0.02, at::kFloat, 3);
    const std::int64_t count = kBytesOfWeights / bytes_of(weight) + 1;
    for (std::int64_t i = 0; i < count; ++i) weights.push_back(weight.clone());
    for (const at::Tensor& of_layer : weights) narrow.push_back(of_layer.to(at::kBFloat16));
  }

  std::size_t next() { return turn++ % weights.size(); }

  at::Tensor x, dy;
  std::vector<at::Tensor> weights, narrow;
  std::size_t turn = 0;
};

template <class T>
cpu::Rows<const T> input(const at::Tensor& matrix) {
  return {matrix.const_data_ptr<T>(), matrix.stride(0)};
}
cpu::Rows<float> output(at::Tensor& matrix) { return {matrix.data_ptr<float>(), matrix.stride(0)}; }

/// One of the three products: the shape of its result, and ways to it.
struct Product {
  std::vector<std::int64_t> shape;
  std::function<void(std::size_t layer, at::Tensor&result)> ours, mm;
  std::function<void(std::size_t layer, at::Tensor& result)> narrow;     ///< empty: none
  std::function<void(std::size_t layer, at::Tensor& result)> thin = {};  ///< the same
  bool into_weight = false;  ///< the result of each layer has its own place
};

Product product_named(const std::string& name, Layers& l) {
  const cpu::LinearSizes sizes{l.x.size(0), l.x.size(1), l.dy.size(1)};
  if (name == "forward") {
    return {.shape = {sizes.rows, sizes.out},
            .ours =
                [&l, sizes](std::size_t i, at::Tensor& y) {
                  cpu::linear_forward<float, float>(
                      {sizes, input<float>(l.x), input<float>(l.weights[i]), output(y)});
                },
            .mm = [&l](std::size_t i, at::Tensor& y) { at::mm_out(y, l.x, l.weights[i].t()); },
            .narrow =
                [&l, sizes](std::size_t i, at::Tensor& y) {
                  cpu::linear_forward<float, c10::BFloat16>(
                      {sizes, input<float>(l.x), input<c10::BFloat16>(l.narrow[i]), output(y)});
                },
            .thin =
                [&l, sizes](std::size_t i, at::Tensor& y) {
                  const cpu::ThinLinear<float> thin{.x = input<float>(l.x),
                                                    .rows = sizes.rows,
                                                    .in = sizes.in,
                                                    .out = sizes.out,
                                                    .weight = l.weights[i].const_data_ptr<float>(),
                                                    .y = output(y)};
                  cpu::thin_linear<float>({&thin, 1});
                }};
  }
  if (name == "input") {
    return {.shape = {sizes.rows, sizes.in},
            .ours =
                [&l, sizes](std::size_t i, at::Tensor& dx) {
                  cpu::linear_input_grad<float, float>(
                      {sizes, input<float>(l.dy), input<float>(l.weights[i]), output(dx)});
                },
            .mm = [&l](std::size_t i, at::Tensor& dx) { at::mm_out(dx, l.dy, l.weights[i]); },
            .narrow =
                [&l, sizes](std::size_t i, at::Tensor& dx) {
                  cpu::linear_input_grad<float, c10::BFloat16>(
                      {sizes, input<float>(l.dy), input<c10::BFloat16>(l.narrow[i]), output(dx)});
                }};
  }
  if (name != "weight") {
    throw ConfigError("--products: expected forward, input or weight, got " + name);
  }
  return {.shape = {sizes.out, sizes.in},
          .ours =
              [&l, sizes](std::size_t, at::Tensor& dw) {
                cpu::linear_weight_grad<float>(
                    {sizes, input<float>(l.dy), input<float>(l.x), output(dw)});
              },
          .mm = [&l](std::size_t, at::Tensor& dw) { at::mm_out(dw, l.dy.t(), l.x); },
          .narrow = {},
          .into_weight = true};
}

at::Tensor expected(const std::string& name, const Layers& l, const at::Tensor& weight) {
  if (name == "forward") return at::mm(l.x.to(at::kDouble), weight.to(at::kDouble).t());
  if (name == "input") return at::mm(l.dy.to(at::kDouble), weight.to(at::kDouble));
  return at::mm(l.dy.to(at::kDouble).t(), l.x.to(at::kDouble));
}

std::string rate(const Table& table, const char* name) {
  const auto ms = table.ms(name);
  return ms ? fmt::format("{:.0f}", table.find(name)->contender.work / *ms / 1e6) : "";
}
std::string ratio(const Table& table, const char* name, const char* base) {
  const auto value = quotient(table.ms(base), table.ms(name));
  return value ? fmt::format("{:.2f}", *value) : "";
}

void compare(Report& report, const Arguments& arguments, const std::string& name, Layers& l) {
  const Product product = product_named(name, l);
  const std::string what =
      fmt::format("{} N={} {}x{}", name, l.x.size(0), l.x.size(1), l.dy.size(1));
  at::Tensor result = at::zeros(product.shape);
  if (arguments.options.check) {
    const auto check = [&](const char* contender, const auto& run, const at::Tensor& weight) {
      run(0, result.fill_(7));
      report.check(what + ", " + contender, relative_error(result, expected(name, l, weight)),
                   kTolerance);
    };
    check(kOurs, product.ours, l.weights[0]);
    if (product.narrow) check(kNarrow, product.narrow, l.narrow[0]);
    if (product.thin) check(kThin, product.thin, l.weights[0]);
  }
  using Run = std::function<void(std::size_t, at::Tensor&)>;
  const auto reused = [&](const Run& run) {
    return [&, run] {
      const std::size_t layer = l.next();
      run(layer, product.into_weight ? l.weights[layer] : result);
    };
  };
  const auto into_fresh = [&](const Run& run) {
    return [&, run] {
      at::Tensor memory = fresh(product.shape);
      run(l.next(), memory);
    };
  };
  const double work = 2 * static_cast<double>(l.x.numel()) * static_cast<double>(l.dy.size(1));
  std::vector<Contender> contenders = {
      {.name = kOurs, .run = reused(product.ours), .work = work},
      {.name = kMm, .run = reused(product.mm), .work = work},
      {.name = kOursFresh, .run = into_fresh(product.ours), .work = work},
      {.name = kMmFresh, .run = into_fresh(product.mm), .work = work}};
  if (product.narrow) {
    contenders.push_back({.name = kNarrow, .run = reused(product.narrow), .work = work});
  }
  if (product.thin) {
    contenders.push_back({.name = kThin, .run = reused(product.thin), .work = work});
  }
  if (cpu::has_tiles()) {
    contenders.push_back({.name = kNoTiles,
                          .run =
                              [run = reused(product.ours)] {
                                detail::allow_tiles(false);
                                run();
                                detail::allow_tiles(true);
                              },
                          .work = work});
    contenders.push_back({.name = kRounded,
                          .run =
                              [run = reused(product.ours)] {
                                at::globalContext().setFloat32MatmulPrecision("medium");
                                run();
                                at::globalContext().setFloat32MatmulPrecision("highest");
                              },
                          .work = work});
  }
  const Task task{.part = name,
                  .title = "one product of a linear layer",
                  .dtype = "float32",
                  .rows = l.x.size(0),
                  .hidden = l.x.size(1),
                  .out = l.dy.size(1),
                  .unit = "GFLOP/s",
                  .base = kMm};
  const Table table = report.measure_quietly(task, std::move(contenders));
  fmt::print("{:8} {:5} {:>5}x{:<5} {:>8} {:>7} {:>6} {:>8} {:>7} {:>6} {:>8} {:>6} {:>9} {:>8}\n",
             name, l.x.size(0), l.x.size(1), l.dy.size(1), rate(table, kOurs), rate(table, kMm),
             ratio(table, kOurs, kMm), rate(table, kOursFresh), rate(table, kMmFresh),
             ratio(table, kOursFresh, kMmFresh), rate(table, kNarrow), rate(table, kThin),
             rate(table, kNoTiles), rate(table, kRounded));
}

std::pair<std::int64_t, std::int64_t> shape_named(const std::string& text) {
  std::istringstream stream(text);
  std::int64_t in = 0, out = 0;
  char separator = 0;
  if (!(stream >> in >> separator >> out) || separator != 'x' || !stream.eof() || in < 1 ||
      out < 1) {
    throw ConfigError("--shapes: expected INxOUT, got " + text);
  }
  return {in, out};
}

void run(Report& report, const Arguments& arguments) {
  const at::NoGradGuard no_grad;
  fmt::print("GFLOP/s into reused memory and into fresh memory, and how many times at::mm's\n");
  fmt::print("{:8} {:>5} {:^11} {:>8} {:>7} {:>6} {:>8} {:>7} {:>6} {:>8} {:>6} {:>9} {:>8}\n",
             "product", "N", "in x out", "prefopt", "at::mm", "times", "prefopt", "at::mm", "times",
             "bfloat16", "thin", "no tiles", "rounded");
  for (const std::string& name : arguments.products) {
    for (const std::string& shape : arguments.shapes) {
      const auto [in, out] = shape_named(shape);
      for (const std::int64_t rows : arguments.options.rows) {
        Layers layers(rows, in, out);
        compare(report, arguments, name, layers);
      }
    }
  }
}

}  // namespace
}  // namespace prefopt::bench

int main(int argc, char** argv) {
  prefopt::bench::Arguments arguments;
  arguments.options.rows = {64, 200, 400, 800, 1600};
  CLI::App app("The products of linear layers against at::mm.");
  arguments.options.add_to(app);
  app.add_option("--shapes", arguments.shapes, "Layers, as INxOUT, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--products", arguments.products, "forward, input, weight, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  return prefopt::bench::bench_main(
      "bench_linear", app, arguments.options, argc, argv,
      [&](prefopt::bench::Report& report) { prefopt::bench::run(report, arguments); });
}
