# SPDX-License-Identifier: Apache-2.0
# Compiles through ccache where it is installed. The sloppiness lets it cache files that use a
# precompiled header (https://ccache.dev/manual/latest.html#_precompiled_headers); NOHASHDIR lets
# build folders share what they compile alike.
if(DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  return()
endif()
find_program(PREFOPT_CCACHE ccache)
mark_as_advanced(PREFOPT_CCACHE)
if(PREFOPT_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER
    "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_NOHASHDIR=1
    "${PREFOPT_CCACHE}")
endif()
