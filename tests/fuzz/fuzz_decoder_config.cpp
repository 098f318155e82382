// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "decoder/decoder_config.h"
#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"

namespace prefopt::fuzz {

void read_decoder_config(std::string_view bytes) {
  const MemoryFile file(bytes);
  accepts(file.path(), [&] {
    const auto written = [](const std::string& path) {
      return detail::dump_json(
          detail::make_decoder_config(detail::read_decoder_config(path).options));
    };
    const std::string config = written(file.path());
    expect(written(MemoryFile(config).path()) == config,
           "a model that its own config does not give back");
  });
}

}  // namespace prefopt::fuzz
