// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>

#include "prefopt/error.h"
#include "prefopt/files/gguf.h"
#include "prefopt/files/safetensors.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/gguf_builder.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

namespace prefopt::test_gguf {
namespace {

using namespace testing_support;

const std::string kBlocks = PREFOPT_TEST_DATA_DIR "/gguf/blocks";

std::string one_f32(const std::string& name = "x") { return gguf_tensor_info(name, {2}, 0, 0); }

std::string padded(std::string bytes, std::size_t data_bytes) {
  bytes.resize((bytes.size() + 31) / 32 * 32 + data_bytes, '\0');
  return bytes;
}

/// NaN is NaN, and everything else the same bits.
bool same_values(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor both = a.isnan() & b.isnan();
  return a.sizes() == b.sizes() &&
         (both | (a.view(at::kInt) == b.view(at::kInt))).all().item<bool>();
}

/// Every kind of value and list, and two tensors.
GgufBuilder one_of_everything() {
  GgufBuilder file;
  file.set("u8", kUint8, raw<std::uint8_t>(255))
      .set("i8", kInt8, raw<std::int8_t>(-128))
      .set("u16", kUint16, raw<std::uint16_t>(65535))
      .set("i16", kInt16, raw<std::int16_t>(-32768))
      .set("u32", kUint32, raw(UINT32_MAX))
      .set("i32", kInt32, raw(INT32_MIN))
      .set("u64", kUint64, raw<std::uint64_t>(INT64_MAX))
      .set("i64", kInt64, raw(INT64_MIN))
      .set("huge", kUint64, raw(UINT64_MAX))
      .set("f32", kFloat32, raw(0.1F))
      .set("f64", kFloat64, raw(0.1))
      .set("yes", kFlag, raw(true))
      .set("no", kFlag, raw(false))
      .set("text", kText, gguf_text(std::string("a\0\xff", 3)))
      .set("texts", kList, gguf_list(kText, 2, gguf_text("") + gguf_text("b")))
      .set("integers", kList, gguf_list(kInt16, 2, raw<std::int16_t>(-1) + raw<std::int16_t>(2)))
      .set("reals", kList, gguf_list(kFloat32, 1, raw(0.5F)))
      .set("flags", kList, gguf_list(kFlag, 2, raw(true) + raw(false)))
      .set("lists", kList,
           gguf_list(kList, 2, gguf_list(kText, 1, gguf_text("c")) + gguf_list(kUint8, 0, "")))
      .set("none", kList, gguf_list(kText, 0, ""));
  file.floats("plain", {3, 2});
  file.tensor("packed", {32, 1}, 8, raw<std::uint16_t>(0x4000) + std::string(32, '\3'));
  return file;
}

void read_everything(const GgufFile& file) {
  for (const auto& key : file.keys()) {
    const auto attempt = [&](auto getter) {
      try {
        static_cast<void>((file.*getter)(key));
      } catch (const CheckpointError&) {
      }
    };
    attempt(&GgufFile::text);
    attempt(&GgufFile::integer);
    attempt(&GgufFile::real);
    attempt(&GgufFile::flag);
    attempt(&GgufFile::texts);
    attempt(&GgufFile::integers);
    attempt(&GgufFile::reals);
  }
  for (const auto& tensor : file.tensors()) {
    try {
      static_cast<void>(file.tensor(tensor.name));
    } catch (const CheckpointError&) {
    }
  }
}

struct BrokenFile {
  std::string bytes;
  std::string text;  // after the path
};

std::string nested_lists(int levels) {
  std::string value = gguf_list(kUint8, 0, "");
  for (int i = 1; i < levels; ++i) value = gguf_list(kList, 1, value);
  return gguf_head(0, 1) + gguf_entry("x", kList, value);
}

std::vector<BrokenFile> broken_files() {
  const std::string first_entry = gguf_head(0, 1);
  const std::string first_tensor = gguf_head(1, 0);
  const auto aligned_to = [](std::uint32_t kind, const std::string& value) {
    return gguf_head(0, 1) + gguf_entry("general.alignment", kind, value);
  };
  return {
      // Head.
      {"", ": byte 0: expected the magic number of 4 bytes, got 0 to the end"},
      {"GGML" + std::string(20, '\0'), ": byte 0: expected the letters GGUF, got 47 47 4d 4c"},
      {gguf_head(0, 0, 1), ": byte 4: expected version 2 or 3, little-endian, got 0x1"},
      {gguf_head(0, 0, 0x03000000),
       ": byte 4: expected version 2 or 3, little-endian, got 0x3000000"},
      {gguf_head(UINT64_MAX, 0),
       ": byte 8: expected at most 0 tensors in 8 bytes, got 18446744073709551615"},
      {gguf_head(0, 4) + std::string(40, '\0'),
       ": byte 16: expected at most 2 metadata entries in 40 bytes, got 4"},
      // Metadata.
      {first_entry + gguf_entry("", kUint32, raw(1)),
       ": byte 24: expected key of 1 to 65535 bytes, got 0"},
      {first_entry + gguf_entry(std::string(65536, 'k'), kUint32, raw(1)),
       ": byte 24: expected key of 1 to 65535 bytes, got 65536"},
      {first_entry + gguf_entry(std::string("a\0b", 3), kUint32, raw(1)),
       ": byte 33: expected key without zero bytes, got one"},
      {first_entry + raw<std::uint64_t>(100) + "too short",
       ": byte 32: expected key of 100 bytes, got 9 to the end"},
      {first_entry + gguf_entry("x", 13, raw(1)),
       ": byte 33: expected a type of value from 0 to 12, got 13"},
      {first_entry + gguf_entry("x", kUint64, raw(1)),
       ": byte 37: expected value of 8 bytes, got 4 to the end"},
      {first_entry + gguf_entry("x", kFlag, "\2"), ": byte 37: expected a flag of 0 or 1, got 2"},
      {first_entry + gguf_entry("x", kText, raw(UINT64_MAX)),
       ": byte 45: expected text of 18446744073709551615 bytes, got 0 to the end"},
      {first_entry + gguf_entry("x", kList, gguf_list(kUint64, (1ULL << 61) + 1, "12345678")),
       ": byte 41: expected at most 1 list elements in 8 bytes, got 2305843009213693953"},
      {first_entry + gguf_entry("x", kList, gguf_list(kText, 2, gguf_text("abcdefgh"))),
       ": byte 65: expected length of text of 8 bytes, got 0 to the end"},
      {first_entry + gguf_entry("x", kList, gguf_list(kFlag, 2, std::string("\1\7"))),
       ": byte 50: expected a flag of 0 or 1, got 7"},
      {nested_lists(9), ": byte 133: expected lists in at most 8 levels, got more"},
      {gguf_head(0, 2) + gguf_entry("x", kUint32, raw(1)) + gguf_entry("x", kUint32, raw(1)),
       ": byte 41: expected each key once, got 'x' again"},
      {aligned_to(kUint32, raw(0)),
       ": byte 53: metadata 'general.alignment': expected a power of two below 2^32, got 0"},
      {aligned_to(kUint32, raw(48)),
       ": byte 53: metadata 'general.alignment': expected a power of two below 2^32, got 48"},
      {aligned_to(kInt32, raw(-32)),
       ": byte 53: metadata 'general.alignment': expected a power of two below 2^32, got -32"},
      {aligned_to(kText, gguf_text("32")),
       ": byte 53: metadata 'general.alignment': expected one integer below 2^63, got text"},
      // Tensors.
      {first_tensor + one_f32(""), ": byte 24: expected tensor name of 1 to 65535 bytes, got 0"},
      {padded(gguf_head(2, 0) + one_f32() + one_f32(), 8),
       ": byte 57: expected each tensor name once, got 'x' again"},
      {first_tensor + gguf_tensor_info("x", {1, 1, 1, 1, 1}, 0, 0),
       ": byte 33: expected at most 4 dimensions of tensor 'x', got 5"},
      {first_tensor + gguf_tensor_info("x", {1ULL << 32, 1ULL << 32}, 0, 0),
       ": byte 33: expected tensor 'x' of at most 2^60 values, got more"},
      {first_tensor + gguf_tensor_info("x", {UINT64_MAX}, 0, 0),
       ": byte 33: expected tensor 'x' of at most 2^60 values, got more"},
      {first_tensor + gguf_tensor_info("x", {0, 1ULL << 32, 1ULL << 32}, 0, 0),
       ": byte 33: expected tensor 'x' of at most 2^60 values, got more"},
      {first_tensor + gguf_tensor_info("x", {2}, 99, 0),
       ": byte 45: expected a known type of tensor 'x', got 99"},
      {first_tensor + gguf_tensor_info("x", {48}, 8, 0),
       ": byte 45: expected rows of tensor 'x' in blocks of 32 for Q8_0, got 48 values"},
      {first_tensor + gguf_tensor_info("x", {}, 8, 0),
       ": byte 37: expected rows of tensor 'x' in blocks of 32 for Q8_0, got 1 values"},
      {padded(first_tensor + gguf_tensor_info("x", {2}, 0, 32), 64),
       ": byte 49: expected tensor 'x' at 0 of the data, behind the one before it, got 32"},
      {padded(gguf_head(2, 0) + one_f32() + one_f32("y"), 64),
       ": byte 82: expected tensor 'y' at 32 of the data, behind the one before it, got 0"},
      {padded(first_tensor + one_f32(), 7),
       ": byte 49: expected tensor 'x' within 7 bytes of data, got 8 bytes from 0"},
      {first_tensor + one_f32(),
       ": byte 49: expected tensor 'x' within 0 bytes of data, got 8 bytes from 0"},
      {padded(first_tensor + gguf_tensor_info("x", {1ULL << 60}, 28, 0), 8),
       ": byte 49: expected tensor 'x' within 8 bytes of data, got 9223372036854775808 bytes "
       "from 0"},
  };
}

}  // namespace

TEST_CASE("gguf: every kind of metadata comes back", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("all.gguf");
  put(path, one_of_everything().bytes());
  const GgufFile file = GgufFile::open(path);
  CHECK(file.path() == path);
  CHECK(file.keys().size() == 20);
  CHECK(file.keys().front() == "u8");
  CHECK(file.has("text"));
  CHECK_FALSE(file.has("tex"));
  CHECK(file.integer("u8") == 255);
  CHECK(file.integer("i8") == -128);
  CHECK(file.integer("u16") == 65535);
  CHECK(file.integer("i16") == -32768);
  CHECK(file.integer("u32") == 4294967295);
  CHECK(file.integer("i32") == INT32_MIN);
  CHECK(file.integer("u64") == INT64_MAX);
  CHECK(file.integer("i64") == INT64_MIN);
  CHECK(file.real("f32") == static_cast<double>(0.1F));
  CHECK(file.real("f64") == 0.1);
  CHECK(file.flag("yes"));
  CHECK_FALSE(file.flag("no"));
  CHECK(file.text("text") == std::string("a\0\xff", 3));
  CHECK(file.texts("texts") == std::vector<std::string>{"", "b"});
  CHECK(file.integers("integers") == std::vector<std::int64_t>{-1, 2});
  CHECK(file.reals("reals") == std::vector<double>{0.5});
  CHECK(file.texts("none").empty());

  const auto refuse = [&](auto&& get, const std::string& text) {
    CHECK_THROWS_TEXT(get(), CheckpointError, path + text);
  };
  refuse([&] { return file.text("absent"); },
         ": expected metadata 'absent', got none of that name");
  const auto byte_of = [&](const std::string& key) {
    return ": byte " + std::to_string(bytes_of(path).find(gguf_text(key)) + 12 + key.size());
  };
  refuse([&] { return file.integer("huge"); },
         byte_of("huge") + ": metadata 'huge': expected one integer below 2^63, got uint64");
  refuse([&] { return file.integer("f32"); },
         byte_of("f32") + ": metadata 'f32': expected one integer below 2^63, got float32");
  refuse([&] { return file.real("u8"); },
         byte_of("u8") + ": metadata 'u8': expected one real number, got uint8");
  refuse([&] { return file.flag("u8"); },
         byte_of("u8") + ": metadata 'u8': expected one flag, got uint8");
  refuse([&] { return file.text("texts"); },
         byte_of("texts") + ": metadata 'texts': expected one text, got list");
  refuse([&] { return file.texts("text"); },
         byte_of("text") + ": metadata 'text': expected a list of texts, got text");
  refuse([&] { return file.integers("reals"); },
         byte_of("reals") +
             ": metadata 'reals': expected a list of integers below 2^63, got one of float32");
  refuse([&] { return file.texts("lists"); },
         byte_of("lists") + ": metadata 'lists': expected a list of texts, got one of list");
}

TEST_CASE("gguf: tensors of the file are listed and read", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("all.gguf");
  put(path, one_of_everything().bytes());
  const GgufFile file = GgufFile::open(path);
  REQUIRE(file.tensors().size() == 2);
  CHECK(file.tensors()[0].name == "plain");
  CHECK(file.tensors()[0].type == "F32");
  CHECK(file.tensors()[0].shape == std::vector<std::int64_t>{2, 3});
  CHECK(file.tensors()[0].bytes == 24);
  CHECK(file.find_tensor("packed") == &file.tensors()[1]);
  CHECK(file.find_tensor("none") == nullptr);
  CHECK(at::equal(file.tensor("plain"), at::full({2, 3}, 0.5)));
  CHECK(at::equal(file.tensor("packed"), at::full({1, 32}, 6.0, at::kFloat)));
  CHECK(file.tensor("plain", at::kBFloat16).scalar_type() == at::kBFloat16);
  CHECK_THROWS_TEXT(file.tensor("none"), CheckpointError,
                    path + ": expected tensor 'none', got none of that name");
  for (const char* name : {"plain", "packed"}) {
    CHECK_THROWS_TEXT(file.tensor(name, at::kInt), DtypeError,
                      path + ": tensor '" + name + "': expected a floating dtype, got Int");
  }
}

TEST_CASE("gguf: a tensor keeps the mapping alive and never reaches the file", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const std::string bytes = one_of_everything().bytes();
  put(path, bytes);
  const at::Tensor tensor = GgufFile::open(path).tensor("plain");
  tensor.fill_(7);
  CHECK(bytes_of(path) == bytes);
  CHECK(at::equal(GgufFile::open(path).tensor("plain"), at::full({2, 3}, 0.5)));
  std::filesystem::remove(path);
  CHECK(at::equal(tensor, at::full({2, 3}, 7.0, at::kFloat)));
}

TEST_CASE("gguf: a file that is opened again is as it is then", "[files]") {
  const GgufFile first = GgufFile::open(kBlocks + ".gguf");
  const TempDir dir;
  const auto write = [&](const std::string& name) {
    put(dir.file("x.gguf"), padded(gguf_head(1, 0) + one_f32(name), 8));
    return GgufFile::open(dir.file("x.gguf"));
  };
  const GgufFile a = write("a"), b = write("b");  // of one size, and within a tick of the clock
  CHECK(a.tensors().front().name == "a");
  CHECK(b.tensors().front().name == "b");
  b.tensor("b").fill_(3);
  CHECK(GgufFile::open(dir.file("x.gguf")).tensor("b").sum().item<float>() == 0);
  const GgufFile again = GgufFile::open(kBlocks + ".gguf");
  CHECK(again.keys() == first.keys());
  REQUIRE(again.tensors().size() == first.tensors().size());
  for (const GgufTensor& tensor : first.tensors()) {
    CHECK(at::equal(again.bytes(tensor.name), first.bytes(tensor.name)));
  }
}

TEST_CASE("gguf: blocks decode to what the gguf package makes of them", "[files]") {
  const GgufFile file = GgufFile::open(kBlocks + ".gguf");
  const SafetensorsFile expected = read_safetensors(kBlocks + ".safetensors");
  REQUIRE(expected.tensors.size() == 19);
  for (const auto& [name, values] : expected.tensors) {
    INFO(name);
    CHECK(file.find_tensor(name)->type == name);
    CHECK(same_values(file.tensor(name), values));
    for (const auto dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
      CHECK(at::allclose(file.tensor(name, dtype), values.to(dtype), 0, 0, /*equal_nan=*/true));
    }
  }
}

TEST_CASE("gguf: many blocks, decoded in parallel", "[files]") {
  constexpr std::int64_t kCount = 5000;
  std::string blocks;
  for (std::int64_t i = 0; i < kCount; ++i) {
    blocks += raw<std::uint16_t>(0x3c00) + std::string(32, static_cast<char>(i % 127));
  }
  const TempDir dir;
  put(dir.file("x.gguf"), GgufBuilder().tensor("x", {32, kCount}, 8, blocks).bytes());
  const at::Tensor got = GgufFile::open(dir.file("x.gguf")).tensor("x");
  CHECK(at::equal(got, at::arange(kCount).remainder(127).unsqueeze(1).expand({-1, 32})));
}

TEST_CASE("gguf: float64, odd alignment and tensors without values", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  GgufBuilder file;
  file.integer("general.alignment", 1);
  file.tensor("bytes", {3}, 24, "abc");
  file.tensor("wide", {2}, 28, raw(0.1) + raw(1e300));
  file.tensor("empty", {0, 4}, 0, "");
  file.tensor("one", {}, 0, raw(2.5F));
  put(path, file.bytes(1));
  const GgufFile read = GgufFile::open(path);
  CHECK(at::equal(read.tensor("wide", at::kDouble), at::tensor({0.1, 1e300}, at::kDouble)));
  CHECK(read.tensor("wide")[0].item<float>() == 0.1F);
  CHECK(read.tensor("empty").sizes() == at::IntArrayRef({4, 0}));
  CHECK(read.tensor("one").item<float>() == 2.5F);
}

TEST_CASE("gguf: an encoding that is not decoded is named", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  put(path, GgufBuilder().tensor("x", {256}, 17, std::string(74, '\1')).bytes());
  const GgufFile file = GgufFile::open(path);
  CHECK(file.tensors()[0].type == "IQ2_XS");
  CHECK_THROWS_TEXT(file.tensor("x"), CheckpointError,
                    path +
                        ": tensor 'x': expected F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, "
                        "Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, F64, BF16, TQ1_0, TQ2_0, MXFP4 or "
                        "NVFP4, got IQ2_XS");
}

TEST_CASE("gguf: broken files are refused by byte", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("broken.gguf");
  for (const auto& [bytes, text] : broken_files()) {
    put(path, bytes);
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(GgufFile::open(path), CheckpointError, path + text);
  }
  testing_support::report_count("bad GGUF files refused", broken_files().size());
  put(path, nested_lists(8));
  CHECK_NOTHROW(GgufFile::open(path));
  CHECK_THROWS_TEXT(GgufFile::open(dir.path()), CheckpointError,
                    dir.path() + ": expected a readable file, got Is a directory");
  CHECK_THROWS_TEXT(GgufFile::open(dir.file("none")), CheckpointError,
                    dir.file("none") + ": expected a readable file, got No such file or directory");
}

TEST_CASE("gguf: no cut and no changed byte leads to anything but a CheckpointError", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.gguf");
  const std::string good = one_of_everything().bytes();
  for (std::size_t length = 0; length < good.size(); ++length) {
    put(path, good.substr(0, length));
    CHECK_THROWS_AS(GgufFile::open(path), CheckpointError);
  }
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const char byte : {'\0', '\1', '\t', '\x7f', '\xff'}) {
      std::string bad = good;
      bad[at] = byte;
      put(path, bad);
      try {
        read_everything(GgufFile::open(path));  // another value is no defect
      } catch (const CheckpointError&) {
      }
    }
  }
}

}  // namespace prefopt::test_gguf
