// SPDX-License-Identifier: Apache-2.0
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "prefopt/files/gguf_writer.h"
#include "prefopt/files/safetensors.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/gguf_builder.h"
#include "support/temp_dir.h"

namespace prefopt::test_gguf_writer {
namespace {

using namespace testing_support;

const std::string kQuantized = PREFOPT_TEST_DATA_DIR "/gguf/quantized.safetensors";

at::Tensor named(const SafetensorsFile& file, const std::string& name) {
  for (const auto& [known, tensor] : file.tensors) {
    if (known == name) return tensor;
  }
  return {};
}

GgufFile written(const GgufWriter& writer, const TempDir& dir) {
  writer.write(dir.file("x.gguf"));
  return GgufFile::open(dir.file("x.gguf"));
}

/// Root of the mean squared error over that of the values.
double relative_error(const at::Tensor& got, const at::Tensor& values) {
  return ((got - values).norm() / values.norm()).item<double>();
}

}  // namespace

TEST_CASE("gguf writer: a file of every kind of entry, byte for byte", "[files]") {
  GgufWriter writer;
  writer.text("general.architecture", "replaced below");
  writer.integer("u32", 4294967295);
  writer.real("f32", 0.1);
  writer.flag("flag", true);
  writer.texts("texts", {"", std::string("a\0\xff", 3)});
  writer.integers("i32s", {-1, 2});
  writer.reals("f32s", {0.5});
  writer.text("general.architecture", "none");
  writer.tensor("plain", at::full({2, 3}, 0.5), "F32");
  writer.tensor("second", at::full({1, 32}, 0.5), "F32");
  GgufBuilder expected;
  expected.text("general.architecture", "none")
      .integer("u32", UINT32_MAX)
      .real("f32", 0.1F)
      .flag("flag", true)
      .set("texts", kList,
           gguf_list(kText, 2, gguf_text("") + gguf_text(std::string("a\0\xff", 3))))
      .set("i32s", kList, gguf_list(kInt32, 2, raw(-1) + raw(2)))
      .set("f32s", kList, gguf_list(kFloat32, 1, raw(0.5F)))
      .floats("plain", {3, 2})
      .floats("second", {32, 1});
  const TempDir dir;
  writer.write(dir.file("x.gguf"));
  CHECK(bytes_of(dir.file("x.gguf")) == expected.bytes());
  CHECK(writer.has("u32"));
  CHECK_FALSE(writer.has("u3"));
}

TEST_CASE("gguf writer: parts of a stack are one tensor", "[files]") {
  const TempDir dir;
  const at::Tensor whole = at::randn({3, 4, 64});
  for (const char* type : {"F32", "Q8_0"}) {
    INFO(type);
    GgufWriter writer;
    writer.stack("stack", {whole[0], whole[1], whole[2]}, type);
    writer.tensor("whole", whole, type);
    const GgufFile file = written(writer, dir);
    CHECK(file.find_tensor("stack")->shape == std::vector<std::int64_t>{3, 4, 64});
    CHECK(at::equal(file.tensor("stack"), file.tensor("whole")));
  }
  CHECK_THROWS_TEXT(GgufWriter().stack("stack", {whole[0], whole[0][0]}, "F32"), ShapeError,
                    "gguf: tensor 'stack': expected parts of shape [4, 64], got [64]");
}

TEST_CASE("gguf writer: entries of another file are taken over as they are", "[files]") {
  const TempDir dir;
  GgufBuilder source;
  source.set("lists", kList, gguf_list(kList, 1, gguf_list(kText, 1, gguf_text("c"))))
      .set("i8", kUint8, raw<std::uint8_t>(255));
  put(dir.file("source.gguf"), source.bytes());
  const GgufFile file = GgufFile::open(dir.file("source.gguf"));
  GgufWriter writer;
  for (const std::string& key : file.keys()) writer.copy(file, key);
  writer.write(dir.file("x.gguf"));
  CHECK(bytes_of(dir.file("x.gguf")) == source.bytes());
  CHECK_THROWS_TEXT(writer.copy(file, "none"), CheckpointError,
                    file.path() + ": expected metadata 'none', got none of that name");
}

TEST_CASE("gguf writer: the bytes are those of the gguf package", "[files]") {
  const SafetensorsFile expected = read_safetensors(kQuantized);
  const at::Tensor values = named(expected, "values");
  const TempDir dir;
  for (const std::string type : {"F16", "BF16", "Q8_0", "Q5_0", "Q4_0"}) {
    INFO(type);
    GgufWriter writer;
    writer.tensor("x", values, type);
    const GgufFile file = written(writer, dir);
    const GgufTensor& tensor = *file.find_tensor("x");
    CHECK(tensor.type == type);
    CHECK(tensor.shape == values.sizes());
    const at::Tensor bytes = named(expected, type).contiguous();
    REQUIRE(tensor.bytes == bytes.nbytes());
    CHECK(bytes_of(file.path()).substr(tensor.offset, tensor.bytes) ==
          std::string(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes()));
  }
}

TEST_CASE("gguf writer: errors of the searched encodings are small", "[files]") {
  // Of normal values, llama.cpp's own quantizers have 0.0714 and 0.0178.
  const at::Tensor values = at::randn({64, 512}, at::make_generator<at::CPUGeneratorImpl>(1));
  const TempDir dir;
  const auto error_of = [&](const std::string& type, const at::Tensor& given) {
    GgufWriter writer;
    writer.tensor("x", given, type);
    return relative_error(written(writer, dir).tensor("x"), given);
  };
  CHECK(error_of("Q4_K", values) < 0.0710);
  CHECK(error_of("Q6_K", values) < 0.0170);
  // On a line there are 16 values and their scales lose nothing.
  const at::Tensor levels =
      (at::arange(1024) * 7).remainder(16).to(at::kFloat).view({4, 256}) * 0.5;
  CHECK(error_of("Q4_K", levels - 2) < 1e-3);
  CHECK(error_of("Q4_K", levels + 3) < 0.03);  // offsets add up to zero only
  CHECK(error_of("Q4_K", at::full({1, 256}, -0.25)) < 1e-3);
  CHECK(error_of("Q6_K", at::full({1, 256}, -0.25)) < 1e-3);
  for (const std::string type : {"Q4_K", "Q6_K", "Q8_0", "Q5_0", "Q4_0"}) {
    INFO(type);
    for (const double value : {0.0, 1e-44, 1e-20}) {
      GgufWriter writer;
      writer.tensor("x", at::full({1, 256}, value), type);
      CHECK(at::equal(written(writer, dir).tensor("x"), at::zeros({1, 256})));
    }
    GgufWriter writer;
    writer.tensor("x", values * (60000 / values.abs().max()), type);
    CHECK(written(writer, dir).tensor("x").isfinite().all().item<bool>());
  }
}

TEST_CASE("gguf writer: values that a type cannot hold are refused, and no file is left",
          "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const auto refuse = [&](const at::Tensor& values, const std::string& type,
                          const std::string& text) {
    GgufWriter writer;
    writer.tensor("x", values, type);
    CHECK_THROWS_TEXT(writer.write(path), DtypeError, path + ": tensor 'x': " + text);
    CHECK(std::filesystem::is_empty(dir.path()));
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  refuse(at::zeros({2, 48}), "Q8_0", "expected rows in blocks of 32 for Q8_0, got 48 values");
  refuse(at::zeros({2, 32}), "Q4_K", "expected rows in blocks of 256 for Q4_K, got 32 values");
  refuse(at::zeros({}), "Q8_0", "expected rows in blocks of 32 for Q8_0, got 1 values");
  refuse(at::full({1, 32}, std::nan("")), "Q8_0",
         "expected values within [-65504, 65504], which Q8_0 holds, got nan");
  refuse(at::full({2}, 65520.0), "F16",
         "expected values within [-65504, 65504], which F16 holds, got 65520");
  refuse(at::full({1, 256}, -kInfinity), "Q4_K",
         "expected values within [-65504, 65504], which Q4_K holds, got -inf");
  GgufWriter writer;
  for (const std::string type : {"F32", "BF16", "F64"}) {
    writer.tensor(type, at::full({2}, kInfinity), type);
  }
  CHECK(written(writer, dir).tensor("BF16").isinf().all().item<bool>());
  CHECK_THROWS_TEXT(writer.tensor("y", at::zeros({256}), "Q3_K"), ConfigError,
                    "gguf: tensor 'y': expected F64, F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q6_K or "
                    "Q4_K, got 'Q3_K'");
  CHECK_THROWS_TEXT(writer.integer("k", -1), DtypeError,
                    "gguf: metadata 'k': expected a value in [0, 4294967295], got -1");
  CHECK_THROWS_TEXT(writer.integers("k", {0, 2147483648}), DtypeError,
                    "gguf: metadata 'k': expected a value in [-2147483648, 2147483647], got "
                    "2147483648");
  CHECK_THROWS_TEXT(writer.write(dir.path()), CheckpointError,
                    dir.path() + ": expected to write 256 bytes, got Is a directory");
}

}  // namespace prefopt::test_gguf_writer
