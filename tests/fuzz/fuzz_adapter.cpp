// SPDX-License-Identifier: Apache-2.0
#include <memory>

#include "fuzz/input_files.h"
#include "fuzz/targets.h"
#include "fuzz/verdict.h"
#include "prefopt/decoder/decoder.h"

namespace prefopt::fuzz {

/// adapter_config.json, a zero byte, adapter_model.safetensors.
void read_adapter(std::string_view bytes) {
  static const InputFolder folder;
  static auto model = std::make_shared<Decoder>(DecoderOptions{.vocab_size = 3,
                                                               .hidden_size = 4,
                                                               .intermediate_size = 6,
                                                               .num_hidden_layers = 1,
                                                               .num_attention_heads = 2,
                                                               .num_key_value_heads = 1});
  const auto [config, tensors] = split_input(bytes);
  folder.put("adapter_config.json", config);
  folder.put("adapter_model.safetensors", tensors);
  const bool accepted = accepts(folder.path(), [&] { model->load_adapter(folder.path()); });
  expect(accepted == model->adapter().has_value(), "a refused adapter that stayed, or none");
  if (!accepted) return;
  // A bias of B has no place in this model.
  const bool merges = !model->adapter()->lora_bias;
  expect(!merges || !model->merged_decoder()->adapter(), "a merged model with an adapter");
  model = model->without_adapter();
}

}  // namespace prefopt::fuzz
