// SPDX-License-Identifier: Apache-2.0
#include "prefopt/files/gguf.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <ctime>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "core/mapped_file.h"
#include "files/gguf_dequantize.h"
#include "files/gguf_kinds.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

static_assert(std::endian::native == std::endian::little, "the mapped data is little-endian");

constexpr std::uint64_t kMaxNameBytes = 65535;  // of a key, by the format
constexpr std::uint32_t kMaxGgufRank = 4;       // of ggml
constexpr int kMaxNesting = 8;
// The fewest bytes that one of these takes in a file.
constexpr std::uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

using Kind = detail::GgufKind;

struct KindTraits {
  std::string_view name;
  std::uint64_t bytes;  // of a value; of a text or list the least
};

constexpr std::array<KindTraits, 13> kKinds{{{"uint8", 1},
                                             {"int8", 1},
                                             {"uint16", 2},
                                             {"int16", 2},
                                             {"uint32", 4},
                                             {"int32", 4},
                                             {"float32", 4},
                                             {"flag", 1},
                                             {"text", 8},
                                             {"list", 12},
                                             {"uint64", 8},
                                             {"int64", 8},
                                             {"float64", 8}}};

const KindTraits& traits(Kind kind) { return kKinds[static_cast<std::size_t>(kind)]; }

// A place in the file that moves on with what is read there, and never past the end.
class Cursor {
 public:
  Cursor(std::string_view bytes, const std::string& path, std::uint64_t at = 0)
      : bytes_(bytes), path_(path), at_(at) {}

  std::uint64_t at() const { return at_; }
  std::uint64_t left() const { return bytes_.size() - at_; }

  // `of` and `what` are put together where an error names them: a vocabulary has 10^5 texts.
  std::string_view take(std::uint64_t bytes, std::string_view what, std::string_view of = "") {
    if (bytes > left()) {
      fail(at_, fmt::format("{}{} of {} bytes", of, what, bytes),
           fmt::format("{} to the end", left()));
    }
    const std::string_view taken = bytes_.substr(at_, bytes);
    at_ += bytes;
    return taken;
  }

  template <class T>
  T number(std::string_view what, std::string_view of = "") {
    T value;
    std::memcpy(&value, take(sizeof value, what, of).data(), sizeof value);
    return value;
  }

  std::string_view text(std::string_view what) {
    return take(number<std::uint64_t>(what, kLengthOf), what);
  }

  std::string name(std::string_view what) {
    const std::uint64_t begin = at_;
    const auto length = number<std::uint64_t>(what, kLengthOf);
    if (length == 0 || length > kMaxNameBytes) {
      fail(begin, fmt::format("{} of 1 to {} bytes", what, kMaxNameBytes),
           fmt::format("{}", length));
    }
    std::string text(take(length, what));
    if (const auto zero = text.find('\0'); zero != std::string::npos) {
      fail(at_ - length + zero, fmt::format("{} without zero bytes", what), "one");
    }
    return text;
  }

  Kind kind() {
    const std::uint64_t begin = at_;
    const auto number_of_kind = number<std::uint32_t>("type of a value");
    if (number_of_kind >= kKinds.size()) {
      fail(begin, "a type of value from 0 to 12", fmt::format("{}", number_of_kind));
    }
    return static_cast<Kind>(number_of_kind);
  }

  // Reads a number of things that take at least `least` bytes each.
  std::uint64_t count(std::string_view what, std::uint64_t least) {
    const std::uint64_t begin = at_;
    const auto given = number<std::uint64_t>(what, "number of ");
    const std::uint64_t most = left() / least;
    if (given > most) {
      fail(begin, fmt::format("at most {} {} in {} bytes", most, what, left()),
           fmt::format("{}", given));
    }
    return given;
  }

  [[noreturn]] void fail(std::uint64_t at, std::string_view expected, std::string_view got) const {
    throw CheckpointError(
        fmt::format("{}: byte {}: expected {}, got {}", path_, at, expected, got));
  }

 private:
  static constexpr std::string_view kLengthOf = "length of ";

  std::string_view bytes_;
  const std::string& path_;
  std::uint64_t at_;
};

struct List {
  Kind kind;
  std::uint64_t count;
};

List read_list_head(Cursor& cursor) {
  const Kind kind = cursor.kind();
  return {kind, cursor.count("list elements", traits(kind).bytes)};
}

// Moves past a value and checks it on the way.
void check_value(Cursor& cursor, Kind kind, int nesting = 0) {
  const std::uint64_t begin = cursor.at();
  if (kind == Kind::kText) {
    cursor.text("text");
  } else if (kind == Kind::kFlag) {
    const auto byte = cursor.number<std::uint8_t>("flag");
    if (byte > 1) cursor.fail(begin, "a flag of 0 or 1", fmt::format("{}", byte));
  } else if (kind == Kind::kList) {
    if (nesting == kMaxNesting) {
      cursor.fail(begin, fmt::format("lists in at most {} levels", kMaxNesting), "more");
    }
    const List list = read_list_head(cursor);
    const bool plain =
        list.kind != Kind::kText && list.kind != Kind::kFlag && list.kind != Kind::kList;
    if (plain) {
      cursor.take(list.count * traits(list.kind).bytes, "list");
      return;
    }
    for (std::uint64_t i = 0; i < list.count; ++i) check_value(cursor, list.kind, nesting + 1);
  } else {
    cursor.take(traits(kind).bytes, "value");
  }
}

struct Value {
  Kind kind;
  std::uint64_t at;  // of its bytes, behind the kind
  std::uint64_t end;
};

// The file's words about itself; places are offsets.
struct Header {
  std::vector<std::string> keys;
  std::map<std::string, Value, std::less<>> values;
  std::vector<GgufTensor> tensors;
  std::vector<const detail::GgufEncoding*> encodings;  // one a tensor
  std::map<std::string, std::size_t, std::less<>> index_of_tensor;
};

struct Contents {
  std::string path;
  std::shared_ptr<detail::MappedFile> mapping;
  std::shared_ptr<const Header> header;

  Cursor cursor(std::uint64_t at = 0) const { return {mapping->bytes(), path, at}; }
};

// Reads one value as a T; returns false if the kind does not fit.
bool read_as(Cursor& cursor, Kind kind, std::int64_t& value) {
  switch (kind) {
    case Kind::kUint8:
      value = cursor.number<std::uint8_t>("value");
      return true;
    case Kind::kInt8:
      value = cursor.number<std::int8_t>("value");
      return true;
    case Kind::kUint16:
      value = cursor.number<std::uint16_t>("value");
      return true;
    case Kind::kInt16:
      value = cursor.number<std::int16_t>("value");
      return true;
    case Kind::kUint32:
      value = cursor.number<std::uint32_t>("value");
      return true;
    case Kind::kInt32:
      value = cursor.number<std::int32_t>("value");
      return true;
    case Kind::kUint64:
    case Kind::kInt64:
      value = cursor.number<std::int64_t>("value");
      return kind == Kind::kInt64 || value >= 0;
    default:
      return false;
  }
}

bool read_as(Cursor& cursor, Kind kind, double& value) {
  if (kind != Kind::kFloat32 && kind != Kind::kFloat64) return false;
  value = kind == Kind::kFloat32 ? cursor.number<float>("value") : cursor.number<double>("value");
  return true;
}

bool read_as(Cursor& cursor, Kind kind, bool& value) {
  if (kind != Kind::kFlag) return false;
  value = cursor.number<std::uint8_t>("flag") != 0;
  return true;
}

bool read_as(Cursor& cursor, Kind kind, std::string& value) {
  if (kind != Kind::kText) return false;
  value = cursor.text("text");
  return true;
}

struct Words {
  std::string_view one, many;
};

template <class T>
Words words_for() {
  if constexpr (std::is_same_v<T, std::int64_t>)
    return {"integer below 2^63", "integers below 2^63"};
  if constexpr (std::is_same_v<T, double>) return {"real number", "real numbers"};
  if constexpr (std::is_same_v<T, bool>) return {"flag", "flags"};
  if constexpr (std::is_same_v<T, std::string>) return {"text", "texts"};
}

const Value& find_value(const Contents& contents, std::string_view key) {
  const auto at = contents.header->values.find(key);
  if (at == contents.header->values.end()) {
    throw CheckpointError(
        fmt::format("{}: expected metadata '{}', got none of that name", contents.path, key));
  }
  return at->second;
}

[[noreturn]] void fail_kind(const Contents& contents, std::string_view key, std::uint64_t at,
                            std::string_view expected, std::string_view got) {
  throw CheckpointError(fmt::format("{}: byte {}: metadata '{}': expected {}, got {}",
                                    contents.path, at, key, expected, got));
}

template <class T>
T read_value(const Contents& contents, std::string_view key) {
  const Value& found = find_value(contents, key);
  Cursor cursor = contents.cursor(found.at);
  T value{};
  if (!read_as(cursor, found.kind, value)) {
    fail_kind(contents, key, found.at, fmt::format("one {}", words_for<T>().one),
              traits(found.kind).name);
  }
  return value;
}

template <class T>
std::vector<T> read_list(const Contents& contents, std::string_view key) {
  const Value& found = find_value(contents, key);
  const std::string expected = fmt::format("a list of {}", words_for<T>().many);
  if (found.kind != Kind::kList) {
    fail_kind(contents, key, found.at, expected, traits(found.kind).name);
  }
  Cursor cursor = contents.cursor(found.at);
  const List list = read_list_head(cursor);
  std::vector<T> values(list.count);
  for (T& value : values) {
    if (!read_as(cursor, list.kind, value)) {
      fail_kind(contents, key, found.at, expected,
                fmt::format("one of {}", traits(list.kind).name));
    }
  }
  return values;
}

// Fills in the header from the mapping.
class Parser {
 public:
  Parser(const Contents& contents, Header& header)
      : contents_(contents), header_(header), cursor_(contents.cursor()) {}

  void parse() {
    read_magic();
    const auto tensors = cursor_.count("tensors", kMinTensorBytes);
    const auto entries = cursor_.count("metadata entries", kMinEntryBytes);
    for (std::uint64_t i = 0; i < entries; ++i) read_entry();
    for (std::uint64_t i = 0; i < tensors; ++i) read_tensor();
    place_tensors(alignment());
  }

 private:
  void read_magic() {
    constexpr std::string_view kMagic = "GGUF";
    if (const auto magic = cursor_.take(kMagic.size(), "the magic number"); magic != kMagic) {
      cursor_.fail(0, "the letters GGUF", fmt::format("{:02x}", fmt::join(bytes_of(magic), " ")));
    }
    const auto version = cursor_.number<std::uint32_t>("version");
    if (version != 2 && version != detail::kGgufVersion) {
      // A file of the other byte order has its version in the upper half.
      cursor_.fail(4, "version 2 or 3, little-endian", fmt::format("{:#x}", version));
    }
  }

  static std::vector<unsigned> bytes_of(std::string_view text) {
    std::vector<unsigned> bytes;
    for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
    return bytes;
  }

  void read_entry() {
    const std::uint64_t begin = cursor_.at();
    std::string key = cursor_.name("key");
    const Kind kind = cursor_.kind();
    const auto [added, is_new] = header_.values.emplace(key, Value{kind, cursor_.at(), 0});
    if (!is_new) cursor_.fail(begin, "each key once", fmt::format("'{}' again", key));
    check_value(cursor_, kind);
    added->second.end = cursor_.at();
    header_.keys.push_back(std::move(key));
  }

  void read_tensor() {
    const std::uint64_t begin = cursor_.at();
    GgufTensor tensor;
    tensor.name = cursor_.name("tensor name");
    if (!header_.index_of_tensor.emplace(tensor.name, header_.tensors.size()).second) {
      cursor_.fail(begin, "each tensor name once", fmt::format("'{}' again", tensor.name));
    }
    const std::uint64_t values = read_shape(tensor);
    const std::uint64_t encoding_begin = cursor_.at();
    const auto id = cursor_.number<std::uint32_t>("tensor type");
    const detail::GgufEncoding* encoding = detail::find_gguf_encoding(id);
    if (!encoding) {
      cursor_.fail(encoding_begin, fmt::format("a known type of tensor '{}'", tensor.name),
                   fmt::format("{}", id));
    }
    const std::int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (row % encoding->values != 0) {
      cursor_.fail(encoding_begin,
                   fmt::format("rows of tensor '{}' in blocks of {} for {}", tensor.name,
                               encoding->values, encoding->name),
                   fmt::format("{} values", row));
    }
    tensor.type = encoding->name;
    tensor.bytes = values / static_cast<std::uint64_t>(encoding->values) *
                   static_cast<std::uint64_t>(encoding->bytes);
    offset_fields_.push_back(cursor_.at());
    tensor.offset = cursor_.number<std::uint64_t>("tensor offset");  // within the data, for now
    header_.tensors.push_back(std::move(tensor));
    header_.encodings.push_back(encoding);
  }

  // Returns the number of values.
  std::uint64_t read_shape(GgufTensor& tensor) {
    const std::uint64_t begin = cursor_.at();
    const auto rank = cursor_.number<std::uint32_t>("number of dimensions");
    if (rank > kMaxGgufRank) {
      cursor_.fail(begin,
                   fmt::format("at most {} dimensions of tensor '{}'", kMaxGgufRank, tensor.name),
                   fmt::format("{}", rank));
    }
    // Low enough for the bytes of float64; strides are products without the empty dimensions.
    constexpr std::uint64_t kMaxValues = std::uint64_t{1} << 60;
    std::uint64_t values = 1;
    std::uint64_t stride = 1;
    for (std::uint32_t i = 0; i < rank; ++i) {
      const auto size = cursor_.number<std::uint64_t>("dimension");
      if (size != 0 && stride > kMaxValues / size) {
        cursor_.fail(begin, fmt::format("tensor '{}' of at most 2^60 values", tensor.name), "more");
      }
      values *= size;
      stride *= std::max<std::uint64_t>(size, 1);
      tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(size));
    }
    return values;
  }

  std::uint64_t alignment() const {
    constexpr std::string_view kKey = "general.alignment";
    if (!header_.values.contains(kKey)) return detail::kGgufAlignment;
    const auto given = read_value<std::int64_t>(contents_, kKey);
    if (given < 1 || given > std::numeric_limits<std::uint32_t>::max() ||
        !std::has_single_bit(static_cast<std::uint64_t>(given))) {
      fail_kind(contents_, kKey, find_value(contents_, kKey).at, "a power of two below 2^32",
                fmt::format("{}", given));
    }
    return static_cast<std::uint64_t>(given);
  }

  // Tensors follow each other in the order of their descriptions, each aligned.
  void place_tensors(std::uint64_t alignment) {
    const auto aligned = [&](std::uint64_t at) { return (at + alignment - 1) & ~(alignment - 1); };
    const std::uint64_t begin = aligned(cursor_.at());
    const std::uint64_t file_bytes = contents_.mapping->bytes().size();
    const std::uint64_t data_bytes = file_bytes - std::min(begin, file_bytes);
    std::uint64_t end = 0;
    for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
      GgufTensor& tensor = header_.tensors[i];
      if (tensor.offset != aligned(end)) {
        cursor_.fail(offset_fields_[i],
                     fmt::format("tensor '{}' at {} of the data, behind the one before it",
                                 tensor.name, aligned(end)),
                     fmt::format("{}", tensor.offset));
      }
      if (tensor.offset > data_bytes || tensor.bytes > data_bytes - tensor.offset) {
        cursor_.fail(offset_fields_[i],
                     fmt::format("tensor '{}' within {} bytes of data", tensor.name, data_bytes),
                     fmt::format("{} bytes from {}", tensor.bytes, tensor.offset));
      }
      end = tensor.offset + tensor.bytes;
      tensor.offset += begin;
    }
  }

  const Contents& contents_;
  Header& header_;  // that of the contents, to be filled in
  Cursor cursor_;
  std::vector<std::uint64_t> offset_fields_;
};

using Stat = struct stat;

bool is_same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

bool is_same_file(const Stat& a, const Stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
         is_same_time(a.st_mtim, b.st_mtim) && is_same_time(a.st_ctim, b.st_ctim);
}

// The header that was parsed last: a run opens its file for tokenizer, config and weights.
class LastHeader {
 public:
  std::shared_ptr<const Header> find(const Stat& file) {
    const std::lock_guard lock(mutex_);
    return header_ && is_same_file(file, file_) ? header_ : nullptr;
  }

  // A file that changed just now may change again without another time or size.
  void put(const Stat& file, std::shared_ptr<const Header> header) {
    constexpr std::time_t kSeconds = 2;
    if (std::time(nullptr) < file.st_ctim.tv_sec + kSeconds) return;
    const std::lock_guard lock(mutex_);
    file_ = file;
    header_ = std::move(header);
  }

  static LastHeader& instance() {
    static auto* instance = new LastHeader;  // never destroyed, as mappings are not
    return *instance;
  }

 private:
  std::mutex mutex_;
  Stat file_{};
  std::shared_ptr<const Header> header_;
};

}  // namespace

struct GgufFile::Impl : Contents {};

GgufFile::GgufFile(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

GgufFile GgufFile::open(const std::string& path) {
  auto impl = std::make_shared<Impl>();
  impl->path = path;
  // The same file before and after is the one that is mapped in between.
  Stat before{}, after{};
  const bool is_there = ::stat(path.c_str(), &before) == 0;
  impl->mapping = detail::map_file<CheckpointError>(path);
  const bool is_known =
      is_there && ::stat(path.c_str(), &after) == 0 && is_same_file(before, after);
  LastHeader& last = LastHeader::instance();
  if (is_known && (impl->header = last.find(after))) return GgufFile(std::move(impl));
  const auto header = std::make_shared<Header>();
  impl->header = header;
  Parser(*impl, *header).parse();
  if (is_known) last.put(after, header);
  return GgufFile(std::move(impl));
}

const std::string& GgufFile::path() const { return impl_->path; }

const std::vector<std::string>& GgufFile::keys() const { return impl_->header->keys; }

bool GgufFile::has(std::string_view key) const { return impl_->header->values.contains(key); }

std::string GgufFile::encoded(std::string_view key) const {
  constexpr std::uint64_t kKindBytes = sizeof(Kind);
  const Value& found = find_value(*impl_, key);
  const std::uint64_t begin = found.at - kKindBytes;
  return std::string(impl_->mapping->bytes().substr(begin, found.end - begin));
}

std::string GgufFile::text(std::string_view key) const {
  return read_value<std::string>(*impl_, key);
}

std::int64_t GgufFile::integer(std::string_view key) const {
  return read_value<std::int64_t>(*impl_, key);
}

double GgufFile::real(std::string_view key) const { return read_value<double>(*impl_, key); }

bool GgufFile::flag(std::string_view key) const { return read_value<bool>(*impl_, key); }

std::vector<std::string> GgufFile::texts(std::string_view key) const {
  return read_list<std::string>(*impl_, key);
}

std::vector<std::int64_t> GgufFile::integers(std::string_view key) const {
  return read_list<std::int64_t>(*impl_, key);
}

std::vector<double> GgufFile::reals(std::string_view key) const {
  return read_list<double>(*impl_, key);
}

const std::vector<GgufTensor>& GgufFile::tensors() const { return impl_->header->tensors; }

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto at = impl_->header->index_of_tensor.find(name);
  return at == impl_->header->index_of_tensor.end() ? nullptr : &impl_->header->tensors[at->second];
}

std::size_t GgufFile::place_of(std::string_view name) const {
  const auto at = impl_->header->index_of_tensor.find(name);
  if (at != impl_->header->index_of_tensor.end()) return at->second;
  throw CheckpointError(
      fmt::format("{}: expected tensor '{}', got none of that name", path(), name));
}

at::Tensor GgufFile::bytes(std::string_view name) const {
  const GgufTensor& found = impl_->header->tensors[place_of(name)];
  return detail::tensor_in_file(impl_->mapping, found.offset,
                                {static_cast<std::int64_t>(found.bytes)}, at::kByte);
}

at::Tensor GgufFile::tensor(std::string_view name, at::ScalarType dtype) const {
  const std::size_t place = place_of(name);
  if (!at::isFloatingType(dtype)) {
    throw DtypeError(fmt::format("{}: tensor '{}': expected a floating dtype, got {}", path(), name,
                                 c10::toString(dtype)));
  }
  const GgufTensor& found = impl_->header->tensors[place];
  const detail::GgufEncoding& encoding = *impl_->header->encodings[place];
  if (encoding.dtype) {
    return detail::tensor_in_file(impl_->mapping, found.offset, found.shape, *encoding.dtype)
        .to(dtype);
  }
  if (!encoding.decode) {
    throw CheckpointError(fmt::format("{}: tensor '{}': expected {}, got {}", path(), name,
                                      detail::decoded_encodings(), encoding.name));
  }
  const auto* blocks =
      reinterpret_cast<const std::uint8_t*>(impl_->mapping->bytes().data() + found.offset);
  return detail::dequantize(encoding, blocks, found.shape, dtype);
}

}  // namespace prefopt
