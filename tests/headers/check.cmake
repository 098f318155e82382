# SPDX-License-Identifier: Apache-2.0
# The includes that public headers may have, and that each names its licence. A wrong include costs every user
# seconds a file, or drags a second fmt into the program.
file(GLOB_RECURSE headers RELATIVE "${INCLUDE_DIR}" "${INCLUDE_DIR}/prefopt/*.h")
if(NOT headers)
  message(FATAL_ERROR "no header in ${INCLUDE_DIR}")
endif()

set(faults "")
foreach(header IN LISTS headers)
  file(READ "${INCLUDE_DIR}/${header}" text)
  if(NOT text MATCHES "^// SPDX-License-Identifier: Apache-2.0\n#pragma once\n")
    list(APPEND faults "${header}: expected the SPDX line, then #pragma once, at its top")
  endif()
  string(REGEX MATCHALL "# *include *[<\"][^>\"]+" includes "${text}")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE "# *include *[<\"]" "" include "${include}")
    if(include STREQUAL "ATen/TensorOperators.h" AND header STREQUAL "prefopt/math/tensor.h")
      # Included there without the rest of ATen; formulas on tensors need operators.
    elseif(include MATCHES "^ATen/" AND NOT include MATCHES "^ATen/core/")
      list(APPEND faults "${header}: expected ATen/core/ headers only, got ${include}")
    elseif(include MATCHES "^torch/" AND NOT include MATCHES "^torch/nn/")
      list(APPEND faults "${header}: expected no torch/ header but torch/nn/, got ${include}")
    elseif(include MATCHES "^torch/" AND NOT header STREQUAL "prefopt/policy/module_policy.h")
      list(APPEND faults "${header}: expected torch/nn/ in module_policy.h alone, got ${include}")
    elseif(include MATCHES "^(nlohmann|fmt|CLI|catch2)/")
      list(APPEND faults "${header}: expected no ${CMAKE_MATCH_1} in a public header, got ${include}")
    elseif(include MATCHES "^Eigen/" AND NOT header MATCHES
           "^prefopt/(exact/|objectives/|math/eigen\\.h|testing/objective_checks\\.h)")
      list(APPEND faults
        "${header}: expected Eigen in exact/, objectives/ and math/eigen.h alone, got ${include}")
    endif()
  endforeach()
endforeach()

if(faults)
  list(JOIN faults "\n  " faults)
  message(FATAL_ERROR "public headers:\n  ${faults}")
endif()
