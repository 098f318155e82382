// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "prefopt/error.h"
#include "prefopt/files/safetensors.h"
#include "support/catch.h"
#include "support/counts.h"
#include "support/errors.h"
#include "support/files.h"
#include "support/memory_limit.h"
#include "support/temp_dir.h"

namespace prefopt::test_safetensors {
namespace {

using nlohmann::json;
using testing_support::bytes_of;
using testing_support::put;
using testing_support::TempDir;

std::string bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

std::string length_prefix(std::uint64_t length) {
  std::string bytes(8, '\0');
  for (char& byte : bytes) {
    byte = static_cast<char>(length & 0xff);
    length >>= 8;
  }
  return bytes;
}

/// A file with this header, true or broken, and `data_bytes` bytes of data.
std::string with_header(const std::string& header, std::size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, '\1');
}

/// One tensor 'x' over 8 bytes of data.
std::string with_entry(const std::string& entry) {
  return with_header(R"({"x":)" + entry + "}", 8);
}

at::Tensor find(const SafetensorsFile& file, const std::string& name) {
  for (const auto& [found, tensor] : file.tensors) {
    if (found == name) return tensor;
  }
  FAIL("no tensor " << name);
  return {};
}

/// `values` as the bytes of a tensor of another dtype.
template <class T>
at::Tensor from_bits(const std::vector<T>& values, at::ScalarType dtype) {
  const auto bytes = static_cast<std::int64_t>(values.size() * sizeof(T));
  const auto width = static_cast<std::int64_t>(c10::elementSize(dtype));
  at::Tensor tensor = at::empty({bytes / width}, dtype);
  std::memcpy(tensor.mutable_data_ptr(), values.data(), static_cast<std::size_t>(bytes));
  return tensor;
}

SafetensorsFile one_of_everything() {
  SafetensorsFile file;
  file.metadata = {{"format", "pt"}, {"note", "\"quoted\"\n\xc3\xa9"}};
  file.tensors = {
      {"f64", from_bits<std::uint64_t>({0x7ff8dead'beef0001, 0x8000000000000000, 1}, at::kDouble)},
      {"i64", at::tensor({INT64_MIN, INT64_MAX}, at::kLong).view({1, 2})},
      {"scalar", at::scalar_tensor(-0.0, at::kFloat)},
      {"nan", from_bits<std::uint32_t>({0x7fc00001, 0xff800001, 0x7f800000, 0x1}, at::kFloat)},
      {"empty", at::empty({3, 0, 2}, at::kFloat)},
      {"i32", at::tensor({INT32_MIN, -1}, at::kInt)},
      {"f16", from_bits<std::uint16_t>({0x7e01, 0xfc00, 0x0001}, at::kHalf)},
      {"bf16", from_bits<std::uint16_t>({0x7fc1, 0xff80, 0x0001}, at::kBFloat16)},
      {"i16", at::tensor({-32768, 7}, at::kShort)},
      {"u8", at::tensor({0, 255, 3}, at::kByte)},
      {"i8", at::tensor({-128, 127}, at::kChar)},
      {"bool", at::tensor({1, 0, 1}, at::kByte).to(at::kBool)},
  };
  return file;
}

struct BrokenFile {
  std::string bytes;
  std::string text;  // after the path
};

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

const std::vector<BrokenFile>& broken_files() {
  static const std::string kDtypes = "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL";
  static const std::vector<BrokenFile> kFiles = {
      // Length and header.
      {"", ": expected at least 8 bytes, got 0"},
      {std::string(7, '\0'), ": expected at least 8 bytes, got 7"},
      {length_prefix(9999) + "{}", ": expected a header of at most 2 bytes, got 9999"},
      {length_prefix(UINT64_MAX) + "{}",
       ": expected a header of at most 2 bytes, got 18446744073709551615"},
      {with_header("[]", 0), ": header: expected an object, got list"},
      {with_header("7", 0), ": header: expected an object, got number"},
      {with_header(R"({"x":{},"x":{}})", 0), ": header: expected JSON, got the key 'x' twice"},
      {with_header(R"({"x":)" + nested(80) + "}", 0),
       ": header: expected JSON, got nesting deeper than 64 levels"},
      {with_header(R"({"__metadata__":"pt"})", 0),
       ": expected __metadata__ to be an object of texts, got \"pt\""},
      {with_header(R"({"__metadata__":{"step":3}})", 0),
       R"(: expected __metadata__ to be an object of texts, got {"step":3})"},
      // One tensor.
      {with_entry("[]"), ": tensor 'x': expected an object, got []"},
      {with_entry("null"), ": tensor 'x': expected an object, got null"},
      {with_entry(R"({"shape":[2],"data_offsets":[0,8]})"),
       ": tensor 'x': expected 'dtype', got none"},
      {with_entry(R"({"dtype":"F32","data_offsets":[0,8]})"),
       ": tensor 'x': expected 'shape', got none"},
      {with_entry(R"({"dtype":"F32","shape":[2]})"),
       ": tensor 'x': expected 'data_offsets', got none"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"device":"cpu"})"),
       ": tensor 'x': expected dtype, shape and data_offsets only, got 'device'"},
      {with_entry(R"({"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]})"),
       ": tensor 'x': expected dtype to be one of " + kDtypes + ", got \"F8_E4M3\""},
      {with_entry(R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})"),
       ": tensor 'x': expected dtype to be one of " + kDtypes + ", got 32"},
      {with_entry(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"),
       ": tensor 'x': expected shape to be a list of sizes, got 2"},
      {with_entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"),
       ": tensor 'x': expected shape to be a list of sizes, got [-2]"},
      {with_entry(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"),
       ": tensor 'x': expected shape to be a list of sizes, got [2.0]"},
      {with_entry(R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})"),
       ": tensor 'x': expected shape to be a list of sizes, got [\"2\"]"},
      {with_entry(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"),
       ": tensor 'x': expected at most 8 dimensions, got 9"},
      {with_entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"),
       ": tensor 'x': expected a shape of less than 2^63 bytes, got [4294967296,4294967296]"},
      {with_entry(R"({"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]})"),
       ": tensor 'x': expected a shape of less than 2^63 bytes, got [0,4294967296,4294967296]"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":8})"),
       ": tensor 'x': expected data_offsets to be [begin, end], got 8"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4,8]})"),
       ": tensor 'x': expected data_offsets to be [begin, end], got [0,4,8]"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})"),
       ": tensor 'x': expected data_offsets to be [begin, end], got [-8,0]"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"),
       ": tensor 'x': expected data_offsets in order, got [8, 0]"},
      {with_entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,9999]})"),
       ": tensor 'x': expected data_offsets within 8 bytes of data, got [0, 9999]"},
      {with_entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})"),
       ": tensor 'x': expected data_offsets over 4 bytes for Float [1], got [0, 8]"},
      {with_entry(R"({"dtype":"BOOL","shape":[8],"data_offsets":[0,8]})")
           .replace(8 + 52 + 3, 1, "\2"),
       ": tensor 'x': expected BOOL bytes of 0 or 1, got 2"},
      // Tensors against each other.
      {with_entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"),
       ": tensor 'x': expected data_offsets from 0, where the tensor before it ends, got [4, 8]"},
      {with_entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"),
       ": expected tensors over all 8 bytes of data, got 4"},
      {with_header("{}", 8), ": expected tensors over all 8 bytes of data, got 0"},
      {with_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                   R"("b":{"dtype":"U8","shape":[2],"data_offsets":[6,8]}})",
                   8),
       ": tensor 'b': expected data_offsets from 4, where the tensor before it ends, got [6, 8]"},
      {with_header(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                   R"("b":{"dtype":"U8","shape":[6],"data_offsets":[2,8]}})",
                   8),
       ": tensor 'b': expected data_offsets from 4, where the tensor before it ends, got [2, 8]"},
  };
  return kFiles;
}

}  // namespace

TEST_CASE("safetensors: every dtype comes back bit for bit", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("all.safetensors");
  const SafetensorsFile written = one_of_everything();
  write_safetensors(path, written);
  const SafetensorsFile read = read_safetensors(path);

  CHECK(read.metadata == written.metadata);
  REQUIRE(read.tensors.size() == written.tensors.size());
  for (const auto& [name, tensor] : written.tensors) {
    INFO(name);
    const at::Tensor back = find(read, name);
    CHECK(back.scalar_type() == tensor.scalar_type());
    CHECK(back.sizes() == tensor.sizes());
    CHECK(bytes_of(back) == bytes_of(tensor));
  }

  // The result is in the order of the data, and writing it again gives the same file.
  write_safetensors(dir.file("again.safetensors"), read);
  CHECK(bytes_of(dir.file("again.safetensors")) == bytes_of(path));
}

TEST_CASE("safetensors: a file of the safetensors package is written as it was", "[files]") {
  const TempDir dir;
  const std::string golden = PREFOPT_TEST_DATA_DIR "/tiny-llama/policy/model.safetensors";
  write_safetensors(dir.file("copy.safetensors"), read_safetensors(golden));
  CHECK(bytes_of(dir.file("copy.safetensors")) == bytes_of(golden));
}

TEST_CASE("safetensors: data is aligned and views are written as what they show", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  const at::Tensor matrix = at::arange(6, at::kDouble).view({2, 3});
  write_safetensors(
      path, {.tensors = {{"bytes", at::ones({3}, at::kByte)}, {"t", matrix.t()}}, .metadata = {}});
  const std::string bytes = bytes_of(path);
  const auto header_length = static_cast<unsigned char>(bytes[0]);
  CHECK(bytes.substr(8, header_length) ==
        R"({"t":{"dtype":"F64","shape":[3,2],"data_offsets":[0,48]},)"
        R"("bytes":{"dtype":"U8","shape":[3],"data_offsets":[48,51]}})" +
            std::string(5, ' '));
  CHECK(header_length % 8 == 0);
  CHECK(at::equal(find(read_safetensors(path), "t"), matrix.t()));
}

TEST_CASE("safetensors: an empty file list and an overwritten file are fine", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  write_safetensors(path, one_of_everything());
  write_safetensors(path, {});
  CHECK(bytes_of(path) == length_prefix(8) + "{}      ");
  CHECK(read_safetensors(path).tensors.empty());
  CHECK(std::distance(std::filesystem::directory_iterator(dir.path()), {}) == 1);
}

TEST_CASE("safetensors: broken files are refused by name and place", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("broken.safetensors");
  for (const auto& [bytes, text] : broken_files()) {
    put(path, bytes);
    const testing_support::MemoryLimit limit;
    CHECK_THROWS_TEXT(read_safetensors(path), CheckpointError, path + text);
  }
  testing_support::report_count("bad safetensors files refused", broken_files().size());
  // Just within the limits.
  put(path, with_entry(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,2],"data_offsets":[0,8]})"));
  CHECK(read_safetensors(path).tensors.at(0).second.dim() == 8);
}

TEST_CASE("safetensors: a header of many tensors is read", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("many.safetensors");
  constexpr int kTensors = 20'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  put(path, with_header(header + "}", 0));
  CHECK(read_safetensors(path).tensors.size() == kTensors);
}

TEST_CASE("safetensors: what is no file is refused", "[files]") {
  const TempDir dir;
  CHECK_THROWS_TEXT(read_safetensors(dir.file("none")), CheckpointError,
                    dir.file("none") + ": expected a readable file, got No such file or directory");
  CHECK_THROWS_TEXT(read_safetensors(dir.path()), CheckpointError,
                    dir.path() + ": expected a readable file, got Is a directory");
}

TEST_CASE("safetensors: a header over 100 MB is refused before it is read", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("long.safetensors");
  put(path, length_prefix(100'000'001));
  std::filesystem::resize_file(path, 200'000'000);  // sparse
  CHECK_THROWS_TEXT(read_safetensors(path), CheckpointError,
                    path + ": expected a header of at most 100000000 bytes, got 100000001");
}

TEST_CASE("safetensors: no cut and no changed byte leads to anything but a CheckpointError",
          "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  write_safetensors(path, one_of_everything());
  const std::string good = bytes_of(path);
  for (std::size_t length = 0; length < good.size(); ++length) {
    put(path, good.substr(0, length));
    CHECK_THROWS_AS(read_safetensors(path), CheckpointError);
  }
  const auto header_end = static_cast<std::size_t>(good.find("}}") + 2);
  for (std::size_t at = 0; at < header_end; ++at) {
    for (const char byte : {'9', '}', '\xff'}) {
      std::string bad = good;
      bad[at] = byte;
      put(path, bad);
      try {
        read_safetensors(path);  // a changed name or metadata text is no defect
      } catch (const CheckpointError&) {
      }
    }
  }
}

TEST_CASE("safetensors: what cannot be written is refused and leaves no file", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  const at::Tensor one = at::ones({1});
  const auto write = [&](const std::string& name, const at::Tensor& tensor) {
    write_safetensors(path, {.tensors = {{name, tensor}}, .metadata = {}});
  };
  CHECK_THROWS_TEXT(write_safetensors(path, {.tensors = {{"a", one}, {"a", one}}, .metadata = {}}),
                    CheckpointError, path + ": expected each tensor name once, got 'a' again");
  CHECK_THROWS_TEXT(write("__metadata__", one), CheckpointError,
                    path + ": expected each tensor name once, got '__metadata__' again");
  CHECK_THROWS_TEXT(write("a", at::Tensor()), CheckpointError,
                    path + ": tensor 'a': expected data, got none");
  CHECK_THROWS_TEXT(write("a", at::ones({1}, at::kComplexFloat)), CheckpointError,
                    path +
                        ": tensor 'a': expected one of F64, F32, F16, BF16, I64, I32, I16, I8, "
                        "U8, BOOL, got ComplexFloat");
  CHECK_THROWS_TEXT(write("\xff", one), CheckpointError,
                    path + ": expected names and metadata in UTF-8, got other bytes");
  CHECK(std::filesystem::is_empty(dir.path()));
  CHECK_THROWS_AS(write_safetensors(dir.file("none/x"), {}), CheckpointError);
}

TEST_CASE("safetensors: a tensor keeps the mapping alive and never reaches the file", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  write_safetensors(path, {.tensors = {{"x", at::ones({4})}}, .metadata = {}});
  const std::string bytes = bytes_of(path);
  const at::Tensor tensor = find(read_safetensors(path), "x");
  tensor.fill_(7);
  CHECK(bytes_of(path) == bytes);
  CHECK(at::equal(find(read_safetensors(path), "x"), at::ones({4})));
  std::filesystem::remove(path);
  CHECK(at::equal(tensor, at::full({4}, 7.0)));
}

TEST_CASE("safetensors: data that is not aligned is read", "[files]") {
  const TempDir dir;
  const std::string path = dir.file("x.safetensors");
  const at::Tensor numbers = at::tensor({1.5F, -2.0F});
  put(path, with_header(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("x":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
                        1) +
                bytes_of(numbers));
  CHECK(at::equal(find(read_safetensors(path), "x"), numbers));
}

TEST_CASE("safetensors: a folder is written in shards above a limit", "[files]") {
  const TempDir dir;
  const auto floats = [](std::int64_t count) { return at::arange(count, at::kFloat); };
  const SafetensorsFile file{.tensors = {{"b", floats(2)},
                                         {"a", floats(3)},
                                         {"huge", floats(9)},
                                         {"c", floats(1)},
                                         {"d", floats(4)}},
                             .metadata = {{"format", "pt"}}};
  write_safetensors_folder(dir.path(), file, 20);
  CHECK(safetensors_path(dir.path()) == dir.file("model.safetensors.index.json"));
  CHECK(json::parse(bytes_of(dir.file("model.safetensors.index.json"))) == json::parse(R"({
      "metadata": {"total_size": 76},
      "weight_map": {"a": "model-00001-of-00003.safetensors",
                     "b": "model-00001-of-00003.safetensors",
                     "huge": "model-00002-of-00003.safetensors",
                     "c": "model-00003-of-00003.safetensors",
                     "d": "model-00003-of-00003.safetensors"}})"));
  CHECK(read_safetensors(dir.file("model-00001-of-00003.safetensors")).metadata == file.metadata);
  const auto check = [&](const SafetensorsFile& back) {
    CHECK(back.metadata == file.metadata);
    CHECK(back.tensors.size() == file.tensors.size());
    for (const auto& [name, tensor] : file.tensors) CHECK(at::equal(find(back, name), tensor));
  };
  check(read_safetensors_folder(dir.path()));

  CHECK_THROWS_TEXT(
      write_safetensors_folder(
          dir.path(),
          {.tensors = {{"a", floats(9)}, {"b", floats(9)}, {"a", floats(9)}}, .metadata = {}}, 20),
      CheckpointError, dir.path() + ": expected each tensor name once, got 'a' again");

  // Older weights would be taken for these.
  put(dir.file("model-extra.safetensors"), "not a shard's name");
  write_safetensors_folder(dir.path(), file);
  CHECK(safetensors_path(dir.path()) == dir.file("model.safetensors"));
  CHECK(std::distance(std::filesystem::directory_iterator(dir.path()), {}) == 2);
  check(read_safetensors_folder(dir.path()));
  write_safetensors_folder(dir.path(), file, 40);
  CHECK_FALSE(std::filesystem::exists(dir.file("model.safetensors")));
  check(read_safetensors_folder(dir.path()));
}

TEST_CASE("safetensors: shards and index that do not agree are refused by name", "[files]") {
  const TempDir dir;
  const std::string index = dir.file("model.safetensors.index.json");
  const auto shard = [&](const std::string& name, const std::vector<std::string>& tensors) {
    SafetensorsFile file;
    for (const auto& tensor : tensors) file.tensors.emplace_back(tensor, at::ones({1}));
    write_safetensors(dir.file(name), file);
  };
  shard("1", {"a", "b"});
  shard("2", {"c"});
  const json good = {{"a", "1"}, {"b", "1"}, {"c", "2"}};
  const auto refuse = [&](const std::string& text, const std::string& expected) {
    put(index, text);
    CHECK_THROWS_TEXT(read_safetensors_folder(dir.path()), CheckpointError, expected);
  };
  const auto refuse_map = [&](const std::string& name, const json& value,
                              const std::string& expected) {
    json map = good;
    map[name] = value;
    refuse(json{{"weight_map", map}}.dump(), expected);
  };
  put(index, json{{"weight_map", good}}.dump());
  CHECK(read_safetensors_folder(dir.path()).tensors.size() == 3);

  refuse("{", index +
                  ": expected JSON, got something else: parse error at line 1, column 2: syntax "
                  "error while parsing object key - unexpected end of input; expected string "
                  "literal");
  refuse("[]", index + ": expected an object with an object 'weight_map', got []");
  refuse(R"({"weight_map":7})",
         index + R"(: expected an object with an object 'weight_map', got {"weight_map":7})");
  refuse(R"({"weight_map":{"a":"1","a":"2"}})", index + ": expected JSON, got the key 'a' twice");
  const std::string plain = ": expected weight_map of 'a' to be the name of a file in this folder";
  for (const char* name : {"", ".", "..", "../1", "/etc/passwd", "sub/1", "..\\1"}) {
    refuse_map("a", name, index + plain + ", got " + json(name).dump());
  }
  refuse_map("a", std::string("1\0", 2), index + plain + R"(, got "1\u0000")");
  refuse_map("a", 1, index + plain + ", got 1");
  refuse_map("d", "3", dir.file("3") + ": expected a readable file, got No such file or directory");
  refuse_map("a", "2", index + ": expected tensor 'a' in '2', got it in '1'");
  refuse_map("d", "2", index + ": expected tensor 'd' in '2', got none there");
  json fewer = good;
  fewer.erase("b");
  refuse(json{{"weight_map", fewer}}.dump(),
         index + ": expected the tensors of weight_map only, got 'b' in '1'");
  shard("2", {"c", "a"});
  refuse(json{{"weight_map", good}}.dump(), index + ": expected tensor 'a' in '1', got it in '2'");
}

}  // namespace prefopt::test_safetensors
