// SPDX-License-Identifier: Apache-2.0
#include "prefopt/model/safetensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string_view>
#include <system_error>
#include <tuple>

#include "core/file.h"
#include "core/json.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian data");

using detail::Json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::size_t kMaxRank = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

struct DtypeName {
  std::string_view name;
  at::ScalarType dtype;
};

constexpr std::array<DtypeName, 10> kDtypes{{{"F64", at::kDouble},
                                             {"F32", at::kFloat},
                                             {"F16", at::kHalf},
                                             {"BF16", at::kBFloat16},
                                             {"I64", at::kLong},
                                             {"I32", at::kInt},
                                             {"I16", at::kShort},
                                             {"I8", at::kChar},
                                             {"U8", at::kByte},
                                             {"BOOL", at::kBool}}};

std::string dtype_names() {
  std::string names;
  for (const auto& known : kDtypes) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", known.name);
  }
  return names;
}

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin;  // offsets into the data part
  std::uint64_t end;
};

// One tensor's part of the header. `where` names file and tensor.
class EntryReader {
 public:
  EntryReader(const Json& fields, std::string where) : fields_(fields), where_(std::move(where)) {}

  Entry read(std::string name, std::uint64_t data_bytes) const {
    if (!fields_.is_object()) fail("an object", detail::dump_json(fields_));
    for (const auto& item : fields_.items()) {
      if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
        fail("dtype, shape and data_offsets only", fmt::format("'{}'", item.key()));
      }
    }
    Entry entry{.name = std::move(name), .dtype = dtype(), .shape = {}, .begin = 0, .end = 0};
    const std::uint64_t bytes = read_shape(entry);
    read_offsets(entry, bytes, data_bytes);
    return entry;
  }

 private:
  at::ScalarType dtype() const {
    const Json& given = field("dtype");
    for (const auto& known : kDtypes) {
      if (given == known.name) return known.dtype;
    }
    fail("dtype to be one of " + dtype_names(), detail::dump_json(given));
  }

  // Fills the shape and returns the size in bytes.
  std::uint64_t read_shape(Entry& entry) const {
    const Json& shape = field("shape");
    if (!is_list_of_sizes(shape)) fail("shape to be a list of sizes", detail::dump_json(shape));
    if (shape.size() > kMaxRank) {
      fail(fmt::format("at most {} dimensions", kMaxRank), fmt::format("{}", shape.size()));
    }
    constexpr auto kMaxBytes = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    std::uint64_t bytes = c10::elementSize(entry.dtype);
    // Strides are products without the empty dimensions, so those must fit as well.
    std::uint64_t stride = bytes;
    for (const auto& item : shape) {
      const auto size = item.get<std::uint64_t>();
      if (size != 0 && stride > kMaxBytes / size) {
        fail("a shape of less than 2^63 bytes", detail::dump_json(shape));
      }
      bytes *= size;
      stride *= std::max<std::uint64_t>(size, 1);
      entry.shape.push_back(static_cast<std::int64_t>(size));
    }
    return bytes;
  }

  void read_offsets(Entry& entry, std::uint64_t bytes, std::uint64_t data_bytes) const {
    const Json& offsets = field("data_offsets");
    if (!is_list_of_sizes(offsets) || offsets.size() != 2) {
      fail("data_offsets to be [begin, end]", detail::dump_json(offsets));
    }
    entry.begin = offsets[0].get<std::uint64_t>();
    entry.end = offsets[1].get<std::uint64_t>();
    const std::string got = fmt::format("[{}, {}]", entry.begin, entry.end);
    if (entry.begin > entry.end) fail("data_offsets in order", got);
    if (entry.end > data_bytes) {
      fail(fmt::format("data_offsets within {} bytes of data", data_bytes), got);
    }
    if (entry.end - entry.begin != bytes) {
      fail(fmt::format("data_offsets over {} bytes for {} {}", bytes, c10::toString(entry.dtype),
                       c10::str(at::IntArrayRef(entry.shape))),
           got);
    }
  }

  static bool is_list_of_sizes(const Json& value) {
    return value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& item) {
             return item.is_number_unsigned();
           });
  }

  const Json& field(const char* name) const {
    const auto at = fields_.find(name);
    if (at == fields_.end()) fail(fmt::format("'{}'", name), "none");
    return *at;
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", where_, expected, got));
  }

  const Json& fields_;
  std::string where_;
};

std::map<std::string, std::string> read_metadata(const Json& given, const std::string& path) {
  std::map<std::string, std::string> metadata;
  const auto is_text = [](const Json& value) { return value.is_string(); };
  if (!given.is_object() || !std::all_of(given.begin(), given.end(), is_text)) {
    throw CheckpointError(fmt::format("{}: expected {} to be an object of texts, got {}", path,
                                      kMetadataKey, detail::dump_json(given)));
  }
  for (const auto& item : given.items()) metadata[item.key()] = item.value().get<std::string>();
  return metadata;
}

// Sorts by place in the file; every byte must belong to exactly one tensor.
void order_and_check_coverage(std::vector<Entry>& entries, std::uint64_t data_bytes,
                              const std::string& path) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t covered = 0;
  for (const auto& entry : entries) {
    if (entry.begin != covered) {
      throw CheckpointError(fmt::format(
          "{}: tensor '{}': expected data_offsets from {}, where the tensor before it ends, got "
          "[{}, {}]",
          path, entry.name, covered, entry.begin, entry.end));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    throw CheckpointError(fmt::format("{}: expected tensors over all {} bytes of data, got {}",
                                      path, data_bytes, covered));
  }
}

void read_exactly(std::ifstream& stream, void* into, std::uint64_t bytes, const std::string& path) {
  if (!stream.read(static_cast<char*>(into), static_cast<std::streamsize>(bytes))) {
    throw CheckpointError(
        fmt::format("{}: expected to read {} bytes, got {}", path, bytes, stream.gcount()));
  }
}

// A bool that is neither 0 nor 1 is undefined behaviour for whoever reads it.
void check_bools(const at::Tensor& tensor, const std::string& name, const std::string& path) {
  const auto* bytes = static_cast<const std::uint8_t*>(tensor.const_data_ptr());
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    if (bytes[i] > 1) {
      throw CheckpointError(fmt::format("{}: tensor '{}': expected BOOL bytes of 0 or 1, got {}",
                                        path, name, bytes[i]));
    }
  }
}

std::string_view dtype_name(at::ScalarType dtype, const std::string& name,
                            const std::string& path) {
  for (const auto& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  throw CheckpointError(fmt::format("{}: tensor '{}': expected one of {}, got {}", path, name,
                                    dtype_names(), c10::toString(dtype)));
}

}  // namespace

SafetensorsFile read_safetensors(const std::string& path) {
  std::error_code why;
  const std::uint64_t file_bytes = std::filesystem::file_size(path, why);
  std::ifstream stream(path, std::ios::binary);
  if (why || !stream) {
    throw CheckpointError(fmt::format("{}: expected a readable file, got {}", path,
                                      why ? why.message() : "no permission"));
  }
  if (file_bytes < kLengthBytes) {
    throw CheckpointError(
        fmt::format("{}: expected at least {} bytes, got {}", path, kLengthBytes, file_bytes));
  }
  std::uint64_t header_bytes = 0;
  read_exactly(stream, &header_bytes, kLengthBytes, path);
  const std::uint64_t longest = std::min(kMaxHeader, file_bytes - kLengthBytes);
  if (header_bytes > longest) {
    throw CheckpointError(fmt::format("{}: expected a header of at most {} bytes, got {}", path,
                                      longest, header_bytes));
  }
  std::string text(header_bytes, '\0');
  read_exactly(stream, text.data(), header_bytes, path);
  const Json header = detail::parse_json<CheckpointError>(text, path + ": header");
  if (!header.is_object()) {
    throw CheckpointError(fmt::format("{}: header: expected an object, got {}", path,
                                      detail::json_type_name(header)));
  }

  const std::uint64_t data_bytes = file_bytes - kLengthBytes - header_bytes;
  SafetensorsFile file;
  std::vector<Entry> entries;
  for (const auto& item : header.items()) {
    if (item.key() == kMetadataKey) {
      file.metadata = read_metadata(item.value(), path);
    } else {
      const EntryReader reader(item.value(), fmt::format("{}: tensor '{}'", path, item.key()));
      entries.push_back(reader.read(item.key(), data_bytes));
    }
  }
  order_and_check_coverage(entries, data_bytes, path);

  for (auto& entry : entries) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
    if (entry.end != entry.begin) {
      read_exactly(stream, tensor.mutable_data_ptr(), entry.end - entry.begin, path);
    }
    if (entry.dtype == at::kBool) check_bools(tensor, entry.name, path);
    file.tensors.emplace_back(std::move(entry.name), std::move(tensor));
  }
  return file;
}

void write_safetensors(const std::string& path, const SafetensorsFile& file) {
  std::vector<std::pair<std::string_view, at::Tensor>> tensors;
  std::set<std::string_view> names{kMetadataKey};
  for (const auto& [name, tensor] : file.tensors) {
    if (!names.insert(name).second) {
      throw CheckpointError(
          fmt::format("{}: expected each tensor name once, got '{}' again", path, name));
    }
    if (!tensor.defined()) {
      throw CheckpointError(fmt::format("{}: tensor '{}': expected data, got none", path, name));
    }
    tensors.emplace_back(name, tensor.detach().cpu().contiguous());
  }
  // Wide elements first, as the safetensors package orders them: then all tensors are aligned.
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });

  Json header = Json::object();
  if (!file.metadata.empty()) header[std::string(kMetadataKey)] = file.metadata;
  std::size_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    header[std::string(name)] = {
        {"dtype", dtype_name(tensor.scalar_type(), std::string(name), path)},
        {"shape", tensor.sizes().vec()},
        {"data_offsets", {offset, offset + tensor.nbytes()}}};
    offset += tensor.nbytes();
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    throw CheckpointError(path + ": expected names and metadata in UTF-8, got other bytes");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const std::uint64_t header_bytes = text.size();
  std::string bytes;
  bytes.reserve(kLengthBytes + header_bytes + offset);
  bytes.append(reinterpret_cast<const char*>(&header_bytes), kLengthBytes);
  bytes += text;
  for (const auto& [name, tensor] : tensors) {
    bytes.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  detail::write_file<CheckpointError>(path, bytes);
}

}  // namespace prefopt
