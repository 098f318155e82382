# SPDX-License-Identifier: Apache-2.0
# PCRE2 and utf8proc as imported targets. Neither package of Debian brings a CMake configuration, so
# both are looked up by header and library; an installed prefopt does the same for a static build.

# Makes `target` of a header and a library, if both are found.
function(prefopt_find_library target header library)
  if(TARGET ${target})
    return()
  endif()
  string(MAKE_C_IDENTIFIER "prefopt_${library}" variable)
  find_path(${variable}_include ${header})
  find_library(${variable}_library ${library})
  mark_as_advanced(${variable}_include ${variable}_library)
  if(${variable}_include AND ${variable}_library)
    add_library(${target} UNKNOWN IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES
      IMPORTED_LOCATION "${${variable}_library}"
      INTERFACE_INCLUDE_DIRECTORIES "${${variable}_include}")
  endif()
endfunction()

function(prefopt_find_pcre2)
  prefopt_find_library(PCRE2::8BIT pcre2.h pcre2-8)
endfunction()

function(prefopt_find_utf8proc)
  prefopt_find_library(utf8proc::utf8proc utf8proc.h utf8proc)
endfunction()
