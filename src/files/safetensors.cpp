// SPDX-License-Identifier: Apache-2.0
#include "prefopt/files/safetensors.h"

#include <c10/util/StringUtil.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>
#include <string_view>
#include <system_error>
#include <tuple>

#include "core/file.h"
#include "core/json.h"
#include "core/mapped_file.h"
#include "math/sliced_weight.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors holds little-endian data");

using detail::Json;
using detail::SortedJson;

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
  EntryReader(const SortedJson& fields, std::string where)
      : fields_(fields), where_(std::move(where)) {}

  Entry read(std::string name, std::uint64_t data_bytes) const {
    if (!fields_.is_object()) fail("an object", detail::shown_json(fields_));
    for (const auto& item : fields_.items()) {
      if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
        fail("dtype, shape and data_offsets only",
             fmt::format("'{}'", detail::shown_text(item.key())));
      }
    }
    Entry entry{.name = std::move(name), .dtype = dtype(), .shape = {}, .begin = 0, .end = 0};
    const std::uint64_t bytes = read_shape(entry);
    read_offsets(entry, bytes, data_bytes);
    return entry;
  }

 private:
  at::ScalarType dtype() const {
    const SortedJson& given = field("dtype");
    for (const auto& known : kDtypes) {
      if (given == known.name) return known.dtype;
    }
    fail("dtype to be one of " + dtype_names(), detail::shown_json(given));
  }

  // Fills the shape and returns the size in bytes.
  std::uint64_t read_shape(Entry& entry) const {
    const SortedJson& shape = field("shape");
    if (!is_list_of_sizes(shape)) fail("shape to be a list of sizes", detail::shown_json(shape));
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
        fail("a shape of less than 2^63 bytes", detail::shown_json(shape));
      }
      bytes *= size;
      stride *= std::max<std::uint64_t>(size, 1);
      entry.shape.push_back(static_cast<std::int64_t>(size));
    }
    return bytes;
  }

  void read_offsets(Entry& entry, std::uint64_t bytes, std::uint64_t data_bytes) const {
    const SortedJson& offsets = field("data_offsets");
    if (!is_list_of_sizes(offsets) || offsets.size() != 2) {
      fail("data_offsets to be [begin, end]", detail::shown_json(offsets));
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

  static bool is_list_of_sizes(const SortedJson& value) {
    return value.is_array() && std::all_of(value.begin(), value.end(), [](const SortedJson& item) {
             return item.is_number_unsigned();
           });
  }

  const SortedJson& field(const char* name) const {
    const auto at = fields_.find(name);
    if (at == fields_.end()) fail(fmt::format("'{}'", name), "none");
    return *at;
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", where_, expected, got));
  }

  const SortedJson& fields_;
  std::string where_;
};

std::map<std::string, std::string> read_metadata(const SortedJson& given, const std::string& path) {
  std::map<std::string, std::string> metadata;
  const auto is_text = [](const SortedJson& value) { return value.is_string(); };
  if (!given.is_object() || !std::all_of(given.begin(), given.end(), is_text)) {
    throw CheckpointError(fmt::format("{}: expected {} to be an object of texts, got {}", path,
                                      kMetadataKey, detail::shown_json(given)));
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
          path, detail::shown_text(entry.name), covered, entry.begin, entry.end));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    throw CheckpointError(fmt::format("{}: expected tensors over all {} bytes of data, got {}",
                                      path, data_bytes, covered));
  }
}

// A bool that is neither 0 nor 1 is undefined behaviour for whoever reads it.
void check_bools(const at::Tensor& tensor, const std::string& name, const std::string& path) {
  const auto* bytes = static_cast<const std::uint8_t*>(tensor.const_data_ptr());
  for (std::int64_t i = 0; i < tensor.numel(); ++i) {
    if (bytes[i] > 1) {
      throw CheckpointError(fmt::format("{}: tensor '{}': expected BOOL bytes of 0 or 1, got {}",
                                        path, detail::shown_text(name), bytes[i]));
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

using NamedTensor = std::pair<std::string, at::Tensor>;

void check_tensors(const SafetensorsFile& file, const std::string& path) {
  std::set<std::string_view> names{kMetadataKey};
  for (const auto& [name, tensor] : file.tensors) {
    if (!names.insert(name).second) {
      throw CheckpointError(
          fmt::format("{}: expected each tensor name once, got '{}' again", path, name));
    }
    if (!tensor.defined()) {
      throw CheckpointError(fmt::format("{}: tensor '{}': expected data, got none", path, name));
    }
  }
}

// As the safetensors package orders them: wide elements first, which aligns them all, then by name.
std::vector<const NamedTensor*> order_of_data(const SafetensorsFile& file) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& entry : file.tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const auto width = [](const NamedTensor* entry) { return entry->second.element_size(); };
    return width(a) != width(b) ? width(a) > width(b) : a->first < b->first;
  });
  return order;
}

std::string length_and_header(const SafetensorsFile& file,
                              const std::vector<const NamedTensor*>& order,
                              const std::string& path) {
  Json header = Json::object();
  if (!file.metadata.empty()) header[std::string(kMetadataKey)] = file.metadata;
  std::size_t offset = 0;
  for (const NamedTensor* entry : order) {
    const auto& [name, tensor] = *entry;
    header[name] = {{"dtype", dtype_name(tensor.scalar_type(), name, path)},
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
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), kLengthBytes) + text;
}

constexpr const char* kWholeFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// The shards of a model, which have to hold what the index says of them.
class ShardReader {
 public:
  ShardReader(const std::string& directory, const std::string& index)
      : directory_(directory), index_(index) {
    const auto json = detail::parse_json<CheckpointError, SortedJson>(
        detail::read_file<CheckpointError>(index), index);
    const auto map = json.is_object() ? json.find("weight_map") : json.end();
    if (map == json.end() || !map->is_object()) {
      fail("an object with an object 'weight_map'", detail::shown_json(json));
    }
    for (const auto& item : map->items()) {
      const SortedJson& shard = item.value();
      if (!shard.is_string() || !is_plain_name(shard.get<std::string>())) {
        fail(fmt::format("weight_map of '{}' to be the name of a file in this folder",
                         detail::shown_text(item.key())),
             detail::shown_json(shard));
      }
      shard_of_.emplace(item.key(), shard.get<std::string>());
    }
  }

  SafetensorsFile read() const {
    std::set<std::string> shards;
    for (const auto& [name, shard] : shard_of_) shards.insert(shard);
    SafetensorsFile file;
    for (const std::string& shard : shards) {
      SafetensorsFile part = read_safetensors(directory_ + "/" + shard);
      for (auto& [name, tensor] : part.tensors) {
        check_place(name, shard);
        file.tensors.emplace_back(name, std::move(tensor));
      }
      file.metadata.merge(part.metadata);
    }
    check_complete(file);
    return file;
  }

 private:
  static bool is_plain_name(const std::string& name) {
    return !name.empty() && name != "." && name != ".." &&
           name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  }

  // A tensor that two shards have is in the wrong place in one of them.
  void check_place(const std::string& name, const std::string& shard) const {
    const auto at = shard_of_.find(name);
    if (at == shard_of_.end()) {
      fail("the tensors of weight_map only",
           fmt::format("'{}' in '{}'", detail::shown_text(name), shard));
    }
    if (at->second != shard) {
      fail(fmt::format("tensor '{}' in '{}'", name, at->second), fmt::format("it in '{}'", shard));
    }
  }

  void check_complete(const SafetensorsFile& file) const {
    std::set<std::string_view> found;
    for (const auto& [name, tensor] : file.tensors) found.insert(name);
    for (const auto& [name, shard] : shard_of_) {
      if (!found.contains(name)) {
        fail(fmt::format("tensor '{}' in '{}'", detail::shown_text(name), shard), "none there");
      }
    }
  }

  [[noreturn]] void fail(std::string_view expected, std::string_view got) const {
    throw CheckpointError(fmt::format("{}: expected {}, got {}", index_, expected, got));
  }

  const std::string& directory_;
  const std::string& index_;
  std::map<std::string, std::string> shard_of_;
};

// In the order given: a shard is closed by the tensor that would not fit, and a tensor above the
// limit has one to itself.
std::vector<SafetensorsFile> split(const SafetensorsFile& file, std::uint64_t max_shard_bytes) {
  std::vector<SafetensorsFile> shards{{.tensors = {}, .metadata = file.metadata}};
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const std::uint64_t more = tensor.nbytes();
    if (bytes > 0 && more > max_shard_bytes - std::min(bytes, max_shard_bytes)) {
      shards.push_back({.tensors = {}, .metadata = file.metadata});
      bytes = 0;
    }
    shards.back().tensors.emplace_back(name, tensor);
    bytes += more;
  }
  return shards;
}

bool is_weights_name(const std::string& name) {
  static const std::string kShard = "model-00000-of-00000.safetensors";
  const auto fits = [](char given, char wanted) {
    return wanted == '0' ? given >= '0' && given <= '9' : given == wanted;
  };
  return name == kWholeFile || name == kIndexFile ||
         std::equal(name.begin(), name.end(), kShard.begin(), kShard.end(), fits);
}

// A reader would take weights of a former writing for this one's.
void remove_other_weights(const std::string& directory, const std::set<std::string>& written) {
  try {
    for (const auto& item : std::filesystem::directory_iterator(directory)) {
      const std::string name = item.path().filename().string();
      if (is_weights_name(name) && !written.contains(name)) std::filesystem::remove(item);
    }
  } catch (const std::filesystem::filesystem_error& error) {
    throw CheckpointError(fmt::format("{}: expected to remove older weights, got {}", directory,
                                      error.code().message()));
  }
}

}  // namespace

SafetensorsFile read_safetensors(const std::string& path) {
  const auto mapping = detail::map_file<CheckpointError>(path);
  const std::string_view bytes = mapping->bytes();
  if (bytes.size() < kLengthBytes) {
    throw CheckpointError(
        fmt::format("{}: expected at least {} bytes, got {}", path, kLengthBytes, bytes.size()));
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  const std::uint64_t longest = std::min(kMaxHeader, bytes.size() - kLengthBytes);
  if (header_bytes > longest) {
    throw CheckpointError(fmt::format("{}: expected a header of at most {} bytes, got {}", path,
                                      longest, header_bytes));
  }
  const auto header = detail::parse_json<CheckpointError, SortedJson>(
      bytes.substr(kLengthBytes, header_bytes), path + ": header");
  if (!header.is_object()) {
    throw CheckpointError(fmt::format("{}: header: expected an object, got {}", path,
                                      detail::json_type_name(header)));
  }

  const std::uint64_t data_begin = kLengthBytes + header_bytes;
  const std::uint64_t data_bytes = bytes.size() - data_begin;
  SafetensorsFile file;
  std::vector<Entry> entries;
  for (const auto& item : header.items()) {
    if (item.key() == kMetadataKey) {
      file.metadata = read_metadata(item.value(), path);
    } else {
      const EntryReader reader(
          item.value(), fmt::format("{}: tensor '{}'", path, detail::shown_text(item.key())));
      entries.push_back(reader.read(item.key(), data_bytes));
    }
  }
  order_and_check_coverage(entries, data_bytes, path);

  for (auto& entry : entries) {
    at::Tensor tensor =
        detail::tensor_in_file(mapping, data_begin + entry.begin, entry.shape, entry.dtype);
    if (entry.dtype == at::kBool) check_bools(tensor, entry.name, path);
    file.tensors.emplace_back(std::move(entry.name), std::move(tensor));
  }
  return file;
}

void write_safetensors(const std::string& path, const SafetensorsFile& file) {
  check_tensors(file, path);
  const std::vector<const NamedTensor*> order = order_of_data(file);
  const std::string head = length_and_header(file, order, path);
  std::uint64_t bytes = head.size();
  for (const NamedTensor* entry : order) bytes += entry->second.nbytes();
  at::Tensor tensor;  // one at a time on the CPU
  detail::HeldWeights held;
  const auto part = [&](std::size_t i) -> std::string_view {
    if (i == 0) return head;
    held = detail::HeldWeights(order[i - 1]->second);
    tensor = order[i - 1]->second.detach().cpu().contiguous();
    return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
  };
  const std::string why = detail::try_write_parts(path, order.size() + 1, part);
  if (!why.empty()) {
    throw CheckpointError(fmt::format("{}: expected to write {} bytes, got {}", path, bytes, why));
  }
}

std::string safetensors_path(const std::string& directory) {
  // The order in which transformers looks for them.
  const std::string whole = directory + "/" + kWholeFile;
  const std::string index = directory + "/" + kIndexFile;
  std::error_code ignored;
  const bool sharded =
      !std::filesystem::exists(whole, ignored) && std::filesystem::exists(index, ignored);
  return sharded ? index : whole;
}

SafetensorsFile read_safetensors_folder(const std::string& directory) {
  const std::string path = safetensors_path(directory);
  return path.ends_with(kIndexFile) ? ShardReader(directory, path).read() : read_safetensors(path);
}

void write_safetensors_folder(const std::string& directory, const SafetensorsFile& file,
                              std::uint64_t max_shard_bytes) {
  check_tensors(file, directory);
  const std::vector<SafetensorsFile> shards = split(file, max_shard_bytes);
  std::set<std::string> written;
  if (shards.size() == 1) {
    write_safetensors(directory + "/" + kWholeFile, file);
    written.insert(kWholeFile);
  } else {
    std::map<std::string, std::string> map;
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      write_safetensors(directory + "/" + name, shards[i]);
      written.insert(name);
      for (const auto& [tensor_name, tensor] : shards[i].tensors) {
        map[tensor_name] = name;
        bytes += tensor.nbytes();
      }
    }
    const Json index{{"metadata", {{"total_size", bytes}}}, {"weight_map", map}};
    detail::write_file<CheckpointError>(directory + "/" + kIndexFile,
                                        detail::dump_json(index, 2) + "\n");
    written.insert(kIndexFile);
  }
  remove_other_weights(directory, written);
}

}  // namespace prefopt
